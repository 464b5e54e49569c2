"""The sections of sources that a recipe may have, and the one door through which their rows come.

source section --read_rows--> LazyPair, or BadRow if a row cannot be used
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from mmalign.core.config import kinds_beside
from mmalign.core.languages import canonical_language
from mmalign.data.names import fault_of
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.sources.rows import FolderSource

if TYPE_CHECKING:
    SourceConfig = FolderSource
else:  # every source of this folder
    SourceConfig = kinds_beside(__name__, "read")


def read_rows(
    source: SourceConfig, seed: int, respelled: Counter[str]
) -> Iterator[LazyPair | BadRow]:
    """The rows of a source with names that a shard can hold and languages as BCP 47 writes them.

    `respelled` counts the captions of each code that was written in another way.
    """
    for row in source.read(seed):
        if isinstance(row, BadRow):
            yield row
            continue
        bad = _faulty_name(row)
        if bad is not None and row.strict:
            raise bad
        yield bad or _respell(row, respelled)


def _faulty_name(row: LazyPair) -> BadRow | None:
    # File names that are not UTF-8 come as halves of surrogate pairs, which no manifest or index can hold.
    pair = row.pair
    names = {
        "the id": pair.key,
        "`picture`": pair.picture,
        "the split": pair.split,
        "the source": pair.source,
        "the licence": pair.license,
        "the attribution": pair.attribution or "",
        "the path in": row.description,
        "the language": " ".join(caption.lang for caption in pair.captions),
    }
    for what, name in names.items():
        if fault := fault_of(name):
            sentence = f"{row.where}: {what} `{name}` holds {fault[1]}; remove or rename it"
            return BadRow(fault[0], sentence)
    return None


def _respell(row: LazyPair, respelled: Counter[str]) -> LazyPair:
    captions = []
    for caption in row.pair.captions:
        lang = canonical_language(caption.lang)
        respelled[caption.lang] += lang != caption.lang
        captions.append(replace(caption, lang=lang))
    return replace(row, pair=replace(row.pair, captions=tuple(captions)))
