"""A text task of any kind, labels in one language and tests in others, and its examples.

A task may train on files of one publisher and test on those of another (MNLI and XNLI, SQuAD and MLQA).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from mmalign.results.results import ids_of_names


class Answer(NamedTuple):
    """A correct answer of span question answering: its text and where it starts in the context."""

    text: str
    start: int


class Event(NamedTuple):
    """The position of the words that name something that happens, in a document."""

    sentence: int  # its number from 0; start and end count its characters
    start: int
    end: int


class EventPair(NamedTuple):
    """Two events, by their numbers from 0 (`first` < `second`), and whether one causes the other."""

    first: int
    second: int
    causal: bool


@dataclass(frozen=True)
class Causality:
    """The events of a document in the order of their positions, and the pairs that are asked about."""

    events: tuple[Event, ...]
    pairs: tuple[EventPair, ...]


def starts_of(parts: Sequence[str]) -> list[int]:
    """Where each part starts in the parts joined by one space."""
    return list(accumulate((len(one) + 1 for one in parts), initial=0))[:-1]


Target = str | float | int | tuple[str, ...] | tuple[Answer, ...] | Causality


@dataclass(frozen=True)
class Example:
    """One example of a text task of any kind.

    kind of task     texts                              target
    classification   (text,) or (first, second)         its label, str
    similarity       (first, second)                    their score, float
    multiple_choice  (context, choice, choice, ...)     number of the correct choice from 0, int
    tagging          the words                          one tag per word, tuple of str
    span_qa          (question, context)                the correct answers, tuple of Answer
    retrieval        (query,) or (candidate,)           ids of the correct candidates, tuple of str
    event_causality  the sentences of a document        its events and pairs of them, Causality

    Attributes:
        id: equal for texts that are translations of each other.
        lang: BCP-47 code of all its texts.
    """

    id: str
    lang: str
    texts: tuple[str, ...]
    target: Target
    place: str = field(default="", compare=False, repr=False)  # file and line, for messages


Kind = Literal[
    "classification",
    "similarity",
    "multiple_choice",
    "tagging",
    "span_qa",
    "retrieval",
    "event_causality",
]

# (split, language) -> examples; the splits are `train`, `dev` and `test`, and `candidates` in retrieval.
Splits = dict[tuple[str, str], list[Example]]
Entry = tuple[tuple[str, str], Example]
CANDIDATES = "candidates"
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
        centred, without_shared_words: of retrieval, see `TaskConfig`.
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
    centred: bool = False
    without_shared_words: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """The tested languages of which no label was trained on, in the order of `tests`."""
        # Where only the source is tested (GLUE-X asks for new data, not for new languages), it is the target.
        return tuple(lang for lang in self.tests if lang != self.source) or tuple(self.tests)

    def hold_out(self, ids: AbstractSet[str]) -> "Task":
        """The same task, tested on `ids` only, which train and dev no longer hold."""
        train = [one for one in self.train if one.id not in ids]
        dev = {lang: [e for e in rows if e.id not in ids] for lang, rows in self.dev.items()}
        return replace(self.tested_on(ids), train=train, dev=dev)

    def tested_on(self, ids: AbstractSet[str]) -> "Task":
        tests = {lang: [one for one in rows if one.id in ids] for lang, rows in self.tests.items()}
        return replace(self, tests=tests)


def row_ids(examples: Sequence[Example]) -> np.ndarray:
    """(n,) int64, one number per id: equal for rows that are translations of each other."""
    return ids_of_names(one.id for one in examples)


def sha256_of_tests(task: Task) -> str:
    """sha256 over every tested row and candidate: their ids, texts and targets."""
    digest = hashlib.sha256()
    # Languages may share one pool of candidates, which is read once.
    pools = {id(task.candidates[lang]): task.candidates[lang] for lang in task.candidates}
    for rows in (*(task.tests[lang] for lang in sorted(task.tests)), *pools.values()):
        for one in rows:
            row = [one.id, one.lang, one.texts, one.target]
            digest.update(json.dumps(row, default=vars).encode() + b"\n")
    return digest.hexdigest()


def sample(examples: Sequence[Example], size: int | None, seed: int = 0) -> list[Example]:
    """`size` of the examples in their order, drawn by their ids; all where `size` is none or too large."""
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
