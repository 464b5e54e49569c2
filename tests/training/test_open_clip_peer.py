"""`benchmarks/training.py` compares with open_clip's trainer only what that can do too."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from shard_sets import make_set
from tiny import MODEL

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.training.run_config import RunConfig

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from open_clip_peer import describe, of_checkout


def config(**data: Any) -> RunConfig:
    tree = {
        **{"name": "tiny", "steps": 4, "batch_size": 4, "model": MODEL},
        "data": {"train": ["nowhere"], **data},
        "tokenizer": {"kind": "trained", "vocabulary": 160},
        "optimizer": {"lr": 1e-3, "warmup_steps": 1},
    }
    return validate(RunConfig, tree, "test")


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        (
            "train",
            ["nowhere", {"path": "elsewhere", "weight": 2}],
            "train: FOLDER, without a weight",
        ),
        ("languages", ["en"], "languages: null"),
        ("language_temperature", 3.0, "language_temperature: null"),
        ("language_floor", 0.05, "language_floor: null"),
        ("language_cap", 0.5, "language_cap: null"),
        ("captions_per_image", 2, "captions_per_image: 1"),
    ],
)
def test_a_draw_that_the_peer_does_not_know_is_refused(
    field: str, value: Any, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=f"tiny: open_clip's trainer does not support this run; set `data.{fix}`"
    ):
        describe(config(**{field: value}), tmp_path, None)


def test_a_plain_draw_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):  # there are no shards
        describe(config(), tmp_path, None)


def test_both_trainers_get_the_same_towers(tmp_path: Path) -> None:
    data = str(make_set(tmp_path / "data", 8))
    (tmp_path / "peer").mkdir()
    peer = describe(config(train=[data]), tmp_path / "peer", Path("python"))
    assert peer.mean == pytest.approx((0.485, 0.456, 0.406))
    source = tmp_path / "checkout" / "src" / "open_clip_train"
    with pytest.raises(UserError, match="holds no src/open_clip_train"):
        of_checkout(peer, tmp_path / "checkout")
    source.mkdir(parents=True)
    (source / "main.py").touch()
    other = of_checkout(peer, tmp_path / "checkout")
    theirs, ours = (
        json.loads((one.folder / "models" / "mmalign_run.json").read_text())
        for one in (other, peer)
    )
    assert theirs["text_cfg"].pop("variable_text") is True
    assert theirs == ours and other.source == source.parent
