"""Image-text retrieval per language, both directions, with several captions per image.

text_to_image   a caption of the language  -> among all P images of the set, its own
image_to_text   an image with captions in the language -> among all captions of the language, one of its own

retrieval/<set>/<lang>/<direction>/recall@<k>     lang: a code, or an aggregate of the languages:
    mean            their plain mean
    worst5          the mean of the five lowest, of that metric; if there are more than five
    family:<Name>   the mean of one family's (`language_families.py`)
    all             all queries, each counting once

Two protocols are quoted side by side in the field, though they differ by seven points on XM3600's image to
text. `all-captions` is that of big_vision and MetaCLIP. `first-caption` keeps the first caption that an
image has in a language, as CLIP_benchmark does; its metrics are those of the set `<set>@first-caption`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from mmalign.core import distributed
from mmalign.evaluation.embed import EmbeddedSet, take
from mmalign.evaluation.nearest import chance_at, hits_at
from mmalign.evaluation.over_ranks import map_over_ranks
from mmalign.results.aggregates import add_aggregates, summed_up
from mmalign.results.language_families import by_family
from mmalign.results.metric_names import ALL, FAMILY, FIRST_CAPTION, MEAN, MetricName
from mmalign.results.results import Results
from mmalign.results.statistics import INTERVAL_DRAWS, drawn_means, percentile_interval

Protocol = Literal["all-captions", "first-caption"]
DIRECTIONS = ("text_to_image", "image_to_text")

# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    "{protocol}: text to image searches all {pictures} distinct pictures of the set, image to text "
    "{captions} of the language; a hit is a right item among the first k; equal scores count against the "
    "model; exact inner-product search (FAISS flat); `mean` averages the languages, `worst5` the "
    "five lowest, `family:` those of a family, `all` the queries; intervals: bootstrap over pictures"
)


@dataclass(frozen=True)
class Answers:
    """What the queries of one language found in one direction."""

    image_Q: np.ndarray  # int64, the image that each query is about
    hits: dict[int, np.ndarray]  # k -> (Q,) float64 of 0 and 1
    chance: dict[int, float]  # k -> the share of hits of a random order


def measure_retrieval(
    embedded: EmbeddedSet,
    ks: Sequence[int],
    results: Results,
    protocols: Sequence[Protocol] = ("all-captions",),
) -> None:
    """Add recall@k of every language and of their aggregates to `results`, by each protocol. A collective."""
    for protocol in protocols:
        one, captions = embedded, "all captions"
        if protocol == "first-caption":
            kept = embedded.with_captions(embedded.first_captions())
            one, captions = replace(kept, name=embedded.name + FIRST_CAPTION), "the first captions"
        measure = partial(_answers, one, ks)
        if one.sharded:  # every rank takes part in every language
            answers = {lang: measure(lang) for lang in one.languages}
        else:
            answers = map_over_ranks(one.captions, measure)
        for direction in DIRECTIONS:
            name = MetricName("retrieval", one.name, MEAN, (direction,), "recall")
            in_direction = {lang: both[direction] for lang, both in answers.items()}
            add_answers(results, name, in_direction, ks, pooled=True)
            results.protocol[name.prefix] = {
                "how": PROTOCOL,
                "protocol": protocol,
                "pictures": len(one.sample_P),
                "captions": captions,
            }


def add_answers(
    results: Results,
    name: MetricName,
    answers: Mapping[str, Answers],
    ks: Sequence[int],
    pooled: bool,
) -> None:
    """Add hits at each k: of every language and of their aggregates, with intervals from the same draws.

    Args:
        name: `recall` for `recall@<k>`, of any language.
        answers: by language.
        pooled: also add `all`, the queries of all languages, and the families.
    """
    # Bytes: a large set has hundreds of millions of hits.
    values = {
        lang: np.stack([one.hits[k] for k in ks]).astype(np.uint8) for lang, one in answers.items()
    }
    ids = {lang: one.image_Q for lang, one in answers.items()}
    images = np.unique(np.concatenate(list(ids.values())))
    chance = {lang: one.chance for lang, one in answers.items()}
    aggregates = [MEAN]
    if pooled:
        queries = [len(one) for one in ids.values()]
        # Drawn in the same go, so that the draws of `all` are those of its languages.
        values[ALL] = np.concatenate(list(values.values()), axis=1)
        ids[ALL] = np.concatenate(list(ids.values()))
        chances = {k: [one.chance[k] for one in answers.values()] for k in ks}
        chance[ALL] = {k: float(np.average(chances[k], weights=queries)) for k in ks}
        aggregates += [FAMILY + family for family in by_family(answers)]
    # Images are drawn, not queries: an image that is hard in one language is hard in the others too, and
    # queries drawn one by one would make the intervals of means too narrow.
    drawn = drawn_means(values, ids, INTERVAL_DRAWS)
    drawn_of = {part: summed_up(part, drawn) for part in (*values, *aggregates)}
    for i, k in enumerate(ks):
        metric = replace(name, metric=f"{name.metric}@{k}")
        for lang, value_KQ in values.items():
            results.add(metric.of(lang), value_KQ[i], chance=chance[lang][k], ids=ids[lang])
        add_aggregates(results, metric, list(answers), families=pooled)
        for part, drawn_KR in drawn_of.items():
            assert drawn_KR is not None
            # One image cannot tell how much others would differ.
            if len(images) > 1:
                results.ci95[str(metric.of(part))] = percentile_interval(drawn_KR[i])


def _answers(embedded: EmbeddedSet, ks: Sequence[int], lang: str) -> dict[str, Answers]:
    """Both directions of one language; of a sharded set a collective."""
    kept = np.flatnonzero(embedded.language_M == lang)
    text_ND, image_N = take(embedded.text_MD, kept), embedded.picture_M[kept]
    image_PD, images = embedded.image_PD, len(embedded.sample_P)
    to_image = hits_at(text_ND, image_PD, image_N, np.arange(images), ks, embedded.sharded)
    described, relevant = np.unique(image_N, return_counts=True)
    # Of a sharded set each rank asks for the images that it holds; all ranks have the captions. Only images
    # with a caption in the language ask.
    row = described - embedded.first_picture
    mine = (row >= 0) & (row < len(image_PD))
    to_text = hits_at(take(image_PD, row[mine]), text_ND, described[mine], image_N, ks)
    if embedded.sharded:
        parts = distributed.gather_objects(to_text)
        to_text = {k: np.concatenate([part[k] for part in parts]) for k in ks}
    return {
        "text_to_image": Answers(image_N, to_image, {k: min(1.0, k / images) for k in ks}),
        "image_to_text": Answers(
            described, to_text, {k: chance_at(relevant, len(image_N), k) for k in ks}
        ),
    }
