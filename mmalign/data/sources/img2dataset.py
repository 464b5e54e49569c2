"""What img2dataset writes as `--output_format webdataset`: tars, each with a parquet file of metadata.

    <folder>/00000.tar         <key>.{jpg,png,webp}, <key>.txt, <key>.json --scan.py--> samples --+-> LazyPair
    <folder>/00000.parquet     one row per URL: key, status, caption, columns that were kept -----+
    <folder>/00000_stats.json  `successes`: samples that the tar had when it was written

Tars are read by the rules of `mmalign data index` (shards/scan.py): nothing is unpacked, and what it would
refuse is refused here. That command makes such tars usable as they are. This source packs them again: for
captions in several columns (`--save_additional_columns`), other sizes of shards, or withheld captions.

URLs that img2dataset could not download have a row but no sample. They are not bad rows: img2dataset's stats
count them. A row that says `success` without a sample, or a tar with fewer samples than its stats, is one.

The layout is that of rom1504/img2dataset (writer.py, downloader.py).
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, LazyPair, Part, key_of
from mmalign.data.shards.reader import UnusableSample, captions_in, parse_member
from mmalign.data.shards.scan import Rules, Scan
from mmalign.data.sources.columns import CaptionColumns, read_captions, read_table
from mmalign.data.sources.rows import FolderSource


class Img2dataset(FolderSource):
    """Where the captions of folders of tars are, and their languages."""

    kind: Literal["img2dataset"]
    captions: str | CaptionColumns = "txt"
    """`txt`, `json:FIELD`, or columns of the parquet files."""
    language: str | None = None
    """Of captions from `txt` or `json:FIELD`: a code such as `sw`, `json:FIELD`, or `identify`."""
    split: Literal["train", "val", "test"] = "train"
    license: str = "unknown"
    """Of every image and its captions."""

    @pydantic.model_validator(mode="after")
    def _rules(self) -> "Img2dataset":
        self.rules()
        return self

    def rules(self) -> Rules:
        """How tars are scanned."""
        if isinstance(self.captions, CaptionColumns):
            if self.language is not None:
                raise ValueError(
                    "`language` has no meaning where `captions` names columns; leave it out"
                )
            return Rules("txt", "und")  # the texts of the tars do not matter then
        try:
            return Rules(self.captions, self.language)
        except UserError as error:
            raise ValueError(str(error).replace("--", "")) from None


def read_drafts(config: Img2dataset, seed: int) -> Iterator[LazyPair | BadRow]:
    """The samples of all tars in the order of their names; `seed` is there because every source has it.

    Raises:
        UserError: a folder is missing or has no tars, or metadata are missing that the recipe asks for.
    """
    folders = config.paths()
    for number, folder in enumerate(folders):
        tars = sorted(folder.glob("*.tar"))
        if not tars:
            raise UserError(
                f"{folder}: holds no .tar; name img2dataset's output folder with `--from`"
            )
        prefix = f"{number}-" if len(folders) > 1 else ""
        for tar in tars:
            yield from _read_tar(tar, prefix, config)


def _read_tar(tar: Path, prefix: str, config: Img2dataset) -> Iterator[LazyPair | BadRow]:
    metadata = _read_metadata(tar, config.captions)
    rows, refusals = io.StringIO(), io.StringIO()
    try:
        with tar.open("rb") as file:
            Scan(tar.name, file, config.rules(), rows, refusals, _expected(tar)).run()
            for line in refusals.getvalue().split("\n")[:-1]:
                yield _refused(tar, json.loads(line))
            for line in rows.getvalue().split("\n")[:-1]:
                row = json.loads(line)
                where = f"{tar}, sample `{row['key']}`"
                try:
                    captions = _captions(tar, row, metadata, where, config)
                    yield _lazy_pair(tar, row, captions, prefix, where, config)
                except BadRow as bad:
                    yield bad
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror})") from None
    for key in metadata:
        sentence = f"{tar}: has no sample `{key}`, which its metadata say was downloaded"
        yield BadRow("status", sentence)


def _read_metadata(tar: Path, captions: str | CaptionColumns) -> dict[str, dict[str, Any]]:
    """The columns with captions of each image that was downloaded, by its key; empty if not asked for.

    Raises:
        UserError: there is no parquet file, or it lacks a column.
    """
    if isinstance(captions, str):
        return {}
    path = tar.with_suffix(".parquet")
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; captions from columns need the metadata of each tar"
        )
    columns = list(dict.fromkeys(["key", "status", *captions.names]))
    rows = (row for _, row in read_table(path, columns) if not isinstance(row, BadRow))
    # `success` is img2dataset's word for an image that was downloaded.
    return {str(row["key"]): row for row in rows if row["status"] == "success"}


def _expected(tar: Path) -> int | None:
    """How many samples the tar had when it was written, if its stats say so."""
    try:
        stats = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text(encoding="utf-8"))
        return int(stats["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refused(tar: Path, line: dict[str, Any]) -> BadRow:
    """What the scan refused."""
    sample = f", sample `{line['key']}`" if "key" in line else ""
    detail = f" ({line['detail']})" if "detail" in line else ""
    extent = f"bytes {line['start']} to {line['stop']}"
    return BadRow(line["reason"], f"{tar}{sample}, {extent}: {line['reason']}{detail}")


def _captions(
    tar: Path,
    row: dict[str, Any],
    metadata: dict[str, dict[str, Any]],
    where: str,
    config: Img2dataset,
) -> tuple[Caption, ...]:
    """The captions of a row of the index; its metadata are removed from those that still lack a sample."""
    if isinstance(config.captions, CaptionColumns):
        if row["key"] not in metadata:
            raise BadRow("status", f"{where}: its metadata do not say that it was downloaded")
        return read_captions(metadata.pop(row["key"]), config.captions, where)
    origin = config.captions.partition(":")[0]
    try:
        content = parse_member(origin, _part(tar, row[origin]).read())
        found = captions_in(content, config.captions)
    except UnusableSample as error:
        raise BadRow(error.reason, f"{where}: {error}") from None
    texts = (text.strip() for text, _ in found)
    return tuple(Caption(lang, text) for lang, text in zip(row["langs"], texts, strict=True))


def _lazy_pair(
    tar: Path,
    row: dict[str, Any],
    captions: tuple[Caption, ...],
    prefix: str,
    where: str,
    config: Img2dataset,
) -> LazyPair:
    # img2dataset's keys begin with the number of their tar; other writers may use equal keys in two tars.
    name = row["key"] if row["key"].startswith(tar.stem) else f"{tar.stem}-{row['key']}"
    key, source = key_of(prefix + name), tar.parent.name
    pair = Pair(key, b"", captions, row["picture"], config.split, source, config.license)
    return LazyPair(pair, _part(tar, row["image"]), where, "its image")


def _part(tar: Path, extent: list[Any]) -> Part:
    _, offset, size, crc32 = extent
    return Part(str(tar), offset, size, crc32)
