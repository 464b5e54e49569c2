"""The training objective: the module that is trained, and the loss of a batch.

    config, dual encoder          -> trained_module   -> what the engine wraps
    config, its forward, a batch  -> outcome_of       -> local_loss and metrics
    config, embeddings, a batch   -> contrast         -> the same from embeddings (cached gradients)

To add a loss: write it in `loss.py` and give it a name in `LOSSES` there.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.batch import NOT_PREDICTED, Batch, Embeddings
from mmalign.core.config import Section
from mmalign.models.dual_encoder import DualEncoder
from mmalign.models.masked_language_model import MaskedLanguageModel
from mmalign.training.distillation import DistillationConfig, distillation_loss
from mmalign.training.loss import LOSSES, LossName, text_text_loss

# Fields that a loss gets where they are set, if it takes them.
_OPTIONS = ("label_smoothing", "dims")


class ContrastiveConfig(Section):
    """Contrastive learning of images and captions (CLIP, arXiv 2103.00020)."""

    kind: Literal["contrastive"]
    loss: LossName = "softmax"
    """softmax: CLIP's, with many positives; sigmoid: SigLIP's, which needs `model.logit_bias`."""
    image_text: float = pydantic.Field(default=1.0, ge=0)
    """Weight of the loss between images and captions; 0 leaves the others alone."""
    text_text: float = pydantic.Field(default=0.0, ge=0)
    """Weight of the loss between captions of one image; give `data.captions_per_image` of 2 or more."""
    distillation: DistillationConfig | None = None
    """Draw the embeddings of captions to those of a teacher."""
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of a softmax target that is spread over all columns of its row."""
    language_weights: dict[str, pydantic.PositiveFloat] = pydantic.Field(default={})
    """Weight of a caption's loss by its language, for example {sw: 2.0}; 1 for languages not named."""
    dims: tuple[pydantic.PositiveInt, ...] = ()
    """Prefixes of the embeddings, for example [64, 128], that are trained to be embeddings of their own: the
    loss is the mean over them and all dimensions (Matryoshka, arXiv 2205.13147)."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "ContrastiveConfig":
        takes = inspect.signature(LOSSES[self.loss]).parameters
        for name in _OPTIONS:
            if getattr(self, name) and name not in takes:
                raise ValueError(f"`{name}` has no meaning for `loss: {self.loss}`; remove it")
        if len(set(self.dims)) < len(self.dims):
            raise ValueError(
                "`dims` lists a length twice, which would count its loss twice; keep one"
            )
        if not (self.image_text or self.text_text or self.distillation):
            raise ValueError("`image_text: 0` leaves no loss; give `text_text` or `distillation`")
        return self


class MaskedLanguageModelConfig(Section):
    """Prediction of masked tokens of the captions, without images (BERT, arXiv 1810.04805)."""

    kind: Literal["masked_language_model"]
    share: float = pydantic.Field(default=0.15, gt=0, lt=1)
    """Share of the tokens to predict."""


ObjectiveConfig = Annotated[
    ContrastiveConfig | MaskedLanguageModelConfig, pydantic.Field(discriminator="kind")
]


@dataclass(frozen=True)
class Outcome:
    """The loss of a batch."""

    # Without dimensions, with its graph. Its sum over ranks is the global loss, and the sum of its gradients
    # the gradient of that.
    local_loss: Tensor
    metrics: dict[str, Tensor]  # detached, of the global batch, equal on all ranks

    @property
    def to_minimise(self) -> Tensor:
        """local_loss, or NaN where the global loss is not finite."""
        # On every rank: otherwise a rank whose own part is finite would produce gradients that look valid.
        is_finite = self.metrics["loss"].isfinite().all()
        return self.local_loss * torch.where(is_finite, 1.0, torch.nan).to(self.local_loss.dtype)


def trained_module(config: ObjectiveConfig, model: DualEncoder) -> nn.Module:
    """The module whose forward `outcome_of` calls: the model, or the model with a head.

    For masked language modelling everything but the text tower of `model` is frozen, in place.
    """
    return MaskedLanguageModel(model) if isinstance(config, MaskedLanguageModelConfig) else model


def outcome_of(config: ObjectiveConfig, forward: Callable[..., Any], batch: Batch) -> Outcome:
    """The loss of this rank's batch, on its device; `forward`: of `trained_module`, or of its wrapper."""
    if isinstance(config, MaskedLanguageModelConfig):
        return _predict_tokens(forward, batch)
    return contrast(config, embed(forward, batch), batch)


def embed(forward: Callable[..., Embeddings], batch: Batch) -> Embeddings:
    """The embeddings of a batch, with their graph."""
    texts = (batch.token_NL, batch.mask_NL, batch.length_N)
    if batch.feature_BF is not None:
        return forward(None, *texts, batch.feature_BF)
    assert batch.image_BCHW is not None
    # Convolutions are faster in this layout.
    return forward(batch.image_BCHW.contiguous(memory_format=torch.channels_last), *texts)


def contrast(config: ContrastiveConfig, embeddings: Embeddings, batch: Batch) -> Outcome:
    """The contrastive loss of this rank's embeddings among those of all ranks."""
    weight_N = None
    if config.language_weights:
        weights = [config.language_weights.get(lang, 1.0) for lang in batch.language_N]
        weight_N = torch.tensor(weights, device=batch.token_NL.device)
    ids = (batch.picture_id_B, batch.picture_id_N)
    options = {name: value for name in _OPTIONS if (value := getattr(config, name))}
    # With a weight of 0 as well: every parameter has a gradient, which ZeRO's hooks need.
    image_text = LOSSES[config.loss](embeddings, *ids, weight_N=weight_N, **options)
    local_loss = config.image_text * image_text
    metrics: dict[str, Tensor] = {}
    if config.text_text:
        text_text = text_text_loss(embeddings, batch.picture_id_N, dims=config.dims)
        local_loss = local_loss + config.text_text * text_text
        metrics["text_text_loss"] = distributed.sum_over_ranks(text_text)
    if config.distillation is not None:
        assert batch.teacher_ND is not None
        distilled = distillation_loss(embeddings.text_ND, batch.teacher_ND)
        local_loss = local_loss + config.distillation.weight * distilled
        metrics["distillation_loss"] = distributed.sum_over_ranks(distilled)
    # In double, so that the record shows no float32 rounding of the quotient.
    metrics["temperature"] = 1 / embeddings.logit_scale.detach().double()
    if embeddings.logit_bias is not None:
        metrics["logit_bias"] = embeddings.logit_bias.detach()
    return Outcome(local_loss, {"loss": distributed.sum_over_ranks(local_loss), **metrics})


def _predict_tokens(forward: Callable[..., Any], batch: Batch) -> Outcome:
    assert batch.label_NL is not None
    predicted_NL = batch.label_NL != NOT_PREDICTED
    label_P = batch.label_NL[predicted_NL]
    logits_PV: Tensor = forward(batch.token_NL, batch.mask_NL, predicted_NL)
    # At least 1: a global batch of very short captions may have nothing to predict; its loss is then 0.
    count = distributed.sum_over_ranks(predicted_NL.sum()).clamp(min=1)
    local_loss = F.cross_entropy(logits_PV, label_P, reduction="sum") / count
    right = (logits_PV.detach().argmax(1) == label_P).sum()
    accuracy = distributed.sum_over_ranks(right) / count
    return Outcome(
        local_loss, {"loss": distributed.sum_over_ranks(local_loss), "accuracy": accuracy}
    )
