"""Suites of text tasks (XTREME-R, GLUE-X): one YAML file names groups of tasks, one `results.json` results.

    group of suite.yaml -> files on disk -> for each seed: fit once -> answers of every test -+
    without training    -> nearest neighbours in the tower's own space --------------------> answers -+
        -> scores of every language, XTREME's files of predictions -> mean over the seeds
        -> compared with the published test sets -> results.json

The mean over all languages that a publisher reports, English included, is
`text/<task>/published/clean/<metric>`.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from mmalign.core import console
from mmalign.core.commit import check_writable
from mmalign.core.config import Section, Seeds
from mmalign.core.errors import UserError
from mmalign.models.load import OWN_PROMPTS, load_text_encoder
from mmalign.models.prompts import Side
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import PUBLISHED
from mmalign.results.protocol import HOW, MEAN_OVER, NOTE, joined
from mmalign.results.results import Results, environment
from mmalign.results.seeds import mean_over_seeds
from mmalign.text.benchmark_tasks import (
    Group,
    GroupConfig,
    TextTestConfig,
    deviations,
    read_group,
)
from mmalign.text.finetune import protocol
from mmalign.text.fit import fit
from mmalign.text.fit_loop import Fitted
from mmalign.text.heads.ranking import rank
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import CLEAN, Task
from mmalign.text.transfer import add_clean, outcome_of
from mmalign.text.xtreme_layout import write_predictions, xtreme_name


class BenchmarkConfig(Section):
    """A suite of text tasks."""

    name: str = Field(pattern=r"^[\w-]+$")
    groups: tuple[GroupConfig, ...] = Field(min_length=1)
    seeds: Seeds = (0,)
    """Fine-tune once for each; numbers are then means over them."""
    predictions: bool = False
    """Also write the predictions of the tasks that XTREME's scorer grades, below `predictions/`."""
    average: bool = False
    """Also the mean score of all tasks with `published`, if all of them were measured as published."""

    @model_validator(mode="after")
    def _names_differ(self) -> "BenchmarkConfig":
        names = [test.name for group in self.groups for test in group.tests]
        if len({*names, self.name}) <= len(names):
            raise ValueError("two tests have the same name, or one has that of the suite")
        return self


def run_benchmark(
    config: BenchmarkConfig,
    model: str,
    out: Path,
    untrained: bool = False,
    prompts: Mapping[Side, str] = OWN_PROMPTS,
) -> Results:
    """Measure a text encoder; write `results.json` and, if asked for, `predictions/` to `out`.

    Args:
        model: what `load_text_encoder` takes.
        untrained: also measure the run's tower before its first step.
        prompts: in place of the model's own, see `load_model`.

    Raises:
        UserError: nothing of the suite is there, a broken file, or training that diverges.
    """
    check_writable(out / "results.json")
    if config.predictions:
        check_writable(out / "predictions", is_folder=True)
    tower = load_text_encoder(model, prompts=prompts)
    results = measure_benchmark(config, tower, out if config.predictions else None)
    if untrained:
        console.say(f"suite {config.name}: the untrained model")
        tower = load_text_encoder(model, untrained=True, prompts=prompts)
        results.baselines["untrained"] = measure_benchmark(config, tower, None)
    results.write(out / "results.json")
    return results


def measure_benchmark(config: BenchmarkConfig, tower: TextEncoder, out: Path | None) -> Results:
    """Everything of the suite that is on disk; `predictions/` are written to `out`, if there is one."""
    facts = {**tower.facts, "seeds": list(config.seeds)}
    results = Results(config.name, facts, environment=environment())
    scores: list[float | None] = []
    for entry in config.groups:  # read one after the other, since training files are large
        group = read_group(entry)
        for name, reason in group.skipped.items():
            console.say(f"skipped {name}: {reason}")
            results.protocol[f"text/{name}"] = {HOW: f"Skipped: {reason}"}
        if group.tests:
            results.merge(_run_group(group, tower, config, out))
        tasks = {test.name: task for test, task in group.tests}
        published = [test for test in entry.tests if test.published]
        scores += [_add_published(results, test, tasks.get(test.name)) for test in published]
    if not results.metrics:
        folders = sorted({folder for group in config.groups for folder in group.folders()})
        raise UserError(
            f"suite `{config.name}`: none of its data are there; put them, or links to them, to "
            f"{', '.join(folders)}, or name others with groups.0.tests.0.folder=..."
        )
    # Only suites whose publisher reports one number have it.
    if config.average:
        _add_average(results, scores)
    return results


def _run_group(
    group: Group, tower: TextEncoder, config: BenchmarkConfig, out: Path | None
) -> Results:
    tower = _with_length(tower, group.config.max_length)
    # Without training, results do not depend on a seed.
    seeds = config.seeds if group.config.fit else config.seeds[:1]
    runs = []
    for seed in seeds:
        fitted = _fit(group, tower, seed)
        results = Results(config.name, {"seed": seed})
        for test, task in group.tests:
            answers = (
                {lang: fitted.model.predict(rows) for lang, rows in task.tests.items()}
                if fitted
                else _nearest(tower, task)
            )
            outcomes = {lang: outcome_of(task, task.tests[lang], answers[lang]) for lang in answers}
            add_clean(results, task, outcomes)
            results.protocol[f"text/{task.name}"] = _protocol(group, test, task, fitted, tower)
            # XTREME tags fused words as one: its file has other lines than a treebank has words.
            if out is not None and xtreme_name(test.name) and test.format != "conllu":
                seed_folder = f"predictions/seed-{seed}" if len(config.seeds) > 1 else "predictions"
                for lang, given in answers.items():
                    write_predictions(out / seed_folder, test.name, lang, task, given)
        runs.append(results)
    return mean_over_seeds(runs)


def _fit(group: Group, tower: TextEncoder, seed: int) -> Fitted | None:
    if group.config.fit is None:
        return None
    if group.before is not None and group.config.before is not None:
        tower = fit(tower, group.before, group.config.before.fit, seed).model.tower
    return fit(tower, group.training, group.config.fit, seed, group.config.name)


def _nearest(tower: TextEncoder, task: Task) -> dict[str, list[Prediction]]:
    answers: dict[str, list[Prediction]] = {}
    embedded: dict[int, np.ndarray] = {}  # a pool that all languages share is embedded once
    for lang in console.track(task.tests, task.name, len(task.tests)):
        pool = task.candidates[lang]
        if id(pool) not in embedded:
            # Only the last one is kept: pools are large, and languages that share one follow each other.
            texts = [one.texts[0] for one in pool]
            embedded = {id(pool): tower.encode(texts, side="passage")}
        answers[lang] = [*rank(tower, task.tests[lang], pool, candidate_MD=embedded[id(pool)])]
    return answers


def _protocol(
    group: Group, test: TextTestConfig, task: Task, fitted: Fitted | None, tower: TextEncoder
) -> dict[str, Any]:
    config = group.config
    if fitted is None or config.fit is None:
        way = (
            "each candidate looks for its query"
            if test.reverse
            else "each query for its candidates"
        )
        words = f"Nothing was trained: {way}, the nearest by cosine in the tower's space."
        words += " `mean`: over {mean_over}."
        how = {HOW: words, MEAN_OVER: list(task.targets)}
    else:
        how = protocol(task, config.fit, fitted)
        if "dev" in fitted.kept():
            on_dev = f"On `{task.source}` dev: {{dev}}."
            how = joined(how, {HOW: on_dev, "dev": f"{fitted.kept()['dev']:.4f}"})
    if config.before is not None:
        how = joined(
            how,
            {
                HOW: "Before that the tower was fine-tuned on {before}.",
                "before": config.before.train.folder,
            },
        )
    if test.splits:
        how = joined(
            how, {HOW: "Tested on these splits together: {splits}.", "splits": [*test.splits]}
        )
    if test.published is not None:
        compared, same = deviations(test, task)
        how = joined(
            how,
            {HOW: f"Tests {'as' if same else 'not as'} published: {{tests}}.", "tests": compared},
        )
    note = tower.note if fitted is None else fitted.model.tower.note
    return {**how, **({NOTE: note} if note else {})}


def _with_length(tower: TextEncoder, length: int | None) -> TextEncoder:
    if length is None:
        return tower
    changed = copy.copy(tower)  # shallow: both share the weights
    changed.cut_at(length)
    return changed


def _add_published(results: Results, test: TextTestConfig, task: Task | None) -> float | None:
    assert test.published is not None
    # A mean over some of the published languages would be another number.
    if task is None or not deviations(test, task)[1]:
        return None
    scores = []
    count = sum(len(rows) for rows in task.tests.values())
    for metric in test.published.metrics:
        names = [f"text/{test.name}/{lang}/{CLEAN}/{metric}" for lang in task.tests]
        if unknown := [name for name in names if name not in results.metrics]:
            raise UserError(f"test `{test.name}`: `published.metrics`: there is no {unknown[0]}")
        scores.append(float(np.mean([results.metrics[name] for name in names])))
        results.add(f"text/{test.name}/{PUBLISHED}/{CLEAN}/{metric}", scores[-1], count=count)
    return float(np.mean(scores))


def _add_average(results: Results, scores: Sequence[float | None]) -> None:
    measured = [score for score in scores if score is not None]
    name = f"text/{results.suite}"
    if len(measured) < len(scores):
        words = f"No average: {len(measured)} of {len(scores)} tasks were measured as published."
        console.say(f"{results.suite}: {words[0].lower()}{words[1:]}")
    else:
        words = f"Mean of the scores of {len(scores)} tasks, each over what its publisher reports."
        average = float(np.mean(measured))
        results.add(f"{name}/{PUBLISHED}/{CLEAN}/average", average, count=len(measured))
    results.protocol[name] = {HOW: words}
