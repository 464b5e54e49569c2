"""Distillation: embeddings come to a teacher's, on any number of ranks, with the contrastive loss or not."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import parity_cases
import pytest
import torch
from parity_cases import ENGINE_TOWER, Way, build_model, make_batch, make_engine
from PIL import Image
from ranks import run_ranks
from run_cases import assert_equal_weights, config, losses, measured, mmalign
from shard_sets import make_pair, make_set
from tiny import MODEL, tiny_run

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.models.encoder import ExternalModel, load_encoder
from mmalign.training.distillation import distillation_loss
from mmalign.training.objective import ContrastiveConfig
from mmalign.training.run_config import RunConfig

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def loss_of(rows: list[int]) -> float:
    """The loss over two ranks, or one, of which each has some of four captions."""
    generator = torch.Generator().manual_seed(0)
    text_ND, teacher_ND = torch.randn((2, 4, 8), generator=generator, dtype=torch.float64)
    teacher_ND[1] = 0  # in a language that is not distilled
    share = len(rows) // distributed.world_size()
    mine = rows[distributed.rank() * share :][:share]
    count = sum(row != 1 for row in rows)
    local_loss = distillation_loss(text_ND[mine], teacher_ND[mine], count)
    return float(distributed.sum_over_ranks(local_loss))


def test_the_loss_is_the_mean_over_all_ranks(tmp_path: Path) -> None:
    whole = loss_of([0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    text_ND, teacher_ND = torch.randn((2, 4, 8), generator=generator, dtype=torch.float64)
    wanted = (1 - (text_ND * teacher_ND).sum(1))[[0, 2, 3]].mean()
    assert whole == pytest.approx(float(wanted), abs=1e-12)
    assert run_ranks(2, loss_of, tmp_path / "ranks", [0, 1, 2, 3]) == pytest.approx([whole] * 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns a teacher's vectors alone, of English captions, complete and in two parts."""
    folder = tmp_path_factory.mktemp("distillation")
    make_set(folder / "data", 14)
    tiny_run(folder / "teacher")
    text = {**MODEL["text"], "architecture": {**MODEL["text"]["architecture"], **STILL}}
    distillation = {"teacher": "teacher", "languages": ["EN"]}  # the data say `en`
    objective = {"kind": "contrastive", "image_text": 0, "distillation": distillation}
    tree = config(folder / "data", model={**MODEL, "text": text}, objective=objective)
    tree |= {"steps": 12, "optimizer": {"lr": 1e-2}}
    (folder / "run.yaml").write_text(write_yaml(tree))
    mmalign("train", "run.yaml", "--out", "whole", folder=folder)
    mmalign("train", "run.yaml", "--out", "parts", "--stop-after", "4", folder=folder)
    mmalign("train", "run.yaml", "--out", "parts", folder=folder)
    return folder


def test_the_embeddings_come_to_the_teachers(runs: Path) -> None:
    english = [make_pair(number, ("en",)).captions[0].text for number in range(14)]
    teacher = load_encoder(runs / "teacher").encode_texts(english)
    cosines = [
        (load_encoder(runs / "whole", untrained).encode_texts(english) * teacher).sum(1).mean()
        for untrained in (True, False)
    ]
    assert cosines[1] > cosines[0] + 0.3
    logged = measured(runs / "whole", "distillation_loss")
    assert logged[-1][1] < logged[0][1] - 0.3
    assert losses(runs / "whole") == pytest.approx(dict(logged))  # no other loss counts


def test_a_stop_changes_nothing(runs: Path) -> None:
    assert losses(runs / "parts") == losses(runs / "whole")
    assert_equal_weights(runs / "parts", runs / "whole")


def test_two_ranks_and_cached_gradients_give_the_same(runs: Path) -> None:
    changes = ["model.image.frozen=true", "objective.image_text=1", "steps=3", "--out"]
    mmalign("train", "run.yaml", *changes, "one", folder=runs)
    mmalign("train", "run.yaml", "engine.micro_batch=1", *changes, "cached", folder=runs)
    mmalign("train", "run.yaml", "engine.zero_stage=2", *changes, "two", ranks=2, folder=runs)
    for other in ("cached", "two"):
        for name in ("loss", "distillation_loss"):
            one, found = ([v for _, v in measured(runs / r, name)] for r in ("one", other))
            np.testing.assert_allclose(found, one, rtol=2e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["model.embedding=8"], "teacher has vectors of 16 dimensions; set `model.embedding`"),
        (["model.embedding=8", "--dry-run"], "teacher has vectors of 16 dimensions; set"),
        (
            ["objective.distillation.languages=[en, xx]"],
            "objective.distillation.languages: `xx` is not in the training data; it has",
        ),
        (
            ["objective.language_weights={xx: 2.0}"],
            "objective.language_weights: `xx` is not in the training data; it has",
        ),
        (["objective.distillation.teacher=no/such/teacher"], "no/such/teacher: no model"),
    ],
)
def test_what_does_not_fit_is_one_sentence(runs: Path, changes: list[str], reason: str) -> None:
    refused = mmalign("train", "run.yaml", *changes, "--out", "no", expect=1, folder=runs)
    assert reason in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


@pytest.fixture(scope="module")
def taught(folder: Path) -> Path:
    """Runs that learn the vectors that another run has of images alone: from pixels, and from features."""
    distillation = {"teacher": "whole", "weight": 0, "image_weight": 1.0}
    objective = {"kind": "contrastive", "image_text": 0, "distillation": distillation}
    vit = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    image = {"kind": "timm", "name": "vit_tiny_patch16_224", "image_size": 16, "options": vit}
    tree = config(folder / "data", model={**MODEL, "image": image}, objective=objective)
    del tree["data"]["augmentation"]  # cached features are of images as they are
    tree |= {"steps": 8, "optimizer": {"lr": 1e-2}}
    (folder / "taught.yaml").write_text(write_yaml(tree))
    mmalign("train", "taught.yaml", "--out", "pixels", folder=folder)
    refused = mmalign("train", "taught.yaml", FEATURES, "--out", "no", expect=1, folder=folder)
    assert "image_features, of the teacher: " in refused.stderr
    assert "make them with `mmalign embed RUN --data" in refused.stderr
    mmalign("embed", "whole", "--data", "data", folder=folder)
    features = ("train", "taught.yaml", FEATURES, "--out")
    mmalign(*features, "features", folder=folder)
    mmalign(*features, "features_parts", "--stop-after", "4", folder=folder)
    mmalign(*features, "features_parts", folder=folder)
    return folder


FEATURES = "objective.distillation.image_features=true"


def test_the_embeddings_of_images_come_to_the_teachers(taught: Path) -> None:
    images = [make_pair(number, ("en",)).image for number in range(14)]
    teacher = load_encoder(taught / "whole").encode_images(images)
    cosines = [
        (load_encoder(taught / "pixels", untrained).encode_images(images) * teacher).sum(1).mean()
        for untrained in (True, False)
    ]
    assert cosines[1] > cosines[0] + 0.3
    logged = measured(taught / "pixels", "image_distillation_loss")
    assert losses(taught / "pixels") == pytest.approx(dict(logged))  # no other loss counts
    assert measured(taught / "pixels", "distillation_loss") == []


def test_cached_features_of_a_teacher_teach_the_same(taught: Path) -> None:
    first, second = (
        measured(taught / run, "image_distillation_loss")[0][1] for run in ("pixels", "features")
    )
    # The student sees 16 pixels a side, and so does its teacher; the features are of 32.
    assert second == pytest.approx(first, abs=0.05)
    assert measured(taught / "features", "image_distillation_loss")[-1][1] < first - 0.3
    assert losses(taught / "features_parts") == losses(taught / "features")
    assert_equal_weights(taught / "features_parts", taught / "features")


def taught_gradients(teacher: str) -> dict[Way, dict[str, Any]]:
    """Loss, its parts and gradients of one step, of each way, on any number of ranks."""
    from deepspeed.utils import safe_get_full_grad

    distillation = {"teacher": teacher, "weight": 0.5, "image_weight": 0.7, "languages": ["en"]}
    tree = {"kind": "contrastive", "image_text": 0, "distillation": distillation}
    parity_cases.OBJECTIVES["taught"] = validate(ContrastiveConfig, tree, "test")
    found = {}
    for way in (Way(0), Way(1, cached=True), Way(2), Way(3, cached=True)):
        engine = make_engine("taught", way)
        outcome = engine.backward(taught_batch(distributed.rank(), distributed.world_size()))
        parts = {name: float(distributed.sum_over_ranks(t)) for name, t in outcome.parts.items()}
        gradients = {
            name: safe_get_full_grad(parameter).clone()
            for name, parameter in engine.module.named_parameters()
        }
        found[way] = {"parts": parts, "gradients": gradients}
    return found


def taught_batch(rank: int, world_size: int) -> Batch:
    """The batch of the parity tests as texts, of which every third one is not in English."""
    batch = make_batch(0, rank, world_size)
    first = sum(len(make_batch(0, r, world_size).language_N) for r in range(rank))
    numbers = range(first, first + len(batch.language_N))
    return replace(
        batch,
        text_N=tuple(f"{'a red ball ' * (n % 4)}and a dog" for n in numbers),
        language_N=tuple("de" if n % 3 == 0 else "en" for n in numbers),
    )


def by_autograd(teacher: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The same by plain autograd, written out."""
    batch, model = taught_batch(0, 1), build_model(ENGINE_TOWER)
    encoder = load_encoder(Path(teacher))
    assert batch.image_BCHW is not None
    with torch.no_grad():
        wanted_BD = encoder.model.encode_image(batch.image_BCHW)
    english = [n for n, language in enumerate(batch.language_N) if language == "en"]
    wanted_ND = torch.from_numpy(encoder.encode_texts([batch.text_N[n] for n in english]))
    image_BD = model.encode_image(batch.image_BCHW)
    text_ND = model.encode_text(batch.token_NL, batch.mask_NL)[english]
    of_images = (1 - (image_BD * wanted_BD).sum(1)).mean()
    of_texts = (1 - (text_ND * wanted_ND).sum(1)).mean()
    loss = 0.5 * of_texts + 0.7 * of_images
    loss.backward()
    named = {"distillation_loss": of_texts, "image_distillation_loss": of_images, "loss": loss}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: float(value.detach()) for name, value in named.items()}, gradients


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_gradients_are_those_of_plain_autograd(tmp_path: Path, ranks: int) -> None:
    teacher = str(tiny_run(tmp_path / "teacher"))
    parts, wanted = by_autograd(teacher)
    norm = torch.nn.utils.get_total_norm(list(wanted.values()))
    for on_rank in run_ranks(ranks, taught_gradients, tmp_path / "ranks", teacher):
        for way, found in on_rank.items():
            assert found["parts"] == pytest.approx(parts, rel=1e-5), way
            for name, gradient in found["gradients"].items():
                difference = (gradient - wanted.get(name, torch.zeros(()))).norm()
                assert difference < 1e-6 * norm, (way, name)


def test_pixels_and_encoded_images_give_the_same_vectors(tmp_path: Path) -> None:
    encoder = load_encoder(tiny_run(tmp_path / "run"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    files = []
    for one in pixels:
        Image.fromarray(one).save(buffer := io.BytesIO(), "PNG")
        files.append(buffer.getvalue())
    image_BCHW = torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def means(images: list[Image.Image]) -> torch.Tensor:
        pixels = np.stack([np.asarray(one.resize((2, 2))) for one in images])
        return torch.from_numpy(pixels.mean((1, 2)))

    external = ExternalModel("x", "test", torch.nn.Linear(1, 1), lambda _: torch.ones(1, 3), means)
    for model in (encoder, external):
        found = model.encode_pixels(image_BCHW)
        np.testing.assert_allclose(found, model.encode_images(files), atol=1e-6)
    # Of another size they are resized to the model's own.
    larger = torch.nn.functional.interpolate(image_BCHW.float(), scale_factor=2.0).byte()
    cosine = (encoder.encode_pixels(larger) * encoder.encode_pixels(image_BCHW)).sum(1)
    assert cosine.min() > 0.9
    blind = ExternalModel("blind", "test", torch.nn.Linear(1, 1), lambda _: torch.ones(1, 3))
    with pytest.raises(UserError, match="blind: a text encoder without an image tower"):
        blind.encode_pixels(image_BCHW)


@pytest.mark.parametrize(
    ("distillation", "reason"),
    [
        ({"weight": 0}, "`weight` and `image_weight` are 0, which distils nothing"),
        ({"weight": 0, "image_weight": 1, "languages": ["en"]}, "`languages` are of captions"),
        ({"image_features": True}, "`image_features` need an `image_weight`"),
        ({"image_weight": 1}, "needs pixels, which `data.image_features` leaves out"),
    ],
)
def test_fields_that_do_not_fit_are_refused(
    tmp_path: Path, distillation: dict[str, Any], reason: str
) -> None:
    objective = {"kind": "contrastive", "distillation": {"teacher": "x", **distillation}}
    model = {**MODEL, "image": {**MODEL["image"], "frozen": True}}
    tree = config(tmp_path, objective=objective, model=model)
    tree["data"] |= {"image_features": True, "augmentation": {}}
    with pytest.raises(UserError, match=reason):
        validate(RunConfig, tree, "test")


def test_no_loss_at_all_is_refused(tmp_path: Path) -> None:
    objective: dict[str, Any] = {"kind": "contrastive", "image_text": 0}
    with pytest.raises(UserError, match="`image_text: 0` leaves no loss"):
        validate(RunConfig, config(tmp_path, objective=objective), "test")
