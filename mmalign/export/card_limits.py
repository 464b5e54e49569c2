"""What a model is good for and what it is not, in sentences made from what was measured.

    Source -> uses     what was measured, with its mean and its chance level
           -> limits   lowest languages, nothing above chance, noise, languages never seen or never measured
           -> inputs   where texts are cut, what becomes of pictures

What was not measured is not praised; where nothing was, the card says so.
"""

from collections.abc import Iterable

from mmalign.core.languages import labelled
from mmalign.export.card_results import (
    UNTRAINED,
    Quoted,
    is_of_pairs,
    known_languages,
    lowest,
    part_name,
    quoted,
    single_parts,
)
from mmalign.export.card_training import is_masked, trained_languages
from mmalign.export.markdown import listed, percent, plain
from mmalign.export.source import Source
from mmalign.results.metric_names import MEAN, subjects
from mmalign.results.results import Results
from mmalign.text.tasks.task import CLEAN

_MOST_NAMED = 30  # languages in one sentence
_USES = {
    "retrieval": "finding pictures by texts and texts by pictures",
    "alignment": "finding texts of the same meaning in other languages",
    "zero_shot": "naming pictures with classes written in any measured language",
    "text": "features, or a start, for text tasks with labels in one language",
}


def use_and_limits(source: Source, pictures: bool) -> list[str]:
    """The sentences, in Markdown, those that say most first.

    Args:
        pictures: whether the folder holds the image tower too.
    """
    return [
        *_uses(source, pictures),
        *_measured(source.results),
        *_coverage(source),
        *_inputs(source, pictures),
    ]


def _uses(source: Source, pictures: bool) -> list[str]:
    if source.results is None or not source.results.metrics:
        return ["**Nothing was measured on this model**: how good it is, is not known."]
    measured = [m for m in _USES if subjects(source.results.metrics, m)]
    lines = []
    if measured:
        uses = "; ".join(_USES[m] for m in measured)
        lines.append(f"**Measured uses**: {uses}. Other uses were not measured.")
    if not pictures and {"retrieval", "zero_shot"} & set(measured):
        lines.append(
            "What concerns pictures was measured with the model's image tower, which is not in this folder."
        )
    if "text" in measured:
        lines.append(_what_a_head_needs(source))
    return lines


def _what_a_head_needs(source: Source) -> str:
    if source.encoder is None:
        return (
            "The text tasks were measured with a head on this tower, which is not in this folder."
        )
    return (
        "The text tasks fine-tune a copy of the text tower, or a head on it, from these weights; neither "
        "that copy nor a head is in this folder."
    )


def _measured(results: Results | None) -> list[str]:
    if results is None:
        return []
    numbers = quoted(results)
    clean = [one for one in numbers if _is_told(one)]
    return [
        *(_lowest(results, one) for one in clean),
        *_by_chance(results),
        *_by_untrained(results),
        *_noise(results),
    ]


def _is_told(one: Quoted) -> bool:
    """Whether a number has a sentence of its own: the first of its kind, not under noise."""
    noisy = one.measure == "text" and not (one.tail.startswith(f"{CLEAN}/") or is_of_pairs(one))
    return not noisy and not one.tail.endswith("recall@10")


def _lowest(results: Results, one: Quoted) -> str:
    """Mean, chance, and the five lowest languages or pairs with their counts."""
    told = []
    if (mean := one.name(MEAN)) in results.metrics:
        chance = results.chance.get(mean)
        by_luck = "" if chance is None else f", chance {percent(chance)} %"
        told.append(
            f"mean {percent(results.metrics[mean])} % (n = {results.counts[mean]}){by_luck}"
        )
    parts, alone = lowest(results, one), single_parts(results, one)
    counts = {results.counts[one.name(part)] for part in parts}
    few = [_with_value(results, one, part, with_count=len(counts) > 1) for part in parts]
    kind = "pairs of languages" if is_of_pairs(one) else "languages"
    of = f"lowest of {len(alone)} {kind}: " if len(alone) > len(few) else ""
    each = f" (n = {min(counts)} each)" if len(counts) == 1 else ""
    told.append(f"{of}{', '.join(few)}{each}")
    return (
        f"**{_capital(one.words)}**, {plain(one.subject)} ({plain(one.metric)}): {'; '.join(told)}."
    )


def _with_value(results: Results, one: Quoted, part: str, with_count: bool) -> str:
    value, count = results.metrics[one.name(part)], results.counts[one.name(part)]
    told = f"{plain(part_name(results, one, part))} {percent(value)} %"
    return f"{told} (n = {count})" if with_count else told


def _capital(words: str) -> str:
    return plain(words[:1].upper() + words[1:])


def _by_chance(results: Results) -> list[str]:
    """Where the 95 % interval reaches down to chance."""
    lines = []
    for one in quoted(results):
        names = {part: one.name(part) for part in single_parts(results, one)}
        poor = [
            part
            for part, name in names.items()
            if name in results.ci95 and results.ci95[name][0] <= results.chance.get(name, -1)
        ]
        if poor:
            words = _named(part_name(results, one, part) for part in poor)
            lines.append(
                f"**Not shown to be better than chance** (95 % interval), {plain(one.words)}, "
                f"{plain(one.subject)} ({plain(one.metric)}): {words}."
            )
    return lines


def _by_untrained(results: Results) -> list[str]:
    """Where the model before its training is as good in the mean."""
    untrained = results.baselines.get(UNTRAINED)
    if untrained is None:
        return []
    lines = []
    for one in quoted(results):
        name = one.name(MEAN)
        now, before = results.metrics.get(name), untrained.metrics.get(name)
        if now is not None and before is not None and now <= before:
            lines.append(
                f"**No better than before training**, {plain(one.words)}, {plain(one.subject)} "
                f"({plain(one.metric)}): mean {percent(now)} %, untrained {percent(before)} %."
            )
    return lines


def _noise(results: Results) -> list[str]:
    """What each perturbation takes from each text task, on the same examples."""
    lines = []
    for one in quoted(results):
        name = one.name(MEAN)
        drop = results.metrics.get(f"{name}_drop")
        if drop is not None:
            noise = plain(one.tail.partition("/")[0])
            lines.append(
                f"**Under noise** ({noise}) the {plain(one.metric)} of {plain(one.subject)} falls by "
                f"{percent(drop)} points, to {percent(results.metrics[name])} % (n = {results.counts[name]})."
            )
    return lines


def _coverage(source: Source) -> list[str]:
    """Languages that training saw and nobody measured, and the reverse."""
    seen = set(trained_languages(source.lineage))
    measured = known_languages(source.results) if source.results else set()
    lines = []
    if seen and measured and seen - measured:
        lines.append(f"**Trained, never measured**: {_codes(seen - measured)}.")
    if seen and measured - seen:
        lines.append(
            f"**Measured, but not in the training data that is known**: {_codes(measured - seen)}."
        )
    return lines


def _inputs(source: Source, pictures: bool) -> list[str]:
    lines = [
        f"Texts are cut after {source.tower.max_length} tokens; what stands behind is not seen."
    ]
    if pictures and source.encoder is not None:
        size = source.encoder.model.image_tower.size
        lines.append(
            f"Pictures are squeezed whole to {size} x {size} pixels (bicubic, no crop): long ones are "
            "distorted. In training they stood upright by their EXIF field and transparency lay on white; "
            "most libraries do neither, so do both before."
        )
    if is_masked(source.config):
        lines.append(
            "Training predicted hidden words only: nothing taught this model to compare texts, so its "
            "vectors are a start for fine-tuning rather than for search."
        )
    return lines


def _codes(codes: Iterable[str]) -> str:
    return _named(labelled(code) for code in sorted(codes))


def _named(names: Iterable[str]) -> str:
    """Names in one sentence; of many the first ones and how many more there are."""
    all_names = [plain(name) for name in names]
    if len(all_names) <= _MOST_NAMED:
        return listed(all_names)
    return f"{', '.join(all_names[:_MOST_NAMED])} and {len(all_names) - _MOST_NAMED} more"
