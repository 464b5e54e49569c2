"""A text task of any kind: labels in one language, tests in others.

    files of one layout -> reader -> Splits -+
    files of another    -> reader -> Splits -+-> Task (train, dev, tests) -> fine-tuning, scores

A task may train on files of one publisher and test on those of another (MNLI and XNLI, SQuAD and
MLQA): both must ask the same kind of question and share their labels.
"""

import hashlib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Literal

from mmalign.text.tasks.example import Example

Kind = Literal[
    "classification",
    "similarity",
    "multiple_choice",
    "tagging",
    "span_qa",
    "retrieval",
    "event_causality",
]

Splits = dict[tuple[str, str], list[Example]]
"""(split, language) -> examples; the splits are `train`, `dev` and `test`, and `candidates` in retrieval."""

CANDIDATES = "candidates"

Entry = tuple[tuple[str, str], Example]
"""(split, language), and an example of them."""

CLEAN = "clean"


@dataclass(frozen=True)
class Task:
    """What a task asks, and its examples.

    Attributes:
        source: the language of `train`.
        labels: of classification and tagging: every label of the training examples, sorted.
        dev: by language. The source's chooses the epoch; the others serve the oracle only.
        tests: by language. The source is among them only where it has a test file of its own.
        candidates: of retrieval: by language, what the queries of that language are searched in.
        test_is_dev: languages whose dev examples stand in for a missing test file.
        merge: predicted label -> the coarser label that the tests know (HANS has no `neutral`).
    """

    name: str
    kind: Kind
    source: str
    labels: tuple[str, ...]
    train: list[Example]
    dev: dict[str, list[Example]]
    tests: dict[str, list[Example]]
    candidates: dict[str, list[Example]]
    test_is_dev: frozenset[str] = frozenset()
    merge: dict[str, str] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The tested languages of which no label was trained on, in the order of `tests`.

        Where only the source is tested (GLUE-X asks for new data, not for new languages), it is the target.
        """
        return tuple(lang for lang in self.tests if lang != self.source) or tuple(self.tests)

    def hold_out(self, ids: AbstractSet[str]) -> "Task":
        """The same task, tested on `ids` only, which train and dev no longer hold."""
        train = [one for one in self.train if one.id not in ids]
        dev = {lang: [e for e in rows if e.id not in ids] for lang, rows in self.dev.items()}
        return replace(self.tested_on(ids), train=train, dev=dev)

    def tested_on(self, ids: AbstractSet[str]) -> "Task":
        """The same task, tested on these ids only."""
        tests = {lang: [one for one in rows if one.id in ids] for lang, rows in self.tests.items()}
        return replace(self, tests=tests)


def sample(examples: Sequence[Example], size: int | None, seed: int = 0) -> list[Example]:
    """`size` of the examples in their order, drawn by their ids; all where `size` is none or too large.

    The same ids are drawn in every language.
    """
    if size is None or size >= len(examples):
        return list(examples)

    # A hash of the id orders the rows: the same in every language, and a larger sample holds a smaller one.
    # The first rows would not do: files are often sorted by label.
    def draw(number: int) -> bytes:
        return hashlib.sha256(f"{seed} {examples[number].id}".encode()).digest()

    return [examples[i] for i in sorted(sorted(range(len(examples)), key=draw)[:size])]


def labels_of(examples: Iterable[Example], kind: Kind) -> tuple[str, ...]:
    """Every label of classification examples, every tag of tagging examples; else none."""
    if kind == "classification":
        return tuple(sorted({one.target for one in examples if isinstance(one.target, str)}))
    if kind == "tagging":
        tags = {tag for one in examples if isinstance(one.target, tuple) for tag in one.target}
        return tuple(sorted(str(tag) for tag in tags))
    return ()
