"""The dry run's numbers are those of its formulas, in tables by ZeRO stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_set
from tiny import MODEL

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.training.dry_run import Load, dry_run, memory_bytes, needs, wire_bytes
from mmalign.training.engine import BUCKET
from mmalign.training.run_config import RunConfig

LOAD = Load(
    ranks=4,
    parameters=1000,
    trainable=800,
    bucket=700,
    batch=70,
    activations=500,
    passes=1,
    captions=32,
    embedding=16,
)


def run(**fields: Any) -> RunConfig:
    tree = {
        "name": "tiny",
        "steps": 10,
        "batch_size": 8,
        "data": {"train": ["nowhere/train"]},
        "tokenizer": {"kind": "trained", "vocabulary": 160},
        "model": MODEL,
        "optimizer": {"lr": 1e-3},
        **fields,
    }
    return validate(RunConfig, tree, "test")


def row(table: str, name: str) -> list[int]:
    """The numbers of the first row of that name."""
    line = next(line for line in table.splitlines() if line.startswith(name))
    return [int(cell.replace(",", "")) for cell in line.removeprefix(name).split()]


def test_memory_is_what_the_paper_on_zero_says() -> None:
    memory = memory_bytes(LOAD)
    assert memory["weights"] == [4000, 4000, 4000, 1000]
    assert memory["gradients"] == [3200, 3200, 800, 800]
    assert memory["moments of AdamW"] == [6400, 1600, 1600, 1600]
    assert memory["batch"] == [70] * 4
    assert memory["activations"] == [500] * 4


def test_deepspeed_keeps_copies_of_its_own() -> None:
    copies = memory_bytes(LOAD)["copies and buckets"]
    assert copies == [2800, BUCKET * 8 + 800, BUCKET * 8 + 800, BUCKET * 8 + 4000]


def test_bytes_on_the_wire() -> None:
    half = 3 / 4
    sent = wire_bytes(LOAD)
    assert sent["gradients"] == [half * 6400, half * 6400, half * 6400, half * 3200]
    assert sent["weights"] == [0, half * 3200, half * 3200, half * 8000]
    assert sent["embeddings"] == [3 * half * 4 * 32 * (16 + 4)] * 4
    assert {n for numbers in wire_bytes(replace(LOAD, ranks=1)).values() for n in numbers} == {0}


def test_passes_send_again_what_zero_splits() -> None:
    once, twice = wire_bytes(LOAD), wire_bytes(replace(LOAD, passes=2))
    assert twice["gradients"][:2] == once["gradients"][:2]
    assert twice["gradients"][2:] == [2 * number for number in once["gradients"][2:]]
    # Two forward passes without a graph, two with one, two backward.
    assert twice["weights"][3] == 3 * once["weights"][3]


def test_the_table_says_what_the_run_takes() -> None:
    table = dry_run(run(engine={"micro_batch": 2, "zero_stage": 2}), nodes=1, gpus_per_node=2)
    trainable, frozen = row(table, "total")
    assert row(table, "image tower")[0] + row(table, "text tower")[0] < trainable
    assert frozen == 0
    assert "8 images and up to 8 captions of up to 32 tokens" in table
    assert "4 images of a step, up to 2 with 2 captions in a pass, forward twice" in table
    assert "10 steps, 80 images" in table
    assert "ZeRO 2*" in table
    assert "unknown until there are data (nowhere/train: no such data set" in table


def test_a_budget_of_tokens_bounds_the_captions_of_a_pass() -> None:
    # Without pixels, whose activations are the most.
    data = {"train": ["nowhere/train"], "captions_per_image": 8, "image_features": True}
    model = MODEL | {"image": MODEL["image"] | {"frozen": True}}
    plain, limited = (
        run(data=data, model=model, engine={"tokens_per_micro_batch": tokens})
        for tokens in (None, 10 * 32)
    )
    assert "8 images of a step, up to 8 with 10 captions in a pass, forward twice" in dry_run(
        limited, 1, 1
    )
    assert needs(limited, 1, 1)[0] < needs(plain, 1, 1)[0]


def test_an_epoch_is_counted_where_there_are_data(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "train", 12)
    table = dry_run(run(data={"train": [str(folder)]}), nodes=1, gpus_per_node=1)
    assert "epoch  1.5 steps, 12 images" in table
    assert ["en", "16", "57.14%", "57.14%", "1.00x"] in [
        line.split() for line in table.splitlines()
    ]


def test_a_batch_must_divide_by_the_ranks_and_the_groups() -> None:
    with pytest.raises(UserError, match="batch_size: 8 does not divide by the 3 ranks"):
        dry_run(run(), nodes=3, gpus_per_node=1)
    data = {"train": ["nowhere/train"], "groups": 3}
    with pytest.raises(
        UserError, match=r"`batch_size` \(8\) does not divide by `data.groups` \(3\)"
    ):
        run(data=data)
    with pytest.raises(
        UserError, match=r"data.groups: 4 groups do not fit a batch of 24 .* 6 ranks"
    ):
        dry_run(run(batch_size=24, data={**data, "groups": 4}), nodes=3, gpus_per_node=2)
