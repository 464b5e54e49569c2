"""Shares of languages and sets: what is planned is what is drawn, and what cannot be is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_set

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.core.languages import Bound, bounded_shares
from mmalign.data.shards.manifest import read_manifest
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.mixing import Mixture, mix
from mmalign.data.stream.order import GlobalOrder, open_sets

COUNTS = {"en": 80, "sw": 15, "ja": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    languages = [lang for lang, count in COUNTS.items() for _ in range(count)]
    return make_set(tmp_path_factory.mktemp("set") / "a", 100, lambda i: (languages[i],))


def mixture(*train: object, **fields: Any) -> Mixture:
    config = validate(DataConfig, {"train": list(train), **fields}, "run.yaml")
    return mix([read_manifest(Path(entry)) for entry in config.train], config)


@pytest.mark.parametrize(
    ("floor", "cap", "expected"),
    [
        (None, None, [0.8, 0.15, 0.05]),
        (0.1, None, [0.9 * 80 / 95, 0.9 * 15 / 95, 0.1]),
        (None, 0.5, [0.5, 0.375, 0.125]),
        (0.2, 0.5, [0.5, 0.3, 0.2]),
        (0.3, 0.5, [0.4, 0.3, 0.3]),
        (1 / 3, None, [1 / 3] * 3),
        (None, 1 / 3, [1 / 3] * 3),
        (0.01, 0.9, [0.8, 0.15, 0.05]),
        ({"ja": 0.1}, None, [0.9 * 80 / 95, 0.9 * 15 / 95, 0.1]),
        ({"ja": 0.2, "sw": 0.2}, {"en": 0.5}, [0.5, 0.3, 0.2]),
        (0.1, {"en": 0.6, "sw": 0.2}, [0.6, 0.2, 0.2]),
    ],
)
def test_floors_and_caps_are_met_and_proportions_kept(
    floor: Bound | None, cap: Bound | None, expected: list[float]
) -> None:
    bounded = bounded_shares({"en": 0.8, "sw": 0.15, "ja": 0.05}, floor, cap)
    assert list(bounded.values()) == pytest.approx(expected, abs=1e-12)


def test_bounds_that_leave_no_shares_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"language_floor: the floors of 3 languages add up to 1.2"):
        mixture(str(folder), language_floor=0.4)
    with pytest.raises(UserError, match=r"language_cap: the caps of 3 languages add up to 0.9"):
        mixture(str(folder), language_cap=0.3)
    with pytest.raises(UserError, match="`language_floor` is above `language_cap`"):
        mixture(str(folder), language_floor=0.3, language_cap=0.2)
    with pytest.raises(UserError, match="above `language_cap` for `sw`; lower it"):
        mixture(str(folder), language_floor={"sw": 0.3, "ja": 0.1}, language_cap={"sw": 0.2})
    with pytest.raises(
        UserError, match=r"language_cap: `xx` is not among the languages .* en, ja, sw"
    ):
        mixture(str(folder), language_cap={"xx": 0.2})


@pytest.mark.parametrize(
    "fields",
    [
        {"language_floor": 0.25},
        {"language_temperature": 3.0, "language_cap": 0.4},
        {"language_temperature": 2.0},
        {"language_floor": {"ja": 0.2}, "language_cap": {"en": 0.5}},
    ],
)
def test_shares_are_drawn_as_planned(folder: Path, fields: dict[str, Any]) -> None:
    config = validate(DataConfig, {"train": [str(folder)], **fields}, "run.yaml")
    plan = GlobalOrder(open_sets(config), config, seed=1)
    drawn: Counter[str] = Counter()
    for epoch in range(20):
        drawn.update(plan.sets[0].languages[sample][0] for sample in plan.order(epoch))
    if fields == {"language_temperature": 2.0}:  # n^(1/T)
        roots = {lang: n**0.5 for lang, n in COUNTS.items()}
        stated = {lang: root / sum(roots.values()) for lang, root in roots.items()}
        assert plan.mixture.shares == pytest.approx(stated)
    for lang, share in plan.mixture.shares.items():
        assert drawn[lang] / drawn.total() == pytest.approx(share, abs=0.002)


def test_the_weight_of_a_set_counts_its_captions_so_often(folder: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "b", 20, lambda i: ("ja",))
    even = mixture(str(folder), str(other))
    assert (even.is_even, even.shares["ja"]) == (True, pytest.approx(25 / 120))
    weighted = mixture(str(folder), {"path": str(other), "weight": 4.0})
    assert not weighted.is_even
    assert weighted.shares["ja"] == pytest.approx(85 / 180)
    floored = mixture(str(folder), {"path": str(other), "weight": 4.0}, language_floor=0.2)
    assert floored.shares["sw"] == pytest.approx(0.2)
    assert sum(floored.shares.values()) == pytest.approx(1)


def test_the_table_says_what_changes(folder: Path) -> None:
    lines = mixture(str(folder), language_floor=0.25).table().splitlines()
    assert lines[0].split() == ["language", "captions", "share", "planned", "times"]
    assert lines[1].split() == ["en", "80", "80.00%", "50.00%", "0.62x"]
    assert lines[3].split() == ["ja", "5", "5.00%", "25.00%", "5.00x"]


def test_a_run_file_keeps_the_way_a_set_was_written() -> None:
    train = ["a", {"path": "b", "weight": 2.0}, {"path": "c"}]
    config = validate(DataConfig, {"train": train}, "run.yaml")
    dumped = config.model_dump(mode="json")
    assert dumped["train"] == ["a", {"path": "b", "weight": 2.0}, "c"]
    assert validate(DataConfig, dumped, "run.yaml") == config
    with pytest.raises(UserError, match=r"`train.1.weight` is 0: input should be greater than 0"):
        validate(DataConfig, {"train": ["a", {"path": "b", "weight": 0}]}, "run.yaml")
