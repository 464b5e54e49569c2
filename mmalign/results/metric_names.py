"""Metric names as a value: which set, task and language a number of `results.json` belongs to.

    retrieval/<set>/<language or aggregate>/<direction>/recall@<k>     mean, worst5, all, family:<Name>
    retrieval/<set>@first-caption/...                                  the same by that protocol
    retrieval/<set>@64-dims/...                                        of the first 64 dimensions alone
    alignment/<set>/<language>-<language> or mean/bitext@1             and bitext_csls@1, cka, ...
    geometry/<set>/<language or mean>/isotropy                         and modality_gap, ...
    layers/<set>/<layer>/<pooling>/bitext@1
    words/<dictionary>/<language>-<language> or mean/translation@1
    lexical/<lexicon>/<language or mean>/<layer>/<trained or held_out>/precision@1   and others
    injected/<lexicon>/...                                             the same after an injection
    zero_shot/<set>/<language, mean or worst5>/accuracy@<k>
    probe/<set>/<linear or knn>/accuracy                               and mean_per_class_recall
    faiss/<set>/<index>/<language or mean>/<direction>/recall@<k>
    text/<task>/<language or mean>/<perturbation or clean>/accuracy    and accuracy_clean, ...
    text/<task>/<language>-<language> or mean/generalised/accuracy

No other module splits names.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

MEAN = "mean"  # of the languages
WORST5 = "worst5"  # the mean of the five languages where a metric is lowest
ALL = "all"  # all queries of all languages
FAMILY = "family:"  # before the name of a language family: the mean of its languages
FIRST_CAPTION = "@first-caption"  # behind the name of a set
DIMS = "@{}-dims"  # likewise, of embeddings cut to so many dimensions
PROBE = "probe"
GENERALISED = "generalised"
SAME_LANGUAGE = "_same_language"  # behind the metric of pairs of a language with itself
PUBLISHED = "published"
# Of attacks, on the rows that the model itself had right: models are not compared row by row on these.
OF_CORRECT_ROWS = ("success_rate", "queries")
# Which part names the language, counted from 0; None: no part does. The third part in all other measures.
_LANGUAGE_PART = {"layers": None, PROBE: None, "faiss": 3}
# Measures whose languages are never pairs, but for the generalised setting of text tasks.
_ONE_LANGUAGE = ("retrieval", "zero_shot", "text", "geometry")


@dataclass(frozen=True)
class MetricName:
    """A parsed metric name.

    Attributes:
        measure: `retrieval`, `alignment`, `text`, ...
        subject: the set, task, dictionary or lexicon that it was measured on.
        language: a language code, a pair `<language>-<language>` or an aggregate (`mean`, `worst5`, `all`,
            `family:<Name>`); None where the measure has no languages.
        setting: the remaining parts in their order: a direction, a perturbation, a layer, an index.
        metric: the last part, for example `recall@10`. Metrics that differ in nothing else were measured
            on the same queries.
    """

    measure: str
    subject: str
    language: str | None
    setting: tuple[str, ...]
    metric: str

    @classmethod
    @lru_cache(maxsize=2**16)  # a report asks for the same few thousand names again and again
    def parse(cls, name: str) -> "MetricName":
        """The value of a name that `str` wrote."""
        measure, subject, *rest, metric = name.split("/")
        position = _LANGUAGE_PART.get(measure, 2)
        language = None if position is None else rest.pop(position - 2)
        return cls(measure, subject, language, tuple(rest), metric)

    def __str__(self) -> str:
        parts = [self.prefix, *self.setting]
        position = _LANGUAGE_PART.get(self.measure, 2)
        if position is not None:
            assert self.language is not None, self
            parts.insert(position - 1, self.language)  # the prefix is two parts in one
        return "/".join([*parts, self.metric])

    @property
    def prefix(self) -> str:
        """`<measure>/<subject>`, under which `results.json` keeps the protocol."""
        return f"{self.measure}/{self.subject}"

    @property
    def group(self) -> str:
        """What the metrics of the same queries have in common: the name without `metric`."""
        return str(self).rpartition("/")[0]

    @property
    def data(self) -> str:
        """The name of the data set: the subject without the protocol or the folder behind `@`."""
        return self.subject.partition("@")[0]

    @property
    def is_aggregate(self) -> bool:
        """Whether the number sums up languages, or is a published one."""
        return self.language is not None and is_aggregate(self.language)

    @property
    def has_one_language(self) -> bool:
        """Whether it is of a language, neither of an aggregate nor of a pair of the generalised setting."""
        return bool(self.language) and not self.is_aggregate and GENERALISED not in self.setting

    def of(self, language: str) -> "MetricName":
        """The same metric of another language or aggregate."""
        return replace(self, language=language)


def _parsed(names: Iterable[str], measure: str, subject: str | None = None) -> Iterator[MetricName]:
    for one in map(MetricName.parse, names):
        if one.measure == measure and subject in (None, one.subject):
            yield one


def subjects(names: Iterable[str], measure: str) -> list[str]:
    """The sets or tasks that a measure was taken on, sorted."""
    return sorted({one.subject for one in _parsed(names, measure)})


def languages(names: Iterable[str], measure: str, subject: str) -> list[str]:
    """The languages of the metrics of one set or task, sorted; without aggregates and generalised pairs."""
    found = _parsed(names, measure, subject)
    return sorted({str(one.language) for one in found if one.has_one_language})


def known_languages(names: Iterable[str]) -> set[str]:
    """The languages of all measures that name one language at a time."""
    found = (one for one in map(MetricName.parse, names) if one.measure in _ONE_LANGUAGE)
    return {str(one.language) for one in found if one.has_one_language}


def layers_of(names: Iterable[str], measure: str, subject: str) -> list[str]:
    """The layers of `lexical` or `injected` metrics of a lexicon: by number, then `feature`."""
    means = (one for one in _parsed(names, measure, subject) if one.language == MEAN)
    found = {one.setting[0] for one in means}
    return sorted(found, key=lambda one: (not one.isdigit(), int(one) if one.isdigit() else 0))


def mark_subjects(name: str, measure: str, subjects: Iterable[str], mark: str) -> str:
    """The name of a metric or a protocol, with a mark behind its subject if that is one of `subjects`."""
    head, subject, *rest = name.split("/")  # a protocol's name has these two parts only
    marked = subject + mark if head == measure and subject in subjects else subject
    return "/".join((head, marked, *rest))


def is_aggregate(part: str) -> bool:
    """Whether the part in place of a language sums up languages, or names a published number."""
    return part in (MEAN, WORST5, ALL, PUBLISHED) or part.startswith(FAMILY)


def split_pair(pair: str, known: Iterable[str]) -> tuple[str, str]:
    """The two languages of `<language>-<language>`, although codes such as `pt-BR` hold a hyphen."""
    # The split with more halves that are known languages wins; among equals, the first whose second half
    # could be a code by itself.
    codes = set(known)
    parts = pair.split("-")
    splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    assert splits, f"`{pair}` is not a pair of languages"
    # Subtags such as `BR` and `Hant` start with a capital, languages do not.
    return max(splits, key=lambda one: (len(codes.intersection(one)), one[1][:1].islower()))
