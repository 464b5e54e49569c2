"""WIT itself (Srinivasan et al., SIGIR 2021, arXiv 2103.01913): pictures of Wikipedia in 108 languages.

    wit_v1.{train,val,test}.*.tsv.gz   a row a picture and article: language, image_url, captions -+-> Draft
    image_pixels/*.csv[.gz]            a line a picture: URL, base64, URL of its page -------------+

The tables are those of google-research-datasets/wit. They hold URLs; the pictures are read from Wikimedia's
files of the competition "Wikipedia - Image/Caption Matching" (Kaggle), which have a part of them. The others
are bad rows, so a recipe must say how many it allows. (Of img2dataset's output, make `kind: img2dataset`.)

Not every row has a caption of the kind that is read: those that have none are left out. The captions of the
kept languages are held in memory until their pictures come.

The layout is as readers in the field have it; the publisher's own files were not at hand. The test of IGLUE,
a selection of WIT's, is a source of its own (iglue.py).
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, Encoded, LazyPair
from mmalign.data.sources.iglue import from_base64, read_wit_pictures
from mmalign.data.sources.rows import source_folders
from mmalign.data.sources.table import read_text

_TABLES = "wit_v1.*.tsv*"
_NAME = re.compile(r"wit_v1\.(train|val|test)\..*\.tsv(\.gz)?")
_BCP47 = {"iw": "he"}  # an old code of Hebrew
_LICENSE = "captions: CC-BY-SA-3.0 (WIT); pictures: see the attribution"


class WitTsv(Section):
    """Where WIT and its pictures lie, and which captions to read."""

    kind: Literal["wit_tsv"]
    folders: tuple[str, ...] = ()
    """The folder of the tables, and one with image_pixels/; `--from FOLDER` sets them."""
    languages: tuple[str, ...] = ()
    """Languages to keep; all if none is named."""
    caption: Literal["reference", "alt_text"] = "reference"
    """The text below a picture, or the one that stands in its place. (The third kind, the attribution, mixes
    languages.)"""


@dataclass
class _Entry:
    """What the rows of one picture say."""

    where: str
    split: str
    captions: list[Caption] = field(default_factory=list)


def read_drafts(config: WitTsv, seed: int) -> Iterator[LazyPair | BadRow]:
    """The pictures in the order in which they lie on disk; `seed` is there because every source has it.

    Raises:
        UserError: a folder or a column is missing, or there are no tables.
    """
    folders = source_folders(config.kind, config.folders)
    waiting: dict[str, _Entry] = {}
    for path in _find_tables(folders):
        yield from _read_table(path, config, waiting)
    for where, url, encoded, page in read_wit_pictures(folders):
        entry = waiting.pop(url, None)
        if entry is not None:  # else: a picture without a caption that is read
            yield _draft(entry, url, encoded, page, where)
    for url, entry in waiting.items():
        yield BadRow("missing", f"{entry.where}: the picture {url} is in no image_pixels file")


def _find_tables(folders: Sequence[Path]) -> list[Path]:
    found = [path for folder in folders for path in sorted(folder.glob(_TABLES))]
    tables = [path for path in found if _NAME.fullmatch(path.name)]
    if not tables:
        listed = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"{listed}: no wit_v1.train.*.tsv.gz there; name the folder that holds WIT's tables with `--from`"
        )
    return tables


def _read_table(path: Path, config: WitTsv, waiting: dict[str, _Entry]) -> Iterator[BadRow]:
    """Add the captions of one table to what waits for pictures; rows that are broken come back."""
    named = _NAME.fullmatch(path.name)
    assert named is not None
    column = f"caption_{config.caption}_description"
    for where, cells in read_text(path, "\t", ["language", "image_url", column]):
        if isinstance(cells, BadRow):
            yield cells
            continue
        lang = str(cells["language"])
        lang = _BCP47.get(lang, lang)
        text = cells[column].strip()
        if text and (not config.languages or lang in config.languages):
            entry = waiting.setdefault(cells["image_url"], _Entry(where, named[1]))
            caption = Caption(lang, text)
            if caption not in entry.captions:  # several articles use a picture with the same words
                entry.captions.append(caption)


def _draft(entry: _Entry, url: str, encoded: bytes, page: str, where: str) -> LazyPair | BadRow:
    try:
        image = Encoded(from_base64(encoded, where))
    except UserError as error:
        return BadRow("row", str(error))
    pair = Pair(
        key=f"wit-{hashlib.sha256(url.encode()).hexdigest()[:16]}",
        image=b"",
        captions=tuple(entry.captions),
        picture=url,
        split=entry.split,
        source="wit",
        license=_LICENSE,
        attribution=page or url,
    )
    return LazyPair(pair, image, where, f"the picture {url}")
