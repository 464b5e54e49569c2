"""Distillation: embeddings of captions, images or both are drawn to those of a teacher that does not change.

    captions of a batch                          -> teacher (whatever `mmalign eval` reads) -> teacher_ND
    its images, as the student sees them         -> teacher                  -+-> teacher_BD
    features that `mmalign embed TEACHER` cached -> the teacher's projection -+
    text_ND, teacher_ND and image_BD, teacher_BD -> distillation_loss -> mean of 1 - cosine

A teacher of English alone keeps the English of an encoder that learns other languages through images. A CLIP
text encoder as the teacher is the idea of mCLIP (ACL 2023) and AltCLIP (arXiv 2211.06679). A teacher of
images gives a small image tower the space of a large one; both see the same view (arXiv 2106.05237). The
teacher gets texts and pixels, so it may have another tokenizer and another image size.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pydantic
import torch
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.config import Section, read_yaml
from mmalign.core.errors import UserError
from mmalign.core.precision import inference
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.image_features import FeatureSet, open_features
from mmalign.evaluation.feature_cache import describe_tower
from mmalign.evaluation.measured import Language
from mmalign.models.encoder import Encoder, finite, run_of
from mmalign.models.load import load_model


class DistillationConfig(Section):
    teacher: str
    """A run, an export or a model of another library; its vectors must have `model.embedding` dimensions."""
    languages: tuple[Language, ...] | None = None
    """Captions in these languages are distilled; none: all."""
    weight: float = pydantic.Field(default=1.0, ge=0)
    """Of the captions' loss beside the others; 0: captions are not distilled."""
    image_weight: float = pydantic.Field(default=0.0, ge=0)
    """Likewise of the images' loss."""
    image_features: bool = False
    """Take the teacher's images from what `mmalign embed TEACHER` wrote beside the shards; a run alone has
    these. They are of images without augmentation."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "DistillationConfig":
        if not (self.weight or self.image_weight):
            raise ValueError("`weight` and `image_weight` are 0, which distils nothing; give one")
        if self.languages is not None and not self.weight:
            raise ValueError("`languages` are of captions, whose `weight` is 0; remove one of them")
        if self.image_features and not self.image_weight:
            raise ValueError("`image_features` need an `image_weight`; give one, or remove them")
        return self

    def captions(self, batch: Batch) -> list[int]:
        """Numbers of the captions that are distilled."""
        chosen = self.languages
        if not self.weight:
            return []
        return [n for n, lang in enumerate(batch.language_N) if chosen is None or lang in chosen]


def check_teacher(config: DistillationConfig, width: int) -> None:
    """Refuse a run that is not `width` wide, by its configuration; of other teachers nothing is read."""
    file = run_of(Path(config.teacher)) / "config.yaml"
    section = read_yaml(file).get("model") if file.is_file() else None
    if isinstance(section, dict):
        _check_width(config.teacher, section.get("embedding", width), width)


def _check_width(teacher: str, found: int, width: int) -> None:
    if found != width:
        raise UserError(
            f"objective.distillation.teacher: {teacher} has vectors of {found} dimensions; set "
            f"`model.embedding` to that, it is {width}"
        )


class Teacher:
    """The teacher on this rank.

    Raises:
        UserError: it cannot be loaded, is not `width` wide, or has no images though these are distilled.
    """

    def __init__(self, config: DistillationConfig, width: int) -> None:
        self._config, name = config, config.teacher
        self._model = distributed.on_all(lambda: load_model(name))
        distributed.must_agree(self._model.facts.get("sha256"), f"{name}: the teacher's weights")
        _check_width(name, self._model.width, width)
        if not config.image_weight:
            return
        if config.image_features:
            if not isinstance(self._model, Encoder):
                raise UserError(
                    f"objective.distillation.image_features: {name} is no run, and `mmalign embed` caches "
                    "features of runs alone; remove the field"
                )
            tower = self._model.model.image_tower
            self._tower = describe_tower(tower)
            tower.to("meta")  # its memory is free: only the projection behind it is used
        else:
            # Refuses a teacher without an image tower, or whose vectors are not finite.
            black_BCHW = torch.zeros((1, 3, 32, 32), dtype=torch.uint8, device=distributed.device())
            vector = distributed.on_all(lambda: self._model.encode_pixels(black_BCHW))
            finite(vector.cpu().numpy(), self._model.facts)

    def open_features(self, sets: Sequence[ShardSet]) -> list[FeatureSet] | None:
        """The cached features of data sets, if these are read; on all ranks. Raises as `open_features`."""
        if not self._config.image_features:
            return None
        try:
            return distributed.on_all(lambda: [open_features(one, self._tower) for one in sets])
        except UserError as error:
            raise UserError(
                f"objective.distillation.image_features, of the teacher: {error}"
            ) from None

    def teach(self, batch: Batch) -> Batch:
        """The batch with the teacher's embeddings, float32 of unit length.

        These are `teacher_ND`, with rows of zeros for captions that are not distilled, and `teacher_BD`.
        """
        device = batch.token_NL.device
        if self._config.weight:
            chosen = self._config.captions(batch)
            teacher_ND = torch.zeros(len(batch.text_N), self._model.width, device=device)
            if chosen:
                vectors = self._model.encode_texts([batch.text_N[row] for row in chosen])
                teacher_ND[chosen] = torch.from_numpy(vectors).to(teacher_ND)
            batch = replace(batch, teacher_ND=teacher_ND)
        if self._config.image_weight:
            batch = replace(batch, teacher_BD=self._images(batch))
        return batch

    def _images(self, batch: Batch) -> Tensor:
        if batch.teacher_BF is None:
            assert batch.image_BCHW is not None
            return self._model.encode_pixels(batch.image_BCHW)
        assert isinstance(self._model, Encoder)
        with inference(self._model.precision):
            return self._model.model.encode_feature(batch.teacher_BF).float()


def distillation_loss(embedding_ND: Tensor, teacher_ND: Tensor, count: int) -> Tensor:
    """This rank's part of the mean of 1 - cosine over all ranks' `count` rows that the teacher embeds."""
    distance_N = 1 - (embedding_ND * teacher_ND.to(embedding_ND.dtype)).sum(1)
    # At least 1: a batch may have no caption in these languages; its loss is then 0.
    return (distance_N * teacher_ND.any(1)).sum() / max(1, count)
