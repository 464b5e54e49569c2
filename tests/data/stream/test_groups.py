"""Groups of shards: one stream for any ranks that fit, reads of a rank's own groups, an exact mixture."""

import hashlib
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks
from shard_sets import make_pair, make_set, open_descriptors, plan_on_paper, write_set
from tiny import tiny_tokenizer

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches, captions_of
from mmalign.data.stream.order import GlobalOrder, open_sets

SAMPLES, BATCH = 50, 8  # 13 shards of 4, the last one of 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "train", SAMPLES)


def maker(folder: Path | str, rank: int = 0, ranks: int = 1, **fields: Any) -> BatchLoader:
    """A rank's batches; without images, which change no order."""
    config = validate(DataConfig, {"train": [str(folder)], **fields}, "test")
    order = GlobalOrder(open_sets(config), config, seed=3)
    return BatchLoader(order, config, tiny_tokenizer(), 32, None, BATCH, rank, ranks)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_run_that_stops_and_goes_on_with_other_ranks_and_workers_sees_one_stream(
    folder: Path, groups: int
) -> None:
    fields: dict[str, Any] = {"groups": groups, "shuffle_shards": 2, "language_temperature": 3.0}
    whole = maker(folder, **fields)
    truth = [whole.make(step).key_B for step in range(24)]
    # Of each life, the ranks and the workers of each; every pair of {1, 2, 4, 8} and {0, 2}.
    lives = [(1, 0), (8, 2), (2, 0), (4, 2), (8, 0), (1, 2), (4, 0), (2, 2)]
    seen = []
    for life, (ranks, workers) in enumerate(lives):
        made = [
            list(batches(maker(folder, rank, ranks, **fields), 3 * life, 3 * life + 3, workers))
            for rank in range(ranks)
        ]
        seen += [
            tuple(chain.from_iterable(one.key_B for one in step))
            for step in zip(*made, strict=True)
        ]
    assert seen == truth


@pytest.mark.parametrize("fields", [{}, {"language_temperature": 2.0}])
@pytest.mark.parametrize(("groups", "ranks"), [(4, 2), (4, 4), (2, 4)])
def test_a_rank_reads_the_shards_of_its_groups_alone(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: int,
    ranks: int,
    fields: dict[str, Any],
) -> None:
    read: set[int] = set()
    real = ShardSet.read

    def note(self: ShardSet, index: int, with_image: bool = True) -> Any:
        read.add(self.locate(index)[0])
        return real(self, index, with_image)

    monkeypatch.setattr(ShardSet, "read", note)
    of_rank = []
    for rank in range(ranks):
        made = maker(folder, rank, ranks, groups=groups, shuffle_shards=2, **fields)
        read.clear()
        for step in range(3 * len(made.plan) // BATCH):
            made.make(step)
        mine = {
            row // (BATCH // groups)
            for row in range(BATCH * rank // ranks, BATCH * (rank + 1) // ranks)
        }
        windows = (made.plan.visits(e, g) for e in range(4) for g in mine)
        assert read <= {visit.shard for one in windows for window in one for visit in window}
        of_rank.append(frozenset(read))
    assert set().union(*of_rank) == set(range(13))
    if ranks <= groups:  # a shard at a cut is of both groups
        assert sum(map(len, of_rank)) <= 13 + groups


@pytest.mark.parametrize("damaged", [1, 9])
def test_a_substitute_is_of_the_group_that_it_stands_in(damaged: int) -> None:
    made = plan_on_paper([["en"] * 8] * 16, groups=4, shuffle_shards=1)
    of_group = [
        {visit.shard for window in made.visits(0, group) for visit in window} for group in range(4)
    ]
    assert sorted(map(len, of_group)) == [4] * 4
    for position in range(0, 128, 3):
        for attempt in (1, damaged, 30):
            assert made.sample_at(position, attempt) // 8 in of_group[position % 4]


class CountingSet(ShardSet):
    """Counts the indexes that are read for their languages."""

    indexes = 0

    def languages_in(self, number: int) -> list[tuple[str, ...]]:
        self.indexes += 1
        return super().languages_in(number)


def order_on_ranks(folder: Path) -> tuple[int, int, list[int]]:
    one = CountingSet(folder)
    config = validate(DataConfig, {"train": [str(folder)], "languages": ["ja", "sw"]}, "test")
    order = GlobalOrder([one], config, seed=3)
    read = one.indexes
    return read, len(order), order.order(0).tolist()


def test_ranks_together_read_each_index_once_to_count_what_is_usable(
    folder: Path, tmp_path: Path
) -> None:
    # Samples with several captions: the manifest does not say how many have one of two languages.
    read, length, order = order_on_ranks(folder)
    assert (read, length) == (13, sum(number % 3 > 0 for number in range(SAMPLES)))
    assert run_ranks(2, order_on_ranks, tmp_path, folder) == [
        (7, length, order),
        (6, length, order),
    ]


SETS = [
    [["en"] * (9 + n % 3) for n in range(20)],
    [["sw"] * 5 + ["ja"] * (n % 4) for n in range(20)],
]
MIXTURES: list[dict[str, Any]] = [
    {},
    {"language_floor": 0.3},
    {"language_temperature": 3.0},
    {"train": ["a", {"path": "b", "weight": 2.5}]},
    {"train": [{"path": "a", "rate": 30}, {"path": "b", "rate": 70}]},
    {"languages": ["en", "ja"]},
]


@pytest.mark.parametrize("fields", MIXTURES)
def test_groups_together_draw_what_one_group_draws(fields: dict[str, Any]) -> None:
    single = plan_on_paper(*SETS, shuffle_shards=3, **fields)
    for groups in (2, 5, 7):
        made = plan_on_paper(*SETS, shuffle_shards=3, groups=groups, **fields)
        assert groups > len(made) - len(single) >= 0
        for epoch in range(3):
            count, expected = (
                np.bincount(one.order(epoch), minlength=len(one.sets[0]) + len(one.sets[1]))
                for one in (made, single)
            )
            assert count.sum() == len(made)
            if made.mixture.is_even:
                # Fewer than C are in two groups, where C does not divide the images.
                assert set(count[expected == 1]) <= {1, 2} and not count[expected == 0].any()
                assert (count == 2).sum() == len(made) - len(single)
            for of_set in (slice(0, len(made.sets[0])), slice(len(made.sets[0]), None)):
                assert abs(count[of_set].sum() - expected[of_set].sum()) <= groups


def test_every_group_has_the_composition_of_the_whole() -> None:
    made = plan_on_paper([[lang] * 10 for lang in "abcdefgh" for _ in range(8)], groups=8)
    for group in range(8):
        ((*visits,),) = made.visits(2, group)
        assert Counter(visit.shard // 8 for visit in visits) == dict.fromkeys(range(8), 1)


@pytest.mark.parametrize(("groups", "window"), [(8, 8), (4, 16), (2, 32), (16, 4)])
def test_windows_of_groups_mix_together_as_one_large_window_does(groups: int, window: int) -> None:
    # 512 shards of 16 sources, one after another; 64 shards are read at a time.
    shards = [["en"]] * 512
    for epoch in range(3):
        made = plan_on_paper(shards, groups=groups, shuffle_shards=window)
        of_group = [made.visits(epoch, group) for group in range(groups)]
        for at_one_time in zip(*of_group, strict=True):
            sources = [visit.shard // 32 for one in at_one_time for visit in one]
            assert Counter(sources) == dict.fromkeys(range(16), 4)


ONE_RARE = [["en"] * 39 + ["sw"] * (n == 60) for n in range(128)]


def positions_of_rare(groups: int, version: int = 2) -> tuple[np.ndarray, int]:
    """Where 50 draws of the one sample in `sw` are, as parts of an epoch."""
    share = 50 / sum(map(len, ONE_RARE))
    made = plan_on_paper(ONE_RARE, shuffle_shards=4, groups=groups, language_floor={"sw": share})
    made.version = version
    order = made.order(1)
    rare = int(np.bincount(order).argmax())
    return np.flatnonzero(order == rare) / len(order), len(made)


@pytest.mark.parametrize("groups", [1, 4])
def test_repeats_of_a_sample_are_spread_over_the_epoch(groups: int) -> None:
    at, _ = positions_of_rare(groups)
    assert 49 <= len(at) <= 51
    assert np.ptp(at) >= 0.9
    assert (np.bincount((10 * at).astype(int), minlength=10) >= 3).all()
    # As before: all in the one window that holds its shard.
    bunched, _ = positions_of_rare(1, version=1)
    assert np.ptp(bunched) < 0.06


def test_visits_for_few_samples_download_no_shard(tmp_path: Path) -> None:
    pairs = [make_pair(n, (("en", "sw")[n == 77],)) for n in range(160)]
    local = write_set(tmp_path / "set", pairs, samples_per_shard=8)
    fields: dict[str, Any] = {"language_floor": {"sw": 0.25}, "shuffle_shards": 4}
    remote = {"cache": str(tmp_path / "cache"), "prefetch": 1}
    near = maker(local, **fields)
    far = maker(f"file://{local}", remote=remote, **fields)
    steps = len(near.plan) // BATCH
    assert [far.make(s).key_B for s in range(steps)] == [near.make(s).key_B for s in range(steps)]
    visits = [visit for window in near.plan.visits(0, 0) for visit in window]
    assert {visit.shard for visit in visits if visit.by_range} == {77 // 8}
    assert sum(visit.shard == 77 // 8 for visit in visits) == 32
    sha256 = far.plan.sets[0].manifest.files["00009.tar"]["sha256"]
    assert not (tmp_path / "cache" / sha256).exists()


def test_sets_are_drawn_at_their_rates() -> None:
    train = [{"path": "a", "rate": 70}, {"path": "b", "rate": 30}]
    few, many = [["en"] * 10] * 6, [["sw"] * 25] * 30
    made = plan_on_paper(few, many, train=train, shuffle_shards=8)
    drawn = np.concatenate([made.order(epoch) for epoch in range(5)])
    assert (drawn < 60).mean() == pytest.approx(0.7, abs=1 / len(made))
    assert made.mixture.shares == pytest.approx({"en": 0.7, "sw": 0.3})
    # Of images, however many captions they have, and of those alone that can be used.
    wanted = plan_on_paper([["en", "sw"] * 5] * 6, many, train=train, languages=["sw"])
    assert (wanted.order(0) < 60).mean() == pytest.approx(0.7, abs=1 / len(wanted))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"train": ["a", {"path": "b", "rate": 1}]},
            "have a `rate` and others none; give all of them one",
        ),
        ({"train": [{"path": "a", "rate": 1, "weight": 2}]}, "give `weight` or `rate`, not both"),
        ({"train": [{"path": "a", "rate": 1}], "language_floor": 0.1}, "give `weight` instead"),
        ({"groups": 0}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(DataConfig, {"train": ["a"], **fields}, "run.yaml")


def test_groups_that_do_not_fit_are_refused(folder: Path) -> None:
    for groups, ranks in ((3, 1), (16, 1), (4, 3), (8, 6)):
        message = (
            "data.groups: .* must divide" if BATCH % ranks == 0 else "batch_size: 8 does not divide"
        )
        with pytest.raises(
            UserError, match=message if groups < 13 else "every group needs a shard"
        ):
            maker(folder, 0, ranks, groups=groups)


def test_a_rate_is_kept_as_it_was_written() -> None:
    train = [{"path": "a", "rate": 0.7}, {"path": "b", "rate": 0.3}]
    config = validate(DataConfig, {"train": train}, "run.yaml")
    assert config.model_dump(mode="json")["train"] == train
    assert validate(DataConfig, config.model_dump(mode="json"), "run.yaml") == config


def test_masked_runs_and_tokenizers_read_no_image(tmp_path: Path) -> None:
    data = write_set(tmp_path / "train", [make_pair(n, ("en",)) for n in range(8)])
    made = maker(data)
    for tar in sorted(data.glob("*.tar")):  # the images' bytes become others
        content = tar.read_bytes()
        for pair in (make_pair(n, ("en",)) for n in range(8)):
            content = content.replace(pair.image, bytes(len(pair.image)))
        tar.write_bytes(content)
    assert not made.make(0).unusable
    before = open_descriptors()
    assert len(list(captions_of(made.plan))) == 8
    assert open_descriptors() < before  # those of the batch are closed as well


# Positions of two epochs and some substitutes, as version 1 had them before there were groups.
VERSION_1: list[tuple[dict[str, Any], str, list[int]]] = [
    ({}, "fc8ad092c805c9ec", [367, 356, 138, 270]),
    ({"shuffle_shards": 8}, "9bf2fe410294d65f", [208, 120, 244, 301]),
    (
        {"shuffle_shards": 8, "language_temperature": 5.0},
        "3ca712727eddf7e1",
        [402, 203, 5, 261],
    ),
    ({"language_temperature": 5.0}, "0afc32e07f62e198", [372, 358, 160, 265]),
    (
        {
            "shuffle_shards": 7,
            "language_floor": 0.3,
            "train": ["x", {"path": "y", "weight": 3}],
        },
        "2b5e16d257144209",
        [7, 535, 247, 599],
    ),
    ({"shuffle_shards": 5, "languages": ["en", "sw"]}, "12ff31d160002054", [145, 222, 108, 256]),
]


@pytest.mark.parametrize(("fields", "digest", "substitutes"), VERSION_1)
def test_a_run_of_version_1_goes_on_in_its_order(
    fields: dict[str, Any], digest: str, substitutes: list[int]
) -> None:
    shards = [[("en", "sw", "ja")[n * n % 7 % 3]] * (10 + n % 3) for n in range(40)]
    made = plan_on_paper(*[shards, shards[:30]][: len(fields.get("train", "x"))], **fields)
    # The new version is equal without weights, and in one window.
    is_equal = "shuffle_shards" not in fields or not made.mixture.weights
    for version in (1, 2) if is_equal else (1,):
        made = plan_on_paper(*[shards, shards[:30]][: len(fields.get("train", "x"))], **fields)
        made.version = version
        both = np.concatenate([made.order(0), made.order(5)]).astype(np.int64)
        assert hashlib.sha256(both.tobytes()).hexdigest()[:16] == digest
        assert [made.sample_at(p, a) for p in (1, 99) for a in (1, 20)] == substitutes
