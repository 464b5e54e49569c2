"""The values that flow through mmalign, from a shard to the loss.

    Pair (one sample of a shard) -> Batch (what one rank trains on) -> Embeddings (what the loss sees)

Shape suffixes used here and in every other module:

    B  images of this rank          N  captions of this rank (N >= B)
    C  channels, H height, W width  L  tokens of the longest caption of the batch
    D  width of the shared space     F  width of the image tower
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Caption:
    lang: str  # BCP-47, for example `sw`, `pt-BR`, `zh-Hant`
    text: str
    field: str = ""  # which of several kinds of captions it is, such as `alt` or `recaption`


@dataclass(frozen=True)
class Pair:
    """One sample of a shard: an encoded image and its captions."""

    key: str
    image: bytes
    captions: tuple[Caption, ...]
    # The identity that equal images share: two samples with the same `picture` are never each other's
    # negatives, and either one answers a query for the other. By default it is the key.
    picture: str
    split: str
    source: str
    license: str
    attribution: str | None = None


@dataclass(frozen=True)
class StreamState:
    """How far a run is in the global order: the next batch starts there, whatever the number of ranks."""

    seed: int
    position: int  # counts images from the run's first one; the epoch follows from it


@dataclass(frozen=True)
class Unusable:
    """A sample that could not be used and was replaced by another one at its position."""

    position: int
    attempt: int  # 0: the sample that the global order has there; else the number of the substitute
    data: str  # folder of its data set
    shard: str
    key: str
    reason: str  # a key of mmalign.data.reasons.REASONS


NOT_PREDICTED = -100  # the label that torch's cross entropy leaves out by default


@dataclass(frozen=True)
class Batch:
    """What one rank trains on in one step. Integer tensors are int64.

    Whatever the towers see moves to the GPU (`to`); ids, indices and lengths stay on the host, so that sizes
    are known there.
    """

    image_BCHW: Tensor | None  # uint8 RGB, channels-last; None if no pixels are used
    token_NL: Tensor  # ids, padded to the longest caption of this rank's batch
    mask_NL: Tensor  # 1 on tokens and 0 on padding
    language_N: tuple[str, ...]  # BCP-47
    image_index_N: Tensor  # which image of this rank a caption describes; ascending, on the host
    # On the host; equal, on all ranks, where the data say that the images are the same.
    picture_id_B: Tensor
    key_B: tuple[str, ...]
    state: StreamState  # how far the stream is after this batch
    # The token to predict, NOT_PREDICTED where there is none; None without masked language modelling.
    label_NL: Tensor | None = None
    # Tokens of each row up to its last one, empty if not known; on the host, so that captions of similar
    # length can share a forward pass without waiting for a GPU.
    length_N: tuple[int, ...] = ()
    # float16, cached features of a frozen image tower, instead of pixels.
    feature_BF: Tensor | None = None
    text_N: tuple[str, ...] = ()  # the captions themselves, for a teacher with another tokenizer
    teacher_ND: Tensor | None = None  # a teacher's embeddings of the captions; zeros: of none
    teacher_BD: Tensor | None = None  # and of the images
    teacher_BF: Tensor | None = None  # float16, cached features of the teacher's image tower
    unusable: tuple[
        Unusable, ...
    ] = ()  # samples of this rank's positions that were replaced by others

    @property
    def picture_id_N(self) -> Tensor:
        """The identity of the image that each caption describes."""
        return self.picture_id_B[self.image_index_N]

    def part(self, first: int, last: int) -> "Batch":
        """The images `first` ... `last - 1` of this rank with their captions."""
        # A caption belongs to the part of its image, so parts have different numbers of captions.
        edges = torch.tensor([first, last])
        of_part = slice(*torch.searchsorted(self.image_index_N, edges).tolist())
        return replace(
            self,
            image_BCHW=None if self.image_BCHW is None else self.image_BCHW[first:last],
            token_NL=self.token_NL[of_part],
            mask_NL=self.mask_NL[of_part],
            language_N=self.language_N[of_part],
            image_index_N=self.image_index_N[of_part] - first,
            picture_id_B=self.picture_id_B[first:last],
            key_B=self.key_B[first:last],
            label_NL=None if self.label_NL is None else self.label_NL[of_part],
            length_N=self.length_N[of_part],
            text_N=self.text_N[of_part],
            teacher_ND=None if self.teacher_ND is None else self.teacher_ND[of_part],
            feature_BF=None if self.feature_BF is None else self.feature_BF[first:last],
            teacher_BD=None if self.teacher_BD is None else self.teacher_BD[first:last],
            teacher_BF=None if self.teacher_BF is None else self.teacher_BF[first:last],
        )

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the towers and a teacher see."""
        names = ("image_BCHW", "token_NL", "mask_NL", "label_NL", "feature_BF", "teacher_BF")
        return {name: t for name in names if (t := getattr(self, name)) is not None}

    def to(self, device: torch.device) -> "Batch":
        """The same batch with the towers' inputs on `device`."""
        moved: dict[str, Any] = {name: send(t, device) for name, t in self.inputs.items()}
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The same batch with the towers' inputs in memory that a GPU copies from by itself."""
        pinned: dict[str, Any] = {name: t.pin_memory() for name, t in self.inputs.items()}
        return replace(self, **pinned)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, without waiting for what the device does."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from other memory a copy would wait
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a batch by the two towers: rows of unit length in the shared space."""

    image_BD: Tensor
    text_ND: Tensor
    logit_scale: Tensor  # inverse temperature, (1,), float32 whatever the towers' precision
    logit_bias: Tensor | None = None  # likewise; what the sigmoid loss adds to every score
