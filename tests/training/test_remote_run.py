"""A run in a store of objects (S3) goes on anywhere, bit for bit, whatever was killed, refused or damaged."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from parity_cases import Way, make_batch_for, make_engine
from ranks import Done, run_command, run_ranks
from run_cases import assert_equal_weights, config, losses, mmalign
from s3_server import BUCKET, S3Server, s3_server

import mmalign as library
from mmalign.core import distributed
from mmalign.core.batch import StreamState
from mmalign.core.commit import verify
from mmalign.core.config import write_yaml
from mmalign.core.errors import UserError
from mmalign.data.storage import remote
from mmalign.data.storage.object_store import ObjectStore
from mmalign.data.storage.remote import RemoteConfig
from mmalign.export.source import read_source
from mmalign.models.stored_run import local_path
from mmalign.training.checkpoint import CheckpointConfig, Saver, TrainState
from mmalign.training.remote_run import RemoteRun

FACTS: dict[str, Any] = {"config_sha256": "0", "data": []}
QUICK = RemoteConfig(retries=2)
OF_RUN = ["checkpoints", "commands.txt", "config.yaml", "metrics.jsonl", "tokenizer", "towers.json"]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).makedirs(BUCKET, exist_ok=True)
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))


def state(step: int, best: float | None = None) -> TrainState:
    return TrainState(step, step * 8, step * 10, StreamState(0, step * 8), best)


def on_host(server: S3Server, cache: Path) -> dict[str, str]:
    """The environment of a host whose folders are in `cache`."""
    return {**server.environment, "MMALIGN_CACHE": str(cache)}


@pytest.fixture(scope="module")
def moved(folder: Path, server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of s3://bucket/moved: stopped on one host, ended on another; a copy of all of its files."""
    caches = tmp_path_factory.mktemp("hosts")
    for host, steps in enumerate(("4", "6")):
        variables = on_host(server, caches / str(host))
        command = ("train", "run.yaml", "--out", "s3://bucket/moved", "--stop-after", steps)
        done = mmalign(*command, folder=folder, variables=variables)
        left = [path.name for path in caches.rglob("model.safetensors")]
        assert not left, "a host keeps no checkpoint"
    assert "from step 4" in done.stdout
    return copy_of("moved", caches / "copy")


def copy_of(run: str, target: Path) -> Path:
    store = ObjectStore(f"s3://{BUCKET}/{run}", QUICK)
    for name in store.list_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(store.read(name))
    return target


def test_another_machine_goes_on_bit_for_bit(folder: Path, moved: Path) -> None:
    assert sorted(path.name for path in moved.iterdir()) == OF_RUN
    # The files are those of a run in a folder, which verify.
    steps = sorted(path.name for path in (moved / "checkpoints").iterdir())
    assert steps == ["LATEST", "step-000000004", "step-000000006"]
    verify(moved / "checkpoints" / "step-000000006")
    assert losses(moved) == losses(folder / "whole")
    assert_equal_weights(moved, folder / "whole")
    assert "--out s3://bucket/moved" in (moved / "commands.txt").read_text()


def test_what_an_earlier_start_left_on_the_host_reaches_the_store(server: S3Server) -> None:
    url = f"s3://{BUCKET}/left"
    first = RemoteRun(url, QUICK)
    first.fetch()
    (first.folder / "log.txt").write_text("one\n")
    first.push()
    # Ended before the next push: by its watchdog, or with events that were not flushed.
    (first.folder / "hang-rank0.txt").write_text("stacks\n")
    (first.folder / "log.txt").write_text("one\ntwo\n")
    second = RemoteRun(url, QUICK)
    second.fetch()
    second.push()
    store = ObjectStore(url, QUICK)
    assert store.read("hang-rank0.txt") == b"stacks\n"
    assert store.read("log.txt") == b"one\ntwo\n"


def test_commands_read_a_run_in_a_store(
    folder: Path, moved: Path, server: S3Server, tmp_path: Path
) -> None:
    url, wanted = "s3://bucket/moved", library.load(str(folder / "whole"))
    server.requests.clear()
    found = library.load(url)
    assert found.facts == {**wanted.facts, "path": url}
    fetched = [path for method, path in server.requests if method == "GET"]
    assert any("model.safetensors" in path for path in fetched)
    assert not any("optimizer" in path for path in fetched)
    server.requests.clear()
    library.load(url)  # its copy is still the same
    assert not any("safetensors" in path for _, path in server.requests)
    older = library.load(f"{url}/checkpoints/step-000000004")
    assert older.facts["step"] == 4 and older.facts["sha256"] != wanted.facts["sha256"]
    for name in (f"{url}/checkpoints/step-000000005", f"{url}/checkpoints/best"):
        with pytest.raises(UserError, match="no finished checkpoint"):
            library.load(name)
    with pytest.raises(UserError, match="no run there"):
        library.load("s3://bucket/none")

    variables = on_host(server, tmp_path / "cache")
    (folder / "suite.yaml").write_text(
        write_yaml({"name": "tiny", "sets": [{"name": "set", "shards": "data"}]})
    )
    suite = ("eval", "suite.yaml", "--model")
    refused = mmalign(*suite, url, folder=folder, variables=variables, expect=1)
    assert "say where with --out" in refused.stderr
    for out, model in (("there", url), ("here", "whole")):
        mmalign(*suite, model, "--out", out, folder=folder, variables=variables)
    there, here = (json.loads((folder / n / "results.json").read_text()) for n in ("there", "here"))
    assert there["metrics"] == here["metrics"]
    assert there["model"]["path"] == url
    refused = mmalign("export", url, folder=folder, variables=variables, expect=1)
    assert "nothing is exported to a URL" in refused.stderr
    source = read_source(local_path(url))  # what an export is made of
    assert source.tower.facts["sha256"] == read_source(folder / "whole").tower.facts["sha256"]
    assert source.lineage["run"]["steps"] == 6


def test_another_run_starts_from_one_in_a_store(
    folder: Path, stopped: Path, moved: Path, server: S3Server, tmp_path: Path
) -> None:
    url, variables = "s3://bucket/moved", on_host(server, tmp_path / "cache")
    command = ("train", "run.yaml", "optimizer.lr=1e-12", "steps=1")
    for out, start in (("of_url", url), ("of_folder", "whole")):
        changes = (f"init_from={start}", "init_optimizer=true", "--out", out)
        mmalign(*command, *changes, folder=folder, variables=variables)
    assert_equal_weights(folder / "of_url", folder / "of_folder")
    (newest,) = (folder / "of_url" / "checkpoints").glob("step-*")
    parent = json.loads((newest / "state.json").read_text())["parent"]
    assert parent["path"] == url and parent["manifest_sha256"]
    changes = (
        f"resume_from={url}",
        "steps=8",
        "optimizer.schedule=constant",
        "--out",
        "from_bucket",
    )
    done = mmalign("train", "run.yaml", *changes, folder=folder, variables=variables)
    assert "from step 6" in done.stdout


def save_and_be_killed(url: str, cache: str) -> list[dict[str, Any]]:
    """A save, then one that dies before each of its writes and deletions; what another host finds then."""

    class Killed(BaseException):
        pass

    engine = make_engine("contrastive", Way(0))
    config = CheckpointConfig(every=1, keep=1)
    found: list[dict[str, Any]] = []
    change = {name: getattr(ObjectStore, name) for name in ("write", "_delete")}
    for number in range(100):
        os.environ["MMALIGN_CACHE"] = f"{cache}/{number}"
        run = RemoteRun(f"{url}/{number}", QUICK)
        run.fetch()
        saver = Saver(run.folder / "checkpoints", config, FACTS, remote=run)
        engine.step(make_batch_for("contrastive", 2 * number))
        (run.folder / "metrics.jsonl").write_text("1")
        saver.save(engine, state(1))
        first = engine.digest()
        engine.step(make_batch_for("contrastive", 2 * number + 1))
        (run.folder / "metrics.jsonl").write_text("12")
        left = [number]

        def counted(name: str, left: list[int] = left) -> Any:
            def call(*arguments: Any) -> Any:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return change[name](*arguments)

            return call

        for name in change:
            setattr(ObjectStore, name, counted(name))
        killed = False
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                saver.save(engine, state(2))
        except (Killed, UserError):
            killed = True
        for name, method in change.items():
            setattr(ObjectStore, name, method)
        second = engine.digest()
        os.environ["MMALIGN_CACHE"] = f"{cache}/{number}-other"
        other = RemoteRun(f"{url}/{number}", QUICK)
        other.fetch()
        (there,) = (other.folder / "checkpoints").iterdir()
        engine.restore(there, int(there.name[5:]))
        is_right = engine.digest() == {1: first, 2: second}[int(there.name[5:])]
        saver = Saver(other.folder / "checkpoints", config, FACTS, remote=other)
        saver.save(engine, state(3))
        names = sorted(ObjectStore(f"{url}/{number}", QUICK).list_files("checkpoints"))
        found.append({"step": there.name, "right": is_right, "killed": killed, "names": names})
        if not killed:
            return found
    raise AssertionError("it never ended")


def test_a_kill_between_any_two_requests_leaves_a_complete_checkpoint(
    server: S3Server, tmp_path: Path
) -> None:
    arguments = ("s3://bucket/killed", str(tmp_path / "hosts"))
    variables = {**os.environ, **server.environment}
    (found,) = run_ranks(1, with_environment, tmp_path, variables, "save_and_be_killed", *arguments)
    steps = [one["step"] for one in found]
    # Three files and the small one, then the manifest: from there on it is the newest.
    assert steps == ["step-000000001"] * 5 + ["step-000000002"] * (len(steps) - 5)
    assert len(steps) > 10
    for one in found:
        assert one["right"]
        # The next save removes what was left.
        assert {name.split("/")[1] for name in one["names"]} == {"LATEST", "step-000000003"}


def with_environment(variables: dict[str, str], function: str, *arguments: Any) -> Any:
    """A function of this module, in a rank whose server process was started with another environment."""
    os.environ.update(variables)
    remote.FIRST_WAIT = 0.01
    return globals()[function](*arguments)


def train_on_two_hosts(run_file: str, url: str, caches: str, *steps: int) -> None:
    """A run on two ranks, of which each has folders of its own."""
    from mmalign.core.config import load_config
    from mmalign.training.loop import train
    from mmalign.training.run_config import RunConfig

    os.environ["MMALIGN_CACHE"] = f"{caches}/{distributed.rank()}"
    run_config = load_config(RunConfig, Path(run_file))
    train(run_config, RemoteRun(url, run_config.data.remote), *steps)


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> Path:
    """A run file for two ranks, and its run in a folder."""
    tree = config(folder / "data", engine={"precision": "fp32", "zero_stage": 2})
    tree["checkpoint"] = {"every": 3, "asynchronous": True}
    file = folder / "remote_ranks.yaml"
    file.write_text(write_yaml(tree))
    mmalign("train", file.name, "--out", "remote_ranks", ranks=2, folder=folder)
    return file


def test_two_hosts_that_share_no_folder_train_resume_and_are_killed(
    folder: Path, two_ranks: Path, server: S3Server, tmp_path: Path
) -> None:
    url, environment = "s3://bucket/two", {**os.environ, **server.environment}
    arguments = (environment, "train_on_two_hosts", str(two_ranks), url)
    run_ranks(2, with_environment, tmp_path / "a", *arguments, str(tmp_path / "first"), 3)
    # The second one dies in its save, when rank 1 has uploaded nothing yet.
    server.refuse = lambda method, path: 403 if is_moments_of_rank_1(method, path) else None
    with pytest.raises(AssertionError, match="refused"):
        run_ranks(2, with_environment, tmp_path / "b", *arguments, str(tmp_path / "second"))
    server.refuse = lambda method, path: None
    left = ObjectStore(url, QUICK).list_files("checkpoints")
    assert "checkpoints/step-000000006/model.safetensors" in left
    assert "checkpoints/step-000000006/MANIFEST.json" not in left
    run_ranks(2, with_environment, tmp_path / "c", *arguments, str(tmp_path / "third"))
    found = copy_of("two", tmp_path / "copy")
    assert losses(found) == losses(folder / "remote_ranks")
    assert_equal_weights(found, folder / "remote_ranks")
    files = {path.name for path in (found / "checkpoints" / "step-000000006").iterdir()}
    assert {"optimizer-rank00000.safetensors", "optimizer-rank00001.safetensors"} <= files


def is_moments_of_rank_1(method: str, path: str) -> bool:
    return method == "PUT" and path.endswith("step-000000006/optimizer-rank00001.safetensors")


def resumed(server: S3Server, folder: Path, name: str, cache: Path, *changes: str) -> Done:
    command = ("train", "run.yaml", "--out", f"s3://bucket/{name}", *changes)
    return run_command(command, folder, variables=on_host(server, cache))


def clone(moved: Path, name: str) -> ObjectStore:
    store = ObjectStore(f"s3://bucket/{name}", QUICK)
    for path in moved.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(moved).as_posix(), path)
    return store


def test_a_store_that_fails_now_and_then_is_asked_again(
    folder: Path, server: S3Server, tmp_path: Path
) -> None:
    seen: set[tuple[str, str]] = set()

    def first_time(method: str, path: str) -> int | None:
        is_new = (method, path) not in seen
        seen.add((method, path))
        return 503 if is_new and method in ("PUT", "DELETE") else None

    server.refuse = first_time
    try:
        done = resumed(server, folder, "flaky", tmp_path / "host")
    finally:
        server.refuse = lambda method, path: None
    assert done.returncode == 0, done.stderr
    assert_equal_weights(copy_of("flaky", tmp_path / "copy"), folder / "whole")


def test_what_the_store_refuses_is_one_sentence(
    folder: Path, moved: Path, server: S3Server, tmp_path: Path
) -> None:
    clone(moved, "refused")
    for method, end, sentences in (
        ("PUT", "step-000000008/MANIFEST.json", ["could not be written", "step-000000006 is comp"]),
        ("GET", "step-000000006/MANIFEST.json", ["refused"]),  # and no older one instead
        ("PUT", "", ["refused (PermissionError)", "check the credentials"]),
    ):
        server.refuse = lambda m, path, method=method, end=end: (  # type: ignore[misc]
            403 if m == method and path.endswith(end) else None
        )
        try:
            changes = ("steps=8", "--change", "steps")
            done = resumed(server, folder, "refused", tmp_path / end, *changes)
        finally:
            server.refuse = lambda method, path: None
        assert done.returncode == 1
        assert all(one in done.stderr for one in sentences), done.stderr
        assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_is_skipped_and_no_run_starts_from_scratch_by_accident(
    folder: Path, moved: Path, server: S3Server, tmp_path: Path
) -> None:
    store = clone(moved, "damaged")
    name = "checkpoints/step-000000006/optimizer-rank00000.safetensors"
    data = store.read(name)
    store.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    done = resumed(server, folder, "damaged", tmp_path / "host")
    assert done.returncode == 0, done.stderr
    assert "skipped: s3://bucket/damaged/checkpoints/step-000000006" in done.stderr
    assert "from step 4" in done.stdout
    assert_equal_weights(copy_of("damaged", tmp_path / "copy"), folder / "whole")
    for files in (["step-000000006/model.safetensors"], list(store.list_files("checkpoints"))):
        store = clone(moved, "gone")
        store.remove(f"checkpoints/step-00000000{n}/MANIFEST.json" for n in (4,))
        store.remove([f"checkpoints/{files[0]}"] if len(files) == 1 else files[1:])
        done = resumed(server, folder, "gone", tmp_path / "host2")
        assert done.returncode == 1
        assert "no checkpoint that can be used" in done.stderr


def keep_some(url: str) -> None:
    """Ten checkpoints, of which the third and the fifth were the best so far."""
    run = RemoteRun(url, QUICK)
    run.fetch()
    config = CheckpointConfig(every=1, keep=2, keep_every=4)
    saver = Saver(run.folder / "checkpoints", config, FACTS, remote=run)
    engine = make_engine("contrastive", Way(0))
    for step in range(1, 11):
        saver.save(engine, state(step, 0.5), is_best=step in (3, 5))


def test_old_checkpoints_are_deleted_and_the_best_is_kept(server: S3Server, tmp_path: Path) -> None:
    url = "s3://bucket/pruned"
    store = ObjectStore(url, QUICK)
    store.write("checkpoints/step-000000001-good/model.safetensors", b"a person's copy")
    variables = {**os.environ, **server.environment}
    run_ranks(1, with_environment, tmp_path, variables, "keep_some", url)
    kept = {name.split("/")[1] for name in store.list_files("checkpoints")}
    of_run = {f"step-{n:09d}" for n in (4, 5, 8, 9, 10)}
    assert kept == {*of_run, "LATEST", "best", "step-000000001-good"}
    store.write("config.yaml", b"{}")
    assert local_path(f"{url}/checkpoints/best").name == "step-000000005"
    assert local_path(url).name == "step-000000010"
