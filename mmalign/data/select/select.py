"""`mmalign data select`: a data set of chosen samples of another one, whose tars stay where and as they are.

    indexes -> keys, languages -+-> rules, in order -> Choice -> <out>/<shard>.index.jsonl: chosen rows
    side tables ----------------+                               -> <out>/manifest.json, last

Readers go by the index alone, so the result is trained on, verified, counted and chosen from like any other
set. Memory: about 150 bytes per sample with one caption.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmalign.core.commit import check_writable, exclusive
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.core.ray_tasks import map_parts
from mmalign.data.parts import Part, has_parts, interleave, read_parts, write_part
from mmalign.data.select.balance import balance
from mmalign.data.select.bounds import keep_bounds, tables_of
from mmalign.data.select.choice import Choice
from mmalign.data.select.repeats import remove_leaks, remove_repeats
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.source import ChosenFrom, Descriptions, open_tree
from mmalign.data.select.write import recipe_of, write_chosen, write_indexes
from mmalign.data.shards.foreign_tars import place_of
from mmalign.data.shards.manifest import MANIFEST, Manifest, read_manifest
from mmalign.data.storage.remote import is_remote

WORK = ".select"


@dataclass(frozen=True)
class Selected:
    """What was chosen."""

    manifest: Manifest
    removed: dict[str, dict[str, int]]  # `samples` and `captions`, by reason
    samples: int  # before
    captions: int


def select_by_ray(name: str, out: Path, config: SelectConfig, address: str) -> Selected:
    """As `select`, in parts that are tasks of the Ray cluster at an address.

    Where a rule compares samples of all shards, only what is long is divided: looking at images and texts.
    """
    if _of_all_shards(config):
        found = select(name, out, config, ray=address)
        assert found is not None
        return found
    map_parts(partial(select, name, out, config), address)
    return merge(out)


def select(
    name: str,
    out: Path,
    config: SelectConfig,
    processes: int = 1,
    part: Part = (0, 1),
    ray: str | None = None,
) -> Selected | None:
    """Write the index and the manifest of the chosen samples; returns None for a part.

    Args:
        name: folder or URL of the set that is chosen from.
        processes: shards that are read at once, where images or texts must be looked at.
        part: (i, n): choose from the shards i, i + n, ... only, and write no manifest, which `merge` writes
            when all parts are done.
        ray: address of the cluster that describes sets where a rule needs it.

    Raises:
        UserError: a table or a column is missing, `out` holds something else, nothing is left, or a part has
            a rule that compares samples of all shards.
    """
    check_writable(out, is_folder=True)
    if (out / MANIFEST).is_file() and not (out / WORK).is_dir():
        raise UserError(f"{out}: holds a data set of another kind; name another folder")
    if not is_remote(name) and Path(name).resolve() == out.resolve():
        raise UserError(f"{out}: is the set that is chosen from; name another folder")
    if part[1] > 1 and (rule := _of_all_shards(config)):
        raise UserError(
            f"--part: the rule `{rule}` compares samples of all shards; choose by the other rules in parts, "
            f"and by `{rule}` from the merged set"
        )
    recipe = recipe_of(config)
    with exclusive(out / WORK / f"part-{part[0]}" if part[1] > 1 else out / WORK):
        source = ChosenFrom.open(name, part)
        choice = Choice(source.captions_S)
        descriptions = Descriptions(source, out / WORK, config.tables, processes, part, ray)
        _apply(config, source, choice, descriptions)
        removed = choice.removed()
        samples, captions = len(source.captions_S), int(source.captions_S.sum())
        if part[1] == 1:
            _check_some_left(name, removed, samples)
        (out / MANIFEST).unlink(missing_ok=True)  # a set that is not finished has none
        shards = write_indexes(source, choice, out)
        if part[1] > 1:
            same = {**recipe, "set": place_of(name), "manifest_sha256": source.manifest.sha256}
            own = {
                "reasons": choice.reasons,
                "removed": removed,
                "samples": samples,
                "captions": captions,
                "shards": shards,
            }
            write_part(out / WORK, part, same, own)
            return None
        write_chosen(source.manifest, source.tree, recipe, out, shards, removed)
    return Selected(read_manifest(out), removed, samples, captions)


def merge(out: Path) -> Selected:
    """Write the manifest of a set of which all parts are chosen.

    Raises:
        UserError: a part is missing, the parts are of different sets or rules, or nothing is left.
    """
    with exclusive(out / WORK):
        parts = read_parts(out / WORK)
        same = parts[0]["same"]
        manifest, tree = open_tree(same["set"])[1:]
        if manifest.sha256 != same["manifest_sha256"]:
            raise UserError(f"{same['set']}: has changed since; run the parts again")
        reasons = dict.fromkeys(reason for part in parts for reason in part["reasons"])
        removed = {
            kind: {
                reason: count
                for reason in reasons
                if (count := sum(part["removed"][kind].get(reason, 0) for part in parts))
            }
            for kind in ("samples", "captions")
        }
        samples, captions = (sum(part[kind] for part in parts) for kind in ("samples", "captions"))
        _check_some_left(same["set"], removed, samples)
        shards = interleave([part["shards"] for part in parts])
        recipe = {"select": same["select"], "tables": same["tables"]}
        write_chosen(manifest, tree, recipe, out, shards, removed)
    return Selected(read_manifest(out), removed, samples, captions)


def is_in_parts(out: Path) -> bool:
    """Whether parts of a choice in `out` are made."""
    return has_parts(out / WORK)


def _of_all_shards(config: SelectConfig) -> str | None:
    """The name of a rule that compares samples of different shards."""
    return next((name for name in ("duplicates", "balance") if getattr(config, name)), None)


def _check_some_left(name: str, removed: dict[str, dict[str, int]], samples: int) -> None:
    if sum(removed["samples"].values()) == samples:
        most = max(removed["samples"].items(), key=lambda item: item[1])
        raise UserError(
            f"{name}: the rules leave no sample; `{most[0]}` removes {most[1]} of {samples}"
        )


def _apply(
    config: SelectConfig, source: ChosenFrom, choice: Choice, descriptions: Descriptions
) -> None:
    if config.languages is not None:
        _keep_languages(config.languages, source, choice)
    for table, bounds in tables_of(config, descriptions).items():
        keep_bounds(table, bounds, config.missing, source, choice)
    if config.leaks is not None:
        remove_leaks(config.leaks, source, choice, descriptions)
    if config.duplicates is not None:
        remove_repeats(config.duplicates, source, choice, descriptions)
    if config.balance is not None:
        balance(config.balance, source, choice, descriptions.processes)


def _keep_languages(languages: Iterable[str], source: ChosenFrom, choice: Choice) -> None:
    wanted = set(map(canonical_language, languages))
    there = source.all_languages
    if lacking := sorted(wanted - set(map(canonical_language, there))):
        raise UserError(
            f"languages: `{lacking[0]}` is not in the set; it has {', '.join(sorted(there))}"
        )
    is_wanted = np.array([canonical_language(code) in wanted for code in source.languages], bool)
    choice.remove_captions(
        np.flatnonzero(~is_wanted[source.language_C]), choice.reason("other language")
    )
    choice.settle()


def say_selected(found: Selected, out: Path) -> None:
    """What was chosen and what was removed, by reason, line by line."""
    manifest = found.manifest
    captions = sum(manifest.languages.values())
    say(
        f"{out}: {manifest.samples:,} of {found.samples:,} samples, {captions:,} of {found.captions:,} "
        f"captions in {len(manifest.languages)} languages"
    )
    for reason in dict.fromkeys([*found.removed["samples"], *found.removed["captions"]]):
        samples, lost = (found.removed[kind].get(reason, 0) for kind in ("samples", "captions"))
        say(f"  removed: {reason}: {samples:,} samples, {lost:,} captions")
