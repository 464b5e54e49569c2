"""RS-DA: randomised smoothing by data augmentation, exactly as published.

Huang et al. 2021 (arXiv 2104.08645); the algorithm is that of uclanlp/Robust-XLT@175cddb, perturb.py: each
word is kept or becomes one of its neighbours, evenly; matched with letter case, punctuation attached; the
original is not added and survives only by chance. The published script has no seed; ours has. Ours too: the
neighbours are of the task's language, so copies of rows in other languages are left as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.text.tasks.tables import UNUSABLE, json_tree, rows
from mmalign.text.tasks.task import Example

# Word -> words that may replace it.
Neighbours = Mapping[str, tuple[str, ...]]


class RsDaConfig(Section):
    """Words replaced by their neighbours."""

    kind: Literal["rs_da"]
    neighbours: str
    """File of neighbours (.json as published, or .tsv); relative to where the command runs."""
    copies: int = Field(default=1, ge=1)
    """Copies of each training example; published: 10 for PAWS-X, 3 for XNLI. An epoch has as many times the
    steps of a plain one: compare with a plain run of as many steps."""

    def rewriter(
        self, examples: Sequence[Example], source: str | None
    ) -> Callable[[Example, np.random.Generator], Example]:
        """See `method.py`."""
        near = read_neighbours(Path(self.neighbours))

        def draw(text: str, random: np.random.Generator) -> str:
            choices = [(word, *near.get(word, ())) for word in text.split(" ")]
            # All numbers in one call: one call per word would take most of the time.
            draws = random.random(len(choices))
            return " ".join(a[int(one * len(a))] for a, one in zip(choices, draws, strict=True))

        def rewrite(one: Example, random: np.random.Generator) -> Example:
            # A word that two languages spell alike has other neighbours in each.
            if source is not None and one.lang != source:
                return one
            return replace(one, texts=tuple(draw(text, random) for text in one.texts))

        return rewrite


@lru_cache(maxsize=2)
def read_neighbours(path: Path) -> Neighbours:
    """The neighbours of words; kept in memory, so do not change them.

    Args:
        path: a .json file with a mapping from words to lists of words, as published, or a table with the
            columns `word` and `neighbours`, the latter separated by spaces.

    Raises:
        UserError: no such file, or a broken one (file, entry or line).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `neighbours` must name a .json or .tsv file")
    # Our own layout; the published files are JSON.
    if path.suffix != ".json":
        return {row.text("word"): tuple(row.cell("neighbours").split()) for row in rows(path)}
    tree = json_tree(path)
    for word, near in tree.items():
        words = near if isinstance(near, list) else [None]
        if not all(isinstance(one, str) and not UNUSABLE.search(one) for one in words):
            raise UserError(f"{path}: `{word}` must have a list of words; fix that entry")
    return {word: tuple(near) for word, near in tree.items()}
