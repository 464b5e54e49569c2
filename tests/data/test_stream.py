"""The stream: every image once an epoch, the same whatever the ranks and workers, exact at any stop."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_sets import make_set
from tiny import tiny_tokenizer

from mmalign.batch import Batch
from mmalign.config import validate
from mmalign.data.languages import caption_weights
from mmalign.data.preprocess import Preprocess
from mmalign.data.reader import ShardSet
from mmalign.data.stream import (
    BatchMaker,
    DataConfig,
    Plan,
    batches,
    captions_of,
    drop_tokens,
    open_sets,
)
from mmalign.errors import UserError

SAMPLES = 22
PREPROCESS = Preprocess(8, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "train", SAMPLES)


def maker(
    folder: Path, rank: int = 0, world_size: int = 1, batch_size: int = 4, **fields: Any
) -> BatchMaker:
    config = validate(DataConfig, {"train": [str(folder)], **fields}, "test")
    plan = Plan(open_sets(config.train), config, seed=3)
    return BatchMaker(plan, config, tiny_tokenizer(), 32, PREPROCESS, batch_size, rank, world_size)


def keys(stream: list[Batch]) -> list[str]:
    return list(chain.from_iterable(batch.key_B for batch in stream))


def test_an_epoch_holds_every_image_once_and_epochs_differ(folder: Path) -> None:
    stream = keys(list(batches(maker(folder, batch_size=2), 0, 3 * SAMPLES // 2, workers=0)))
    epochs = [stream[i * SAMPLES : (i + 1) * SAMPLES] for i in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter({f"k{i:03d}": 1 for i in range(SAMPLES)})
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_workers_do_not_change_the_global_stream(
    folder: Path, world_size: int, workers: int
) -> None:
    options: dict[str, Any] = {
        "captions_per_image": 2,
        "augmentation": {"crop_scale": [0.5, 1.0], "flip": True},
    }
    truth = [maker(folder, **options).make(step) for step in range(9)]
    ranks = [
        list(batches(maker(folder, rank, world_size, **options), 0, 9, workers))
        for rank in range(world_size)
    ]
    for step, whole in enumerate(truth):
        parts = [ranks[rank][step] for rank in range(world_size)]
        assert tuple(chain.from_iterable(p.key_B for p in parts)) == whole.key_B
        assert tuple(chain.from_iterable(p.language_N for p in parts)) == whole.language_N
        assert torch.cat([p.image_BCHW for p in parts]).equal(whole.image_BCHW)
        assert torch.cat([p.picture_id_N for p in parts]).equal(whole.picture_id_N)
        assert all(p.state == whole.state for p in parts)


def test_a_stop_at_any_step_changes_nothing(folder: Path) -> None:
    whole = list(batches(maker(folder), 0, 12, workers=0))
    for stop in (1, 5, 6, 11):
        first = whole[stop - 1].state.position // 4
        assert first == stop
        rest = list(batches(maker(folder), first, 12, workers=2))
        assert keys(rest) == keys(whole[stop:])
        assert all(a.token_NL.equal(b.token_NL) for a, b in zip(rest, whole[stop:], strict=True))


def test_batches_are_padded_to_their_longest_caption(folder: Path) -> None:
    for batch in batches(maker(folder, captions_per_image=3), 0, 6, workers=0):
        assert batch.token_NL.shape == batch.mask_NL.shape
        assert int(batch.mask_NL.sum(1).max()) == batch.token_NL.shape[1]
        assert len(batch.language_N) == len(batch.token_NL) == len(batch.image_index_N)


def test_captions_of_an_image_come_in_different_languages_first(folder: Path) -> None:
    shards = ShardSet(folder)
    for batch in batches(maker(folder, captions_per_image=2), 0, 11, workers=0):
        for row, key in enumerate(batch.key_B):
            chosen = [
                lang
                for lang, i in zip(batch.language_N, batch.image_index_N.tolist(), strict=True)
                if i == row
            ]
            available = shards.languages[shards.keys.index(key)]
            assert len(chosen) == min(2, len(available))
            assert len(set(chosen)) == min(2, len(set(available)))


def test_language_temperature_draws_languages_as_stated(tmp_path: Path) -> None:
    # 40 images in en, 4 in sw, one caption each: T = 2 draws them as sqrt(40) : sqrt(4).
    folder = make_set(tmp_path / "train", 44, lambda i: ("en",) if i < 40 else ("sw",))
    plan = maker(folder, language_temperature=2.0).plan
    drawn: Counter[str] = Counter()
    for epoch in range(50):
        order = plan.order(epoch)
        assert len(order) == 44
        drawn.update(plan.languages_of(int(sample))[0] for sample in order)
    expected = 40**0.5 / (40**0.5 + 4**0.5)
    assert drawn["en"] / drawn.total() == pytest.approx(expected, abs=0.01)
    repeats = np.bincount(plan.order(0), minlength=44)
    assert repeats[40:].min() >= 2
    assert repeats[:40].min() == 0
    assert caption_weights({"en": 40, "sw": 4}, 1.0) == {"en": 1.0, "sw": 1.0}


def test_language_temperature_within_an_image(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "train", 20, lambda i: ("en", "sw") if i < 2 else ("en",))
    drawn: Counter[str] = Counter()
    for batch in batches(maker(folder, language_temperature=1000.0), 0, 500, workers=0):
        drawn.update(batch.language_N)
    assert drawn["en"] / drawn.total() == pytest.approx(0.5, abs=0.03)


def test_only_the_wanted_languages_are_used(folder: Path) -> None:
    made = maker(folder, languages=["sw"])
    stream = list(batches(made, 0, 3, workers=0))
    assert {lang for batch in stream for lang in batch.language_N} == {"sw"}
    assert made.plan.counts.keys() == {"sw"}
    assert all(text.startswith("sw") for text in captions_of(made.plan))


def test_bad_wishes_get_one_sentence(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.languages: `xx` is not in the training data; it has"
    ):
        maker(folder, languages=["en", "xx"])
    with pytest.raises(UserError, match="smaller than the number of ranks"):
        maker(folder, world_size=8)
    with pytest.raises(UserError, match="does not divide"):
        maker(folder, world_size=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, workers: int) -> None:
    folder = make_set(tmp_path / "train", 8)
    shard = folder / "00000.tar"
    picture = ShardSet(folder).read(0).image
    shard.write_bytes(shard.read_bytes().replace(picture, bytes(len(picture))))
    with pytest.raises(UserError, match=r"train, sample `k000`: does not decode") as caught:
        list(batches(maker(folder), 0, 2, workers))
    assert "Traceback" not in str(caught.value)


def test_token_dropout_leaves_out_about_the_stated_share(folder: Path) -> None:
    token_NL = torch.arange(1, 2001).reshape(20, 100)
    mask_NL = torch.ones(20, 100, dtype=torch.int64)
    mask_NL[0, 3:] = 0
    rngs = [np.random.default_rng(i) for i in range(20)]
    kept_NL, kept_mask_NL = drop_tokens(token_NL, mask_NL, 0, 0.4, rngs)
    lengths = kept_mask_NL.sum(1)
    assert lengths[1:].float().mean() == pytest.approx(2 + 98 * 0.6, abs=3)
    assert kept_NL.shape[1] == int(lengths.max())
    for row, length in enumerate(lengths.tolist()):
        left = kept_NL[row, :length]
        assert (left.diff() > 0).all()  # the order stays
        assert left[0] == token_NL[row, 0]
        assert left[-1] == token_NL[row, 2 if row == 0 else 99]
        assert (kept_NL[row, length:] == 0).all()
    options: dict[str, Any] = {"captions_per_image": 2, "token_dropout": 0.3}
    whole = maker(folder, **options).make(1)
    halves = [maker(folder, rank, 2, **options).make(1) for rank in (0, 1)]
    rows = [
        row[m.bool()].tolist() for b in halves for row, m in zip(b.token_NL, b.mask_NL, strict=True)
    ]
    assert rows == [
        r[m.bool()].tolist() for r, m in zip(whole.token_NL, whole.mask_NL, strict=True)
    ]
