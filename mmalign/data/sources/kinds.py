"""All sources: the sections that a recipe may have, and what reads each.

source section --read_drafts--> Draft, or BadRow where a row cannot be used
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pydantic

from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.sources import (
    emoji_scenes,
    flickr8k,
    hf_dataset,
    iglue,
    img2dataset,
    jsonl,
    parallel_lines,
    table,
    wit,
    xm3600,
)

SourceConfig = Annotated[
    emoji_scenes.EmojiScenes
    | jsonl.Jsonl
    | table.Table
    | img2dataset.Img2dataset
    | hf_dataset.HfDataset
    | xm3600.Xm3600
    | parallel_lines.Xtd10
    | parallel_lines.Multi30k
    | iglue.XFlickrCO
    | iglue.Wit
    | wit.WitTsv
    | flickr8k.Flickr8k,
    pydantic.Field(discriminator="kind"),
]

_READERS: dict[str, Callable[[Any, int], Iterator[LazyPair | BadRow]]] = {
    "emoji_scenes": emoji_scenes.read_drafts,
    "jsonl": jsonl.read_drafts,
    "table": table.read_drafts,
    "img2dataset": img2dataset.read_drafts,
    "hf_dataset": hf_dataset.read_drafts,
    "xm3600": xm3600.read_drafts,
    "xtd10": parallel_lines.read_xtd10,
    "multi30k": parallel_lines.read_multi30k,
    "xflickrco": iglue.read_xflickrco,
    "wit": iglue.read_wit,
    "wit_tsv": wit.read_drafts,
    "flickr8k": flickr8k.read_drafts,
}


def read_drafts(source: SourceConfig, seed: int) -> Iterator[LazyPair | BadRow]:
    """The rows of a source, always in the same order.

    Raises:
        UserError: a folder or a file is missing, or it is not of the source's format.
    """
    return _READERS[source.kind](source, seed)
