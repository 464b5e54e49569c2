"""Evaluation during training: a suite of images and captions every so many steps, on all ranks.

complete weights on every rank -> Encoder -> suite -> metrics by language -> records, best checkpoint
"""

import difflib

import pydantic

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.evaluation.suite import SuiteConfig, measure
from mmalign.models.dual_encoder import ModelConfig
from mmalign.models.encoder import Encoder
from mmalign.results.metric_names import MEAN
from mmalign.training.engine import Engine


class EvaluationConfig(Section):
    suite: str
    """Suite to measure while training; its metrics per language and over all languages are recorded."""
    every: int = pydantic.Field(ge=1)
    """Steps between two measurements."""
    best: str | None = None
    """Metric whose highest value chooses the checkpoint that `checkpoints/best` points to, for example
    `retrieval/test/mean/text_to_image/recall@1`."""


def evaluate(
    suite: SuiteConfig, engine: Engine, config: ModelConfig, tokenizer: Tokenizer
) -> dict[str, float]:
    """The suite's metrics of the current weights, without those of language pairs; to be called on all
    ranks."""
    with engine.full_model():
        results = measure(suite, Encoder(engine.model, config, tokenizer, facts={}))
    engine.module.train()  # `Encoder` put it into evaluation mode
    return {name: value for name, value in results.metrics.items() if not _is_of_a_pair(name)}


def value_of(metrics: dict[str, float], name: str) -> float:
    """The metric that chooses the best checkpoint.

    Raises:
        UserError: the suite has no such metric.
    """
    if name not in metrics:
        near = difflib.get_close_matches(name, metrics, n=3, cutoff=0.3)
        raise UserError(
            f"evaluation.best: the suite has no metric `{name}`; similar names: {', '.join(near) or 'none'}"
        )
    return metrics[name]


def _is_of_a_pair(name: str) -> bool:
    """Whether a metric is of two languages; a run of a hundred languages has ten thousand of them."""
    parts = name.split("/")
    return parts[0] in ("alignment", "words") and parts[2] != MEAN
