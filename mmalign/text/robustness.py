"""A fine-tuned model on the rows that a perturbation changed, or that an attack has candidates for.

    tests of a language -> perturbed in every draw -> rows that all draws changed -+-> sample of the rows
                        -> candidates of their words -> rows with one            -+
        -> the model on the unchanged and on the changed texts of the same rows -> `transfer.py`

A row that nothing changed survives by construction. Which rows count depends on the data alone, so they are
the same for every model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmalign.core import console
from mmalign.core.config import Section
from mmalign.data.dictionaries.casing import base_language
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results
from mmalign.text.heads.base import TaskModel
from mmalign.text.heads.features import ClassificationModel
from mmalign.text.perturbations.attack import (
    AttackConfig,
    Attacked,
    Predict,
    Similar,
    attack,
    candidates_for,
    is_attackable,
)
from mmalign.text.perturbations.code_mix import known_languages
from mmalign.text.perturbations.perturb import PerturbationConfig, perturb
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Example, Task, sample
from mmalign.text.transfer import (
    LEAST_CHANGED,
    Outcome,
    add_of_correct_rows,
    add_perturbed,
    in_mean,
    outcome_of,
)

AnyConfig = TypeVar("AnyConfig", bound=Section)


@dataclass(frozen=True)
class Measured:
    """A model, its task, and by language what it predicted for the unchanged tests."""

    model: TaskModel
    task: Task
    predicted: Mapping[str, Sequence[Prediction]]

    def clean(self, lang: str, chosen: Sequence[int]) -> Outcome:
        """The outcome of some rows, by their numbers, on their unchanged texts."""
        rows, given = self.task.tests[lang], self.predicted[lang]
        return outcome_of(self.task, [rows[i] for i in chosen], [given[i] for i in chosen])

    def outcome(self, examples: Sequence[Example]) -> Outcome:
        return outcome_of(self.task, examples, self.model.predict(examples))


def add_perturbation(
    results: Results,
    measured: Measured,
    config: PerturbationConfig,
    draws: int,
    size: int | None,
    seed: int,
) -> dict[str, int]:
    """Record the scores of the rows that every draw of a perturbation changed, or of `size` of them.

    Returns:
        The target languages that the means leave out -> how many rows they were measured on.
    """
    one, task = _without_source(config, measured.task), measured.task
    clean: dict[str, Outcome] = {}
    drawn: list[dict[str, Outcome]] = [{} for _ in range(draws)]
    for lang, rows in task.tests.items():
        noisy = [perturb(rows, task.kind, one, seed, draw) or () for draw in range(draws)]
        if not all(noisy):
            continue  # the perturbation does not exist in this language
        # Dictionaries and lists do not know every word: rows that survive unchanged say nothing.
        changed = [
            i for i, row in enumerate(rows) if all(draw[i].texts != row.texts for draw in noisy)
        ]
        name = f"text/{task.name}/{lang}/{one.name}/changed_share"
        results.add(name, len(changed) / len(rows), len(rows))
        if not changed:
            continue
        chosen = _sampled(rows, changed, size, seed)
        clean[lang] = measured.clean(lang, chosen)
        for outcomes, draw in zip(drawn, noisy, strict=True):
            outcomes[lang] = measured.outcome([draw[i] for i in chosen])
    add_perturbed(results, task, one.name, clean, drawn)
    return _left_out(task, clean)


def add_attack(
    results: Results,
    measured: Measured,
    config: AttackConfig,
    size: int,
    seed: int,
    reference: TextEncoder,
) -> dict[str, int]:
    """Record the scores after an attack on `size` of the rows that have candidates.

    Args:
        reference: judges how similar a changed text is, where the configuration asks for it.

    Returns:
        The target languages that the means leave out -> how many rows they were measured on.
    """
    config, task = _without_source(config, measured.task), measured.task
    assert isinstance(measured.model, ClassificationModel), task.kind
    labels, predict = merged_classifier(measured.model, task)
    clean: dict[str, Outcome] = {}
    after: dict[str, Outcome] = {}
    found: dict[str, list[Attacked]] = {}
    for lang in console.track(task.tests, f"{task.name}, {config.name}", len(task.tests)):
        rows = task.tests[lang]
        candidates = candidates_for(config, rows)
        if candidates is None:  # a language without a dictionary
            continue
        attackable = [i for i, row in enumerate(rows) if is_attackable(row, candidates, seed)]
        name = f"text/{task.name}/{lang}/{config.name}/attackable_share"
        results.add(name, len(attackable) / len(rows), len(rows))
        if not attackable:
            continue
        chosen = _sampled(rows, attackable, size, seed)
        found[lang] = attack(
            [rows[i] for i in chosen],
            [labels.index(str(rows[i].target)) for i in chosen],
            predict,
            candidates,
            config,
            seed,
            similarity_by(reference) if config.min_similarity is not None else None,
        )
        clean[lang] = measured.clean(lang, chosen)
        after[lang] = measured.outcome([one.example for one in found[lang]])
    add_perturbed(results, task, config.name, clean, [after])
    members = in_mean(task, clean, LEAST_CHANGED)
    for metric, field in (("success_rate", "broken"), ("queries", "queries")):
        values = {
            lang: np.array([getattr(one, field) for one in ones if one.was_correct], np.float64)
            for lang, ones in found.items()
        }
        add_of_correct_rows(results, task, config.name, metric, values, members)
    return _left_out(task, clean)


def merged_classifier(model: ClassificationModel, task: Task) -> tuple[list[str], Predict]:
    """The labels that the tests know, sorted, and scores of these whose largest one is predicted."""
    merged = [task.merge.get(label, label) for label in model.labels]
    labels = sorted({*merged, *(str(one.target) for rows in task.tests.values() for one in rows)})
    parts = [[i for i, other in enumerate(merged) if other == label] for label in labels]

    def predict(examples: list[Example]) -> np.ndarray:
        probability_NK = model.probabilities(examples).numpy()
        # Not the sum: the label of the single most probable class is what the model predicts.
        return np.stack([probability_NK[:, part].max(1, initial=0) for part in parts], axis=1)

    return labels, predict


def similarity_by(reference: TextEncoder) -> Similar:
    """Cosines of the features that a tower gives to texts and to changed texts."""

    def cosine(texts: list[str], changed: list[str]) -> np.ndarray:
        first, second = (reference.encode(one).astype(np.float64) for one in (texts, changed))
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return (first * second).sum(1) / lengths.clip(min=1e-12)

    return cosine


def _without_source(config: AnyConfig, task: Task) -> AnyConfig:
    """The same with the languages of code-mixing named: by default all but the language of training."""
    folder = getattr(config, "folder", None)
    if folder is None or getattr(config, "languages", ()) is not None:
        return config
    known = known_languages(Path(folder))
    kept = tuple(one for one in known if base_language(one) != base_language(task.source))
    return config.model_copy(update={"languages": kept})


def _sampled(
    rows: Sequence[Example], chosen: Sequence[int], size: int | None, seed: int
) -> list[int]:
    """The numbers of a sample of the chosen rows."""
    place_of = {id(rows[i]): i for i in chosen}
    return [place_of[id(one)] for one in sample([rows[i] for i in chosen], size, seed)]


def _left_out(task: Task, clean: Mapping[str, Outcome]) -> dict[str, int]:
    members = in_mean(task, clean, LEAST_CHANGED)
    others = (lang for lang in task.targets if lang not in members)
    return {lang: len(clean[lang].examples) if lang in clean else 0 for lang in others}
