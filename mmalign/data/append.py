"""`mmalign data append`: new shards for a data set that is there, by a recipe, or of tars that others made.

    recipe -> rows -> shards with the next numbers in <set>.appending, moved into the set -+-> manifest.json,
    tars -> those that the set does not have -> scanned, their indexes beside the others --+   last

The shards that are there stay as they are and come first. The manifest says how many there were, and the
sha256 that it had then, so a run that began with them goes on with exactly these (`Manifest.as_of`).
Everything before the manifest can be done again: after a stop, the same command goes on. Before anything is
moved, the new rows are compared with the set: their identities, and the shards of an append that was stopped.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.core.commit import (
    exclusive,
    flush,
    name_aside,
    replace_folder,
    sha256_of,
    write_json,
)
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.core.workers import usable_cores
from mmalign.data import packing
from mmalign.data.identities import check_identities
from mmalign.data.packing import build_shards, remove_stale_files
from mmalign.data.recipe import splits_in, work_folder
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.foreign_tars import (
    REFUSED,
    SCANS,
    jobs_of,
    join_refusals,
    place_of,
    scan_tars,
    tars_of,
    write_refusals,
)
from mmalign.data.shards.index import index_info
from mmalign.data.shards.manifest import (
    FIX,
    FORMAT_VERSION,
    MANIFEST,
    Facts,
    Manifest,
    load_manifest,
    read_manifest,
    write_manifest,
)
from mmalign.data.shards.pack import (
    MOST_ATTRIBUTIONS,
    SIZES,
    STATE,
    Report,
    split_info,
    write_sizes,
    write_split,
)
from mmalign.data.shards.scan import Rules
from mmalign.data.storage.remote import is_remote


class Appended(NamedTuple):
    """What became of one split."""

    folder: Path
    manifest: Manifest
    shards: int  # that are new
    known: int  # shards of the source that the set had already


def recipe_of(
    folder: Path, sources: Sequence[str], allow_outside: bool = False
) -> RecipeConfig | None:
    """The recipe that a data set was built by, for other sources; None: it was indexed.

    Raises:
        UserError: no data set there that can be appended to, or no sources.
    """
    if not sources:
        raise UserError("--from is missing; name what is appended, or give a recipe")
    if (folder / MANIFEST).is_file():
        if "index" not in load_manifest(folder).recipe:
            raise UserError(
                f"{folder}: nothing can be appended to a split or a choice; name the folder that holds the "
                "splits, or the set that was chosen from"
            )
        return None
    manifest = load_manifest(folder / _splits(folder)[0])
    changed = {"folders": list(sources), "allow_outside": allow_outside}
    recipe = {**manifest.recipe, "source": {**manifest.recipe["source"], **changed}}
    return validate(RecipeConfig, recipe, f"{folder}, the recipe in its {MANIFEST}")


def _splits(folder: Path) -> list[str]:
    if (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: holds no splits of a recipe; leave the recipe out and name tars with --from, or name "
            "the folder above"
        )
    splits = splits_in(folder)
    if not splits:
        raise UserError(f"{folder}: no data set; make it with `mmalign data build`")
    return sorted(splits, key=lambda name: (name != "train", name))


def append_rows(config: RecipeConfig, out: Path, processes: int | None = None) -> list[Appended]:
    """Build the rows of a recipe and append their shards to the splits of the data set in `out`.

    Shards whose bytes the set already holds are left out.

    Args:
        processes: that write shards; by default one per core that this process may use.

    Raises:
        UserError: no built data set there, or a damaged one; captions are withheld; a new sample has the
            identity of another image; the source of a stopped append has changed; or as `build`.
    """
    splits, resolved, processes = _splits(out), out.resolve(), processes or usable_cores()
    facts, respelled = config.for_manifest(), Counter[str]()
    done = []
    folder = resolved.with_name(f"{resolved.name}.appending")
    with work_folder(folder, facts["recipe_sha256"]) as work:
        manifests = {split: _checked(out / split) for split in splits}
        if config.withhold or any(one.recipe.get("withhold") for one in manifests.values()):
            raise UserError(
                f"{out}: `withhold` chooses captions among all rows, so nothing can be appended; build "
                "another data set, and list both in the run file"
            )
        first = _first_numbers(work, manifests, resolved / packing.REFUSED)
        jobs = packing.jobs_of(config, work, respelled, first)
        reports = build_shards(config, work, jobs, processes)
        remove_stale_files(work, reports)
        if respelled := +respelled:
            facts["respelled"] = dict(sorted(respelled.items()))
        new = {
            split: _unknown(manifests[split], of_split) if split in manifests else of_split
            for split, of_split in reports.items()
        }
        for split in (split for split in splits if split in reports):
            _check_unchanged(out / split, manifests[split], reports[split])
            if any(report["shard"] for report in new[split]):
                # Of all reports: a shard that the set has may hold another file of the same image.
                files = split_info(facts, reports[split])[1]
                check_identities(out / split, manifests[split], work / split, files, processes)
        if any(report["shard"] for of_split in new.values() for report in of_split):
            before = work / STATE / packing.REFUSED
            join_refusals(resolved / packing.REFUSED, before, work / packing.REFUSED)
        for split, of_split in new.items():
            count = sum(report["shard"] is not None for report in of_split)
            here = {**facts, "split": split}
            if split not in manifests:
                write_split(work / split, here, of_split)
                replace_folder(work / split, resolved / split)
            elif count:
                _append_split(work / split, resolved / split, here, of_split)
            known = sum(report["shard"] is not None for report in reports[split]) - count
            done.append(Appended(out / split, read_manifest(out / split), count, known))
        work.rename(name_aside(work))  # see `recipe._complete`
    return done


def _append_split(
    work: Path, folder: Path, facts: dict[str, Any], reports: Sequence[Report]
) -> None:
    for name in (name for report in reports for name in report["files"]):
        (work / name).replace(folder / name)
    info, files = split_info(facts, reports)
    if all(report["attributions"] == {} for report in reports):
        info["attributions"] = {}  # there are none, and not too many
    grow(folder, info, files)


def _checked(folder: Path) -> Manifest:
    """The manifest of a data set; a UserError if a file of it is missing or has another size."""
    manifest = load_manifest(folder)
    for name, size in manifest.file_sizes():
        file = folder / name
        if "://" in name or (file.is_file() and (file.stat().st_size == size or name == REFUSED)):
            continue  # a stopped append rewrites the list of refusals; the next one makes it again
        if name != SIZES:
            raise UserError(
                f"{file}: missing or of another size than {MANIFEST} says, so nothing is appended; restore "
                f"it, or {FIX}"
            )
        # A stopped append may have written it for a manifest that is not there.
        write_sizes(folder, (shard.to_json() for shard in manifest.shards))
    return manifest


def _first_numbers(work: Path, manifests: Mapping[str, Manifest], refused: Path) -> dict[str, int]:
    """Of the new shards of each split; the same after a stop, when some splits may have them already.

    Args:
        refused: what the set lists of refusals; kept as it is now, for `join_refusals`.
    """
    path = work / STATE / "first.json"
    if path.is_file():
        known = json.loads(path.read_bytes())
        if all(s in manifests and manifests[s].as_of(sha256) for s, (sha256, _) in known.items()):
            return {split: number for split, (_, number) in known.items()}
    first = {}
    for split, one in manifests.items():
        # Shards of which no row could be used have had a number too.
        names = {*(shard.file for shard in one.shards), *one.refused}
        numbers = (name.removesuffix(".tar") for name in names)
        number = 1 + max((int(text) for text in numbers if text.isdecimal()), default=-1)
        first[split] = (one.sha256, number)
    path.with_name(packing.REFUSED).write_bytes(refused.read_bytes() if refused.is_file() else b"")
    write_json(path, first)
    return {split: number for split, (_, number) in first.items()}


def _unknown(manifest: Manifest, reports: Sequence[Report]) -> list[Report]:
    """The reports of shards that are not in a data set, also not under another name."""
    known = {manifest.files[shard.tar]["sha256"] for shard in manifest.shards}
    return [
        report
        for report in reports
        if (not report["shard"] and report["file"] not in manifest.refused)
        or (report["shard"] and report["files"][report["file"]]["sha256"] not in known)
    ]


def _check_unchanged(folder: Path, manifest: Manifest, reports: Sequence[Report]) -> None:
    """Refuse a shard whose name the set lists with other bytes: it would replace rows that are in use.

    A stopped append gives the numbers of its shards again, so its source must be as it was.
    """
    listed = {shard.file: manifest.files[shard.tar]["sha256"] for shard in manifest.shards}
    for report in reports:
        name = report["file"]
        made = report["files"][name]["sha256"] if report["shard"] else None
        # A shard of which no row could be used is among the refused alone.
        if (name in listed or name in manifest.refused) and made != listed.get(name):
            raise UserError(
                f"{folder / name}: was appended before the command stopped, and the source has changed "
                "since; restore the source and repeat the command, or put the rows that are still missing "
                "into a folder of their own and append that"
            )


def append_tars(out: Path, sources: Sequence[str], processes: int = 1) -> Appended:
    """Index tars by the rules of the data set in `out`, and append those that it does not have.

    Args:
        sources: each a folder, pattern or brace list, of this machine or a URL, as for `index`.

    Raises:
        UserError: no tars there, or some at URLs and others not; the set is damaged; a new sample has the
            identity of another image.
    """
    with exclusive(out / SCANS):
        manifest = _checked(out)
        rules = Rules.from_json(_tree(out)["captions"])
        known = {place_of(shard.path or str(out / shard.file)) for shard in manifest.shards}
        # Each tar once: two sources may name it in different ways.
        tars = {place_of(tar): tar for source in sources for tar in tars_of(source)}
        new = [tar for place, tar in tars.items() if place not in known]
        of_urls = is_remote(manifest.shards[0].tar)
        if other := next((tar for tar in new if is_remote(tar) != of_urls), None):
            where = "at URLs" if of_urls else "on this machine"
            raise UserError(
                f"{other}: the tars of {out} are {where}; index it in a folder of its own"
            )
        if new:
            jobs = jobs_of(new, out, rules, {shard.file for shard in manifest.shards})
            scans, shards = scan_tars(jobs, processes), [job.shard for job in jobs]
            info, files = index_info(manifest.name, rules, shards, scans)
            check_identities(out, manifest, out, files, processes)
            added, before = out / SCANS / "appended.jsonl", out / SCANS / "before.jsonl"
            write_refusals(added, out, shards, scans)
            # After a stop, the list in the set may have those of `added` already.
            if not before.is_file() or sha256_of(before) != manifest.files[REFUSED]["sha256"]:
                shutil.copyfile(out / REFUSED, before)
            join_refusals(out / REFUSED, before, added)
            grow(out, info, {REFUSED: flush(out / REFUSED), **files})
    return Appended(out, read_manifest(out), len(new), len(tars) - len(new))


def grow(folder: Path, info: dict[str, Any], files: dict[str, Facts]) -> None:
    """Append shards to a manifest.

    Args:
        info: what the manifest of the new shards alone would say, their files beside the others.
        files: of the new shards, and those that have changed.
    """
    manifest, tree = load_manifest(folder), _tree(folder)
    before = [shard.to_json() for shard in manifest.shards]
    listed = dict(tree.pop("files"))
    if isinstance(tree["shards"], dict):  # a table, which names the files of the shards
        del listed[tree["shards"]["table"]]
        names = (name for shard in manifest.shards for name in (shard.tar, shard.index))
        listed |= {name: manifest.files[name] for name in names}
    shards = [*before, *info["shards"]]
    if SIZES in listed:
        files = {**files, **write_sizes(folder, shards)}
    for name in ("licenses", "respelled", "filled", "ignored"):
        counts = Counter(tree.get(name, {})) + Counter(info.get(name, {}))
        if counts:
            tree[name] = dict(sorted(counts.items()))
    # A manifest that lists no attributions has none, or too many to list.
    lists_all = "attributions" in tree and "attributions" in info
    attributions = Counter(tree.pop("attributions", {})) + Counter(info.get("attributions", {}))
    if lists_all and 0 < len(attributions) <= MOST_ATTRIBUTIONS:
        tree["attributions"] = dict(sorted(attributions.items()))
    tree["appended"] = [
        *tree.get("appended", ()),
        {"to": manifest.sha256, "shards": len(before), "recipe": info["recipe"]},
    ]
    refused = {**tree.get("refused", {}), **info.get("refused", {})}
    if refused:
        tree["refused"] = refused
    # Another name than that of the table which is in use until the manifest is there.
    table = f"shards-{len(shards)}.safetensors"
    tree |= {"format": FORMAT_VERSION, "shards": shards}
    write_manifest(folder, tree, {**listed, **files}, table)


def _tree(folder: Path) -> dict[str, Any]:
    """The manifest as it is written."""
    tree: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return tree
