"""The training objective: the module that is trained, and the loss of a batch.

    config, dual encoder          -> trained_module   -> what the engine wraps
    config, a batch on the host   -> exchange_ids     -> the ids of all ranks (a collective)
    config, its forward, a batch  -> outcome_of       -> local_loss and metrics
    config, embeddings, ids       -> contrast         -> the same from embeddings (cached gradients)

To add a loss: write it in `loss.py` and give it a name in `LOSSES` there.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.core.batch import NOT_PREDICTED, Batch, Embeddings
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder
from mmalign.models.masked_language_model import MaskedLanguageModel
from mmalign.training.distillation import DistillationConfig, distillation_loss
from mmalign.training.exchange import NO_VOTES, Exchange, GlobalIds, Votes
from mmalign.training.loss import LOSSES, LossName, gather, text_text_loss

# Fields that a loss gets where they are set, if it takes them.
_OPTIONS = ("label_smoothing", "dims", "bf16_scores")


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
    """Draw the embeddings of captions or images to those of a teacher."""
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of a softmax target that is spread over all columns of its row."""
    language_weights: dict[str, pydantic.PositiveFloat] = pydantic.Field(default={})
    """Weight of a caption's loss by its language, for example {sw: 2.0}; 1 for languages not named."""
    dims: tuple[pydantic.PositiveInt, ...] = ()
    """Prefixes of the embeddings, for example [64, 128], that are trained to be embeddings of their own: the
    loss is the mean over them and all dimensions (Matryoshka, arXiv 2205.13147)."""
    bf16_scores: bool = False
    """Round what enters the matrix products of the losses between embeddings to bfloat16; sums stay float32.
    Faster on GPUs with tensor cores."""

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

    def check_languages(self, known: Collection[str]) -> None:
        """Refuse a field that names a language without captions: it would have no effect (UserError)."""
        taught = self.distillation.languages if self.distillation else None
        named = {"language_weights": self.language_weights, "distillation.languages": taught or ()}
        for field, languages in named.items():
            if lacking := sorted(set(languages) - set(known)):
                raise UserError(
                    f"objective.{field}: `{lacking[0]}` is not in the training data; it has "
                    f"{', '.join(sorted(known))}"
                )


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
    # Detached metrics without dimensions: those whose sum over ranks is that of the global batch, and those
    # that are equal on all ranks.
    parts: dict[str, Tensor]
    shared: dict[str, Tensor]

    @property
    def to_minimise(self) -> Tensor:
        """local_loss, or NaN where it is not finite."""
        # An infinite loss may have finite gradients. NaN reaches every gradient of this rank, and by their
        # sum those of all ranks.
        is_finite = self.local_loss.detach().isfinite()
        return self.local_loss * torch.where(is_finite, 1.0, torch.nan).to(self.local_loss.dtype)


def trained_module(config: ObjectiveConfig, model: DualEncoder) -> nn.Module:
    """The module whose forward `outcome_of` calls: the model, or the model with a head.

    For masked language modelling everything but the text tower of `model` is frozen, in place.
    """
    return MaskedLanguageModel(model) if isinstance(config, MaskedLanguageModelConfig) else model


def exchange_ids(
    exchange: Exchange,
    config: ObjectiveConfig,
    batch: Batch,
    votes: Votes = NO_VOTES,
    passes: int = 1,
) -> GlobalIds:
    """What the loss of a batch needs to know of the other ranks' parts, and the ranks' votes and passes."""
    ids = (batch.picture_id_B, batch.picture_id_N)
    if isinstance(config, MaskedLanguageModelConfig):
        assert batch.label_NL is not None
        return exchange(*ids, None, int((batch.label_NL != NOT_PREDICTED).sum()), votes)
    weight_N = None
    if config.language_weights:
        weights = [config.language_weights.get(lang, 1.0) for lang in batch.language_N]
        weight_N = torch.tensor(weights, dtype=torch.float64)
    taught = config.distillation.captions(batch) if config.distillation else []
    return exchange(*ids, weight_N, len(taught), votes, passes)


def outcome_of(
    config: ObjectiveConfig, forward: Callable[..., Any], batch: Batch, ids: GlobalIds
) -> Outcome:
    """The loss of this rank's batch, on its device.

    Args:
        forward: of `trained_module`, or of its wrapper.
        ids: what `exchange_ids` returned for the batch.
    """
    if isinstance(config, MaskedLanguageModelConfig):
        return _predict_tokens(forward, batch, ids)
    return contrast(config, embed(forward, batch), batch, ids)


def embed(forward: Callable[..., Embeddings], batch: Batch) -> Embeddings:
    """The embeddings of a batch, with their graph."""
    texts = (batch.token_NL, batch.mask_NL, batch.length_N)
    if batch.feature_BF is not None:
        return forward(None, *texts, batch.feature_BF)
    assert batch.image_BCHW is not None
    # Convolutions are faster in this layout.
    return forward(batch.image_BCHW.contiguous(memory_format=torch.channels_last), *texts)


def contrast(
    config: ContrastiveConfig, embeddings: Embeddings, batch: Batch, ids: GlobalIds
) -> Outcome:
    """The contrastive loss of this rank's embeddings among those of all ranks."""
    gathered = gather(embeddings, ids)
    options = {name: value for name in _OPTIONS if (value := getattr(config, name))}
    # With a weight of 0 as well: every parameter has a gradient, which ZeRO's hooks need.
    local_loss = config.image_text * LOSSES[config.loss](embeddings, gathered, **options)
    parts: dict[str, Tensor] = {}
    if config.text_text:
        text_text = text_text_loss(
            embeddings, gathered, dims=config.dims, bf16_scores=config.bf16_scores
        )
        local_loss = local_loss + config.text_text * text_text
        parts["text_text_loss"] = text_text.detach()
    if config.distillation is not None:
        weights = (config.distillation.weight, config.distillation.image_weight)
        if batch.teacher_ND is not None:
            distilled = distillation_loss(embeddings.text_ND, batch.teacher_ND, ids.targets)
            local_loss = local_loss + weights[0] * distilled
            parts["distillation_loss"] = distilled.detach()
        if batch.teacher_BD is not None:
            distilled = distillation_loss(embeddings.image_BD, batch.teacher_BD, sum(ids.images))
            local_loss = local_loss + weights[1] * distilled
            parts["image_distillation_loss"] = distilled.detach()
    # In double, so that the record shows no float32 rounding of the quotient.
    shared = {"temperature": 1 / embeddings.logit_scale.detach().double().reshape(())}
    if embeddings.logit_bias is not None:
        shared["logit_bias"] = embeddings.logit_bias.detach().reshape(())
    return Outcome(local_loss, {"loss": local_loss.detach(), **parts}, shared)


def _predict_tokens(forward: Callable[..., Any], batch: Batch, ids: GlobalIds) -> Outcome:
    assert batch.label_NL is not None
    predicted_NL = batch.label_NL != NOT_PREDICTED
    label_P = batch.label_NL[predicted_NL]
    logits_PV: Tensor = forward(batch.token_NL, batch.mask_NL, predicted_NL)
    # At least 1: a global batch of very short captions may have nothing to predict; its loss is then 0.
    count = max(1, ids.targets)
    local_loss = F.cross_entropy(logits_PV, label_P, reduction="sum") / count
    right = (logits_PV.detach().argmax(1) == label_P).sum()
    return Outcome(local_loss, {"loss": local_loss.detach(), "accuracy": right / count}, {})
