"""Image-text retrieval per language, both directions, with several captions per image.

text_to_image   a caption of the language  -> among all P pictures of the set, its own
image_to_text   a picture with captions in the language -> among all captions of the language, one of its own

retrieval/<set>/<lang>/<direction>/recall@<k>     lang: a code, `mean` (of the languages) or `all` (captions)
"""

from collections.abc import Sequence

import numpy as np

from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.index import chance_at, hits_at
from mmalign.evaluation.results import Results

PROTOCOL = (
    "all-captions: text to image searches all {pictures} distinct pictures of the set, image to text all "
    "captions of the language; a hit is a right item among the first k; equal scores count against the "
    "model; exact inner-product search (FAISS flat); `mean` averages the languages, `all` the captions"
)


def measure_retrieval(embedded: EmbeddedSet, ks: Sequence[int], results: Results) -> None:
    """Add recall@k of every language, their mean and the whole set to `results`."""
    pictures = len(embedded.image_PD)
    results.protocol[f"retrieval/{embedded.name}"] = PROTOCOL.format(pictures=pictures)
    label_P = np.arange(pictures)
    to_image = hits_at(embedded.text_MD, embedded.image_PD, embedded.picture_M, label_P, ks)
    for lang in embedded.languages:
        of_lang_M = embedded.language_M == lang
        prefix = f"retrieval/{embedded.name}/{lang}"
        for k in ks:
            name = f"{prefix}/text_to_image/recall@{k}"
            results.add(name, to_image[k][of_lang_M], chance=min(1.0, k / pictures))
        label_of_caption = embedded.picture_M[of_lang_M]
        described, relevant = np.unique(label_of_caption, return_counts=True)
        to_text = hits_at(
            embedded.image_PD[described],
            embedded.text_MD[of_lang_M],
            described,
            label_of_caption,
            ks,
        )
        for k in ks:
            chance = chance_at(relevant, len(label_of_caption), k)
            results.add(f"{prefix}/image_to_text/recall@{k}", to_text[k], chance=chance)
    for k in ks:
        name = f"retrieval/{embedded.name}/all/text_to_image/recall@{k}"
        results.add(name, to_image[k], chance=min(1.0, k / pictures))
        for direction in ("text_to_image", "image_to_text"):
            add_mean(
                results, f"retrieval/{embedded.name}", f"{direction}/recall@{k}", embedded.languages
            )


def add_mean(results: Results, prefix: str, suffix: str, parts: Sequence[str]) -> None:
    """Add `<prefix>/mean/<suffix>`, the plain mean over `parts`, with the number of all queries."""
    names = [f"{prefix}/{part}/{suffix}" for part in parts]
    results.add(
        f"{prefix}/mean/{suffix}",
        float(np.mean([results.metrics[name] for name in names])),
        count=sum(results.counts[name] for name in names),
        chance=float(np.mean([results.chance[name] for name in names])),
    )
