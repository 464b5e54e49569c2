"""Tasks of a few words, a model that learns them, and what is measured of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from text_tasks import fit_config, task_of

from mmalign.core.config import validate
from mmalign.models.encoder import weights_sha256
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results
from mmalign.text.fit import fit
from mmalign.text.fit_loop import Fitted
from mmalign.text.measure import TestConfig as MeasureConfig  # pytest collects `Test...`
from mmalign.text.measure import measure
from mmalign.text.tasks.task import Example, Target, Task

WORDS = ("red ball", "the dog", "green chair", "the cat", "0123 456", "sleeps", "Hund", "ein Ball")
LABELS = ("animal", "thing")
PAIRS = tuple((one, other) for one in WORDS[:4] for other in WORDS[2:5])
CONTEXTS = ("a red ball and a dog", "the cat sleeps on a green chair", "a dog and a cat and a ball")


def examples_of(texts: Sequence[tuple[str, ...]], targets: Sequence[Target]) -> list[Example]:
    rows = enumerate(zip(texts, targets, strict=True))
    return [Example(str(i), "en", one, target) for i, (one, target) in rows]


def words_task(*languages: str) -> Task:
    """Every second text is about an animal."""
    targets = [LABELS[(i + 1) % 2] for i in range(len(WORDS))]
    return task_of("classification", examples_of([(w,) for w in WORDS], targets), languages)


_LEARNT: dict[tuple[str, str, str], Fitted] = {}


def learnt(tower: TextEncoder, task: Task, **fields: Any) -> Fitted:
    """A model for tests that do not change it: trained once for equal weights, rows and settings."""
    key = (weights_sha256(tower), repr(replace(task, tests={})), repr(fields))
    if key not in _LEARNT:
        _LEARNT[key] = fit(tower, task, fit_config(**fields), seed=0)
    return _LEARNT[key]


def measured(fitted: Fitted, task: Task, reference: TextEncoder, **fields: Any) -> Results:
    results = Results("text/toy", {})
    measure(fitted, task, validate(MeasureConfig, fields, "test"), reference, results)
    return results


def attack_of(**fields: Any) -> dict[str, Any]:
    return {"kind": "attack", "candidates": "characters", "max_words": 1.0, **fields}
