"""One perturbation of the examples of one language.

    examples of one language, kind of task, configuration -> texts that may change -> noisy examples
                                                           -> None where it does not exist

Which texts change, by the kind of task:

    classification, similarity, multiple_choice   every text
    tagging     every word on its own, by noise inside words only (characters, keyboard, letter case):
                there are as many words as tags before and after; a short word may stay as it is
    span_qa     the question only, so that the answers still stand where they start
    retrieval   the text

A target never changes. What a perturbation can change at all stands at the top of its file.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic

from mmalign.data.dictionaries import casing
from mmalign.text.perturbations import (
    characters,
    code_mix,
    keyboard,
    surface,
    typo_lists,
    words,
)
from mmalign.text.perturbations.characters import CharactersConfig
from mmalign.text.perturbations.code_mix import CodeMixConfig
from mmalign.text.perturbations.keyboard import KeyboardConfig
from mmalign.text.perturbations.sampling import noise_share, replaced_share, text_generator
from mmalign.text.perturbations.surface import SurfaceConfig
from mmalign.text.perturbations.typo_lists import TypoListConfig
from mmalign.text.perturbations.words import WordsConfig
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.task import Kind

PerturbationConfig = Annotated[
    CharactersConfig
    | KeyboardConfig
    | WordsConfig
    | SurfaceConfig
    | TypoListConfig
    | CodeMixConfig,
    pydantic.Field(discriminator="kind"),
]

Change = Callable[[str, np.random.Generator], str]
"""Makes a text noisy."""

_WORD_EDITS = {
    "drop": words.drop_words,
    "swap": words.swap_words,
    "duplicate": words.duplicate_words,
}


def perturb(
    examples: Sequence[Example], kind: Kind, config: PerturbationConfig, seed: int, draw: int = 0
) -> list[Example] | None:
    """The examples with noisy texts; None: the language or the kind of task knows no such noise.

    None stands for: no keyboard layout, list or dictionary of the language, no letter case in its
    script, or noise between words in a tagging task. The same arguments give the same noise, whatever
    the other examples are (but for the alphabet of `characters`, which all texts make up). A text that
    holds nothing to change comes back as it is: report `changed_share` beside a score.

    Args:
        examples: of one language.
        draw: number of the repetition, where noise is drawn several times.

    Raises:
        UserError: a folder of the configuration is missing, or a file in it is broken.
    """
    if not examples:
        return []
    assert len({example.lang for example in examples}) == 1, "perturb one language at a time"
    change = _change_inside_words(examples, kind, config)
    if change is None and kind != "tagging":
        change = _change_between_words(examples[0].lang, config)
    if change is None:
        return None
    return [_changed(example, kind, change, seed, draw) for example in examples]


def texts_that_change(example: Example, kind: Kind) -> range:
    """The numbers of the texts that a perturbation may change."""
    return range(1) if kind == "span_qa" else range(len(example.texts))


def changed_share(clean: Sequence[Example], noisy: Sequence[Example]) -> float:
    """The share of the examples that changed: lists and dictionaries do not know the words of all."""
    changed = [one.texts != other.texts for one, other in zip(clean, noisy, strict=True)]
    return float(np.mean(changed)) if changed else 0.0


def _changed(example: Example, kind: Kind, change: Change, seed: int, draw: int) -> Example:
    texts = list(example.texts)
    for i in texts_that_change(example, kind):
        texts[i] = change(texts[i], text_generator(seed, draw, example.id, i))
    return replace(example, texts=tuple(texts))


def _change_inside_words(
    examples: Sequence[Example], kind: Kind, config: PerturbationConfig
) -> Change | None:
    lang = examples[0].lang
    texts = [one.texts[i] for one in examples for i in texts_that_change(one, kind)]
    # A whole text always changes; of single words only the share that the severity says.
    least = 0 if kind == "tagging" else 1
    share = noise_share(config.severity)
    match config:
        case CharactersConfig():
            alphabet = characters.alphabet_of(texts)
            return partial(characters.typos, share=share, alphabet=alphabet, least=least)
        case KeyboardConfig():
            neighbours = keyboard.neighbours_of(lang)
            if neighbours is None or not keyboard.can_slip(texts, neighbours):
                return None
            return partial(keyboard.slips, share=share, neighbours=neighbours, least=least)
        case SurfaceConfig(edit="upper" | "lower" | "swapped" as edit):
            if not casing.has_case(texts):
                return None
            share = replaced_share(config.severity)
            return partial(surface.change_case, share=share, edit=edit, lang=lang, least=least)
    return None


def _change_between_words(lang: str, config: PerturbationConfig) -> Change | None:
    share = replaced_share(config.severity)
    match config:
        case WordsConfig():
            return partial(_WORD_EDITS[config.edit], share=noise_share(config.severity))
        case SurfaceConfig(edit="punctuation_removed"):
            return partial(surface.remove_punctuation, share=share)
        case SurfaceConfig(edit="punctuation_doubled"):
            return partial(surface.double_punctuation, share=share)
        case SurfaceConfig(edit="punctuation_added"):
            return partial(surface.add_punctuation, count=config.severity, lang=lang)
        case TypoListConfig():
            typos = typo_lists.read_typos(Path(config.folder), lang)
            return (
                partial(typo_lists.misspell, share=share, typos=typos, lang=lang) if typos else None
            )
        case CodeMixConfig():
            tables = code_mix.tables_from(lang, Path(config.folder), config.languages)
            return partial(code_mix.mix, share=share, tables=tables, lang=lang) if tables else None
    return None
