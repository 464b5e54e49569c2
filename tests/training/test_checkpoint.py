"""Which checkpoints are kept, which one is best, and what happens when one cannot be written."""

import contextlib
import errno
import io
import json
import resource
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parity_cases import Way, make_batch_for, make_engine
from ranks import run_ranks
from safetensors.torch import load_file

from mmalign.core import distributed
from mmalign.core.batch import StreamState
from mmalign.core.commit import committed_folder, verify
from mmalign.core.errors import UserError
from mmalign.data.stream.order import ORDER_VERSION
from mmalign.training import checkpoint
from mmalign.training.checkpoint import CheckpointConfig, Saver, TrainState, load_newest
from mmalign.training.checkpoint_storage import FolderStorage
from mmalign.training.engine import Engine

FACTS: dict[str, Any] = {"config_sha256": "0", "data": []}


def state(step: int, best: float | None = None) -> TrainState:
    return TrainState(step, step * 8, step * 10, StreamState(0, step * 8), best)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("step-"))


def keep_some(folder: str) -> None:
    """Ten checkpoints, of which the third and the fifth were the best so far."""
    config = CheckpointConfig(every=1, keep=2, keep_every=4)
    saver = Saver(Path(folder), config, FACTS)
    engine = make_engine("contrastive", Way(0))
    for step in range(1, 11):
        engine.step(make_batch_for("contrastive", step))
        saver.save(engine, state(step, 0.5), is_best=step in (3, 5))


def test_the_newest_the_best_and_every_fourth_are_kept(tmp_path: Path) -> None:
    run_ranks(1, keep_some, tmp_path / "ranks", str(tmp_path / "checkpoints"))
    folder = tmp_path / "checkpoints"
    assert names(folder) == [f"step-{n:09d}" for n in (4, 5, 8, 9, 10)]
    assert (folder / "best").resolve() == (folder / "step-000000005").resolve()
    assert (folder / "LATEST").read_text() == "step-000000010\n"


def keep_beside_a_later_one(folder: str) -> list[list[str]]:
    """A run that has gone back to step 5, because its checkpoint of step 10 is damaged."""
    saver = Saver(Path(folder), CheckpointConfig(every=1, keep=1), FACTS)
    engine = make_engine("contrastive", Way(0))
    found = []
    for step in (10, 6, 7, 11):
        saver.save(engine, state(step))
        saver.finish()
        found.append(names(Path(folder)))
    return found


def test_a_later_checkpoint_does_not_take_the_place_of_the_one_just_saved(tmp_path: Path) -> None:
    folder = str(tmp_path / "checkpoints")
    (found,) = run_ranks(1, keep_beside_a_later_one, tmp_path / "ranks", folder)
    steps = [[int(name.removeprefix("step-")) for name in left] for left in found]
    assert steps == [[10], [6, 10], [7, 10], [11]]


def keep_despite_errors(folder: str) -> str:
    """Three saves beside a person's copy of a checkpoint; the first one can never be deleted."""
    saver = Saver(Path(folder), CheckpointConfig(keep=1), FACTS)
    engine = make_engine("contrastive", Way(0))
    real = shutil.rmtree

    def busy(path: Path, **options: Any) -> None:
        if path.name == "step-000000001":
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        real(path, **options)

    shutil.rmtree = busy  # type: ignore[assignment]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        for step in (1, 2, 3):
            saver.save(engine, state(step))
            if step == 1:
                shutil.copytree(f"{folder}/step-000000001", f"{folder}/step-000000001-good")
                Path(folder, "step-000000002.tmp-notes").mkdir()
    return said.getvalue()


def test_what_cannot_be_tidied_does_not_end_a_run_that_has_saved(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (said,) = run_ranks(1, keep_despite_errors, tmp_path / "ranks", str(folder))
    of_the_run = ["step-000000001", "step-000000003"]
    assert names(folder) == sorted([*of_the_run, "step-000000001-good", "step-000000002.tmp-notes"])
    assert said.count("step-000000001: not deleted (Device or resource busy)") == 2


def lack_memory(folder: str) -> str:
    """A save of which rank 1 has no memory for its file; its error."""

    def fail(tensors: Any, path: Path) -> None:
        raise MemoryError

    if distributed.rank() == 1:
        checkpoint.save_file = fail  # type: ignore[assignment]
    try:
        Saver(Path(folder), CheckpointConfig(), FACTS).save(
            make_engine("contrastive", Way(0)), state(1)
        )
    except UserError as error:
        return str(error)
    return ""


def test_any_error_while_writing_leaves_no_checkpoint_and_all_ranks_say_so(tmp_path: Path) -> None:
    errors = run_ranks(2, lack_memory, tmp_path / "ranks", str(tmp_path / "checkpoints"))
    assert all("could not be written (MemoryError" in error for error in errors)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_was_committed_is_not_touched_under_its_old_name(tmp_path: Path) -> None:
    """On NFS another host still knows the checkpoint by that name, and would delete it."""
    work = tmp_path / "step-000000001.tmp-0123"
    work.mkdir()
    storage = FolderStorage(tmp_path)
    storage.discard(work, is_committed=True)
    assert work.is_dir()
    storage.discard(work, is_committed=False)
    assert not work.exists()


def write_behind(folder: str) -> dict[str, Any]:
    """A save that is slow to write, and steps in the meantime."""
    real = checkpoint.save_file

    def slow(tensors: Any, path: Path) -> None:
        time.sleep(1.0 if distributed.rank() == 1 else 0.0)
        real(tensors, path)

    checkpoint.save_file = slow  # type: ignore[assignment]
    try:
        engine = make_engine("contrastive", Way(1))
        engine.step(make_batch_for("contrastive", 0))
        wanted = {k: v for t in engine.capture()[1].values() for k, v in t.items()}
        saver = Saver(Path(folder), CheckpointConfig(asynchronous=True), FACTS)
        saver.save(engine, state(1))
        distributed.gather_objects(None)
        before = (distributed.gather_objects(saver.is_writing), names(Path(folder)))
        for step in (1, 2):  # weights move on while the copies are written
            engine.step(make_batch_for("contrastive", step))
        saver.finish()
        return {"before": before, "wanted": wanted, "after": names(Path(folder))}
    finally:
        checkpoint.save_file = real


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    found = run_ranks(2, write_behind, tmp_path / "ranks", str(folder))[0]
    writing, listed = found["before"]
    assert writing[1]
    assert ".tmp-" in listed[0], "nothing is committed before all ranks have written"
    assert found["after"] == ["step-000000001"]
    info = verify(folder / "step-000000001")
    assert {"optimizer-rank00000.safetensors", "optimizer-rank00001.safetensors"} <= info[
        "files"
    ].keys()
    written = load_file(folder / "step-000000001" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in found["wanted"].items())


def test_a_checkpoint_under_an_unknown_version_of_the_order_is_refused(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(data=[], shuffle="full")

    def refusal(facts: dict[str, Any]) -> str:
        with committed_folder(tmp_path / "step-000000001", FACTS | facts) as folder:
            (folder / "state.json").write_text("{}")
        with pytest.raises(UserError) as error:
            load_newest(tmp_path, None, plan)  # type: ignore[arg-type]
        return str(error.value)

    refused = "under version {} of the data's order, this mmalign has versions 1 to {}"
    accepted = "holds no optimizer state"  # what is checked after the version
    for version in range(1, ORDER_VERSION + 1):  # a run goes on in the order that it began with
        assert accepted in refusal({"order_version": version})
        assert plan.version == version
    other = refusal({"order_version": ORDER_VERSION + 1})
    assert refused.format(ORDER_VERSION + 1, ORDER_VERSION) in other
    assert "start another run from its weights with init_from" in other
    assert accepted in refusal({})  # mmalign 0.1.0 wrote none, which means 1
    assert plan.version == 1


def see_older_ones(folders: list[Path]) -> dict[str, Any]:
    """Each rank loads from its own view of one folder; step and weights, and whether they train alike."""
    engine = make_engine("contrastive", Way(0))
    plan: Any = SimpleNamespace(data=[], shuffle="full")
    found = load_newest(folders[distributed.rank()], engine, plan)
    moments = engine.capture()[0]
    engine.step(make_batch_for("contrastive", 9))
    return {"step": found.step, "moments": moments, "digest": engine.digest()}


def save_twice(folder: Path) -> None:
    saver = Saver(folder, CheckpointConfig(every=1), FACTS)
    engine = make_engine("contrastive", Way(0))
    for step in (1, 2):
        engine.step(make_batch_for("contrastive", step))
        saver.save(engine, state(step))


def test_ranks_that_see_other_files_go_on_from_the_checkpoint_of_rank_0(tmp_path: Path) -> None:
    real, stale, missing = (tmp_path / name for name in ("real", "stale", "missing"))
    run_ranks(1, save_twice, tmp_path / "save", real)
    shutil.copytree(real, stale)
    shutil.rmtree(stale / "step-000000002")
    for number, other in enumerate((stale, missing)):
        first, second = run_ranks(2, see_older_ones, tmp_path / str(number), [real, other])
        assert (first["step"], second["step"]) == (2, 2)
        assert first["digest"] == second["digest"]


def run_out_of_room(folders: dict[bool, Path]) -> dict[bool, str]:
    engine = make_engine("contrastive", Way(0))
    engine.step(make_batch_for("contrastive", 0))
    return {is_async: fill(engine, folder, is_async) for is_async, folder in folders.items()}


def fill(engine: Engine, folder: Path, asynchronous: bool) -> str:
    """A good save, then one whose files may not grow beyond 4 KiB on rank 1; its error."""
    saver = Saver(folder, CheckpointConfig(asynchronous=asynchronous), FACTS)
    saver.save(engine, state(1))
    saver.finish()
    if distributed.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        saver.save(engine, state(2))
        saver.finish()
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return ""


def test_a_full_disk_leaves_the_last_checkpoint_and_all_ranks_say_so(tmp_path: Path) -> None:
    folders = {is_async: tmp_path / str(is_async) for is_async in (False, True)}
    first, second = run_ranks(2, run_out_of_room, tmp_path / "ranks", folders)
    assert first == second
    for is_async, folder in folders.items():
        assert "could not be written (" in first[is_async]
        assert "step-000000001 is complete; make room" in first[is_async]
        assert names(folder) == ["step-000000001"]
        verify(folder / "step-000000001")


def save_until_full(folder: Path) -> str:
    engine = make_engine("contrastive", Way(0))
    saver = Saver(folder, CheckpointConfig(keep=100), FACTS)
    try:
        for step in range(1, 100):
            engine.step(make_batch_for("contrastive", step))
            saver.save(engine, state(step))
    except UserError as error:
        return str(error)
    return ""


def test_a_small_disk_ends_a_run_with_one_sentence(tmp_path: Path) -> None:
    """The real thing: a file system of 600 KiB, which holds one checkpoint and not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        (error,) = run_ranks(1, save_until_full, tmp_path / "ranks", disk / "checkpoints")
        assert "could not be written" in error
        kept = names(disk / "checkpoints")
        assert len(kept) >= 1
        for name in kept:
            verify(disk / "checkpoints" / name)
        newest = (disk / "checkpoints" / "LATEST").read_text().strip()
        assert json.loads((disk / "checkpoints" / newest / "state.json").read_text())["step"] >= 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
