"""The plan: every image once, or as often as the weights say, in windows whose size changes nothing else."""

import json
import shutil
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from frozen_towers import BROKEN, make_set_to_embed
from frozen_towers import SAMPLES as SAMPLES_TO_EMBED
from shard_sets import SetOnPaper, make_set, plan_on_paper
from tiny import tiny_tokenizer

from mmalign.core.config import validate
from mmalign.data.preprocess import Augmentation, Preprocess
from mmalign.data.shards.columns import Shard
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import MANIFEST
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.scan import Rules
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader
from mmalign.data.stream.order import NEAR_ATTEMPTS, GlobalOrder, open_sets

SAMPLES = 50  # 13 shards of 4, the last one of 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "train", SAMPLES)


def plan(*folders: Path | dict[str, Any], seed: int = 3, **fields: Any) -> GlobalOrder:
    train = [str(folder) if isinstance(folder, Path) else folder for folder in folders]
    config = validate(DataConfig, {"train": train, **fields}, "test")
    return GlobalOrder(open_sets(config), config, seed)


@pytest.mark.parametrize("shuffle_shards", [1, 3, 12, 13, 64])
def test_an_epoch_holds_every_image_once(folder: Path, shuffle_shards: int) -> None:
    made = plan(folder, shuffle_shards=shuffle_shards)
    epochs = [made.order(epoch) for epoch in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(SAMPLES))
    assert not (epochs[0] == epochs[1]).all()
    asked = [made.sample_at(position) for position in range(3 * SAMPLES)]
    assert asked == np.concatenate(epochs).tolist()
    # Any place can be asked for at any time.
    for position in (149, 3, 77, 4, 148, 50):
        assert plan(folder, shuffle_shards=shuffle_shards).sample_at(position) == asked[position]


@pytest.mark.parametrize("fields", [{}, {"language_temperature": 2.0}])
@pytest.mark.parametrize("shuffle_shards", [1, 64])
def test_a_shard_without_a_sample_has_no_place(
    tmp_path: Path, fields: dict[str, Any], shuffle_shards: int
) -> None:
    good = make_set(tmp_path / "good", 12)
    data = tmp_path / "indexed"
    data.mkdir()
    for number, tar in enumerate(sorted(good.glob("*.tar"))):
        shutil.copy(tar, data / f"{2 * number:05d}.tar")
    (data / "00001.tar").write_bytes(bytes(range(256)) * 20)
    index(str(data), Rules("txt", "en"))
    made = plan(data, shuffle_shards=shuffle_shards, **fields)
    assert 0 in [shard.samples for shard in made.sets[0].manifest.shards]
    assert sorted(made.order(0).tolist()) == list(range(12))


def test_a_window_reads_only_its_shards(folder: Path) -> None:
    made = plan(folder, shuffle_shards=3)
    order, shards = made.order(1), windows(made)
    assert sorted(shard for window in shards for shard in window) == list(range(13))
    assert {len(window) for window in shards} == {2, 3}
    parts = np.split(order, made._group_epoch(1, 0).ends_W[:-1])
    assert [sorted(set((part // 4).tolist())) for part in parts] == shards
    assert (np.diff(order) != 1).mean() > 0.7


def test_a_window_is_fetched_before_its_indexes_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(folder, shuffle_shards=3, language_temperature=2.0)
    asked: list[int] = []
    read: list[tuple[int, int]] = []
    languages_in = ShardSet.languages_in

    def note(self: ShardSet, number: int) -> list[tuple[str, ...]]:
        read.append((number, len(asked)))
        return languages_in(self, number)

    monkeypatch.setattr(ShardSet, "prefetch", lambda self, numbers, by_range: asked.extend(numbers))
    monkeypatch.setattr(ShardSet, "languages_in", note)
    made.sample_at(len(made))
    first, second = windows(made)[:2]
    assert asked == first + second
    assert read == [(number, len(asked)) for number in first]


def test_a_run_without_pictures_differs_where_one_does_not_decode_and_nowhere_else(
    tmp_path: Path,
) -> None:
    data = make_set_to_embed(tmp_path / "train")
    config = validate(DataConfig, {"train": [str(data)]}, "test")
    shared = (GlobalOrder(open_sets(config), config, seed=3), config, tiny_tokenizer(), 32)
    seeing = BatchLoader(*shared, Preprocess(32, Augmentation()), 1, 0, 1)
    reading = BatchLoader(*shared, None, 1, 0, 1)
    differing = []
    for position in range(3 * SAMPLES_TO_EMBED):
        one, other = seeing.make(position), reading.make(position)
        assert not other.unusable
        if one.unusable:
            differing.append((one.unusable[0].key, *other.key_B))
            assert one.key_B != other.key_B
        else:
            assert one.key_B == other.key_B
            assert one.token_NL.equal(other.token_NL)
    assert differing == 3 * [(f"k{BROKEN:03d}", f"k{BROKEN:03d}")]  # once an epoch


def test_a_window_of_a_sorted_set_is_made_up_like_the_whole() -> None:
    # 64 shards of four sources in a row, 16 each; 8 windows of 8 shards.
    made = plan_on_paper([["en"] * 10] * 64, shuffle_shards=8)
    for epoch in range(3):
        order = made.order(epoch)
        assert sorted(order.tolist()) == list(range(640))
        for part in np.split(order, 8):
            assert np.bincount(part // 160).tolist() == [20] * 4
    assert not (made.order(0) == made.order(1)).all()


def test_data_in_one_window_keep_the_order_of_versions_without_windows(folder: Path) -> None:
    made = plan(folder)
    assert made.shuffle == "full"
    rng = np.random.default_rng((3, 0, 5))
    assert (made.order(5) == rng.permutation(SAMPLES)).all()
    assert plan(folder, shuffle_shards=12).shuffle == "windows of 12 shards"
    weighted = plan(folder, language_temperature=4.0)
    rng = np.random.default_rng((3, 0, 5))
    offset = rng.uniform()
    weights = weighted.mixture.weights
    assert weights is not None
    weight = [sum(weights[lang] for lang in s) for s in weighted.sets[0].languages]
    edges = np.cumsum(weight) / np.sum(weight) * SAMPLES + offset
    edges[-1] = SAMPLES + offset
    repeats = np.diff(np.floor([0.0, *edges])).astype(int)
    assert (weighted.order(5) == rng.permutation(np.repeat(np.arange(SAMPLES), repeats))).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"language_temperature": 5.0},
        {"language_floor": 0.3},
        {"language_cap": 0.4},
        {"languages": ["sw", "ja"], "language_temperature": 2.0},
    ],
)
def test_weights_draw_each_sample_as_expected_however_large_a_window(
    folder: Path, fields: dict[str, Any]
) -> None:
    whole = plan(folder, **fields)
    weights = whole.mixture.weights
    assert weights is not None
    weight = np.array([sum(weights.get(x, 0) for x in langs) for langs in whole.sets[0].languages])
    expected = weight / weight.sum() * len(whole)
    for epoch in range(5):
        drawn = np.bincount(whole.order(epoch), minlength=SAMPLES)
        assert (drawn >= np.floor(expected - 1e-9)).all()
        assert (drawn <= np.ceil(expected + 1e-9)).all()
        for shards in (1, 5):
            parts = plan(folder, shuffle_shards=shards, **fields)
            assert (np.bincount(parts.order(epoch), minlength=SAMPLES) == drawn).all()


def test_sets_are_drawn_by_their_weights(folder: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", 25, lambda i: ("en",))
    made = plan(folder, {"path": str(other), "weight": 4}, shuffle_shards=5)
    assert len(made) == 75
    # 50 images of weight 1 and 25 of weight 4 share 75 draws: half a draw each, and two.
    for epoch in range(5):
        drawn = np.bincount(made.order(epoch), minlength=75)
        assert drawn[:50].sum() == 25
        assert set(drawn[:50]) == {0, 1}
        assert set(drawn[50:]) == {2}
    located = [made.locate(sample) for sample in (0, 49, 50, 74)]
    assert located == [(0, 0), (0, 49), (1, 0), (1, 24)]
    assert plan(folder, other).mixture.is_even


def test_images_without_a_wanted_caption_have_no_place(folder: Path, tmp_path: Path) -> None:
    made = plan(folder, languages=["ja"], shuffle_shards=2)
    wanted = [n for n, langs in enumerate(made.sets[0].languages) if "ja" in langs]
    assert len(made) == len(wanted)
    assert sorted(made.order(0).tolist()) == wanted
    bare = make_set(tmp_path / "bare", 9, lambda i: ("en",) if i % 3 else ())
    assert sorted(plan(bare).order(0).tolist()) == [1, 2, 4, 5, 7, 8]
    # A manifest of before says nothing of captions that lack: the indexes do.
    tree = json.loads((bare / MANIFEST).read_text())
    for shard in tree["shards"]:
        del shard["captioned"]
    (bare / MANIFEST).write_text(json.dumps(tree))
    assert sorted(plan(bare).order(0).tolist()) == [1, 2, 4, 5, 7, 8]


def test_substitutes_come_from_the_window_and_then_from_anywhere(folder: Path) -> None:
    made, again = plan(folder, shuffle_shards=2), plan(folder, shuffle_shards=2)
    order = made.order(1)
    ends = np.cumsum([sum(len(range(4 * s, min(4 * s + 4, 50))) for s in w) for w in windows(made)])
    near, far = Counter[bool](), Counter[bool]()
    for place in range(SAMPLES):
        window = int(np.searchsorted(ends, place, side="right"))
        inside = set(order[ends[window - 1] if window else 0 : ends[window]].tolist())
        for attempt in range(1, 2 * NEAR_ATTEMPTS):
            sample = made.sample_at(SAMPLES + place, attempt)
            assert again.sample_at(SAMPLES + place, attempt) == sample
            (near if attempt <= NEAR_ATTEMPTS else far)[sample in inside] += 1
    assert set(near) == {True}
    assert far[False] > far[True] > 0


def windows(made: GlobalOrder) -> list[list[int]]:
    """The shards of each window of epoch 1."""
    return [sorted(visit.shard for visit in window) for window in made.visits(1, 0)]


@pytest.mark.parametrize("fields", [{}, {"language_floor": 0.3, "language_temperature": 3.0}])
def test_an_epoch_of_large_data_takes_no_more_than_their_counts(fields: dict[str, Any]) -> None:
    """100 million samples in 10,000 shards."""
    large = SetOnPaper([])
    rows = [
        Shard(f"{n}.tar", 10_000, 10_000, {("en", "sw")[n % 2]: 10_000}, captioned=10_000)
        for n in range(10_000)
    ]
    large.manifest = replace(large.manifest, shards=tuple(rows))
    # Of these shards there is no index to weigh single samples by.
    large.languages_in = lambda number: [(("en", "sw")[number % 2],)] * 10_000  # type: ignore[method-assign]
    config = validate(DataConfig, {"train": ["x"], **fields}, "test")
    tracemalloc.start()
    made = GlobalOrder([cast(ShardSet, large)], config, seed=0)
    started = time.process_time()  # not wall time: other processes may be running
    seen = {made.sample_at(epoch * len(made) + 12_345_678) for epoch in range(2)}
    seconds = (time.process_time() - started) / 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == 100_000_000
    assert len(seen) == 2
    assert peak < 100e6
    assert seconds < 5  # some tenths of a second, where nothing else runs
