"""What a suite of text tasks names, how it is read, and whether it equals the published tests.

A task that is not on disk is left out and named. A broken file is an error.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.text.fit_config import FitConfig
from mmalign.text.tasks.codes import Language
from mmalign.text.tasks.formats import read
from mmalign.text.tasks.layout import NoFiles
from mmalign.text.tasks.read import FilesConfig, NamedFilesConfig, TaskConfig, make_task
from mmalign.text.tasks.task import CANDIDATES, Kind, Splits, Task, labels_of

SOURCE = "en"


class PublishedConfig(Section):
    """What the publisher of a task reports; only numbers on the same tests compare with published ones."""

    metrics: tuple[str, ...] = Field(min_length=1)
    """Of several the mean is the task's score."""
    sizes: int | dict[Language, int] | None = None
    """Test examples of every language, or of each; a language without a size is not compared."""


class TextTestConfig(NamedFilesConfig):
    languages: tuple[Language, ...] | None = None
    """What the publisher tests; one that is not on disk is named in the results. By default all there are."""
    splits: tuple[Literal["train", "dev", "test"], ...] = ()
    """Joined, they are the test. By default the test files, or dev files of other languages than
    English where there are none."""
    reverse: bool = False
    """Of retrieval: candidates become the queries, and queries the candidates."""
    published: PublishedConfig | None = None


class StageConfig(Section):
    """A fine-tuning before the one that is tested, which continues with its tower and a new head."""

    train: FilesConfig
    fit: FitConfig


class GroupConfig(Section):
    """Tests that share one fine-tuning; without `train`, retrieval with the tower without training."""

    name: str
    before: StageConfig | None = None
    train: FilesConfig | None = None
    fit: FitConfig | None = None
    max_length: int | None = Field(default=None, ge=8)
    """Tokens at which sequences are cut, if the model has so many positions; by default the model's own."""
    choose_on_dev: bool = True
    """English dev examples choose the weights that are kept; otherwise those of the last step are."""
    tests: tuple[TextTestConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _train_and_fit(self) -> "GroupConfig":
        if (self.train is None) != (self.fit is None):
            raise ValueError(f"group `{self.name}`: give both `train` and `fit`, or neither")
        if self.before is not None and self.train is None:
            raise ValueError(f"group `{self.name}`: `before` needs a `train` behind it")
        return self

    def folders(self) -> Iterator[str]:
        """Every folder that the group reads."""
        files = [*self.tests, self.train, self.before.train if self.before else None]
        return (one.folder for one in files if one is not None)


@dataclass(frozen=True)
class Group:
    """A group that was read.

    Attributes:
        tests: those on disk, in the order of the configuration.
        before: the examples of the stage before.
        skipped: name of a test -> what is missing.
    """

    config: GroupConfig
    tests: Sequence[tuple[TextTestConfig, Task]]
    before: Task | None
    skipped: dict[str, str]

    @property
    def training(self) -> Task:
        """The task to fit, with its own labels. No dev example that is tested chooses its weights."""
        first = self.tests[0][1]
        # A dev set may also be one of the tests (GLUE has no labelled test files).
        tested = {one.id for _, task in self.tests for one in task.tests.get(SOURCE, [])}
        dev = [one for one in first.dev.get(SOURCE, []) if one.id not in tested]
        return replace(first, dev={SOURCE: dev} if self.config.choose_on_dev else {}, merge={})


def read_group(config: GroupConfig) -> Group:
    """The tasks of a group whose files are there.

    Raises:
        UserError: a broken file, or tests of another kind than the training files.
    """
    try:
        before = _read_stage(config.before.train, config.name) if config.before else None
        trained = read(config.train.format, Path(config.train.folder)) if config.train else None
    except NoFiles as missing:  # not a broken file, which stops the suite
        reason = f"the training files are missing ({missing})"
        return Group(config, [], None, dict.fromkeys((test.name for test in config.tests), reason))
    found, skipped = [], {}
    # A test that is missing is named and left out; the others are still worth a fine-tuning.
    for test in config.tests:
        try:
            found.append((test, _read_test(test, config, trained)))
        except NoFiles as missing:
            skipped[test.name] = str(missing)
    return Group(config, found, before, skipped)


def deviations(test: TextTestConfig, task: Task) -> tuple[str, bool]:
    """How the tests on disk compare with the published ones, in words, and whether they are equal."""
    wanted = test.languages or tuple(task.tests)
    missing = [lang for lang in wanted if lang not in task.tests]
    # A publisher may report fewer languages than are on disk; the others are measured, but not compared.
    sizes = (test.published.sizes if test.published else None) or {}
    published = dict.fromkeys(task.tests, sizes) if isinstance(sizes, int) else sizes
    compared = {lang: len(rows) for lang, rows in task.tests.items() if lang in published}
    unequal = {lang: n for lang, n in compared.items() if n != published[lang]}
    wrong = [f"{lang} {n} of {published[lang]}" for lang, n in unequal.items()]
    words = [f"{len(wanted) - len(missing)} of {len(wanted)} languages"]
    words += [f"missing: {', '.join(missing)}"] if missing else []
    if task.test_is_dev:
        words.append(f"dev instead of test: {', '.join(sorted(task.test_is_dev))}")
    if len(compared) > len(wrong):
        words.append(f"published size in {len(compared) - len(wrong)}")
    words += wrong
    if len(compared) < len(task.tests):
        words.append(f"size not compared in {len(task.tests) - len(compared)}")
    return "; ".join(words), not (missing or task.test_is_dev or wrong)


def _read_test(
    test: TextTestConfig, group: GroupConfig, trained: tuple[Kind, Splits] | None
) -> Task:
    kind, splits = read(test.format, Path(test.folder))
    if trained is None and kind != "retrieval":
        raise UserError(
            f"group `{group.name}`: {test.folder} holds {kind} examples, which need `train` and `fit`"
        )
    if test.splits:  # joined, and the candidates
        order, moved = [CANDIDATES, *test.splits], Splits()
        chosen = [key for key in splits if key[0] in order]
        # In the order of the configuration, not in that of the files.
        for split, lang in sorted(chosen, key=lambda key: order.index(key[0])):
            name = split if split == CANDIDATES else "test"
            moved[name, lang] = [*moved.get((name, lang), []), *splits[split, lang]]
        splits = moved
    # Ids that differ from those of another publisher's rows, which may be row numbers too. Questions and
    # words keep the publisher's ids: XTREME's files of answers name them.
    is_foreign = group.train is not None and test.format != group.train.format
    if is_foreign and kind not in ("span_qa", "tagging", "retrieval"):
        for key, rows in splits.items():
            splits[key] = [replace(one, id=f"{test.name}-{one.id}") for one in rows]
    fields = test.model_dump(include={"name", "folder", "format", "relabel", "merge"})
    languages = _languages_there(splits, test)
    config = TaskConfig(**fields, train=group.train, language=SOURCE, languages=languages)
    task = make_task(config, trained or (kind, splits), (kind, splits))
    return _reversed(task) if test.reverse else task


def _read_stage(files: FilesConfig, group: str) -> Task:
    kind, splits = read(files.format, Path(files.folder))
    train = splits.get(("train", SOURCE), [])
    if not train:
        raise NoFiles(f"{files.folder}: no training file for `{SOURCE}`")
    dev = splits.get(("dev", SOURCE), [])
    name = f"{group}, stage before"
    return Task(name, kind, SOURCE, labels_of(train, kind), train, {SOURCE: dev}, {}, {})


def _languages_there(splits: Splits, test: TextTestConfig) -> tuple[str, ...] | None:
    if test.languages is None:
        return None
    there = {
        lang for split, lang in splits if split == "test" or (split == "dev" and lang != SOURCE)
    }
    found = tuple(lang for lang in test.languages if lang in there)
    if not found:
        raise NoFiles(f"{test.folder}: holds a test of none of {', '.join(test.languages)}")
    return found


def _reversed(task: Task) -> Task:
    # Candidates that are an answer become the queries of their language, and queries the candidates.
    tests, candidates = {}, {}
    for lang, queries in task.tests.items():
        asked_by: defaultdict[object, tuple[str, ...]] = defaultdict(tuple)
        for query in queries:
            assert isinstance(query.target, tuple), query.id
            for answer in query.target:
                asked_by[answer] += (query.id,)
        answers = [one for one in task.candidates[lang] if one.id in asked_by]
        tests[lang] = [replace(one, target=asked_by[one.id]) for one in answers]
        candidates[lang] = [replace(query, target=(query.id,)) for query in queries]
    return replace(task, tests=tests, candidates=candidates)
