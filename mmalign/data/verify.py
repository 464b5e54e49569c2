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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
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
from mmalign.data.shards.manifest import Manifest, load_manifest
from mmalign.data.shards.reader import UnusableSample, read_pair
from mmalign.data.shards.scan import check_picture
from mmalign.data.shards.shard_index import read_rows
from mmalign.data.shards.tar import Damage, walk
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
    """What was found.

    Attributes:
        samples: that were read.
        problems: in the order of the manifest, those of features last; none if the set is valid.
        features: for each folder of features one of WHOLE, DAMAGED, OF_OTHER_SHARDS and NOT_FINISHED.
    """

    shards: int
    samples: int
    problems: tuple[Problem, ...]
    features: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        counts = {"whole": not self.problems, "shards": self.shards, "samples": self.samples}
        return {**counts, "features": self.features, "problems": list(self.problems)}


def verify(folder: Path, decode_images: bool = False, processes: int = 1) -> Report:
    """Compare a data set with its manifest.

    Args:
        decode_images: decode every image in full instead of reading its header only.

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
    jobs = [manifest.part(shard) for shard in manifest.shards]
    reports = map_in_processes(partial(_verify_shard, folder, decode_images), jobs, processes)
    samples = 0
    for read, found in track(reports, "shards", len(jobs)):
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
    extent = f", bytes {problem['start']} to {problem['stop']}" if "start" in problem else ""
    detail = f" ({problem['detail']})" if "detail" in problem else ""
    reason = problem["reason"]
    return f"{problem['file']}{key}{extent}: {REASONS.get(reason, reason)}{detail}"


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
    """State and problems of a folder of features, which is two folders below the data set's."""
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


def _verify_shard(
    folder: Path, decode_images: bool, manifest: Manifest
) -> tuple[int, list[Problem]]:
    """(samples that were read, problems) of the only shard of `manifest`."""
    (shard,) = manifest.shards
    path = folder / shard.tar
    problems = _check_file(folder, manifest.files, shard.tar)
    try:
        if problems and path.is_file():
            with path.open("rb") as file:
                damages = (found for found in walk(file) if isinstance(found, Damage))
                problems += [
                    {"file": shard.tar, "reason": d.reason, "start": d.start, "stop": d.stop}
                    for d in islice(damages, MAX_PROBLEMS)
                ]
        rows = read_rows(LocalFolder(folder), manifest, shard)
    except OSError as error:
        return 0, [*problems, {"file": shard.tar, "reason": "read error", "detail": str(error)}]
    except UserError as error:
        return 0, [*problems, {"file": shard.index, "reason": "no index", "detail": str(error)}]
    if not path.is_file():
        return 0, problems
    languages = Counter(lang for row in rows for lang in row["langs"])
    if languages != shard.languages or languages.total() != shard.captions:
        detail = "other captions than the manifest"
        problems.append({"file": shard.index, "reason": "counts", "detail": detail})
    return len(rows), problems + _read_samples(path, rows, manifest, decode_images)


def _read_samples(
    path: Path, rows: list[dict[str, Any]], manifest: Manifest, decode_images: bool
) -> list[Problem]:
    problems: list[Problem] = []
    more = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for row in rows:
            try:
                image = read_pair(descriptor, row, manifest).image
                check_picture(image)
                if decode_images:
                    decode(image)
                continue
            except UnusableSample as error:
                reason, detail = error.reason, error.detail
            except UndecodableImage as error:
                reason, detail = error.reason, str(error)
            more += len(problems) >= MAX_PROBLEMS
            if len(problems) < MAX_PROBLEMS:
                found = {"file": path.name, "key": row["key"], "reason": reason}
                problems.append(found | ({"detail": detail} if detail else {}))
    finally:
        os.close(descriptor)
    if more:
        problems.append({"file": path.name, "reason": "more", "detail": f"{more} samples"})
    return problems
