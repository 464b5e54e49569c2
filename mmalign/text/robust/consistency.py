"""Training for equal predictions on a batch and on a disturbed view of it.

    batch -> model -> logits -----------------------+-> loss -------------------+
                                                    |                           +-> sum -> gradients
    batch -> noise or other texts -> model -> logits +-> divergence * weight ---+

The divergence is the symmetric Kullback-Leibler one, averaged over what is classified (examples; words in
tagging; starts and ends in span_qa), and for scores the mean squared difference. This form is ours; related
methods are SMART (arXiv 1911.03437) and xTune (arXiv 2106.08226). Labels are compared with the clean
predictions alone.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.heads.features import FeatureModel, SimilarityModel
from mmalign.text.heads.spans import SpanModel
from mmalign.text.heads.tagging import TaggingModel
from mmalign.text.robust import noise
from mmalign.text.robust.code_switch import CodeSwitchConfig, tables_of
from mmalign.text.robust.noise import UniformConfig
from mmalign.text.robust.rs_da import RsDaConfig
from mmalign.text.tasks.task import Example


class NoiseView(UniformConfig):
    """Uniform noise, as in RS-RP."""

    kind: Literal["uniform"]


class ConsistencyConfig(Section):
    kind: Literal["consistency"]
    weight: float = Field(default=1.0, ge=0)
    """Of the divergence, beside the loss on the labels."""
    view: Annotated[NoiseView | RsDaConfig | CodeSwitchConfig, Field(discriminator="kind")]
    """What the batch is compared with: noise in a layer, or its texts rewritten."""

    @pydantic.model_validator(mode="after")
    def _one_view(self) -> "ConsistencyConfig":
        if isinstance(self.view, RsDaConfig) and self.view.copies != 1:
            raise ValueError("a view is one copy; leave `view.copies` out")
        return self

    def check(self, train: Sequence[Example]) -> None:
        """Check before the first step whether the view can change a training example.

        Raises:
            UserError: no dictionary leads from a language of the examples.
        """
        if isinstance(self.view, CodeSwitchConfig):
            tables_of(self.view, train)

    def backward(self, model: TaskModel, batch: TaskBatch, generator: torch.Generator) -> float:
        """Loss plus weighted divergence, the mean of the batch; see `method.py`.

        Raises:
            UserError: other texts as a view of tagging, span question answering or retrieval.
        """
        if isinstance(self.view, NoiseView):
            clean, view = _with_noise(model, batch, self.view, generator)
        else:
            clean, view = _with_texts(model, batch, self.view, generator)
        loss = model.losses(clean, batch).mean()
        loss = loss + self.weight * divergence(model, clean, view, batch)
        loss.backward()
        return loss.item()


def divergence(model: TaskModel, clean: Tensor, view: Tensor, batch: TaskBatch) -> Tensor:
    """Scalar, how far apart two sets of the model's logits for one batch are; 0 where they are equal."""
    if isinstance(model, SimilarityModel):
        return F.mse_loss(view, clean)
    clean_RK, view_RK = (_rows(model, logits, batch).log_softmax(-1) for logits in (clean, view))
    # KL(p || q) + KL(q || p) in one: the sum of (p - q) (log p - log q).
    return ((clean_RK.exp() - view_RK.exp()) * (clean_RK - view_RK)).sum(-1).mean()


def _rows(model: TaskModel, logits: Tensor, batch: TaskBatch) -> Tensor:
    # (R, K), one row for each thing that the model classifies.
    if isinstance(model, SpanModel):  # (N, L, 2): which of L tokens is the start, which the end
        return logits.transpose(1, 2).flatten(0, 1)
    if isinstance(model, TaggingModel):  # (N, L, K), of which only first sub-tokens have a tag
        return logits[batch.target != -100]
    return logits


def _with_noise(
    model: TaskModel, batch: TaskBatch, view: NoiseView, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    tower, tokens = model.tower, batch.tokens
    delta_NLF = view.draw(model, batch, generator)
    if view.layer == "last":  # the encoder runs once
        state_NLF = tower.states(tokens)
        return model.logits(state_NLF, batch), model.logits(state_NLF + delta_NLF, batch)
    with noise.replayed(tower):  # the view has the dropout of the clean pass
        clean = model(batch)
    return clean, model.logits(noise.states(tower, tokens, view.layer, delta_NLF), batch)


def _with_texts(
    model: TaskModel,
    batch: TaskBatch,
    view: RsDaConfig | CodeSwitchConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    if not isinstance(model, FeatureModel):
        raise UserError(
            f"method.view.kind: {view.kind} needs one label, score or choice per example; use uniform"
        )
    rewrite = view.rewriter(batch.examples, model.source)
    # Words are drawn by numpy, so the generator only draws a seed.
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    random = np.random.default_rng(int(seed))
    # The dropout of the two differs as their lengths do.
    return model(batch), model(model.collate([rewrite(one, random) for one in batch.examples]))
