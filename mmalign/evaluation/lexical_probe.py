"""Where in a model do words meet their translations? Every layer, on words trained on and on words held out.

    lexical/<lexicon>/<language or mean>/<0 ... n or feature>/<trained or held_out>/<metric>

    similarity           cosine of an English word and its translations
    similarity_random    cosine of an English word and all other words of the language
    similarity_gain      the first less the second: 0 where all words look alike, however near they are
    precision@1          a word finds a translation first, from English and to English together
    csls@1               the same by CSLS, which discounts hubs
    <metric>_centred     the same after each language's mean is taken away, which needs no training

    Lexicon -> words of both languages -> unit vectors of every layer -> a value a word -> Results

Means for the centring are those of the *trained* words, so that held-out words stay unseen.
Shapes: E English and V foreign words, R entries, F width of a vector.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core import distributed
from mmalign.evaluation.alignment import NEIGHBOURS, Relevance, Scores, hits_at_1, mean_of_nearest
from mmalign.evaluation.lexicon import Lexicon, LexiconConfig, WordList
from mmalign.evaluation.nearest import chance_at
from mmalign.models.hidden_states import WordPooling, encode_words
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import MEAN
from mmalign.results.results import Results

MEASURE = "lexical"
TRAINED, HELD_OUT = "trained", "held_out"
CENTRED = "_centred"
SIMILARITY, GAIN, PRECISION = "similarity", "similarity_gain", "precision@1"

_AT_THE_MEAN = 1e-4  # vectors that differ from their mean by less differ by rounding
_POOLED = {
    "content": "the mean over a word's tokens, special ones left out",
    "all": "the mean over a word's tokens, special ones included",
}
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
class _Words:
    """The words of one language and their places in the two matrices of vectors.

    Attributes:
        english, foreign: distinct words.
        english_R, foreign_R: int64, the places of both words of every entry.
        asked_E, asked_V: split -> (E,) and (V,) bool, the words that ask in it.
    """

    english: list[str]
    foreign: list[str]
    english_R: np.ndarray
    foreign_R: np.ndarray
    asked_E: dict[str, np.ndarray]
    asked_V: dict[str, np.ndarray]

    @classmethod
    def of(cls, words: WordList) -> "_Words":
        english, foreign = (list(dict.fromkeys(side)) for side in zip(*words.entries, strict=True))
        place_E = {word: i for i, word in enumerate(english)}
        place_V = {word: i for i, word in enumerate(foreign)}
        splits = {TRAINED: words.trained, HELD_OUT: words.held_out}
        asked = {
            split: [set(side) for side in zip(*of, strict=True)] for split, of in splits.items()
        }
        return cls(
            english,
            foreign,
            np.array([place_E[word] for word, _ in words.entries], np.int64),
            np.array([place_V[word] for _, word in words.entries], np.int64),
            {split: np.array([one in of[0] for one in english]) for split, of in asked.items()},
            {split: np.array([one in of[1] for one in foreign]) for split, of in asked.items()},
        )


def probe(
    tower: TextEncoder,
    lexicon: Lexicon,
    results: Results,
    pooling: WordPooling = "content",
    measure: str = MEASURE,
    name: str | None = None,
) -> None:
    """Add all metrics of every layer, of each language and of their mean.

    A collective: every rank calls it with equal weights and equal files, measures its share of the languages,
    and has the same results afterwards.

    Args:
        measure, name: the first two parts of the metrics' names; by default `lexical` and the lexicon's own.
    """
    prefix = f"{measure}/{name or lexicon.name}"
    fields = lexicon.config.model_dump(include={"words", "seed", "held_out"})
    results.protocol[prefix] = PROTOCOL.format(pooling=_POOLED[pooling], **fields)
    results.data[lexicon.name] = lexicon.sha256
    english = lexicon.english
    states = encode_words(tower, english, pooling)
    place = {word: i for i, word in enumerate(english)}
    mine = {}
    for lang in list(lexicon.lists)[distributed.rank() :: distributed.world_size()]:
        words = _Words.of(lexicon.lists[lang])
        rows = [place[word] for word in words.english]
        ours = {layer: state[rows] for layer, state in states.items()}
        theirs = encode_words(tower, words.foreign, pooling)
        mine[lang] = _measure_language(words, ours, theirs, f"{prefix}/{lang}")
    measured = {n: one for part in distributed.gather_objects(mine) for n, one in part.items()}
    for lang in lexicon.lists:
        results.merge(measured[lang])
    _add_means(results, prefix, list(lexicon.lists))


def _measure_language(
    words: _Words, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], prefix: str
) -> Results:
    """Every layer of one language, as it is and centred."""
    results = Results(suite="", model={})
    for layer in ours:
        a_EF, b_VF = (
            torch.from_numpy(one[layer]).to(distributed.device()) for one in (ours, theirs)
        )
        _add(results, words, a_EF, b_VF, f"{prefix}/{layer}", "")
        a_EF = centred(a_EF, words.asked_E[TRAINED])
        b_VF = centred(b_VF, words.asked_V[TRAINED])
        _add(results, words, a_EF, b_VF, f"{prefix}/{layer}", CENTRED)
    return results


def centred(row_NF: Tensor, is_trained_N: np.ndarray) -> Tensor:
    """The rows less the mean of the trained ones, at length 1; a row that lies at that mean becomes short."""
    mean_F = row_NF[torch.from_numpy(is_trained_N)].mean(0, dtype=torch.float64)
    return F.normalize((row_NF.double() - mean_F).to(row_NF.dtype), dim=-1, eps=_AT_THE_MEAN)


def _add(
    results: Results, words: _Words, a_EF: Tensor, b_VF: Tensor, prefix: str, suffix: str
) -> None:
    """The five metrics of one pair of matrices, of both splits."""
    same_E, other_E = _similarities(a_EF, b_VF, words)
    hits = _hits(a_EF, b_VF, words)
    for split, asked_E in words.asked_E.items():
        head = f"{prefix}/{split}"
        same, random = (float(one[asked_E].mean()) for one in (same_E, other_E))
        results.add(f"{head}/{SIMILARITY}{suffix}", same, int(asked_E.sum()), chance=random)
        results.add(f"{head}/{SIMILARITY}_random{suffix}", random, int(asked_E.sum()))
        # Were words paired at random, translations would be as near as the others.
        results.add(f"{head}/{GAIN}{suffix}", (same_E - other_E)[asked_E], chance=0.0)
        asked = (asked_E, words.asked_V[split])
        chance = _chance(words, asked)
        for metric, both in hits.items():
            found = np.concatenate([hit[one] for hit, one in zip(both, asked, strict=True)])
            results.add(f"{head}/{metric}{suffix}", found, chance=chance)


def _similarities(a_EF: Tensor, b_VF: Tensor, words: _Words) -> tuple[np.ndarray, np.ndarray]:
    """(E,) float64 each: mean cosine of an English word with its translations, and with all other words.

    Exact without the E x V products: those of all pairs add up to the product with the sum of the rows.
    """
    place_E, place_V = torch.from_numpy(words.english_R), torch.from_numpy(words.foreign_R)
    product_R = (a_EF[place_E] * b_VF[place_V]).sum(1, dtype=torch.float64).cpu().numpy()
    every_E = (a_EF.double() @ b_VF.sum(0, dtype=torch.float64)).cpu().numpy()
    count_E = np.bincount(words.english_R)
    sum_E = np.bincount(words.english_R, weights=product_R)
    return sum_E / count_E, (every_E - sum_E) / np.maximum(len(b_VF) - count_E, 1)


def _hits(a_EF: Tensor, b_VF: Tensor, words: _Words) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> whether each English word, and each foreign one, finds a translation first."""
    there = Scores.between(a_EF, b_VF)
    back = there.transposed()
    right_E = Relevance.of_pairs(words.english_R, words.foreign_R)
    right_V = Relevance.of_pairs(words.foreign_R, words.english_R)
    # CSLS is 2 cos(x, y) - r(x) - r(y); what is the same for all items of a query decides nothing.
    hub_E, hub_V = mean_of_nearest(there) / 2, mean_of_nearest(back) / 2
    return {
        PRECISION: (hits_at_1(there, right_E), hits_at_1(back, right_V)),
        "csls@1": (hits_at_1(there, right_E, hub_V), hits_at_1(back, right_V, hub_E)),
    }


def _chance(words: _Words, asked: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of first places that luck would get right, over the words that ask in both directions."""
    sides = ((words.english_R, words.foreign), (words.foreign_R, words.english))
    counts = [np.bincount(query_R)[one] for (query_R, _), one in zip(sides, asked, strict=True)]
    luck = [chance_at(count, len(pool), 1) for count, (_, pool) in zip(counts, sides, strict=True)]
    return float(np.average(luck, weights=[len(count) for count in counts]))


def _add_means(results: Results, prefix: str, languages: list[str]) -> None:
    """Every metric's plain mean over the languages, with the number of all words that asked."""
    first = f"{prefix}/{languages[0]}/"
    for tail in [name.removeprefix(first) for name in results.metrics if name.startswith(first)]:
        names = [f"{prefix}/{lang}/{tail}" for lang in languages]
        chances = [results.chance[name] for name in names if name in results.chance]
        results.add(
            f"{prefix}/{MEAN}/{tail}",
            float(np.mean([results.metrics[name] for name in names])),
            count=sum(results.counts[name] for name in names),
            chance=float(np.mean(chances)) if chances else None,
        )
