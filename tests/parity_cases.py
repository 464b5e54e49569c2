"""Functions that ranks run in the parity tests: the same global batch on any number of ranks."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from tiny import tiny_tokenizer
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import NOT_PREDICTED, Batch, StreamState
from mmalign.core.config import validate
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.training import loss_tiles
from mmalign.training.batch_norm import use_global_batch
from mmalign.training.engine import MODEL_FILE, Engine, EngineConfig
from mmalign.training.exchange import Exchange
from mmalign.training.meter import read_metrics
from mmalign.training.objective import (
    ObjectiveConfig,
    Outcome,
    exchange_ids,
    outcome_of,
    trained_module,
)
from mmalign.training.optimizer import OptimizerConfig

IMAGES = 8
STEPS = 4
# Captions per image. Their number differs between the halves and quarters of the batch.
CAPTIONS = (1, 3, 2, 1, 1, 1, 4, 2)
# Images 1 and 6 are equal. With two ranks they are on different ranks.
PICTURES = (10, 11, 12, 13, 14, 15, 11, 17)
# Batch normalisation is the hard case of the method, so it is tested in float64. In float32 its rounding
# exceeds the tolerance even on one rank (3e-6), so the engine is tested with a transformer.
IMAGE_TOWERS: dict[str, dict[str, Any]] = {
    "resnet10t": {"channels": (8, 8, 16, 16), "stem_width": 8},
    "vit_tiny_patch16_224": {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
}
ENGINE_TOWER = "vit_tiny_patch16_224"
OBJECTIVES: dict[str, ObjectiveConfig] = {
    name: TypeAdapter(ObjectiveConfig).validate_python(tree)
    for name, tree in {
        "contrastive": {"kind": "contrastive"},
        "text_text": {"kind": "contrastive", "text_text": 0.7},
        "prefixes": {"kind": "contrastive", "text_text": 0.7, "dims": (4, 8)},
        "masked_language_model": {"kind": "masked_language_model"},
    }.items()
}
MASK_ID = 4
MODEL: dict[str, Any] = {
    "text": {
        "architecture": {
            "model_type": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "max_length": 32,
    },
    "embedding": 16,
}


def build_model(image_tower: str, seed: int = 0) -> DualEncoder:
    tokenizer = tiny_tokenizer()
    options = IMAGE_TOWERS[image_tower]
    image = {"kind": "timm", "name": image_tower, "image_size": 32, "options": options}
    config = validate(ModelConfig, {**MODEL, "image": image}, "tests/parity_cases.py")
    torch.manual_seed(seed)
    return build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)


def make_batch(step: int, rank: int, world_size: int) -> Batch:
    """This rank's part of a global batch of 8 images and 15 captions.

    Of four ranks, the first has no token to predict, and the third has no two captions of one image.
    """
    generator = torch.Generator().manual_seed(step)
    # Noise of different colours: from noise alone an untrained tower makes nearly equal embeddings, whose
    # gradients are small differences, accurate to 1e-6 at best in float32.
    colour_BC11 = 3 * torch.randn(IMAGES, 3, 1, 1, generator=generator)
    image_BCHW = colour_BC11 + torch.randn(IMAGES, 3, 32, 32, generator=generator)
    token_NL = torch.randint(5, 40, (sum(CAPTIONS), 12), generator=generator)
    length_N = torch.randint(3, 13, (sum(CAPTIONS),), generator=generator)
    mask_NL = (torch.arange(12) < length_N[:, None]).to(torch.int64)
    predicted_NL = (torch.rand(token_NL.shape, generator=generator) < 0.3) & mask_NL.bool()
    predicted_NL[: CAPTIONS[0] + CAPTIONS[1]] = False
    images_per_rank = IMAGES // world_size
    images = range(rank * images_per_rank, (rank + 1) * images_per_rank)
    captions = slice(sum(CAPTIONS[: images.start]), sum(CAPTIONS[: images.stop]))
    counts = torch.tensor([CAPTIONS[i] for i in images])
    return Batch(
        image_BCHW=image_BCHW[images.start : images.stop],
        token_NL=token_NL[captions] * mask_NL[captions],
        mask_NL=mask_NL[captions],
        language_N=("en",) * int(counts.sum()),
        image_index_N=torch.repeat_interleave(torch.arange(images_per_rank), counts),
        picture_id_B=torch.tensor([PICTURES[i] for i in images]),
        key_B=tuple(str(i) for i in images),
        state=StreamState(0, (step + 1) * IMAGES),
        label_NL=token_NL.where(predicted_NL, NOT_PREDICTED)[captions],
        length_N=tuple(length_N[captions].tolist()),
    )


def masked(batch: Batch) -> Batch:
    """The batch for masked language modelling: without images and with masked tokens."""
    assert batch.label_NL is not None
    hidden_NL = batch.token_NL.where(batch.label_NL == NOT_PREDICTED, MASK_ID)
    return replace(batch, image_BCHW=None, token_NL=hidden_NL)


def make_batch_for(objective: str, step: int) -> Batch:
    batch = make_batch(step, distributed.rank(), distributed.world_size())
    return masked(batch) if objective == "masked_language_model" else batch


def outcome(config: ObjectiveConfig, forward: Any, batch: Batch) -> Outcome:
    return outcome_of(config, forward, batch, exchange_ids(Exchange(), config, batch))


def taken(engine: Engine, *batches: Batch) -> list[dict[str, float]]:
    """The metrics of steps on these batches."""
    return read_metrics([engine.step(batch) for batch in batches])


def plain_autograd(image_tower: str, objective: str = "contrastive") -> dict[str, Tensor]:
    """Loss and gradients of one float64 step, without DeepSpeed."""
    config = OBJECTIVES[objective]
    model = trained_module(config, build_model(image_tower)).double().train()
    use_global_batch(model)
    batch = make_batch_for(objective, 0)
    if batch.image_BCHW is not None:
        batch = replace(batch, image_BCHW=batch.image_BCHW.double())
    found = outcome(config, model, batch)
    found.local_loss.backward()
    out = {"loss": distributed.sum_over_ranks(found.parts["loss"])}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            out[name] = distributed.sum_over_ranks(parameter.grad)
    out |= {f"buffer/{n}": b.clone() for n, b in model.named_buffers() if "running" in n}
    return out


@dataclass(frozen=True)
class Way:
    """One way to compute the same step.

    Attributes:
        cached: whether the gradients are cached, with parts of 3, 3 or 1 images on 1, 2 or 4 ranks.
        tiled: whether the loss is computed in tiles of 2 x 2 scores.
        tokens: of the captions of a micro-batch; None: no limit.
    """

    zero_stage: int
    cached: bool = False
    tiled: bool = False
    tokens: int | None = None


# Every stage, both kinds of gradients and both kinds of losses; all combinations would take minutes.
SOME_WAYS = (Way(0), Way(1, cached=True), Way(2, tiled=True), Way(3, cached=True, tiled=True))
EVERY_WAY = tuple(
    Way(*way) for way in itertools.product((0, 1, 2, 3), (False, True), (False, True))
)
MASKED_WAYS = (Way(0), Way(3))
PREFIX_WAYS = (Way(0), Way(1, cached=True), Way(2, cached=True, tiled=True))


def through_the_engine(objective: str, ways: tuple[Way, ...]) -> dict[Way, dict[str, Any]]:
    """For each way: gradients of the first step, and the losses of all steps."""
    found: dict[Way, dict[str, Any]] = {}
    for way in ways:
        tile_side = loss_tiles.CPU_SIDE
        loss_tiles.CPU_SIDE = 2 if way.tiled else tile_side
        try:
            found[way] = _one_way(objective, way)
        finally:
            loss_tiles.CPU_SIDE = tile_side
    return found


def _one_way(objective: str, way: Way) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_grad

    engine = make_engine(objective, way)
    gradients: dict[str, Tensor] = {}
    update = engine._update

    def keep_gradients_and_update() -> Tensor:
        if engine.step_number == 0:
            named = ((n, p) for n, p in engine.module.named_parameters() if p.requires_grad)
            found = ((n, safe_get_full_grad(p)) for n, p in named)
            gradients.update({n: g.clone() for n, g in found if g is not None})
        return update()

    engine._update = keep_gradients_and_update  # type: ignore[method-assign]
    metrics = taken(engine, *(make_batch_for(objective, step) for step in range(STEPS)))
    return {
        "gradients": gradients,
        "losses": [m["loss"] for m in metrics],
        "grad_norms": [m["grad_norm"] for m in metrics],
        "metrics": list(metrics[0]),
        "weights": engine.capture()[1].get(MODEL_FILE, {}),
    }


def make_engine(objective: str, way: Way, seed: int = 0, min_temperature: float = 0.01) -> Engine:
    # Where a rank has enough images, the last part is smaller than the others.
    micro_batch = min(3, IMAGES // distributed.world_size() - 1) if way.cached else None
    tree = {
        "precision": "fp32",
        "zero_stage": way.zero_stage,
        "micro_batch": micro_batch,
        "tokens_per_micro_batch": way.tokens,
    }
    config = validate(EngineConfig, tree, "test")
    optimizer = validate(OptimizerConfig, {"lr": 1e-3, "warmup_steps": 2}, "test")
    model = build_model(ENGINE_TOWER, seed)
    return Engine(model, OBJECTIVES[objective], config, optimizer, 8, IMAGES, min_temperature)


def everything(ways: tuple[Way, ...]) -> dict[str, Any]:
    """One spawn for all cases, because starting ranks takes longer than running them."""
    masked_model = "masked_language_model"
    towers = {name: plain_autograd(name) for name in IMAGE_TOWERS}
    names = ("text_text", "prefixes", masked_model)
    others = {name: plain_autograd(ENGINE_TOWER, name) for name in names}
    return {
        "plain": {**towers, **others},
        "engine": through_the_engine("contrastive", ways),
        "prefix_engine": through_the_engine("prefixes", PREFIX_WAYS),
        "masked_engine": through_the_engine(masked_model, MASKED_WAYS),
    }
