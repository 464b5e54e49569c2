"""One measured number with everything that belongs to it, and how it is written on the page.

    Results, name -> Measurement -> "45.3", "0.812", "3,600", or a sentence for a chart's mark

Shares are written in percent, similarities and distances as they are. Whatever shows a field of a
measurement carries the metric's name beside it, so that every number leads back to `results.json`.
"""

from dataclasses import dataclass

from mmalign.core.languages import labelled
from mmalign.results.metric_names import ALL, FAMILY, FIRST_CAPTION, MEAN, WORST5
from mmalign.results.results import Results

UNTRAINED = "untrained"
FIELDS = ("value", "low", "high", "chance", "untrained", "count")
_AGGREGATES = {MEAN: "mean", WORST5: "worst five", ALL: "all captions"}
# These are no shares: cosines, distances and logarithms.
_PLAIN = {
    "translation_gap",
    "translation_gap_centred",
    "cka",
    "isotropy",
    "modality_gap",
    "alignment",
    "uniformity",
    *(
        f"{name}{centred}"
        for name in ("similarity", "similarity_random", "similarity_gain")
        for centred in ("", "_centred")
    ),
}


@dataclass(frozen=True)
class Measurement:
    """One metric: its name in `results.json` and what stands there."""

    name: str
    value: float
    count: int
    interval: tuple[float, float] | None
    chance: float | None
    untrained: float | None

    def field(self, name: str) -> float | None:
        """A field by its name, one of `FIELDS`; None where it was not measured."""
        if name in ("low", "high"):
            return self.interval[name == "high"] if self.interval else None
        value: float | None = getattr(self, name)
        return value


@dataclass(frozen=True)
class Mark:
    """What a bar, a cell or a point of a chart says when it is pointed at, and its metric's name."""

    metric: str
    words: str


def look_up(results: Results, name: str) -> Measurement | None:
    """The metric of this name, if it was measured."""
    if name not in results.metrics:
        return None
    baseline = results.baselines.get(UNTRAINED)
    return Measurement(
        name=name,
        value=results.metrics[name],
        count=results.counts[name],
        interval=results.ci95.get(name),
        chance=results.chance.get(name),
        untrained=baseline.metrics.get(name) if baseline else None,
    )


def percent(share: float | None) -> str:
    """A share in percent with the digits that it needs, without the sign."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}" if abs(share) >= 0.01 or share == 0 else f"{100 * share:.2g}"


def shown(one: Measurement, field: str = "value") -> str:
    """A field as the page writes it: percent without the sign, three decimals, or a count."""
    value = one.field(field)
    if value is None:
        return "–"
    if field == "count":
        return f"{value:,}"
    return percent(value) if is_share(one.name) else f"{value:.3f}"


def is_share(name: str) -> bool:
    """Whether a metric is a share, which is written in percent."""
    return name.rpartition("/")[2] not in _PLAIN


def mark(one: Measurement, of: str) -> Mark:
    """The words for a chart's mark: whom it is about, then value, interval, count, chance."""
    sign = " %" if is_share(one.name) else ""
    parts = [f"{of}: {shown(one)}{sign}"]
    if one.interval:
        parts.append(f"95 % interval {shown(one, 'low')} to {shown(one, 'high')}")
    parts.append(f"n = {shown(one, 'count')}")
    for field in ("chance", UNTRAINED):
        if one.field(field) is not None:
            parts.append(f"{field} {shown(one, field)}{sign}")
    return Mark(one.name, " · ".join(parts))


def row_name(part: str) -> str:
    """The third part of a metric's name in words: a language with its code, or an aggregate."""
    if part.startswith(FAMILY):
        return part.removeprefix(FAMILY)
    return _AGGREGATES.get(part) or labelled(part)


def protocol_of(subject: str) -> tuple[str, str]:
    """Set and protocol of a retrieval's subject: `xm3600@first-caption` is xm3600 by its protocol."""
    name, is_first, _ = subject.partition(FIRST_CAPTION)
    return name, FIRST_CAPTION.removeprefix("@") if is_first else "all-captions"
