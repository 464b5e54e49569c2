"""`mmalign data index`: tars that others made -> the index and the manifest that our own shards have.

    tars --a process a shard--> scan.py -> <shard>.index.jsonl, refusals
         --> manifest.json (last), refused.jsonl

The tars are only read. What was found in each is kept in `.index/`, so that a second run scans only shards
that are new or changed. The same tars give the same index and manifest, whatever the number of processes.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.core.commit import flush, sha256_of, write_json, write_manifest
from mmalign.core.console import track
from mmalign.core.errors import UserError
from mmalign.core.workers import map_in_processes
from mmalign.data.shards.manifest import FORMAT_VERSION, MANIFEST, Manifest, Shard, read_manifest
from mmalign.data.shards.scan import MAX_REFUSALS, Rules, Scan, identify

REFUSED = "refused.jsonl"
_SCANS = ".index"


def index(
    source: str, rules: Rules, out: Path | None = None, processes: int = 1
) -> tuple[Manifest, Path]:
    """Index tars and write their manifest; returns it and its folder.

    Args:
        source: a folder of tars, a pattern such as `shards/*.tar` or a brace list such as
            `shards/{00000..00099}.tar`.
        out: where index and manifest go; by default the folder of the tars.

    Raises:
        UserError: no tars, tars that cannot be read, or no usable sample in them.
    """
    tars = find_tars(source)
    out = out or tars[0].parent
    if rules.language == "identify":
        identify("")  # says at once whether the library is there
    _check_out(out)
    sizes = _sizes(tars)
    jobs = [
        _Job(tar, name, out, rules, sizes.get(tar))
        for tar, name in zip(tars, _names(tars), strict=True)
    ]
    scans = list(track(map_in_processes(_index_one, jobs, processes), "shards", len(jobs)))
    _write_refusals(out, jobs, scans)
    shards = [_shard(job, scan) for job, scan in zip(jobs, scans, strict=True)]
    if not any(shard.samples for shard in shards):
        reasons = Counter[str]()
        for scan in scans:
            reasons.update(scan["refused"])
        raise UserError(
            f"{source}: no sample of {len(tars)} shards can be used ({_most(reasons)}); {out / REFUSED} "
            "names them"
        )
    _write_manifest(out, rules, shards, scans)
    return read_manifest(out), out


def find_tars(source: str) -> list[Path]:
    """The tars that a folder, a pattern or a brace list names, sorted."""
    from braceexpand import braceexpand

    paths: set[Path] = set()
    for part in braceexpand(source):
        path = Path(part)
        if path.is_dir():
            paths |= set(path.glob("*.tar"))
        elif path.is_file():
            paths.add(path)
        else:
            paths |= set(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    if not paths:
        raise UserError(f"{source}: no tars there; name a folder of .tar files or a pattern")
    for path in paths:
        if path.suffix != ".tar" or not path.is_file():
            raise UserError(f"{path}: is no .tar file; only plain tars are read, not packed ones")
    return sorted(paths)


def _check_out(out: Path) -> None:
    """Whether the folder can be written, and holds no manifest of another maker that would be lost."""
    if (out / MANIFEST).is_file() and not (out / REFUSED).is_file():
        raise UserError(f"{out}: holds a data set of another kind; name another folder with --out")
    try:
        (out / _SCANS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); name another folder with --out"
        ) from None


def _names(tars: Sequence[Path]) -> list[str]:
    """A name for each tar in the manifest: its own, or where two are alike, with its folders."""
    names = [path.name for path in tars]
    if len(set(names)) == len(names):
        return names
    above = Path(os.path.commonpath([path.resolve().parent for path in tars]))
    return ["-".join(path.resolve().relative_to(above).parts) for path in tars]


def _sizes(tars: Sequence[Path]) -> dict[Path, int]:
    """How many samples each tar had when it was made, where a file beside it says so.

    open_clip's `sizes.json` is {tar: samples}; img2dataset's `00000_stats.json` counts `successes`.
    """
    lists = {folder: _json_object(folder / "sizes.json") for folder in {t.parent for t in tars}}
    found = {}
    for tar in tars:
        count = lists[tar.parent].get(tar.name)
        if count is None:
            count = _json_object(tar.with_name(f"{tar.stem}_stats.json")).get("successes")
        if isinstance(count, int):
            found[tar] = count
    return found


def _json_object(path: Path) -> dict[str, Any]:
    """What a small JSON file holds, nothing where there is no such file or object."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


@dataclass(frozen=True)
class _Job:
    tar: Path
    name: str
    out: Path
    rules: Rules
    expected: int | None

    @property
    def shard(self) -> Shard:
        """As the manifest names it; its counts come from the scan."""
        beside = self.tar.parent.resolve() == self.out.resolve()
        return Shard(self.name, 0, 0, {}, None if beside else str(self.tar.resolve()))

    @property
    def report(self) -> Path:
        return self.out / _SCANS / f"{self.name}.json"

    @property
    def refusals(self) -> Path:
        return self.out / _SCANS / f"{self.name}.{REFUSED}"


def _index_one(job: _Job) -> dict[str, Any]:
    """Scan one shard unless that was done; returns what is known of it, as its report in `.index/` has it."""
    rows = job.out / job.shard.index
    temporary = rows.with_name(f".{rows.name}.tmp")
    try:
        stat = job.tar.stat()
        source = {
            "format": FORMAT_VERSION,
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "rules": asdict(job.rules),
            "expected": job.expected,
        }
        known = _known(job.report, source, rows)
        if known is not None:
            return known
        with (
            job.tar.open("rb") as file,
            temporary.open("w", encoding="utf-8") as lines,
            job.refusals.open("w", encoding="utf-8") as refusals,
        ):
            scan = Scan(job.name, file, job.rules, lines, refusals, job.expected)
            scan.run()
        temporary.replace(rows)
        files = {"tar": {"size": stat.st_size, "sha256": sha256_of(job.tar)}, "rows": flush(rows)}
        report = {"source": source, "files": files, **scan.counts()}
        write_json(job.report, report)
    except OSError as error:
        raise UserError(f"{error.filename or job.tar}: {error.strerror}") from None
    return report


def _known(report: Path, source: dict[str, Any], rows: Path) -> dict[str, Any] | None:
    """The report of an earlier scan of the same tar with the same rules, if its index is whole."""
    try:
        tree: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        whole = tree["source"] == source and tree["files"]["rows"]["sha256"] == sha256_of(rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tree if whole else None


def _shard(job: _Job, scan: dict[str, Any]) -> Shard:
    languages = scan["languages"]
    samples = scan["samples"]  # each has a caption, others are refused
    return Shard(
        job.name, samples, sum(languages.values()), languages, job.shard.path, captioned=samples
    )


def _write_refusals(out: Path, jobs: Sequence[_Job], scans: Sequence[dict[str, Any]]) -> None:
    """`refused.jsonl`: the refusals of all shards in their order, bounded; the rest is a count."""
    temporary = out / f".{REFUSED}.tmp"
    lines = 0
    with temporary.open("w", encoding="utf-8") as file:
        for job in jobs:
            with job.refusals.open(encoding="utf-8", newline="\n") as refusals:
                for line in islice(refusals, MAX_REFUSALS - lines):
                    file.write(line)
                    lines += 1
        total = sum(sum(scan["refused"].values()) for scan in scans)
        if total > lines:
            file.write(json.dumps({"more": total - lines}) + "\n")
    temporary.replace(out / REFUSED)


def _write_manifest(
    out: Path, rules: Rules, shards: Sequence[Shard], scans: Sequence[dict[str, Any]]
) -> None:
    files = {REFUSED: flush(out / REFUSED)}
    ignored = Counter[str]()
    for shard, scan in zip(shards, scans, strict=True):
        files |= {shard.tar: scan["files"]["tar"], shard.index: scan["files"]["rows"]}
        ignored.update(scan["ignored"])
    recipe = {"index": rules.to_json()}
    name = out.resolve().name
    info = {
        "name": name,
        "split": "train",
        "recipe": recipe,
        "recipe_sha256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "format": FORMAT_VERSION,
        "captions": rules.to_json(),
        "refused": {
            shard.file: scan["refused"]
            for shard, scan in zip(shards, scans, strict=True)
            if scan["refused"]
        },
        "ignored": dict(sorted(ignored.items())),
        "shards": [shard.to_json() for shard in shards],
    }
    write_manifest(out, info, MANIFEST, files)


def _most(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
