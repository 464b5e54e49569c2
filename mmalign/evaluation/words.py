"""Do single words find their translations? A bilingual dictionary as the question.

words/<dictionary>/<a>-<b> or mean/translation@1     word of language a, pool of words of b; a or b is English

Any of a word's translations is right. What is left out, `data/dictionaries/read.py` says.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmalign.core.errors import UserError
from mmalign.data.dictionaries.read import ENGLISH, Dictionary, choose_dictionaries
from mmalign.evaluation.bitext import directions_of_entries, number, on_device
from mmalign.evaluation.lexicon import WordsConfig
from mmalign.evaluation.over_ranks import encode_texts_over_ranks, map_over_ranks
from mmalign.results.aggregates import merge_with_means
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.results.results import Results

EncodeTexts = Callable[[Sequence[str]], np.ndarray]  # texts -> (n, D) float32 of unit length

# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    "translation@1: a word searches all distinct words of the other language by cosine; any of its "
    "translations must come first; equal scores of other words count against the model. At most {words} "
    "English words of each dictionary, drawn at random (seed {seed}), with all their translations; words "
    "that both languages write alike are left out. `mean` averages the directions of all dictionaries"
)


def measure_words(encode_texts: EncodeTexts, config: WordsConfig, results: Results) -> None:
    """Add translation@1 from English to each language and back, and their mean. A collective.

    Raises:
        UserError: dictionaries that cannot be read, or one with fewer than two words.
    """
    asker = f"words `{config.name}`"
    dictionaries = choose_dictionaries(Path(config.folder), config.languages, asker)
    if short := [lang for lang, one in dictionaries.items() if len(one) < 2]:
        raise UserError(
            f"{asker}: the dictionary to `{short[0]}` in {config.folder} has fewer than two single words "
            "that are not written alike; name the others in `languages`"
        )
    name = MetricName("words", config.name, MEAN, (), "translation@1")
    results.protocol[name.prefix] = {
        "how": PROTOCOL,
        "words": config.words,
        "seed": config.seed,
    }

    drawn = {lang: _draw(one, config) for lang, one in dictionaries.items()}
    words = {word for one in drawn.values() for pair in one.items() for word in (pair[0], *pair[1])}
    # Before the ranks part: under ZeRO 3 every call of the model gathers weights from all ranks.
    row_of = {word: row for row, word in enumerate(sorted(words))}
    feature_ND = encode_texts_over_ranks(encode_texts, list(row_of))

    def measure(lang: str) -> Results:
        return _measure_language(
            lambda some: feature_ND[[row_of[word] for word in some]], drawn[lang], name, lang
        )

    # A dictionary is drawn to at most `words`, so all cost about the same.
    parts = map_over_ranks(dict.fromkeys(dictionaries, config.words), measure)
    merge_with_means(results, parts.values())


def _draw(dictionary: Dictionary, config: WordsConfig) -> dict[str, tuple[str, ...]]:
    words = sorted(dictionary)  # the draw must not depend on the order of the file
    if len(words) > config.words:
        rng = np.random.default_rng(config.seed)
        words = [words[i] for i in sorted(rng.choice(len(words), config.words, replace=False))]
    return {word: tuple(dict.fromkeys(dictionary[word])) for word in words}


def _measure_language(
    encode_texts: EncodeTexts, dictionary: Dictionary, name: MetricName, lang: str
) -> Results:
    results = Results(suite="", model={})
    entries = [(english, one) for english, foreign in dictionary.items() for one in foreign]
    (english, a_R), (foreign, b_R) = (number(side) for side in zip(*entries, strict=True))
    a_ND, b_MD = (on_device(encode_texts(words)) for words in (english, foreign))
    there, back = directions_of_entries(a_ND, b_MD, a_R, b_R)
    for pair, direction in ((f"{ENGLISH}-{lang}", there), (f"{lang}-{ENGLISH}", back)):
        results.add(name.of(pair), direction.hits(), chance=direction.chance)
    return results
