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
from mmalign.core.errors import UserError
from mmalign.data.resize import Resize
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.manifest import (
    FORMAT_VERSION,
    Facts,
    Shard,
    index_shard,
    write_manifest,
    write_shard,
)

SIZES = "sizes.json"
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
    known = _read_report(job)
    if known is not None and known.get("fingerprint") == digest.hexdigest():
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
    info, files = split_info(facts, reports)
    write_manifest(folder, info, {**write_sizes(folder, info["shards"]), **files})


def write_sizes(folder: Path, shards: Iterable[dict[str, Any]]) -> dict[str, Facts]:
    """Write the samples of each shard to `sizes.json`, for readers of other projects; returns its facts."""
    write_json(folder / SIZES, {shard["file"]: shard["samples"] for shard in shards})
    return {SIZES: flush(folder / SIZES)}


def split_info(
    facts: dict[str, Any], reports: Sequence[Report]
) -> tuple[dict[str, Any], dict[str, Facts]]:
    """What the manifest of a split says, and its files, for `write_manifest`."""
    files: dict[str, Facts] = {}
    licenses, attributions = Counter[str](), Counter[str]()
    for report in reports:
        files |= report["files"]
        licenses.update(report["licenses"])
        attributions.update(report.get("attributions") or {})
    info = {
        **facts,
        "format": FORMAT_VERSION,
        "licenses": dict(sorted(licenses.items())),
        "shards": [report["shard"] for report in reports if report["shard"]],
    }
    all_known = all(report.get("attributions") is not None for report in reports)
    if all_known and 0 < len(attributions) <= MOST_ATTRIBUTIONS:
        info["attributions"] = dict(sorted(attributions.items()))
    refused = {report["file"]: report["refused"] for report in reports if report.get("refused")}
    if refused:
        info["refused"] = refused
    return info, files


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


def finished(work: Path, split: str, number: int) -> Report:
    """The report of a shard that another job has packed; a UserError if it, or a file of it, is missing."""
    report = _read_report(Job(work, split, number, ()))
    if report is None:
        raise UserError(
            f"{work}: shard {number} of `{split}` is missing or incomplete; run the parts again, each makes "
            "what it lacks"
        )
    return report


def _read_report(job: Job) -> Report | None:
    """The report of a shard that an earlier build has finished, if its files are there."""
    try:
        report: Report = json.loads(job.report.read_text(encoding="utf-8"))
        # Sizes are enough: the report was written after the files were synced.
        sizes = {name: facts["size"] for name, facts in report["files"].items()}
        found = {name: job.tar.with_name(name).stat().st_size for name in sizes}
        return report if found == sizes else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
