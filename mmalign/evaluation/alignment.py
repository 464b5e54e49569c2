"""Alignment between languages: does a caption find the caption of the same picture in another language?

alignment/<set>/<a>-<b>/bitext@1     query in language a, pool of captions in language b
alignment/<set>/mean/bitext@1        mean over all ordered pairs
"""

from itertools import permutations

import numpy as np

from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.index import chance_at, hits_at
from mmalign.evaluation.results import Results
from mmalign.evaluation.retrieval import add_mean

PROTOCOL = (
    "bitext@1: the pictures with captions in both languages, the first caption of each; a caption in the "
    "first language searches those of the second by inner product; the caption of the same picture, or an "
    "equal text, must come first; equal scores of other captions count against the model"
)


def measure_alignment(embedded: EmbeddedSet, results: Results) -> None:
    """Add bitext@1 of every ordered pair of languages that share at least two pictures."""
    results.protocol[f"alignment/{embedded.name}"] = PROTOCOL
    first = {lang: _first_captions(embedded, lang) for lang in embedded.languages}
    # Equal texts are one label: whoever finds the same words has found the translation.
    label_of_text = {text: i for i, text in enumerate(dict.fromkeys(embedded.texts))}
    label_M = np.array([label_of_text[text] for text in embedded.texts], np.int64)
    pairs = []
    for a, b in permutations(embedded.languages, 2):
        shared = sorted(first[a].keys() & first[b].keys())
        if len(shared) < 2:
            continue
        query = np.array([first[a][picture] for picture in shared])
        pool = np.array([first[b][picture] for picture in shared])
        hits = hits_at(
            embedded.text_MD[query], embedded.text_MD[pool], label_M[pool], label_M[pool], (1,)
        )[1]
        _, place, copies = np.unique(label_M[pool], return_inverse=True, return_counts=True)
        chance = chance_at(copies[place], len(pool), 1)
        results.add(f"alignment/{embedded.name}/{a}-{b}/bitext@1", hits, chance=chance)
        pairs.append(f"{a}-{b}")
    if pairs:
        add_mean(results, f"alignment/{embedded.name}", "bitext@1", pairs)


def _first_captions(embedded: EmbeddedSet, lang: str) -> dict[int, int]:
    """Picture -> place of its first caption in the language."""
    places = np.flatnonzero(embedded.language_M == lang).tolist()
    return {int(embedded.picture_M[place]): place for place in reversed(places)}
