"""The difference between two sides of a study, each a tower and a method, over their seeds and tested items.

cells of each side -> value of each seed -> difference, variance of the seeds -+
                   -> values per row     -> variance of the items -------------+-> interval, p
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.results.aggregates import count_items, rows_behind
from mmalign.results.results import Results
from mmalign.results.statistics import Part, item_part, seed_part, t_test
from mmalign.study.config import StudyConfig

# Fine-tuning seeds on one pretrained tower say nothing about another pretraining.
_ONE_PRETRAINING = "which leaves open what another pretraining seed would give"
AND_ITEMS = " and the tested items"

Side = tuple[str, str]  # a tower and a method
# (tower, pretraining seed, task, method) -> fine-tuning seed -> results. The seed is None for a given model:
# one of a path, or one that was not trained and is the same for every pretraining seed.
Values = dict[tuple[str, int | None, str, str], dict[int, Results]]


@dataclass(frozen=True)
class Comparison:
    """A difference between two sides, each a tower and a method.

    Attributes:
        kind: `headline`, `method` or `tower`.
        difference: mean over the seeds of left minus right, paired by seed where both have the same seeds.
        ci95: of the variances of seeds and items (`t_test`); None where the seeds give equal numbers.
        p_holm: `p` after Holm's correction (1979) over all comparisons of this kind that are `primary`, or
            over all others of this kind.
        pairs: how many seeds are on both sides.
        seeds: what these are, and whether the items are covered, in words.
        rows, items: how many rows and different items (ids) each number rests on.
        primary: whether the verdict of the page rests on it.
    """

    kind: str
    task: str
    metric: str
    left: tuple[str, str]
    right: tuple[str, str]
    difference: float
    ci95: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    pairs: int
    seeds: str
    rows: int
    items: int | None
    primary: bool


def _repeats(
    study: StudyConfig, values: Values, side: Side, task: str, name: str, over_pretraining: bool
) -> dict[int, list[Results]]:
    """Seed -> runs: of fine-tuning on the first pretraining, or of pretraining with all of its cells."""
    tower, method = side
    seeds = study.pretraining_seeds if over_pretraining else study.pretraining_seeds[:1]
    cells = {
        seed: values.get((tower, None if _is_given(values, tower) else seed, task, method), {})
        for seed in seeds
    }
    if not over_pretraining:
        cells = {seed: {seed: run} for seed, run in cells[seeds[0]].items()}
    # A metric may be missing, or undefined for a seed, such as a correlation with constant scores.
    known = {
        seed: [run for run in runs.values() if np.isfinite(run.metrics.get(name, np.nan))]
        for seed, runs in cells.items()
    }
    return {seed: runs for seed, runs in known.items() if runs}


def _is_given(values: Values, tower: str) -> bool:
    return any(name == tower and seed is None for name, seed, *_ in values)


def compare_sides(
    study: StudyConfig, values: Values, kind: str, task: str, metric: str, left: Side, right: Side
) -> Comparison | None:
    """The comparison, None where too few seeds are on both sides: two, or one of a given model."""
    name = f"text/{task}/mean/{metric}"
    many = kind == "headline" and len(study.pretraining_seeds) > 1
    # A given model has no pretraining seeds: its cells repeat over fine-tuning seeds only, whatever the other
    # side repeats over. To count the same cells again for each pretraining seed would be no repeat at all.
    given = [_is_given(values, tower) for tower, _ in (left, right)]
    over = [many and not one for one in given]
    sides = [
        _repeats(study, values, side, task, name, is_over)
        for side, is_over in zip((left, right), over, strict=True)
    ]
    if is_paired := over[0] == over[1]:
        shared = [seed for seed in sides[0] if seed in sides[1]]
        sides = [{seed: side[seed] for seed in shared} for side in sides]
    lengths = [len(side) for side in sides]
    if min(lengths) < (2 if is_paired else 1) or max(lengths) < 2:
        return None
    ours, theirs = (
        np.array([np.mean([run.metrics[name] for run in runs]) for runs in side.values()])
        for side in sides
    )
    varying = [ours - theirs] if is_paired else [one for one in (ours, theirs) if len(one) > 1]
    seeds = [seed_part(one) for one in varying]
    items = _items(name, *([run for runs in side.values() for run in runs] for side in sides))
    difference = float(ours.mean() - theirs.mean())
    varies = sum(one.variance for one in seeds) > 0
    tested = t_test(difference, [*seeds, *items]) if varies else None
    words = _repeat_words(study, kind, left, right, over, any(given), (len(ours), len(theirs)))
    first = next(iter(sides[0].values()))[0]
    return Comparison(
        kind,
        task,
        metric,
        left,
        right,
        difference,
        ci95=tested.ci95 if tested else None,
        p=tested.p if tested else None,
        p_holm=None,
        pairs=min(len(ours), len(theirs)),
        seeds=words + AND_ITEMS * bool(items),
        rows=first.counts[name],
        items=count_items(first, name),
        primary=False,
    )


def _items(name: str, ours: Sequence[Results], theirs: Sequence[Results]) -> list[Part]:
    """What the choice of items adds to a difference of means over runs; empty where that is not known."""
    means = []
    for side in (ours, theirs):
        rows = [rows_behind(run, name) for run in side]
        if any(one is None for one in rows):
            return []
        known = [one for one in rows if one is not None]
        ids = known[0][1]
        if not all(_equal(ids, one[1]) for one in known):
            return []
        means.append(({lang: np.mean([v[lang] for v, _ in known], axis=0) for lang in ids}, ids))
    (left, ids), (right, other_ids) = means
    if not _equal(ids, other_ids):
        return []
    part = item_part({lang: left[lang] - right[lang] for lang in ids}, ids)
    return [] if part is None else [part]


def _equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[lang], theirs[lang]) for lang in ours
    )


def _repeat_words(
    study: StudyConfig,
    kind: str,
    left: Side,
    right: Side,
    over: Sequence[bool],
    is_given: bool,
    counts: tuple[int, int],
) -> str:
    """What the repeats of a comparison are."""
    several = len(study.seeds) > 1
    mean_of = (
        f"each the mean of {len(study.seeds)} fine-tuning seeds" if several else "each one run"
    )
    if all(over):
        return f"{counts[0]} pretraining seeds, {mean_of}"
    if any(over):
        position = over.index(True)
        trained, given = (left, right) if over[0] else (right, left)
        count = counts[1 - position]
        runs = f"{count} fine-tuning seeds" if count > 1 else "one run"
        return (
            f"{counts[position]} pretraining seeds of {trained[0]}, {mean_of}, and {runs} of {given[0]} "
            "(one given model, unpaired)"
        )
    if kind == "headline":
        of = "given models" if is_given else "one pretraining"
        return f"{counts[0]} fine-tuning seeds of {of}, {_ONE_PRETRAINING}"
    return seed_words(counts[0], None if is_given else study.pretraining_seeds[0])


def seed_words(count: int, pretraining: int | None) -> str:
    """Which fine-tuning seeds, and of which pretraining; None: of a given model."""
    on = "" if pretraining is None else f" on the tower of pretraining seed {pretraining}"
    return f"{count} fine-tuning seed{'s' if count > 1 else ''}{on}"
