"""Metric names taken apart: which sets, tasks and languages a `results.json` speaks of.

    retrieval/<set>/<language or aggregate>/<direction>/recall@<k>     mean, worst5, all, family:<Name>
    retrieval/<set>@first-caption/...                                  the same by that protocol
    alignment/<set>/<language>-<language> or mean/bitext@1             and bitext_csls@1, cka, ...
    geometry/<set>/<language or mean>/isotropy                         and modality_gap, ...
    layers/<set>/<layer>/<pooling>/bitext@1
    words/<dictionary>/<language>-<language> or mean/translation@1
    lexical/<lexicon>/<language or mean>/<layer>/<trained or held_out>/precision@1   and others
    injected/<lexicon>/...                                             the same after an injection
    zero_shot/<set>/<language, mean or worst5>/accuracy@<k>
    faiss/<set>/<index>/<language or mean>/<direction>/recall@<k>
    text/<task>/<language or mean>/<perturbation or clean>/accuracy
    text/<task>/<language>-<language> or mean/generalised/accuracy

`MetricName.parse` takes a name apart and `str` writes it again; no other code splits names.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MEAN = "mean"  # of the languages
WORST5 = "worst5"  # the mean of the five languages where a metric is lowest
ALL = "all"  # all queries of all languages
FAMILY = "family:"  # before the name of a language family: the mean of its languages
FIRST_CAPTION = "@first-caption"  # behind the name of a set
GENERALISED = "generalised"
PUBLISHED = "published"
# Which part names the language, counted from 0; None: no part does. The third part in all other measures.
_LANGUAGE_PART = {"layers": None, "faiss": 3}


@dataclass(frozen=True)
class MetricName:
    """A metric's name, taken apart.

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
    def parse(cls, name: str) -> "MetricName":
        """The parts of a name that `str` wrote."""
        measure, subject, *rest, metric = name.split("/")
        place = _LANGUAGE_PART.get(measure, 2)
        if place is None:
            return cls(measure, subject, None, tuple(rest), metric)
        language = rest.pop(place - 2)
        return cls(measure, subject, language, tuple(rest), metric)

    def __str__(self) -> str:
        parts = [self.measure, self.subject, *self.setting]
        place = _LANGUAGE_PART.get(self.measure, 2)
        if place is not None:
            assert self.language is not None, self
            parts.insert(place, self.language)
        return "/".join([*parts, self.metric])

    @property
    def group(self) -> str:
        """What the metrics of the same queries have in common: the name without `metric`."""
        return str(self).rpartition("/")[0]

    @property
    def is_aggregate(self) -> bool:
        """Whether the number sums up languages, or is a published one."""
        return self.language is not None and is_aggregate(self.language)


def subjects(names: Iterable[str], measure: str) -> list[str]:
    """The sets or tasks that a measure was taken on, sorted."""
    return sorted({name.split("/")[1] for name in names if name.startswith(f"{measure}/")})


def languages(names: Iterable[str], measure: str, subject: str) -> list[str]:
    """The languages of the metrics of one set or task, sorted; neither aggregates (`mean`, `worst5`, `all`,
    families) nor the pairs of the generalised setting."""
    prefix = f"{measure}/{subject}/"
    parts = [n.split("/") for n in names if n.startswith(prefix)]
    return sorted({p[2] for p in parts if p[3] != GENERALISED and not is_aggregate(p[2])})


def layers_of(names: Iterable[str], measure: str, subject: str) -> list[str]:
    """The layers of `lexical` or `injected` metrics of a lexicon: by number, then `feature`."""
    head = f"{measure}/{subject}/{MEAN}/"
    found = {name.split("/")[3] for name in names if name.startswith(head)}
    return sorted(found, key=lambda one: (not one.isdigit(), int(one) if one.isdigit() else 0))


def is_aggregate(part: str) -> bool:
    """Whether the third part of a metric's name sums up languages, or is no measurement of ours at all."""
    return part in (MEAN, WORST5, ALL, PUBLISHED) or part.startswith(FAMILY)


def split_pair(pair: str, known: Iterable[str]) -> tuple[str, str]:
    """The two languages of `<language>-<language>`, although codes such as `pt-BR` hold a hyphen.

    The split with more halves that are known languages wins; among equals, the first whose second
    half could be a code on its own (subtags such as `BR` and `Hant` start with a capital, languages
    do not).

    Args:
        known: language codes from elsewhere, for example from the retrieval metrics.
    """
    codes = set(known)
    parts = pair.split("-")
    splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    assert splits, f"`{pair}` is not a pair of languages"

    def likeliness(split: tuple[str, str]) -> tuple[int, bool]:
        return (split[0] in codes) + (split[1] in codes), split[1][:1].islower()

    return max(splits, key=likeliness)
