"""The drafts of one shard -> its tar and its index, in any process; a shard that is there is not made again.

job: drafts and bad rows --load--> pairs -> <work>/<split>/00000.{tar, index.jsonl}
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
from mmalign.core.commit import flush, write_json, write_manifest
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.manifest import FORMAT_VERSION, MANIFEST, Shard, index_shard, write_shard

STATE = ".build"
"""Folder of the reports, beside the splits; gone when a build ends."""


@dataclass(frozen=True)
class Job:
    """The rows of one shard, and where it goes."""

    work: Path
    split: str
    number: int
    rows: Sequence[LazyPair | BadRow]

    @property
    def tar(self) -> Path:
        return self.work / self.split / f"{self.number:05d}.tar"

    @property
    def report(self) -> Path:
        return self.work / STATE / f"{self.split}-{self.number:05d}.json"


Report = dict[str, Any]
"""What is known of a finished shard: its `split` and `file`; the `rows` that it was made of, and their
`fingerprint`; `shard` as the manifest has it, None where no row could be used; `licenses`; `files` with size
and sha256; `refused`, an entry a row."""


def pack(job: Job) -> Report:
    """Write one shard and its index unless that was done, then its report.

    Raises:
        UserError: a row that no recipe may leave out cannot be used.
    """
    fingerprint = _fingerprint(job.rows)
    known = _read_report(job, fingerprint)
    if known is not None:
        return known
    refused: list[dict[str, str]] = []
    report = {
        "split": job.split,
        "file": job.tar.name,
        "rows": len(job.rows),
        "fingerprint": fingerprint,
        **write_pairs(job.tar, _usable(job, refused)),
        "refused": refused,
    }
    write_json(job.report, report)
    return report


def write_pairs(tar: Path, pairs: Iterable[Pair]) -> Report:
    """Write one shard and its index; returns their part of a report."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    licenses, languages = Counter[str](), Counter[str]()
    captioned = Counter[bool]()

    def counted() -> Iterator[Pair]:
        for pair in pairs:
            licenses[pair.license] += 1
            languages.update(caption.lang for caption in pair.captions)
            captioned[bool(pair.captions)] += 1
            yield pair

    write_shard(tar, counted())
    samples = licenses.total()
    shard = Shard(
        tar.name,
        samples,
        languages.total(),
        dict(sorted(languages.items())),
        captioned=captioned[True],
    )
    return {
        "shard": shard.to_json() if samples else None,
        "licenses": licenses,
        "files": _index(tar, shard) if samples else {},
    }


def write_split(folder: Path, facts: dict[str, Any], reports: Sequence[Report]) -> None:
    """Write `sizes.json` and, last, the manifest of the shards in a folder.

    Args:
        facts: `name`, `split`, `recipe` and `recipe_sha256`.
    """
    shards = [report["shard"] for report in reports if report["shard"]]
    write_json(folder / "sizes.json", {shard["file"]: shard["samples"] for shard in shards})
    files = {"sizes.json": flush(folder / "sizes.json")}
    licenses = Counter[str]()
    for report in reports:
        files |= report["files"]
        licenses.update(report["licenses"])
    info = {
        **facts,
        "format": FORMAT_VERSION,
        "licenses": dict(sorted(licenses.items())),
        "shards": shards,
    }
    refused = {report["file"]: report["refused"] for report in reports if report.get("refused")}
    if refused:
        info["refused"] = refused
    write_manifest(folder, info, MANIFEST, files)


def _usable(job: Job, refused: list[dict[str, str]]) -> Iterator[Pair]:
    """The pairs of a job; rows that make none are added to `refused`."""
    keys: set[str] = set()
    for row in job.rows:
        try:
            if isinstance(row, BadRow):
                raise row
            pair = row.load()
            if pair.key in keys:  # a reader of tars would take the two for one sample
                raise BadRow("duplicate key", f"{row.where}: the key `{pair.key}` stood before")
        except BadRow as bad:
            place = {"split": job.split, "shard": job.tar.name}
            refused.append({**place, "reason": bad.reason, "what": str(bad)})
            continue
        keys.add(pair.key)
        yield pair


def _index(tar: Path, shard: Shard) -> dict[str, Any]:
    """Write the index of a tar; returns size and sha256 of both, after they are on the disk."""
    index = tar.with_name(shard.index)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in index_shard(tar))
    index.write_text("".join(lines), encoding="utf-8")
    return {path.name: flush(path) for path in (tar, index)}


def _fingerprint(rows: Sequence[LazyPair | BadRow]) -> str:
    """A hash of what a shard is made of."""
    digest = hashlib.sha256(f"format {FORMAT_VERSION}".encode())
    for row in rows:
        text = f"{row.reason} {row}" if isinstance(row, BadRow) else repr(row)
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read_report(job: Job, fingerprint: str) -> Report | None:
    """The report of an earlier build that made this shard of the same rows, if its files are there."""
    try:
        report: Report = json.loads(job.report.read_text(encoding="utf-8"))
        sizes = {name: facts["size"] for name, facts in report["files"].items()}
        found = {name: job.tar.with_name(name).stat().st_size for name in sizes}
        same = report["fingerprint"] == fingerprint and found == sizes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report if same else None
