"""What img2dataset writes as `--output_format webdataset`: tars, each with a parquet file of metadata.

    <folder>/00000.tar         <key>.{jpg,png,webp}, <key>.txt, <key>.json --scan.py--> samples --+-> LazyPair
    <folder>/00000.parquet     one row per URL: key, status, caption, columns that were kept -----+
    <folder>/00000_stats.json  `successes`: samples that the tar had when it was written

Tars are read by the rules of `mmalign data index` (shards/scan.py): nothing is unpacked, and what it would
refuse is refused here. That command makes such tars usable as they are. This source packs them again: for
captions in several columns (`--save_additional_columns`), other sizes of shards, or withheld captions.

The layout is that of rom1504/img2dataset (writer.py, downloader.py).
"""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.shards.foreign_tars import stated_samples
from mmalign.data.shards.lazy_pair import BadRow, LazyPair, Part, key_of
from mmalign.data.shards.manifest import extent_of
from mmalign.data.shards.reader import UnusableSample, captions_in, parse_member
from mmalign.data.shards.scan import Rules, Scan, check_picture
from mmalign.data.sources.columns import CaptionColumns, read_captions, read_table
from mmalign.data.sources.rows import FolderSource, attempt
from mmalign.data.verify import describe


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
    def _check_rules(self) -> "Img2dataset":
        self._rules()
        return self

    def _rules(self) -> Rules:
        """How tars are scanned."""
        if isinstance(self.captions, CaptionColumns):
            if self.language is not None:
                raise ValueError(
                    "`language` has no meaning where `captions` names columns; leave it out"
                )
            return Rules("txt", "und")  # not used: _ImageScan reads no caption
        try:
            return Rules(self.captions, self.language)
        except UserError as error:
            raise ValueError(str(error).replace("--", "")) from None

    def read(self, seed: int) -> Iterator[LazyPair | BadRow]:
        for prefix, folder in self.prefixed():
            tars = [self.inside(tar) for tar in sorted(folder.glob("*.tar"))]
            if not tars:
                raise UserError(
                    f"{folder}: holds no .tar; name img2dataset's output folder with `--from`"
                )
            for tar in tars:
                yield from self._read_tar(tar, prefix)

    def _read_tar(self, tar: Path, prefix: str) -> Iterator[LazyPair | BadRow]:
        metadata = self._read_metadata(tar)
        scan = Scan if isinstance(self.captions, str) else _ImageScan
        rows, refusals = io.StringIO(), io.StringIO()
        refused_keys = set()
        try:
            with tar.open("rb") as file:
                # Languages as they are written: the door of all sources respells and counts them.
                scan(
                    tar.name, file, self._rules(), rows, refusals, stated_samples(tar), spell=str
                ).run()
                for line in refusals.getvalue().split("\n")[:-1]:
                    refused = json.loads(line)
                    refused_keys.add(refused.get("key"))
                    yield BadRow(refused["reason"], describe({**refused, "file": tar}))
                for line in rows.getvalue().split("\n")[:-1]:
                    yield attempt(self._lazy_pair, tar, json.loads(line), metadata, prefix)
        except OSError as error:
            raise UserError(f"{tar}: cannot be read ({error.strerror})") from None
        for key in (key for key in metadata if key not in refused_keys):
            sentence = f"{tar}: has no sample `{key}`, which its metadata say was downloaded"
            yield BadRow("status", sentence)

    def _read_metadata(self, tar: Path) -> dict[str, dict[str, Any]]:
        """The columns with captions of each image that was downloaded, by its key; empty if not asked for."""
        if isinstance(self.captions, str):
            return {}
        path = tar.with_suffix(".parquet")
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; captions from columns need the metadata of each tar"
            )
        columns = list(dict.fromkeys(["key", "status", *self.captions.names]))
        rows = (
            row for _, row in read_table(self.inside(path), columns) if not isinstance(row, BadRow)
        )
        # URLs that could not be downloaded have another status. They are not bad rows: img2dataset's stats
        # count them.
        return {str(row["key"]): row for row in rows if row["status"] == "success"}

    def _lazy_pair(
        self, tar: Path, row: dict[str, Any], metadata: dict[str, dict[str, Any]], prefix: str
    ) -> LazyPair:
        """The pair of a row of the index; its metadata are removed from those that still lack a sample."""
        key = row["key"]
        where = f"{tar}, sample `{key}`"
        if isinstance(self.captions, CaptionColumns):
            if key not in metadata:
                raise BadRow("status", f"{where}: its metadata do not say that it was downloaded")
            captions = read_captions(metadata.pop(key), self.captions, where)
        else:
            origin = self.captions.partition(":")[0]
            try:
                content = parse_member(origin, _part(tar, row[origin]).read())
                found = captions_in(content, self.captions)
            except UnusableSample as error:
                raise BadRow(error.reason, f"{where}: {error}") from None
            texts = (text.strip() for text, _ in found)
            captions = tuple(map(Caption, row["langs"], texts))
        # img2dataset's keys begin with the number of their tar; other writers may use equal keys in two tars.
        name = key if key.startswith(tar.stem) else f"{tar.stem}-{key}"
        picture, source = row["picture"], tar.parent.name
        pair = Pair(key_of(prefix + name), b"", captions, picture, self.split, source, self.license)
        return LazyPair(pair, _part(tar, row["image"]), where, "its image")


class _ImageScan(Scan):
    """Samples of which the tar need hold no more than the image."""

    def _row(self, group: Any) -> dict[str, Any]:
        if "image" not in group.members:
            raise UnusableSample("no image")
        image = self._read(group, "image")
        check_picture(image)
        suffix, member = group.members["image"]
        extent = extent_of(suffix, member.offset, image)
        picture = hashlib.sha256(image).hexdigest()
        return {"key": group.key, "image": extent, "picture": picture, "langs": []}


def _part(tar: Path, extent: list[Any]) -> Part:
    _, offset, size, crc32 = extent
    return Part(str(tar), offset, size, crc32)
