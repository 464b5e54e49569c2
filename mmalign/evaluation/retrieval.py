"""Image-text retrieval per language, both directions, with several captions per image.

text_to_image   a caption of the language  -> among all P pictures of the set, its own
image_to_text   a picture with captions in the language -> among all captions of the language, one of its own

retrieval/<set>/<lang>/<direction>/recall@<k>     lang: a code, or an aggregate of the languages:
    mean            their plain mean
    worst5          the mean of the five lowest, of that metric; if there are more than five
    family:<Name>   the mean of one family's (`families.py`)
    all             all queries, each counting once

    EmbeddedSet, the same on all ranks -> languages dealt out -> Answers of each -> gathered -+
    sharded set, pictures on all ranks -> every rank, every language ---------> merged hits --+-> Results

Two protocols are quoted side by side in the field, though they differ by seven points on XM3600's image to
text. `all-captions` is that of big_vision and MetaCLIP. `first-caption` keeps the first caption that a
picture has in a language, in both directions, as CLIP_benchmark does on XM3600; its metrics stand under
`<set>@first-caption`.

Whatever the number of ranks, the numbers are the same.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from mmalign.core import distributed
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.nearest import chance_at, hits_at
from mmalign.results.language_families import by_family
from mmalign.results.metric_names import ALL, FAMILY, FIRST_CAPTION, MEAN, WORST5
from mmalign.results.results import Results

if TYPE_CHECKING:
    from scipy.sparse import csr_array

T = TypeVar("T")
Protocol = Literal["all-captions", "first-caption"]
DIRECTIONS = ("text_to_image", "image_to_text")
_WORST = 5
_DRAWN_AT_A_TIME = 1 << 21  # pictures, of all the bootstrap's draws: 50 MB

PROTOCOL = (
    "{protocol}: text to image searches all {pictures} distinct pictures of the set, image to text "
    "{captions} of the language; a hit is a right item among the first k; equal scores count against the "
    "model; exact inner-product search (FAISS flat); `mean` averages the languages, `worst5` the "
    "five lowest, `family:` those of a family, `all` the queries; intervals: bootstrap over pictures"
)


@dataclass(frozen=True)
class Answers:
    """What the queries of one language found in one direction.

    Attributes:
        picture_Q: int64, the picture that each query is about.
        hits: k -> (Q,) float64 of 0 and 1.
        chance: k -> what luck finds.
    """

    picture_Q: np.ndarray
    hits: dict[int, np.ndarray]
    chance: dict[int, float]


def measure_retrieval(
    embedded: EmbeddedSet,
    ks: Sequence[int],
    results: Results,
    protocols: Sequence[Protocol] = ("all-captions",),
) -> None:
    """Add recall@k of every language and of their aggregates to `results`, by each protocol.

    A collective: every rank calls it with the same set and has the same results afterwards.
    """
    for protocol in protocols:
        if protocol == "all-captions":
            _measure(embedded, protocol, "all captions", ks, results)
        else:
            _measure(first_captions(embedded), protocol, "the first captions", ks, results)


def first_captions(embedded: EmbeddedSet) -> EmbeddedSet:
    """The set `<name>@first-caption`: of each picture in each language the first caption only."""
    _, language_M = np.unique(embedded.language_M, return_inverse=True)
    pairs_M = embedded.picture_M * (language_M.max() + 1) + language_M
    places = np.sort(np.unique(pairs_M, return_index=True)[1])
    return replace(
        embedded,
        name=embedded.name + FIRST_CAPTION,
        text_MD=_take(embedded.text_MD, places),
        picture_M=embedded.picture_M[places],
        language_M=embedded.language_M[places],
        texts=[embedded.texts[place] for place in places],
    )


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


def add_mean(
    results: Results, prefix: str, suffix: str, parts: Sequence[str], name: str = MEAN
) -> None:
    """Add `<prefix>/<name>/<suffix>`, the plain mean over `parts`, with the number of all queries."""
    names = [f"{prefix}/{part}/{suffix}" for part in parts]
    results.add(
        f"{prefix}/{name}/{suffix}",
        float(np.mean([results.metrics[name] for name in names])),
        count=sum(results.counts[name] for name in names),
        chance=float(np.mean([results.chance[name] for name in names])),
    )


def add_worst5(results: Results, prefix: str, suffix: str, languages: Sequence[str]) -> None:
    """Add `<prefix>/worst5/<suffix>`, the mean of the five languages where the metric is lowest.

    Nothing where there are five languages or fewer. It has no interval: which languages are the lowest would
    change from draw to draw, and a bootstrap of a minimum is biased downwards.
    """
    if len(languages) > _WORST:
        lowest = sorted(languages, key=lambda lang: results.metrics[f"{prefix}/{lang}/{suffix}"])
        add_mean(results, prefix, suffix, lowest[:_WORST], WORST5)


def _measure(
    embedded: EmbeddedSet, protocol: Protocol, captions: str, ks: Sequence[int], results: Results
) -> None:
    prefix = f"retrieval/{embedded.name}"
    results.protocol[prefix] = PROTOCOL.format(
        protocol=protocol,
        pictures=len(embedded.sample_P),
        captions=captions,
    )

    def measure(lang: str) -> dict[str, Answers]:
        return _answers(embedded, lang, ks)

    languages = embedded.languages
    if embedded.sharded:
        measured = [measure(lang) for lang in languages]
    else:
        measured = for_each_language(embedded, measure)
    for direction in DIRECTIONS:
        answers = {lang: one[direction] for lang, one in zip(languages, measured, strict=True)}
        for k in ks:
            _add(results, prefix, f"{direction}/recall@{k}", answers, k)
        _add_intervals(results, prefix, direction, answers, ks)


def _answers(embedded: EmbeddedSet, lang: str, ks: Sequence[int]) -> dict[str, Answers]:
    """Both directions of one language. Of a sharded set a collective: captions search every rank's run of
    pictures, and each rank's pictures search the captions, which all ranks have."""
    places = np.flatnonzero(embedded.language_M == lang)
    text_ND, picture_N = _take(embedded.text_MD, places), embedded.picture_M[places]
    image_PD, pictures = embedded.image_PD, len(embedded.sample_P)
    to_image = hits_at(text_ND, image_PD, picture_N, np.arange(pictures), ks, embedded.sharded)
    described, relevant = np.unique(picture_N, return_counts=True)
    row = described - embedded.first_picture
    mine = (row >= 0) & (row < len(image_PD))
    to_text = hits_at(_take(image_PD, row[mine]), text_ND, described[mine], picture_N, ks)
    if embedded.sharded:
        parts = distributed.gather_objects(to_text)
        to_text = {k: np.concatenate([part[k] for part in parts]) for k in ks}
    return {
        "text_to_image": Answers(picture_N, to_image, {k: min(1.0, k / pictures) for k in ks}),
        "image_to_text": Answers(
            described, to_text, {k: chance_at(relevant, len(picture_N), k) for k in ks}
        ),
    }


def _take(rows_ND: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The rows at these rising places; no copy if they are all."""
    return rows_ND if len(places) == len(rows_ND) else rows_ND[places]


def _add(results: Results, prefix: str, suffix: str, answers: dict[str, Answers], k: int) -> None:
    """One metric of every language and of the aggregates."""
    for lang, one in answers.items():
        name = f"{prefix}/{lang}/{suffix}"
        results.add(name, one.hits[k], chance=one.chance[k], ids=one.picture_Q)
    everyone = list(answers.values())
    results.add(
        f"{prefix}/{ALL}/{suffix}",
        np.concatenate([one.hits[k] for one in everyone]),
        chance=float(
            np.average(
                [one.chance[k] for one in everyone], weights=[len(o.picture_Q) for o in everyone]
            )
        ),
        ids=np.concatenate([one.picture_Q for one in everyone]),
    )
    add_mean(results, prefix, suffix, list(answers))
    add_worst5(results, prefix, suffix, list(answers))
    for family, members in by_family(answers).items():
        add_mean(results, prefix, suffix, members, FAMILY + family)


def _add_intervals(
    results: Results,
    prefix: str,
    direction: str,
    answers: dict[str, Answers],
    ks: Sequence[int],
) -> None:
    """Intervals of every language and of all aggregates but `worst5`, from the same draws of pictures."""
    hits_KLT, queries_LT = draw_sums(list(answers.values()), ks)
    with np.errstate(invalid="ignore"):
        recall_KLT = hits_KLT / queries_LT  # nan where a draw misses a language
    place = {lang: i for i, lang in enumerate(answers)}
    drawn = {lang: recall_KLT[:, i] for lang, i in place.items()}
    drawn[ALL] = hits_KLT.sum(1) / queries_LT.sum(0)
    groups = {MEAN: list(answers), **{FAMILY + f: m for f, m in by_family(answers).items()}}
    for part, members in groups.items():
        drawn[part] = _mean_of_known(recall_KLT[:, [place[lang] for lang in members]])
    for part, values_KT in drawn.items():
        lows, highs = np.nanpercentile(values_KT, (2.5, 97.5), axis=1).tolist()
        for k, low, high in zip(ks, lows, highs, strict=True):
            results.ci95[f"{prefix}/{part}/{direction}/recall@{k}"] = (low, high)


def draw_sums(
    answers: Sequence[Answers], ks: Sequence[int], draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Hits and queries of L languages in T bootstrap draws (Efron 1979) of the pictures they ask about.

    Pictures are drawn, not queries: a picture that is hard in one language is hard in the others too, and
    queries drawn one by one would make the intervals of means too narrow.

    Returns:
        Sums over the drawn pictures: hits (K, L, T) and queries (L, T), float64.
    """
    sums_RP = _sums_by_picture(answers, ks)
    pictures = sums_RP.shape[1]
    at_a_time = max(1, _DRAWN_AT_A_TIME // pictures)
    rng = np.random.default_rng(seed)
    drawn = [
        sums_RP @ _times_drawn(rng, pictures, min(at_a_time, draws - first))
        for first in range(0, draws, at_a_time)
    ]
    sums_RLT = np.concatenate(drawn, axis=1).reshape(1 + len(ks), len(answers), draws)
    return sums_RLT[1:], sums_RLT[0]


def _sums_by_picture(answers: Sequence[Answers], ks: Sequence[int]) -> "csr_array":
    """((1 + K) L, P): of each picture that is asked about the queries of each language, then their hits at
    each k. Sparse, because in large sets few pictures have captions in many languages."""
    from scipy.sparse import csr_array

    pictures, column_Q = np.unique(
        np.concatenate([one.picture_Q for one in answers]), return_inverse=True
    )
    language_Q = np.repeat(np.arange(len(answers)), [len(one.picture_Q) for one in answers])
    hits_KQ = [np.concatenate([one.hits[k] for one in answers]) for k in ks]
    value_RQ = np.stack([np.ones(len(column_Q)), *hits_KQ])
    row_RQ = language_Q + len(answers) * np.arange(len(value_RQ))[:, None]
    hit_RQ = value_RQ > 0
    return csr_array(
        (value_RQ[hit_RQ], (row_RQ[hit_RQ], np.broadcast_to(column_Q, hit_RQ.shape)[hit_RQ])),
        shape=(len(answers) * len(value_RQ), len(pictures)),
    )


def _times_drawn(rng: np.random.Generator, n: int, draws: int) -> np.ndarray:
    """(n, draws) float64: how often each of n pictures is among n drawn with replacement."""
    times = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws)]
    return np.stack(times, axis=1).astype(np.float64)


def _mean_of_known(recall_KLT: np.ndarray) -> np.ndarray:
    """The mean over languages; a draw that misses a language leaves it out, one that misses all is nan."""
    known_KLT = ~np.isnan(recall_KLT)
    with np.errstate(invalid="ignore"):
        return np.where(known_KLT, recall_KLT, 0).sum(1) / known_KLT.sum(1)
