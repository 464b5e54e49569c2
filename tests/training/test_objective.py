"""What a batch comes to under each objective, against hand-made truths; over ranks see test_parity.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import gathered
from parity_cases import ENGINE_TOWER, OBJECTIVES, build_model, make_batch, masked, outcome
from tiny import MODEL, tiny_model
from torch import Tensor

from mmalign.core.batch import NOT_PREDICTED, Embeddings
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.training.exchange import Exchange
from mmalign.training.loss import contrastive_loss, text_text_loss
from mmalign.training.objective import (
    ContrastiveConfig,
    contrast,
    embed,
    exchange_ids,
    trained_module,
)
from mmalign.training.run_config import RunConfig

RUN: dict[str, Any] = {
    "name": "small",
    "steps": 2,
    "batch_size": 4,
    "data": {"train": ["data/x"]},
    "tokenizer": {"kind": "trained"},
    "model": MODEL,
    "optimizer": {"lr": 1e-3},
}


def embeddings(texts: int) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(texts, 8, generator=generator, dtype=torch.float64)
    text_ND = F.normalize(drawn, dim=-1).requires_grad_()
    return Embeddings(text_ND[:1], text_ND, torch.tensor([5.0], dtype=torch.float64))


def test_the_text_text_term_on_a_hand_made_case() -> None:
    found = embeddings(6)
    # Captions 0, 1, 3 describe one picture and 2, 4 another; caption 5 has no partner.
    picture_N = torch.tensor([7, 7, 9, 7, 9, 8])
    score = (5.0 * found.text_ND @ found.text_ND.T).tolist()
    partners = {0: [1, 3], 1: [0, 3], 3: [0, 1], 2: [4], 4: [2]}

    def row(i: int) -> float:
        negatives = [j for j in range(6) if j != i and j not in partners[i]]
        rest = sum(math.exp(score[i][j]) for j in negatives)
        pairs = [-math.log(math.exp(s := score[i][j]) / (math.exp(s) + rest)) for j in partners[i]]
        return sum(pairs) / len(pairs)

    expected = sum(map(row, partners)) / len(partners)
    assert text_text_loss(*gathered(found, picture_N[:1], picture_N)).item() == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("weights", [{}, {"image_text": 0.0, "text_text": 1.0}])
def test_rounded_scores_reach_every_loss(loss: Any, weights: dict[str, float]) -> None:
    batch = make_batch(0, 0, 1)
    found = replace(embed(build_model(ENGINE_TOWER).eval(), batch), logit_bias=torch.tensor([-1.0]))

    def value(**options: bool) -> float:
        config = ContrastiveConfig(kind="contrastive", loss=loss, **weights, **options)
        ids = exchange_ids(Exchange(), config, batch)
        return contrast(config, found, batch, ids).local_loss.item()

    plain, rounded = value(), value(bf16_scores=True)
    assert rounded != plain
    assert rounded == pytest.approx(plain, rel=1e-2)


def test_a_caption_alone_is_a_negative_but_has_no_row() -> None:
    found = embeddings(3)
    picture_N = torch.tensor([1, 1, 2])
    gradient = torch.autograd.grad(
        text_text_loss(*gathered(found, picture_N[:1], picture_N)), found.text_ND
    )[0]
    assert gradient[2].norm() > 0  # as a negative of the other two
    assert gradient.isfinite().all()


@pytest.mark.parametrize("pictures", [[1, 2, 3], [1, 1, 1], [1]])
def test_without_partners_or_negatives_the_text_text_term_is_zero(pictures: list[int]) -> None:
    found = embeddings(len(pictures))
    loss = text_text_loss(*gathered(found, torch.tensor(pictures[:1]), torch.tensor(pictures)))
    loss.backward()
    assert loss.item() == 0


def test_a_weight_of_zero_is_the_plain_loss_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model().eval(), make_batch(0, 0, 1)
    assert batch.image_BCHW is not None
    image_BCHW = batch.image_BCHW.contiguous(memory_format=torch.channels_last)
    found = model(image_BCHW, batch.token_NL, batch.mask_NL)
    plain = contrastive_loss(*gathered(found, batch.picture_id_B, batch.picture_id_N))
    with monkeypatch.context() as patch:
        patch.delattr("mmalign.training.objective.text_text_loss")  # computes nothing extra
        zero = outcome(ContrastiveConfig(kind="contrastive", text_text=0.0), model, batch)
    assert zero.local_loss.equal(plain)
    assert set(zero.parts | zero.shared) == {"loss", "temperature"}
    half = outcome(ContrastiveConfig(kind="contrastive", text_text=0.5), model, batch)
    assert set(half.parts) == {"loss", "text_text_loss"}
    extra = text_text_loss(*gathered(found, batch.picture_id_B, batch.picture_id_N))
    assert half.local_loss.item() == pytest.approx((plain + 0.5 * extra).item(), rel=1e-6)
    assert half.parts["text_text_loss"].item() == pytest.approx(extra.item(), rel=1e-6)


def test_prefixes_are_below_the_width_and_named_once() -> None:
    def run(**objective: Any) -> RunConfig:
        tree = {**RUN, "objective": {"kind": "contrastive", **objective}}
        return validate(RunConfig, tree, "x")

    assert run(dims=[2, 4]).objective.dims == (2, 4)
    with pytest.raises(UserError, match=r"`objective.dims` must be below `model.embedding` \(16\)"):
        run(dims=[4, 16])
    with pytest.raises(UserError, match="`dims` lists a length twice"):
        run(dims=[4, 4])


def test_masked_words_are_scored_by_their_mean_cross_entropy() -> None:
    config = OBJECTIVES["masked_language_model"]
    module = trained_module(config, build_model(ENGINE_TOWER)).eval()
    batch = masked(make_batch(0, 0, 1))
    assert batch.label_NL is not None
    everywhere = torch.ones_like(batch.mask_NL).bool()
    logits_NLV: Tensor = module(batch.token_NL, batch.mask_NL, everywhere).unflatten(0, (15, 12))
    expected = F.cross_entropy(logits_NLV.transpose(1, 2), batch.label_NL)
    found = outcome(config, module, batch)
    assert found.parts["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    right = (logits_NLV.argmax(2) == batch.label_NL).sum() / (batch.label_NL >= 0).sum()
    assert found.parts["accuracy"].item() == pytest.approx(right.item())


def test_a_batch_with_nothing_to_predict_has_no_loss_and_no_gradient() -> None:
    config = OBJECTIVES["masked_language_model"]
    module = trained_module(config, build_model(ENGINE_TOWER))
    batch = masked(make_batch(0, 0, 1))
    batch = replace(batch, label_NL=torch.full_like(batch.token_NL, NOT_PREDICTED))
    found = outcome(config, module, batch)
    found.local_loss.backward()
    assert (found.local_loss.item(), found.parts["accuracy"].item()) == (0, 0)
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_a_run_without_an_objective_is_contrastive_and_mistakes_get_one_sentence() -> None:
    assert validate(RunConfig, RUN, "x").objective == OBJECTIVES["contrastive"]
    with pytest.raises(UserError, match=r"`objective.kind` is `masked`"):
        validate(RunConfig, {**RUN, "objective": {"kind": "masked"}}, "x")
    with pytest.raises(UserError, match="`seed` is over the largest integer of 64 bits; lower it"):
        validate(RunConfig, {**RUN, "seed": 2**64}, "x")
    with pytest.raises(UserError, match=r"`objective.text_text` is -1"):
        validate(RunConfig, {**RUN, "objective": {"kind": "contrastive", "text_text": -1}}, "x")
    with pytest.raises(UserError, match=r"set `data.captions_per_image` to 2 or more"):
        validate(RunConfig, {**RUN, "objective": {"kind": "contrastive", "text_text": 1}}, "x")
    frozen = {**MODEL, "text": {**MODEL["text"], "frozen": True}}
    tree = {**RUN, "model": frozen, "objective": {"kind": "masked_language_model"}}
    with pytest.raises(UserError, match=r"model.text.frozen` leaves .* nothing; remove it"):
        validate(RunConfig, tree, "x")
    tree = {**tree, "model": MODEL, "data": {**RUN["data"], "shuffle_images": True}}
    with pytest.raises(UserError, match=r"`data.shuffle_images` is of the contrastive objective"):
        validate(RunConfig, tree, "x")
