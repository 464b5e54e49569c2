"""What a bucket holds is not trusted: a manifest names files of its own folder, with valid facts."""

import json
from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.data.storage.object_store import ObjectStore
from mmalign.data.storage.remote import RemoteConfig
from mmalign.models.stored_run import StoredRun, local_path

GOOD = {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    made = ObjectStore(f"file://{tmp_path}/run", RemoteConfig())
    made.write("config.yaml", b"{}")
    for step in (1, 2):
        write_step(made, step, {"files": {"model": GOOD, "optimizer-rank00000": GOOD}})
    return made


def write_step(store: ObjectStore, step: int, manifest: object) -> None:
    folder = f"checkpoints/step-{step:09d}"
    for name in ("model", "optimizer-rank00000"):
        store.write(f"{folder}/{name}", b"abc")
    store.write(f"{folder}/MANIFEST.json", json.dumps(manifest).encode())


def test_the_newest_checkpoint_is_copied_without_its_moments(store: ObjectStore) -> None:
    found = local_path(store.url)
    assert sorted(path.name for path in found.iterdir()) == ["MANIFEST.json", "model"]
    assert found.name == "step-000000002"
    with_moments = local_path(store.url, moments=True)
    assert with_moments == found and (found / "optimizer-rank00000").read_bytes() == b"abc"
    assert local_path("runs/demo") == Path("runs/demo")


@pytest.mark.parametrize(
    "manifest",
    [
        {"files": {"../../evil": GOOD}},
        {"files": {"model": {**GOOD, "sha256": "x"}}},
        {"files": {"model": {**GOOD, "size": 4}}},
        {"files": {"model": {**GOOD, "sha256": "0" * 64}}},
        {"files": {"none": GOOD}},
        {"files": 5},
        [],
    ],
)
def test_a_damaged_or_hostile_manifest_is_skipped(
    store: ObjectStore, manifest: object, capsys: pytest.CaptureFixture[str]
) -> None:
    write_step(store, 2, manifest)
    assert local_path(store.url).name == "step-000000001"
    assert "skipped: file://" in capsys.readouterr().err
    assert not list(Path(store.url.removeprefix("file://")).parent.rglob("evil"))


def test_a_step_is_a_name_and_no_path(store: ObjectStore) -> None:
    for name in ("../config.yaml", "step-000000003", "best", "step-x"):
        with pytest.raises(UserError, match="no finished checkpoint"):
            local_path(f"{store.url}/checkpoints/{name}")


def test_markers_alone_are_no_checkpoint(store: ObjectStore) -> None:
    store.remove(f"checkpoints/step-{step:09d}/MANIFEST.json" for step in (1, 2))
    with pytest.raises(UserError, match="no checkpoint was finished there"):
        local_path(store.url)
    store.write("checkpoints/LATEST", b"step-000000002\n")
    with pytest.raises(UserError, match="no checkpoint that can be used"):
        StoredRun(store.url, RemoteConfig()).fetch_newest(Path("nowhere"))
