"""Image-text retrieval per language, both directions, with several captions per image.

text_to_image   a caption of the language  -> among all P pictures of the set, its own
image_to_text   a picture with captions in the language -> among all captions of the language, one of its own

retrieval/<set>/<lang>/<direction>/recall@<k>     lang: a code, `mean` (of the languages) or `all` (captions)

    EmbeddedSet, the same on all ranks -> languages dealt out -> Results of each -> gathered, in order

A language is searched in one piece, whatever the number of ranks, so its numbers are the same on any.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from mmalign import distributed
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.index import chance_at, hits_at
from mmalign.evaluation.results import Results

T = TypeVar("T")

PROTOCOL = (
    "all-captions: text to image searches all {pictures} distinct pictures of the set, image to text all "
    "captions of the language; a hit is a right item among the first k; equal scores count against the "
    "model; exact inner-product search (FAISS flat); `mean` averages the languages, `all` the captions"
)


def measure_retrieval(embedded: EmbeddedSet, ks: Sequence[int], results: Results) -> None:
    """Add recall@k of every language, their mean and the whole set to `results`.

    A collective: every rank calls it with the same set and has the same results afterwards.
    """
    pictures = len(embedded.image_PD)
    prefix = f"retrieval/{embedded.name}"
    results.protocol[prefix] = PROTOCOL.format(pictures=pictures)
    measured = for_each_language(embedded, lambda lang: _measure_language(embedded, lang, ks))
    for of_language, _ in measured:
        results.merge(of_language)
    for k in ks:
        of_all = np.concatenate([to_image[k] for _, to_image in measured])
        name = f"{prefix}/all/text_to_image/recall@{k}"
        results.add(name, of_all, chance=min(1.0, k / pictures))
        for direction in ("text_to_image", "image_to_text"):
            add_mean(results, prefix, f"{direction}/recall@{k}", embedded.languages)


def _measure_language(
    embedded: EmbeddedSet, lang: str, ks: Sequence[int]
) -> tuple[Results, dict[int, np.ndarray]]:
    """Both directions of one language, and the hits of its captions at each k."""
    results = Results(suite=embedded.name, model={})
    prefix = f"retrieval/{embedded.name}/{lang}"
    pictures = len(embedded.image_PD)
    text_ND = embedded.text_MD[embedded.language_M == lang]
    picture_N = embedded.picture_M[embedded.language_M == lang]
    to_image = hits_at(text_ND, embedded.image_PD, picture_N, np.arange(pictures), ks)
    described, relevant = np.unique(picture_N, return_counts=True)
    to_text = hits_at(embedded.image_PD[described], text_ND, described, picture_N, ks)
    for k in ks:
        chance = min(1.0, k / pictures)
        results.add(f"{prefix}/text_to_image/recall@{k}", to_image[k], chance=chance)
    for k in ks:
        chance = chance_at(relevant, len(picture_N), k)
        results.add(f"{prefix}/image_to_text/recall@{k}", to_text[k], chance=chance)
    return results, to_image


def for_each_language(embedded: EmbeddedSet, measure: Callable[[str], T]) -> list[T]:
    """What `measure` says of each language, in the order of `embedded.languages`, on every rank.

    Each language is measured on one rank only: the largest first, always on the rank that has the fewest
    captions so far. What comes back is pickled.
    """
    captions = Counter(embedded.language_M.tolist())
    load = [0] * distributed.world_size()
    mine = []
    for lang, count in captions.most_common():
        idlest = load.index(min(load))
        load[idlest] += count
        if idlest == distributed.rank():
            mine.append(lang)
    parts = distributed.gather_objects({lang: measure(lang) for lang in mine})
    measured = {lang: outcome for part in parts for lang, outcome in part.items()}
    return [measured[lang] for lang in embedded.languages]


def add_mean(results: Results, prefix: str, suffix: str, parts: Sequence[str]) -> None:
    """Add `<prefix>/mean/<suffix>`, the plain mean over `parts`, with the number of all queries."""
    names = [f"{prefix}/{part}/{suffix}" for part in parts]
    results.add(
        f"{prefix}/mean/{suffix}",
        float(np.mean([results.metrics[name] for name in names])),
        count=sum(results.counts[name] for name in names),
        chance=float(np.mean([results.chance[name] for name in names])),
    )
