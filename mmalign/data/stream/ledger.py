"""The ledger: what the stream has given so far, and what it could not use, counted exactly.

    batches of a rank -> count -> settle: sums over ranks -> metrics, the state of a checkpoint
                                                          -> unusable.jsonl, each sample once
                                                          -> judge: too much of it is a UserError

What a worker finds travels with its batch, so nothing is lost with a worker. The counts belong to a position
in the stream, as the batches do: a run that resumes there goes on counting as if it had never stopped.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.batch import Batch, Unusable
from mmalign.core.commit import write_atomic
from mmalign.core.errors import UserError
from mmalign.core.record import read_records

UNUSABLE = "unusable.jsonl"
MOST_NAMED = 10_000  # samples in unusable.jsonl; more are counted only
JUDGED_FROM = 1000  # positions, or an epoch where that is shorter

_Where = tuple[str, str, str]  # data set, shard, reason


class Ledger:
    """Counts of a run; every rank calls every method at the same step.

    Args:
        folder: of the run; it exists.
        limit: share of the positions, `data.max_bad_fraction`.
        epoch: positions of an epoch.
        position: where the stream goes on.
        state: `to_json` of a checkpoint there; empty at a run's start.
    """

    def __init__(
        self, folder: Path, limit: float, epoch: int, position: int, state: Mapping[str, Any]
    ) -> None:
        self._path = folder / UNUSABLE
        self._limit = limit
        self._judged_from = min(JUDGED_FROM, epoch)
        self._position = position
        self._captions = Counter[str](state.get("captions", {}))
        self._bad = Counter[_Where](
            {(data, shard, reason): n for data, shard, reason, n in state.get("unusable", [])}
        )
        self._named: set[_Where] = set()
        self._new_captions = Counter[str]()
        self._new_unusable: list[Unusable] = []
        if distributed.is_main():
            self._forget_later_ones()

    def count(self, batch: Batch) -> None:
        """Note this rank's part of a batch."""
        self._position = batch.state.position
        self._new_captions.update(batch.language_N)
        self._new_unusable += batch.unusable

    def flush(self) -> None:
        """Put together what all ranks noted."""
        parts = distributed.gather_objects((self._new_captions, self._new_unusable))
        self._new_captions, self._new_unusable = Counter(), []
        for captions, unusable in parts:
            self._captions.update(captions)
            # A position counts once, however many substitutes it took.
            planned = (one for one in unusable if one.attempt == 0)
            self._bad.update((one.data, one.shard, one.reason) for one in planned)
        if distributed.is_main():
            self._write_down([one for _, unusable in parts for one in unusable])

    def judge(self) -> None:
        """Look at what was settled.

        Raises:
            UserError: more than `limit` of the positions had a sample that could not be used.
        """
        if self._position >= self._judged_from and self.share > self._limit:
            raise UserError(self._verdict())

    @property
    def share(self) -> float:
        """Of the positions so far, how many had a sample that could not be used."""
        return self._bad.total() / max(self._position, 1)

    def metrics(self) -> dict[str, float]:
        """`data/unusable` and, by reason, its parts; captions drawn so far by language."""
        reasons = Counter[str]()
        for (_, _, reason), count in self._bad.items():
            reasons[reason] += count
        parts = {f"data/unusable/{r}": n / self._position for r, n in sorted(reasons.items())}
        drawn = {f"data/captions/{lang}": float(n) for lang, n in sorted(self._captions.items())}
        return {"data/unusable": self.share, **parts, **drawn}

    def to_json(self) -> dict[str, Any]:
        """All that a checkpoint keeps of it."""
        return {
            "captions": dict(sorted(self._captions.items())),
            "unusable": [[*where, count] for where, count in sorted(self._bad.items())],
        }

    def _verdict(self) -> str:
        (data, shard, reason), most = self._bad.most_common(1)[0]
        return (
            f"data.max_bad_fraction: {self.share:.2%} of {self._position:,} samples could not be used, over "
            f"{self._limit:.2%}; {most} of these {self._bad.total()} are in {data}/{shard} ({reason}), "
            f"{self._path} names them: mend the shards (`mmalign data verify`) or raise the limit"
        )

    def _write_down(self, unusable: Sequence[Unusable]) -> None:
        lines = []
        for one in sorted(unusable, key=lambda one: (one.position, one.attempt)):
            name = (one.data, one.shard, one.key)
            if name in self._named or len(self._named) >= MOST_NAMED:
                continue
            self._named.add(name)
            entry = {
                "position": one.position,
                "data": one.data,
                "shard": one.shard,
                "key": one.key,
                "reason": one.reason,
            }
            lines.append(json.dumps(entry) + "\n")
        if lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def _forget_later_ones(self) -> None:
        """Drop what stands behind the place where the stream goes on: it will be met again."""
        entries = read_records(self._path)
        kept = [entry for entry in entries if entry["position"] < self._position]
        self._named = {(entry["data"], entry["shard"], entry["key"]) for entry in kept}
        if entries:
            write_atomic(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))
