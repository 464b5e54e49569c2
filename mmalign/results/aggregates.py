"""Sums over languages: the mean, the five lowest, the families. Of metrics, and of their bootstrap draws."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mmalign.results.language_families import by_family, family_of
from mmalign.results.metric_names import (
    FAMILY,
    GENERALISED,
    MEAN,
    SAME_LANGUAGE,
    WORST5,
    MetricName,
    is_aggregate,
)
from mmalign.results.protocol import LEFT_OUT, MEAN_OVER
from mmalign.results.results import Results

_WORST = 5


def add_mean(
    results: Results, name: MetricName, parts: Sequence[str], language: str = MEAN
) -> None:
    """Add the plain mean of a metric over languages or pairs (`parts`), with the number of all their queries.

    `language` is what the mean is called in place of a language.
    """
    names = [str(name.of(part)) for part in parts]
    chances = [results.chance[one] for one in names if one in results.chance]
    results.add(
        name.of(language),
        float(np.mean([results.metrics[one] for one in names])),
        count=sum(results.counts[one] for one in names),
        chance=float(np.mean(chances)) if chances else None,
    )


def merge_with_means(results: Results, parts: Iterable[Results]) -> None:
    """Take over metrics of single languages or pairs, and add each one's mean over all of them."""
    members: dict[MetricName, list[str]] = {}
    for part in parts:
        results.merge(part)
        for name in map(MetricName.parse, part.metrics):
            members.setdefault(name.of(MEAN), []).append(str(name.language))
    for name, languages in members.items():
        add_mean(results, name, languages)


def add_aggregates(
    results: Results, name: MetricName, languages: Sequence[str], families: bool = False
) -> None:
    """Add a metric's mean over all languages, over the five where it is lowest and over each family."""
    add_mean(results, name, languages)
    # Without an interval: which languages are the lowest would change from draw to draw, and a bootstrap of a
    # minimum is biased downwards.
    if len(languages) > _WORST:
        lowest = sorted(languages, key=lambda lang: results.metrics[str(name.of(lang))])
        add_mean(results, name, lowest[:_WORST], WORST5)
    for family, members in by_family(languages).items() if families else ():
        add_mean(results, name, members, FAMILY + family)


def rows_behind(
    results: Results, metric: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Language -> values, and language -> ids, (n,) each, whose mean over languages is the metric.

    None where the values were not kept, or the metric is no mean of them. Of several seeds: their mean.
    """
    name = MetricName.parse(metric)
    languages = [str(name.language)] if metric in results.values else mean_over(results, name)
    names = {lang: str(_member(name, lang)) for lang in languages}
    if not names or not all(one in results.values for one in names.values()):
        return None
    values = {lang: np.atleast_2d(results.values[n]).mean(0) for lang, n in names.items()}
    means = [one.mean() for one in values.values()]
    if not np.isclose(np.mean(means), results.metrics[metric], rtol=0, atol=1e-6):
        return None
    ids: dict[str, np.ndarray] = {}
    for position, (lang, one) in enumerate(names.items(), start=1):
        of_lang = results.ids_of(one)
        # Rows without ids are about things of their own, in each language.
        own = np.arange(len(values[lang])) - (position << 40)
        ids[lang] = own if of_lang is None else of_lang
    return values, ids


def count_items(results: Results, metric: str) -> int | None:
    """How many different things (ids) a metric of a language or a mean rests on; None where not recorded."""
    name = MetricName.parse(metric)
    names = [str(_member(name, lang)) for lang in mean_over(results, name)] or [metric]
    ids = [of_one for one in names if (of_one := results.ids_of(one)) is not None]
    return len(np.unique(np.concatenate(ids))) if len(ids) == len(names) else None


def mean_over(results: Results, name: MetricName) -> list[str]:
    """The languages or pairs that a mean is over; empty for a metric that is no mean."""
    if name.language != MEAN:
        return []
    if GENERALISED in name.setting:
        return _pairs_of(results, name)
    protocol = results.protocol.get(name.prefix)
    wanted = protocol.get(MEAN_OVER) if protocol else None
    few = (protocol or {}).get(LEFT_OUT, {}).get(name.setting[0] if name.setting else "", ())
    if wanted is None:
        parsed = map(MetricName.parse, results.metrics)
        wanted = [
            str(one.language) for one in parsed if one.of(MEAN) == name and not one.is_aggregate
        ]
    # A perturbation may not exist in every language.
    there = [lang for lang in wanted if str(name.of(lang)) in results.metrics]
    return [lang for lang in there if lang not in few]


def _pairs_of(results: Results, mean: MetricName) -> list[str]:
    # Of the generalised setting one mean is over the pairs of two languages, another over those of one.
    parsed = map(MetricName.parse, results.metrics)
    of_pairs = _member(mean, MEAN)
    pairs = [str(one.language) for one in parsed if one.of(MEAN) == of_pairs]
    of_same = mean.metric.endswith(SAME_LANGUAGE)
    # Both halves of `pt-BR-pt-BR` are equal.
    return [
        pair
        for pair in pairs
        if not is_aggregate(pair)
        and (pair[: len(pair) // 2] == pair[len(pair) // 2 + 1 :]) == of_same
    ]


def _member(mean: MetricName, language: str) -> MetricName:
    """The metric of one language or pair that a mean is over."""
    metric = mean.metric.removesuffix(SAME_LANGUAGE)
    return replace(mean, language=language, metric=metric)


def summed_up(part: str, of_parts: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The array of a language or an aggregate; None where it cannot be computed from what is there."""
    if part in of_parts:
        return of_parts[part]
    languages = {lang: array for lang, array in of_parts.items() if not is_aggregate(lang)}
    if part.startswith(FAMILY):
        family = part.removeprefix(FAMILY)
        languages = {lang: a for lang, a in languages.items() if family_of(lang) == family}
    elif part not in (MEAN, WORST5):
        return None
    if not languages:
        return None
    stacked = np.stack(list(languages.values()))
    if part == WORST5:
        stacked = np.sort(stacked, axis=0)[:_WORST]  # NaN is sorted last
    # NaN is unknown: a draw may miss a language of few queries, and its means are those of the others.
    is_known = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(is_known, stacked, 0).sum(axis=0) / is_known.sum(axis=0)
    return mean
