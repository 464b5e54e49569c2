"""Do single words find their translations? A bilingual dictionary asks.

words/<dictionary>/<a>-<b> or mean/translation@1     word of language a, pool of words of b; a or b is English

    folder of dictionaries -> English words drawn -> words of both languages encoded -> both directions

A word with several translations is right with any of them. The layouts are those of
`perturbations/dictionaries.py`, MUSE's among them; like there, words that both languages write alike and
English entries of several words are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydantic
import torch

from mmalign.core import distributed
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.dictionaries.read import (
    ENGLISH,
    Dictionary,
    choose_dictionaries,
)
from mmalign.evaluation.alignment import Relevance, Scores, hits_at_1
from mmalign.evaluation.nearest import chance_at
from mmalign.evaluation.retrieval import add_mean
from mmalign.results.results import Results

EncodeTexts = Callable[[Sequence[str]], np.ndarray]
"""Texts -> (n, D) float32 of unit length."""

PROTOCOL = (
    "translation@1: a word searches all distinct words of the other language by cosine; any of its "
    "translations must come first; equal scores of other words count against the model. At most {words} "
    "English words of each dictionary, drawn at random (seed {seed}), with all their translations; words "
    "that both languages write alike are left out. `mean` averages the directions of all dictionaries"
)


class WordsConfig(Section):
    name: str = pydantic.Field(pattern=r"^[\w-]+$")
    """Name of the dictionaries in metric names."""
    folder: str
    """Folder with dictionaries from English: `en-<lang>.tsv`, `en-<lang>.txt` or `<lang>2.txt`."""
    languages: tuple[str, ...] | None = None
    """Only the dictionaries to these languages; none: all in the folder."""
    words: int = pydantic.Field(default=2000, ge=2)
    """How many English words at most are drawn from each dictionary."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Of the draw."""


def measure_words(encode_texts: EncodeTexts, config: WordsConfig, results: Results) -> None:
    """Add translation@1 from English to each language and back, and their mean.

    A collective: every rank calls it with equal weights and equal files, encodes the words of its share of
    the languages, and has the same results afterwards.

    Raises:
        UserError: no such folder, no dictionary in it, a broken line, or a language without a dictionary.
    """
    dictionaries = _chosen(config)
    prefix = f"words/{config.name}"
    results.protocol[prefix] = PROTOCOL.format(words=config.words, seed=config.seed)
    share = list(dictionaries)[distributed.rank() :: distributed.world_size()]
    mine = {
        lang: _measure_language(encode_texts, _drawn(dictionaries[lang], config), prefix, lang)
        for lang in share
    }
    measured = {n: one for part in distributed.gather_objects(mine) for n, one in part.items()}
    for lang in dictionaries:
        results.merge(measured[lang])
    pairs = [pair for lang in dictionaries for pair in (f"{ENGLISH}-{lang}", f"{lang}-{ENGLISH}")]
    add_mean(results, prefix, "translation@1", pairs)


def _chosen(config: WordsConfig) -> dict[str, Dictionary]:
    """Language -> dictionary from English, the wanted ones, sorted by language."""
    asker = f"words `{config.name}`"
    chosen = choose_dictionaries(Path(config.folder), config.languages, asker)
    empty = [lang for lang, one in chosen.items() if len(one) < 2]
    if empty:
        raise UserError(
            f"{asker}: the dictionary to `{empty[0]}` in {config.folder} has fewer than two "
            "single words that are not written alike; name the others in `languages`"
        )
    return chosen


def _drawn(
    dictionary: Mapping[str, tuple[str, ...]], config: WordsConfig
) -> dict[str, tuple[str, ...]]:
    """Some of the English words, in sorted order, with all their translations."""
    words = sorted(dictionary)
    if len(words) > config.words:
        rng = np.random.default_rng(config.seed)
        words = [words[i] for i in sorted(rng.choice(len(words), config.words, replace=False))]
    return {word: tuple(dict.fromkeys(dictionary[word])) for word in words}


def _measure_language(
    encode_texts: EncodeTexts, dictionary: Mapping[str, tuple[str, ...]], prefix: str, lang: str
) -> Results:
    """Both directions of one dictionary."""
    results = Results(suite="", model={})
    english = list(dictionary)
    foreign = list(dict.fromkeys(word for words in dictionary.values() for word in words))
    place = {word: i for i, word in enumerate(foreign)}
    # Every entry of the dictionary as (English word, foreign word), by their places.
    entries = [(i, place[one]) for i, word in enumerate(english) for one in dictionary[word]]
    english_R, foreign_R = (np.array(side, np.int64) for side in zip(*entries, strict=True))
    there = Scores.between(_rows(encode_texts, english), _rows(encode_texts, foreign))
    for pair, scores, query_R, item_R in (
        (f"{ENGLISH}-{lang}", there, english_R, foreign_R),
        (f"{lang}-{ENGLISH}", there.transposed(), foreign_R, english_R),
    ):
        right = Relevance.of_pairs(query_R, item_R)
        chance = chance_at(right.count_Q, len(scores.pool_MD), 1)
        hits = hits_at_1(scores, right)
        results.add(f"{prefix}/{pair}/translation@1", hits, chance=chance)
    return results


def _rows(encode_texts: EncodeTexts, words: list[str]) -> torch.Tensor:
    """(n, D) on this rank's device; vectors that are not numbers become zero, which ties with everything."""
    row_ND = torch.from_numpy(encode_texts(words)).to(distributed.device())
    return row_ND.nan_to_num(0.0, 0.0, 0.0)
