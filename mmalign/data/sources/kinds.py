"""All sources: the sections that a recipe may have, and what reads each. A new source is registered here.

source section --read_drafts--> LazyPair, or BadRow if a row cannot be used
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pydantic

from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.sources import (
    emoji_scenes,
    hf_dataset,
    img2dataset,
    jsonl,
    published,
    table,
    wit,
)

SourceConfig = Annotated[
    emoji_scenes.EmojiScenes
    | jsonl.Jsonl
    | table.Table
    | img2dataset.Img2dataset
    | hf_dataset.HfDataset
    | published.Xm3600
    | published.Xtd10
    | published.Multi30k
    | published.XFlickrCO
    | wit.Wit
    | wit.WitTsv
    | published.Flickr8k,
    pydantic.Field(discriminator="kind"),
]

_READERS: dict[str, Callable[[Any, int], Iterator[LazyPair | BadRow]]] = {
    "emoji_scenes": emoji_scenes.read_drafts,
    "jsonl": jsonl.read_drafts,
    "table": table.read_drafts,
    "img2dataset": img2dataset.read_drafts,
    "hf_dataset": hf_dataset.read_drafts,
    "wit": wit.read_wit,
    "wit_tsv": wit.read_wit_tsv,
}


def read_drafts(source: SourceConfig, seed: int) -> Iterator[LazyPair | BadRow]:
    """The rows of a source, always in the same order.

    Raises:
        UserError: a folder or a file is missing, or it is not of the source's format.
    """
    return _READERS.get(source.kind, published.read_drafts)(source, seed)
