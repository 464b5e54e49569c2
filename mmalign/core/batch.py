"""The values that flow through mmalign, from a shard to the loss.

    Pair (one sample of a shard) -> Batch (what one rank trains on) -> Embeddings (what the loss sees)

Shape suffixes used here and in every other module:

    B  images of this rank          N  captions of this rank (N >= B)
    C  channels, H height, W width  L  tokens of the longest caption of the batch
    D  width of the shared space     F  width of the image tower
"""

from dataclasses import dataclass, fields, replace

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
    """What one rank trains on in one step. Integer tensors are int64."""

    image_BCHW: Tensor | None  # uint8 RGB, channels-last; None if no pixels are used
    token_NL: Tensor  # ids, padded to the longest caption of this rank's batch
    mask_NL: Tensor  # 1 on tokens and 0 on padding
    language_N: tuple[str, ...]  # BCP-47
    image_index_N: Tensor  # which image of this rank a caption describes
    picture_id_B: Tensor  # equal, on all ranks, where the data say that the images are the same
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
        inside_N = (self.image_index_N >= first) & (self.image_index_N < last)
        chosen = inside_N.nonzero().flatten().tolist()
        return replace(
            self,
            image_BCHW=None if self.image_BCHW is None else self.image_BCHW[first:last],
            token_NL=self.token_NL[inside_N],
            mask_NL=self.mask_NL[inside_N],
            language_N=tuple(self.language_N[n] for n in chosen),
            image_index_N=self.image_index_N[inside_N] - first,
            picture_id_B=self.picture_id_B[first:last],
            key_B=self.key_B[first:last],
            label_NL=None if self.label_NL is None else self.label_NL[inside_N],
            length_N=tuple(self.length_N[n] for n in chosen) if self.length_N else (),
            text_N=tuple(self.text_N[n] for n in chosen) if self.text_N else (),
            teacher_ND=None if self.teacher_ND is None else self.teacher_ND[inside_N],
            feature_BF=None if self.feature_BF is None else self.feature_BF[first:last],
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a batch by the two towers: rows of unit length in the shared space."""

    image_BD: Tensor
    text_ND: Tensor
    logit_scale: Tensor  # inverse temperature, (1,), float32 whatever the towers' precision
    logit_bias: Tensor | None = None  # likewise; what the sigmoid loss adds to every score
