"""Training from features is training from pixels, but for the rounding of a feature to float16."""

from pathlib import Path
from typing import Any

import pytest
from frozen_towers import FROZEN, make_set_to_embed, train_each
from ranks import run_ranks
from safetensors.torch import load_file

from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.core.record import read_records
from mmalign.evaluation.feature_cache import write_features
from mmalign.training.embed import load_frozen_tower
from mmalign.training.run_config import RunConfig

STEPS = 6
TOLERANCE = 1e-3


def run_config(data: Path, features: bool, **changes: Any) -> RunConfig:
    tree = {
        "name": "tiny",
        "steps": STEPS,
        "batch_size": 4,
        "data": {
            "train": [str(data)],
            "captions_per_image": 2,
            "image_features": features,
            "workers": 0,
        },
        "tokenizer": {"kind": "trained", "vocabulary": 128},
        "model": FROZEN,
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "engine": {"precision": "fp32"},
        "log": {"every": 1},
        **changes,
    }
    return validate(RunConfig, tree, "run.yaml")


def without_dropout() -> dict[str, Any]:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    architecture = {**FROZEN["text"]["architecture"], **none}
    return {**FROZEN, "text": {**FROZEN["text"], "architecture": architecture}}


def ways(data: Path) -> dict[str, tuple[RunConfig, None]]:
    """Stages of ZeRO and cached gradients; without dropout, whose draws differ by rank and part."""
    model = without_dropout()
    return {
        f"zero{stage}": (
            run_config(
                data,
                True,
                model=model,
                engine={"precision": "fp32", "zero_stage": stage, "micro_batch": micro_batch},
            ),
            None,
        )
        for stage, micro_batch in ((0, None), (2, 1), (3, 1))
    }


def alone(data: Path, suite: Path) -> dict[str, tuple[RunConfig, int | None]]:
    """What one rank trains, in this order."""
    words = {"kind": "masked_language_model"}
    measured = {"suite": str(suite), "every": STEPS}
    return {
        "pixels": (run_config(data, False), None),
        "features": (run_config(data, True, evaluation=measured), None),
        "mixed": (run_config(data, False), 3),
        "mixed+features": (run_config(data, True), None),
        "words": (run_config(data, False, objective=words), None),
        "words_features": (run_config(data, True, objective=words), None),
        "other": (run_config(data, True, seed=1), None),
        **ways(data),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, features of them, and the runs of one rank."""
    folder = tmp_path_factory.mktemp("image_features")
    data = make_set_to_embed(folder / "data" / "train", broken=False)
    write_features(load_frozen_tower(run_config(data, True), None).eval(), data, workers=0)
    suite = {"name": "seen", "sets": [{"name": "seen", "shards": str(data)}]}
    (folder / "seen.yaml").write_text(write_yaml(suite))
    jobs = alone(data, folder / "seen.yaml")
    (stopped,) = run_ranks(1, train_each, folder / "store1", jobs, folder)
    assert stopped.keys() == {"other"}
    assert "its features were made with other weights" in stopped["other"]
    return folder


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in read_records(run / "metrics.jsonl") if "loss" in r]


def weights(run: Path) -> dict[str, Any]:
    newest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    return load_file(newest / "model.safetensors")


def test_the_curve_is_that_of_the_run_from_pixels(folder: Path) -> None:
    found, truth = losses(folder / "features"), losses(folder / "pixels")
    assert len(truth) == STEPS
    assert found == pytest.approx(truth, abs=TOLERANCE)
    assert found != truth  # it did read features


def test_the_image_tower_stays_in_the_checkpoint_and_is_measured(folder: Path) -> None:
    one, other = weights(folder / "features"), weights(folder / "pixels")
    assert one.keys() == other.keys()
    tower = [name for name in one if name.startswith("image_tower.")]
    assert tower
    assert all(one[name].equal(other[name]) for name in tower)
    records = read_records(folder / "features" / "metrics.jsonl")
    assert "retrieval/seen/mean/text_to_image/recall@1" in records[-1]


def test_a_run_goes_on_with_features_where_it_stopped_with_pixels(folder: Path) -> None:
    found, truth = losses(folder / "mixed"), losses(folder / "pixels")
    assert found[:3] == truth[:3]
    assert found == pytest.approx(truth, abs=TOLERANCE)


def test_ranks_stages_and_cached_gradients_give_the_same_curve(folder: Path) -> None:
    jobs = ways(folder / "data" / "train")
    run_ranks(2, train_each, folder / "store2", jobs, folder / "two")
    for name in jobs:
        assert losses(folder / name) == pytest.approx(losses(folder / "zero0"), abs=2e-5)
        assert losses(folder / "two" / name) == pytest.approx(losses(folder / "zero0"), abs=2e-5)


def test_masked_language_modelling_looks_at_neither(folder: Path) -> None:
    assert losses(folder / "words") == losses(folder / "words_features")


def test_a_tower_that_trains_has_no_features() -> None:
    thawed = {**FROZEN, "image": {**FROZEN["image"], "frozen": False}}
    with pytest.raises(UserError, match=r"`data\.image_features` are of an image tower that stays"):
        run_config(Path("data"), True, model=thawed)
