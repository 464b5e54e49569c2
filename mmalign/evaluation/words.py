"""Do single words find their translations? A bilingual dictionary as the question.

words/<dictionary>/<a>-<b> or mean/translation@1     word of language a, pool of words of b; a or b is English

    folder of dictionaries -> English words drawn -> words of both languages encoded -> both directions

Any of a word's translations is right. The layouts are those of `data/dictionaries/read.py`, MUSE's among
them; words that both languages write alike and English entries of several words are left out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmalign.core.errors import UserError
from mmalign.data.dictionaries.read import ENGLISH, Dictionary, choose_dictionaries
from mmalign.evaluation.bitext import directions_of_entries, on_device
from mmalign.evaluation.lexicon import WordsConfig
from mmalign.evaluation.over_ranks import map_over_ranks
from mmalign.results.aggregates import merge_with_means
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.results.results import Results

EncodeTexts = Callable[[Sequence[str]], np.ndarray]
"""Texts -> (n, D) float32 of unit length."""

# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    "translation@1: a word searches all distinct words of the other language by cosine; any of its "
    "translations must come first; equal scores of other words count against the model. At most {words} "
    "English words of each dictionary, drawn at random (seed {seed}), with all their translations; words "
    "that both languages write alike are left out. `mean` averages the directions of all dictionaries"
)


def measure_words(encode_texts: EncodeTexts, config: WordsConfig, results: Results) -> None:
    """Add translation@1 from English to each language and back, and their mean.

    A collective: every rank calls it with equal weights and equal files, encodes the words of its share of
    the languages, and has the same results afterwards.

    Raises:
        UserError: no such folder, no dictionary in it, a broken line, or a language without a dictionary.
    """
    asker = f"words `{config.name}`"
    dictionaries = choose_dictionaries(Path(config.folder), config.languages, asker)
    if short := [lang for lang, one in dictionaries.items() if len(one) < 2]:
        raise UserError(
            f"{asker}: the dictionary to `{short[0]}` in {config.folder} has fewer than two "
            "single words that are not written alike; name the others in `languages`"
        )
    name = MetricName("words", config.name, MEAN, (), "translation@1")
    results.protocol[name.prefix] = PROTOCOL.format(words=config.words, seed=config.seed)

    def measure(lang: str) -> Results:
        return _measure_language(encode_texts, _draw(dictionaries[lang], config), name, lang)

    # A dictionary is drawn to at most `words`, so all cost about the same.
    parts = map_over_ranks(dict.fromkeys(dictionaries, config.words), measure)
    merge_with_means(results, parts.values())


def _draw(dictionary: Dictionary, config: WordsConfig) -> dict[str, tuple[str, ...]]:
    """Some of the English words, in sorted order, with all their translations."""
    words = sorted(dictionary)  # the draw must not depend on the order of the file
    if len(words) > config.words:
        rng = np.random.default_rng(config.seed)
        words = [words[i] for i in sorted(rng.choice(len(words), config.words, replace=False))]
    return {word: tuple(dict.fromkeys(dictionary[word])) for word in words}


def _measure_language(
    encode_texts: EncodeTexts, dictionary: Dictionary, name: MetricName, lang: str
) -> Results:
    """Both directions of one dictionary."""
    results = Results(suite="", model={})
    number: dict[str, int] = {}  # of a foreign word, in the order of their first entries
    entries = [
        (i, number.setdefault(word, len(number)))
        for i, words in enumerate(dictionary.values())
        for word in words
    ]
    a_ND, b_MD = (on_device(encode_texts(list(words))) for words in (dictionary, number))
    there, back = directions_of_entries(a_ND, b_MD, *np.array(entries, np.int64).T)
    for pair, direction in ((f"{ENGLISH}-{lang}", there), (f"{lang}-{ENGLISH}", back)):
        results.add(name.of(pair), direction.hits(), chance=direction.chance)
    return results
