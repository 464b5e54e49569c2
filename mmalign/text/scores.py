"""Predictions -> metrics, one set of metrics for each kind of task.

An array holds one value per example, (n,) float64, whose mean is the metric: intervals can be drawn
from it. A float is a metric of the complete set, not a mean over examples. All lie in [0, 1],
correlations in [-1, 1].

    kind             prediction                 per example               complete set
    classification   label                      accuracy                  macro_f1, matthews, f1 *
    similarity       score                                                pearson, spearman
    multiple_choice  number of the choice       accuracy
    tagging          one tag per word                                       f1, accuracy
    span_qa          text of the answer         exact_match, f1,
                                                mlqa_exact_match, mlqa_f1
    retrieval        candidate ids, best first  accuracy, mrr@20, map@20
    event_causality  one bool per pair                                       precision, recall, f1, also
                                                                          _within, _across sentences

    * only where there are two labels

Span QA has two published rules for equal answers: SQuAD's, by which XTREME also grades XQuAD
and TyDiQA, and MLQA's, which differs by language. Both are measured; MLQA's only in its languages.
"""

import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from mmalign.core.errors import UserError
from mmalign.text.causality.pairs import f1_without_reading, pair_scores
from mmalign.text.tasks.task import Example, Kind

Prediction = str | float | int | tuple[str, ...] | tuple[bool, ...]
Scores = dict[str, np.ndarray | float]

# The metric that chooses the epoch.
PRIMARY: dict[Kind, str] = {
    "classification": "accuracy",
    "similarity": "spearman",
    "multiple_choice": "accuracy",
    "tagging": "f1",
    "span_qa": "f1",
    "retrieval": "map@20",
    "event_causality": "f1",
}

# Candidates that are ranked and graded, as in LAReQA and Mewsli-X.
DEPTH = 20

_SQUAD_ARTICLES = "a|an|the"
_MLQA_ARTICLES = {
    "ar": "",  # see `mlqa_tokens`
    "de": "ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des",
    "en": _SQUAD_ARTICLES,
    "es": "un|una|unos|unas|el|la|los|las",
    "hi": "",
    "vi": "của|là|cái|chiếc|những",
    "zh": "",
}
_IDEOGRAPH = re.compile("([\u4e00-\u9fa5])")  # MLQA's range: the first block, without its last rows


def score(kind: Kind, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """The metrics of `predictions`, which answer `examples` one by one.

    Args:
        examples: at least one, all of one language; span QA and retrieval need a correct answer each.

    Raises:
        UserError: tagging without the package seqeval.
    """
    assert len(examples) == len(predictions), (len(examples), len(predictions))
    wanted: list[Any] = [one.target for one in examples]
    given: list[Any] = list(predictions)
    match kind:
        case "classification":
            return _classification(wanted, given)
        case "similarity":
            return {"pearson": pearson(wanted, given), "spearman": spearman(wanted, given)}
        case "multiple_choice":
            return {"accuracy": hits(wanted, given)}
        case "tagging":
            # Accuracy is over the words of all sentences together.
            tags, found = (list(chain.from_iterable(rows)) for rows in (wanted, given))
            return {"f1": span_f1(wanted, given), "accuracy": float(hits(tags, found).mean())}
        case "span_qa":
            texts = [[answer.text for answer in answers] for answers in wanted]
            return _span_qa(texts, given, language=examples[0].lang.split("-")[0])
        case "retrieval":
            return _retrieval([set(targets) for targets in wanted], given)
        case "event_causality":
            return {**pair_scores(examples, given)}


def chance(kind: Kind, examples: Sequence[Example], candidates: int | None = None) -> float:
    """The primary metric without looking at the texts; 0 where that is not defined.

    Classification: always the most frequent label. Multiple choice and retrieval: a choice and an
    order drawn at random; of retrieval it is defined where the number of `candidates` is given. Event
    causality: the better of calling every pair causal, or every pair within a sentence.
    """
    match kind:
        case "classification":
            return max(Counter(one.target for one in examples).values()) / len(examples)
        case "multiple_choice":
            # The first text is the context, the others are choices; how many may differ between examples.
            return float(np.mean([1 / (len(one.texts) - 1) for one in examples]))
        case "retrieval" if candidates is not None:
            correct: list[Any] = [one.target for one in examples]
            counts = [len(set(targets)) for targets in correct]
            return float(np.mean([expected_average_precision(n, candidates) for n in counts]))
        case "event_causality":
            return f1_without_reading(examples)
        case _:
            return 0.0


def hits(wanted: Sequence[str | int], given: Sequence[str | int]) -> np.ndarray:
    """(n,) float64, 1 where both agree."""
    return np.array([one == other for one, other in zip(wanted, given, strict=True)], np.float64)


def pearson(wanted: Sequence[float], given: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side is constant and it is undefined."""
    if np.ptp(wanted) == 0 or np.ptp(given) == 0:
        return 0.0
    return float(np.corrcoef(wanted, given)[0, 1])


def spearman(wanted: Sequence[float], given: Sequence[float]) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    return pearson(rankdata(wanted), rankdata(given))


def span_f1(wanted: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> float:
    """F1 over spans of tags, as the CoNLL evaluation counts them: an `I-` without `B-` opens a span.

    This is what XTREME's `evaluate.py` calls F1 of both WikiANN and UD-POS. Tags of UD-POS have no
    `B-` or `I-`: seqeval takes a run of equal tags for one span and the letters after the first for
    its type, so that `CCONJ` and `SCONJ` are of one type (seqeval below 1.0 compared whole tags; it
    gives 70.22 where seqeval 1.2 gives 70.40 on the files that XTREME's own test grades).

    Raises:
        UserError: seqeval is not installed.
    """
    try:
        from seqeval.metrics import f1_score
    except ImportError:
        raise UserError("tagging is scored with seqeval; install `mmalign[finetune]`") from None
    with warnings.catch_warnings():  # tags without B- and I- are expected here
        warnings.filterwarnings("ignore", message=".*seems not to be NE tag")
        # seqeval refuses tuples
        sides = ([list(tags) for tags in side] for side in (wanted, given))
        return float(f1_score(*sides, zero_division=0))


def squad_tokens(text: str) -> list[str]:
    """The words that SQuAD compares: lower case, no ASCII punctuation, no English articles.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), `evaluate-v1.1.py`.
    """
    bare = text.lower().translate(dict.fromkeys(map(ord, string.punctuation)))
    return re.sub(rf"\b(?:{_SQUAD_ARTICLES})\b", " ", bare).split()


def mlqa_tokens(text: str, language: str) -> list[str]:
    """The words that MLQA compares in one of its seven languages.

    Lower case, no punctuation of any script, none of the language's articles; Arabic loses its
    article wherever the two letters occur, inside words too. Chinese: every ideograph is a word.
    Source: Lewis et al. 2020 (arXiv 1910.07475), `mlqa_evaluation_v1.py`.
    """

    def is_kept(one: str) -> bool:
        return one not in string.punctuation and not unicodedata.category(one).startswith("P")

    # Category P covers the punctuation of every script, but not ASCII symbols such as `$` and `+`.
    bare = "".join(filter(is_kept, text.lower()))
    if language == "ar":
        return bare.replace("ال", " ").split()
    if language == "zh":
        return _IDEOGRAPH.sub(r" \1 ", bare).split()
    articles = _MLQA_ARTICLES[language]
    return (re.sub(rf"\b(?:{articles})\b", " ", bare) if articles else bare).split()


def token_f1(wanted: Sequence[str], given: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it occurs."""
    common = (Counter(wanted) & Counter(given)).total()
    return 2 * common / (len(wanted) + len(given)) if common else 0.0


def reciprocal_rank(correct: AbstractSet[str], ranked: Sequence[str]) -> float:
    """1 / rank of the first correct candidate; 0 where none is among the ranked."""
    return next((1 / rank for rank, one in enumerate(ranked, start=1) if one in correct), 0.0)


def average_precision(correct: AbstractSet[str], ranked: Sequence[str], k: int = DEPTH) -> float:
    """Mean of the precisions at the correct candidates among the first k, of min(correct ones, k).

    `ranked` names no candidate twice. With a single correct candidate this is the reciprocal rank cut
    at k, by which XTREME grades Mewsli-X. Source: LAReQA (Roy et al. 2020, arXiv 2004.05484).
    """
    found = np.array([one in correct for one in ranked[:k]], np.float64)
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float(found @ precision) / min(len(correct), k)


def expected_average_precision(correct: int, candidates: int, k: int = DEPTH) -> float:
    """The mean of `average_precision` over all orders of the candidates, `correct` of them correct."""
    rank = np.arange(1, min(k, candidates) + 1)
    another_is_correct = (correct - 1) / max(candidates - 1, 1)
    precision = (1 + (rank - 1) * another_is_correct) / rank  # where the candidate is correct
    return float(precision.sum()) * correct / candidates / min(correct, k)


def _classification(wanted: list[str], given: list[str]) -> Scores:
    from sklearn.metrics import f1_score, matthews_corrcoef

    # Macro F1 is over every label that occurs among the targets or the predictions.
    f1 = partial(f1_score, wanted, given, average="macro", zero_division=0)
    # Matthews' correlation is 0 where one side is constant; scikit-learn returns that with a warning.
    is_constant = len(set(wanted)) == 1 or len(set(given)) == 1
    scores: Scores = {
        "accuracy": hits(wanted, given),
        "macro_f1": float(f1()),
        "matthews": 0.0 if is_constant else float(matthews_corrcoef(wanted, given)),
    }
    labels = sorted(set(wanted))
    if len(labels) == 2:  # of the last of the sorted labels, which is `1` in MRPC and QQP
        scores["f1"] = float(f1(labels=labels[-1:]))
    return scores


def _span_qa(answers: list[list[str]], given: list[str], language: str) -> Scores:
    # Each prediction is compared with the correct answer that it fits best.
    rules: dict[str, Callable[[str], list[str]]] = {"": squad_tokens}
    if language in _MLQA_ARTICLES:
        rules["mlqa_"] = partial(mlqa_tokens, language=language)
    scores: Scores = {}
    for prefix, tokens in rules.items():
        correct_words = [[tokens(text) for text in texts] for texts in answers]
        pairs = list(zip(correct_words, map(tokens, given), strict=True))
        exact_match = [found in correct for correct, found in pairs]
        f1 = [max(token_f1(one, found) for one in correct) for correct, found in pairs]
        scores[f"{prefix}exact_match"] = np.array(exact_match, np.float64)
        scores[f"{prefix}f1"] = np.array(f1, np.float64)
    return scores


def _retrieval(correct: list[set[str]], ranked: list[tuple[str, ...]]) -> Scores:
    pairs = list(zip(correct, ranked, strict=True))
    columns = {
        "accuracy": [not targets.isdisjoint(found[:1]) for targets, found in pairs],
        f"mrr@{DEPTH}": [reciprocal_rank(*pair) for pair in pairs],
        f"map@{DEPTH}": [average_precision(*pair) for pair in pairs],
    }
    return {name: np.array(values, np.float64) for name, values in columns.items()}
