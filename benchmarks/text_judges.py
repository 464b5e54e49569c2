"""Every metric of text tasks beside its outside judge, on random and on adversarial predictions.

    targets, predictions -+-> mmalign.text.scores.score      -+-> largest difference, by kind of task
                          +-> scikit-learn, scipy, seqeval,  -+
                              trec_eval, XTREME's scorers

Adversarial are: no prediction, one class only, classes that the targets lack, ties, constant scores, tags
that open no span, answers of punctuation and articles alone, ranked lists that are empty or short. Where a
judge has no number (the correlation of a constant) ours is 0. F1 of tags is seqeval's on both sides.

The scorers of SQuAD, MLQA, Mewsli-X and LAReQA are those that XTREME ships: `--xtreme` names a checkout of
google-research/xtreme. Without it their metrics are left out, and named. trec_eval's is the package
pytrec-eval-terrier, which `mmalign[mteb]` brings. Prints a table and, as the last line, one JSON object. The
target is differences of at most 1e-6.

    python benchmarks/text_judges.py [--xtreme FOLDER] [--cases 300] [--seed 0]
"""

import argparse
import importlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mmalign.text.scores import DEPTH, score
from mmalign.text.tasks.task import Answer, Causality, Event, EventPair, Example, Kind

TARGET = 1e-6
Judge = Callable[[list[Any], list[Any], str], dict[str, float]]
"""Targets, predictions and language -> the judge's own metrics under our names."""


@dataclass(frozen=True)
class Case:
    name: str
    targets: list[Any]
    predictions: list[Any]
    lang: str = "en"


# ------------------------------------------------------------------------------------------------- cases


def classifications(rng: np.random.Generator, count: int) -> Iterator[Case]:
    for number in range(count):
        labels = list("abcde")[: 2 + number % 4]
        shares = rng.dirichlet([0.5] * len(labels))
        size = int(rng.integers(1, 80))
        targets = rng.choice(labels, size, p=shares).tolist()
        kept = rng.random(size) < rng.random()
        drawn = rng.choice(labels, size).tolist()
        yield Case("random", targets, np.where(kept, targets, drawn).tolist())
    yield Case("one class", ["a"] * 9, ["a"] * 9)
    yield Case("one class, all wrong", ["a"] * 9, ["b"] * 9)
    yield Case("always the same", ["a", "b", "b", "c"], ["b"] * 4)
    yield Case("classes that the targets lack", ["a", "b", "a"], ["c", "d", "a"])
    yield Case("one row", ["a"], ["b"])
    yield Case("numbers", ["0", "1", "1", "0"], ["1", "1", "0", "0"])


def similarities(rng: np.random.Generator, count: int) -> Iterator[Case]:
    for _ in range(count):
        size = int(rng.integers(3, 80))
        targets = rng.integers(0, 6, size).astype(float)
        targets[:2] = (0.0, 5.0)  # not constant
        noise = rng.normal(size=size) * 10 ** rng.uniform(-2, 2)
        yield Case("random, ties", targets.tolist(), (targets + noise).round(1).tolist())
    yield Case("constant predictions", [1.0, 2.0, 3.0], [0.1] * 3)
    yield Case("constant targets", [2.0] * 4, [0.1, 0.2, 0.3, 0.4])
    yield Case("two rows", [0.0, 1.0], [1.0, 0.0])
    large = (1e8 + np.array([0.0, 1.0, 2.0, 4.0])).tolist()
    yield Case("a large offset", [0.0, 1.0, 2.0, 3.0], large)
    yield Case("all predictions tie but one", [0.0, 1.0, 2.0, 3.0], [0.5, 0.5, 0.5, 0.7])


def choices(rng: np.random.Generator, count: int) -> Iterator[Case]:
    for _ in range(count):
        size = int(rng.integers(1, 50))
        yield Case("random", rng.integers(0, 4, size).tolist(), rng.integers(0, 4, size).tolist())
    yield Case("all wrong", [0, 0], [1, 2])


def taggings(rng: np.random.Generator, count: int) -> Iterator[Case]:
    spans = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-date", "I-date"]
    words = ["NOUN", "VERB", "CCONJ", "SCONJ", "ADP", "X"]
    for number in range(count):
        tags = words if number % 3 == 2 else spans
        lengths = rng.integers(1, 15, int(rng.integers(1, 12)))
        targets = [tuple(rng.choice(tags, n).tolist()) for n in lengths]
        wrong = rng.random()
        predictions = [
            tuple(str(rng.choice(tags)) if rng.random() < wrong else tag for tag in sentence)
            for sentence in targets
        ]
        yield Case("random", targets, predictions)
    person = ("B-PER", "I-PER", "O", "B-LOC")
    yield Case("no span predicted", [person], [("O",) * 4])
    yield Case("no span at all", [("O", "O")], [("O", "O")])
    yield Case("spans where there are none", [("O", "O")], [("B-PER", "I-PER")])
    yield Case("spans without a beginning", [person], [("I-PER", "I-PER", "O", "I-LOC")])
    yield Case("touching spans", [("B-PER", "B-PER")], [("B-PER", "I-PER")])
    yield Case("another type inside", [person], [("B-PER", "I-LOC", "O", "B-LOC")])
    yield Case("one tag", [("NOUN", "NOUN")], [("NOUN", "NOUN")])


_WORDS = {
    lang: words.split()
    for lang, words in {
        "en": "the a An old red mill of 42 kg, “keeper” don't (north) U.S. É $5 + ʼ",
        "es": "la casa de los vientos el 3 un unas ¿Qué? año",
        "de": "dem alten Turm der die das Straße STRASSE ein eines „Hof“",
        "ar": "المدينة القديمة ال في، سالم؟ والد",
        "hi": "नीला पहाड़। नदी के पास १२",
        "vi": "những chiếc thuyền của là cái làng",
        "zh": "蓝色 的山 《 7号 Alpha ， 一九八四年 𠮷",
        "ru": "старый маяк, the Ёж — 10",
    }.items()
}
_MARKS = ["", " ", "?!", "the", "A an the", "،", "。", "\u00a0", "\n", "$", "--"]


def answers(rng: np.random.Generator, count: int) -> Iterator[Case]:
    def phrase(words: Sequence[str]) -> str:
        return " ".join(rng.choice(words, int(rng.integers(1, 6))).tolist())

    for number in range(count):
        lang = list(_WORDS)[number % len(_WORDS)]
        targets, predictions = [], []
        for _ in range(20):
            texts = [phrase(_WORDS[lang]) for _ in range(int(rng.integers(1, 4)))]
            targets.append(tuple(Answer(text, 0) for text in texts))
            drawn = [*texts, phrase(_WORDS[lang]), str(rng.choice(_MARKS))]
            predictions.append(str(rng.choice(drawn)))
        yield Case("random", targets, predictions, lang)
    for lang, words in _WORDS.items():
        of_words = [(Answer(word, 0),) for word in words]
        yield Case("no answer predicted", of_words, [""] * len(words), lang)
        of_marks = [(Answer(mark, 0),) for mark in _MARKS]
        yield Case("punctuation and articles alone", of_marks, _MARKS[::-1], lang)
        yield Case("empty on both sides", of_marks, _MARKS, lang)


def rankings(rng: np.random.Generator, count: int) -> Iterator[Case]:
    for number in range(count):
        pool = [f"d{i}" for i in range(60)]
        targets, predictions = [], []
        for _ in range(10):
            most = 1 if number % 2 else 25
            drawn = rng.choice(pool, int(rng.integers(1, most + 1)), replace=False)
            targets.append(tuple(drawn.tolist()))
            order = rng.permutation(pool)[: int(rng.integers(0, DEPTH + 1))]
            predictions.append(tuple(order.tolist()))
        yield Case("random", targets, predictions)
    yield Case("empty lists", [("a",), ("b", "c")], [(), ()])
    yield Case("nothing right", [("a",)], [("b", "c")])
    many = tuple(f"d{i}" for i in range(30))
    yield Case("more right ones than places", [many], [many[:DEPTH]])


def causalities(rng: np.random.Generator, count: int) -> Iterator[Case]:
    events = tuple(Event(i // 3, i % 3, i % 3 + 1) for i in range(6))
    both = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    for number in range(count + 3):
        share = (rng.random(), 0.0, 1.0)[number % 3 if number >= count else 0]
        targets, predictions = [], []
        for _ in range(5):
            asked = [pair for pair in both if rng.random() < 0.6]
            pairs = tuple(EventPair(*pair, bool(rng.random() < 0.3)) for pair in asked)
            targets.append(Causality(events, pairs))
            predictions.append(tuple(bool(rng.random() < share) for _ in asked))
        yield Case(f"share {share:.2f}", targets, predictions)


CASES: dict[Kind, Callable[[np.random.Generator, int], Iterator[Case]]] = {
    "classification": classifications,
    "similarity": similarities,
    "multiple_choice": choices,
    "tagging": taggings,
    "span_qa": answers,
    "retrieval": rankings,
    "event_causality": causalities,
}

# ------------------------------------------------------------------------------------------------ judges


def scikit_learn(targets: list[Any], predictions: list[Any], _: str) -> dict[str, float]:
    from sklearn import metrics

    labels = sorted(set(targets))
    found = {"accuracy": metrics.accuracy_score(targets, predictions)}
    if isinstance(targets[0], int):
        return found
    options: dict[str, Any] = {"average": "macro", "zero_division": 0}
    found["macro_f1"] = metrics.f1_score(targets, predictions, **options)
    found["matthews"] = metrics.matthews_corrcoef(targets, predictions)
    if len(labels) == 2:
        found["f1"] = metrics.f1_score(targets, predictions, labels=labels[-1:], **options)
    return found


def scipy(targets: list[Any], predictions: list[Any], _: str) -> dict[str, float]:
    from scipy import stats

    return {
        "pearson": stats.pearsonr(targets, predictions).statistic,
        "spearman": stats.spearmanr(targets, predictions).statistic,
    }


def seqeval(targets: list[Any], predictions: list[Any], _: str) -> dict[str, float]:
    from seqeval import metrics

    sides = [list(map(list, side)) for side in (targets, predictions)]
    return {"f1": metrics.f1_score(*sides), "accuracy": metrics.accuracy_score(*sides)}


def trec_eval(targets: list[Any], predictions: list[Any], _: str) -> dict[str, float]:
    import pytrec_eval

    qrels = {f"q{i}": dict.fromkeys(right, 1) for i, right in enumerate(targets)}
    run = {
        f"q{i}": {one: float(-rank) for rank, one in enumerate(ranked)}
        for i, ranked in enumerate(predictions)
    }
    measures = {"success.1", "recip_rank", f"map_cut.{DEPTH}"}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    rows = [found.get(query, {}) for query in qrels]
    means = {
        ours: float(np.mean([row.get(theirs, 0.0) for row in rows]))
        for ours, theirs in (("accuracy", "success_1"), (f"mrr@{DEPTH}", "recip_rank"))
    }
    # trec_eval divides by all right ones, where more than 20 cannot be among the first 20.
    precisions = [
        row.get(f"map_cut_{DEPTH}", 0.0) * len(right) / min(len(right), DEPTH)
        for row, right in zip(rows, targets, strict=True)
    ]
    return {**means, f"map@{DEPTH}": float(np.mean(precisions))}


def pooled_pairs(targets: list[Any], predictions: list[Any], _: str) -> dict[str, float]:
    from sklearn import metrics

    found = {}
    for part in ("", "_within", "_across"):
        pairs = [
            (pair.causal, said)
            for target, of_target in zip(targets, predictions, strict=True)
            for pair, said in zip(target.pairs, of_target, strict=True)
            if not part or (part == "_across") == _is_across(target, pair)
        ]
        wanted, given = zip(*pairs, strict=True) if pairs else ((False,), (False,))
        for name in ("precision", "recall", "f1"):
            metric = getattr(metrics, f"{name}_score")
            found[name + part] = metric(wanted, given, zero_division=0)
    return found


def _is_across(target: Causality, pair: EventPair) -> bool:
    first, second = (target.events[i].sentence for i in (pair.first, pair.second))
    return first != second


def xtreme_judges(folder: Path) -> dict[Kind, list[Judge]]:
    """The scorers of a checkout of XTREME, by the kind of task that they judge."""
    sys.path.insert(0, str(folder))
    names = ("evaluate_squad", "evaluate_mlqa", "utils_lareqa", "utils_mewslix")
    squad, mlqa, lareqa, mewslix = (importlib.import_module(f"third_party.{n}") for n in names)

    def spans(targets: list[Any], predictions: list[Any], lang: str) -> dict[str, float]:
        rows = [
            {"id": str(i), "answers": [{"text": one.text} for one in right]}
            for i, right in enumerate(targets)
        ]
        data = [{"paragraphs": [{"qas": rows}]}]
        given = {str(i): text for i, text in enumerate(predictions)}
        found = {name: value / 100 for name, value in squad.evaluate(data, given).items()}
        if lang in (*mlqa.WHITESPACE_LANGS, *mlqa.MIXED_SEGMENTATION_LANGS):
            by_mlqa = mlqa.evaluate(data, given, lang).items()
            found |= {f"mlqa_{name}": value / 100 for name, value in by_mlqa}
        return found

    def ranked(targets: list[Any], predictions: list[Any], _: str) -> dict[str, float]:
        pairs = list(zip(targets, predictions, strict=True))
        values = [lareqa.average_precision_at_k(set(right), one, DEPTH) for right, one in pairs]
        found = {f"map@{DEPTH}": float(np.mean(values))}
        if all(len(right) == 1 for right in targets):
            gold = {str(i): list(right) for i, right in enumerate(targets)}
            given = {str(i): list(one) for i, one in enumerate(predictions)}
            found[f"mrr@{DEPTH}"] = mewslix.evaluate(gold, given, k=DEPTH)
        return found

    return {"span_qa": [spans], "retrieval": [ranked]}


JUDGES: dict[Kind, list[Judge]] = {
    "classification": [scikit_learn],
    "similarity": [scipy],
    "multiple_choice": [scikit_learn],
    "tagging": [seqeval],
    "retrieval": [trec_eval],
    "event_causality": [pooled_pairs],
}


def differences(kind: Kind, case: Case, judges: Sequence[Judge]) -> dict[str, float]:
    """Metric -> the largest difference of ours from a judge's."""
    examples = [Example(str(i), case.lang, ("x",), target) for i, target in enumerate(case.targets)]
    scores = score(kind, examples, case.predictions)
    ours = {name: float(np.mean(values)) for name, values in scores.items()}
    found: dict[str, float] = {}
    for judge in judges:
        with warnings.catch_warnings():  # of what is undefined, and of tags without B- and I-
            warnings.simplefilter("ignore")
            theirs = judge(case.targets, case.predictions, case.lang)
        for name, value in theirs.items():
            value = 0.0 if math.isnan(value) else float(value)
            found[name] = max(found.get(name, 0.0), abs(ours[name] - value))
    return found


def compare(
    judges: dict[Kind, list[Judge]], count: int, seed: int
) -> dict[Kind, dict[str, dict[str, Any]]]:
    """By kind of task and metric: the largest difference, the case that has it, and how many there were."""
    table: dict[Kind, dict[str, dict[str, Any]]] = {}
    for kind, of_kind in judges.items():
        rows = table.setdefault(kind, {})
        for case in CASES[kind](np.random.default_rng(seed), count):
            for name, value in differences(kind, case, of_kind).items():
                row = rows.setdefault(name, {"difference": 0.0, "case": "", "cases": 0})
                row["cases"] += 1
                if value > row["difference"]:
                    row |= {"difference": value, "case": case.name}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--xtreme", type=Path)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    judges = dict(JUDGES)
    for kind, more in (xtreme_judges(options.xtreme) if options.xtreme else {}).items():
        judges[kind] = [*judges.get(kind, ()), *more]
    table = compare(judges, options.cases, options.seed)
    for kind, rows in table.items():
        for name, row in rows.items():
            words = f"{kind:16}  {name:16}  {row['difference']:.1e}  {row['cases']} cases  {row['case']}\n"
            sys.stdout.write(words)
    values = [row["difference"] for rows in table.values() for row in rows.values()]
    summary = {
        "metrics": len(values),
        "cases": sum(max(row["cases"] for row in rows.values()) for rows in table.values()),
        "largest_difference": max(values),
        "not_judged": [kind for kind in get_args(Kind) if kind not in table],
        "passed": max(values) <= TARGET,
    }
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
