"""How far two predictions are apart, for every kind of head."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import TaskModel
from mmalign.text.heads.features import (
    ChoiceModel,
    ClassificationModel,
    Pairs,
    SimilarityModel,
)
from mmalign.text.heads.ranking import RetrievalModel
from mmalign.text.heads.spans import SpanModel
from mmalign.text.heads.tagging import TaggingModel
from mmalign.text.robust.consistency import ConsistencyConfig, divergence
from mmalign.text.tasks.task import Answer, Example

Build = Callable[[Pairs], ClassificationModel]
WORDS = ("a", "red", "ball", "sleeps")


def models(tower: TextEncoder) -> dict[str, tuple[TaskModel, list[Example]]]:
    """A model of every kind with a batch of its examples."""
    one, two = ("a red ball", "a dog sleeps"), ("the cat sleeps on a green chair", "a cat")
    context = "the cat sleeps on a green chair"
    made: dict[str, tuple[TaskModel, list[Example]]] = {
        "similarity": (
            SimilarityModel(tower, "separate"),
            [Example("0", "en", one, 1.0), Example("1", "en", two, 4.0)],
        ),
        "choice": (
            ChoiceModel(tower, "joint"),
            [Example("0", "en", (*one, "green"), 1), Example("1", "en", two, 0)],
        ),
        "tagging": (
            TaggingModel(tower, ("A", "B", "C")),
            [
                Example("0", "en", WORDS, ("A", "B", "C", "A")),
                Example("1", "en", WORDS[:2], ("C", "B")),
            ],
        ),
        "span_qa": (
            SpanModel(tower),
            [
                Example("0", "en", ("a dog", context), (Answer("cat", 4),)),
                Example("1", "en", ("a ball", context), (Answer("green chair", 20),)),
            ],
        ),
        "retrieval": (
            RetrievalModel(tower),
            [Example("0", "en", one, ("x",)), Example("1", "en", two, ("y",))],
        ),
    }
    for model, _ in made.values():
        for layer in model.head.modules():
            if isinstance(layer, nn.Linear):
                generator = torch.Generator().manual_seed(1)
                nn.init.normal_(layer.weight, generator=generator)
        model.eval()
    return made


KINDS = ("similarity", "choice", "tagging", "span_qa", "retrieval")


def uniform(layer: str | int, epsilon: float = 0.5) -> ConsistencyConfig:
    tree = {"kind": "consistency", "view": {"kind": "uniform", "layer": layer, "epsilon": epsilon}}
    return validate(ConsistencyConfig, tree, "x.yaml")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("similarity", 1),
        ("choice", 1),
        *((kind, "last") for kind in KINDS),
        ("span_qa", "embedding"),
    ],
)
def test_every_kind_of_head_has_a_divergence(
    tower: TextEncoder, kind: str, layer: str | int
) -> None:
    model, examples = models(tower)[kind]
    batch = model.collate(examples)
    plain = model.losses(model(batch), batch).mean().item()
    loss = uniform(layer).backward(model, batch, seeded())
    assert plain + 1e-4 < loss < float("inf")
    assert all(one.grad is None or one.grad.isfinite().all() for one in model.parameters())
    assert sum(one.grad.abs().sum() for one in tower.parameters() if one.grad is not None) > 0
    logits = model(batch)
    assert divergence(model, logits, logits, batch) == 0


def test_it_is_the_kl_of_both_directions(model_of: Build, examples: list[Example]) -> None:
    model = model_of("joint")
    batch = model.collate(examples)
    first, second = (torch.randn(len(examples), 3, generator=seeded()) * k for k in (1, 2))
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    expected = F.kl_div(q, p, log_target=True, reduction="batchmean") + F.kl_div(
        p, q, log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(divergence(model, first, second, batch), expected)


def test_only_what_has_a_tag_counts(tower: TextEncoder) -> None:
    model, examples = models(tower)["tagging"]
    batch = model.collate(examples)
    logits = model(batch)
    elsewhere = (batch.target == -100)[..., None] * torch.randn(logits.shape, generator=seeded())
    assert divergence(model, logits, logits + elsewhere, batch) == 0
    assert divergence(model, logits, logits * 2, batch) > 0


def test_scores_are_compared_by_their_squares(tower: TextEncoder) -> None:
    model, examples = models(tower)["similarity"]
    batch = model.collate(examples)
    score = torch.tensor([[1.0], [2.0]])
    assert divergence(model, score, score + 3, batch) == pytest.approx(9)


def dictionary_view(folder: Path) -> ConsistencyConfig:
    (folder / "en-de.tsv").write_text("en\ttranslation\nball\tKugel\nred\trot\ncat\tKatze\n")
    view = {"kind": "code_switch", "dictionaries": str(folder), "sentence_ratio": 1.0}
    return validate(ConsistencyConfig, {"kind": "consistency", "view": view}, "x.yaml")


def test_switched_words_are_a_view(
    model_of: Build, examples: list[Example], tmp_path: Path
) -> None:
    model = model_of("separate")
    batch = model.collate(examples)
    plain = model.losses(model(batch), batch).mean().item()
    config = dictionary_view(tmp_path)
    first, second = (config.backward(model, batch, seeded()) for _ in range(2))
    assert first == second > plain


def test_rows_of_a_language_without_a_dictionary_are_no_other_view(
    model_of: Build, examples: list[Example], tmp_path: Path
) -> None:
    model, config = model_of("separate"), dictionary_view(tmp_path)
    english = examples[0]
    swahili = [replace(one, lang="sw") for one in examples[1:]]
    config.check([*swahili, english])

    def added(rows: list[Example]) -> float:
        batch = model.collate(rows)
        plain = model.losses(model(batch), batch).mean().item()
        return (config.backward(model, batch, seeded()) - plain) * len(rows)

    assert added(swahili) == pytest.approx(0, abs=1e-6)  # a batch may have no other rows
    # As much as the English row alone, whichever row is the first.
    for rows in ([english, *swahili], [*swahili, english]):
        assert added(rows) == pytest.approx(added([english]), rel=1e-4)
    assert added([english]) > 1e-3
    with pytest.raises(UserError, match="no dictionary leads from `sw` to"):
        config.check(swahili)


def test_neighbours_are_no_view_of_another_language(
    model_of: Build, examples: list[Example], tmp_path: Path
) -> None:
    (tmp_path / "near.tsv").write_text("word\tneighbours\nred\tgreen\nball\tdog\ncat\tdog\n")
    view = {"kind": "rs_da", "neighbours": str(tmp_path / "near.tsv")}
    config = validate(ConsistencyConfig, {"kind": "consistency", "view": view}, "x.yaml")
    model = model_of("separate")
    batch = model.collate(examples)
    plain = model.losses(model(batch), batch).mean().item()
    for source, changes in (("en", True), (None, True), ("sw", False)):
        model.source = source
        assert (config.backward(model, batch, seeded()) > plain + 1e-4) == changes


@pytest.mark.parametrize("kind", ["tagging", "span_qa", "retrieval"])
def test_other_texts_are_refused_where_predictions_have_positions(
    tower: TextEncoder, tmp_path: Path, kind: str
) -> None:
    model, examples = models(tower)[kind]
    with pytest.raises(UserError, match=r"method\.view\.kind"):
        dictionary_view(tmp_path).backward(model, model.collate(examples), seeded())


def test_a_view_is_one_copy() -> None:
    view = {"kind": "rs_da", "neighbours": "x.json", "copies": 3}
    with pytest.raises(UserError, match=r"view\.copies"):
        validate(ConsistencyConfig, {"kind": "consistency", "view": view}, "x.yaml")
