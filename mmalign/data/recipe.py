"""The recipe runner: one YAML file -> shards of every split, and tasks and word lists where there are any.

    recipe -> source -> lazy pairs, in order --one job per shard--> processes: images read, checked, packed
                     -> <out>/<split>/{00000.tar, ..., manifest.json}, <out>/refused.jsonl
                     -> <out>/tasks/<task>/<split>.<lang>.tsv, <out>/words/<list>.tsv

Rows that cannot be used make their shard smaller; they are counted by reason in the manifest and listed in
`refused.jsonl`. Everything is written to `<out>.building`, which becomes `<out>` when it is complete; a build
that was killed continues there.
"""

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pydantic

from mmalign.core.batch import Pair
from mmalign.core.commit import exclusive, replace_folder, write_atomic
from mmalign.core.config import Section, Seed
from mmalign.core.console import say, track
from mmalign.core.errors import UserError
from mmalign.core.languages import respelled_in_words
from mmalign.core.workers import map_in_processes, usable_cores
from mmalign.data.names import fault_of
from mmalign.data.resize import Resize
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.manifest import MANIFEST, Manifest, read_manifest
from mmalign.data.shards.pack import STATE, Job, Report, pack, write_split
from mmalign.data.shards.scan import MAX_REFUSALS
from mmalign.data.shards.withhold import Withhold, choose_withheld, withheld_pairs, without_withheld
from mmalign.data.sources.kinds import SourceConfig, read_rows
from mmalign.data.sources.task_tables import TASKS, WORDS, write_tables

REFUSED = "refused.jsonl"


class RecipeConfig(Section):
    name: str
    """Name of the data set in manifests and metrics."""
    seed: Seed = 0
    samples_per_shard: int = pydantic.Field(default=5000, ge=1)
    max_bad_fraction: float = pydantic.Field(default=0.05, ge=0, le=1)
    """Stop when a larger fraction of the rows cannot be used. Published test sets always allow none."""
    source: SourceConfig
    resize: Resize | None = None
    """Make larger images smaller; none: every image as it is."""
    withhold: Withhold | None = None
    """Withhold captions of training images and write them as the split `withheld`."""


def build(
    config: RecipeConfig,
    out: Path,
    force: bool = False,
    processes: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> list[Manifest]:
    """Write every split below `out` and return the manifests; a recipe that was already run is not run again.

    Args:
        force: replace a data set that is already there.
        processes: that write shards; by default one per core that this process may use.
        part: (i, n): write the shards i, i + n, ... only, and no manifest. When all parts are done, the same
            call without it finds their shards and completes the data set.

    Raises:
        UserError: the source is broken or empty, too many rows cannot be used, or `out` holds something else.
    """
    # A limit on bad rows changes no byte, so recipes that differ in it alone are equal.
    recipe = config.model_dump(mode="json", exclude={"max_bad_fraction"})
    if config.resize is None:  # so that what older versions built still counts as built
        del recipe["resize"]
    for name, value in recipe.items():
        if fault := fault_of(json.dumps(value, ensure_ascii=False)):  # a manifest holds the recipe
            raise UserError(f"recipe: `{name}` holds {fault[1]}; write it in UTF-8")
    recipe_sha256 = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    splits = _splits_in(out)
    if splits and not force:
        manifests = [read_manifest(out / split) for split in splits]
        if all(manifest.recipe_sha256 == recipe_sha256 for manifest in manifests):
            return manifests
        raise UserError(
            f"{out}: holds the data set of another recipe; name another folder with --out, or give --force"
        )
    processes = processes or usable_cores()
    respelled = Counter[str]()  # language codes
    if part[1] > 1:
        with _part_of_work_folder(out.resolve(), recipe_sha256, part[0]) as work:
            jobs = islice(_jobs(config, work, respelled), part[0], None, part[1])
            for _ in track(map_in_processes(pack, jobs, processes), "shards", None):
                pass
        return []
    with _work_folder(out.resolve(), recipe_sha256) as work:
        reports = _build_shards(config, work, processes, respelled)
        write_tables(config.source, config.seed, work)
        facts = {"name": config.name, "recipe": recipe, "recipe_sha256": recipe_sha256}
        if respelled := +respelled:
            facts["respelled"] = dict(sorted(respelled.items()))
            say(respelled_in_words(respelled))
        _remove_stale_files(work, reports)
        for split, of_split in reports.items():
            write_split(work / split, {**facts, "split": split}, of_split)
        shutil.rmtree(work / STATE)
        replace_folder(work, out.resolve())
    return [read_manifest(out / split) for split in reports]


def _splits_in(out: Path) -> list[str]:
    """Names of the splits of a data set in `out`; none if it does not exist or is empty."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    entries = sorted(path.name for path in out.iterdir()) if out.exists() else []
    splits = [name for name in entries if (out / name / MANIFEST).is_file()]
    ours = {*splits, TASKS, WORDS, REFUSED} if splits else set()
    foreign = [name for name in entries if name not in ours]
    # A build replaces the folder, and must not delete files of others.
    if foreign:
        raise UserError(
            f"{out}: holds `{foreign[0]}`, which is no data set; name an empty folder with --out"
        )
    return splits


@contextmanager
def _work_folder(out: Path, recipe_sha256: str) -> Iterator[Path]:
    """`<out>.building`, with the shards that an earlier build of the same recipe has finished there."""
    work = out.with_name(f"{out.name}.building")
    state = work / STATE
    if work.exists() and not state.is_dir():
        raise UserError(
            f"{work}: is not of a build; move it away, or name another folder with --out"
        )
    with ExitStack() as locks:
        locks.enter_context(exclusive(state))
        for other in sorted(state.glob("part-*")):
            locks.enter_context(exclusive(other))  # a UserError while a part is written
        known = state / "recipe"
        if not known.is_file() or known.read_text() != recipe_sha256:
            for path in (path for path in work.iterdir() if path != state):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for report in state.glob("*.json"):
                report.unlink()
            write_atomic(known, recipe_sha256)
        try:
            yield work
        finally:
            if state.is_dir() and not any(state.glob("*.json")):
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _part_of_work_folder(out: Path, recipe_sha256: str, number: int) -> Iterator[Path]:
    """`<out>.building`, for one of several jobs that write its shards at the same time."""
    work = out.with_name(f"{out.name}.building")
    known = work / STATE / "recipe"
    # Nothing is deleted here, whatever another job is doing.
    if work.exists() and (
        not (work / STATE).is_dir() or (known.is_file() and known.read_text() != recipe_sha256)
    ):
        raise UserError(
            f"{work}: is of another recipe or no build; delete it and start all parts again"
        )
    with exclusive(work / STATE / f"part-{number}"):
        if not known.is_file():
            write_atomic(known, recipe_sha256)
        yield work


@dataclass
class _Refusals:
    """Rows that cannot be used, counted by reason; the first of them with what is wrong."""

    config: RecipeConfig
    path: Path  # of the file that lists them
    rows: int = 0  # all of them, good or bad
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[dict[str, str]] = field(default_factory=list)

    def add(self, report: Report) -> dict[str, int]:
        """Count those of a shard; returns their counts by reason."""
        counts = Counter[str](line["reason"] for line in report["refused"])
        self.rows += report["rows"]
        self.counts.update(counts)
        self.lines += report["refused"][: MAX_REFUSALS - len(self.lines)]
        return dict(sorted(counts.items()))

    def write(self) -> None:
        """List them in a file; there is no file if there are none."""
        self.path.unlink(missing_ok=True)
        more = self.counts.total() - len(self.lines)
        lines = [*self.lines, {"more": more}] if more else self.lines
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomic(self.path, text)

    def check_limit(self) -> None:
        """Stop the build if the fraction of bad rows is over the recipe's limit."""
        most, total = self.config.max_bad_fraction, self.counts.total()
        if total <= most * self.rows:
            return
        self.write()
        raise UserError(
            f"recipe `{self.config.name}`: {total} of {self.rows} rows cannot be used "
            f"({self.reasons()}), over `max_bad_fraction` {most}; the first is "
            f"{self.lines[0]['what']}; {self.path} lists them"
        )

    def reasons(self) -> str:
        return ", ".join(f"{reason}: {count}" for reason, count in self.counts.most_common())


def _build_shards(
    config: RecipeConfig, work: Path, processes: int, respelled: Counter[str]
) -> dict[str, list[Report]]:
    """Write the shards of every split below `work`; returns their reports, refusals counted."""
    reports: dict[str, list[Report]] = {}
    refusals = _Refusals(config, work / REFUSED)
    jobs = _jobs(config, work, respelled)
    # Imported once for all processes: where they are forked, they start as copies of this one.
    import webdataset  # noqa: F401

    with closing(map_in_processes(pack, jobs, processes)) as done:
        for report in track(done, "shards", None):
            # Only the counts of refused rows are kept: the lines of all shards could fill the memory.
            counted = {**report, "refused": refusals.add(report)}
            reports.setdefault(report["split"], []).append(counted)
            # The fraction of bad rows among fewer says little.
            if refusals.rows >= 1_000:
                refusals.check_limit()
    refusals.check_limit()
    refusals.write()
    usable = {split: some for split, some in reports.items() if any(r["shard"] for r in some)}
    if not usable:
        raise UserError(
            f"recipe `{config.name}`: none of {refusals.rows} rows of the source can be used "
            f"({refusals.reasons() or 'there are none'}), the data set would be empty"
        )
    return usable


def _jobs(config: RecipeConfig, work: Path, respelled: Counter[str]) -> Iterator[Job]:
    # The position of each row is known before the work is distributed, so the same input gives the same
    # bytes for any number of processes. A bad row, whose split is unknown, stands with the row before it.
    pending: dict[str, list[LazyPair | BadRow]] = defaultdict(list)
    numbers: Counter[str] = Counter()
    split = ""

    def job(split: str) -> Job:
        name = split or "train"
        numbers[name] += 1
        return Job(work, name, numbers[name] - 1, tuple(pending.pop(split)), config.resize)

    for row in _rows_of_all_splits(config, respelled):
        if isinstance(row, LazyPair):
            split = row.pair.split
            if "" in pending:  # bad rows before the first good one
                pending[split] = pending.pop("")
        pending[split].append(row)
        if len(pending[split]) == config.samples_per_shard:
            yield job(split)
    for split in list(pending):
        yield job(split)


def _rows_of_all_splits(
    config: RecipeConfig, respelled: Counter[str]
) -> Iterator[LazyPair | BadRow]:
    all_rows = read_rows(config.source, config.seed, respelled)
    if config.withhold is None:
        yield from all_rows
        return

    def training_pairs() -> Iterator[Pair]:
        rows = read_rows(config.source, config.seed, Counter())
        return (r.pair for r in rows if isinstance(r, LazyPair) and r.pair.split == "train")

    withheld = choose_withheld(training_pairs(), config.withhold, config.seed)
    first_of: dict[str, LazyPair] = {}  # of each image
    for row in all_rows:
        if isinstance(row, LazyPair) and row.pair.split == "train":
            row = replace(row, pair=without_withheld(row.pair, withheld))
            first_of.setdefault(row.pair.picture, row)
        yield row
    for pair in withheld_pairs(training_pairs(), withheld):
        yield replace(first_of[pair.picture], pair=pair)


def _remove_stale_files(work: Path, reports: dict[str, list[Report]]) -> None:
    """Delete what an interrupted build has left of a source that has changed since."""
    ours = {work / split / name for split in reports for r in reports[split] for name in r["files"]}
    for path in work.iterdir():
        if path.name in reports:
            for stale in set(path.iterdir()) - ours:
                stale.unlink()
        elif path.is_dir() and path.name not in (TASKS, WORDS, STATE):
            shutil.rmtree(path)
