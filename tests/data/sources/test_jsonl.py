"""Caption files: what they say is read, and each mistake is named by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest
from shard_sets import finished, make_image

from mmalign.core.batch import Caption, Pair
from mmalign.core.errors import UserError
from mmalign.data.sources.jsonl import Jsonl


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "image": f"images/{number}.png",
        "captions": [{"lang": "en", "text": f"text {number}"}],
        **fields,
    }


def write_folder(folder: Path, rows: list[Any], splits: Any = None) -> Path:
    """A source folder; a row that is text or bytes is written as it is."""
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        (folder / "images" / f"{number}.png").write_bytes(make_image(number))
    (folder / "images" / "cut.png").write_bytes(make_image(0)[:60])
    (folder / "images" / "not an image.png").write_text("hello")
    lines = [
        line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
        for line in rows
    ]
    (folder / "pairs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    if splits is not None:
        (folder / "splits.json").write_text(json.dumps(splits))
    return folder


def read(*folders: Path) -> list[Pair]:
    config = Jsonl(kind="jsonl", folders=tuple(str(folder) for folder in folders))
    return list(finished(config.read(seed=0)))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_line_becomes_a_pair(tmp_path: Path) -> None:
    captions = [{"lang": "pt-BR", "text": " bola\u2028vermelha "}, {"lang": "sw", "text": "mpira"}]
    full = row(
        1,
        id="book/1.a",
        captions=captions,
        split="val",
        license="CC-BY-4.0",
        attribution={"author": "A", "illustrator": "B", "translator": None},
    )
    first, second = read(write_folder(tmp_path / "stories", [full, b"", row(2)]))
    assert first == Pair(
        key="book_1_a",
        image=make_image(1),
        captions=(Caption("pt-BR", "bola\u2028vermelha"), Caption("sw", "mpira")),
        picture="book/1.a",
        split="val",
        source="stories",
        license="CC-BY-4.0",
        attribution="author: A, illustrator: B",
    )
    assert (second.split, second.license, second.attribution) == ("train", "unknown", None)
    assert second.picture == second.key == "p2"


def test_equal_pictures_share_one_identity_along_a_chain_and_across_folders(tmp_path: Path) -> None:
    rows = [row(0), row(1, same_picture_as="p0"), row(2, same_picture_as="p1")]
    a = write_folder(tmp_path / "a", rows)
    b = write_folder(tmp_path / "b", [row(3, same_picture_as="p2")])
    assert [pair.picture for pair in read(a, b)] == ["p0"] * 4
    assert [pair.key for pair in read(a, b)] == ["p0", "p1", "p2", "p3"]


def test_splits_come_from_splits_json_and_unused_lines_are_left_out(tmp_path: Path) -> None:
    splits = {"note": "by story", "train": ["p0"], "val": ["p1"], "unused": ["p2"]}
    # A line that is not used may name an image that is not there, and others may name its picture.
    rows = [row(0, split="x"), row(2, image="none.png"), row(1, same_picture_as="p2")]
    pairs = read(write_folder(tmp_path / "a", rows, splits))
    assert [(p.key, p.split, p.picture) for p in pairs] == [
        ("p0", "train", "p0"),
        ("p1", "val", "p2"),
    ]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'{"id": "p1",', "not valid JSON ("),
        (b'{"id": "p\xff1"}', "not valid JSON ("),
        (b"[1]", "must be a JSON object"),
        (row(1, id=None), "`id` must be a text"),
        (row(1, id=""), "`id` must be a text"),
        (row(1, id="p0"), "the id `p0` is in an earlier line too"),
        (row(1, same_picture_as="p7"), "`same_picture_as` names `p7`, which no earlier line has"),
        (row(1, same_picture_as="p1"), "`same_picture_as` names `p1`, which no earlier line has"),
        (row(1, same_picture_as=["p0"]), "`same_picture_as` names `['p0']`, which no earlier"),
        (row(1, image=3), "`image` must be a text"),
        (row(1, image="images/none.png"), "the image `images/none.png` is not in {folder}"),
        (row(1, image="images"), "the image `images` is not in {folder}"),
        (row(1, image="images/cut.png"), "the image {folder}/images/cut.png does not decode"),
        (
            row(1, image="images/not an image.png"),
            "the image {folder}/images/not an image.png does not decode",
        ),
        (row(1, captions=[]), "`captions` must be a list that is not empty"),
        (row(1, captions={"en": "x"}), "`captions` must be a list that is not empty"),
        (row(1, captions=["x"]), "a caption must look like"),
        (row(1, captions=[{"lang": "en"}]), "a caption must look like"),
        (row(1, captions=[{"lang": "en", "text": " \t"}]), "the caption in `en` is empty"),
        (row(1, captions=[{"lang": "e", "text": "x"}]), "`e` is no BCP-47 language code"),
        (row(1, captions=[{"lang": "../en", "text": "x"}]), "`../en` is no BCP-47 language code"),
        (row(1, split="../train"), "the split `../train` must be letters"),
        (row(1, split=3), "the split `3` must be letters"),
        (row(1, split="tasks"), "the split `tasks` must be letters"),
        (row(1, split="withheld"), "the split `withheld` must be letters"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: Any, reason: str) -> None:
    folder = write_folder(tmp_path / "a", [row(0), b"", broken, row(2)])
    start = f"{folder}/pairs.jsonl, line 3: {reason.format(folder=folder)}"
    assert refusal(folder).startswith(start)


def test_two_ids_that_make_one_member_name_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [row(0, id="a.b"), row(1, id="a/b")])
    assert "line 2: the id `a/b` is in an earlier line too" in refusal(folder)


def test_an_id_must_stand_in_splits_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [row(0), row(1)], {"train": ["p0"]})
    assert refusal(folder).endswith("line 2: the id `p1` is in no list of splits.json")
    broken = write_folder(tmp_path / "b", [row(0)], ["p0"])
    assert refusal(broken) == f"{broken}/splits.json: must hold one JSON object of lists of ids"


def test_splits_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [row(0)], {"val": ["p0"]})
    path = folder / "splits.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [pair.split for pair in read(folder)] == ["val"]


def test_folders_must_be_named_and_hold_a_caption_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`source\.folders` is empty.*--from"):
        read()
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"pairs\.jsonl: no such file"):
        read(tmp_path)
