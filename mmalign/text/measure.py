"""A fine-tuned model on the tests of its task: clean, perturbed, attacked, and between languages.

The perturbed texts depend on the examples and on the perturbations' own seed, never on the training seed, so
they are the same for every model. An attack is made against the model itself, so its texts differ between
models.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import numpy as np
from pydantic import Field, model_validator

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import GENERALISED, MEAN
from mmalign.results.results import Results
from mmalign.text.fit_loop import Fitted
from mmalign.text.heads.base import TaskModel
from mmalign.text.perturbations.attack import AttackConfig
from mmalign.text.perturbations.perturb import PerturbationConfig
from mmalign.text.robustness import Measured, add_attack, add_perturbation
from mmalign.text.scores import PRIMARY, chance, hits
from mmalign.text.tasks.task import CLEAN, Example, Task, row_ids, sample
from mmalign.text.transfer import Outcome, add_clean, outcome_of


class TestConfig(Section):
    """Tests of a fine-tuned model beside the clean ones."""

    perturbations: tuple[PerturbationConfig, ...] = ()
    draws: int = Field(default=1, ge=1)
    """Times that each perturbation is drawn."""
    perturbed: int | None = Field(default=None, ge=1)
    """Of the test rows of a language that a perturbation changes, a sample of so many; by default all."""
    perturbation_seed: int = Field(default=0, ge=0)
    """Chooses the noise; not the training seed, so that all seeds meet the same noisy texts."""
    attacks: tuple[AttackConfig, ...] = ()
    attacked: int = Field(default=200, ge=1)
    """Of the test rows that an attack has candidates for, a sample: it asks the model many times."""
    generalised: bool = False
    """Test pairs of texts in two languages too: the tests must be row-aligned."""
    generalised_items: int | None = Field(default=None, ge=1)
    """Of these a sample of so many items (ids) for each two languages; by default all."""

    @model_validator(mode="after")
    def _names_differ(self) -> "TestConfig":
        names = [*(one.name for one in self.perturbations), *(one.name for one in self.attacks)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two perturbations have the name `{twice}`; keep one of them")
        return self


def check_tests(task: Task, config: TestConfig) -> None:
    """Check, before anything is trained, whether the task has what the configuration asks for.

    Raises:
        UserError: attacks without labels, noise that would move events, or language pairs without
            row-aligned pairs of texts.
    """
    wrong = None
    if config.attacks and task.kind != "classification":
        wrong = f"`tests.attacks` need labels, and this is {task.kind}"
    elif config.perturbations and task.kind == "event_causality":
        wrong = "`tests.perturbations` would move the events of event_causality"
    if wrong is not None:
        raise UserError(f"task `{task.name}`: {wrong}; drop them")
    if config.generalised:
        first = next(iter(task.tests))
        for lang in task.tests:
            mixed_pairs(task, first, lang)


def measure(
    fitted: Fitted, task: Task, config: TestConfig, reference: TextEncoder, results: Results
) -> dict[str, dict[str, int]]:
    """Add everything that the configuration asks for to the results; `check_tests` has passed it.

    Args:
        reference: the tower before fine-tuning: it judges how similar an attacked text still is.

    Returns:
        Perturbation -> the target languages that its means leave out -> rows that they were measured on.
    """
    model = fitted.model
    predicted = {lang: model.predict(rows) for lang, rows in task.tests.items()}
    clean = {lang: outcome_of(task, task.tests[lang], predicted[lang]) for lang in predicted}
    add_clean(results, task, clean)
    # Beside the zero-shot numbers and never among them; usually higher.
    _add_oracle(results, task, fitted.oracle)
    seed = config.perturbation_seed
    left_out: dict[str, dict[str, int]] = {}
    tested = Measured(model, task, predicted)
    for noise in config.perturbations:
        found = add_perturbation(results, tested, noise, config.draws, config.perturbed, seed)
        left_out[noise.name] = found
    for one in config.attacks:
        found = add_attack(results, tested, one, config.attacked, seed, reference)
        left_out[one.name] = found
    if config.generalised:
        rows = sample(next(iter(task.tests.values())), config.generalised_items)
        add_generalised(results, model, task.tested_on({one.id for one in rows}))
    return {name: languages for name, languages in left_out.items() if languages}


def _add_oracle(results: Results, task: Task, oracle: Mapping[str, Outcome]) -> None:
    # At the best check of each language's own dev examples: no zero-shot number.
    metric = PRIMARY[task.kind]
    name = f"text/{task.name}/{{}}/{CLEAN}/{metric}_oracle"
    for lang, outcome in oracle.items():
        value = outcome.values[metric]
        count = None if isinstance(value, np.ndarray) else len(outcome.examples)
        results.add(name.format(lang), value, count)
    # Over other languages it would stand beside a mean that it cannot be compared with.
    if oracle and set(oracle) >= set(task.targets):
        mean = float(np.mean([np.mean(one.values[metric]) for one in oracle.values()]))
        results.add(name.format(MEAN), mean, sum(len(one.examples) for one in oracle.values()))


def add_generalised(results: Results, model: TaskModel, task: Task) -> None:
    """The first text in language a, the second in language b, for all ordered pairs of languages.

    `text/<task>/<a>-<b>/generalised/<metric>`; under `mean` the mean over the pairs of two languages
    (`<metric>`) and over the pairs of a language with itself (`<metric>_same_language`).

    Raises:
        UserError: no pairs of texts with labels, or tests that are not row-aligned.
    """
    metric = PRIMARY[task.kind]
    mixed = {pair: mixed_pairs(task, *pair) for pair in product(task.tests, repeat=2)}
    # In one call: a text that is read apart is read once for all the pairs that it occurs in.
    predictions = iter(model.predict([one for examples in mixed.values() for one in examples]))
    right: dict[tuple[str, str], np.ndarray] = {}
    for (first, second), examples in mixed.items():
        given = [str(next(predictions)) for _ in examples]
        merged = [task.merge.get(one, one) for one in given]
        right[first, second] = hits([str(one.target) for one in examples], merged)
        name = f"text/{task.name}/{first}-{second}/{GENERALISED}/{metric}"
        results.add(name, right[first, second], ids=row_ids(examples))
    for suffix, is_same in (("", False), ("_same_language", True)):
        chosen = [pair for pair in right if (pair[0] == pair[1]) == is_same]
        if chosen:
            results.add(
                f"text/{task.name}/{MEAN}/{GENERALISED}/{metric}{suffix}",
                float(np.mean([right[pair].mean() for pair in chosen])),
                sum(len(right[pair]) for pair in chosen),
                float(np.mean([chance(task.kind, mixed[pair]) for pair in chosen])),
            )


def mixed_pairs(task: Task, first: str, second: str) -> list[Example]:
    """The tests with the first text in one language and the second in another, matched by id.

    Raises:
        UserError: the examples are no pairs with labels, or the ids of the two languages differ.
    """
    partner = {one.id: one for one in task.tests[second]}
    here = task.tests[first]
    if task.kind != "classification" or any(len(one.texts) != 2 for one in here):
        wrong = "`generalised` needs pairs of texts with labels; drop it"
        raise UserError(f"task `{task.name}`: {wrong}")
    if len(partner) != len(here) or any(one.id not in partner for one in here):
        raise UserError(
            f"task `{task.name}`: `{first}` and `{second}` do not test the same rows, so they cannot "
            "be mixed; drop `generalised` or test on row-aligned files"
        )
    # Rows whose labels differ between the languages are left out (PAWS-X has a few).
    return [
        replace(one, texts=(one.texts[0], partner[one.id].texts[1]))
        for one in here
        if one.target == partner[one.id].target
    ]
