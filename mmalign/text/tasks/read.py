"""A task as a configuration names it: the files to train on, the files to test on, the languages."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.results.protocol import HOW, MEAN_OVER, joined
from mmalign.text.tasks.codes import Language
from mmalign.text.tasks.datasets import DatasetConfig, read_dataset
from mmalign.text.tasks.formats import Format, read
from mmalign.text.tasks.overlap import overlap
from mmalign.text.tasks.shared_words import answered_by, without_shared_words
from mmalign.text.tasks.task import CANDIDATES, Example, Kind, Splits, Task, labels_of, sample


class FilesConfig(Section):
    """Where examples lie, and in which layout."""

    folder: str
    """Relative to where the command runs."""
    format: Format = "tsv"
    """Whose layout the files have (formats.yaml); tsv: our own, `<split>.<lang>.tsv` with a header line."""
    hf: DatasetConfig | None = None
    """`folder` is a data set of the library `datasets`, by its name on the hub or on disk, with these
    columns; `format` is then unused."""

    def read(self) -> tuple[Kind, Splits]:
        """The kind of task and the examples."""
        if self.hf is not None:
            return read_dataset(self.folder, self.hf)
        return read(self.format, Path(self.folder))


class NamedFilesConfig(FilesConfig):
    """The files of a task's tests."""

    name: str = Field(pattern=r"^[\w-]+$")
    """In metrics, `text/<name>/...`, and for XTREME's folder of predictions."""
    relabel: dict[str, str] = Field(default_factory=dict)
    """Label of the tests -> label of the training files, where they name the same thing differently."""
    merge: dict[str, str] = Field(default_factory=dict)
    """Predicted label -> coarser label of the tests (HANS: `neutral` is `not_entailment`)."""


class FewShotConfig(Section):
    """Some labels of the tested languages (few-shot transfer, arXiv 2005.00633)."""

    examples: int = Field(ge=1)
    """Rows of each language, the same ids in all."""
    split: Literal["dev", "train"] = "dev"
    """Where they are taken from; the language is not tested on them."""


class TaskConfig(NamedFilesConfig):
    """A task. `folder` holds the tests, and training and dev files too unless `train` names others."""

    train: FilesConfig | None = None
    """Training files, where they are not those of `folder`; their dev files, if any, choose the epoch."""
    language: Language = "en"
    """Language of the labels to train on."""
    train_languages: tuple[Language, ...] = ()
    """Train on the training files of these as well: on translations of `language`'s (translate-train), or on
    other rows."""
    few_shot: FewShotConfig | None = None
    """Train on some rows of every tested language as well; none: transfer is zero-shot."""
    train_examples: int | None = Field(default=None, ge=1)
    """Train on a sample of so many rows of each language, drawn by their ids; by default on all."""
    dev_examples: int | None = Field(default=None, ge=1)
    """Hold so many training rows of `language` out as the dev rows that choose the weights; by default these
    are the dev file's, which may be tested items in the language of training."""
    test_examples: int | None = Field(default=None, ge=1)
    """Test on a sample of so many rows of each language, the same ids in all; by default on all."""
    languages: tuple[Language, ...] | None = None
    """Test only in these; by default in every language that the folder holds."""
    candidates: int | None = Field(default=None, ge=2)
    """Of retrieval: search the first so many candidates of each language; queries without a right one among
    them are left out. By default all."""
    without_shared_words: bool = False
    """Of retrieval: take the words that a query and its right candidate share (names, numbers, loans) out of
    both, so that nothing is found by its spelling."""
    centred: bool = False
    """Of retrieval: subtract the mean feature of a language's test queries, and that of its candidates."""


def read_task(config: TaskConfig) -> Task:
    """The task, to be trained in `language` and tested in every language that has a test.

    A language without a test file is tested on its dev file, except the source language.

    Raises:
        UserError: a broken file, no training file, no tests, a language that is not there, training and
            test files of different kinds, or a label that training lacks.
    """
    tested = config.read()
    return make_task(config, config.train.read() if config.train else tested, tested)


def make_task(
    config: TaskConfig, training_files: tuple[Kind, Splits], test_files: tuple[Kind, Splits]
) -> Task:
    """As `read_task`, from files that were read already."""
    (train_kind, trained), (kind, tested) = training_files, test_files
    source = config.language
    _check_kinds(config, train_kind, kind)
    train, held_out = _training_rows(config, trained, kind)
    # By any target: those of other kinds than classification are never among the names.
    names: Mapping[Any, Any] = config.relabel
    by_split: dict[str, dict[str, list[Example]]] = {"dev": {}, "test": {}, CANDIDATES: {}}
    for (split, lang), rows in tested.items():
        if names:
            rows = [replace(one, target=names.get(one.target, one.target)) for one in rows]
        by_split.setdefault(split, {})[lang] = rows
    # Before `dev` gets the training files' own dev examples, which may be of another publisher.
    tests = _choose_tests(by_split["test"], by_split["dev"], config)
    dev, candidates = by_split["dev"], by_split[CANDIDATES]
    if held_out:
        dev[source] = held_out
    elif ("dev", source) in trained:
        dev[source] = trained["dev", source]  # those beside the training files choose the epoch
    if config.few_shot is not None:
        train += _take_shots(by_split, tests, config, config.few_shot, held_out)
    if config.candidates is not None:
        candidates = {lang: pool[: config.candidates] for lang, pool in candidates.items()}
        tests = {lang: answered_by(candidates.get(lang, []), rows) for lang, rows in tests.items()}
    if config.without_shared_words:
        for lang, rows in tests.items():
            tests[lang], candidates[lang] = without_shared_words(rows, candidates.get(lang, []))
    task = Task(
        name=config.name,
        kind=kind,
        source=source,
        labels=labels_of(train, kind),
        train=train,
        dev=dev,
        tests={lang: sample(rows, config.test_examples) for lang, rows in tests.items()},
        candidates=candidates,
        test_is_dev=frozenset(tests.keys() - by_split["test"].keys()),
        merge=dict(config.merge),
        centred=config.centred,
        without_shared_words=config.without_shared_words,
    )
    # Labels of tests that training lacks are mistakes, except coarser ones that `merge` names.
    known = {*task.labels, *task.merge.values()}
    checked = (dev.get(source, []), *task.tests.values())
    wrong = [one for rows in checked for one in rows if one.target not in known]
    if wrong and kind == "classification":
        raise UserError(
            f"{config.folder}: {wrong[0].lang} has the label `{wrong[0].target}` (id {wrong[0].id}), which "
            f"training lacks; its labels are {', '.join(task.labels)}; `relabel` gives it another name"
        )
    return task


def _check_kinds(config: TaskConfig, train_kind: Kind, kind: Kind) -> None:
    # Both must ask the same kind of question (MNLI and XNLI, SQuAD and MLQA).
    if train_kind != kind:
        raise UserError(
            f"task `{config.name}`: {_training_folder(config)} holds {train_kind} examples, {config.folder} "
            f"{kind} ones; train on the kind that is tested"
        )
    given = [
        name for name in ("candidates", "without_shared_words", "centred") if getattr(config, name)
    ]
    if kind != "retrieval" and given:
        field = given[0]
        raise UserError(f"task `{config.name}`: `{field}` is for retrieval, not {kind}; drop it")


def _training_rows(
    config: TaskConfig, trained: Splits, kind: Kind
) -> tuple[list[Example], list[Example]]:
    # To train on, and held out as dev rows.
    train: list[Example] = []
    held_out: list[Example] = []
    for lang in dict.fromkeys((config.language, *config.train_languages)):
        rows = trained.get(("train", lang), [])
        if not rows and kind != "retrieval":  # retrieval can use the tower as it is
            there = ", ".join(sorted(lang for split, lang in trained if split == "train")) or "none"
            raise UserError(
                f"{_training_folder(config)}: no training file for `{lang}` (task `{config.name}`); "
                f"there are some for {there}"
            )
        if config.dev_examples is not None and lang == config.language:
            if len(rows) <= config.dev_examples:
                raise UserError(
                    f"{_training_folder(config)}: `dev_examples` takes {config.dev_examples} of the "
                    f"{len(rows)} training rows in `{lang}` (task `{config.name}`); lower it"
                )
            # Another draw than that of `train_examples`, which would take the same rows first.
            held_out = sample(rows, config.dev_examples, seed=1)
        # Translations of the dev rows have the same ids. If they were trained on, the dev score would
        # reward memorised rows. `language` comes first, so its dev rows are known here.
        left = _without(rows, held_out)
        if rows and not left:
            raise UserError(
                f"{_training_folder(config)}: every training row in `{lang}` has the id of one that "
                f"`dev_examples` holds out (task `{config.name}`); lower it"
            )
        train += sample(left, config.train_examples)
    return train, held_out


def _without(rows: Iterable[Example], others: Iterable[Example]) -> list[Example]:
    # The rows that are no translations of the others.
    ids = {one.id for one in others}
    return [one for one in rows if one.id not in ids]


def _training_folder(config: TaskConfig) -> str:
    return config.train.folder if config.train else config.folder


def describe(task: Task) -> dict[str, Any]:
    """What the numbers of this task measure, from the data themselves: fields of a protocol."""
    if not task.train:  # retrieval: no training row, so nothing to overlap with
        sizes = {lang: len(task.candidates[lang]) for lang in task.tests}
        words = "Each query searches the candidates of its language ({candidates}) by cosine"
        if task.centred:
            words += ", both less their mean over the language"
        words += ". `mean`: over {mean_over}, its interval drawn over ids."
        if task.without_shared_words:
            words += (
                " Words with digits, and those that a query and its right candidate share (by their first "
                "four letters, without case and accents), are taken out of both."
            )
        return {HOW: words, "candidates": sizes, MEAN_OVER: [*task.targets]}
    rows = Counter(one.lang for one in task.train)
    seen = [lang for lang in task.targets if rows[lang]]
    trained_on = " and ".join(f"{count} `{lang}` rows" for lang, count in rows.items())
    labelled = (
        "of which no label was used" if not seen else "with labels in training too ({labelled})"
    )
    fields: dict[str, Any] = {
        HOW: "Trained on {trained_on}; measured in languages "
        + labelled
        + ". {overlap} `mean`: over "
        "{mean_over}, its interval drawn over ids.",
        "trained_on": trained_on + (f" with {len(task.labels)} labels" if task.labels else ""),
        "overlap": overlap(task),
        MEAN_OVER: [*task.targets],
        **({"labelled": seen} if seen else {}),
    }
    if task.test_is_dev:
        on_dev = {
            HOW: "The dev split stands in for a missing test split: {test_is_dev}.",
            "test_is_dev": sorted(task.test_is_dev),
        }
        fields = joined(fields, on_dev)
    return fields


def _take_shots(
    by_split: Mapping[str, dict[str, list[Example]]],
    tests: dict[str, list[Example]],
    config: TaskConfig,
    shots: FewShotConfig,
    held_out: list[Example],
) -> list[Example]:
    # The rows to train on. Tests and dev rows of all languages lose their ids: if a translation of a dev row
    # in `language` were trained on, the dev score would reward memorised rows.
    files = by_split.get(shots.split, {})
    taken: list[Example] = []
    for lang in tests:
        if lang == config.language:
            continue
        rows = _without(files.get(lang, []), held_out)
        if len(rows) <= shots.examples:
            raise UserError(
                f"{config.folder}: `few_shot` takes {shots.examples} rows of {shots.split} in `{lang}`, "
                f"which has {len(rows)}; lower `few_shot.examples`, or name the tested `languages`"
            )
        taken += sample(rows, shots.examples)
    dev = by_split["dev"]
    for kept in (tests, dev):
        for lang, rows in kept.items():
            kept[lang] = _without(rows, taken)
            # Dev rows of the other languages are for the oracle only, which does without them.
            if rows and not kept[lang] and (kept is tests or lang == config.language):
                role = "tested" if kept is tests else "dev"
                raise UserError(
                    f"{config.folder}: `few_shot` takes the ids of all {role} rows in `{lang}`, which would "
                    "leave none; lower `few_shot.examples`, or name the tested `languages`"
                )
    return taken


def _choose_tests(
    tests: Mapping[str, list[Example]], dev: Mapping[str, list[Example]], config: TaskConfig
) -> dict[str, list[Example]]:
    # Dev examples where a language has no others.
    others = {lang: rows for lang, rows in dev.items() if lang != config.language}
    there = dict(sorted({**others, **tests}.items()))
    if not there:
        raise UserError(
            f"{config.folder}: nothing to test on; add a test file, or a dev file of another language"
        )
    wanted = there if config.languages is None else config.languages
    missing = [lang for lang in wanted if lang not in there]
    if missing:
        raise UserError(
            f"{config.folder}: `languages` asks for `{missing[0]}`, which has no test or dev file to "
            f"test on; there are {', '.join(there)}"
        )
    return {lang: rows for lang, rows in there.items() if lang in wanted}
