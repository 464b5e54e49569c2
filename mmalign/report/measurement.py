"""One measured number with everything that belongs to it, and how it is written on the page.

Results, name -> Measurement -> "45.3", "0.812", "3,600", or a sentence for a tooltip
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mmalign.results.formatting import MISSING, percent
from mmalign.results.metric_names import ALL, MEAN, WORST5
from mmalign.results.results import Results

N = TypeVar("N")

UNTRAINED = "untrained"
AGGREGATES = {MEAN: "mean", WORST5: "worst five", ALL: "all captions"}  # in the order of a table
# Shares of the tested rows, written as numbers of rows.
_ROWS = ("/changed_share", "/attackable_share")
# Cosines, distances and logarithms: everything else is a share.
_NOT_SHARES = {
    *("translation_gap", "cka", "isotropy", "modality_gap", "alignment", "uniformity"),
    *("similarity", "similarity_random", "similarity_gain", "queries"),
}


@dataclass(frozen=True)
class Measurement:
    """One metric: its name in `results.json` and what is recorded for it there."""

    # The page writes the name beside every number, so that it can be traced to `results.json`.

    name: str
    value: float
    count: int
    interval: tuple[float, float] | None
    chance: float | None
    untrained: float | None
    items: int | None = None  # different ones, of a study: 20 items in 13 languages are 260 rows

    @property
    def is_share(self) -> bool:
        # Shares are written in percent, similarities and distances as they are.
        return self.name.rpartition("/")[2].removesuffix("_centred") not in _NOT_SHARES

    def field(self, name: str) -> float | None:
        """`value`, `low`, `high`, `chance`, `untrained` or `count`; None where it was not measured."""
        if name in ("low", "high"):
            return self.interval[name == "high"] if self.interval else None
        value: float | None = getattr(self, name)
        return value

    def shown(self, field: str = "value") -> str:
        """A field as the page writes it: percent without the sign, three decimals, or a count."""
        value = self.field(field)
        if value is None:
            return MISSING
        if field == "count":
            return f"{value:,}"
        if field == "value" and self.name.endswith(_ROWS):
            return f"{value * self.count:.0f} of {self.count:,}"
        return percent(value) if self.is_share else f"{value:.3f}"

    def described(self, of: str = "") -> str:
        sign = " %" if self.is_share and not self.name.endswith(_ROWS) else ""
        parts = [f"{of}: {self.shown()}{sign}"] if of else []
        if self.interval:
            parts.append(f"95 % interval {self.shown('low')} to {self.shown('high')}")
        items = "" if self.items is None else f" rows of {self.items:,} items"
        parts.append(f"n = {self.shown('count')}{items}")
        known = [field for field in ("chance", UNTRAINED) if self.field(field) is not None]
        parts += [f"{field} {self.shown(field)}{sign}" for field in known]
        return " · ".join(parts)


def measurements(results: Results, parse: Callable[[str], N]) -> dict[N, Measurement]:
    """All metrics by their parsed names."""
    baseline = results.baselines.get(UNTRAINED)
    untrained = baseline.metrics if baseline else {}
    measured = {}
    for name, value in results.metrics.items():
        known = results.counts[name], results.ci95.get(name), results.chance.get(name)
        measured[parse(name)] = Measurement(name, value, *known, untrained.get(name))
    return measured
