"""Code-switching of training texts, drawn again for every batch.

CoSDA-ML (Qin et al. 2020, arXiv 2006.06402; kodenii/CoSDA-ML@6778653): a sentence is switched with one
probability, a word of it with another; the language is drawn evenly for each word, whether it knows the
word or not, and then one of its translations, evenly. The authors advise a grid from 0.1 to 0.9 for both
probabilities; the defaults here are ours. Ours too: words are matched without the punctuation around them,
and kept words keep their capitals. A row is switched by the dictionaries from its own language; a row in a
language that has none stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import regex
from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.dictionaries.casing import lower
from mmalign.data.dictionaries.read import Dictionary
from mmalign.text.perturbations.code_mix import tables_from
from mmalign.text.tasks.task import Example

# Not `re`: there the vowel signs of Indic scripts are not part of a word.
_IN_PUNCTUATION = regex.compile(r"(\W*)(.*?)(\W*)", regex.DOTALL)


class CodeSwitchConfig(Section):
    """Words replaced by translations."""

    kind: Literal["code_switch"]
    dictionaries: str
    """Folder of bilingual dictionaries; relative to where the command runs."""
    languages: tuple[str, ...] | None = None
    """Languages to switch to; none: all that the folder holds."""
    sentence_ratio: float = Field(default=0.5, ge=0, le=1)
    """Probability of a sentence to be switched."""
    token_ratio: float = Field(default=0.5, ge=0, le=1)
    """Probability of a word of such a sentence to be replaced, if the language drawn knows it."""

    def rewriter(
        self, examples: Sequence[Example], source: str | None
    ) -> Callable[[Example, np.random.Generator], Example]:
        """See `method.py`; `tables_of` says before whether any example can change."""
        words = has_tags(examples)
        return lambda one, random: switch(one, _tables(self, one.lang), self, random, words)


def tables_of(
    config: CodeSwitchConfig, examples: Sequence[Example]
) -> dict[str, Mapping[str, Dictionary]]:
    """By language of the examples: its dictionaries by target language, none where none leads from it.

    Raises:
        UserError: dictionaries that cannot be used, or none from any of the languages into `languages`.
    """
    languages = dict.fromkeys(one.lang for one in examples)
    found = {lang: _tables(config, lang) for lang in languages}
    if not any(found.values()):
        named = ", ".join(f"`{lang}`" for lang in languages)
        raise UserError(
            f"{config.dictionaries}: no dictionary leads from {named} to `languages`; add one"
        )
    return found


@lru_cache(maxsize=128)  # every language of a training, each asked for with every row
def _tables(config: CodeSwitchConfig, lang: str) -> Mapping[str, Dictionary]:
    return tables_from(lang, Path(config.dictionaries), config.languages) or {}


def has_tags(examples: Sequence[Example]) -> bool:
    """Whether the targets are one tag per word; retrieval's ids for (query, candidate) are not."""
    targets = [(one.target, len(one.texts)) for one in examples]
    return all(isinstance(tags, tuple) and len(tags) == words for tags, words in targets)


def switch(
    example: Example,
    tables: Mapping[str, Dictionary],
    config: CodeSwitchConfig,
    random: np.random.Generator,
    words: bool = False,
) -> Example:
    """The example with some of its words translated; id, language and target are kept.

    Args:
        tables: from the example's language, by target language; without any nothing changes.
        words: whether the texts are the words of one sentence; each remains one text.
    """

    def sentence(words: Sequence[str]) -> Sequence[str]:
        if random.random() >= config.sentence_ratio:
            return words
        by_language = tuple(tables.values())
        # As many numbers whatever is chosen, so that one word's choice does not change the next word's.
        draws = random.random((len(words), 3))
        switched = list(words)
        for i, (chosen, which, translation) in enumerate(draws):
            if chosen < config.token_ratio:
                before, core, after = _IN_PUNCTUATION.fullmatch(words[i]).groups()
                table = by_language[int(which * len(by_language))]
                # A word that the language does not know is kept.
                if found := table.get(lower(core, example.lang)):
                    switched[i] = before + found[int(translation * len(found))] + after
        return switched

    if not tables:
        return example
    # A sentence is a text of an example, or all the words of an example whose words are labelled.
    if words:
        return replace(example, texts=tuple(sentence(example.texts)))
    texts = (" ".join(sentence(text.split(" "))) for text in example.texts)
    return replace(example, texts=tuple(texts))
