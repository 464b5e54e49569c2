"""The text tasks of the embedded data: what kind of thing an emoji is, and what a scene holds.

    concept ------------------------------> name per language, group          emoji_category
    combination i -+-> caption per language (premise) ------+
                   +-> asked concept per language (hypothesis) -> label       emoji_entailment

`emoji_category` trains on the English names of the 200 concepts and tests on their names in the other
languages. `emoji_entailment` asks whether a caption (premise) holds an emoji (hypothesis): `contains` or
`absent`, as many of each. Dev and test rows are the same questions in every language, row by row, so that
a premise in one language can be asked about with the hypothesis of another one. No combination
stands in two of train, dev and test, and none that a test picture shows stands in train; no picture is drawn.

Row i of a split is a pure function of (config, seed, split, i).
"""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from mmalign.data.sources.emoji_concepts import Concept
from mmalign.data.sources.emoji_scenes import (
    EmojiScenes,
    Plan,
    build_plan,
    draw_combination,
    write_caption,
)

CATEGORY = "emoji_category"
ENTAILMENT = "emoji_entailment"
CONTAINS, ABSENT = "contains", "absent"

# Separate random streams of one seed, beside those of the scenes, which have 0 to 2.
_STREAM = {"kept": 3, "train": 4, "dev": 5, "test": 6}


class LabelledTexts(NamedTuple):
    """One row of a task: texts of one language and their label; `id` is the same in every language."""

    id: str
    lang: str
    texts: tuple[str, ...]
    target: str


TaskRow = tuple[str, str, LabelledTexts]
"""(task, split, row)"""


def read_tasks(config: EmojiScenes, seed: int) -> Iterator[TaskRow]:
    """The rows of both tasks, in an order that never changes.

    Raises:
        UserError: a language that has no names here, or more captions a scene than languages.
    """
    plan = build_plan(config, seed)  # outside the generators: a wrong language fails now, not later
    return chain(_category_rows(plan), _entailment_rows(plan))


def _category_rows(plan: Plan) -> Iterator[TaskRow]:
    """These do not depend on the seed."""
    source = plan.config.languages[0]
    for lang in plan.config.languages:
        for concept in (plan.concepts[i] for i in plan.paired):
            row_id = f"{ord(concept.character):x}"
            yield (
                CATEGORY,
                "train" if lang == source else "test",
                LabelledTexts(row_id, lang, (concept.names[lang],), concept.group),
            )


def _entailment_rows(plan: Plan) -> Iterator[TaskRow]:
    sizes, languages = plan.config.entailment, plan.config.languages
    kept = _kept_combinations(plan)
    kept_out = plan.held_out | set(kept)
    for index in range(sizes.train):
        rng = np.random.default_rng((plan.seed, _STREAM["train"], index))
        combination = draw_combination(rng, plan.paired, plan.config.per_scene, kept_out)
        yield from _ask(rng, plan, "train", index, combination, languages[:1])
    for split, its_own in (("dev", kept[sizes.test :]), ("test", kept[: sizes.test])):
        for index, combination in enumerate(its_own):
            rng = np.random.default_rng((plan.seed, _STREAM[split], index))
            yield from _ask(rng, plan, split, index, combination, languages)


def _kept_combinations(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Different combinations for the test rows and then for the dev rows."""
    rng = np.random.default_rng((plan.seed, _STREAM["kept"]))
    chosen: dict[tuple[int, ...], None] = {}  # a dict keeps the order in which they were drawn
    while len(chosen) < plan.config.entailment.test + plan.config.entailment.dev:
        chosen[draw_combination(rng, plan.paired, plan.config.per_scene)] = None
    return tuple(chosen)


def _ask(
    rng: np.random.Generator,
    plan: Plan,
    split: str,
    index: int,
    combination: tuple[int, ...],
    languages: tuple[str, ...],
) -> Iterator[TaskRow]:
    """One question in each language: the same but for the order of the caption's names.

    Of four rows two are `contains`, one is `absent` with an emoji of the group of a shown one (hard), and
    one is `absent` with an emoji of another group.
    """
    shown = [plan.concepts[i] for i in combination]
    if index % 2 == 0:
        asked, label = shown[rng.integers(len(shown))], CONTAINS
    else:
        paired = [plan.concepts[i] for i in plan.paired]
        asked, label = _draw_absent(rng, paired, shown, hard=index % 4 == 1), ABSENT
    for lang in languages:
        texts = (write_caption(rng, shown, lang), asked.names[lang])
        yield ENTAILMENT, split, LabelledTexts(f"{split}-{index:07d}", lang, texts, label)


def _draw_absent(
    rng: np.random.Generator, concepts: list[Concept], shown: list[Concept], hard: bool
) -> Concept:
    """A concept that no language can take for one of the shown; `hard`: of the group of one of them."""
    groups = {concept.group for concept in shown}
    order = (concepts[i] for i in rng.permutation(len(concepts)))
    return next(
        concept
        for concept in order
        if (concept.group in groups) == hard
        and not any(_reads_like(concept, other) for other in shown)
    )


def _reads_like(asked: Concept, shown: Concept) -> bool:
    """Whether a caption with the name of `shown` seems to hold `asked`.

    That is where the asked name is a part of the shown one in some language (`ear` of `teddy bear`, 口 of
    口紅), or where two languages give one name to both (`batterie`: a battery in German, drums in French).
    """
    parts = any(asked.names[lang] in shown.names[lang] for lang in shown.names)
    return parts or bool(set(asked.names.values()) & set(shown.names.values()))
