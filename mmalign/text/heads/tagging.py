"""A head that labels words: parts of speech, named entities.

    words -> windows that fit the tower -> states -> the state of each word's first sub-token -> tag

The first sub-token of a word stands for the word, in training and in tests, as in BERT (arXiv 1810.04805,
section 5.3) and XTREME (arXiv 2003.11080). A sentence that is too long for the tower is read in several
sequences: each takes as many whole words as fit and the next one begins with the word after them, without
overlap, so no word is lost. A word that alone is too long is cut behind its first sub-tokens.

Some words yield no token at all (a tokenizer may drop a lone zero-width character). Nothing can be learnt
of them; their prediction is `O`, or the first label where `O` is none.

Shapes: B examples, N windows, L tokens, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import TaskBatch, TaskModel, check_alignable
from mmalign.text.scores import Prediction
from mmalign.text.tasks.example import Example

_NO_TAG = -100  # what cross-entropy leaves out
_NO_WORD = -1


@dataclass(frozen=True)
class _Window:
    """Neighbouring words of one example that the tower reads together.

    Attributes:
        example: its number in the batch.
        first: the number of the first word in the example.
    """

    example: int
    first: int
    words: list[str]


class TaggingModel(TaskModel):
    """A tag a word; the loss of an example is the mean cross-entropy over its words.

    The layer starts at zero, as that of the other heads: no random start, and so no lucky one.

    Attributes:
        labels: a class is an index into them. Words tagged otherwise do not train.
    """

    head: nn.Linear

    def __init__(self, tower: TextEncoder, labels: Sequence[str]) -> None:
        check_alignable(tower)
        super().__init__(tower, nn.Linear(tower.state_width, len(labels)))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.labels = tuple(labels)
        self.default = "O" if "O" in self.labels else self.labels[0]

    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        """Windows of words; the target is (N, L) int64, -100 but for first sub-tokens of known tags."""
        windows = self._windows(examples)
        tokens = self.tower.tokenize([one.words for one in windows], is_split_into_words=True)
        word_NL = _word_numbers(windows, tokens.encoding)
        place = {label: i for i, label in enumerate(self.labels)}
        target_NL = torch.full(word_NL.shape, _NO_TAG)
        for row, column in (word_NL != _NO_WORD).nonzero().tolist():
            tags = examples[windows[row].example].target
            assert isinstance(tags, tuple)
            target_NL[row, column] = place.get(str(tags[int(word_NL[row, column])]), _NO_TAG)
        example_N = torch.tensor([one.example for one in windows])
        device = self.tower.device
        return TaskBatch(examples, tokens, example_N.to(device), target_NL.to(device))

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        """(N, L, K)."""
        logits_NLK: Tensor = self.head(state_NLF)
        return logits_NLK

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,); an example without a known tag has loss 0."""
        loss_NL = F.cross_entropy(
            logits.transpose(1, 2), batch.target, ignore_index=_NO_TAG, reduction="none"
        )
        words_N = (batch.target != _NO_TAG).sum(1).to(loss_NL.dtype)
        zero_B = loss_NL.new_zeros(len(batch.examples))
        sum_B = zero_B.index_add(0, batch.example_N, loss_NL.sum(1))
        return sum_B / zero_B.index_add(0, batch.example_N, words_N).clamp(min=1)

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        """A tag for every word of an example, as a tuple."""
        windows = self._windows(batch.examples)
        word_NL = _word_numbers(windows, batch.tokens.encoding)
        class_NL = logits.argmax(-1).cpu()
        tags = [[self.default] * len(one.texts) for one in batch.examples]
        for row, column in (word_NL != _NO_WORD).nonzero().tolist():
            label = self.labels[int(class_NL[row, column])]
            tags[windows[row].example][int(word_NL[row, column])] = label
        return [tuple(one) for one in tags]

    def description(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "labels": self.labels}

    def _windows(self, examples: Sequence[Example]) -> list[_Window]:
        """At least one window an example; the same examples give the same windows."""
        inner = self.tower.tokenizer.inner
        room = max(1, self.tower.max_length - inner.num_special_tokens_to_add(False))
        encoding = inner(
            [list(one.texts) for one in examples],
            is_split_into_words=True,
            add_special_tokens=False,
            truncation=False,
            verbose=False,
        )
        windows = []
        for number, example in enumerate(examples):
            sizes = [0] * len(example.texts)
            for word in encoding.word_ids(number):
                sizes[word] += 1
            cuts = [0, *_cuts(sizes, room), len(sizes)]
            for start, end in pairwise(cuts):
                windows.append(_Window(number, start, list(example.texts[start:end])))
        return windows


def _cuts(sizes: Sequence[int], room: int) -> list[int]:
    """Numbers of the words that begin a new window, the first word's aside."""
    cuts, filled = [], 0
    for number, size in enumerate(sizes):
        if filled and filled + size > room:
            cuts.append(number)
            filled = 0
        filled += size
    return cuts


def _word_numbers(windows: Sequence[_Window], encoding: Any) -> Tensor:
    """(N, L) int64: at the first sub-token of a word its number in the example, elsewhere -1."""
    rows = []
    for number, window in enumerate(windows):
        words = encoding.word_ids(number)
        before = [None, *words]
        rows.append(
            [
                window.first + word if word is not None and word != previous else _NO_WORD
                for word, previous in zip(words, before, strict=False)
            ]
        )
    return torch.tensor(rows)
