"""The ledger: exact over ranks and resumes, and a run that loses too much stops and says where."""

import json
from pathlib import Path

import pytest
import torch

from mmalign.core.batch import Batch, StreamState, Unusable
from mmalign.core.errors import UserError
from mmalign.data.stream.ledger import MOST_NAMED, UNUSABLE, Ledger

BATCH = 100


def bad(position: int, key: str, attempt: int = 0, shard: str = "00001.tar") -> Unusable:
    return Unusable(position, attempt, "data/a", shard, key, "checksum")


def batch(step: int, *unusable: Unusable) -> Batch:
    """Step `step`, counted from 1, of images with a caption each."""
    empty = torch.zeros(0)
    state = StreamState(0, step * BATCH)
    languages = ("en",) * 60 + ("sw",) * 40
    return Batch(None, empty, empty, languages, empty, empty, (), state, unusable=unusable)


STEPS = [
    batch(1, bad(7, "k7"), bad(7, "k9", attempt=1), bad(30, "k1")),
    batch(2),
    batch(3, bad(205, "k7"), bad(290, "k3", shard="00004.tar")),
    batch(4, bad(301, "k9")),
]


def names(folder: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (folder / UNUSABLE).read_text().splitlines()]


def test_positions_count_once_and_samples_are_named_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1.0, 1000, 0, {})
    for one in STEPS:
        ledger.count(one)
    ledger.flush()
    assert ledger.metrics() == {
        "data/unusable": 5 / 400,
        "data/unusable/checksum": 5 / 400,
        "data/captions/en": 240.0,
        "data/captions/sw": 160.0,
    }
    assert names(tmp_path) == ["k7", "k9", "k1", "k3"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_resumes_goes_on_counting(tmp_path: Path, stop: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    first, through = Ledger(parts, 1.0, 1000, 0, {}), Ledger(whole, 1.0, 1000, 0, {})
    state = {}
    for number, one in enumerate(STEPS, start=1):
        for ledger in (first, through):
            ledger.count(one)
            ledger.flush()
        if number == stop:
            state = json.loads(json.dumps(first.to_json()))
    # Killed after the last step, and gone back to the checkpoint.
    again = Ledger(parts, 1.0, 1000, stop * BATCH, state)
    for one in STEPS[stop:]:
        again.count(one)
    again.flush()
    assert again.metrics() == through.metrics()
    assert again.to_json() == through.to_json()
    assert (parts / UNUSABLE).read_text() == (whole / UNUSABLE).read_text()


def test_a_checkpoint_of_before_had_lost_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0.01, 10_000, 5000, {})
    ledger.flush()
    ledger.judge()
    assert ledger.metrics() == {"data/unusable": 0.0}
    assert not (tmp_path / UNUSABLE).exists()


def test_too_much_is_one_sentence_that_says_where(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0.01, 350, 0, {})
    for one in STEPS[:3]:
        ledger.count(one)
        ledger.flush()
        ledger.judge()  # not before an epoch
    ledger.count(STEPS[3])
    ledger.flush()
    with pytest.raises(UserError) as caught:
        ledger.judge()
    assert str(caught.value) == (
        "data.max_bad_fraction: 1.25% of 400 samples could not be used, over 1.00%; 4 of these 5 are in "
        f"data/a/00001.tar (checksum), {tmp_path / UNUSABLE} names them: fix the shards (`mmalign data "
        "verify`) or raise the limit"
    )


def test_names_are_bounded_and_counts_are_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1.0, 1000, 0, {})
    ledger.count(batch(1, *(bad(n, f"k{n}") for n in range(MOST_NAMED + 50))))
    ledger.flush()
    assert len(names(tmp_path)) == MOST_NAMED
    assert ledger.to_json()["unusable"] == [["data/a", "00001.tar", "checksum", MOST_NAMED + 50]]
