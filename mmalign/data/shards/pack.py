"""The lazy pairs of one shard -> its tar and its index, in any process; a finished shard is not made again.

job: lazy pairs and bad rows --load--> pairs -> <work>/<split>/00000.{tar, index.jsonl}
                                    -> bad rows -+-> report: <work>/.build/<split>-00000.json, written last
the reports of a split -> sizes.json, manifest.json
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.core.batch import Pair
from mmalign.core.commit import flush, write_json
from mmalign.data.resize import Resize
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.manifest import (
    FORMAT_VERSION,
    Shard,
    index_shard,
    write_manifest,
    write_shard,
)

STATE = ".build"
"""Folder of the reports, beside the splits; deleted when a build ends."""
# In a manifest. One per image would make it as long as the data; they are in the samples anyway.
MOST_ATTRIBUTIONS = 100


@dataclass(frozen=True)
class Job:
    """The rows of one shard, and where it is written."""

    work: Path
    split: str
    number: int
    rows: Sequence[LazyPair | BadRow]
    size: Resize | None = None  # of the images

    @property
    def tar(self) -> Path:
        return self.work / self.split / f"{self.number:05d}.tar"

    @property
    def report(self) -> Path:
        return self.work / STATE / f"{self.split}-{self.number:05d}.json"


Report = dict[str, Any]
"""What is known of a finished shard: its `split` and `file`; the number of `rows` that it was made of, and
their `fingerprint`; `shard` as the manifest has it, None if no row could be used; `licenses` and
`attributions` with counts (None: too many); `files` with size and sha256; `refused`, one entry per row."""


def pack(job: Job) -> Report:
    """Write one shard and its index unless that was done, then its report."""
    digest = hashlib.sha256(f"format {FORMAT_VERSION}".encode())
    for row in job.rows:
        text = f"{row.reason} {row}" if isinstance(row, BadRow) else repr(row)
        # A caption may contain half of a surrogate pair; it is refused later.
        digest.update(text.encode("utf-8", "surrogatepass"))
    known = _read_report(job, digest.hexdigest())
    if known is not None:
        return known
    refused: list[dict[str, str]] = []
    report = {
        "split": job.split,
        "file": job.tar.name,
        "rows": len(job.rows),
        "fingerprint": digest.hexdigest(),
        **write_pairs(job.tar, _usable(job, refused)),
        "refused": refused,
    }
    write_json(job.report, report)
    return report


def write_pairs(tar: Path, pairs: Iterable[Pair]) -> Report:
    """Write one shard and its index; returns their part of a report."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    counted: Report = dict(write_shard(tar, pairs))
    if len(counted["attributions"]) > MOST_ATTRIBUTIONS:
        counted["attributions"] = None
    rows = index_shard(tar)
    if not rows:
        return {"shard": None, **counted, "files": {}}
    languages = Counter(lang for row in rows for lang in row["langs"])
    by_language = dict(sorted(languages.items()))
    captioned = sum(1 for row in rows if row["langs"])
    shard = Shard(tar.name, len(rows), languages.total(), by_language, captioned=captioned)
    index = tar.with_name(shard.index)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    index.write_text("".join(lines), encoding="utf-8")
    files = {path.name: flush(path) for path in (tar, index)}
    return {"shard": shard.to_json(), **counted, "files": files}


def write_split(folder: Path, facts: dict[str, Any], reports: Sequence[Report]) -> None:
    """Write `sizes.json` and, last, the manifest of the shards in a folder, which also holds `facts`."""
    shards = [report["shard"] for report in reports if report["shard"]]
    write_json(folder / "sizes.json", {shard["file"]: shard["samples"] for shard in shards})
    files = {"sizes.json": flush(folder / "sizes.json")}
    licenses, attributions = Counter[str](), Counter[str]()
    for report in reports:
        files |= report["files"]
        licenses.update(report["licenses"])
        attributions.update(report.get("attributions") or {})
    info = {
        **facts,
        "format": FORMAT_VERSION,
        "licenses": dict(sorted(licenses.items())),
        "shards": shards,
    }
    all_known = all(report.get("attributions") is not None for report in reports)
    if all_known and 0 < len(attributions) <= MOST_ATTRIBUTIONS:
        info["attributions"] = dict(sorted(attributions.items()))
    refused = {report["file"]: report["refused"] for report in reports if report.get("refused")}
    if refused:
        info["refused"] = refused
    write_manifest(folder, info, files)


def _usable(job: Job, refused: list[dict[str, str]]) -> Iterator[Pair]:
    """The pairs of a job; rows that cannot be used are added to `refused`."""
    keys: set[str] = set()  # of this shard alone; keys of different shards may be equal
    for row in job.rows:
        try:
            if isinstance(row, BadRow):
                raise row
            pair = row.load(job.size)
            if pair.key in keys:  # a reader of tars would take the two for one sample
                raise BadRow("duplicate key", f"{row.where}: the key `{pair.key}` was used before")
        except BadRow as bad:
            where = {"split": job.split, "shard": job.tar.name}
            refused.append({**where, "reason": bad.reason, "what": str(bad)})
            continue
        keys.add(pair.key)
        yield pair


def _read_report(job: Job, fingerprint: str) -> Report | None:
    """The report of an earlier build that made this shard of the same rows, if its files are there."""
    try:
        report: Report = json.loads(job.report.read_text(encoding="utf-8"))
        # Sizes are enough: the report was written after the files were synced.
        sizes = {name: facts["size"] for name, facts in report["files"].items()}
        found = {name: job.tar.with_name(name).stat().st_size for name in sizes}
        same = report["fingerprint"] == fingerprint and found == sizes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report if same else None
