"""The results of a card: one table of means, then a table of languages for each set and task.

    Results -> quoted: which numbers stand for a set -> summary: a row a number
                                                     -> language_tables: a row a language
    Results -> the five lowest languages or pairs of a number (lowest), which the limits name too

Everything is looked up in the results by its name; nothing is averaged here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.core.languages import labelled
from mmalign.export.eval_results import AGGREGATES, primary_of
from mmalign.export.markdown import one_line, percent, table
from mmalign.results.metric_names import (
    ALL,
    GENERALISED,
    MEAN,
    WORST5,
    is_aggregate,
    languages,
    split_pair,
    subjects,
)
from mmalign.results.results import Results
from mmalign.text.tasks.task import CLEAN

UNTRAINED = "untrained"
_LONG = 10  # a table of more languages is folded
_FEW = 5
_PAIRS = ("alignment", "words")
_WORDS = {
    "text_to_image": "text to image",
    "image_to_text": "image to text",
    "bitext@1": "a caption finds its translation",
    "translation@1": "a word finds its translation",
    "zero_shot": "picture to class name",
}


@dataclass(frozen=True)
class Quoted:
    """One number of a set, in every language and as a mean.

    Attributes:
        subject: the set or task; tail: what follows the language in the metric's name.
        words: what is measured, for a person.
    """

    measure: str
    subject: str
    tail: str
    words: str

    def name(self, part: str) -> str:
        """The metric's name for a language, a pair or an aggregate."""
        return f"{self.measure}/{self.subject}/{part}/{self.tail}"

    @property
    def metric(self) -> str:
        return self.tail.rpartition("/")[2]


@dataclass(frozen=True)
class LanguageTable:
    """A table in Markdown, and whether it is long enough to be folded."""

    heading: str
    table: str
    is_long: bool


def quoted(results: Results) -> list[Quoted]:
    """The numbers that stand for each set and task, the most telling ones first."""
    tails = {
        "retrieval": [
            f"{direction}/recall@{k}"
            for direction in ("text_to_image", "image_to_text")
            for k in (1, 10)
        ],
        "alignment": ["bitext@1"],
        "zero_shot": ["accuracy@1"],
        "words": ["translation@1"],
    }
    found = [
        Quoted(measure, subject, tail, _words(measure, tail))
        for measure, ends in tails.items()
        for subject in subjects(results.metrics, measure)
        for tail in ends
    ]
    for subject in subjects(results.metrics, "text"):
        found += _of_task(results, subject)
    return [one for one in found if parts_of(results, one)]


def _words(measure: str, tail: str) -> str:
    return _WORDS.get(tail.split("/")[0]) or _WORDS[measure]


def _of_task(results: Results, subject: str) -> list[Quoted]:
    """The task's own metric: on clean texts, then perturbed ones, then in two languages at once."""
    primary = primary_of(results, subject)
    if primary is None:
        return []
    names = (name.split("/") for name in results.metrics if name.startswith(f"text/{subject}/"))
    variants = {name[3] for name in names if name[4:] == [primary[0]]}
    order = sorted(variants, key=lambda one: (one != CLEAN, one == GENERALISED, one))
    words = {CLEAN: "text task", GENERALISED: "text task, two languages at once"}
    return [
        Quoted("text", subject, f"{one}/{primary[0]}", words.get(one, f"text task, {one}"))
        for one in order
    ]


def parts_of(results: Results, one: Quoted) -> list[str]:
    """The languages, pairs and aggregates in which a number was measured, sorted."""
    prefix, end = f"{one.measure}/{one.subject}/", f"/{one.tail}"
    names = (n for n in results.metrics if n.startswith(prefix) and n.endswith(end))
    return sorted(n[len(prefix) : len(n) - len(end)] for n in names)


def single_parts(results: Results, one: Quoted) -> list[str]:
    """The same without aggregates, and without the pairs of a language with itself."""
    alone = [part for part in parts_of(results, one) if not is_aggregate(part)]
    if not is_of_pairs(one):
        return alone
    known = known_languages(results)
    return [pair for pair in alone if len(set(split_pair(pair, known))) == 2]


def lowest(results: Results, one: Quoted, few: int = _FEW) -> list[str]:
    """The languages or pairs with the lowest values, lowest first."""
    alone = single_parts(results, one)
    return sorted(alone, key=lambda part: (results.metrics[one.name(part)], part))[:few]


def is_of_pairs(one: Quoted) -> bool:
    """Whether the number is measured between two languages."""
    return one.measure in _PAIRS or one.tail.startswith(f"{GENERALISED}/")


def part_name(results: Results, one: Quoted, part: str) -> str:
    """A language, pair or aggregate in words: "Swahili (sw)", "Swahili (sw) to German (de)"."""
    if is_aggregate(part):
        return AGGREGATES.get(part, part)
    if is_of_pairs(one):
        return " to ".join(labelled(code) for code in split_pair(part, known_languages(results)))
    return labelled(part)


def known_languages(results: Results) -> set[str]:
    """The languages of all measures that name one language at a time."""
    measures = ("retrieval", "zero_shot", "text", "geometry")
    pairs = [(m, subject) for m in measures for subject in subjects(results.metrics, m)]
    return {lang for m, subject in pairs for lang in languages(results.metrics, m, subject)}


def summary(results: Results) -> str:
    """A row for each quoted number: its mean over the languages, and the lowest of them."""
    columns = (
        "what",
        "set",
        "metric",
        "mean",
        "95 % interval",
        "lowest",
        "chance",
        "untrained",
        "measured in",
        "n",
    )
    rows = [_summary_row(results, one) for one in quoted(results)]
    return table(columns, [row for row in rows if row])


def _summary_row(results: Results, one: Quoted) -> list[str]:
    alone = single_parts(results, one)
    part = MEAN if one.name(MEAN) in results.metrics else alone[0] if len(alone) == 1 else None
    if part is None:
        return []
    name = one.name(part)
    low, high = results.ci95.get(name, (None, None))
    untrained = results.baselines.get(UNTRAINED)
    worst = lowest(results, one, few=1) if len(alone) > 1 else []
    kind = "pairs" if is_of_pairs(one) else "languages"
    return [
        one.words,
        one.subject,
        one.metric,
        percent(results.metrics[name]),
        "" if low is None or high is None else f"{percent(low)} to {percent(high)}",
        f"{percent(results.metrics[one.name(worst[0])])} ({worst[0]})" if worst else "",
        _maybe(results.chance.get(name)),
        _maybe(untrained.metrics.get(name)) if untrained else "",
        f"{len(alone)} {kind}" if len(alone) > 1 else part_name(results, one, part),
        str(results.counts[name]),
    ]


def _maybe(share: float | None) -> str:
    return "" if share is None else percent(share)


def language_tables(results: Results) -> list[LanguageTable]:
    """For each set and task that was measured language by language: its numbers, a row a language."""
    groups: dict[tuple[str, str], list[Quoted]] = {}
    for one in quoted(results):
        if not is_of_pairs(one):
            groups.setdefault((one.measure, one.subject), []).append(one)
    return [_language_table(results, *key, group) for key, group in groups.items()]


def _language_table(
    results: Results, measure: str, subject: str, group: Sequence[Quoted]
) -> LanguageTable:
    parts = {part for one in group for part in parts_of(results, one)}
    spoken = sorted(part for part in parts if not is_aggregate(part))
    rows = []
    for part in [*(p for p in (MEAN, WORST5, ALL) if p in parts), *spoken]:
        names = [one.name(part) for one in group]
        counts = dict.fromkeys(results.counts[name] for name in names if name in results.metrics)
        cells = [_maybe(results.metrics.get(name)) for name in names]
        rows.append([part_name(results, group[0], part), *cells, "/".join(map(str, counts))])
    heads = [_heading(one) for one in group]
    words = {"zero_shot": "Picture to class name", "text": "Text task"}.get(measure, "Retrieval")
    plural = "s" if len(spoken) != 1 else ""
    return LanguageTable(
        f"{words} on {one_line(subject)}: {len(spoken)} language{plural}",
        table(["language", *heads, "n"], rows),
        len(rows) > _LONG,
    )


def _heading(one: Quoted) -> str:
    if one.measure == "retrieval":
        return f"{one.words}, {one.metric}"
    return one.metric if one.measure == "zero_shot" else one.tail.replace("/", ", ")
