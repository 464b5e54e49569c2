"""Crossmodal-3600 (Thapliyal et al., EMNLP 2022, arXiv 2205.12522): 3,600 pictures in 36 languages.

    captions.jsonl   {"image/key", "image/locale", "<lang>": {"caption": [texts], ...}, ...} -+-> Row -> Draft
    images/<image/key>.jpg -------------------------------------------------------------------+

All captions of a language are kept, in the publisher's order: two protocols differ in whether they use the
first one or all. `caption/tokenized` and `caption/tokenized/lowercase` are not read. The codes of the file
are BCP-47 already (`fil`, `he`, `mi`, `no`, `quz`).

The layout is as LAION-AI/CLIP_benchmark@55a7d82 (datasets/crossmodal3600.py) and
gregor-ge/Babel-ImageNet@317c498 (data_scripts/image_text_creation.py) read it; the publisher's own files
were not at hand.
"""

from collections.abc import Iterator
from typing import Literal

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.data.shards.lazy_pair import LazyPair
from mmalign.data.sources.rows import (
    Row,
    drafts_of,
    find_file,
    find_picture,
    read_json_lines,
    source_folders,
    text_field,
    texts_field,
)

_LICENSE = "captions: CC-BY-4.0; pictures: CC-BY-2.0 as listed by Open Images"


class Xm3600(Section):
    """Where Crossmodal-3600 lies."""

    kind: Literal["xm3600"]
    folders: tuple[str, ...] = ()
    """Folders that hold captions.jsonl and images/; `mmalign data build --from FOLDER` sets them."""


def read_drafts(config: Xm3600, seed: int) -> Iterator[LazyPair]:
    """The pictures in the order of captions.jsonl, split `test`; `seed` is there as every source has it.

    Raises:
        UserError: a file or a picture is missing, or a line is broken.
    """
    return drafts_of(_rows(config), config.kind, _LICENSE)


def _rows(config: Xm3600) -> Iterator[Row]:
    folders = source_folders(config.kind, config.folders)
    for where, row in read_json_lines(find_file(folders, "captions.jsonl")):
        key = text_field(row, "image/key", where)
        captions = [
            (lang, text)
            for lang, value in row.items()
            if isinstance(value, dict)
            for text in texts_field(value, "caption", f"{where}: `{lang}`")
        ]
        if not captions:
            raise UserError(f"{where}: no field is a language with its captions")
        strange = [lang for lang, _ in captions if not is_language_code(lang)]
        if strange:
            raise UserError(f"{where}: `{strange[0]}` is no BCP-47 language code")
        image = find_picture(folders, ["images"], f"{key}.jpg", where)
        yield Row(key, image, captions, where)
