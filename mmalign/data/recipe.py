"""The recipe runner: one YAML file -> shards of every split, and tasks and word lists where there are any.

    recipe -> source -> lazy pairs, in order --one job per shard--> processes: images read, checked, packed
                     -> <out>/<split>/{00000.tar, ..., manifest.json}, <out>/refused.jsonl
                     -> <out>/tasks/<task>/<split>.<lang>.tsv, <out>/words/<list>.tsv

Rows that cannot be used make their shard smaller; they are counted by reason in the manifest and listed in
`refused.jsonl`. Everything is written to `<out>.building`, which becomes `<out>` when it is complete; a build
that was killed continues there.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.core.commit import (
    exclusive,
    leftovers,
    name_aside,
    remove_after_commit,
    replace_folder,
    write_atomic,
)
from mmalign.core.config import validate
from mmalign.core.console import say, track
from mmalign.core.errors import UserError
from mmalign.core.languages import respelled_in_words
from mmalign.core.ray_tasks import map_parts
from mmalign.core.workers import map_in_processes, usable_cores
from mmalign.data.packing import (
    REFUSED,
    build_shards,
    count_reports,
    jobs_of,
    remove_stale_files,
)
from mmalign.data.parts import Part, has_parts, interleave, read_parts, write_part
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import LazyPair
from mmalign.data.shards.manifest import MANIFEST, Manifest, read_manifest
from mmalign.data.shards.pack import STATE, Job, Report, finished, pack, write_split
from mmalign.data.sources.task_tables import TASKS, WORDS, write_tables


def build(
    config: RecipeConfig,
    out: Path,
    force: bool = False,
    processes: int | None = None,
    part: Part = (0, 1),
) -> list[Manifest]:
    """Write every split below `out` and return the manifests; a recipe that was already run is not run again.

    Args:
        force: replace a data set that is already there.
        processes: that write shards; by default one per core that this process may use.
        part: (i, n): write the shards i, i + n, ... only, and no manifest. When all parts are done, `merge`
            completes the data set. So does the same call without a part, which makes what is missing.

    Raises:
        UserError: the source is broken or empty, too many rows cannot be used, or `out` holds something else.
    """
    facts = config.for_manifest()
    if (manifests := _known(facts, out, force)) is not None:
        return manifests
    processes = processes or usable_cores()
    if part[1] > 1:
        _build_part(config, out, force, processes, part)
        return []
    respelled = Counter[str]()  # language codes
    with work_folder(_building(out), facts["recipe_sha256"]) as work:
        reports = build_shards(config, work, jobs_of(config, work, respelled), processes)
        return _complete(config, work, out, reports, respelled)


def build_by_ray(config: RecipeConfig, out: Path, force: bool, address: str) -> list[Manifest]:
    """As `build`, in parts that are tasks of the Ray cluster at an address, each in one process."""
    if (manifests := _known(config.for_manifest(), out, force)) is not None:
        return manifests
    map_parts(partial(build, config, out, force, 1), address)
    return merge(out)


def merge(out: Path) -> list[Manifest]:
    """Complete the data set of which all parts are built: from their reports, the source is not read again.

    Raises:
        UserError: a part or a shard is missing, the parts are of different sources, or as `build`.
    """
    state = _building(out) / STATE
    parts = read_parts(state)
    config = validate(RecipeConfig, parts[0]["same"]["recipe"], str(state))
    facts = config.for_manifest()
    if (manifests := _known(facts, out, parts[0]["same"]["force"])) is not None:
        return manifests
    with work_folder(_building(out), facts["recipe_sha256"]) as work:
        shards = interleave([part["shards"] for part in parts])
        reports = count_reports(config, work, (finished(work, *shard) for shard in shards))
        respelled = Counter[str](parts[0]["same"]["respelled"])
        return _complete(config, work, out, reports, respelled)


def is_in_parts(out: Path) -> bool:
    """Whether parts of a build of `out` are done."""
    return has_parts(_building(out) / STATE)


def _building(out: Path) -> Path:
    out = out.resolve()
    return out.with_name(f"{out.name}.building")


def _known(facts: dict[str, Any], out: Path, force: bool) -> list[Manifest] | None:
    """The manifests of a recipe that was already run; None: it is to be run."""
    splits = splits_in(out)
    if not splits or force:
        return None
    manifests = [read_manifest(out / split) for split in splits]
    if all(manifest.recipe_sha256 == facts["recipe_sha256"] for manifest in manifests):
        return manifests
    raise UserError(
        f"{out}: holds the data set of another recipe; name another folder with --out, or give --force"
    )


def _build_part(config: RecipeConfig, out: Path, force: bool, processes: int, part: Part) -> None:
    number, count = part
    respelled = Counter[str]()
    shards: list[tuple[str, int]] = []
    # A source that changes between two parts would give rows twice, or never.
    rows = hashlib.sha256()

    def own_jobs(work: Path) -> Iterator[Job]:
        for position, job in enumerate(jobs_of(config, work, respelled)):
            keys = [r.pair.key if isinstance(r, LazyPair) else str(r) for r in job.rows]
            rows.update(json.dumps([job.split, *keys]).encode())
            if position % count == number:
                shards.append((job.split, job.number))
                yield job

    with _part_of_work_folder(_building(out), config.for_manifest()["recipe_sha256"], part) as work:
        for _ in track(map_in_processes(pack, own_jobs(work), processes), "shards", None):
            pass
        same = {
            "recipe": config.model_dump(mode="json"),
            "force": force,
            "rows": rows.hexdigest(),
            "respelled": dict(sorted((+respelled).items())),
        }
        write_part(work / STATE, part, same, {"shards": shards})


def _complete(
    config: RecipeConfig,
    work: Path,
    out: Path,
    reports: dict[str, list[Report]],
    respelled: Counter[str],
) -> list[Manifest]:
    """Write all but the shards, and replace `out`."""
    write_tables(config.source, config.seed, work)
    facts = config.for_manifest()
    if respelled := +respelled:
        facts["respelled"] = dict(sorted(respelled.items()))
        say(respelled_in_words(respelled))
    remove_stale_files(work, reports)
    for split, of_split in reports.items():
        write_split(work / split, {**facts, "split": split}, of_split)
    # Renamed, not deleted: this process holds its lock, and NFS keeps an open file in the folder.
    (work / STATE).rename(name_aside(work))
    replace_folder(work, out.resolve())
    return [read_manifest(out / split) for split in reports]


def splits_in(out: Path) -> list[str]:
    """Names of the splits of a data set in `out`; none if it does not exist or is empty."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    entries = sorted(path.name for path in out.iterdir()) if out.exists() else []
    splits = [name for name in entries if (out / name / MANIFEST).is_file()]
    ours = {*splits, TASKS, WORDS, REFUSED} if splits else set()
    foreign = [name for name in entries if name not in ours]
    # A build replaces the folder, and must not delete files of others.
    if foreign:
        raise UserError(
            f"{out}: holds `{foreign[0]}`, which is no data set; name an empty folder with --out"
        )
    return splits


@contextmanager
def work_folder(work: Path, recipe_sha256: str) -> Iterator[Path]:
    """The folder `work`, with the shards that an earlier build of the same recipe has finished there.

    What the block moves aside (`name_aside`) is deleted at the end, after the locks.
    """
    state = work / STATE
    if work.exists() and not state.is_dir():
        raise UserError(
            f"{work}: is not of a build; move it away, or name another folder with --out"
        )
    with ExitStack() as locks:
        locks.enter_context(exclusive(state))
        for other in sorted(state.glob("part-*/")):
            locks.enter_context(exclusive(other))  # a UserError while a part is written
        known = state / "recipe"
        if not known.is_file() or known.read_text() != recipe_sha256:
            for path in (path for path in work.iterdir() if path != state):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for report in state.glob("*.json"):
                report.unlink()
            write_atomic(known, recipe_sha256)
        try:
            yield work
        finally:
            # Of a build that failed before its first shard; nothing else may ever be deleted here.
            if state.is_dir() and not any(state.glob("*.json")) and not any(work.glob("*/*.tar")):
                shutil.rmtree(work, ignore_errors=True)
    remove_after_commit(leftovers(work.parent, f"{work.name}.old-"))


@contextmanager
def _part_of_work_folder(work: Path, recipe_sha256: str, part: Part) -> Iterator[Path]:
    """The folder `work`, for one of several jobs that write its shards at the same time."""
    known = work / STATE / "recipe"
    # Nothing is deleted here, whatever another job is doing.
    is_empty = not work.exists() or not any(work.iterdir())  # the first job has just made it
    if (not is_empty and not (work / STATE).is_dir()) or (
        known.is_file() and known.read_text() != recipe_sha256
    ):
        raise UserError(
            f"{work}: is of another recipe or no build; delete it and start all parts again"
        )
    with exclusive(work / STATE / f"part-{part[0]}"):
        if not known.is_file():
            write_atomic(known, recipe_sha256)
        yield work
