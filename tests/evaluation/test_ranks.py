"""A suite on real ranks: 1, 2 and 4 write the same bytes, and each does its share."""

import json
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.rank_cases import BATCH_SIZE, everything, make_encoder
from ranks import run_ranks
from shard_sets import make_image, make_set
from tiny import tiny_run

from mmalign.data.shards.reader import ShardSet

RANKS = (1, 2, 4)
Outcomes = dict[int, list[dict[str, Any]]]  # number of ranks -> what each has


def languages(number: int) -> tuple[str, ...]:
    """Much English, some Japanese, one Swahili caption, pictures without captions."""
    if number == 5:
        return ("en", "sw", "ja")
    return ((), ("en", "en", "ja"), ("en",), ("ja", "en", "en"))[number % 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def sets(folder: Path) -> dict[str, Path]:
    return {
        "mixed": make_set(folder / "mixed" / "test", 22, languages),
        "lone": make_set(folder / "lone" / "test", 1),  # fewer samples than ranks
    }


@pytest.fixture(scope="module")
def images(folder: Path) -> Path:
    """Labelled images to train a probe and to test it: 18 and 9 of three classes."""
    for side, numbers in (("train", range(18)), ("test", range(18, 27))):
        for number in numbers:
            file = folder / "images" / side / f"c{number % 3}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(make_image(number))
    return folder / "images"


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return tiny_run(folder / "run")


@pytest.fixture(scope="module")
def outcomes(folder: Path, run: Path, sets: dict[str, Path], images: Path) -> Outcomes:
    """A single rank is this process, without a group."""
    torch.set_num_threads(1)
    case = (run, sets, images, sets["lone"])
    outcomes = {1: [everything(*case, folder / "1")]}
    for n in RANKS[1:]:
        outcomes[n] = run_ranks(n, everything, folder / f"store{n}", *case, folder / str(n))
    return outcomes


def test_all_ranks_have_the_results_of_one(outcomes: Outcomes) -> None:
    expected = outcomes[1][0]["results"]
    metrics = json.loads(expected)["metrics"]
    assert metrics.keys() >= {
        "retrieval/mixed/sw/text_to_image/recall@1",
        "retrieval/mixed/mean/image_to_text/recall@3",
        "retrieval/lone/all/text_to_image/recall@1",
        "alignment/mixed/en-ja/bitext@1",
        "probe/linear/linear/accuracy",
        "probe/knn/knn/mean_per_class_recall",
    }
    assert 0 < metrics["retrieval/mixed/en/text_to_image/recall@3"] < 1  # so it can differ
    for n in RANKS:
        assert [one["results"] for one in outcomes[n]] == [expected] * n


def test_the_files_have_the_same_bytes(outcomes: Outcomes, folder: Path) -> None:
    for name in ("results.json", "gallery.json"):
        files = [(folder / str(n) / name).read_bytes() for n in outcomes]
        assert files == [files[0]] * len(RANKS)


def test_embeddings_are_those_of_one_rank_to_the_last_bit(outcomes: Outcomes) -> None:
    first = outcomes[1][0]
    for n in RANKS:
        for one in outcomes[n]:
            assert torch.equal(one["image_PD"], first["image_PD"])
            assert torch.equal(one["text_MD"], first["text_MD"])
            assert (one["texts"], one["languages"]) == (first["texts"], first["languages"])


def test_rows_stand_in_the_order_of_the_set(
    outcomes: Outcomes, run: Path, sets: dict[str, Path]
) -> None:
    shard_set, encoder, one = ShardSet(sets["mixed"]), make_encoder(run), outcomes[4][3]
    pairs = [shard_set.read(sample) for sample in range(len(shard_set))]
    texts = [caption.text for pair in pairs for caption in pair.captions]
    assert one["texts"] == texts
    # In other batches they differ by rounding only.
    image_PD = encoder.encode_images(pair.image for pair in pairs)
    assert one["image_PD"].numpy() == pytest.approx(image_PD, abs=1e-6)
    assert one["text_MD"].numpy() == pytest.approx(encoder.encode_texts(texts, 256), abs=1e-6)
    assert np.ptp(image_PD, axis=0).max() > 1e-3


def test_each_rank_encodes_its_share_in_equally_many_calls(outcomes: Outcomes) -> None:
    batches = ceil(len(outcomes[1][0]["texts"]) / BATCH_SIZE)
    assert batches % 4  # so of four ranks one has a batch less
    for n in RANKS:
        calls = ceil(batches / n) + 1  # one for the lone set
        assert [one["calls"] for one in outcomes[n]] == [calls] * n


def test_a_sharded_set_has_the_results_of_a_whole_one(outcomes: Outcomes) -> None:
    expected = json.loads(outcomes[1][0]["sharded"]["whole"])
    assert "retrieval/mixed@first-caption/mean/text_to_image/recall@3" in expected[0]
    for n in RANKS:
        for one in outcomes[n]:
            assert json.loads(one["sharded"]["sharded"]) == expected
            assert json.loads(one["sharded"]["whole"]) == expected


def test_the_ranks_of_a_sharded_set_hold_runs_of_its_pictures(outcomes: Outcomes) -> None:
    for n in RANKS:
        for name, pictures in (("mixed", 22), ("lone", 1)):
            runs = [one["sharded"]["rows"][name] for one in outcomes[n]]
            lengths = [len(image_SD) for _, image_SD in runs]
            assert [first for first, _ in runs] == [sum(lengths[:r]) for r in range(n)]
            assert sum(lengths) == pictures
            assert max(lengths) <= ceil(ceil(pictures / BATCH_SIZE) / n) * BATCH_SIZE
        rows = torch.cat([one["sharded"]["rows"]["mixed"][1] for one in outcomes[n]])
        assert torch.equal(rows, outcomes[1][0]["image_PD"])


def test_hits_in_a_sharded_pool_are_those_of_the_pool_ties_included(outcomes: Outcomes) -> None:
    expected = outcomes[1][0]["ties"]
    for n in RANKS:
        for one in outcomes[n]:
            assert one["ties"]["hits"] == one["ties"]["whole"] == expected["whole"]
            assert one["ties"]["scores"] == expected["scores"]
            assert one["ties"]["right_scores"]
    assert 0 < sum(expected["whole"][3]) < sum(expected["whole"][10]) < 60


def test_ranks_that_differ_in_weights_or_data_are_refused_on_all(outcomes: Outcomes) -> None:
    for n in (2, 4):
        for one in outcomes[n]:
            weights, data = one["differing_weights"], one["differing_data"]
            assert "run: its weights differ between the ranks; give every host" in weights
            assert data.startswith("set `mixed`: the data in ")
            assert "differ between the ranks" in data
