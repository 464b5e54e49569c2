"""The values that flow through mmalign, from a shard to the loss.

    Pair (one sample of a shard) -> Batch (what one rank trains on) -> Embeddings (what the loss sees)

Shape suffixes used here and in every other module:

    B  images of this rank          N  captions of this rank (N >= B)
    C  channels, H height, W width  L  tokens of the longest caption of the batch
    D  width of the shared space     F  width of the image tower
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Caption:
    """One caption: its language (BCP-47, for example `sw`, `pt-BR`, `zh-Hant`) and its text."""

    lang: str
    text: str


@dataclass(frozen=True)
class Pair:
    """One sample of a shard: an encoded image and its captions.

    `picture` is the identity that equal images share: two samples with the same `picture` are never each
    other's negatives, and either one answers a query for the other. By default it is the key.
    """

    key: str
    image: bytes
    captions: tuple[Caption, ...]
    picture: str
    split: str
    source: str
    license: str
    attribution: str | None = None


@dataclass(frozen=True)
class StreamState:
    """How far a run is in the global order. `position` counts images from the run's first one.

    The next global batch starts at `position`, whatever the number of ranks and workers; the epoch
    follows from it (`position // samples of one epoch`).
    """

    seed: int
    position: int

    def to_json(self) -> dict[str, int]:
        return {"seed": self.seed, "position": self.position}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "StreamState":
        return cls(seed=int(tree["seed"]), position=int(tree["position"]))


@dataclass(frozen=True)
class Unusable:
    """A sample that could not be used and was replaced by another one at its position.

    Attributes:
        attempt: 0: the sample that the global order has at the position; else the number of the substitute.
        data: folder of its data set.
        reason: a key of mmalign.data.reasons.REASONS.
    """

    position: int
    attempt: int
    data: str
    shard: str
    key: str
    reason: str


NOT_PREDICTED = -100  # the label that torch's cross entropy leaves out by default


@dataclass(frozen=True)
class Batch:
    """What one rank trains on in one step.

    image_BCHW      uint8 RGB pixels in the memory format channels-last; None if no pixels are used
    token_NL        int64 token ids, padded to the longest caption of this rank's batch
    mask_NL         int64, 1 on tokens and 0 on padding
    language_N      BCP-47 code of each caption
    image_index_N   int64, which image of this rank a caption describes
    picture_id_B    int64, equal, on all ranks, where the data say that the images are the same
    key_B           the samples' keys
    state           how far the stream is after this batch
    label_NL        int64, the token to predict at each token position, NOT_PREDICTED where there is none;
                    None without masked language modelling
    length_N        tokens of each row of token_NL up to its last one, empty if not known; on the host, so
                    that captions of similar length can share a forward pass without waiting for a GPU
    feature_BF      float16, cached image features of a frozen image tower, used instead of pixels; None if
                    there are pixels, or if no images are used
    unusable        samples of this rank's positions that were replaced by others
    """

    image_BCHW: Tensor | None
    token_NL: Tensor
    mask_NL: Tensor
    language_N: tuple[str, ...]
    image_index_N: Tensor
    picture_id_B: Tensor
    key_B: tuple[str, ...]
    state: StreamState
    label_NL: Tensor | None = None
    length_N: tuple[int, ...] = ()
    feature_BF: Tensor | None = None
    unusable: tuple[Unusable, ...] = ()

    @property
    def picture_id_N(self) -> Tensor:
        """int64, the identity of the image that each caption describes."""
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
    """The embeddings of a batch by the two towers: rows of unit length in the shared space.

    `logit_scale` is the inverse temperature, shape (1,), float32 whatever the towers' precision;
    `logit_bias`, of the same shape and type, is what the sigmoid loss adds to every score, None without it.
    """

    image_BD: Tensor
    text_ND: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None = None
