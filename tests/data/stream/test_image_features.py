"""Features in place of pixels: what is read is what this tower made of this data, or is refused."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_towers import BROKEN, SAMPLES, from_pixels, frozen_tower, make_set_to_embed
from shard_sets import make_image, make_pair, write_set
from tiny import tiny_tokenizer

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data import images
from mmalign.data.append import grow
from mmalign.data.shards.reader import ShardSet, UnusableSample
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.stream import image_features as features
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.image_features import FeatureSet, open_features
from mmalign.data.stream.loader import BatchLoader
from mmalign.data.stream.order import GlobalOrder, open_sets
from mmalign.evaluation.feature_cache import describe_tower, write_features
from mmalign.models.image_tower import ImageTower


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    return frozen_tower()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tower: ImageTower) -> Path:
    data = make_set_to_embed(tmp_path_factory.mktemp("made") / "train")
    write_features(tower, data, workers=0)
    return data


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "train"))


def opened(data: Path, tower: ImageTower) -> FeatureSet:
    return open_features(ShardSet(data), describe_tower(tower))


def folder_of(data: Path) -> Path:
    (folder,) = (data / "features").iterdir()
    return folder


def test_a_row_is_what_the_tower_makes_of_the_picture(made: Path, tower: ImageTower) -> None:
    found = opened(made, tower)
    for index in (0, 3, 4, SAMPLES - 1):
        row_F = found.read(index)
        assert row_F.shape == (tower.width,)
        assert row_F.dtype == torch.float16
        expected_F = from_pixels(tower, made, index)
        np.testing.assert_allclose(row_F.float().numpy(), expected_F, rtol=2e-3, atol=1e-4)
    again = pickle.loads(pickle.dumps(found))  # as a loader's worker gets it
    assert again.read(2).equal(found.read(2))
    found.rows.close()


def test_few_shards_are_kept_open(made: Path, tower: ImageTower) -> None:
    truth = [opened(made, tower).read(index) for index in (0, 4, 8, 12)]
    found = opened(made, tower)
    found.rows.most = 2
    for _ in range(2):
        assert [found.read(i).tolist() for i in (0, 4, 8, 12)] == [t.tolist() for t in truth]
        assert len(found.rows._values) == 2


def test_features_of_a_set_that_has_grown_serve_what_it_was_before(
    data: Path, tower: ImageTower
) -> None:
    before = ShardSet(data).manifest.sha256
    row_F = opened(data, tower).read(2)
    new = write_set(data.parent / "new", [make_pair(n, ("de",)) for n in range(90, 93)])
    for name in ("00000.tar", "00000.index.jsonl"):
        shutil.copy(new / name, data / f"9{name[1:]}")
    tree = json.loads((new / "manifest.json").read_text())
    for shard in tree["shards"]:
        shard["file"] = "90000.tar"
    files = {f"9{n[1:]}": facts for n, facts in tree.pop("files").items() if n[0] == "0"}
    grow(data, tree, files)
    identity = describe_tower(tower)

    # Made before it grew: they serve a run from then, and no new one.
    assert open_features(ShardSet(data, as_of=before), identity).read(2).equal(row_F)
    with pytest.raises(UserError, match="made from other data"):
        opened(data, tower)
    made_before = (folder_of(data) / "00000.npy").stat().st_mtime_ns
    write_features(tower, data, workers=0)
    assert (folder_of(data) / "00000.npy").stat().st_mtime_ns == made_before  # not made again
    assert open_features(ShardSet(data, as_of=before), identity).read(2).equal(row_F)
    assert opened(data, tower).read(SAMPLES + 2).isfinite().all()


def test_a_picture_that_could_not_be_used_is_named(made: Path, tower: ImageTower) -> None:
    with pytest.raises(UnusableSample, match=r"00001\.tar, sample `k005`") as caught:
        opened(made, tower).read(BROKEN)
    assert caught.value.reason == "does not decode"


def test_why_a_picture_could_not_be_used_is_kept(
    tmp_path: Path, tower: ImageTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 40_000)
    large = replace(make_pair(0, ("en",)), image=make_image(0, size=201))
    data = write_set(tmp_path / "train", [large, make_pair(1, ("en",))])
    assert write_features(tower, data, workers=0)["unusable"] == {"too many pixels": 1}
    with pytest.raises(UnusableSample) as caught:
        opened(data, tower).read(0)
    assert (caught.value.reason, caught.value.key) == ("too many pixels", "k000")


def test_batches_hold_rows_for_pixels_and_the_same_captions(tmp_path: Path) -> None:
    tower, data = frozen_tower(), make_set_to_embed(tmp_path / "train", broken=False)
    write_features(tower, data, workers=0)
    config = validate(DataConfig, {"train": [str(data)], "image_features": True}, "test")
    plan = GlobalOrder(open_sets(config), config, seed=3)
    shared = (plan, config, tiny_tokenizer(), 32, features.plain_view(32), 4, 0, 1)
    pixels = BatchLoader(*shared).make(1)
    rows = BatchLoader(*shared, features=[opened(data, tower)]).make(1)
    assert rows.image_BCHW is None
    assert rows.feature_BF is not None
    assert rows.key_B == pixels.key_B
    assert rows.token_NL.equal(pixels.token_NL)
    assert pixels.image_BCHW is not None
    with torch.no_grad():
        expected_BF = tower(pixels.image_BCHW)
    torch.testing.assert_close(rows.feature_BF.float(), expected_BF, rtol=2e-3, atol=1e-4)
    part = rows.part(1, 3)
    assert part.feature_BF is not None
    assert part.feature_BF.equal(rows.feature_BF[1:3])


def test_what_cannot_be_used_has_the_same_substitutes(made: Path, tower: ImageTower) -> None:
    config = validate(DataConfig, {"train": [str(made)], "image_features": True}, "test")
    plan = GlobalOrder(open_sets(config), config, seed=3)
    shared = (plan, config, tiny_tokenizer(), 32, features.plain_view(32), 7, 0, 1)
    pixels, rows = BatchLoader(*shared), BatchLoader(*shared, features=[opened(made, tower)])
    refused = 0
    for step in range(4):
        one, other = pixels.make(step), rows.make(step)
        assert one.key_B == other.key_B
        assert one.token_NL.equal(other.token_NL)
        assert one.unusable == other.unusable
        refused += len(one.unusable)
    assert refused >= 2  # once an epoch


def test_augmentation_and_features_exclude_each_other() -> None:
    tree = {"train": ["x"], "image_features": True, "augmentation": {"flip": True}}
    with pytest.raises(UserError, match="`image_features` were made of unchanged images"):
        validate(DataConfig, tree, "test")


def test_other_towers_and_other_data_are_refused(data: Path, tower: ImageTower) -> None:
    with pytest.raises(UserError, match="made with other weights"):
        opened(data, frozen_tower(seed=1))
    larger = frozen_tower(image_size=48)
    larger.load_state_dict(tower.state_dict())
    with pytest.raises(UserError, match=r"other preprocessing \(`size` is 32 there and 48 here\)"):
        opened(data, larger)
    other = write_set(data / "other", [make_pair(number, ("en",)) for number in range(SAMPLES)])
    shutil.move(data / "features", other)
    with pytest.raises(UserError, match=r"made from other data.*run `mmalign embed` again"):
        opened(other, tower)


def test_pixels_of_another_decoder_are_refused(
    data: Path, tower: ImageTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = features.plain_view(32)

    def other_view(size: int) -> object:
        return lambda picture, rng: real(picture, rng) // 2

    monkeypatch.setattr(features, "plain_view", other_view)
    with pytest.raises(UserError, match="another version of a library decodes or resizes images"):
        opened(data, tower)


def test_features_that_are_not_there_are_refused(data: Path, tower: ImageTower) -> None:
    folder = folder_of(data)
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match="its features are not finished; make them with"):
        opened(data, tower)
    shutil.rmtree(data / "features")
    with pytest.raises(UserError, match="no features of this run's image tower"):
        opened(data, tower)


def spoil(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_damaged_files_are_refused(data: Path, tower: ImageTower) -> None:
    folder, found = folder_of(data), opened(data, tower)
    spoil(folder / "00000.npy", -1)  # the last row of the shard
    found.read(0)
    with pytest.raises(UserError, match=r"00000\.npy: damaged, row 3 is not what was written"):
        found.read(3)
    spoil(folder / "00001.npy", 0)
    with pytest.raises(UserError, match=r"00001\.npy: damaged, it is no array of features"):
        found.read(4)
    spoil(folder / "00002.json", 30)
    with pytest.raises(UserError, match=r"00002\.json: damaged"):
        found.read(8)
    (folder / "00003.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"00003\.npy: missing or of another size"):
        opened(data, tower)
    (folder / "00003.json").unlink()
    with pytest.raises(
        UserError, match=r"00003\.json: cannot be read \(No such file or directory\)"
    ):
        found.read(12)
    (folder / "features.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(UserError, match=r"features\.json: damaged"):
        opened(data, tower)


def at_url(data: Path, cache: Path) -> ShardSet:
    return ShardSet(f"file://{data}", RemoteConfig(cache=str(cache), prefetch=0))


def test_features_at_a_url_are_fetched_like_shards(
    data: Path, tower: ImageTower, tmp_path: Path
) -> None:
    here, there = opened(data, tower), at_url(data, tmp_path / "cache")
    found = open_features(there, describe_tower(tower))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []  # when they are read
    for index in (0, 4, SAMPLES - 1):
        assert found.read(index).equal(here.read(index))
    again = pickle.loads(pickle.dumps(found))
    found.rows.close()
    shutil.rmtree(data / "features")
    assert again.read(1).equal(here.read(1))
    with pytest.raises(UserError, match=r"features\.json: no such file there.*uploaded with it"):
        open_features(there, describe_tower(tower))


def test_what_is_damaged_at_a_url_is_refused(data: Path, tower: ImageTower, tmp_path: Path) -> None:
    folder = folder_of(data)
    spoil(folder / "00000.npy", -1)
    found = open_features(at_url(data, tmp_path / "cache"), describe_tower(tower))
    with pytest.raises(UserError, match=r"00000\.npy: its sha256 is not the one"):
        found.read(0)
    facts = json.loads((folder / "features.json").read_text())
    for changed, complaint in (
        ({**facts, "data_sha256": "0" * 64}, "made from other data"),
        ({"files": facts["files"]}, r"features\.json: damaged"),
        ({}, r"features\.json: not a manifest"),
    ):
        (folder / "features.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=complaint):
            open_features(at_url(data, tmp_path / "cache"), describe_tower(tower))
