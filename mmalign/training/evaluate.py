"""Evaluation during training: a suite of images and captions every so many steps, on all ranks.

complete weights on every rank -> Encoder -> suite -> metrics by language -> records, best checkpoint
"""

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydantic

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.core.record import METRICS, read_records
from mmalign.data.tokenizer import Tokenizer
from mmalign.evaluation.suite import SuiteConfig, measure
from mmalign.models.dual_encoder import ModelConfig
from mmalign.models.encoder import Encoder
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.training.engine import Engine


class EvaluationConfig(Section):
    suite: str
    """Suite to measure while training; its metrics per language and over all languages are recorded."""
    every: int = pydantic.Field(ge=1)
    """Steps between two measurements."""
    best: str | None = None
    """Its highest value makes `checkpoints/best`: `retrieval/test/mean/text_to_image/recall@1`."""


class WatchedEncoder(Encoder):
    """An encoder that reports progress with each batch: a suite may take longer than a hang."""

    heartbeat: Callable[[str], None]

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        self.heartbeat("evaluation: images")
        return super()._encode_images(images)

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        self.heartbeat("evaluation: texts")
        return super()._encode_texts(texts)


def evaluate(
    suite: SuiteConfig,
    engine: Engine,
    config: ModelConfig,
    tokenizer: Tokenizer,
    heartbeat: Callable[[str], None],
) -> dict[str, float]:
    """The suite's metrics of the current weights, without those of language pairs; on all ranks."""
    with engine.full_model():
        encoder = WatchedEncoder(engine.model, config, tokenizer, facts={})
        encoder.heartbeat = heartbeat
        results = measure(suite, encoder)
    engine.module.train()  # `Encoder` put it into evaluation mode
    # A run of a hundred languages has ten thousand pairs of them.
    return {
        str(name): results.metrics[str(name)]
        for name in map(MetricName.parse, results.metrics)
        if name.measure not in ("alignment", "words") or name.language == MEAN
    }


def recorded_evaluation(run: Path, step: int) -> dict[str, float] | None:
    """The metrics that `evaluate` found at a step, from the run's records; None: not measured."""
    # Records of training have a loss.
    found = [r for r in read_records(run / METRICS) if r["step"] == step and "loss" not in r]
    return found[-1] if found else None


def value_of(metrics: dict[str, float], name: str) -> float:
    """The metric that chooses the best checkpoint; UserError: the suite has none of that name."""
    if name not in metrics:
        near = ", ".join(difflib.get_close_matches(name, metrics, cutoff=0.3)) or "none"
        raise UserError(f"evaluation.best: the suite has no metric `{name}`; similar names: {near}")
    return metrics[name]
