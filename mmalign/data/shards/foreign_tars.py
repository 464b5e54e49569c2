"""Tars that others made -> a scan of each, in any number of processes: its index, and what was refused.

    folder, pattern, brace list; here or at URLs -> tars_of -> jobs_of: names -> scan_tars
        one process per tar --scan.py--> <out>/<shard>.index.jsonl
                                         <out>/.index/<shard>.json, last: counts, size and sha256
                                         <out>/.index/<shard>.refused.jsonl

The tars are only read, and each once: a scan counts until its tar or the rules change.
"""

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.core.commit import flush, sha256_of, write_atomic, write_json
from mmalign.core.console import track
from mmalign.core.errors import UserError, describe_os_error
from mmalign.core.workers import map_in_processes
from mmalign.data.shards.manifest import FORMAT_VERSION, Shard
from mmalign.data.shards.scan import MAX_REFUSALS, Rules, Scan
from mmalign.data.shards.tar import HashedFile
from mmalign.data.storage.listing import facts_of, list_tars
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, download, is_remote

REFUSED = "refused.jsonl"
SCANS = ".index"
"""Folder of the scans, beside the manifest."""


def tars_of(source: str) -> list[str]:
    """The tars that a folder, a pattern or a brace list names, here or at a URL."""
    return list_tars(source) if is_remote(source) else [str(path) for path in find_tars(source)]


def find_tars(source: str) -> list[Path]:
    """The tars that a folder, a pattern or a brace list names, sorted."""
    from braceexpand import braceexpand

    # What exists is no pattern: a folder may be called `[x] {a,b}`.
    given = Path(source)
    base = next(path for path in (given, *given.parents) if path.exists())
    paths: set[Path] = set()
    try:
        for pattern in map(Path, braceexpand(str(given.relative_to(base)))):
            path = base / pattern
            if path.is_dir():
                paths |= set(path.glob("*.tar"))
            elif path.is_file():
                paths.add(path)
            else:
                root = Path(pattern.anchor or base)
                paths |= set(root.glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError as error:
        raise UserError(f"{source}: not a valid pattern ({error})") from None
    if not paths:
        raise UserError(f"{source}: no tars there; name a folder of .tar files or a pattern")
    for path in paths:
        if path.suffix != ".tar" or not path.is_file():
            raise UserError(f"{path}: not a .tar file; only plain tars are read, not packed ones")
    return sorted(paths)


@dataclass(frozen=True)
class Job:
    """One tar to scan."""

    tar: str  # path or URL
    shard: Shard  # its entry in the manifest, still without counts
    out: Path
    rules: Rules
    expected: int | None

    @property
    def report(self) -> Path:
        return _report(self.out, self.shard)

    @property
    def refusals(self) -> Path:
        return _refusals(self.out, self.shard)

    def state(self) -> dict[str, Any]:
        """What is another if the tar has changed."""
        if is_remote(self.tar):
            size, version = facts_of(self.tar)
            return {"size": size, "version": version}
        stat = Path(self.tar).stat()
        return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _report(out: Path, shard: Shard) -> Path:
    return out / SCANS / f"{shard.file}.json"


def _refusals(out: Path, shard: Shard) -> Path:
    return out / SCANS / f"{shard.file}.{REFUSED}"


def place_of(tar: str) -> str:
    """The path or URL by which a manifest elsewhere names a tar."""
    return tar if is_remote(tar) else Path(tar).resolve().as_posix()


def jobs_of(tars: Sequence[str], out: Path, rules: Rules, taken: Collection[str] = ()) -> list[Job]:
    """The jobs of all tars; `taken` are names of shards that a data set has already.

    Raises:
        UserError: no distinct names can be made of the paths, for example if two are of the same tar.
    """
    resolved = list(map(place_of, tars))
    names = _names_of(tars, resolved, set(taken))
    lists: dict[str, dict[str, Any]] = {}
    jobs = []
    for tar, place, name in zip(tars, resolved, names, strict=True):
        expected = None
        folder = tar.rpartition("/")[0]
        if not is_remote(tar):
            if folder not in lists:
                lists[folder] = _json_object(Path(tar).parent / "sizes.json")
            # How many samples it had when it was made: open_clip's `sizes.json` is {tar: samples}.
            expected = lists[folder].get(Path(tar).name, stated_samples(Path(tar)))
        # Under another name than its own, it needs its path.
        beside = not is_remote(tar) and Path(place) == out.resolve() / name
        shard = Shard(name, 0, 0, {}, None if beside else place)
        jobs.append(Job(tar, shard, out, rules, expected if isinstance(expected, int) else None))
    return jobs


def _names_of(tars: Sequence[str], resolved: Sequence[str], taken: set[str]) -> list[str]:
    """Names of shards, distinct and not taken: of the tars and, where needed, of folders above them."""
    names = [tar.rpartition("/")[2] for tar in tars]
    parts = [tar.split("/") for tar in resolved]
    if len(set(names)) < len(names):  # of several folders: two tars may have the same name
        levels = enumerate(zip(*parts, strict=False))
        above = next((n for n, names in levels if len(set(names)) > 1), 0)  # 0: all are one tar
        names = ["-".join(one[above:]) for one in parts]
    above = 1
    # The same with folders above, as many as it takes. Joined, different paths may give equal names.
    while (clash := _first_clash(names, taken)) is not None and above < max(map(len, parts)):
        above += 1
        names = ["-".join(filter(None, one[-above:])) for one in parts]
    if clash is not None:
        same = resolved[clash] in resolved[:clash]
        raise UserError(
            f"{tars[clash]}: its shard would have the name of another one of the data set, "
            f"`{names[clash]}`, "
            + (
                "because the tar is named twice, also through a link; name it once"
                if same
                else "even with all folders of its path; rename the tar or a folder above it"
            )
        )
    return names


def _first_clash(names: Sequence[str], taken: set[str]) -> int | None:
    """The number of the first name that is taken or equals an earlier one; None: there is none."""
    seen = set(taken)
    for number, name in enumerate(names):
        if name in seen:
            return number
        seen.add(name)
    return None


def stated_samples(tar: Path) -> int | None:
    """The samples that a tar of img2dataset had when it was made, if its `00000_stats.json` says so."""
    found = _json_object(tar.with_name(f"{tar.stem}_stats.json")).get("successes")
    return found if isinstance(found, int) else None


def _json_object(path: Path) -> dict[str, Any]:
    """The object that a small JSON file holds, empty if there is no such file or object."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def scan_tars(jobs: Sequence[Job], processes: int) -> list[dict[str, Any]]:
    """The scan of every tar, made unless it is known."""
    return list(track(map_in_processes(_index_one, jobs, processes), "shards", len(jobs)))


def finished(out: Path, rules: Rules, shard: Shard) -> dict[str, Any]:
    """The scan of a tar by another job."""
    scan, index = _json_object(_report(out, shard)), out / shard.index
    try:
        size = index.stat().st_size if index.is_file() else None
        if scan["source"]["rules"] == _written(rules) and scan["files"]["rows"]["size"] == size:
            return scan
    except (KeyError, TypeError):
        pass
    raise UserError(
        f"{index}: missing, or of other rules; run the parts again, each scans what it lacks"
    )


def _written(rules: Rules) -> dict[str, Any]:
    # An index of an older version, which had no fallback, still counts.
    return {name: value for name, value in asdict(rules).items() if name != "fallback" or value}


def _index_one(job: Job) -> dict[str, Any]:
    rows = job.out / job.shard.index
    temporary = rows.with_name(f".{rows.name}.tmp")
    try:
        source = {
            "format": FORMAT_VERSION,
            **job.state(),
            "rules": _written(job.rules),
            "expected": job.expected,
        }
        # An earlier scan counts if it was of the same tar with the same rules, and its index is unchanged.
        # Older versions kept the languages as they were written.
        known = _json_object(job.report)
        if known.get("source") == source and "respelled" in known and rows.is_file():
            known_sha256 = known.get("files", {}).get("rows", {}).get("sha256")
            if known_sha256 == sha256_of(rows):
                return known
        with (
            _opened(job.tar, source["size"], rows.parent / SCANS) as file,
            temporary.open("w", encoding="utf-8") as lines,
            job.refusals.open("w", encoding="utf-8", errors="backslashreplace") as refusals,
        ):
            scan = Scan(job.shard.file, file, job.rules, lines, refusals, job.expected)
            scan.run()
            tar = {"size": file.seek(0, os.SEEK_END), "sha256": file.hexdigest()}
        # Only a complete scan gets the name of an index.
        temporary.replace(rows)
        report = {"source": source, "files": {"tar": tar, "rows": flush(rows)}, **scan.counts()}
        write_json(job.report, report)
    except OSError as error:
        error.filename = error.filename or job.tar
        raise UserError(describe_os_error(error)) from None
    return report


@contextmanager
def _opened(tar: str, size: int | None, folder: Path) -> Iterator[HashedFile]:
    """A tar to read; one at a URL is downloaded into `folder`, to a file that no kill leaves there."""
    if not is_remote(tar):
        with HashedFile(Path(tar)) as file:
            yield file
        return
    with tempfile.TemporaryFile("a+b", dir=folder, buffering=0) as copy:
        download(RemoteFile(tar, size), copy, RemoteConfig())
        with HashedFile(copy.fileno(), closefd=False) as file:
            file.seek(0)
            yield file


def write_refusals(
    path: Path, out: Path, shards: Sequence[Shard], scans: Sequence[dict[str, Any]]
) -> None:
    """List the refusals of all shards in their order, up to a limit; the rest is a count."""
    lines: list[str] = []
    for shard in shards:
        with _refusals(out, shard).open(encoding="utf-8", newline="\n") as refusals:
            lines += islice(refusals, MAX_REFUSALS - len(lines))
    total = sum(sum(scan["refused"].values()) for scan in scans)
    if total > len(lines):
        lines.append(json.dumps({"more": total - len(lines)}) + "\n")
    write_atomic(path, "".join(lines))


def join_refusals(path: Path, before: Path, added: Path) -> None:
    """Write what two files list, and count, of refusals to one.

    Args:
        before: a copy of `path` from before an append began, so that its repetition gives the same.
    """
    # An append that an older version began has no copy.
    files = [one for one in (before if before.is_file() else path, added) if one.is_file()]
    # Not splitlines: texts in it may hold other line separators of Unicode.
    lines = [line for one in files for line in one.read_text("utf-8").split("\n") if line]
    facts = [json.loads(line) for line in lines]
    # Each once: rows that were refused before may be in the source again.
    named = list(
        dict.fromkeys(line for line, one in zip(lines, facts, strict=True) if "more" not in one)
    )
    more = sum(one.get("more", 0) for one in facts) + len(named[MAX_REFUSALS:])
    if lines:
        rest = [json.dumps({"more": more})] if more else []
        write_atomic(path, "\n".join([*named[:MAX_REFUSALS], *rest]) + "\n")
