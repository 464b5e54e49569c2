"""The stream: every image once an epoch, the same whatever the ranks and workers, exact at any stop."""

import errno
import json
import os
import resource
from collections import Counter
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from shard_sets import make_image, make_pair, make_set, write_set
from tiny import tiny_tokenizer

from mmalign.core.batch import NOT_PREDICTED, Batch
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.preprocess import Preprocess
from mmalign.data.shards import reader
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches, captions_of
from mmalign.data.stream.order import GlobalOrder, open_sets
from mmalign.data.stream.token_noise import TokenMasker

ROOT = Path(__file__).parents[3]
SAMPLES = 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "train", SAMPLES)


def maker(
    folder: Path,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 4,
    masked: bool = False,
    **changes: Any,
) -> BatchLoader:
    """Batches with images, or those of masked language modelling."""
    config = validate(DataConfig, {"train": [str(folder)], **changes}, "test")
    plan = GlobalOrder(open_sets(config), config, seed=3)
    tokenizer = tiny_tokenizer()
    masker = TokenMasker(tokenizer, 0.15) if masked else None
    view = None if masked else Preprocess(8, config.augmentation)
    return BatchLoader(
        plan, config, tokenizer, 32, view, batch_size, rank, world_size, masker=masker
    )


def keys(stream: list[Batch]) -> list[str]:
    return list(chain.from_iterable(batch.key_B for batch in stream))


@pytest.mark.parametrize(("world_size", "workers"), [(2, 1), (4, 0)])
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


def test_equal_numbers_of_two_data_sets_are_two_images(tmp_path: Path) -> None:
    """Both name their images k000, k001, ...: the captions of one were positives of the other."""
    languages = ("en", "sw")
    first = write_set(tmp_path / "a", [make_pair(n, languages) for n in range(4)])
    same_hash = make_pair(9, languages, picture="0f" * 32)
    second = write_set(tmp_path / "b", [make_pair(n, languages) for n in range(3)] + [same_hash])
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))

    def ids(*folders: Path) -> list[int]:
        loader = maker(folders[0], batch_size=8, train=[str(one) for one in folders])
        return loader.make(0).picture_id_B.tolist()

    assert len(set(ids(first, second))) == 8
    # A set, and another choice from it, know their images by the same numbers.
    assert len(set(ids(first, first))) == 4


def test_a_stop_at_any_step_changes_nothing(folder: Path) -> None:
    whole = list(batches(maker(folder), 0, 12, workers=0))
    for stop, workers in ((1, 0), (6, 2)):
        first = whole[stop - 1].state.position // 4
        assert first == stop
        rest = list(batches(maker(folder), first, 12, workers))
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


def test_language_temperature_within_an_image(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "train", 20, lambda i: ("en", "sw") if i < 2 else ("en",))
    drawn: Counter[str] = Counter()
    # Masked language modelling decodes no image.
    made = maker(folder, batch_size=50, masked=True, language_temperature=1000.0)
    for batch in batches(made, 0, 40, workers=0):
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
    for ranks in (3, 8):
        with pytest.raises(UserError, match=f"batch_size: 4 does not divide by the {ranks} ranks"):
            maker(folder, world_size=ranks)


def set_with_a_broken_picture(folder: Path, size: int = 0) -> Path:
    """Eight pairs; without a size, the first picture begins as a PNG and goes on as nothing."""
    pairs = [make_pair(number, ("en",)) for number in range(8)]
    image = make_image(0, size=size) if size else b"\x89PNG" + bytes(100)
    return write_set(folder, [replace(pairs[0], image=image), *pairs[1:]])


def test_another_sample_replaces_one_that_does_not_decode(tmp_path: Path) -> None:
    folder = set_with_a_broken_picture(tmp_path / "train")
    stream = list(batches(maker(folder), 0, 4, workers=1))
    assert [len(batch.key_B) for batch in stream] == [4] * 4
    assert "k000" not in keys(stream)
    unusable = [one for batch in stream for one in batch.unusable if one.attempt == 0]
    assert [one.position // 8 for one in unusable] == [0, 1]
    assert {(one.data, one.shard, one.key, one.reason) for one in unusable} == {
        (str(folder), "00000.tar", "k000", "does not decode")
    }
    # The others stand where they stood, with the same captions.
    whole = set_with_a_broken_picture(tmp_path / "whole", size=16)
    for batch, other in zip(stream, batches(maker(whole), 0, 4, 0), strict=True):
        same = [a == b for a, b in zip(batch.key_B, other.key_B, strict=True)]
        bad = [one.position % 4 for one in batch.unusable if one.attempt == 0]
        assert [n for n, is_same in enumerate(same) if not is_same] == bad


def test_a_set_without_a_usable_sample_is_one_sentence(tmp_path: Path) -> None:
    pairs = [replace(make_pair(n, ("en",)), image=b"\x89PNG" + bytes(9)) for n in range(4)]
    folder = write_set(tmp_path / "train", pairs)
    with pytest.raises(UserError, match=r"nor 32 others in its place can be used") as caught:
        list(batches(maker(folder), 0, 1, workers=1))
    assert str(caught.value).count("\n") == 0
    assert "does not decode" in str(caught.value)


def damaged_set(folder: Path) -> Path:
    """Forty pairs in ten shards, in which what can go wrong went wrong."""
    pairs = [
        make_pair(number, (("en",), ("sw", "en"), ("ja",))[number % 3]) for number in range(40)
    ]
    for number in (2, 21):
        pairs[number] = replace(pairs[number], image=b"\xff\xd8\xff" + bytes(50))
    write_set(folder, pairs)
    row = json.loads((folder / "00003.index.jsonl").read_text(encoding="utf-8").splitlines()[1])
    data = bytearray((folder / "00003.tar").read_bytes())
    data[row["image"][1] + 20] ^= 255
    (folder / "00003.tar").write_bytes(data)
    return folder


def seen(batch: Batch) -> list[tuple[Any, ...]]:
    """All that a rank's batch holds, one row per image."""
    assert batch.image_BCHW is not None
    rows = []
    for row, key in enumerate(batch.key_B):
        captions = [
            (lang, tokens[mask.bool()].tolist())
            for lang, tokens, mask, image in zip(
                batch.language_N, batch.token_NL, batch.mask_NL, batch.image_index_N, strict=True
            )
            if image == row
        ]
        rows.append((key, captions, batch.image_BCHW[row].tolist()))
    return rows


STREAM: dict[str, Any] = {
    "captions_per_image": 2,
    "augmentation": {"crop_scale": [0.5, 1.0], "flip": True},
    "token_dropout": 0.2,
    "shuffle_shards": 3,
    "language_floor": 0.25,
}


def assert_one_stream(folder: Path, parts: list[tuple[int, int, int]], steps: int) -> None:
    """Whether a run that goes through `parts` (steps, ranks, workers) sees the stream of one process."""
    truth = maker(folder, **STREAM)
    step = 0
    for number, ranks, workers in parts:
        last = min(step + number, steps)
        makers = [maker(folder, rank, ranks, **STREAM) for rank in range(ranks)]
        streams = [list(batches(one, step, last, workers)) for one in makers]
        for given in zip(*streams, strict=True):
            whole = truth.make(step)
            assert [row for part in given for row in seen(part)] == seen(whole)
            assert tuple(one for part in given for one in part.unusable) == whole.unusable
            step += 1
    assert step == steps


def test_five_stops_with_other_ranks_and_workers_change_nothing(tmp_path: Path) -> None:
    folder = damaged_set(tmp_path / "train")
    parts = [(1, 4, 0), (2, 2, 1), (1, 1, 3), (2, 4, 0), (1, 2, 0), (5, 1, 0)]
    assert_one_stream(folder, parts, 12)
    unusable = [one for step in range(12) for one in maker(folder, **STREAM).make(step).unusable]
    assert {one.reason for one in unusable} == {"does not decode", "checksum"}


@pytest.mark.slow
def test_every_mixture_of_ranks_and_workers_gives_one_stream(tmp_path: Path) -> None:
    folder = damaged_set(tmp_path / "train")
    kinds = [(ranks, workers) for ranks in (1, 2, 4) for workers in (0, 2, 4)]
    for first, (ranks, workers) in enumerate(kinds):
        others = [kinds[(first + k * k + 1) % len(kinds)] for k in range(5)]
        parts = [(1 + k % 3, *kind) for k, kind in enumerate([(ranks, workers), *others])]
        assert_one_stream(folder, [*parts, (30, ranks, workers)], 30)


RICH: dict[str, Any] = {
    "captions_per_image": 2,
    "augmentation": {"crop_scale": [0.5, 1.0], "flip": True},
    "token_dropout": 0.3,
}


def test_masked_language_modelling_sees_the_captions_of_a_run_with_images(folder: Path) -> None:
    predicted = 0
    for step in range(9):
        seen = maker(folder, **RICH).make(step)
        masked = maker(folder, masked=True, **RICH).make(step)
        assert masked.image_BCHW is None
        assert masked.label_NL is not None
        for name in ("language_N", "key_B", "state"):
            assert getattr(masked, name) == getattr(seen, name)
        for name in ("mask_NL", "image_index_N", "picture_id_B"):
            assert getattr(masked, name).equal(getattr(seen, name))
        hidden_NL = masked.label_NL != NOT_PREDICTED
        restored_NL = torch.where(hidden_NL, masked.label_NL, masked.token_NL)
        assert restored_NL.equal(seen.token_NL)
        predicted += int(hidden_NL.sum())
    assert predicted > 50


def test_what_is_masked_depends_on_the_caption_and_its_position_alone(folder: Path) -> None:
    def rows(parts: list[Batch]) -> list[tuple[list[int], list[int]]]:
        found = []
        for part in parts:
            assert part.label_NL is not None
            for token_L, label_L, mask_L in zip(
                part.token_NL, part.label_NL, part.mask_NL.bool(), strict=True
            ):
                found.append((token_L[mask_L].tolist(), label_L[mask_L].tolist()))
        return found

    whole = maker(folder, masked=True, **RICH)
    ranks = [maker(folder, rank, 4, masked=True, **RICH) for rank in range(4)]
    # Steps 1 and 2 of the first epoch, and one of the third.
    for step in (1, 2, 12):
        assert rows([made.make(step) for made in ranks]) == rows([whole.make(step)])
    assert rows([whole.make(1)]) != rows([whole.make(2)])
    assert rows(list(batches(whole, 1, 2, workers=1))) == rows([whole.make(1)])


def read_with_few_descriptors(folder: Path, limit: int) -> list[tuple[int, int]]:
    """The position and the number of unusable samples of each batch."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    made = maker(folder, shuffle_shards=1000)
    read = batches(made, 0, 60, workers=2)
    return [(batch.state.position, len(batch.unusable)) for batch in read]


@pytest.mark.parametrize("limit", [128, 256])
def test_many_shards_are_read_with_few_descriptors(tmp_path: Path, limit: int) -> None:
    folder = write_set(tmp_path / "set", [make_pair(n, ("en",)) for n in range(240)], 1)
    (found,) = run_ranks(1, read_with_few_descriptors, tmp_path / "ranks", folder, limit)
    assert found == [(4 * n, 0) for n in range(1, 61)]


def test_a_worker_that_lacks_descriptors_ends_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(reader, "RETRY_WAITS", (0.01,))
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"Too many open files; raise .* `ulimit -n 4096`"):
            list(batches(maker(folder), 0, 2, workers))


class Unsendable:
    def __reduce__(self) -> tuple[object, ...]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Broken(BatchLoader):
    def make(self, step: int) -> Batch:
        return Unsendable()  # type: ignore[return-value]


def test_a_batch_that_cannot_be_sent_ends_the_run(folder: Path) -> None:
    made = maker(folder)
    broken = Broken(**{f.name: getattr(made, f.name) for f in fields(made)})
    with pytest.raises(UserError, match=r"data\.workers: a process that prepares batches failed"):
        list(batches(broken, 0, 2, workers=1))
