"""Pairs from folders with a caption file: one line per image, captions in any number of languages.

    <folder>/pairs.jsonl   {"id", "image", "captions": [{"lang", "text"}, ...], "license", ...}
    <folder>/splits.json   {"train": [ids], "val": [ids], "unused": [ids]}            (optional)

Further fields of a line that are understood: `same_picture_as` (the id of an earlier line with the equal
image), `split` (if there is no splits.json), `attribution`. Lines of the split `unused` are left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, LazyPair, check_split, key_of
from mmalign.data.sources.rows import (
    FolderSource,
    attempt,
    json_object,
    numbered_lines,
    text_field,
)


class Jsonl(FolderSource):
    """`folders`: those with a pairs.jsonl."""

    kind: Literal["jsonl"]

    def read(self, seed: int) -> Iterator[LazyPair | BadRow]:
        picture_of: dict[str, str] = {}  # key -> identity of its image
        for folder in self.paths():
            path = folder / "pairs.jsonl"
            if not path.is_file():
                raise UserError(f"{path}: no such file; a jsonl source needs it in each folder")
            splits = folder / "splits.json"
            split_of = _read_splits(self.inside(splits)) if splits.is_file() else None
            for where, line in numbered_lines(self.inside(path)):
                row = attempt(self._read_line, line, where, folder, split_of, picture_of)
                if row is not None:
                    yield row

    def _read_line(
        self,
        line: bytes,
        where: str,
        folder: Path,
        split_of: dict[str, str] | None,
        picture_of: dict[str, str],
    ) -> LazyPair | BadRow | None:
        """The pair of a line; None if its split is `unused`."""
        row = json_object(line, where)
        row_id = text_field(row, "id", where)
        key = key_of(row_id)
        if key in picture_of:
            raise BadRow(
                "duplicate key",
                f"{where}: the id `{row_id}` is in an earlier line too (`.` and `/` count as `_`)",
            )
        same = row.get("same_picture_as")
        if same is not None and (not isinstance(same, str) or key_of(same) not in picture_of):
            sentence = f"{where}: `same_picture_as` names `{same}`, which no earlier line has"
            raise BadRow("row", sentence)
        # Before the checks of its split and image: later lines may name a line that is not used.
        picture_of[key] = picture_of[key_of(same)] if same is not None else row_id
        split = row.get("split", "train") if split_of is None else split_of.get(row_id)
        if split is None:
            raise BadRow("split", f"{where}: the id `{row_id}` is in no list of splits.json")
        check_split(split, where)
        if split == "unused":
            return None
        listed = row.get("captions")
        if not isinstance(listed, list) or not listed:
            raise BadRow("row", f"{where}: `captions` must be a list that is not empty")
        captions = tuple(_caption(one, where) for one in listed)
        license = str(row.get("license") or "unknown")
        made = row.get("attribution")
        if isinstance(made, dict):  # as one text: `author: ..., illustrator: ...`
            made = ", ".join(f"{role}: {name}" for role, name in made.items() if name) or None
        attribution = made if isinstance(made, str) else None
        pair = Pair(key, b"", captions, picture_of[key], split, folder.name, license, attribution)
        image = self.find_image(text_field(row, "image", where), where, home=str(folder))
        return LazyPair(pair, image, where, f"the image {image.path}")


def _read_splits(path: Path) -> dict[str, str]:
    """Split of each id."""
    try:
        tree = json.loads(path.read_bytes())  # with or without a byte order mark
        return {i: split for split, ids in tree.items() if isinstance(ids, list) for i in ids}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path}: must hold one JSON object of lists of ids") from None


def _caption(row: Any, where: str) -> Caption:
    match row:
        case {"lang": str(lang), "text": str(text)}:
            if not text.strip():
                raise BadRow("no caption", f"{where}: the caption in `{lang}` is empty")
            return Caption(lang, text.strip())
    raise BadRow("caption", f'{where}: a caption must look like {{"lang": "sw", "text": "..."}}')
