"""Fine-tuning on the labels of one language, and zero-shot numbers in every other one."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mmalign.core import console, distributed
from mmalign.core.config import Seeds, apply_override_value, read_yaml, validate
from mmalign.core.errors import Diverged, UserError
from mmalign.models.load import OWN_PROMPTS, load_text_encoder
from mmalign.models.prompts import Side
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.protocol import HOW, LEFT_OUT, MEAN_OVER, NOTE, joined
from mmalign.results.results import Results, environment
from mmalign.results.seeds import mean_over_seeds
from mmalign.text.causality.config import ASKED, CausalityConfig
from mmalign.text.causality.config import describe as describe_causality
from mmalign.text.fit import fit
from mmalign.text.fit_config import FitConfig, precision_of
from mmalign.text.fit_loop import Fitted
from mmalign.text.heads.base import TaskModel
from mmalign.text.heads.features import ON_FEATURES
from mmalign.text.measure import TestConfig, check_tests, measure
from mmalign.text.robust.method import Configured
from mmalign.text.scores import PRIMARY, Prediction
from mmalign.text.seeds import read_files, run_seeds
from mmalign.text.tasks.overlap import overlap
from mmalign.text.tasks.read import TaskConfig, describe, read_task
from mmalign.text.tasks.task import Task
from mmalign.text.transfer import LEAST_CHANGED, add_clean, outcome_of


class FinetuneConfig(FitConfig):
    """One fine-tuning: the task, what is trained and how, and how it is tested."""

    task: TaskConfig
    seeds: Seeds = (0,)
    """Fine-tune once for each: order of the rows, start of the head, dropout, noise, folds."""
    tests: TestConfig = TestConfig()
    folds: int | None = Field(default=None, ge=2)
    """Also train once per fold without the fold's items (ids) and test on these: `<task>_unseen`."""
    search: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Field -> values to try, dotted: `{lr: [1e-5, 3e-5], method.epsilon: [0.1, 0.3]}`. Every combination is
    trained, for each tower and seed, and the one with the best dev score in `task.language` is tested."""
    baselines: tuple[Literal["untrained"], ...] = ()
    """untrained: everything again on the same tower as it was before it saw an image."""

    @model_validator(mode="after")
    def _search_names_fields_of_training(self) -> "FinetuneConfig":
        for field, values in self.search.items():
            if field.split(".")[0] not in FitConfig.model_fields or not values:
                raise ValueError(f"search: `{field}` is no field of training, or has no values")
        return self


def finetune(
    config: FinetuneConfig, model: str, out: Path, prompts: Mapping[Side, str] = OWN_PROMPTS
) -> Results:
    """Fine-tune a text encoder (what `load_text_encoder` takes); files as `run_seeds` writes them.

    A collective: the ranks share the rows of every batch and of every test, and rank 0 writes.

    Raises:
        UserError: a task or a model that cannot be used, or training that diverges.
    """
    task = read_task(config.task)
    # What cannot be done fails here, not after hours of training.
    check_tests(task, config.tests)
    if config.folds:
        deal_ids(task, config.folds, config.seeds[0])
    tower = load_text_encoder(model, prompts=prompts)
    # Loaded before training too: a model without an untrained state is an error that costs nothing here.
    baselines = {
        name: load_text_encoder(model, untrained=True, prompts=prompts) for name in config.baselines
    }
    data = files_of(config.task)  # now: files may be replaced while training runs
    config = _with_precision(config, out / "config.yaml")
    console.say(f"{task.name}: training in {config.precision}")

    fits = out / "fits"

    def run(seed: int) -> tuple[Results, TaskModel]:
        return run_seed(tower, task, config, seed, fits)

    runs = run_seeds(config, config.seeds, model, out, task.name, data, run)
    results = mean_over_seeds(runs)
    for name, untrained in baselines.items():
        console.say(f"baseline: the {name} tower")
        baseline = [run_seed(untrained, task, config, seed, fits)[0] for seed in config.seeds]
        results.baselines[name] = mean_over_seeds(baseline)

    def write() -> None:
        results.write(out / "results.json")
        shutil.rmtree(fits, ignore_errors=True)  # for a run that is stopped and started again

    distributed.on_main(write)
    return results


def files_of(task: TaskConfig) -> list[dict[str, Any]]:
    """The folders that a task reads, each `{"folder", "files": {path below it: sha256}}`."""
    folders = [task.folder] if task.train is None else [task.folder, task.train.folder]
    found = []
    for folder in map(Path, dict.fromkeys(folders)):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        # Readers skip hidden files.
        seen = [one for one in paths if "/." not in f"/{one.relative_to(folder).as_posix()}"]
        if seen:
            found.append(read_files(folder, seen))
    for one in (task, task.train):
        if one is not None and one.hf is not None and not Path(one.folder).exists():
            found.append({"dataset": one.folder, "revision": one.hf.revision})
    return found


def _with_precision(config: FinetuneConfig, path: Path) -> FinetuneConfig:
    # The same fine-tuning keeps the precision of an earlier run, whose `config.yaml` is at `path`, so that it
    # gives the same numbers on other hardware.
    if config.precision == "auto" and path.is_file():
        earlier = read_yaml(path)
        if {**earlier, "precision": "auto"} == config.model_dump(mode="json"):
            config = config.model_copy(update={"precision": earlier.get("precision", "fp32")})
    return config.model_copy(update={"precision": precision_of(config)})


def run_seed(
    tower: TextEncoder, task: Task, config: FinetuneConfig, seed: int, fits: Path | None = None
) -> tuple[Results, TaskModel]:
    """Fit on the training language and measure everywhere; the model is that of all items.

    Args:
        fits: where what is trained is kept, see `fit`.
    """
    config, fitted, searched = _fit_best(tower, task, config, seed, fits)
    facts = {**tower.facts, "trainable": config.trainable, "seed": seed, **fitted.kept()}
    results = Results(
        suite=f"text/{task.name}",
        model={**facts, **({"searched": searched} if searched else {})},
        environment=environment(),
    )
    left_out = measure(fitted, task, config.tests, tower, results)
    results.protocol[f"text/{task.name}"] = joined(
        protocol(task, config, fitted, config.tests, fitted.model.tower.note), _left_out(left_out)
    )
    if config.folds:
        _add_unseen(results, tower, task, config, config.folds, seed, fits)
    return results, fitted.model


def _fit_best(
    tower: TextEncoder, task: Task, config: FinetuneConfig, seed: int, fits: Path | None
) -> tuple[FinetuneConfig, Fitted, list[dict[str, Any]]]:
    """The settings of `search` that are best on dev, their fit, and what was tried: fields and `dev`."""
    if not config.search:
        return config, fit(tower, task, config, seed, fits=fits), []
    if not task.dev.get(task.source):
        raise UserError(
            f"task `{task.name}`: `search` needs dev rows in `{task.source}`; add them or drop it"
        )
    best: tuple[float, FinetuneConfig, Fitted] | None = None
    tried: list[dict[str, Any]] = []
    for values in product(*config.search.values()):
        settings = dict(zip(config.search, values, strict=True))
        tree = config.model_dump(mode="json")
        for dotted, value in settings.items():
            apply_override_value(tree, dotted, value)
        one = validate(FinetuneConfig, tree, f"search {settings}")
        try:
            fitted = fit(tower, task, one, seed, f"{task.name} {settings}", fits)
        except Diverged:
            tried.append({**settings, "dev": None})
            continue
        dev = fitted.kept()["dev"]
        tried.append({**settings, "dev": dev})
        if best is None or dev > best[0]:
            best = dev, one, fitted
    if best is None:
        raise Diverged(f"task `{task.name}`: every training of `search` diverged; lower the rates")
    return best[1], best[2], tried


def _add_unseen(
    results: Results,
    tower: TextEncoder,
    task: Task,
    config: FinetuneConfig,
    folds: int,
    seed: int,
    fits: Path | None,
) -> None:
    # The outcome on each fold's items of a model trained without them, put together.
    found: dict[tuple[str, str], Prediction] = {}
    dealt = deal_ids(task, folds, seed)
    for number, ids in enumerate(dealt, start=1):
        without = task.hold_out(ids)
        label = f"{task.name}, fold {number} of {folds}"
        fitted = fit(tower, without, config, seed, label, fits)
        model = fitted.model
        for lang, examples in without.tests.items():
            predictions = model.predict(examples)
            found |= {(lang, e.id): p for e, p in zip(examples, predictions, strict=True)}
    unseen = replace(task.tested_on(set().union(*dealt)), name=f"{task.name}_unseen")
    outcomes = {
        lang: outcome_of(unseen, examples, [found[lang, one.id] for one in examples])
        for lang, examples in unseen.tests.items()
        if examples
    }
    add_clean(results, unseen, outcomes)
    note = {NOTE: model.tower.note} if model.tower.note else {}
    results.protocol[f"text/{unseen.name}"] = {
        # Of the other fields some are of one training, and others of tests that are not made here.
        HOW: f"As text/{task.name}, but trained {{folds}} times, each time without a part of the items "
        "(ids), and tested on these: transfer to new items in new languages. Training {training}, method "
        "{method}, {epochs} epochs. Means are over {mean_over}. {overlap}",
        **{
            name: results.protocol[f"text/{task.name}"][name]
            for name in ("training", "method", "epochs")
        },
        "folds": folds,
        # Of the last fold; ids never overlap, texts may.
        "overlap": overlap(without),
        MEAN_OVER: [lang for lang in unseen.targets if lang in outcomes],
        **note,
    }


def deal_ids(task: Task, folds: int, seed: int) -> list[set[str]]:
    """The ids that training and tests share, dealt into `folds` sets of similar label shares.

    Raises:
        UserError: fewer such ids than folds.
    """
    tested = {one.id for examples in task.tests.values() for one in examples}
    label_of = {one.id: str(one.target) for one in task.train if one.id in tested}
    if len(label_of) < folds:
        raise UserError(
            f"task `{task.name}`: `folds` is {folds}, but only {len(label_of)} test ids occur in "
            "training; leave `folds` out, the tested items are new already"
        )
    # Sorted first: the order of a dictionary follows the file, and folds must not.
    ids: Sequence[str] = np.random.default_rng(seed).permutation(sorted(label_of)).tolist()
    by_label = sorted(ids, key=lambda one: label_of[one])  # a stable sort: random within a label
    return [set(by_label[first::folds]) for first in range(folds)]


def protocol(
    task: Task, config: FitConfig, fitted: Fitted, tests: TestConfig | None = None, note: str = ""
) -> dict[str, Any]:
    """How the numbers were obtained; `note` is the tower's."""
    training = _training(task, config, fitted) if task.train else {HOW: "The tower as it is."}
    fields = joined(training, describe(task))
    if task.kind == "event_causality":
        fields = joined(fields, {HOW: ASKED.strip()})
    if tests and tests.perturbations:
        noise = {
            HOW: "Perturbations, in tests only, {draws} draws each, seed {perturbation_seed}: measured on "
            "{perturbed} rows of a language that all draws change; `clean` is the score of these rows "
            "before, `drop` clean minus perturbed, `worst` takes each row's worst draw. Means are over "
            "languages with at least {least_changed} such rows.",
            "perturbed": f"a sample of {tests.perturbed} of the" if tests.perturbed else "all",
            "draws": tests.draws,
            "perturbation_seed": tests.perturbation_seed,
            "least_changed": LEAST_CHANGED,
        }
        fields = joined(fields, noise)
    if tests and tests.attacks:
        attacks = {
            HOW: "Attacks on a sample of {attacked} of the rows of a language that have candidates: "
            "{attacks}; `success_rate` and `queries` are over those that were right before.",
            "attacked": tests.attacked,
            "attacks": "; ".join(_settings(one) for one in tests.attacks),
        }
        fields = joined(fields, attacks)
    return {**fields, **({NOTE: note} if note else {})}


def _left_out(left_out: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    if not left_out:
        return {}
    named = {name: dict(languages) for name, languages in left_out.items()}
    return {HOW: "In no mean, with so many rows: {left_out}.", LEFT_OUT: named}


def _training(task: Task, config: FitConfig, fitted: Fitted) -> dict[str, Any]:
    head = f"a head with {config.hidden} hidden units" if config.hidden else "a linear head"
    if task.kind == "retrieval":
        head = "the factor of the cosines"
    elif task.kind == "event_causality":
        head = describe_causality(config.causality or CausalityConfig())
    trained = {
        "head": f"{head} on a fixed tower",
        "lora": f"{head} and low-rank adapters of the tower",
        "all": f"the text tower and {head}",
    }[config.trainable]
    # Only these heads see two texts in two ways; tagging and span_qa have one.
    if task.kind in ON_FEATURES and len(task.train[0].texts) > 1:
        trained += f", two texts {'joined' if config.pairs == 'joint' else 'embedded apart'}"
    history = fitted.history
    augmented = f"{_settings(config.augment)} and " if config.augment else ""
    return {
        HOW: "Training {training}, method {method}, {epochs} epochs, step {kept_step} of {steps} kept "
        "({choice}).",
        "training": trained,
        "method": augmented + _settings(config.method),
        "epochs": config.epochs,
        "steps": history["steps"],
        "choice": f"best {PRIMARY[task.kind]} on `{task.source}` dev"
        if "dev" in history
        else "the last",
        "kept_step": history["kept_step"],
    }


def _settings(section: Configured) -> str:
    # Numbers without the norm, radius or share of a method say little.
    tree = section.model_dump(mode="json", exclude_none=True)
    kind = tree.pop("kind")
    named = ", ".join(f"{name} {value}" for name, value in tree.items())
    return f"{kind} ({named})" if named else kind
