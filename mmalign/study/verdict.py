"""What the comparisons of a study say: the verdict in one sentence, its scope, and a line for each test."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from mmalign.results.formatting import points
from mmalign.results.metric_names import GENERALISED
from mmalign.results.protocol import MEAN_OVER, Protocol
from mmalign.results.statistics import UNTESTED, verdict
from mmalign.study.comparisons import Comparison
from mmalign.study.config import StudyConfig


def answer(comparisons: Sequence[Comparison]) -> list[str]:
    """One verdict for each comparison that the page rests on."""
    lines, perturbed = [], defaultdict[tuple[str, str], Counter[str]](Counter)
    for one in comparisons:
        if not one.primary:
            continue
        variant, _, metric = one.metric.partition("/")
        sides = f"{', '.join(one.left)} against {', '.join(one.right)}"
        word = verdict(one.difference, one.p_holm)
        if not _is_clean(
            one
        ):  # there are many: one line for all, with their number for each verdict
            perturbed[one.task, sides][word] += 1
            continue
        items = f"{one.items} items" if one.items is not None else f"{one.rows} rows"
        tested = f"the seeds give equal numbers, {items}"
        if one.ci95 is not None and one.p_holm is not None:
            low, high = map(points, one.ci95)
            tested = (
                f"95 % interval {low} to {high}, p {one.p_holm:.2g} (Holm), {one.seeds}, {items}"
            )
        lines.append(
            f"{word}: {one.task}, {variant}, {metric}: {sides}: {points(one.difference)} points, {tested}"
        )
    for (task, sides), counts in perturbed.items():
        wanted = ("shown", "worse", "not shown", *([UNTESTED] if counts[UNTESTED] else []))
        words = ", ".join(f"{word} {counts[word]}" for word in wanted)
        lines.append(f"perturbed: {task}: {sides}: {words} (of {counts.total()})")
    return lines


def conclude(comparisons: Sequence[Comparison]) -> str:
    """The verdict in one sentence, from the headline's tests of primary metrics.

    A study without a headline compares methods: then a clause for each.
    """
    headline = [one for one in comparisons if one.primary and one.kind == "headline"]
    methods = [one for one in comparisons if one.primary and one.kind == "method"]
    if headline or not methods:
        return _conclude(headline)
    clauses = []
    for method, other in dict.fromkeys((one.left[1], one.right[1]) for one in methods):
        of_method = [one for one in methods if (one.left[1], one.right[1]) == (method, other)]
        clauses.append(f"{method} against {other}: {_conclude(of_method)}")
    return " ".join(clauses)


def _conclude(headline: Sequence[Comparison]) -> str:
    by_word = defaultdict[str, list[str]](list)
    for task in dict.fromkeys(one.task for one in headline if _is_clean(one)):
        others = defaultdict[str, list[str]](list)
        for one in headline:
            if one.task == task and _is_clean(one):
                variant = "" if one.metric.startswith("clean/") else f" ({GENERALISED})"
                other = one.right[0] if one.kind == "headline" else one.right[1]
                others[verdict(one.difference, one.p_holm)].append(other + variant)
        if len(others) == 1:
            by_word[next(iter(others))].append(task)
        else:
            mixed = [f"{word} against {', '.join(names)}" for word, names in others.items()]
            by_word["mixed"].append(f"on {task} {', '.join(mixed)}")
    if not by_word:
        return "No difference was tested: no comparison has two or more seeds on both sides."
    words = {
        "shown": "yes on",
        "worse": "worse on",
        "not shown": "not shown on",
        UNTESTED: f"{UNTESTED} on",
    }
    parts = [f"{words[word]} {' and '.join(by_word[word])}" for word in words if by_word[word]]
    parts += by_word["mixed"]
    perturbed = Counter(verdict(o.difference, o.p_holm) for o in headline if not _is_clean(o))
    if total := perturbed.total():
        worse = f", worse in {perturbed['worse']}" if perturbed["worse"] else ""
        shown = (
            f"shown in {perturbed['shown']} of {total} tests" if perturbed["shown"] else "not shown"
        )
        parts.append(f"under perturbed texts {shown}{worse}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _is_clean(one: Comparison) -> bool:
    return one.metric.partition("/")[0] in ("clean", GENERALISED)


def scope(
    study: StudyConfig, comparisons: Sequence[Comparison], protocols: Mapping[str, Protocol]
) -> list[str]:
    """What the verdict rests on: sides, seeds, items, languages and training data."""
    head = study.headline
    against = ", ".join(f"{name} ({study.towers[name].supervision})" for name in head.against)
    of_interest = f"{head.tower} ({study.towers[head.tower].supervision})"
    if against:
        lines = [f"{of_interest} against {against}; all fine-tuned by `{head.method}`."]
    else:
        lines = [f"{of_interest}, fine-tuned by several methods."]
    kind = "headline" if against else "method"
    headline = [one for one in comparisons if one.primary and one.kind == kind]
    lines += [
        f"{words[0].upper()}{words[1:]}." for words in dict.fromkeys(o.seeds for o in headline)
    ]
    for task in dict.fromkeys(one.task for one in headline):
        found = defaultdict[str, list[str]](list)
        for variant, rows, items in dict.fromkeys(
            (one.metric.partition("/")[0], one.rows, one.items)
            for one in headline
            if one.task == task
        ):
            found[f"{rows} rows" if items is None else f"{items} items in {rows} rows"].append(
                variant
            )
        protocol = protocols.get(f"text/{task}", {})
        sizes = "; ".join(f"{', '.join(variants)}: {size}" for size, variants in found.items())
        trained = f"trained on {words}; " if (words := protocol.get("trained_on")) else ""
        languages = protocol.get(MEAN_OVER, [])
        lines.append(
            f"{task}: {trained}tested in {', '.join(languages) or 'its languages'}; {sizes}."
        )
    return lines
