"""Runs that differ only in their seed -> their mean, with an interval over seeds and items.

metric of S runs -> variance of the seeds -+
values per row   -> variance of the items -+-> t interval (`statistics.t_test`)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmalign.results.aggregates import rows_behind
from mmalign.results.results import Results
from mmalign.results.statistics import Part, item_part, seed_part, t_test

OVER_BOTH = "seeds and items"
OVER_SEEDS = "seeds"
OVER_ITEMS = "items"


def mean_over_seeds(runs: Sequence[Results]) -> Results:
    """The mean of each metric over runs that differ only in their seed; a single run stays as it is.

    The values of single rows are kept for each seed, (S, n), where all runs have the same rows.
    """
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    # Of an attack on a model that had no row right there is no success rate.
    shared = [name for name in first.metrics if all(name in run.metrics for run in runs)]
    values = {name: [run.metrics[name] for run in runs] for name in shared}
    mean = replace(
        first,
        model={**first.model, "seeds": [run.model.get("seed") for run in runs]},
        metrics={name: float(np.mean(of_seeds)) for name, of_seeds in values.items()},
        counts={name: first.counts[name] for name in shared},
        chance={name: one for name, one in first.chance.items() if name in values},
        ci95={},
        protocol={name: _protocol(name, runs) for name in first.protocol},
        baselines={},
    )
    mean.ids = dict(first.ids)
    for name in first.values:
        if all(name in run.values and _same_rows(name, first, run) for run in runs):
            mean.values[name] = np.stack([run.values[name] for run in runs])
    for name, of_seeds in values.items():
        parts = [seed_part(of_seeds), *items_behind(mean, name)]
        # Nothing varies: the numbers say nothing of how others would differ.
        if (tested := t_test(mean.metrics[name], parts)) is not None:
            mean.ci95[name] = tested.ci95
    return mean


def items_behind(results: Results, name: str) -> list[Part]:
    """What the choice of items adds to the variance of a metric; empty where that is not known."""
    rows = rows_behind(results, name)
    part = None if rows is None else item_part(*rows)
    return [] if part is None else [part]


def _same_rows(name: str, first: Results, other: Results) -> bool:
    ours, theirs = first.ids_of(name), other.ids_of(name)
    return ours is theirs or np.array_equal(ours, theirs)  # type: ignore[arg-type]


def _protocol(name: str, runs: Sequence[Results]) -> dict[str, Any]:
    """The protocol of the first run; a field that differs between the runs holds all of its values."""
    first, *others = (run.protocol[name] for run in runs)
    fields = {
        field: value
        if all(one.get(field) == value for one in others)
        else [value, *(one.get(field) for one in others)]
        for field, value in first.items()
    }
    return {**fields, "mean_of_seeds": len(runs)}
