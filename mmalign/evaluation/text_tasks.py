"""Text classification tasks: their files, and accuracy that transfers from one language to others.

    <folder>/<split>.<lang>.{tsv,jsonl} -> rows by (split, lang) -> TransferTask (train, dev, tests)
    predictions of a classifier -> Outcome per variant and language -> accuracies in Results

A TSV file has one header line `id label text` and no quoting: a quote is part of the text. A JSONL
file has one object with the keys id, label and text a line. Both are UTF-8. Rows with the same id
say the same in different languages, which is why the interval of a mean over languages is drawn
over ids.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmalign.batch import TaskRow
from mmalign.data.languages import is_language_code
from mmalign.errors import UserError
from mmalign.evaluation.results import Results

COLUMNS = ("id", "label", "text")
CLEAN = "clean"

_NAME = re.compile(r"(?P<split>train|dev|test)\.(?P<lang>[^.]+)\.(?P<format>tsv|jsonl)")

Rows = dict[tuple[str, str], list[TaskRow]]


@dataclass(frozen=True)
class TransferTask:
    """Labels in one language, tests in others.

    Attributes:
        source: the language of `train` and `dev`.
        labels: every label of the training rows, sorted; a class is an index into it.
        dev: empty where the task has no dev file in the source language.
        tests: variant (`clean`, `typos`, ...) -> language -> rows. The source language is among
            them only where it has a test file: its dev rows choose the epoch and are no test.
    """

    name: str
    source: str
    labels: tuple[str, ...]
    train: list[TaskRow]
    dev: list[TaskRow]
    tests: dict[str, dict[str, list[TaskRow]]]

    @property
    def targets(self) -> tuple[str, ...]:
        """The languages without training labels, in the order of `tests`."""
        return tuple(lang for lang in self.tests[CLEAN] if lang != self.source)

    def classes(self, rows: Sequence[TaskRow]) -> np.ndarray:
        """(n,) int64: the class of each row."""
        place = {label: i for i, label in enumerate(self.labels)}
        return np.array([place[row.label] for row in rows], np.int64)

    def with_variant(
        self, variant: str, change: Callable[[list[TaskRow]], list[TaskRow]]
    ) -> "TransferTask":
        """The same task with one more set of tests: `change` of each language's clean rows."""
        changed = {lang: change(rows) for lang, rows in self.tests[CLEAN].items()}
        return replace(self, tests={**self.tests, variant: changed})

    def hold_out(self, ids: AbstractSet[str]) -> "TransferTask":
        """The same task where `ids` are what is tested and nothing else knows them."""
        return replace(
            self,
            train=[row for row in self.train if row.id not in ids],
            dev=[row for row in self.dev if row.id not in ids],
            tests={
                variant: {
                    lang: [row for row in rows if row.id in ids] for lang, rows in tests.items()
                }
                for variant, tests in self.tests.items()
            },
        )


@dataclass(frozen=True)
class Outcome:
    """Test rows and, for each, 1.0 where the predicted label was right and 0.0 where it was not."""

    rows: list[TaskRow]
    hits: np.ndarray


Outcomes = dict[str, dict[str, Outcome]]
"""Variant -> language -> outcome."""


def read_transfer(
    folder: Path, name: str, source: str, languages: Sequence[str] | None = None
) -> TransferTask:
    """The task in `folder`, to be trained in `source` and tested in every language that has a test.

    A language without a test file is tested on its dev file, except the source language.

    Args:
        languages: test only in these.

    Raises:
        UserError: a broken line, no training file, no tests, a language that is not there, or a
            label that training lacks.
    """
    rows = read_rows(folder, name)
    train = rows.get(("train", source))
    if train is None:
        there = ", ".join(lang for split, lang in rows if split == "train") or "none"
        raise UserError(
            f"{folder}: no train.{source}.tsv or train.{source}.jsonl to train on; languages with "
            f"a training file: {there}"
        )
    tests = _choose_tests(rows, folder, source, languages)
    task = TransferTask(
        name=name,
        source=source,
        labels=tuple(sorted({row.label for row in train})),
        train=train,
        dev=rows.get(("dev", source), []),
        tests={CLEAN: tests},
    )
    for evaluated in (task.dev, *tests.values()):
        _check_labels(evaluated, task.labels, folder)
    return task


def read_rows(folder: Path, name: str) -> Rows:
    """The rows of every task file in `folder`, by (split, lang), in the order of the file names.

    Raises:
        UserError: no such folder, a file whose name or lines are not as they must be, or two files
            for one split and language.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such task folder; build it or give another `task.folder`")
    rows: Rows = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".tsv", ".jsonl"):
            continue
        match = _NAME.fullmatch(path.name)
        if match is None or not is_language_code(match["lang"]):
            raise UserError(
                f"{path}: not the name of a task file; call it <train, dev or test>.<language>.tsv"
            )
        key = (match["split"], match["lang"])
        if key in rows:
            raise UserError(f"{path}: a second file for {key[0]}.{key[1]}; keep one of them")
        read = _read_tsv if match["format"] == "tsv" else _read_jsonl
        rows[key] = [TaskRow(name, *key, *values) for values in read(path)]
        if not rows[key]:
            raise UserError(f"{path}: holds no rows; fill it or remove it")
    return rows


def deal_ids(task: TransferTask, folds: int, seed: int) -> list[set[str]]:
    """The ids that training and tests share, dealt into `folds` sets of like label shares.

    Raises:
        UserError: fewer such ids than folds.
    """
    tested = {row.id for rows in task.tests[CLEAN].values() for row in rows}
    label_of = {row.id: row.label for row in task.train if row.id in tested}
    if len(label_of) < folds:
        raise UserError(
            f"task `{task.name}`: `folds` is {folds}, but only {len(label_of)} test ids occur in "
            "training; leave `folds` out, the tested items are new already"
        )
    ids = np.random.default_rng(seed).permutation(sorted(label_of)).tolist()
    ids.sort(key=lambda one: label_of[one])  # a stable sort: random within a label
    return [set(ids[first::folds]) for first in range(folds)]


def hits(predicted: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) classes and (n,) classes -> (n,) float64, 1 where they agree."""
    right: np.ndarray = predicted == wanted
    return right.astype(np.float64)


def majority_share(rows: Sequence[TaskRow]) -> float:
    """The accuracy of always giving the most frequent label of the rows."""
    return max(Counter(row.label for row in rows).values()) / len(rows)


def add_accuracies(results: Results, name: str, source: str, outcomes: Outcomes) -> None:
    """Record `text/<name>/<lang>/<variant>/accuracy`, and the mean over the target languages."""
    for variant, by_language in outcomes.items():
        targets = {lang: one for lang, one in by_language.items() if lang != source}
        for lang, one in by_language.items():
            results.add(
                f"text/{name}/{lang}/{variant}/accuracy", one.hits, chance=majority_share(one.rows)
            )
        mean = f"text/{name}/mean/{variant}/accuracy"
        results.add(
            mean,
            float(np.mean([one.hits.mean() for one in targets.values()])),
            count=sum(len(one.rows) for one in targets.values()),
            chance=float(np.mean([majority_share(one.rows) for one in targets.values()])),
        )
        results.ci95[mean] = interval_over_ids(list(targets.values()))


def interval_over_ids(
    outcomes: Sequence[Outcome], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over languages of the accuracies.

    Ids are drawn, not rows: a sentence that is hard in one language is hard in the others too, and
    rows drawn one by one would make the interval too narrow.
    """
    place = {one: i for i, one in enumerate(sorted({row.id for o in outcomes for row in o.rows}))}
    right = np.zeros((len(place), len(outcomes)))  # ids x languages
    count = np.zeros_like(right)
    for language, outcome in enumerate(outcomes):
        ids = [place[row.id] for row in outcome.rows]
        np.add.at(right[:, language], ids, outcome.hits)
        np.add.at(count[:, language], ids, 1)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(place), np.full(len(place), 1 / len(place)), size=draws)
    with np.errstate(
        invalid="ignore"
    ):  # a draw may miss a language of few rows: it then counts not
        means = np.nanmean((drawn @ right) / (drawn @ count), axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def describe(task: TransferTask) -> str:
    """What the accuracies of this task measure, in words, from the data themselves."""
    trained = {row.id for row in task.train}
    tested = [row for lang in task.targets for row in task.tests[CLEAN][lang]]
    known = sum(row.id in trained for row in tested)
    if known == len(tested):
        novelty = (
            f"Every tested item (id) is trained on in `{task.source}`: this measures transfer "
            "between languages, not to new items."
        )
    elif known == 0:
        novelty = "No tested item (id) occurs in training: both the item and the language are new."
    else:
        novelty = f"{known} of {len(tested)} test rows show an item (id) that is trained on."
    on_dev = ", ".join(sorted({row.lang for row in tested if row.split == "dev"}))
    splits = f" The dev split stands in for a missing test split: {on_dev}." if on_dev else ""
    return (
        f"Trained on {len(task.train)} `{task.source}` rows with {len(task.labels)} labels; "
        f"accuracy in languages of which no label was used. {novelty}{splits} `mean`: over all "
        f"tested languages but `{task.source}`, its interval drawn over ids. Chance: the share of "
        "the most frequent label among the test rows."
    )


def _choose_tests(
    rows: Rows, folder: Path, source: str, languages: Sequence[str] | None
) -> dict[str, list[TaskRow]]:
    """The rows to test on, by language."""
    tests = {lang: found for (split, lang), found in rows.items() if split == "test"}
    dev = {lang: found for (split, lang), found in rows.items() if split == "dev"}
    dev.pop(source, None)
    there = dict(sorted({**dev, **tests}.items()))
    if not set(there) - {source}:
        raise UserError(f"{folder}: no test or dev file in a language other than `{source}`")
    wanted = there if languages is None else languages
    missing = [lang for lang in wanted if lang not in there]
    if missing:
        raise UserError(
            f"{folder}: `task.languages` asks for `{missing[0]}`, which has no test or dev file to "
            f"test on; there are {', '.join(there)}"
        )
    if not set(wanted) - {source}:
        raise UserError(
            f"{folder}: `task.languages` names no language but `{source}`; there are "
            f"{', '.join(there)}"
        )
    return {lang: found for lang, found in there.items() if lang in wanted}


def _check_labels(rows: Sequence[TaskRow], labels: Sequence[str], folder: Path) -> None:
    for row in rows:
        if row.label not in labels:
            raise UserError(
                f"{folder}: {row.split}.{row.lang} has the label `{row.label}` (id {row.id}), "
                f"which training lacks; its labels are {', '.join(labels)}"
            )


def _read_tsv(path: Path) -> Iterator[tuple[str, ...]]:
    """(id, label, text) of each line after the header."""
    for number, line in _lines(path):
        cells = tuple(line.split("\t"))
        if number == 1:
            if cells != COLUMNS:
                raise UserError(
                    f"{path}, line 1: the header must be id, label, text with tabs between"
                )
        elif len(cells) != len(COLUMNS):
            raise UserError(f"{path}, line {number}: {len(cells)} columns; write id, label, text")
        else:
            yield _filled(cells, path, number)


def _read_jsonl(path: Path) -> Iterator[tuple[str, ...]]:
    """(id, label, text) of each line; other keys are not looked at."""
    for number, line in _lines(path):
        try:
            tree = json.loads(line)
            cells = tuple(tree[column] for column in COLUMNS)
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path}, line {number}: not a JSON object with the keys id, label and text"
            ) from None
        yield _filled(cells, path, number)


def _filled(cells: tuple[str, ...], path: Path, number: int) -> tuple[str, ...]:
    for column, cell in zip(COLUMNS, cells, strict=True):
        if not isinstance(cell, str) or not cell.strip():
            raise UserError(f"{path}, line {number}: `{column}` must be text and not empty")
    return cells


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered from 1.

    Split at line feeds alone: `splitlines` would also cut at U+2028 and others that texts may hold.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it") from None
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")
