"""Writing features: the same from any ranks and after any stops; every row is finite."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_towers import BROKEN, SAMPLES, frozen_tower, make_set_to_embed
from ranks import run_ranks
from shard_sets import make_pair, write_set

from mmalign.core.commit import sha256_of
from mmalign.core.errors import UserError
from mmalign.evaluation import feature_cache
from mmalign.evaluation.feature_cache import describe_tower, write_features


def contents(data: Path) -> dict[str, bytes]:
    (folder,) = (data / "features").iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def embed_on_rank(data: Path) -> dict[str, Any]:
    return write_features(frozen_tower(), data, workers=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = make_set_to_embed(tmp_path_factory.mktemp("made") / "train")
    write_features(frozen_tower(), data, workers=0)
    return data


def test_what_is_written_says_what_it_is(made: Path) -> None:
    (folder,) = (made / "features").iterdir()
    facts = json.loads((folder / "features.json").read_text())
    assert folder.name == describe_tower(frozen_tower()).key
    assert facts["rows"] == SAMPLES
    assert facts["unusable"] == {"does not decode": 1}
    assert facts["data_sha256"] == sha256_of(made / "manifest.json")
    assert len(facts["files"]) == 2 * 4
    assert all(sha256_of(folder / n)[:9] == f["sha256"][:9] for n, f in facts["files"].items())
    rows = [np.load(folder / f"0000{number}.npy") for number in range(4)]
    assert [len(part) for part in rows] == [4, 4, 4, 2]
    every_row = np.concatenate(rows)
    assert np.isfinite(every_row).all()
    assert np.flatnonzero(~every_row.any(1)).tolist() == [BROKEN]


def test_ranks_and_workers_change_nothing(made: Path, tmp_path: Path) -> None:
    by_ranks = make_set_to_embed(tmp_path / "ranks" / "train")
    first, second = run_ranks(2, embed_on_rank, tmp_path / "store", by_ranks)
    assert first == second
    by_workers = make_set_to_embed(tmp_path / "workers" / "train")
    write_features(frozen_tower(), by_workers, workers=2)
    assert contents(by_ranks) == contents(by_workers) == contents(made)


def test_shards_that_are_there_are_not_made_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(made, tmp_path / "train"))
    (folder,) = (data / "features").iterdir()
    seen: list[int] = []
    real = feature_cache._features

    def counted(tower: Any, batch: Any, where: str) -> np.ndarray:
        seen.append(len(batch))
        return real(tower, batch, where)

    monkeypatch.setattr(feature_cache, "_features", counted)
    write_features(frozen_tower(), data, workers=0)
    assert seen == []  # all is there
    # As a kill in the second shard would leave it: rows without a record do not count.
    (folder / "features.json").unlink()
    (folder / "00001.json").unlink()
    (folder / ".00001.npy.tmp-0").write_bytes(b"half")
    write_features(frozen_tower(), data, workers=0)
    assert seen == [4]
    assert contents(data) == contents(made)
    # A data set that grew: its last shard is another, and one is new.
    pairs = [make_pair(number, ("en", "sw")) for number in range(SAMPLES + 4)]
    grown = write_set(tmp_path / "grown", pairs)
    assert (grown / "00000.tar").read_bytes() == (data / "00000.tar").read_bytes()
    shutil.move(data / "features", grown)
    write_features(frozen_tower(), grown, workers=0)
    assert seen[1:] == [4, 4, 2]  # shard 1, whose broken image was fixed, 3 and 4


def test_a_feature_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    data, tower = make_set_to_embed(tmp_path / "train", 4, broken=False), frozen_tower()
    forward = tower.trunk.forward
    tower.trunk.forward = lambda pixels: 1e6 * forward(pixels)  # type: ignore[method-assign]
    with pytest.raises(
        UserError, match=r"00000\.tar, sample 0 or one behind it: its feature is not finite"
    ):
        write_features(tower, data, workers=0)
    (folder,) = (data / "features").iterdir()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    data = make_set_to_embed(tmp_path / "train", 4, broken=False)
    (data / "features").write_text("in the way")
    with pytest.raises(UserError, match=r"train/features/\w+-\w+: Not a directory; "):
        write_features(frozen_tower(), data, workers=0)


def test_what_was_trained_since_is_another_tower() -> None:
    tower = frozen_tower()
    before = describe_tower(tower)
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-6
    assert describe_tower(tower).key != before.key
    assert describe_tower(tower).preprocessing == before.preprocessing
