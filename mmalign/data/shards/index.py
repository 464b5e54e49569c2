"""`mmalign data index`: tars that others made -> the index and the manifest that our own shards have.

    tars, here or at URLs --one process per shard--> scan.py -> <shard>.index.jsonl, refusals
         --> manifest.json (last), refused.jsonl

The tars are only read, and each once. The result for each is kept in `.index/`, so that a second run scans
only shards that are new or changed. The same tars give the same index and manifest, whatever the number of
processes.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, cast

from mmalign.core.commit import (
    check_writable,
    exclusive,
    flush,
    sha256_of,
    write_atomic,
    write_json,
)
from mmalign.core.console import say, track
from mmalign.core.errors import UserError, describe_os_error
from mmalign.core.languages import respelled_in_words
from mmalign.core.workers import map_in_processes
from mmalign.data.identify import identifier
from mmalign.data.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from mmalign.data.shards.scan import MAX_REFUSALS, Rules, Scan
from mmalign.data.shards.tar import HashedFile
from mmalign.data.storage.listing import facts_of, list_tars
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import RemoteConfig, RemoteFile, download, is_remote

REFUSED = "refused.jsonl"
_SCANS = ".index"


def index(
    source: str,
    rules: Rules,
    out: Path | None = None,
    processes: int = 1,
    part: tuple[int, int] = (0, 1),
) -> tuple[Manifest, Path] | None:
    """Index tars and write their manifest; returns it and its folder, None for a part.

    Args:
        source: a folder of tars, a pattern such as `shards/*.tar` or a brace list such as
            `shards/{00000..00099}.tar`; of this machine, or a URL.
        out: where index and manifest go; by default the folder of the tars.
        part: (i, n): scan the tars i, i + n, ... only, and write no manifest. When all parts are done, the
            same call without it finds their scans and writes the manifest.
    """
    tars = list_tars(source) if is_remote(source) else [str(path) for path in find_tars(source)]
    if out is None and is_remote(source):
        raise UserError(f"{shown(source)}: is a URL; name a folder of this machine with --out")
    out = out or Path(tars[0]).parent
    for model in rules.models:
        identifier(model)  # fails at once if the library or the model is missing
    if (out / MANIFEST).is_file() and not (out / REFUSED).is_file():  # made by a recipe
        raise UserError(f"{out}: holds a data set of another kind; name another folder with --out")
    check_writable(out, is_folder=True)
    jobs = _jobs(tars, out, rules)
    if part[1] > 1:
        with exclusive(out / _SCANS / f"part-{part[0]}"):
            jobs = jobs[part[0] :: part[1]]
            for _ in track(map_in_processes(_index_one, jobs, processes), "shards", len(jobs)):
                pass
        return None
    with exclusive(out / _SCANS):
        scans = list(track(map_in_processes(_index_one, jobs, processes), "shards", len(jobs)))
        _write_refusals(out, jobs, scans)
        if not any(scan["samples"] for scan in scans):
            counts = sum((Counter[str](scan["refused"]) for scan in scans), Counter[str]())
            reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.most_common(3))
            raise UserError(
                f"{source}: no sample of {len(tars)} shards can be used "
                f"({reasons or 'they hold no members'}); {out / REFUSED} names them"
            )
        _write_manifest(out, rules, jobs, scans)
    return read_manifest(out), out


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
class _Job:
    tar: str  # path or URL
    shard: Shard  # its entry in the manifest, still without counts
    out: Path
    rules: Rules
    expected: int | None

    @property
    def report(self) -> Path:
        return self.out / _SCANS / f"{self.shard.file}.json"

    @property
    def refusals(self) -> Path:
        return self.out / _SCANS / f"{self.shard.file}.{REFUSED}"

    def state(self) -> dict[str, Any]:
        """What is another if the tar has changed."""
        if is_remote(self.tar):
            size, version = facts_of(self.tar)
            return {"size": size, "version": version}
        stat = Path(self.tar).stat()
        return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _jobs(tars: Sequence[str], out: Path, rules: Rules) -> list[_Job]:
    resolved = [tar if is_remote(tar) else Path(tar).resolve().as_posix() for tar in tars]
    names = [tar.rpartition("/")[2] for tar in tars]
    if len(set(names)) < len(names):  # of several folders: two tars may have the same name
        parts = [tar.split("/") for tar in resolved]
        above = next(n for n, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1)
        names = ["-".join(one[above:]) for one in parts]
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
        beside = not is_remote(tar) and Path(place).parent == out.resolve()
        shard = Shard(name, 0, 0, {}, None if beside else place)
        jobs.append(_Job(tar, shard, out, rules, expected if isinstance(expected, int) else None))
    return jobs


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


def _index_one(job: _Job) -> dict[str, Any]:
    rows = job.out / job.shard.index
    temporary = rows.with_name(f".{rows.name}.tmp")
    try:
        source = {
            "format": FORMAT_VERSION,
            **job.state(),
            # An index of an older version, which had no fallback, still counts.
            "rules": {k: v for k, v in asdict(job.rules).items() if k != "fallback" or v},
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
            _opened(job.tar, source["size"], rows.parent / _SCANS) as file,
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
    """A tar to read; one at a URL is downloaded to a file in `folder` that is deleted afterwards."""
    if not is_remote(tar):
        with HashedFile(Path(tar)) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile("a+b", dir=folder, buffering=0) as copy:
        download(RemoteFile(tar, size), cast(FileIO, copy), RemoteConfig())
        with HashedFile(Path(copy.name)) as file:
            yield file


def _write_refusals(out: Path, jobs: Sequence[_Job], scans: Sequence[dict[str, Any]]) -> None:
    """`refused.jsonl`: the refusals of all shards in their order, up to a limit; the rest is a count."""
    lines: list[str] = []
    for job in jobs:
        with job.refusals.open(encoding="utf-8", newline="\n") as refusals:
            lines += islice(refusals, MAX_REFUSALS - len(lines))
    total = sum(sum(scan["refused"].values()) for scan in scans)
    if total > len(lines):
        lines.append(json.dumps({"more": total - len(lines)}) + "\n")
    write_atomic(out / REFUSED, "".join(lines))


def _write_manifest(
    out: Path, rules: Rules, jobs: Sequence[_Job], scans: Sequence[dict[str, Any]]
) -> None:
    files, shards, refused = {REFUSED: flush(out / REFUSED)}, [], {}
    ignored, respelled, filled = Counter[str](), Counter[str](), Counter[str]()
    for job, scan in zip(jobs, scans, strict=True):
        samples, languages = scan["samples"], scan["languages"]
        name, path = job.shard.file, job.shard.path
        # All samples are captioned: those without a caption are refused.
        shard = Shard(name, samples, sum(languages.values()), languages, path, captioned=samples)
        shards.append(shard.to_json())
        files |= {shard.tar: scan["files"]["tar"], shard.index: scan["files"]["rows"]}
        ignored.update(scan["ignored"])
        respelled.update(scan["respelled"])
        filled.update(scan.get("filled", {}))
        if scan["refused"]:
            refused[name] = scan["refused"]
    recipe = {"index": rules.to_json()}
    info = {
        "name": out.resolve().name,
        "split": "train",
        "recipe": recipe,
        "recipe_sha256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "format": FORMAT_VERSION,
        "captions": rules.to_json(),
        "refused": refused,
        "ignored": dict(sorted(ignored.items())),
        "shards": shards,
    }
    if respelled:
        info["respelled"] = dict(sorted(respelled.items()))
        say(respelled_in_words(respelled))
    if filled:
        info["filled"] = dict(filled.most_common())
        named = ", ".join(f"`{code}`: {n}" for code, n in filled.most_common(8))
        say(f"languages by --fallback, where captions had none or no valid code: {named}")
    write_manifest(out, info, files)
