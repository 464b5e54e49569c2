"""The dual encoder: two towers, two projections into one space, one temperature.

    image_BCHW         -> image tower -> feature_BF -> projection -> unit length -> image_BD
    token_NL, mask_NL  -> text tower                -> projection -> unit length -> text_ND

A frozen image tower gives an image the same feature every time, so cached features may be given instead.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.core.batch import Embeddings
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.image_tower import ImageTower, ImageTowerConfig, build_image_tower
from mmalign.models.lora import inject_lora, merge_lora
from mmalign.models.text_tower import TextTower, TextTowerConfig, build_text_tower
from mmalign.models.trained_parameters import choose_parameters, freeze_statistics


class ModelConfig(Section):
    image: ImageTowerConfig
    text: TextTowerConfig
    embedding: int = pydantic.Field(default=512, ge=2)
    """D, the width of the shared space."""
    text_projection: Literal["linear", "mlp", "none"] = "linear"
    """The map into the shared space. mlp: two layers with a GELU between (open_clip's `hf_proj_type`). none:
    the text tower's own space is the shared one, so a sentence encoder has it before any training."""
    temperature: float = pydantic.Field(default=0.07, gt=0)
    """At the start; it is learned."""
    min_temperature: float = pydantic.Field(default=0.01, gt=0)
    """The temperature never falls below this (CLIP, arXiv 2103.00020: 0.01)."""
    logit_bias: float | None = None
    """Added to every score by the sigmoid loss; learned (SigLIP starts at -10, temperature 0.1)."""


class DualEncoder(nn.Module):
    """An image tower and a text tower that meet in a space of D dimensions.

    Attributes:
        image_projection, text_projection: maps without biases; `none` is an Identity.
        logit_scale: (1,) float32, the natural logarithm of the inverse temperature (CLIP's convention).
        logit_bias: (1,) float32, or None.
    """

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: ModelConfig) -> None:
        super().__init__()
        choose_parameters(image_tower, config.image)
        choose_parameters(text_tower, config.text)
        if config.text.train_embeddings is not None:
            table = text_tower.trunk.get_input_embeddings().weight
            table.requires_grad_(config.text.train_embeddings)
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_projection = _linear(image_tower.width, config.embedding)
        self.text_projection = _text_projection(config, text_tower.width)
        # Shape (1,) and not (): DeepSpeed cannot take a parameter without dimensions.
        self.logit_scale = nn.Parameter(torch.tensor([-math.log(config.temperature)]))
        bias = config.logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    def train(self, mode: bool = True) -> "DualEncoder":
        super().train(mode)
        for tower in (self.image_tower, self.text_tower):
            freeze_statistics(tower)
        return self

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) pixels (see `ImageTower.forward`) -> (B, D) of unit length."""
        return _unit_length(self.image_projection(self.image_tower(image_BCHW)))

    def encode_feature(self, feature_BF: Tensor) -> Tensor:
        """(B, F) of a floating dtype, features of the image tower -> (B, D) of unit length."""
        dtype = self.image_projection.weight.dtype
        return _unit_length(self.image_projection(feature_BF.to(dtype)))

    def encode_text(
        self, token_NL: Tensor, mask_NL: Tensor, length_N: Sequence[int] = ()
    ) -> Tensor:
        """(N, L) token ids and their mask -> (N, D) of unit length; `length_N`: see `TextTower.forward`."""
        return _unit_length(self.text_projection(self.text_tower(token_NL, mask_NL, length_N)))

    def forward(
        self,
        image_BCHW: Tensor | None,
        token_NL: Tensor,
        mask_NL: Tensor,
        length_N: Sequence[int] = (),
        feature_BF: Tensor | None = None,
    ) -> Embeddings:
        """Both sides of a batch; its images are `image_BCHW`, or `feature_BF` where that is given."""
        if feature_BF is not None:
            image_BD = self.encode_feature(feature_BF)
        else:
            assert image_BCHW is not None
            image_BD = self.encode_image(image_BCHW)
        return Embeddings(
            image_BD=image_BD,
            text_ND=self.encode_text(token_NL, mask_NL, length_N),
            logit_scale=self.logit_scale.exp(),
            # A view: `exp` gives the scale a graph of its own, and the bias needs one as well.
            logit_bias=None if self.logit_bias is None else self.logit_bias.view(1),
        )


def build_dual_encoder(config: ModelConfig, vocabulary: int, padding_id: int) -> DualEncoder:
    """The model that the configuration describes; `vocabulary`, `padding_id`: of the tokenizer."""
    # Random weights come from torch's global generator, and both towers draw: the image tower first.
    image_tower = build_image_tower(config.image)
    return DualEncoder(image_tower, build_text_tower(config.text, vocabulary, padding_id), config)


def add_adapters(model: DualEncoder, config: ModelConfig, seed: int) -> None:
    """Put the adapters of `lora` into the towers, in place; their names then differ (`plain_weights`)."""
    sides = {"image": config.image.lora, "text": config.text.lora}
    if any(sides.values()):
        torch.manual_seed(seed)  # the same on all ranks
    for side, lora in sides.items():
        if lora is not None:
            inject_lora(getattr(model, f"{side}_tower").trunk, lora, f"model.{side}.lora")


def plain_weights(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a checkpoint under the names of a model without adapters, which are merged."""
    sides = {"image_tower.": config.image.lora, "text_tower.": config.text.lora}
    return merge_lora(state, {side: lora.alpha for side, lora in sides.items() if lora is not None})


def _text_projection(config: ModelConfig, width: int) -> nn.Module:
    if config.text_projection == "none":
        if width != config.embedding:
            raise UserError(
                f"model.embedding: {config.embedding}, but `text_projection: none` makes it the width of the "
                f"text tower; set {width}"
            )
        return nn.Identity()
    make = _perceptron if config.text_projection == "mlp" else _linear
    return make(width, config.embedding)


def _linear(width: int, embedding: int) -> nn.Linear:
    projection = nn.Linear(width, embedding, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)  # as CLIP does
    return projection


def _perceptron(width: int, embedding: int) -> nn.Sequential:
    hidden = (width + embedding) // 2  # as open_clip does
    return nn.Sequential(_linear(width, hidden), nn.GELU(), _linear(hidden, embedding))


def _unit_length(rows: Tensor) -> Tensor:
    # In 16-bit arithmetic a row's length would be off by a percent; float64 stays float64.
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)
