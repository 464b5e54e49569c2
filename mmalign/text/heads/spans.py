"""A head that answers questions by a piece of the context.

As in BERT (arXiv 1810.04805, sections 4.2 and 4.3): the loss is the mean cross-entropy of start and end; a
window that does not hold the entire answer has the first token as both; the answer is the pair of tokens with
the highest sum of scores, the end not before the start. Every question is taken to have an answer, as in
SQuAD 1.1, XQuAD, MLQA and TyDiQA-GoldP: the first token is never a prediction.

Shapes: B examples, N windows, L tokens; the outputs are two, start and end.
"""

from collections.abc import Sequence
from typing import Any

import regex
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads import base
from mmalign.text.heads.base import TaskBatch, TaskModel
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Answer, Example

_LONGEST_QUESTION = 64  # tokens, BERT's; of a tower with short sequences a third of them
_SHORTEST_WINDOW = 4  # tokens of the context, half of which two windows share
# Unicode counts the vowels and final consonants of a Korean syllable in parts among the letters.
_MARKS = regex.compile(r"[\p{M}\u1160-\u11ff]*")


class SpanModel(TaskModel):
    """Answers that are pieces of a context; trained on the first of several right answers."""

    evaluation_batch = 32
    head: nn.Linear

    def __init__(self, tower: TextEncoder, stride: int = 128, max_answer_tokens: int = 30) -> None:
        base.check_alignable(tower)
        super().__init__(tower, base.zero_linear(tower.state_width, 2))
        self.question_tokens = min(_LONGEST_QUESTION, tower.max_length // 3)
        special = tower.tokenizer.inner.num_special_tokens_to_add(True)
        room = tower.max_length - self.question_tokens - special
        if room < _SHORTEST_WINDOW:
            raise UserError(
                f"max_length: {tower.max_length} tokens leave {max(room, 0)} for a question's context; "
                "take a longer one, for example 384"
            )
        # Two neighbouring windows share these tokens, so that one holds all of an answer of that length.
        self.stride = min(stride, room // 2)
        self.max_answer_tokens = max_answer_tokens

    def collate(self, examples: Sequence[Example]) -> TaskBatch:
        """Windows; the target is (N, 2) int64, the first and the last token of the answer."""
        tokens = self.tower.tokenize(
            self._cut_questions([one.texts[0] for one in examples]),
            [one.texts[1] for one in examples],
            truncation="only_second",
            stride=self.stride,
            return_overflowing_tokens=True,
        )
        example_N = tokens.encoding["overflow_to_sample_mapping"]
        target = [
            _answer_tokens(examples[example], tokens.encoding, window)
            for window, example in enumerate(example_N.tolist())
        ]
        return self.batch(examples, tokens, example_N, target)

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        """(N, L, 2), start and end; only the first token and those of the context compete."""
        logits_NL2: Tensor = self.head(state_NLF)
        mask_NL = batch.tokens.mask_NL
        first_N1 = mask_NL.argmax(1, keepdim=True)  # not always 0: a tokenizer may pad on the left
        allowed_NL = _context_mask(batch).to(mask_NL.device).scatter(1, first_N1, True)
        return logits_NL2.masked_fill(~allowed_NL[..., None], base.LOWEST)

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,), the mean over the windows."""
        loss_N = F.cross_entropy(logits, batch.target, reduction="none").mean(1)
        return base.mean_per_owner(loss_N, batch.example_N, len(batch.examples))

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        """The answer's text, cut from the original context, without white space around it.

        Empty only where the context yields no token or the chosen ones are white space.
        """
        found = _best_spans(logits.float().cpu(), _context_mask(batch), self.max_answer_tokens)
        answers: list[Prediction] = [""] * len(batch.examples)
        best = [float("-inf")] * len(batch.examples)
        windows = zip(batch.example_N.tolist(), *(one.tolist() for one in found), strict=True)
        for window, (example, score, first, last) in enumerate(windows):
            # An answer that two windows share scores in both; the first of equal ones stays.
            if score > best[example]:
                best[example] = score
                offsets = batch.tokens.encoding.encodings[window].offsets
                start, end = offsets[first][0], offsets[last][1]
                context = batch.examples[example].texts[1]
                answers[example] = context[start : _past_marks(context, end)].strip()
        return answers

    def description(self) -> dict[str, Any]:
        return {"stride": self.stride, "max_answer_tokens": self.max_answer_tokens}

    def _cut_questions(self, questions: Sequence[str]) -> list[str]:
        """Questions of at most `question_tokens`: a longer one would leave no room for the context."""
        encoding = self.tower.tokenizer.inner(
            list(questions),
            add_special_tokens=False,
            truncation=True,
            max_length=self.question_tokens,
        )
        return [
            question[: one.offsets[-1][1]] if one.overflowing else question
            for question, one in zip(questions, encoding.encodings, strict=True)
        ]


def _answer_tokens(example: Example, encoding: Any, window: int) -> tuple[int, int]:
    # The window's first token, twice, if it does not hold the entire first right answer.
    offsets = encoding.encodings[window].offsets
    nothing = (encoding.encodings[window].attention_mask.index(1),) * 2
    context = [i for i, sequence in enumerate(encoding.sequence_ids(window)) if sequence == 1]
    answers = example.target if isinstance(example.target, tuple) else ()
    answer = next((one for one in answers if isinstance(one, Answer)), None)
    if answer is None or not context:
        return nothing
    start, end = answer.start, answer.start + len(answer.text.rstrip())
    window_end = _past_marks(example.texts[1], offsets[context[-1]][1])
    if start < offsets[context[0]][0] or end > window_end:
        return nothing
    first = next((i for i in context if offsets[i][1] > start), context[-1])
    last = next((i for i in reversed(context) if offsets[i][0] < end), first)
    return first, max(first, last)


def _past_marks(text: str, end: int) -> int:
    # The end after the combining marks that follow, and after the rest of a Korean syllable in parts: a
    # normaliser that composes `e` and an accent reports the position of the `e` alone.
    match = _MARKS.match(text, end)
    assert match is not None  # it may be empty
    return match.end()


def _context_mask(batch: TaskBatch) -> Tensor:
    # (N, L) bool on the host.
    encoding = batch.tokens.encoding
    windows = range(len(batch.example_N))
    return torch.tensor([[one == 1 for one in encoding.sequence_ids(i)] for i in windows])


def _best_spans(
    logits_NL2: Tensor, context_NL: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    # Score, first and last token of each window's best span, all (N,); minus infinity without context.
    score_NL2 = logits_NL2.masked_fill(~context_NL[..., None], float("-inf"))
    end_NL = F.pad(score_NL2[..., 1], (0, longest - 1), value=float("-inf"))
    # For each start the best of the `longest` ends from it on.
    best_end_NL, step_NL = end_NL.unfold(1, longest, 1).max(2)
    score_N, start_N = (score_NL2[..., 0] + best_end_NL).max(1)
    return score_N, start_N, start_N + step_NL.gather(1, start_N[:, None])[:, 0]
