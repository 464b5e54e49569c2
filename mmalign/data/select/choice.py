"""Which samples and captions of a data set are still chosen, and the rule that removed each other one.

    rule -> `remove` samples or captions, as often as needed -> `settle` -> samples without captions go too

One byte per sample and one per caption. What an earlier rule removed keeps its reason.
"""

from collections.abc import Iterable

import numpy as np

from mmalign.core.errors import UserError


class Choice:
    """At first, everything.

    Args:
        captions_S: captions of each sample, (S,) integers.
    """

    def __init__(self, captions_S: np.ndarray) -> None:
        # Number of the first caption of each sample, and of all captions.
        self.first_S = np.concatenate([[0], np.cumsum(captions_S, dtype=np.int64)])
        self.reasons: list[str] = []
        # 0: chosen; else 1 + the number of the reason
        self._sample_S = np.zeros(len(captions_S), np.uint8)
        self._caption_C = np.zeros(int(self.first_S[-1]), np.uint8)

    @property
    def sample_S(self) -> np.ndarray:
        """(S,) bool: the chosen samples."""
        return self._sample_S == 0

    @property
    def caption_C(self) -> np.ndarray:
        """(C,) bool: the chosen captions of chosen samples."""
        return (self._caption_C == 0) & np.repeat(self.sample_S, np.diff(self.first_S))

    def reason(self, name: str) -> int:
        """The number of a reason, to remove by."""
        if name not in self.reasons:
            self.reasons.append(name)
        if len(self.reasons) > 255:
            raise UserError(
                "the rules have more than 255 reasons to remove a sample; give fewer bounds"
            )
        return self.reasons.index(name) + 1

    def remove(self, samples: np.ndarray, reason: int) -> None:
        """Remove samples, by their numbers."""
        self._sample_S[samples[self._sample_S[samples] == 0]] = reason

    def remove_captions(self, captions: np.ndarray, reason: int) -> None:
        """Remove captions, by their numbers; `settle` must follow."""
        self._caption_C[captions[self._caption_C[captions] == 0]] = reason

    def settle(self) -> None:
        """Remove the samples of which all captions were removed, for the reason of their last one."""
        chosen = np.concatenate([[0], np.cumsum(self._caption_C == 0)])
        left_S = np.diff(chosen[self.first_S])
        empty = np.flatnonzero((left_S == 0) & (np.diff(self.first_S) > 0) & self.sample_S)
        # Rules follow each other, so the largest number is of the rule that removed the last caption.
        if len(empty):
            starts = self.first_S[empty]
            last = np.maximum.reduceat(
                np.append(self._caption_C, np.uint8(0)),
                np.stack([starts, self.first_S[empty + 1]], 1).ravel(),
            )[::2]
            self._sample_S[empty] = last

    def captions_of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the captions of samples, and how many each has."""
        count = self.first_S[samples + 1] - self.first_S[samples]
        inner = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(self.first_S[samples], count) + inner, count

    def removed(self) -> dict[str, dict[str, int]]:
        """By reason, `samples` and `captions`; captions of a removed sample count under its reason."""
        sample_C = np.repeat(self._sample_S, np.diff(self.first_S))
        by_caption = np.where(sample_C > 0, sample_C, self._caption_C)
        return {
            kind: self._named(np.bincount(numbers, minlength=len(self.reasons) + 1)[1:].tolist())
            for kind, numbers in (("samples", self._sample_S), ("captions", by_caption))
        }

    def _named(self, counts: Iterable[int]) -> dict[str, int]:
        return {name: n for name, n in zip(self.reasons, counts, strict=True) if n}
