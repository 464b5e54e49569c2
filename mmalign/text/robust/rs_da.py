"""RS-DA: randomised smoothing by data augmentation, exactly as published.

    text -> words (split at single spaces) -> each: itself or one of its neighbours, evenly -> text
    training examples -> n copies of each, drawn independently -> training, otherwise plain

Huang et al. 2021 (arXiv 2104.08645); the algorithm is that of uclanlp/Robust-XLT@175cddb, perturb.py: 10
copies for PAWS-X, 3 for XNLI; matched with letter case, punctuation attached; the texts of an example drawn
each on its own; the original is not written apart and survives only by chance; dev and test files stay as
they are. The published script has no seed; ours has.

An epoch has `copies` times the steps of a plain one: compare with a plain run of as many steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.tables import json_tree, rows

Neighbours = Mapping[str, tuple[str, ...]]
"""Word -> words that may stand in its place."""


class RsDaConfig(Section):
    """Words replaced by their neighbours."""

    kind: Literal["rs_da"]
    neighbours: str
    """File of neighbours (.json as published, or .tsv); relative to where the command runs."""
    copies: int = Field(default=1, ge=1)
    """Copies of each training example; published: 10 for PAWS-X, 3 for XNLI."""


@lru_cache(maxsize=2)
def read_neighbours(path: Path) -> Neighbours:
    """The neighbours of words; kept in memory, so do not change them.

    Args:
        path: a .json file with a mapping from words to lists of words, as published, or a table with the
            columns `word` and `neighbours`, the latter parted by spaces.

    Raises:
        UserError: no such file, or a broken one (file, entry or line).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `neighbours` must name a .json or .tsv file")
    if path.suffix != ".json":
        return {row.text("word"): tuple(row.cell("neighbours").split()) for row in rows(path)}
    tree = json_tree(path)
    for word, near in tree.items():
        if not isinstance(near, list) or not all(isinstance(one, str) for one in near):
            raise UserError(f"{path}: `{word}` must have a list of words; mend that entry")
    return {word: tuple(near) for word, near in tree.items()}


def augment(train: Sequence[Example], config: RsDaConfig, seed: int) -> list[Example]:
    """Each example `copies` times, one after the other, every text drawn anew; the rest as it was.

    Raises:
        UserError: a file of neighbours that cannot be used.
    """
    neighbours = read_neighbours(Path(config.neighbours))
    random = np.random.default_rng(seed)
    return [rewrite(one, neighbours, random) for one in train for _ in range(config.copies)]


def rewrite(example: Example, neighbours: Neighbours, random: np.random.Generator) -> Example:
    """The example with every text drawn once."""
    texts = tuple(_draw(text, neighbours, random) for text in example.texts)
    return replace(example, texts=texts)


def expected_share(texts: Iterable[str], neighbours: Neighbours) -> float:
    """The share of words that is replaced in the mean: m / (m + 1) for a word with m neighbours."""
    counts = [len(neighbours.get(word, ())) for text in texts for word in text.split(" ")]
    return sum(m / (m + 1) for m in counts) / max(1, len(counts))


def _draw(text: str, neighbours: Neighbours, random: np.random.Generator) -> str:
    words = text.split(" ")
    draws = random.random(len(words))  # at once: a call for each word would take most of the time
    return " ".join(
        _choose((word, *neighbours.get(word, ())), draw)
        for word, draw in zip(words, draws, strict=True)
    )


def _choose(words: tuple[str, ...], draw: float) -> str:
    return words[int(draw * len(words))]
