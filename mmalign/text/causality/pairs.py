"""Precision, recall and F1 of causal event pairs: all pairs, those within a sentence, those across.

The metrics pool the pairs of all documents, as the field does; the positive class is `causal`. A metric
without pairs to divide by is 0.

Shapes: B documents, T draws; of the last two axes the first is within and across, the second is true
positives, false positives and false negatives.
"""

from collections.abc import Sequence

import numpy as np

from mmalign.results.statistics import INTERVAL_DRAWS, resampled_sums
from mmalign.text.causality.outline import target_of
from mmalign.text.tasks.task import Causality, EventPair, Example


def pair_scores(examples: Sequence[Example], given: Sequence[Sequence[bool]]) -> dict[str, float]:
    """`precision`, `recall` and `f1`, each also with `_within` and `_across`.

    Args:
        given: for each document, whether each of its pairs is causal.
    """
    total = _counts(examples, given).sum(0)
    return {name: float(value) for name, value in _metrics(total).items()}


def redrawn_pair_scores(
    examples: Sequence[Example], given: Sequence[Sequence[bool]], draws: int = INTERVAL_DRAWS
) -> dict[str, np.ndarray]:
    """(T,) values of every metric on sets of documents that are drawn with replacement."""
    # Documents, not pairs: pairs of one document share events. The language is part of the seed, so that
    # languages are drawn independently.
    rng = np.random.default_rng([0, *examples[0].lang.encode()])
    table = _counts(examples, given).reshape(len(examples), -1)
    return _metrics(resampled_sums(table, draws, rng).reshape(draws, 2, 3))


def f1_without_reading(examples: Sequence[Example]) -> float:
    """The better F1 of two rules that read no word: every pair is causal, or every pair within a sentence."""
    # In MECI the second is far above the first.
    targets = [target_of(one) for one in examples]
    both = [[True] * len(one.pairs) for one in targets]
    within = [[not _is_across(one, pair) for pair in one.pairs] for one in targets]
    return max(pair_scores(examples, given)["f1"] for given in (both, within))


def _counts(examples: Sequence[Example], given: Sequence[Sequence[bool]]) -> np.ndarray:
    counts = np.zeros((len(examples), 2, 3), np.int64)
    for document, (example, found) in enumerate(zip(examples, given, strict=True)):
        target = target_of(example)
        for pair, said in zip(target.pairs, found, strict=True):
            # True positive, false positive, false negative; true negatives are in no metric.
            cell = (pair.causal and said, not pair.causal and said, pair.causal and not said)
            counts[document, int(_is_across(target, pair))] += cell
    return counts


def _is_across(target: Causality, pair: EventPair) -> bool:
    return target.events[pair.first].sentence != target.events[pair.second].sentence


def _metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    parts = {"": counts.sum(-2), "_within": counts[..., 0, :], "_across": counts[..., 1, :]}
    metrics = {}
    for suffix, part in parts.items():
        right, wrong, missed = np.moveaxis(part.astype(np.float64), -1, 0)
        metrics[f"precision{suffix}"] = right / (right + wrong).clip(min=1)
        metrics[f"recall{suffix}"] = right / (right + missed).clip(min=1)
        metrics[f"f1{suffix}"] = 2 * right / (2 * right + wrong + missed).clip(min=1)
    return metrics
