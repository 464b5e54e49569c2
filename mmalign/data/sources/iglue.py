"""The two retrieval tests of IGLUE (Bugliarello et al., ICML 2022, arXiv 2201.11732): xFlickr&CO and WIT.

    one file of JSON lines a language -> captions of each picture, all languages together -+-> Row -> Draft
    pictures: files (xFlickr&CO), lines of base64 (WIT) -----------------------------------+

In e-bug/iglue@43cbac9, below datasets/:

    xFlickrCO/annotations/<lang>/test.jsonl   {"id", "img_path", "sentences": [text]}
        8 languages, 2,000 pictures, of which 1,000 are Flickr30k's and 1,000 COCO val2014's; one caption each
    wit/annotations/test_<lang>.jsonl         {"wit_ix", "image_url", "caption_reference_description", ...}
        11 languages, 541 to 889 pictures in each, 6,195 in all; a picture may have several captions

A caption is blank in two languages of either (xFlickr&CO `de` and `id`, WIT `el` and `id`): IGLUE counts it
as a query, we leave it out.

IGLUE does not release WIT's pictures in one place. We read those of the Wikipedia image-caption competition
(Kaggle, image_data_test/image_pixels/*.csv): lines of image_url, tab, base64. They are matched by URL, as
zengyan-97/CCLM@fa8fdf9 (utils/wit_preproc.py) does. That all 6,195 are there follows from IGLUE's own
scripts, but was not tried on the files.

IGLUE searches each language's own pictures. So WIT becomes the split `test`, one pool of all pictures, and
beside it a split `test_<lang>` for each language, whose numbers compare with IGLUE's.
"""

import base64
import binascii
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import LazyPair
from mmalign.data.sources.rows import (
    FLICKR30K,
    Row,
    drafts_of,
    find_file,
    find_picture,
    read_json_lines,
    source_folders,
    text_field,
    texts_field,
)

_XFLICKRCO_LANGUAGES = ("de", "en", "es", "id", "ja", "ru", "tr", "zh")
_XFLICKRCO_LICENSE = "captions: MIT (IGLUE); pictures: Flickr's terms, see Flickr30k and COCO"
_WIT_LANGUAGES = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi")
_WIT_LICENSE = "captions: CC-BY-SA-3.0 (WIT); pictures: see the attribution"
_WIT_PICTURES = ("*.csv", "*.csv.gz", "image_pixels/*.csv", "image_pixels/*.csv.gz")


class XFlickrCO(Section):
    """Where xFlickr&CO and its pictures lie."""

    kind: Literal["xflickrco"]
    folders: tuple[str, ...] = ()
    """IGLUE's datasets/xFlickrCO, and folders with Flickr30k's pictures and COCO's val2014/."""


class Wit(Section):
    """Where IGLUE's test of WIT and its pictures lie."""

    kind: Literal["wit"]
    folders: tuple[str, ...] = ()
    """IGLUE's datasets/wit, and the folder with image_pixels/*.csv; `--from FOLDER` sets them."""


@dataclass
class _Entry:
    """One picture of WIT, and what the files of all languages say of it."""

    name: str
    page: str
    where: str
    captions: list[tuple[str, str]] = field(default_factory=list)


def read_xflickrco(config: XFlickrCO, seed: int) -> Iterator[LazyPair]:
    """The pictures in the order of the first file, split `test`; `seed` changes nothing.

    Raises:
        UserError: a file or a picture is missing, or a line is broken.
    """
    return drafts_of(_xflickrco_rows(config), config.kind, _XFLICKRCO_LICENSE)


def read_wit(config: Wit, seed: int) -> Iterator[LazyPair]:
    """The pictures in the order in which they lie on disk, splits `test` and `test_<lang>`.

    Raises:
        UserError: a file or a picture is missing, or a line is broken.
    """
    return drafts_of(_wit_rows(config), config.kind, _WIT_LICENSE)


def _xflickrco_rows(config: XFlickrCO) -> Iterator[Row]:
    folders = source_folders(config.kind, config.folders)
    captions: dict[str, list[tuple[str, str]]] = {}
    asked_by: dict[str, str] = {}
    for lang in _XFLICKRCO_LANGUAGES:
        file = f"{lang}/test.jsonl"
        for where, row in read_json_lines(find_file(folders, f"annotations/{file}", file)):
            name = text_field(row, "img_path", where)
            asked_by.setdefault(name, where)
            texts = texts_field(row, "sentences", where)
            captions.setdefault(name, []).extend((lang, text) for text in texts)
    for name, where in asked_by.items():
        image = find_picture(folders, (*FLICKR30K, "val2014"), name, where)
        yield Row(name, image, captions[name], where)


def _wit_rows(config: Wit) -> Iterator[Row]:
    folders = source_folders(config.kind, config.folders)
    waiting = _read_wit_captions(folders)
    for where, url, encoded, _ in read_wit_pictures(folders):
        entry = waiting.pop(url, None)
        if entry is None:  # a picture of another language, a header, or a second line of a picture
            continue
        image = from_base64(encoded, where)
        yield _wit_row(entry, image, entry.captions, "test")
        for lang in dict.fromkeys(lang for lang, _ in entry.captions):
            own = [caption for caption in entry.captions if caption[0] == lang]
            yield _wit_row(entry, image, own, f"test_{lang}")
    for url, entry in waiting.items():
        raise UserError(
            f"{entry.where}: the picture {url} is in none of the image_pixels files, nor are "
            f"{len(waiting) - 1} others; name the folder of all of them with `--from FOLDER`"
        )


def _wit_row(entry: _Entry, image: bytes, captions: list[tuple[str, str]], split: str) -> Row:
    return Row(entry.name, image, captions, entry.where, split, attribution=entry.page)


def _read_wit_captions(folders: Sequence[Path]) -> dict[str, _Entry]:
    """What is said of each picture, by its URL."""
    entries: dict[str, _Entry] = {}
    for lang in _WIT_LANGUAGES:
        file = f"test_{lang}.jsonl"
        for where, row in read_json_lines(find_file(folders, f"annotations/{file}", file)):
            url = text_field(row, "image_url", where)
            name, page = text_field(row, "wit_ix", where), text_field(row, "meta_url", where)
            entry = entries.setdefault(url, _Entry(name, page, where))
            text = text_field(row, "caption_reference_description", where)
            entry.captions.append((lang, text))
    return entries


def read_wit_pictures(folders: Sequence[Path]) -> Iterator[tuple[str, str, bytes, str]]:
    """(file and line, URL, base64, URL of its page or "") of every line of the image_pixels files."""
    patterns = [(folder, pattern) for folder in folders for pattern in _WIT_PICTURES]
    for path in (path for folder, pattern in patterns for path in sorted(folder.glob(pattern))):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                url, encoded, page, *_ = (*line.rstrip(b"\r\n").split(b"\t"), b"", b"")
                where = f"{path}, line {number}"
                yield where, _text(url), encoded.strip(), _text(page)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def from_base64(encoded: bytes, where: str) -> bytes:
    """The picture of such a line.

    Raises:
        UserError: it is no base64.
    """
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise UserError(f"{where}: must be a URL, a tab and a picture in base64") from None
