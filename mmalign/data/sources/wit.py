"""WIT (Srinivasan et al., SIGIR 2021, arXiv 2103.01913), images of Wikipedia in 108 languages; IGLUE's test.

    captions by URL: wit_v1.*.tsv.gz (WIT), test_<lang>.jsonl (IGLUE) -+-> LazyPair
    image_pixels/*.csv[.gz]   one line per image: URL, base64 ---------+

Neither distributes images. We read those of the competition "Wikipedia - Image/Caption Matching" (Kaggle),
which has a part of WIT's; its lines are URL, tab, base64, and the URL of the image's page. They are matched
by URL, as zengyan-97/CCLM@fa8fdf9 (utils/wit_preproc.py) does. (Of img2dataset's output, use `kind:
img2dataset`.)
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.data.shards.lazy_pair import BadRow, Encoded, LazyPair
from mmalign.data.sources.columns import read_table
from mmalign.data.sources.rows import (
    FolderSource,
    PublishedSet,
    Row,
    open_file,
    read_json_lines,
    text_field,
)

T = TypeVar("T")

_TABLE = re.compile(r"wit_v1\.(train|val|test)\..*\.tsv(\.gz)?")
_LICENSE = "captions: CC-BY-SA-3.0 (WIT); pictures: see the attribution"


@dataclass
class _Entry:
    """What all files say of one image; kept in memory until its pixels are read."""

    where: str
    split: str
    name: str = ""
    page: str = ""
    captions: list[tuple[str, str]] = field(default_factory=list)


class WitTsv(FolderSource):
    """Which captions of WIT to read; `folders`: that of the tables, and one with image_pixels/."""

    kind: Literal["wit_tsv"]
    languages: tuple[str, ...] = ()
    """Languages to keep; all if none is named."""
    caption: Literal["reference", "alt_text"] = "reference"
    """The text below an image, or the one that replaces it. (The third kind, the attribution, mixes
    languages.)"""

    # In google-research-datasets/wit:
    #
    # wit_v1.{train,val,test}.*.tsv.gz          one row per image and article: language, image_url, captions
    #
    # Images that the competition lacks are bad rows, so a recipe must say how many it allows. Rows without a
    # caption of the chosen kind are left out. The layout is as readers in the field have it; the publisher's
    # own files were not at hand.
    def read(self, seed: int) -> Iterator[LazyPair | BadRow]:
        folders = self.paths()
        found = [
            self.inside(path) for folder in folders for path in sorted(folder.glob("wit_v1.*.tsv*"))
        ]
        tables = [(path, named) for path in found if (named := _TABLE.fullmatch(path.name))]
        if not tables:
            listed = ", ".join(map(str, folders))
            raise UserError(
                f"{listed}: no wit_v1.train.*.tsv.gz there; name the folder that holds WIT's tables with "
                "`--from`"
            )
        column = f"caption_{self.caption}_description"
        wanted = set(map(canonical_language, self.languages))
        waiting: dict[str, dict[str, _Entry]] = {}  # by URL and split
        for path, named in tables:
            for where, cells in read_table(path, ["language", "image_url", column], quotes=True):
                if isinstance(cells, BadRow):
                    yield cells
                    continue
                lang, text = cells["language"], cells[column].strip()
                # WIT has `iw` for Hebrew.
                if text and (not wanted or canonical_language(lang) in wanted):
                    of_image = waiting.setdefault(cells["image_url"], {})
                    entry = of_image.setdefault(named[1], _Entry(where, named[1]))
                    # Several articles use an image with the same words.
                    if (lang, text) not in entry.captions:
                        entry.captions.append((lang, text))
        for where, url, entries, encoded, page in _read_pixels(folders, waiting):
            try:
                image = Encoded(_from_base64(encoded, where))
            except UserError as error:
                yield BadRow("row", str(error))
                continue
            key = f"wit-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
            for split, entry in entries.items():
                captions = tuple(Caption(lang, text) for lang, text in entry.captions)
                pair = Pair(key, b"", captions, url, split, "wit", _LICENSE, page or url)
                yield LazyPair(pair, image, where, f"the image {url}")
        for url, entries in waiting.items():
            for entry in entries.values():
                sentence = f"{entry.where}: the image {url} is in no image_pixels file"
                yield BadRow("missing", sentence)


class Wit(PublishedSet):
    """IGLUE's test of WIT (Bugliarello et al., ICML 2022, arXiv 2201.11732): 6,195 images, 11 languages.

    `folders`: IGLUE's datasets/wit, and the folder with image_pixels/*.csv.
    """

    kind: Literal["wit"]
    license: ClassVar = _LICENSE

    # In e-bug/iglue@43cbac9, datasets/; 541 to 889 images in each language, some with several captions:
    #
    # wit/annotations/test_<lang>.jsonl         {"wit_ix", "image_url", "caption_reference_description", ...}
    #
    # A caption is blank in `el` and in `id`: IGLUE counts it as a query, we leave it out. IGLUE searches each
    # language's own images. So its test becomes the split `test`, one pool of all images, and one split
    # `test_<lang>` per language, whose results compare with IGLUE's. That the competition has all 6,195
    # images follows from IGLUE's own scripts; it was not tried on the files.
    def rows(self) -> Iterator[Row]:
        folders = self.paths()
        waiting: dict[str, _Entry] = {}  # by URL
        for lang in ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi"):
            file = f"test_{lang}.jsonl"
            for where, row in read_json_lines(self.find_file(f"annotations/{file}", file)):
                url, name, page, text = (
                    text_field(row, column, where, may_be_empty=True)
                    for column in (
                        "image_url",
                        "wit_ix",
                        "meta_url",
                        "caption_reference_description",
                    )
                )
                entry = waiting.setdefault(url, _Entry(where, "test", name, page))
                entry.captions.append((lang, text))
        for where, _, entry, encoded, _ in _read_pixels(folders, waiting):
            image = _from_base64(encoded, where)
            pools = {"test": entry.captions}
            for lang, text in entry.captions:
                pools.setdefault(f"test_{lang}", []).append((lang, text))
            for split, captions in pools.items():
                yield Row(entry.name, image, captions, entry.where, split, entry.page)
        for url, entry in waiting.items():
            raise UserError(
                f"{entry.where}: the image {url} is in none of the image_pixels files, nor are "
                f"{len(waiting) - 1} others; name the folder of all of them with `--from FOLDER`"
            )


def _read_pixels(
    folders: Sequence[Path], waiting: dict[str, T]
) -> Iterator[tuple[str, str, T, bytes, str]]:
    """(file and line, URL, what waits for it, base64, URL of its page or "") of the images in `waiting`."""
    patterns = ("*.csv", "*.csv.gz", "image_pixels/*.csv", "image_pixels/*.csv.gz")
    files = (p for folder in folders for pattern in patterns for p in sorted(folder.glob(pattern)))
    for path in files:
        with open_file(path) as lines:
            for number, line in enumerate(lines, start=1):
                first, encoded, page, *_ = (*line.rstrip(b"\r\n").split(b"\t"), b"", b"")
                url = first.decode("utf-8", "replace")
                # Lines are also of images without a caption that is read, a header, or repeat an image.
                if url in waiting:
                    where = f"{path}, line {number}"
                    page_url = page.decode("utf-8", "replace")
                    yield where, url, waiting.pop(url), encoded.strip(), page_url


def _from_base64(encoded: bytes, where: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise UserError(f"{where}: must be a URL, a tab and an image in base64") from None
