"""`mmalign data verify`: is a data set, to the byte, what its manifest says?

    manifest -> every file's size and sha256
             -> every shard, a process each: index -> every sample read, checksums compared, picture looked at
             -> features beside the shards (features.py): made of these shards? every file's size and sha256
    -> problems: shard, and key or bytes, and reason

A shard whose sha256 differs is also walked, which names the bytes where its structure is broken; older data
sets have no checksums a member, so that this is all there is to say about where their damage lies.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.core.commit import sha256_of
from mmalign.core.console import track
from mmalign.core.errors import UserError
from mmalign.core.workers import map_in_processes
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.reasons import REASONS
from mmalign.data.shards.folder import LocalFolder
from mmalign.data.shards.manifest import Manifest, Shard, load_manifest
from mmalign.data.shards.reader import UnusableSample, read_pair
from mmalign.data.shards.scan import check_picture
from mmalign.data.shards.shard_index import read_rows
from mmalign.data.shards.tar import Damage, walk
from mmalign.data.stream.image_features import FOLDER, INDEX, read_facts, record_file, rows_file

WHOLE, DAMAGED = "whole", "damaged"
OF_OTHER_SHARDS = "of other shards"  # the set has another manifest since
NOT_FINISHED = "not finished"
MAX_PROBLEMS = 10_000
"""Of one shard that are named; more are counted."""

Problem = dict[str, Any]
"""`file` and `reason`, and where they are known `key`, `detail`, or the bytes `start` ... `stop - 1`."""


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        samples: that were read.
        problems: in the order of the manifest, those of features last; empty where the set is whole.
        features: for each folder of features one of WHOLE, DAMAGED, OF_OTHER_SHARDS and NOT_FINISHED.
    """

    shards: int
    samples: int
    problems: tuple[Problem, ...]
    features: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        whole = not self.problems
        counts = {"whole": whole, "shards": self.shards, "samples": self.samples}
        return {**counts, "features": self.features, "problems": list(self.problems)}


def verify(folder: Path, decode_pictures: bool = False, processes: int = 1) -> Report:
    """Compare a data set with its manifest.

    Args:
        decode_pictures: decode every picture in full, and not only look at its header.

    Raises:
        UserError: no data set there.
    """
    manifest = load_manifest(folder)
    in_shards = {name for shard in manifest.shards for name in (shard.tar, shard.index)}
    problems = [
        problem
        for name in manifest.files
        if name not in in_shards
        for problem in _check_file(folder, manifest.files, name)
    ]
    jobs = [_job(folder, manifest, shard, decode_pictures) for shard in manifest.shards]
    samples = 0
    for read, found in track(map_in_processes(_verify_shard, jobs, processes), "shards", len(jobs)):
        samples += read
        problems += found
    features: dict[str, str] = {}
    for path in sorted((folder / FOLDER).glob("*/")):
        features[path.name], found = _verify_features(path, manifest)
        problems += found
    return Report(len(jobs), samples, tuple(problems), features)


def describe(problem: Problem) -> str:
    """A problem as one line."""
    key = f", sample `{problem['key']}`" if "key" in problem else ""
    place = f", bytes {problem['start']} to {problem['stop']}" if "start" in problem else ""
    detail = f" ({problem['detail']})" if "detail" in problem else ""
    reason = problem["reason"]
    return f"{problem['file']}{key}{place}: {REASONS.get(reason, reason)}{detail}"


@dataclass(frozen=True)
class _Job:
    folder: Path
    manifest: Manifest
    shard: Shard
    decode_pictures: bool


def _job(folder: Path, manifest: Manifest, shard: Shard, decode_pictures: bool) -> _Job:
    """With what a process needs of the manifest, and no more: it is sent there for each shard."""
    files = {
        name: manifest.files[name] for name in (shard.tar, shard.index) if name in manifest.files
    }
    part = replace(manifest, recipe={}, shards=(shard,), files=files, refused={}, ignored={})
    return _Job(folder, part, shard, decode_pictures)


def _check_file(folder: Path, files: Mapping[str, Any], name: str) -> list[Problem]:
    """Size and sha256 of one file; `files` is what a manifest lists."""
    path, facts = folder / name, files.get(name)
    if facts is None:
        return [{"file": name, "reason": "not in the manifest"}]
    if not path.is_file():
        return [{"file": name, "reason": "missing"}]
    size = path.stat().st_size
    if size != facts["size"]:
        detail = f"{size} bytes, the manifest says {facts['size']}"
        return [{"file": name, "reason": "size", "detail": detail}]
    if sha256_of(path) != facts["sha256"]:
        return [{"file": name, "reason": "sha256"}]
    return []


def _verify_features(folder: Path, manifest: Manifest) -> tuple[str, list[Problem]]:
    """State and problems of a folder of features, which lies two folders below the data set's."""
    name = folder.relative_to(folder.parent.parent).as_posix()
    try:
        facts = read_facts(folder)
    except UserError as error:
        return DAMAGED, [{"file": f"{name}/{INDEX}", "reason": DAMAGED, "detail": str(error)}]
    state = NOT_FINISHED if facts is None else OF_OTHER_SHARDS
    if facts is None or facts["data_sha256"] != manifest.sha256:
        detail = "`mmalign embed` makes what is missing"
        return state, [{"file": f"{name}/{INDEX}", "reason": state, "detail": detail}]
    shards = [shard for shard in manifest.shards if shard.samples]
    files = [file for shard in shards for file in (rows_file(shard), record_file(shard))]
    problems = [
        {**problem, "file": f"{name}/{file}"}
        for file in track(files, "files of features", len(files))
        for problem in _check_file(folder, facts["files"], file)
    ]
    return DAMAGED if problems else WHOLE, problems


def _verify_shard(job: _Job) -> tuple[int, list[Problem]]:
    """(samples that were read, problems) of one shard."""
    problems = _check_file(job.folder, job.manifest.files, job.shard.tar)
    path = job.folder / job.shard.tar
    try:
        if problems and path.is_file():
            problems += _walk(path, job.shard.tar)
        rows = read_rows(LocalFolder(job.folder), job.manifest, job.shard)
    except OSError as error:
        return 0, [*problems, {"file": job.shard.tar, "reason": "read error", "detail": str(error)}]
    except UserError as error:
        return 0, [*problems, {"file": job.shard.index, "reason": "no index", "detail": str(error)}]
    if not path.is_file():
        return 0, problems
    problems += _compare_counts(job.shard, rows)
    return len(rows), problems + _read_samples(job, rows)


def _walk(path: Path, name: str) -> list[Problem]:
    """The bytes of a shard where its structure is broken."""
    with path.open("rb") as file:
        damages = (found for found in walk(file) if isinstance(found, Damage))
        return [
            {"file": name, "reason": d.reason, "start": d.start, "stop": d.stop}
            for d in islice(damages, MAX_PROBLEMS)
        ]


def _compare_counts(shard: Shard, rows: Sequence[dict[str, Any]]) -> list[Problem]:
    languages = Counter(lang for row in rows for lang in row["langs"])
    if languages == shard.languages and languages.total() == shard.captions:
        return []
    return [{"file": shard.index, "reason": "counts", "detail": "other captions than the manifest"}]


def _read_samples(job: _Job, rows: Sequence[dict[str, Any]]) -> list[Problem]:
    problems: list[Problem] = []
    more = 0
    descriptor = os.open(job.folder / job.shard.tar, os.O_RDONLY)
    try:
        for row in rows:
            try:
                image = read_pair(descriptor, row, job.manifest).image
                check_picture(image)
                if job.decode_pictures:
                    _decode(image)
            except UnusableSample as error:
                found = {"file": job.shard.tar, "key": row["key"], "reason": error.reason}
                if len(problems) < MAX_PROBLEMS:
                    problems.append(found | ({"detail": error.detail} if error.detail else {}))
                else:
                    more += 1
    finally:
        os.close(descriptor)
    if more:
        problems.append({"file": job.shard.tar, "reason": "more", "detail": f"{more} samples"})
    return problems


def _decode(image: bytes) -> None:
    try:
        decode(image)
    except UndecodableImage as error:
        raise UnusableSample(error.reason, str(error)) from None
