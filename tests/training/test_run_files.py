"""Run files are valid and can be planned; those of a comparison differ in what is compared alone."""

import json
from pathlib import Path

import pytest

from mmalign.core.config import load_config
from mmalign.study.config import StudyConfig
from mmalign.training.dry_run import dry_run
from mmalign.training.objective import ContrastiveConfig, MaskedLanguageModelConfig
from mmalign.training.run_config import RunConfig

TRAIN = Path(__file__).parents[2] / "train"
EVAL = TRAIN.parent / "eval"
SHARED = {"seed", "steps", "batch_size", "data", "tokenizer", "model", "engine"}


def run(name: str) -> RunConfig:
    config = load_config(RunConfig, TRAIN / f"{name}.yaml")
    assert config.name == name
    return config


@pytest.mark.parametrize("name", sorted(path.stem for path in TRAIN.glob("*.yaml")))
def test_every_run_can_be_planned_without_hub_and_data(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("planning a run needs no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.chdir(tmp_path)
    table = dry_run(run(name), nodes=1, gpus_per_node=8)
    assert f"{name} on 1 x 8 GPUs" in table


def test_a_run_that_goes_on_has_the_model_of_its_first_run() -> None:
    first, then = run("clip_vit_b_32_xlm_r"), run("continue_low_resource")
    assert then.init_from == f"runs/{first.name}"
    same_text = {"architecture", "pooling", "max_length"}
    assert then.model.text.model_dump(include=same_text) == first.model.text.model_dump(
        include=same_text
    )
    assert then.model.image.name == first.model.image.name
    assert then.model.embedding == first.model.embedding


STUDIES = {"emoji_scenes": "study_demo", "storybooks": "study_storybooks"}


def variant(study: str, tower: str) -> RunConfig:
    """The run of a study's tower, with the fields that it sets."""
    config = load_config(StudyConfig, EVAL / f"{study}.yaml").towers[tower]
    changes = [f"{field}={json.dumps(value)}" for field, value in config.set.items()]
    assert config.run is not None
    return load_config(RunConfig, TRAIN.parent / config.run, changes)


@pytest.mark.parametrize("name", STUDIES)
def test_the_text_only_control_sees_the_same(name: str) -> None:
    contrastive, control = run(name), variant(STUDIES[name], "masked_language_model")
    assert control.name == f"{name}_mlm"
    assert control.model_dump(include=SHARED) == contrastive.model_dump(include=SHARED)
    assert isinstance(contrastive.objective, ContrastiveConfig)
    assert isinstance(control.objective, MaskedLanguageModelConfig)
    without_rate = {"lr", "text_lr"}
    assert control.optimizer.model_dump(exclude=without_rate) == contrastive.optimizer.model_dump(
        exclude=without_rate
    )


def test_the_run_with_a_text_text_term_differs_in_it_and_in_the_captions_it_needs() -> None:
    plain, other = run("emoji_scenes"), variant("study_demo", "image_and_text_aligned")
    same = SHARED | {"optimizer"}
    assert other.model_dump(include=same - {"data"}) == plain.model_dump(include=same - {"data"})
    captions = {"train", "captions_per_image"}
    assert other.data.model_dump(exclude=captions) == plain.data.model_dump(exclude=captions)
    assert other.data.captions_per_image >= 2
    assert other.objective == ContrastiveConfig(kind="contrastive", text_text=1.0)
    assert plain.objective == ContrastiveConfig(kind="contrastive")
