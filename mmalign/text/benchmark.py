"""A text suite: one YAML file names groups of tasks, one `results.json` holds what came out.

    group of suite.yaml -> files that are there -> for each seed: fit once -> answers of every test -+
    without training    -> nearest neighbours in the tower's own space --------------------> answers -+
        -> scores of every language, XTREME's files of predictions -> mean over the seeds
        -> compared with what is published -> results.json

Groups are read one after the other, since training files are large. The mean over what a publisher
reports, English among it, is `text/<task>/published/clean/<metric>`; it is there only if all of the
tests are, and so is the suite's own average: a mean over what happened to be there is another number.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from mmalign.core import console
from mmalign.core.config import Section, Seeds
from mmalign.core.errors import UserError
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import PUBLISHED
from mmalign.results.results import Results, environment, mean_over_seeds
from mmalign.text.benchmark_tasks import (
    Group,
    GroupConfig,
    TextTestConfig,
    deviations,
    read_group,
)
from mmalign.text.fit import FitConfig, Fitted, fit
from mmalign.text.loop import FinetuneConfig, protocol
from mmalign.text.ranking import rank_features
from mmalign.text.scores import Prediction
from mmalign.text.tasks.read import TaskConfig
from mmalign.text.tasks.task import CLEAN, Task
from mmalign.text.transfer import add_clean, outcome_of
from mmalign.text.xtreme_layout import write_predictions, xtreme_name

Answers = dict[str, list[Prediction]]


class TextSuiteConfig(Section):
    name: str = Field(pattern=r"^[\w-]+$")
    groups: tuple[GroupConfig, ...] = Field(min_length=1)
    seeds: Seeds = (0,)
    """Fine-tune once for each; numbers are then means over them."""
    predictions: bool = False
    """Also write the predictions of the tasks that XTREME's scorer knows, below `predictions/`."""
    average: bool = False
    """Also the mean score of all tasks with `published`, if all of them were measured as published."""

    @model_validator(mode="after")
    def _names_differ(self) -> "TextSuiteConfig":
        names = [test.name for group in self.groups for test in group.tests]
        if len({*names, self.name}) <= len(names):
            raise ValueError("two tests have the same name, or one has that of the suite")
        return self


def run_text_suite(
    config: TextSuiteConfig, model: str, out: Path, untrained: bool = False
) -> Results:
    """Measure a text encoder; write `results.json` and, if asked for, `predictions/` to `out`.

    With several seeds the predictions of each are in `predictions/seed-<seed>/`.

    Args:
        model: what `load_text_encoder` takes.
        untrained: also measure the run's tower as it was before its first step.

    Raises:
        UserError: nothing of the suite is there, a broken file, or training that diverges.
    """
    results = measure_suite(config, load_text_encoder(model), out if config.predictions else None)
    if untrained:
        console.say(f"suite {config.name}: the untrained model")
        tower = load_text_encoder(model, untrained=True)
        results.baselines["untrained"] = measure_suite(config, tower, None)
    out.mkdir(parents=True, exist_ok=True)
    results.write(out / "results.json")
    return results


def measure_suite(config: TextSuiteConfig, tower: TextEncoder, out: Path | None) -> Results:
    """Everything of the suite that is on disk.

    Args:
        out: where to put `predictions/`; none: nowhere.

    Raises:
        UserError: as `run_text_suite`.
    """
    results = Results(config.name, dict(tower.facts), environment=environment())
    results.model["seeds"] = list(config.seeds)
    scores: list[float | None] = []
    for entry in config.groups:
        group = read_group(entry)
        for name, reason in group.skipped.items():
            console.say(f"skipped {name}: {reason}")
            results.protocol[f"text/{name}"] = f"Skipped: {reason}"
        if group.tests:
            results.merge(_run_group(group, tower, config, out))
        tasks = {test.name: task for test, task in group.tests}
        scores += [
            _add_published(results, test, tasks[test.name]) if test.name in tasks else None
            for test in entry.tests
            if test.published
        ]
    if not results.metrics:
        folders = sorted({folder for group in config.groups for folder in group.folders()})
        raise UserError(
            f"suite `{config.name}`: none of its data are there; put them, or links to them, to "
            f"{', '.join(folders)}, or name others with groups.0.tests.0.folder=..."
        )
    if config.average:
        _add_average(results, scores)
    return results


def _run_group(
    group: Group, tower: TextEncoder, config: TextSuiteConfig, out: Path | None
) -> Results:
    """The mean over the seeds; without training there is nothing that a seed could change."""
    tower = _with_length(tower, group.config.max_length)
    seeds = config.seeds if group.config.fit else config.seeds[:1]
    runs = []
    for seed in seeds:
        fitted = _fit(group, tower, seed)
        results = Results(config.name, {"seed": seed})
        place = f"predictions/seed-{seed}" if len(config.seeds) > 1 else "predictions"
        for test, task in group.tests:
            answers = _answers(fitted, tower, task)
            _add_outcome(results, group.config, test, task, answers, fitted, tower)
            if out is not None:
                _write_predictions(out / place, test, task, answers)
        runs.append(results)
    return mean_over_seeds(runs)


def _fit(group: Group, tower: TextEncoder, seed: int) -> Fitted | None:
    """The fine-tuned model, after the stage before it; None where the tower is used as it is."""
    if group.config.fit is None:
        return None
    if group.before is not None and group.config.before is not None:
        tower = fit(tower, group.before, group.config.before.fit, seed).model.tower
    return fit(tower, group.training, group.config.fit, seed, group.config.name)


def _answers(fitted: Fitted | None, tower: TextEncoder, task: Task) -> Answers:
    """One prediction an example, by language."""
    if fitted is None:
        return _nearest(tower, task)
    return {lang: fitted.model.predict(rows) for lang, rows in task.tests.items()}


def _nearest(tower: TextEncoder, task: Task) -> Answers:
    """The nearest candidates of every query; a pool that all languages share is embedded once."""
    answers: Answers = {}
    embedded: tuple[int, np.ndarray] | None = None
    for lang in console.track(task.tests, task.name, len(task.tests)):
        queries, pool = task.tests[lang], task.candidates[lang]
        if embedded is None or embedded[0] != id(pool):
            embedded = id(pool), tower.encode([one.texts[0] for one in pool])
        right = [frozenset(one.target) for one in queries]  # type: ignore[arg-type]
        query_QD = tower.encode([one.texts[0] for one in queries])
        answers[lang] = list(
            rank_features(query_QD, embedded[1], right, [one.id for one in pool])  # type: ignore[arg-type]
        )
    return answers


def _add_outcome(
    results: Results,
    group: GroupConfig,
    test: TextTestConfig,
    task: Task,
    answers: Answers,
    fitted: Fitted | None,
    tower: TextEncoder,
) -> None:
    """Scores of every language, their mean, and how they came about."""
    outcomes = {lang: outcome_of(task, task.tests[lang], answers[lang]) for lang in task.tests}
    add_clean(results, task, outcomes)
    words = _words(group, test, task, fitted)
    if group.max_length is not None and tower.max_length < group.max_length:
        words += f" Cut at {tower.max_length} tokens, not {group.max_length}: the model has no more places."
    results.protocol[f"text/{task.name}"] = words


def _words(group: GroupConfig, test: TextTestConfig, task: Task, fitted: Fitted | None) -> str:
    """The protocol of one test."""
    if fitted is None or group.fit is None:
        way = (
            "each candidate looks for its query"
            if test.reverse
            else "each query for its candidates"
        )
        how = f"Nothing was trained: {way}, the nearest by cosine in the tower's space."
    else:
        files = TaskConfig(name=test.name, folder=test.folder, format=test.format)
        settings = {name: getattr(group.fit, name) for name in FitConfig.model_fields}
        how = protocol(task, FinetuneConfig(task=files, **settings), fitted)
        if "dev" in fitted.kept():
            how += f" On `{task.source}` dev: {fitted.kept()['dev']:.4f}."
    if group.before is not None:
        how += f" Before that the tower was fine-tuned on {group.before.train.folder}."
    if test.splits:
        how += f" Tested on these splits together: {', '.join(test.splits)}."
    if test.published is None:
        return how
    compared, same = deviations(test, task)
    return f"{how} Tests {'as' if same else 'not as'} published: {compared}."


def _write_predictions(folder: Path, test: TextTestConfig, task: Task, answers: Answers) -> None:
    """XTREME's files, where its scorer knows the task and reads the same units."""
    if xtreme_name(test.name) is None or test.format == "conllu":
        return  # XTREME tags fused words as one: its file has other lines than a treebank has words
    for lang, given in answers.items():
        pool = task.candidates.get(lang, [])
        write_predictions(folder, test.name, lang, task.kind, task.tests[lang], given, pool)


def _with_length(tower: TextEncoder, length: int | None) -> TextEncoder:
    """The same weights, cutting sequences at `length` tokens, or where the model's places end."""
    if length is None:
        return tower
    config = tower.trunk.config
    places = getattr(config, "max_position_embeddings", length)
    if "roberta" in config.model_type:  # its places count from behind the padding token's number
        places -= config.pad_token_id + 1
    changed = copy.copy(tower)
    changed.max_length = min(length, places)
    return changed


def _add_published(results: Results, test: TextTestConfig, task: Task) -> float | None:
    """The mean over the published languages, and the task's score; None if they are not all there.

    Raises:
        UserError: a metric that the task does not have.
    """
    assert test.published is not None
    if not deviations(test, task)[1]:
        return None
    scores = []
    count = sum(len(rows) for rows in task.tests.values())
    for metric in test.published.metrics:
        names = [f"text/{test.name}/{lang}/{CLEAN}/{metric}" for lang in task.tests]
        unknown = [name for name in names if name not in results.metrics]
        if unknown:
            raise UserError(f"test `{test.name}`: `published.metrics`: there is no {unknown[0]}")
        scores.append(float(np.mean([results.metrics[name] for name in names])))
        results.add(f"text/{test.name}/{PUBLISHED}/{CLEAN}/{metric}", scores[-1], count=count)
    return float(np.mean(scores))


def _add_average(results: Results, scores: Sequence[float | None]) -> None:
    """The mean score of all tasks, or why there is none."""
    measured = [score for score in scores if score is not None]
    name = f"text/{results.suite}"
    if len(measured) < len(scores):
        words = f"No average: {len(measured)} of {len(scores)} tasks were measured as published."
        console.say(f"{results.suite}: {words[0].lower()}{words[1:]}")
    else:
        words = f"Mean of the scores of {len(scores)} tasks, each over what its publisher reports."
        average = float(np.mean(measured))
        results.add(f"{name}/{PUBLISHED}/{CLEAN}/average", average, count=len(measured))
    results.protocol[name] = words
