"""Small text tasks, and the settings under which the towers of the tests learn them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmalign.core.config import validate
from mmalign.text.fit_config import FitConfig
from mmalign.text.tasks.task import Example, Kind, Task, labels_of

LEARNS = {"epochs": 40, "batch_size": 4, "head_lr": 0.1, "lr": 3e-3, "precision": "fp32"}


def fit_config(**fields: Any) -> FitConfig:
    return validate(FitConfig, {**LEARNS, **fields}, "test")


def in_language(lang: str, examples: Sequence[Example]) -> list[Example]:
    return [replace(one, lang=lang) for one in examples]


def task_of(
    kind: Kind, train: list[Example], languages: Sequence[str] = ("de",), **fields: Any
) -> Task:
    """Tested on the training texts under other languages' names, unless `fields` say otherwise."""
    tests = {lang: in_language(lang, train) for lang in languages}
    parts = {"dev": {}, "tests": tests, "candidates": {}, **fields}
    return Task("toy", kind, "en", labels_of(train, kind), train, **parts)
