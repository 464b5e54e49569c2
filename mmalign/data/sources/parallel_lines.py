"""Sets whose caption files go line by line with a file of picture names: XTD10 and Multi30k.

    picture names, line n ------------+
    captions in language a, line n ---+-> Row n -> Draft
    captions in language b, line n ---+

One caption a picture and language, so the all-captions and the first-caption protocol are the same.

XTD10 (Aggarwal and Kale 2020, arXiv 2012.05107), in adobe-research/Cross-lingual-Test-Dataset-XTD10@d77ff16:

    XTD10/test_image_names.txt                            1,000 of COCO: 800 of train2014, 200 of val2014
    XTD10/test_1kcaptions_{en,es,it,ko,pl,ru,tr,zh}.txt   the set itself
    MIC/test_1kcaptions_{de,fr}.txt                       of the set MIC, arXiv 1510.03519
    STAIR/test_1kcaptions_jp.txt                          of STAIR Captions; `jp` becomes `ja`

Multi30k, task 1 (Elliott et al. 2016, arXiv 1605.00459), in multi30k/dataset@a3d2e0d:

    data/task1/image_splits/test_2016_flickr.txt          1,000 names of Flickr30k's pictures
    data/task1/raw/test_2016_flickr.{cs,de,en,fr}.gz      raw text; the tokenised one is not read
"""

from collections.abc import Iterator, Sequence
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
    read_lines,
    source_folders,
)

_XTD10_PARTS = ("XTD10", "MIC", "STAIR")
_XTD10_LICENSE = (
    "captions: Adobe Research License (noncommercial research), those of MIC and STAIR their own; "
    "pictures: Flickr's terms, see COCO"
)
_XTD10_LANGUAGES = ("de", "en", "es", "fr", "it", "jp", "ko", "pl", "ru", "tr", "zh")
_BCP47 = {"jp": "ja"}
_COCO = ("train2014", "val2014", "images")

_MULTI30K_LANGUAGES = ("cs", "de", "en", "fr")
_MULTI30K_TEST = "test_2016_flickr"
_MULTI30K_LICENSE = "captions: not stated; pictures: Flickr's terms, see Flickr30k"


class Xtd10(Section):
    """Where XTD10 and the pictures of COCO lie."""

    kind: Literal["xtd10"]
    folders: tuple[str, ...] = ()
    """The publisher's folder, and one with train2014/ and val2014/; `--from FOLDER` sets them."""


class Multi30k(Section):
    """Where Multi30k and the pictures of Flickr30k lie."""

    kind: Literal["multi30k"]
    folders: tuple[str, ...] = ()
    """The publisher's folder, and one with Flickr30k's pictures; `--from FOLDER` sets them."""


def read_xtd10(config: Xtd10, seed: int) -> Iterator[LazyPair]:
    """The pictures in the order of test_image_names.txt, split `test`; `seed` changes nothing.

    Raises:
        UserError: a file or a picture is missing, or files differ in their number of lines.
    """
    folders = source_folders(config.kind, config.folders)
    names = find_file(folders, "XTD10/test_image_names.txt", "test_image_names.txt")
    captions = {
        _BCP47.get(lang, lang): _find_xtd10_captions(folders, lang) for lang in _XTD10_LANGUAGES
    }
    return drafts_of(_rows(names, captions, folders, _COCO), config.kind, _XTD10_LICENSE)


def read_multi30k(config: Multi30k, seed: int) -> Iterator[LazyPair]:
    """The pictures of the Flickr test of 2016, split `test`; `seed` changes nothing.

    Raises:
        UserError: a file or a picture is missing, or files differ in their number of lines.
    """
    folders = source_folders(config.kind, config.folders)
    listed = f"{_MULTI30K_TEST}.txt"
    names = find_file(
        folders, f"data/task1/image_splits/{listed}", f"image_splits/{listed}", listed
    )
    captions = {lang: _find_multi30k_captions(folders, lang) for lang in _MULTI30K_LANGUAGES}
    return drafts_of(_rows(names, captions, folders, FLICKR30K), config.kind, _MULTI30K_LICENSE)


def _find_xtd10_captions(folders: Sequence[Path], lang: str) -> Path:
    name = f"test_1kcaptions_{lang}.txt"
    return find_file(folders, *(f"{part}/{name}" for part in _XTD10_PARTS), name)


def _find_multi30k_captions(folders: Sequence[Path], lang: str) -> Path:
    name = f"{_MULTI30K_TEST}.{lang}"
    places = ("data/task1/raw/", "raw/", "")
    return find_file(folders, *(f"{place}{name}{end}" for place in places for end in (".gz", "")))


def _rows(
    names: Path, captions: dict[str, Path], folders: Sequence[Path], places: Sequence[str]
) -> Iterator[Row]:
    pictures = read_lines(names)
    texts = {lang: read_lines(path) for lang, path in captions.items()}
    for lang, lines in texts.items():
        if len(lines) != len(pictures):
            raise UserError(
                f"{captions[lang]}: has {len(lines)} captions, but {names} names {len(pictures)} "
                "pictures; get both from one release"
            )
    for number, name in enumerate(pictures):
        where = f"{names}, line {number + 1}"
        image = find_picture(folders, places, name, where)
        yield Row(name, image, [(lang, lines[number]) for lang, lines in texts.items()], where)
