"""Distillation: the text tower's embeddings are drawn to those of a teacher that does not change.

    captions of a batch -> teacher (any model that `mmalign eval` reads) -> teacher_ND
    text_ND, teacher_ND -> distillation_loss -> mean of 1 - cosine over the captions of the chosen languages

A teacher of English alone keeps the English of an encoder that learns other languages through images. A CLIP
text encoder as the teacher is the idea of mCLIP (ACL 2023) and AltCLIP (arXiv 2211.06679). The teacher sees
the captions as texts, so it may have another tokenizer.
"""

from dataclasses import replace

import pydantic
import torch
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.load import load_model


class DistillationConfig(Section):
    teacher: str
    """A run, an export or a model of another library; its vectors must have `model.embedding` dimensions."""
    languages: tuple[str, ...] | None = None
    """Captions in these languages are distilled; none: all."""
    weight: float = pydantic.Field(default=1.0, gt=0)
    """Of this loss beside the others."""

    def captions(self, batch: Batch) -> list[int]:
        """Numbers of the captions that are distilled."""
        chosen = self.languages
        return [n for n, lang in enumerate(batch.language_N) if chosen is None or lang in chosen]


class Teacher:
    """The teacher on this rank; UserError: it cannot be loaded, or is not `width` wide."""

    def __init__(self, config: DistillationConfig, width: int) -> None:
        self._config = config
        self._model = distributed.on_all(lambda: load_model(config.teacher))
        if self._model.width != width:
            raise UserError(
                f"objective.distillation.teacher: {config.teacher} has vectors of {self._model.width} "
                f"dimensions; set `model.embedding` to that, it is {width}"
            )

    def teach(self, batch: Batch) -> Batch:
        """The batch with `teacher_ND`, (N, D) float32 of unit length; rows of zeros in other languages."""
        chosen = self._config.captions(batch)
        teacher_ND = torch.zeros(len(batch.text_N), self._model.width, device=batch.token_NL.device)
        if chosen:
            vectors = self._model.encode_texts([batch.text_N[row] for row in chosen])
            teacher_ND[chosen] = torch.from_numpy(vectors).to(teacher_ND)
        return replace(batch, teacher_ND=teacher_ND)


def distillation_loss(text_ND: Tensor, teacher_ND: Tensor, count: int) -> Tensor:
    """This rank's part of the mean of 1 - cosine over all ranks' `count` captions that the teacher embeds."""
    distance_N = 1 - (text_ND * teacher_ND.to(text_ND.dtype)).sum(1)
    # At least 1: a batch may have no caption in these languages; its loss is then 0.
    return (distance_N * teacher_ND.any(1)).sum() / max(1, count)
