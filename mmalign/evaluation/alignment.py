"""Alignment between languages: does a caption find the caption of the same picture in another language?

alignment/<set>/<a>-<b>/bitext@1     query in language a, pool of captions in language b
alignment/<set>/mean/bitext@1        mean over all ordered pairs

The ranks share the work by the query's language, as in `retrieval.py`.
"""

import numpy as np

from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.index import chance_at, hits_at
from mmalign.evaluation.results import Results
from mmalign.evaluation.retrieval import add_mean, for_each_language

PROTOCOL = (
    "bitext@1: the pictures with captions in both languages, the first caption of each; a caption in the "
    "first language searches those of the second by inner product; the caption of the same picture, or an "
    "equal text, must come first; equal scores of other captions count against the model"
)


def measure_alignment(embedded: EmbeddedSet, results: Results) -> None:
    """Add bitext@1 of every ordered pair of languages that share at least two pictures.

    A collective: every rank calls it with the same set and has the same results afterwards.
    """
    results.protocol[f"alignment/{embedded.name}"] = PROTOCOL
    first = {lang: _first_captions(embedded, lang) for lang in embedded.languages}
    # Equal texts are one label: whoever finds the same words has found the translation.
    label_of_text = {text: i for i, text in enumerate(dict.fromkeys(embedded.texts))}
    label_M = np.array([label_of_text[text] for text in embedded.texts], np.int64)
    parts = for_each_language(embedded, lambda a: _measure_queries(embedded, label_M, first, a))
    for part in parts:
        results.merge(part)
    pairs = [name.split("/")[2] for part in parts for name in part.metrics]
    if pairs:
        add_mean(results, f"alignment/{embedded.name}", "bitext@1", pairs)


def _measure_queries(
    embedded: EmbeddedSet, label_M: np.ndarray, first: dict[str, dict[int, int]], a: str
) -> Results:
    """bitext@1 of the queries in language `a` in every other language.

    Args:
        label_M: int64, equal where texts are equal.
        first: language -> picture -> place of its first caption.
    """
    results = Results(suite=embedded.name, model={})
    for b in embedded.languages:
        shared = sorted(first[a].keys() & first[b].keys())
        if a == b or len(shared) < 2:
            continue
        query = np.array([first[a][picture] for picture in shared])
        pool = np.array([first[b][picture] for picture in shared])
        hits = hits_at(
            embedded.text_MD[query], embedded.text_MD[pool], label_M[pool], label_M[pool], (1,)
        )[1]
        _, place, copies = np.unique(label_M[pool], return_inverse=True, return_counts=True)
        chance = chance_at(copies[place], len(pool), 1)
        results.add(f"alignment/{embedded.name}/{a}-{b}/bitext@1", hits, chance=chance)
    return results


def _first_captions(embedded: EmbeddedSet, lang: str) -> dict[int, int]:
    """Picture -> place of its first caption in the language."""
    places = np.flatnonzero(embedded.language_M == lang).tolist()
    return {int(embedded.picture_M[place]): place for place in reversed(places)}
