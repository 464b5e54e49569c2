"""`mmalign data select`: a data set of chosen samples of another one, whose tars stay where and as they are.

    indexes -> keys, languages -+-> rules, in order -> Choice -> <out>/<shard>.index.jsonl: chosen rows
    side tables ----------------+                               -> <out>/manifest.json, last

Readers go by the index alone, so the result is trained on, verified, counted and chosen from like any other
set. Memory: about 150 bytes per sample with one caption.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmalign.core.commit import check_writable, exclusive
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.data.select.balance import balance
from mmalign.data.select.bounds import keep_bounds, tables_of
from mmalign.data.select.choice import Choice
from mmalign.data.select.repeats import remove_leaks, remove_repeats
from mmalign.data.select.rules import SelectConfig
from mmalign.data.select.source import ChosenFrom, Descriptions
from mmalign.data.select.write import write_chosen
from mmalign.data.shards.manifest import MANIFEST, Manifest, read_manifest

WORK = ".select"


@dataclass(frozen=True)
class Selected:
    """What was chosen."""

    manifest: Manifest
    removed: dict[str, dict[str, int]]  # `samples` and `captions`, by reason
    samples: int  # before
    captions: int


def select(name: str, out: Path, config: SelectConfig, processes: int = 1) -> Selected:
    """Write the index and the manifest of the chosen samples.

    Args:
        name: folder or URL of the set that is chosen from.
        processes: shards that are read at once, where images or texts must be looked at.

    Raises:
        UserError: a table or a column is missing, `out` holds something else, or nothing is left.
    """
    check_writable(out, is_folder=True)
    if (out / MANIFEST).is_file() and not (out / WORK).is_dir():
        raise UserError(f"{out}: holds a data set of another kind; name another folder")
    with exclusive(out / WORK):
        source = ChosenFrom.open(name)
        choice = Choice(source.captions_S)
        descriptions = Descriptions(source, out / WORK, config.tables, processes)
        _apply(config, source, choice, descriptions)
        removed = choice.removed()
        if not choice.sample_S.any():
            most = max(removed["samples"].items(), key=lambda item: item[1])
            raise UserError(
                f"{name}: the rules leave no sample; `{most[0]}` removes {most[1]} of {len(choice.sample_S)}"
            )
        (out / MANIFEST).unlink(missing_ok=True)  # a set that is not finished has none
        write_chosen(source, choice, config, out, removed)
    return Selected(
        read_manifest(out), removed, len(source.captions_S), int(source.captions_S.sum())
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
    if lacking := sorted(wanted - set(map(canonical_language, source.languages))):
        raise UserError(
            f"languages: `{lacking[0]}` is not in the set; it has {', '.join(sorted(source.languages))}"
        )
    is_wanted = np.array([canonical_language(code) in wanted for code in source.languages])
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
