"""Which tested rows occur in the training or dev rows: by id, by equal text, by nearly equal text.

    rows -> ids without the split's name ----------------------------------+
    texts -> normalised -> hash of the text -------------------------------+-> tested rows that are known
                        -> words -> MinHash, candidates -> Jaccard >= 0.8 -+

Only an id shows that a text is the translation of a trained one; only a text shows an item that two
publishers number differently. Thai, Lao and Khmer, which write no spaces, have few near matches.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from mmalign.core.batching import batched
from mmalign.data.shards.withhold import normalise
from mmalign.text.tasks.task import Example, Kind, Task

NEAR = 0.8  # Jaccard similarity of the words of each text
_BANDS, _ROWS = 5, 2  # at 0.8 a pair of texts meets in one of the bands with probability 0.994
_MOST_CANDIDATES = 20  # of one band, that are compared with a text
_AT_A_TIME = 50_000  # texts whose words are held at a time
_SPLIT = re.compile(r"(?<![^\W_])(train|training|dev|validation|valid|test)(?![^\W_])[-_/.]?", re.I)
# A word, or one character of a script that writes no spaces between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+")


def overlap(task: Task) -> str:
    """In words: which tested rows of the targets occur in training, and in dev if there is one."""
    if not task.train:
        return "Nothing was trained."
    tested = [one for lang in task.targets for one in task.tests[lang]]
    by_id, by_text, near = known_rows(tested, task.train, task.kind)
    known = int((by_id | by_text | near).sum())
    if by_id.all():
        words = (
            f"Every tested item (id) is trained on in `{task.source}`: this measures transfer between "
            "languages, not to new items."
        )
    elif known == 0:
        words = (
            "No tested item occurs in training, by its id or by an equal or nearly equal text: both the item "
            "and the language are new."
        )
    else:
        found = _found(by_id, by_text, near)
        words = f"{known} of {len(tested)} test rows show an item that is trained on: {found}."
    if dev := task.dev.get(task.source):
        on_dev = known_rows(tested, dev, task.kind)
        if known := int(np.logical_or.reduce(on_dev).sum()):
            words += (
                f" {known} of {len(tested)} test rows show an item of `{task.source}` dev, which chooses the "
                f"weights: {_found(*on_dev)}."
            )
    return words


def known_rows(
    tested: Sequence[Example], others: Sequence[Example], kind: Kind
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which tested rows occur among others: by id, by text, only by nearly equal text; (n,) bool each."""
    ids = {one for other in others for one in _names(other)}
    by_id = np.array([not ids.isdisjoint(_names(one)) for one in tested])
    ours, theirs = (list(map(partial(_texts, kind=kind), rows)) for rows in (tested, others))
    texts = set(theirs)
    by_text = np.array([one in texts for one in ours])
    near = np.zeros(len(tested), bool)
    rest = np.flatnonzero(~by_text)
    near[rest] = _near([ours[i] for i in rest], sorted(texts))
    return by_id, by_text, near


def _names(one: Example) -> Iterator[str]:
    yield one.id
    # Publishers number each split from the start, so a number alone names nothing.
    bare = _SPLIT.sub("", one.id)
    if re.search(r"[^\W\d_]{2}", bare):
        yield bare


def _texts(one: Example, kind: Kind) -> tuple[str, ...]:
    # Words and sentences of one text are compared together.
    is_one = kind in ("tagging", "event_causality")
    return tuple(map(normalise, [" ".join(one.texts)] if is_one else one.texts))


def _near(texts: Sequence[tuple[str, ...]], others: Sequence[tuple[str, ...]]) -> np.ndarray:
    """(n,) bool: whether one of the others has nearly the same words, text by text."""
    found = np.zeros(len(texts), bool)
    if not texts or not others:
        return found
    bands = np.concatenate([_min_hashes(some) for some in batched(others, _AT_A_TIME)])
    orders = [np.argsort(band, kind="stable") for band in bands.T]
    start = 0
    for some in batched(texts, _AT_A_TIME):
        for band, order, ours in zip(bands.T, orders, _min_hashes(some).T, strict=True):
            ordered = band[order]
            first, last = (np.searchsorted(ordered, ours, side) for side in ("left", "right"))
            for row in np.flatnonzero((last > first) & ~found[start : start + len(some)]):
                candidates = order[first[row] : last[row]][:_MOST_CANDIDATES]
                found[start + row] = any(_alike(some[row], others[i]) for i in candidates)
        start += len(some)
    return found


def _min_hashes(texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """(n, _BANDS) uint64 of the words of all texts of a row together (Broder 1997)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        analyzer=_WORD.findall, n_features=2**30, alternate_sign=False, norm=None, dtype=np.float32
    )
    words = vectorizer.transform([" ".join(one) or "-" for one in texts])
    starts = words.indptr[:-1]
    rng = np.random.default_rng(0)
    columns = []
    for odd in rng.integers(0, 2**63, (_BANDS * _ROWS,), dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1):
        hashed = (words.indices.astype(np.uint64) + np.uint64(1)) * odd
        hashed ^= hashed >> np.uint64(29)  # the upper bits alone are mixed by a product
        hashed *= np.uint64(0x9E3779B97F4A7C15)
        # A row without words gets any hash: `_alike` looks at the words themselves.
        columns.append(np.minimum.reduceat(np.append(hashed, ~np.uint64(0)), starts))
    pairs = np.stack(columns, axis=1).reshape(len(texts), _BANDS, _ROWS)
    return pairs[..., 0] * np.uint64(31) + pairs[..., 1]


def _alike(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    if len(ours) != len(theirs):
        return False
    pairs = (
        (set(_WORD.findall(one)), set(_WORD.findall(other)))
        for one, other in zip(ours, theirs, strict=True)
    )
    return all(a & b and len(a & b) >= NEAR * len(a | b) for a, b in pairs)


def _found(by_id: np.ndarray, by_text: np.ndarray, near: np.ndarray) -> str:
    return f"{by_id.sum()} by id, {by_text.sum()} by equal text, {near.sum()} by nearly equal text"
