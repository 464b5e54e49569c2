"""A task as a configuration names it: which files to train on, which to test on, in which languages.

TaskConfig -> readers -> splits of the training files, splits of the test files -> Task
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.readers import Format, read
from mmalign.text.tasks.task import Kind, Splits, Task, labels_of, sample


class FilesConfig(Section):
    """Where examples lie, and in which layout."""

    folder: str
    """Relative to where the command runs."""
    format: Format = "tsv"
    """Whose layout the files have; tsv: our own, `<split>.<lang>.tsv` with a header line."""


class TaskConfig(Section):
    name: str = Field(pattern=r"^[\w-]+$")
    """The task's name in metrics: `text/<name>/...`."""
    folder: str
    """Folder of the tests, and of training and dev files too unless `train` names others; relative to
    where the command runs."""
    format: Format = "tsv"
    """Whose layout the files have; tsv: our own, `<split>.<lang>.tsv` with a header line."""
    train: FilesConfig | None = None
    """Training files, where they are not those of `folder`; their dev files, if any, choose the epoch."""
    language: str = "en"
    """Language of the labels to train on."""
    train_examples: int | None = Field(default=None, ge=1)
    """Train on a sample of so many rows, drawn by their ids; by default on all."""
    test_examples: int | None = Field(default=None, ge=1)
    """Test on a sample of so many rows of each language, the same ids in all; by default on all."""
    languages: tuple[str, ...] | None = None
    """Test only in these; by default in every language that the folder holds."""
    relabel: dict[str, str] = Field(default_factory=dict)
    """Label of the tests -> label of the training files, where they name the same thing differently."""
    merge: dict[str, str] = Field(default_factory=dict)
    """Predicted label -> coarser label of the tests (HANS: `neutral` is
    `not_entailment`)."""


def read_task(config: TaskConfig) -> Task:
    """The task, to be trained in `language` and tested in every language that has a test.

    A language without a test file is tested on its dev file, except the source language.

    Raises:
        UserError: a broken file, no training file, no tests, a language that is not there, training and
            test files that ask different things, or a label that training lacks.
    """
    tested = read(config.format, Path(config.folder))
    if config.train is None:
        return make_task(config, tested, tested)
    return make_task(config, read(config.train.format, Path(config.train.folder)), tested)


def make_task(
    config: TaskConfig, training_files: tuple[Kind, Splits], test_files: tuple[Kind, Splits]
) -> Task:
    """As `read_task`, of files that were read already."""
    folder = Path(config.folder)
    (train_kind, trained), (kind, tested) = training_files, test_files
    if train_kind != kind:
        where = config.train.folder if config.train else folder
        raise UserError(
            f"task `{config.name}`: {where} holds {train_kind} examples, {folder} "
            f"{kind} ones; train on the kind that is tested"
        )
    tested = _relabelled(tested, config.relabel)
    source = config.language
    train = _training_examples(trained, config, kind)
    tests, test_is_dev = _choose_tests(tested, folder, source, config.languages)
    tests = {lang: sample(rows, config.test_examples) for lang, rows in tests.items()}
    dev = {lang: rows for (split, lang), rows in tested.items() if split == "dev"}
    if ("dev", source) in trained:
        dev[source] = trained["dev", source]
    task = Task(
        name=config.name,
        kind=kind,
        source=source,
        labels=labels_of(train, kind),
        train=train,
        dev=dev,
        tests=tests,
        candidates={lang: rows for (split, lang), rows in tested.items() if split == "candidates"},
        test_is_dev=test_is_dev,
        merge=dict(config.merge),
    )
    for examples in (dev.get(source, []), *tests.values()):
        _check_labels(examples, task, folder)
    return task


def describe(task: Task) -> str:
    """What the numbers of this task measure, in words, from the data themselves."""
    trained = {one.id for one in task.train}
    tested = [one for lang in task.targets for one in task.tests[lang]]
    known = sum(one.id in trained for one in tested)
    if not task.train:
        novelty = "Nothing was trained."
    elif known == len(tested):
        novelty = (
            f"Every tested item (id) is trained on in `{task.source}`: this measures transfer between "
            "languages, not to new items."
        )
    elif known == 0:
        novelty = "No tested item (id) occurs in training: both the item and the language are new."
    else:
        novelty = f"{known} of {len(tested)} test rows show an item (id) that is trained on."
    on_dev = ", ".join(sorted(task.test_is_dev))
    splits = f" The dev split stands in for a missing test split: {on_dev}." if on_dev else ""
    labels = f" with {len(task.labels)} labels" if task.labels else ""
    return (
        f"Trained on {len(task.train)} `{task.source}` rows{labels}; measured in languages of which no "
        f"label was used. {novelty}{splits} `mean`: over all tested languages but `{task.source}`, its "
        "interval drawn over ids."
    )


def _relabelled(splits: Splits, relabel: Mapping[str, str]) -> Splits:
    def change(example: Example) -> Example:
        if not isinstance(example.target, str):
            return example
        return replace(example, target=relabel.get(example.target, example.target))

    return (
        {key: [change(one) for one in rows] for key, rows in splits.items()} if relabel else splits
    )


def _training_examples(splits: Splits, config: TaskConfig, kind: Kind) -> list[Example]:
    """The source language's training rows; retrieval may have none, the tower is then used as it is."""
    train = splits.get(("train", config.language), [])
    if not train and kind != "retrieval":
        where = config.train.folder if config.train else config.folder
        there = ", ".join(sorted(lang for split, lang in splits if split == "train")) or "none"
        raise UserError(
            f"{where}: no training file for `{config.language}` (task `{config.name}`); languages with "
            f"a training file: {there}"
        )
    return sample(train, config.train_examples)


def _choose_tests(
    splits: Splits, folder: Path, source: str, languages: Sequence[str] | None
) -> tuple[dict[str, list[Example]], frozenset[str]]:
    """The examples to test on, by language, and the languages where they are the dev ones."""
    tests = {lang: rows for (split, lang), rows in splits.items() if split == "test"}
    dev = {lang: rows for (split, lang), rows in splits.items() if split == "dev"}
    dev.pop(source, None)
    there = dict(sorted({**dev, **tests}.items()))
    if not there:
        raise UserError(
            f"{folder}: nothing to test on; add a test file, or a dev file of a language other than "
            f"`{source}`"
        )
    wanted = there if languages is None else languages
    missing = [lang for lang in wanted if lang not in there]
    if missing:
        raise UserError(
            f"{folder}: `languages` asks for `{missing[0]}`, which has no test or dev file to test on; "
            f"there are {', '.join(there)}"
        )
    chosen = {lang: rows for lang, rows in there.items() if lang in wanted}
    return chosen, frozenset(lang for lang in chosen if lang not in tests)


def _check_labels(examples: Sequence[Example], task: Task, folder: Path) -> None:
    """Labels of tests that training lacks are mistakes, except coarser ones that `merge` names."""
    if task.kind != "classification":
        return
    known = {*task.labels, *task.merge.values()}
    for one in examples:
        if one.target not in known:
            raise UserError(
                f"{folder}: {one.lang} has the label `{one.target}` (id {one.id}), which training lacks; "
                f"its labels are {', '.join(task.labels)}; `relabel` gives it another name"
            )
