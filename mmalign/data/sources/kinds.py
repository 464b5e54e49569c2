"""The sections of sources that a recipe may have. A new source is registered here."""

from typing import Annotated

import pydantic

from mmalign.data.sources import published, wit
from mmalign.data.sources.emoji_scenes import EmojiScenes
from mmalign.data.sources.hf_dataset import HfDataset
from mmalign.data.sources.img2dataset import Img2dataset
from mmalign.data.sources.jsonl import Jsonl
from mmalign.data.sources.table import Table

SourceConfig = Annotated[
    EmojiScenes
    | Jsonl
    | Table
    | Img2dataset
    | HfDataset
    | published.Xm3600
    | published.Xtd10
    | published.Multi30k
    | published.XFlickrCO
    | wit.Wit
    | wit.WitTsv
    | published.Flickr8k,
    pydantic.Field(discriminator="kind"),
]
