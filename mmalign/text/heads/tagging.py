"""A head that labels words: parts of speech, named entities.

The first sub-token of a word represents the word, in training and in tests, as in BERT (arXiv 1810.04805,
section 5.3) and XTREME (arXiv 2003.11080). A sentence that is too long for the tower is read in several
sequences: each takes as many complete words as fit and the next one begins with the word after them, without
overlap, so no word is lost. A word that alone is too long is cut after its first sub-tokens.

Shapes: B examples, N windows, L tokens, K labels.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads import base
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Example

_NO_TAG = -100  # cross-entropy leaves it out

# Words of one example that the tower reads together: its number, the first word, the word after the last.
Window = tuple[int, int, int]


class TaggingModel(TaskModel):
    """A tag per word; the loss of an example is the mean cross-entropy over its words."""

    head: nn.Linear

    def __init__(self, tower: TextEncoder, labels: Sequence[str]) -> None:
        base.check_alignable(tower)
        super().__init__(tower, base.zero_linear(tower.state_width, len(labels)))
        self.labels = tuple(labels)
        # Of words that yield no token (a tokenizer may drop a lone zero-width character).
        self.default = "O" if "O" in self.labels else self.labels[0]

    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        """Windows of words; the target is (N, L) int64, -100 but for first sub-tokens of known tags."""
        windows = self._windows(examples)
        words = [list(examples[i].texts[first:end]) for i, first, end in windows]
        tokens = self.tower.tokenize(words, is_split_into_words=True)
        class_of = {label: i for i, label in enumerate(self.labels)}
        target_NL = torch.full(tokens.token_NL.shape, _NO_TAG)
        for row, column, example, word in _first_tokens(windows, tokens.encoding):
            tags = examples[example].target
            assert isinstance(tags, tuple)
            target_NL[row, column] = class_of.get(str(tags[word]), _NO_TAG)
        return self.batch(examples, tokens, [example for example, _, _ in windows], target_NL)

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        logits_NLK: Tensor = self.head(state_NLF)
        return logits_NLK

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,); 0 without a known tag."""
        loss_NL = F.cross_entropy(
            logits.transpose(1, 2), batch.target, ignore_index=_NO_TAG, reduction="none"
        )
        # Over the words of the example, not over those of each of its windows.
        words_N = (batch.target != _NO_TAG).sum(1).to(loss_NL.dtype)
        return base.mean_per_owner(loss_NL.sum(1), batch.example_N, len(batch.examples), words_N)

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        class_NL = logits.argmax(-1).tolist()
        tags = [[self.default] * len(one.texts) for one in batch.examples]
        windows = self._windows(batch.examples)
        for row, column, example, word in _first_tokens(windows, batch.tokens.encoding):
            tags[example][word] = self.labels[class_NL[row][column]]
        return [tuple(one) for one in tags]

    def description(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def _windows(self, examples: Sequence[Example]) -> list[Window]:
        inner = self.tower.tokenizer.inner
        # At least one token, whatever `max_length` says, or no word would ever fit.
        room = max(1, self.tower.max_length - inner.num_special_tokens_to_add(False))
        encoding = inner(
            [list(one.texts) for one in examples],
            is_split_into_words=True,
            add_special_tokens=False,
            truncation=False,
            verbose=False,  # no warning about sequences that are too long: they are cut below
        )
        windows = []
        for number, example in enumerate(examples):
            sizes = [0] * len(example.texts)
            for word in encoding.word_ids(number):
                sizes[word] += 1
            cuts, filled = [0], 0
            for word, size in enumerate(sizes):
                if filled and filled + size > room:
                    cuts.append(word)
                    filled = 0
                filled += size
            windows += [(number, *cut) for cut in pairwise([*cuts, len(sizes)])]
        return windows


def _first_tokens(windows: Sequence[Window], encoding: Any) -> Iterator[tuple[int, int, int, int]]:
    # Row and column of the first sub-token of each word, its example and its number in the example.
    for row, (example, first, _) in enumerate(windows):
        words = encoding.word_ids(row)
        for column, (word, previous) in enumerate(zip(words, [None, *words], strict=False)):
            if word is not None and word != previous:
                yield row, column, example, first + word
