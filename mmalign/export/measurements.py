"""The numbers that a card quotes, in every language and beside chance, and what the hub reads.

    Results -> Measurement, ...     -> tables and sentences (card.py)
            -> EvalResult, ...      -> `model-index` in the front matter of the card
            -> EvalResultEntry, ... -> .eval_results/<set>.yaml, which feeds the hub's leaderboards

Every number is looked up by its name in the results; nothing is averaged here. `model-index` takes any set,
`.eval_results` only a set with a leaderboard on the hub, under its name there and with all of its published
tests.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from mmalign.core.commit import write_atomic
from mmalign.core.languages import labelled
from mmalign.export.markdown import one_line
from mmalign.results import metric_names as parts
from mmalign.results.metric_names import MetricName, is_aggregate, known_languages
from mmalign.results.protocol import sentence
from mmalign.results.results import Results
from mmalign.text.tasks.task import CLEAN

UNTRAINED = "untrained"
AGGREGATES = {parts.WORST5: "mean of the five lowest", parts.ALL: "all queries together"}
# (measure, setting and metric) -> (in words, the hub's name of the task), in the order of the card. A number
# without a name of the hub stands in the card's tables alone. The hub has no task for the search between
# images and captions: its `text-to-image` means generating images.
_QUOTED: dict[tuple[str, str], tuple[str, str | None]] = {
    ("retrieval", "text_to_image/recall@1"): ("text to image", "text-to-image-retrieval"),
    ("retrieval", "text_to_image/recall@10"): ("text to image", None),
    ("retrieval", "image_to_text/recall@1"): ("image to text", "image-to-text-retrieval"),
    ("retrieval", "image_to_text/recall@10"): ("image to text", None),
    ("alignment", "bitext@1"): ("a caption finds its translation", "bitext-mining"),
    ("zero_shot", "accuracy@1"): ("image to class name", "zero-shot-image-classification"),
    ("words", "translation@1"): ("a word finds its translation", None),
}
_MEASURES = ("retrieval", "alignment", "zero_shot", "words", "text")
_UNPERTURBED = {CLEAN: "text task", parts.GENERALISED: "text task, two languages at once"}
# A text task's kind shows in a metric that only its kind has: (that metric, the one quoted, the hub's name).
# The first row that fits counts: `f1` and `accuracy` also occur in the kinds above them.
_KINDS = (
    ("macro_f1", "accuracy", "text-classification"),
    ("exact_match", "f1", "question-answering"),
    ("map@20", "map@20", "text-ranking"),
    ("spearman", "spearman", "sentence-similarity"),
    ("f1", "f1", "token-classification"),
    ("accuracy", "accuracy", "multiple-choice"),
)


# Text tasks whose authors publish the set on the hub: id there, and number of test examples per language.
# Each language is a configuration there, named by its code.
# https://huggingface.co/datasets/facebook/xnli, https://huggingface.co/datasets/cambridgeltl/xcopa
_HOMES = {"xnli": ("facebook/xnli", 5010), "xcopa": ("cambridgeltl/xcopa", 500)}


@dataclass(frozen=True)
class Number:
    """One metric in one language, language pair or aggregate."""

    part: str  # the language, pair or aggregate in the metric's name
    label: str  # the same for readers
    is_single: bool  # of one language or of two different ones, and no aggregate
    share: float
    count: int
    chance: float | None
    interval: tuple[float, float] | None  # 95 %
    untrained: float | None  # the same metric of the model before its training

    @property
    def is_by_chance(self) -> bool:
        """Whether the 95 % interval reaches down to chance; False where either is not known."""
        if self.interval is None or self.chance is None:
            return False
        return self.interval[0] <= self.chance


@dataclass(frozen=True)
class Measurement:
    """One metric of a set or text task in every language in which it was measured."""

    name: MetricName  # of the mean over the languages, whether it was recorded or not
    words: str  # what is measured, for readers
    task: str | None  # the hub's name of such tasks; None: the hub does not get these numbers
    numbers: dict[str, Number]  # by language, language pair or aggregate, sorted
    drop: float | None  # what the perturbation takes from the mean
    of_pairs: bool  # measured between two languages

    @property
    def single(self) -> list[Number]:
        return [number for number in self.numbers.values() if number.is_single]

    @property
    def lowest(self) -> list[Number]:
        """The five languages or pairs with the lowest values, lowest first."""
        return sorted(self.single, key=lambda one: (one.share, one.part))[:5]


def measurements(results: Results) -> list[Measurement]:
    """The quoted numbers of every set and task that was measured, in the order of the card."""
    groups: dict[MetricName, list[MetricName]] = defaultdict(list)
    clean: dict[str, set[str]] = defaultdict(set)
    for name in map(MetricName.parse, sorted(results.metrics)):
        if name.language is not None:
            groups[name.of(parts.MEAN)].append(name)
        if name.measure == "text" and name.setting == (CLEAN,):
            clean[name.subject].add(name.metric)
    known, found = known_languages(results.metrics), []
    for mean, names in groups.items():
        if quote := _quote(mean, clean[mean.subject]):
            order, words, task = quote
            drop = results.metrics.get(str(replace(mean, metric=f"{mean.metric}_drop")))
            pairs = mean.setting == (parts.GENERALISED,) or mean.measure in ("alignment", "words")
            of = known if pairs else None
            numbers = {str(name.language): _number(results, name, of) for name in names}
            found.append((order, Measurement(mean, words, task, numbers, drop, pairs)))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def primary_metric(clean: set[str]) -> tuple[str, str] | None:
    """The metric that is quoted of a text task with these metrics on its unperturbed texts, and the hub's
    name of such tasks.
    """
    return next(((metric, task) for mark, metric, task in _KINDS if mark in clean), None)


def _quote(name: MetricName, clean: set[str]) -> tuple[tuple[Any, ...], str, str | None] | None:
    """(position in the card, words, the hub's task) of a number that is quoted, None of any other."""
    setting = "/".join(name.setting)
    key = name.measure, f"{setting}/{name.metric}".lstrip("/")
    if key in _QUOTED:
        order = (_MEASURES.index(name.measure), name.subject, list(_QUOTED).index(key))
        return order, *_QUOTED[key]
    metric, task = primary_metric(clean) or (None, None)
    if name.measure != "text" or name.metric != metric:
        return None
    # Clean texts come first, then perturbed ones, then two languages at once.
    rank = (setting != CLEAN, setting == parts.GENERALISED, setting)
    words = _UNPERTURBED.get(setting, f"text task, {setting}")
    position = (_MEASURES.index("text"), name.subject, *rank)
    return position, words, task if setting == CLEAN else None


def _number(results: Results, name: MetricName, known: set[str] | None) -> Number:
    """The number of a metric; of a pair of languages where the `known` ones are given."""
    part, key = str(name.language), str(name)
    codes: tuple[str, ...] = (part,)
    if known is not None and not is_aggregate(part):
        codes = parts.split_pair(part, known)
    untrained = results.baselines.get(UNTRAINED)
    return Number(
        part=part,
        label=" to ".join(AGGREGATES.get(c, c if is_aggregate(c) else labelled(c)) for c in codes),
        is_single=not is_aggregate(part) and len(set(codes)) == len(codes),
        share=results.metrics[key],
        count=results.counts[key],
        chance=results.chance.get(key),
        interval=results.ci95.get(key),
        untrained=untrained.metrics.get(key) if untrained else None,
    )


def eval_results(results: Results) -> list[EvalResult]:
    """One entry per quoted number that the hub has a task for; values that are not finite are left out."""
    homes, data = _entries(results), results.data
    return [
        EvalResult(
            task_type=one.task,
            task_name=None if one.name.measure == "text" else one.words,
            # With the protocol: the hub merges results of the same type, configuration and revision.
            dataset_type=_HOMES[subject][0] if subject in homes else one_line(subject),
            dataset_name=one_line(subject),
            # The sha256 of the set's data where that is known.
            dataset_revision=data.get(subject, data.get(subject.partition(parts.FIRST_CAPTION)[0])),
            metric_type=one.name.metric.replace("@", "_at_"),
            # With the language, so that a set is one entry per task.
            metric_name=f"{one.name.metric}, {AGGREGATES.get(number.part, number.part)}",
            metric_value=number.share,
        )
        for one in measurements(results)
        for subject, number in ((one.name.subject, number) for number in _shown(one))
        if one.task is not None and math.isfinite(number.share)
    ]


def write_eval_results(results: Results, folder: Path) -> None:
    """Write `folder/.eval_results/<set>.yaml` for each set that has a leaderboard on the hub."""
    for task, entries in _entries(results).items():
        target = folder / ".eval_results" / f"{task}.yaml"
        target.parent.mkdir(exist_ok=True)
        write_atomic(target, yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False))


def _shown(one: Measurement) -> list[Number]:
    """The aggregate that stands for all languages: the hub's page shows every number in one long list."""
    order = (parts.PUBLISHED, parts.MEAN, parts.ALL)
    aggregates = [one.numbers[part] for part in order if part in one.numbers]
    return (aggregates or one.single)[:1]


def _entries(results: Results) -> dict[str, list[EvalResultEntry]]:
    """For each set with a leaderboard the languages with as many tests as were published."""
    found: dict[str, list[EvalResultEntry]] = defaultdict(list)
    for one in measurements(results):
        subject = one.name.subject
        if one.name.measure == "text" and subject in _HOMES and one.task is not None:
            home, examples = _HOMES[subject]
            notes = sentence(results.protocol.get(one.name.prefix, {}))
            found[subject] += [
                EvalResultEntry(home, number.part, number.share, notes=notes)
                for number in one.single
                if number.count == examples  # a sample of the published examples is another set
            ]
    return {subject: entries for subject, entries in found.items() if entries}
