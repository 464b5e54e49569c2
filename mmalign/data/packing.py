"""The rows of a recipe -> its shards in a work folder, in any number of processes; bad rows are counted.

    source --read_rows--> rows, withheld captions apart -> one job per shard --pack--> reports, in order
                                                        -> refusals counted, <work>/refused.jsonl

The position of each row is known before the work is distributed, so the same input gives the same bytes for
any number of processes, and any jobs of one can be done elsewhere.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmalign.core.batch import Pair
from mmalign.core.commit import write_atomic
from mmalign.core.console import track
from mmalign.core.errors import UserError
from mmalign.core.workers import map_in_processes
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.pack import STATE, Job, Report, pack
from mmalign.data.shards.scan import MAX_REFUSALS
from mmalign.data.shards.withhold import choose_withheld, withheld_pairs, without_withheld
from mmalign.data.sources.kinds import read_rows
from mmalign.data.sources.task_tables import TASKS, WORDS

REFUSED = "refused.jsonl"


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


def build_shards(
    config: RecipeConfig, work: Path, jobs: Iterable[Job], processes: int
) -> dict[str, list[Report]]:
    """Make the shards of all jobs that are not there yet; returns the reports of each split."""
    # Imported once for all processes: where they are forked, they start as copies of this one.
    import webdataset  # noqa: F401

    with closing(map_in_processes(pack, jobs, processes)) as done:
        return count_reports(config, work, track(done, "shards", None))


def count_reports(
    config: RecipeConfig, work: Path, done: Iterable[Report]
) -> dict[str, list[Report]]:
    """The reports of each split, their refusals counted and listed in `<work>/refused.jsonl`.

    Raises:
        UserError: too many rows cannot be used, or all.
    """
    reports: dict[str, list[Report]] = {}
    refusals = _Refusals(config, work / REFUSED)
    for report in done:
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


def jobs_of(
    config: RecipeConfig, work: Path, respelled: Counter[str], first: Mapping[str, int] = {}
) -> Iterator[Job]:
    """The jobs of all shards, in the order of their rows.

    Args:
        respelled: counts the captions of each language code that was written in another way.
        first: number of the first shard of a split; 0 if it is not named.
    """
    # A bad row, whose split is unknown, stands with the row before it.
    pending: dict[str, list[LazyPair | BadRow]] = defaultdict(list)
    numbers = Counter(first)
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


def remove_stale_files(work: Path, reports: dict[str, list[Report]]) -> None:
    """Delete what an interrupted build has left of a source that has changed since."""
    ours = {work / split / name for split in reports for r in reports[split] for name in r["files"]}
    for path in work.iterdir():
        if path.name in reports:
            for stale in set(path.iterdir()) - ours:
                stale.unlink()
        elif path.is_dir() and path.name not in (TASKS, WORDS, STATE):
            shutil.rmtree(path)
