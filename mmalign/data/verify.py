"""`mmalign data verify`: does a data set equal what its manifest says, byte for byte?

    manifest -> size and sha256 of every file
             -> every shard, one process each: index -> every sample is read, checksums, header of its image
             -> image features beside the shards: made of these shards? size and sha256 of every file
    -> problems: file, reason, and key or bytes

A shard whose sha256 differs is also walked, which finds the bytes where its structure is damaged. Data sets
from before the index had checksums of members have no other evidence of where their damage is.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.core.batch import Pair
from mmalign.core.commit import sha256_of
from mmalign.core.console import track
from mmalign.core.errors import UserError, printable, raise_if_of_machine
from mmalign.core.workers import map_in_processes
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.reasons import REASONS
from mmalign.data.shards.folder import Folder, LocalFolder, open_folder
from mmalign.data.shards.jobs import Job, read_shard, shard_jobs
from mmalign.data.shards.manifest import Manifest
from mmalign.data.shards.reader import UnusableSample
from mmalign.data.shards.scan import check_picture
from mmalign.data.shards.shard_index import read_rows
from mmalign.data.shards.tar import Damage, walk
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.stream.image_features import FOLDER, INDEX, read_facts, record_file, rows_file

WHOLE, DAMAGED = "whole", "damaged"
OF_OTHER_SHARDS = "of other shards"  # the data set was built again since
NOT_FINISHED = "not finished"
MAX_PROBLEMS = 10_000
"""Problems of one shard that are listed; the others are counted."""

Problem = dict[str, Any]
"""`file` and `reason`, and where they are known `key`, `detail`, or the bytes `start` ... `stop - 1`."""


@dataclass(frozen=True)
class Report:
    """What was found."""

    shards: int
    samples: int  # that were read
    problems: tuple[Problem, ...]  # in the order of the manifest, those of features last
    features: dict[str, str]  # for each folder WHOLE, DAMAGED, OF_OTHER_SHARDS or NOT_FINISHED

    def to_json(self) -> dict[str, Any]:
        counts = {"whole": not self.problems, "shards": self.shards, "samples": self.samples}
        return {**counts, "features": self.features, "problems": list(self.problems)}


def verify(name: str | os.PathLike[str], decode_images: bool = False, processes: int = 1) -> Report:
    """Compare the data set in a folder or at a URL with its manifest.

    Args:
        decode_images: in full instead of their headers only.
    """
    folder, manifest = open_folder(name, RemoteConfig(), check_files=False)
    in_shards = {name for shard in manifest.shards for name in (shard.tar, shard.index)}
    problems = [
        problem
        for name in manifest.files
        if name not in in_shards
        for problem in _check_file(folder, manifest.files, name)
    ]
    count = len(manifest.shards)
    jobs = shard_jobs(folder, manifest, range(count))
    reports = map_in_processes(partial(_verify_shard, decode_images), jobs, processes)
    samples = 0
    for read, found in track(reports, "shards", count):
        samples += read
        problems += found
    features: dict[str, str] = {}
    if isinstance(folder, LocalFolder):
        for path in sorted((folder.path / FOLDER).glob("*/")):
            features[path.name], found = _verify_features(path, manifest)
            problems += found
    return Report(count, samples, tuple(problems), features)


def describe(problem: Problem) -> str:
    """A problem as one line."""
    key = f", sample `{problem['key']}`" if "key" in problem else ""
    extent = f", bytes {problem['start']} to {problem['stop']}" if "start" in problem else ""
    detail = f" ({problem['detail']})" if "detail" in problem else ""
    reason = problem["reason"]
    # Names are untrusted: none may end the line, or send a control sequence to a terminal.
    return printable(f"{problem['file']}{key}{extent}: {REASONS.get(reason, reason)}{detail}")


def _problem(file: str, reason: str, detail: str = "", **where: Any) -> Problem:
    return {"file": file, "reason": reason, **where, **({"detail": detail} if detail else {})}


def _check_file(folder: Folder, files: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """What is wrong with size and sha256 of one file; `files` is what a manifest lists."""
    facts = files.get(name)
    if facts is None:
        yield _problem(name, "not in the manifest")
    elif isinstance(folder, LocalFolder):
        path = folder.path / name
        if not path.is_file():
            yield _problem(name, "missing")
        elif (size := path.stat().st_size) != facts["size"]:
            yield _problem(name, "size", f"{size} bytes, the manifest says {facts['size']}")
        elif sha256_of(path) != facts["sha256"]:
            yield _problem(name, "sha256")
    else:
        try:
            os.close(folder.open(name))  # a download is compared with the manifest
        except UserError as error:
            yield _problem(name, "read error", str(error))


def _verify_features(folder: Path, manifest: Manifest) -> tuple[str, list[Problem]]:
    """State and problems of a folder of features, which is two folders below the data set's."""
    name = folder.relative_to(folder.parent.parent).as_posix()
    try:
        facts = read_facts(folder)
    except UserError as error:
        return DAMAGED, [_problem(f"{name}/{INDEX}", DAMAGED, str(error))]
    if facts is None or facts["data_sha256"] != manifest.sha256:
        state = NOT_FINISHED if facts is None else OF_OTHER_SHARDS
        detail = "`mmalign embed` makes what is missing"
        return state, [_problem(f"{name}/{INDEX}", state, detail)]
    shards = [shard for shard in manifest.shards if shard.samples]
    files = [file for shard in shards for file in (rows_file(shard), record_file(shard))]
    problems = [
        {**problem, "file": f"{name}/{file}"}
        for file in track(files, "files of features", len(files))
        for problem in _check_file(LocalFolder(folder), facts["files"], file)
    ]
    return DAMAGED if problems else WHOLE, problems


def _verify_shard(decode_images: bool, job: Job) -> tuple[int, list[Problem]]:
    """(samples that were read, problems) of one shard."""
    _, folder, manifest = job
    (shard,) = manifest.shards
    problems = list(_check_file(folder, manifest.files, shard.tar))
    is_here = isinstance(folder, LocalFolder) and (folder.path / shard.tar).is_file()
    if problems and isinstance(folder, LocalFolder) and is_here:
        problems += _damages(folder.path / shard.tar, shard.tar)
    languages, samples, bad = Counter[str](), 0, list[Problem]()
    try:
        if problems and not is_here:  # no sample can be read
            read_rows(folder, manifest, shard)
            return 0, problems
        for row, pair in read_shard(folder, manifest):
            samples += 1
            languages.update(row["langs"])
            bad += _sample_problem(shard.tar, row, pair, decode_images)
    except OSError as error:
        raise_if_of_machine(error)
        return 0, [*problems, _problem(shard.tar, "read error", str(error))]
    except UserError as error:
        return 0, [*problems, _problem(shard.index, "no index", str(error))]
    if languages != shard.languages or languages.total() != shard.captions:
        problems.append(_problem(shard.index, "counts", "other captions than the manifest"))
    problems += bad[:MAX_PROBLEMS]
    if (more := len(bad) - MAX_PROBLEMS) > 0:
        problems.append(_problem(Path(shard.tar).name, "more", f"{more} samples"))
    return samples, problems


def _damages(path: Path, name: str) -> Iterator[Problem]:
    with path.open("rb") as file:
        damages = (found for found in walk(file) if isinstance(found, Damage))
        for damage in islice(damages, MAX_PROBLEMS):
            yield _problem(name, damage.reason, start=damage.start, stop=damage.stop)


def _sample_problem(
    tar: str, row: dict[str, Any], pair: Pair | UnusableSample, decode_images: bool
) -> Iterator[Problem]:
    try:
        if isinstance(pair, UnusableSample):
            raise pair
        check_picture(pair.image)
        if decode_images:
            decode(pair.image)
    except (UnusableSample, UndecodableImage) as error:
        yield _problem(Path(tar).name, error.reason, error.detail, key=row["key"])
