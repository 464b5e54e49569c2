"""What the ranks tell each other about a step, in one message, before the towers run.

    ids, counts, votes of this rank -> one vector of int64 -> all_gather -> GlobalIds, equal on all ranks

Everything stays on the host: sizes, positive pairs and tiles of the loss follow from it without waiting for a
GPU, and the gather of the embeddings needs no counts of its own.

Shapes: R images and M captions of all ranks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.core import distributed


class Votes(NamedTuple):
    """What ranks can see at different times, and must act on together."""

    stop: bool = False  # asked to stop
    writing: bool = False  # still writes its files of a checkpoint
    save_is_due: bool = False  # by this rank's clock


NO_VOTES = Votes()


@dataclass(frozen=True)
class GlobalIds:
    """Images and captions of the global batch, in rank order, on the host.

    Attributes:
        picture_id_R, picture_id_M: int64, equal where images are the same.
        weight_M: float64, one weight per caption; None: equal weights.
        images, captions: how many each rank has.
        targets: of all ranks: tokens to predict, or captions that a teacher has embedded.
        passes: forward passes that the rank with the most needs.
        votes: stop and writing: of any rank; save_is_due: by the clock of rank 0.
    """

    picture_id_R: Tensor
    picture_id_M: Tensor
    weight_M: Tensor | None
    images: list[int]
    captions: list[int]
    targets: int = 0
    passes: int = 1
    votes: Votes = NO_VOTES

    @property
    def first_caption(self) -> int:
        """Where this rank's captions begin among those of all ranks."""
        return sum(self.captions[: distributed.rank()])


class Exchange:
    """Makes the `GlobalIds` of each step; called on all ranks."""

    def __init__(self) -> None:
        self._room = 0  # numbers that a rank's vector has room for, equal on all ranks

    def __call__(
        self,
        picture_id_B: Tensor,
        picture_id_N: Tensor,
        weight_N: Tensor | None = None,
        targets: int = 0,
        votes: Votes = NO_VOTES,
        passes: int = 1,
    ) -> GlobalIds:
        """Args: this rank's part, on the host, as in `GlobalIds`; `weight_N` on all ranks or on none."""
        parts = [picture_id_B, picture_id_N]
        if weight_N is not None:
            parts.append(weight_N.double().view(torch.int64))  # the bits, which a sum would destroy
        sizes = (len(picture_id_B), len(picture_id_N))
        head = torch.tensor([*sizes, targets, passes, *map(int, votes)])
        mine = torch.cat([head, *parts])
        # Vectors must be equally long, and only the numbers of captions differ: where they outgrow the room
        # there was, all ranks see it and send again.
        while True:
            sent = mine.new_zeros(1 + self._room)
            sent[0] = len(mine)
            sent[1 : 1 + len(mine)] = mine[: self._room]
            rows = distributed.gather_vectors(sent, "step")
            longest = int(rows[:, 0].max())
            if longest <= self._room:
                break
            self._room = longest + longest // 8
        heads = rows[:, 1 : 1 + len(head)].T.tolist()
        images, captions, tokens, needed, stop, writing, due = heads
        by_rank = []
        for row, *counts in zip(rows[:, 1 + len(head) :], images, captions, strict=True):
            counts += counts[1:] * (len(parts) - 2)  # the weights
            by_rank.append(row[: sum(counts)].split(counts))
        pictures_R, pictures_M, *weights = (torch.cat(of) for of in zip(*by_rank, strict=True))
        weight_M = weights[0].view(torch.float64) if weights else None
        agreed = Votes(any(stop), any(writing), bool(due[0]))
        ids = (pictures_R, pictures_M, weight_M, images, captions)
        return GlobalIds(*ids, sum(tokens), max(needed), agreed)
