"""The ledger: exact counts of what the stream has given so far, and of what it could not use.

    batches of a rank -> count -> flush: sums over ranks -> metrics, the state of a checkpoint
                                                         -> unusable.jsonl, each sample once
                                                         -> judge: too many unusable samples are a UserError

The counts belong to a position in the stream, as the batches do: a run that resumes there continues to count
as if it had never stopped.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.batch import Batch, Unusable
from mmalign.core.commit import write_atomic
from mmalign.core.errors import UserError
from mmalign.core.record import read_records

UNUSABLE = "unusable.jsonl"
MOST_NAMED = 10_000  # samples in unusable.jsonl; more are only counted
JUDGED_FROM = 1000  # positions, or an epoch if that is shorter: a share of fewer says little

_Where = tuple[str, str, str]


class Ledger:
    """Counts of a run; every rank calls every method at the same step.

    Args:
        folder: of the run; it exists.
        limit: share of the positions, `data.max_bad_fraction`.
        epoch: positions of an epoch.
        position: where the stream continues.
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
        # by data set, shard and reason
        self._bad = Counter[_Where](
            {(data, shard, reason): n for data, shard, reason, n in state.get("unusable", [])}
        )
        self._named: set[_Where] = set()  # data set, shard and key
        self._new_captions = Counter[str]()
        self._new_unusable: list[Unusable] = []
        if distributed.is_main() and (entries := read_records(self._path)):
            # Samples after the position where the stream continues will be met again.
            kept = [entry for entry in entries if entry["position"] < position]
            self._named = {(entry["data"], entry["shard"], entry["key"]) for entry in kept}
            write_atomic(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def count(self, batch: Batch) -> None:
        """Add this rank's part of a batch."""
        self._position = batch.state.position
        self._new_captions.update(batch.language_N)
        self._new_unusable += batch.unusable

    def flush(self) -> None:
        """Add up what all ranks counted since the last call."""
        parts = distributed.gather_objects((self._new_captions, self._new_unusable))
        self._new_captions, self._new_unusable = Counter(), []
        found = [one for _, unusable in parts for one in unusable]
        for captions, _ in parts:
            self._captions.update(captions)
        # A position counts once, however many substitutes it took.
        self._bad.update((one.data, one.shard, one.reason) for one in found if one.attempt == 0)
        if distributed.is_main():
            self._write_down(found)

    def judge(self) -> None:
        """Raise a UserError if more than `limit` of the positions had a sample that could not be used."""
        if self._position < self._judged_from or self.share <= self._limit:
            return
        (data, shard, reason), most = self._bad.most_common(1)[0]
        raise UserError(
            f"data.max_bad_fraction: {self.share:.2%} of {self._position:,} samples could not be used, over "
            f"{self._limit:.2%}; {most} of these {self._bad.total()} are in {data}/{shard} ({reason}), "
            f"{self._path} names them: fix the shards (`mmalign data verify`) or raise the limit"
        )

    @property
    def share(self) -> float:
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
        return {
            "captions": dict(sorted(self._captions.items())),
            "unusable": [[*where, count] for where, count in sorted(self._bad.items())],
        }

    def _write_down(self, unusable: list[Unusable]) -> None:
        lines = []
        for one in sorted(unusable, key=lambda one: (one.position, one.attempt)):
            name = (one.data, one.shard, one.key)
            if name not in self._named and len(self._named) < MOST_NAMED:
                self._named.add(name)
                entry = asdict(one)
                del entry["attempt"]
                lines.append(json.dumps(entry) + "\n")
        if lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
