"""Where in a model do words meet their translations? Every layer, on words trained on and on words held out.

    lexical/<lexicon>/<language or mean>/<0 ... n or feature>/<trained or held_out>/<metric>

    similarity           cosine of an English word and its translations
    similarity_random    cosine of an English word and all other words of the language
    similarity_gain      the first minus the second: 0 where all words look alike, however near they are
    precision@1          a word finds a translation first, from English and to English together
    csls@1               the same by CSLS, which discounts hubs
    <metric>_centred     the same after each language's mean is subtracted, which needs no training

Shapes: E English and V foreign words, R entries, F width of a vector.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core import distributed
from mmalign.evaluation.alignment import AT_THE_MEAN
from mmalign.evaluation.bitext import NEIGHBOURS, directions_of_entries, number
from mmalign.evaluation.lexicon import Lexicon, LexiconConfig, WordList
from mmalign.evaluation.nearest import chance_at
from mmalign.evaluation.over_ranks import map_over_ranks
from mmalign.models.hidden_states import WordPooling, encode_words
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.aggregates import merge_with_means
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.results.results import Results, ids_of_names

MEASURE = "lexical"
TRAINED, HELD_OUT = "trained", "held_out"
CENTRED = "_centred"
SIMILARITY, GAIN, PRECISION = "similarity", "similarity_gain", "precision@1"

_POOLED = {
    "content": "the mean over a word's tokens, special ones left out",
    "all": "the mean over a word's tokens, special ones included",
}
# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    "hidden states of each layer, 0 being the embeddings and the highest number the last layer, {pooling}; "
    "`feature`: the tower's own output. Single words of dictionaries from English, at most {words} English "
    "words a language (seed {seed}), a share of {held_out} drawn by a hash of the word to be held out; a "
    "held-out word shares neither itself nor a translation with a trained word of any language. "
    "similarity: mean cosine of an English word and its translations; similarity_random: of it and all "
    "other words of the language; similarity_gain: their difference. precision@1: a word searches all drawn "
    "words of the other language, trained or not, by cosine, any translation must come first, equal scores "
    f"count against the model; csls@1: the same by CSLS with k = {NEIGHBOURS} (arXiv 1710.04087); both "
    "directions together. _centred: the mean vector of each language's trained words is taken away first. "
    "`mean` averages the languages"
)


class ProbeConfig(LexiconConfig):
    pooling: WordPooling = "content"
    """content: special tokens are left out; all: they are not, which makes words of a decoder look alike."""


@dataclass(frozen=True)
class _Side:
    """The distinct words of one language, E of them, in the order of their vectors."""

    words: list[str]
    number_R: np.ndarray  # int64, the word of every entry of the list
    asks_E: dict[str, np.ndarray]  # split -> bool, whether a word asks in it


def probe(
    tower: TextEncoder,
    lexicon: Lexicon,
    results: Results,
    pooling: WordPooling = "content",
    measure: str = MEASURE,
    name: str | None = None,
) -> None:
    """Add all metrics of every layer, of each language and of their mean. A collective.

    Args:
        measure, name: the first two parts of the metrics' names; by default `lexical` and the lexicon's own.
    """
    first = MetricName(measure, name or lexicon.name, MEAN, (), "")
    fields = lexicon.config.model_dump(include={"words", "seed", "held_out"})
    results.protocol[first.prefix] = {
        "how": PROTOCOL,
        "pooling": _POOLED[pooling],
        **fields,
    }
    results.data[lexicon.name] = lexicon.sha256
    # Once, on every rank: English words are shared by most languages.
    states = encode_words(tower, lexicon.english, pooling)
    row_of = {word: i for i, word in enumerate(lexicon.english)}

    def of_language(lang: str) -> Results:
        english, foreign = (_side(lexicon.lists[lang], i) for i in (0, 1))
        rows = [row_of[word] for word in english.words]
        part = Results(suite="", model={})
        for layer, state_VF in encode_words(tower, foreign.words, pooling).items():
            both = (states[layer][rows], state_VF)
            a_EF, b_VF = (torch.from_numpy(one).to(distributed.device()) for one in both)
            at = replace(first, language=lang, setting=(layer,))
            _add(part, english, foreign, a_EF, b_VF, at)
            # Means of trained words only: held-out words stay unseen.
            a_EF = centred(a_EF, english.asks_E[TRAINED])
            b_VF = centred(b_VF, foreign.asks_E[TRAINED])
            _add(part, english, foreign, a_EF, b_VF, replace(at, metric=CENTRED))
        return part

    costs = {lang: len(one.entries) for lang, one in lexicon.lists.items()}
    merge_with_means(results, map_over_ranks(costs, of_language).values())


def _side(words: WordList, side: int) -> _Side:
    distinct, number_R = number(entry[side] for entry in words.entries)
    asks_E = {}
    for split, entries in ((TRAINED, words.trained), (HELD_OUT, words.held_out)):
        asking = {entry[side] for entry in entries}
        asks_E[split] = np.array([word in asking for word in distinct])
    return _Side(distinct, number_R, asks_E)


def centred(row_NF: Tensor, is_trained_N: np.ndarray) -> Tensor:
    """The rows minus the mean of the trained ones, at length 1."""
    # A row at that mean has no direction; it becomes short.
    mean_F = row_NF[torch.from_numpy(is_trained_N)].mean(0, dtype=torch.float64)
    return F.normalize((row_NF.double() - mean_F).to(row_NF.dtype), dim=-1, eps=AT_THE_MEAN)


def _add(
    results: Results, english: _Side, foreign: _Side, a_EF: Tensor, b_VF: Tensor, name: MetricName
) -> None:
    """The five metrics of one pair of matrices, of both splits; `name.metric` is put behind their names."""
    same_E, other_E = _similarities(a_EF, b_VF, english.number_R, foreign.number_R)
    # Words of all languages are about an English word, by which they are drawn together; those with several
    # translations about the first one.
    id_E = ids_of_names(english.words)
    id_V = id_E[english.number_R[np.unique(foreign.number_R, return_index=True)[1]]]
    there, back = directions_of_entries(a_EF, b_VF, english.number_R, foreign.number_R)
    hits = {
        PRECISION: (there.hits(), back.hits()),
        "csls@1": (there.csls_hits(back), back.csls_hits(there)),
    }
    for split, asks_E in english.asks_E.items():

        def named(metric: str, split: str = split) -> MetricName:
            return replace(name, setting=(*name.setting, split), metric=metric + name.metric)

        same, random = (float(one[asks_E].mean()) for one in (same_E, other_E))
        results.add(named(SIMILARITY), same, int(asks_E.sum()), chance=random)
        results.add(named(f"{SIMILARITY}_random"), random, int(asks_E.sum()))
        # Were words paired at random, translations would be as near as the others.
        results.add(named(GAIN), (same_E - other_E)[asks_E], chance=0.0, ids=id_E[asks_E])
        asks = (asks_E, foreign.asks_E[split])
        # Of a random order, over the words that ask in both directions.
        chances = [
            chance_at(direction.right.count_Q[one], len(direction.pool_MD), 1)
            for direction, one in zip((there, back), asks, strict=True)
        ]
        chance = float(np.average(chances, weights=[one.sum() for one in asks]))
        for metric, both in hits.items():
            found = np.concatenate([hit[one] for hit, one in zip(both, asks, strict=True)])
            ids = np.concatenate(
                [one[where] for one, where in zip((id_E, id_V), asks, strict=True)]
            )
            results.add(named(metric), found, chance=chance, ids=ids)


def _similarities(
    a_EF: Tensor, b_VF: Tensor, english_R: np.ndarray, foreign_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(E,) float64 each: mean cosine of an English word with its translations, and with all others."""
    row_E, row_V = torch.from_numpy(english_R), torch.from_numpy(foreign_R)
    product_R = (a_EF[row_E] * b_VF[row_V]).sum(1, dtype=torch.float64).cpu().numpy()
    # Exact without the E x V products: those of all pairs add up to the product with the sum of the rows.
    every_E = (a_EF.double() @ b_VF.sum(0, dtype=torch.float64)).cpu().numpy()
    count_E = np.bincount(english_R)
    sum_E = np.bincount(english_R, weights=product_R)
    # A word whose translations are all there is has no others: 0 / 1.
    return sum_E / count_E, (every_E - sum_E) / np.maximum(len(b_VF) - count_E, 1)
