"""Tables: both ways of naming captions, three formats, and every mistake named by file and line."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from published_sets import write_pictures
from shard_sets import make_image, write_set

from mmalign.core.batch import Caption
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.reader import ShardSet
from mmalign.data.sources import columns
from mmalign.data.sources.table import Table

BY_LANGUAGE = {"by_language": {"en": "caption_en", "de": "caption_de"}}
LONG = {"text": "caption", "language": "lang"}
WIDE_HEADER = "file,caption_en,caption_de"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "set" / "images", ["0.jpg", "1.jpg", "2.jpg"])
    return tmp_path / "set"


def table(folder: Path, name: str, **fields: Any) -> Table:
    tree = {"kind": "table", "folders": [str(folder)], "files": [name], "image": "file"}
    return validate(Table, {**tree, "captions": BY_LANGUAGE, **fields}, "x.yaml")


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read(config: Table) -> list[LazyPair]:
    rows = list(config.read(seed=0))
    assert all(isinstance(row, LazyPair) for row in rows), rows
    return [row for row in rows if isinstance(row, LazyPair)]


def bad_rows(config: Table) -> list[tuple[str, str]]:
    rows = config.read(seed=0)
    return [(row.reason, str(row)) for row in rows if isinstance(row, BadRow)]


def captions(draft: LazyPair) -> list[tuple[str, str]]:
    return [(caption.lang, caption.text) for caption in draft.pair.captions]


def test_a_column_for_each_language(folder: Path) -> None:
    write(
        folder / "captions.csv",
        WIDE_HEADER + ",split",
        'images/0.jpg,"a ball, red",ein roter Ball,train',
        "images/1.jpg, ,ein Hund,val",
    )
    config = table(folder, "captions.csv", split_column="split", license="CC0-1.0")
    first, second = read(config)
    assert first.load().image == make_image(0, "JPEG")
    assert captions(first) == [("en", "a ball, red"), ("de", "ein roter Ball")]
    assert captions(second) == [("de", "ein Hund")]  # the other cell is blank
    assert (first.pair.split, second.pair.split) == ("train", "val")
    assert (first.pair.key, first.pair.picture) == ("captions_csv-000000000", "images/0.jpg")
    assert (first.pair.source, first.pair.license) == ("set", "CC0-1.0")


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_a_caption_joins_rows_of_one_picture(folder: Path, packed: bool) -> None:
    rows = ["images/0.jpg\ten\ta ball", "images/0.jpg\tsw\tmpira", "images/1.jpg\ten\ta dog"]
    path = write(folder / "c.tsv", "file\tlang\tcaption", *rows, "images/0.jpg\tja\tボール")
    if packed:
        path.with_name("c.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    drafts = read(table(folder, "c.tsv.gz" if packed else "c.tsv", captions=LONG))
    assert [captions(draft) for draft in drafts] == [
        [("en", "a ball"), ("sw", "mpira")],
        [("en", "a dog")],
        [("ja", "ボール")],
    ]
    assert [draft.pair.picture for draft in drafts] == [f"images/{n}.jpg" for n in (0, 1, 0)]
    assert len({draft.pair.key for draft in drafts}) == 3


def test_parquet_may_have_lists(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"file": "images/0.jpg", "texts": ["a ball", "mpira"], "langs": ["en", "sw"], "n": 1},
        {"file": "images/1.jpg", "texts": ["a dog", "one dog"], "langs": ["en", "en"], "n": 2},
        {"file": "images/2.jpg", "texts": ["a dog"], "langs": ["en", "de"], "n": 3},
        {"file": None, "texts": ["a dog"], "langs": ["en"], "n": 4},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "c.parquet")
    columns = {"text": "texts", "language": "langs"}
    config = table(folder, "c.parquet", captions=columns)
    found = [row for row in config.read(seed=0) if isinstance(row, LazyPair)]
    assert [draft.pair.captions for draft in found] == [
        (Caption("en", "a ball"), Caption("sw", "mpira")),
        (Caption("en", "a dog"), Caption("en", "one dog")),
    ]
    path = folder / "c.parquet"
    assert bad_rows(config) == [
        ("language", f"{path}, row 3: has 1 captions, but 2 languages"),
        ("row", f"{path}, row 4: `file` must be a path"),
    ]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"c\.parquet: is no readable parquet file"):
        read(config)


def test_a_parquet_row_that_is_not_utf8_is_one_bad_row(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    ends, texts = pyarrow.array([0, 1, 3, 4], "int32"), b"a\xff\xfeb"
    texts = pyarrow.Array.from_buffers(
        pyarrow.utf8(), 3, [None, ends.buffers()[1], pyarrow.py_buffer(texts)]
    )
    files = pyarrow.array([f"images/{n}.jpg" for n in range(3)])
    columns = {"file": files, "caption_en": texts}
    parquet.write_table(pyarrow.table(columns), folder / "c.parquet")
    config = table(folder, "c.parquet", captions={"by_language": {"en": "caption_en"}})
    assert bad_rows(config) == [("not UTF-8", f"{folder}/c.parquet, row 2: is not UTF-8")]
    assert len([row for row in config.read(0) if isinstance(row, LazyPair)]) == 2


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\x00.jpg"])
def test_a_path_that_cannot_be_one_is_missing(folder: Path, name: str) -> None:
    write(folder / "c.csv", WIDE_HEADER, f"{name},a ball,")
    assert [reason for reason, _ in bad_rows(table(folder, "c.csv"))] == ["missing"]


def test_rows_that_cannot_be_used_are_named_and_the_others_are_there(folder: Path) -> None:
    path = folder / "c.csv"
    write(
        path,
        WIDE_HEADER,
        "images/0.jpg,a ball",
        "images/0.jpg,,",
        "images/none.jpg,a ball,ein Ball",
        ",a ball,ein Ball",
        "images/1.jpg,a dog,XXX",
        "images/2.jpg,a cat,eine Katze",
    )
    path.write_bytes(path.read_bytes().replace(b"XXX", b"\xff"))
    config = table(folder, "c.csv")
    assert bad_rows(config) == [
        ("row", f"{path}, line 2: has 2 cells, the header has 3"),
        ("no caption", f"{path}, line 3: has no caption, or only blank ones"),
        (
            "missing",
            f"{path}, line 4: the image `images/none.jpg` is not in {folder}; name its folder with "
            "`--from FOLDER`",
        ),
        ("row", f"{path}, line 5: `file` must be a path"),
        ("not UTF-8", f"{path}, line 6: is not UTF-8"),
    ]
    good = [row for row in config.read(seed=0) if isinstance(row, LazyPair)]
    assert [draft.pair.picture for draft in good] == ["images/2.jpg"]


def test_a_split_must_be_able_to_be_a_folder(folder: Path) -> None:
    write(folder / "c.csv", WIDE_HEADER + ",split", "images/0.jpg,a ball,,../train")
    config = table(folder, "c.csv", split_column="split")
    assert bad_rows(config)[0][0] == "split"


def test_a_language_code_is_checked_with_the_picture(folder: Path) -> None:
    write(folder / "c.csv", "file,lang,caption", "images/0.jpg,e,a ball")
    (draft,) = read(table(folder, "c.csv", captions=LONG))
    with pytest.raises(BadRow, match="line 2: `e` is no BCP-47 language code"):
        draft.load()


def test_quotation_marks_may_be_plain_characters(folder: Path) -> None:
    path = write(folder / "c.csv", WIDE_HEADER, 'images/0.jpg,"a ball,ein Ball', "images/1.jpg,b,")
    first, _ = read(table(folder, "c.csv", quotes=False))
    assert captions(first)[0] == ("en", '"a ball')
    with pytest.raises(UserError, match=rf"{path}, line 2: the row .* invalid .*`quotes: false`"):
        read(table(folder, "c.csv"))


UNPAIRED = (
    "images/0.jpg\ta red circle",
    'images/1.jpg\t"so nice, it is',
    "images/2.jpg\ta bar",
    'images/0.jpg\ta black tv, 32"',
    "images/1.jpg\tlast",
)


@pytest.mark.parametrize("packed", [False, True])
def test_a_tsv_file_with_a_quotation_mark_at_the_start_of_a_cell_must_say_what_it_means(
    folder: Path, packed: bool
) -> None:
    path = write(folder / "c.tsv", "file\tcaption_en", *UNPAIRED)
    if packed:
        path = path.with_name("c.tsv.gz")
        path.write_bytes(gzip.compress((folder / "c.tsv").read_bytes()))
    columns = {"captions": {"by_language": {"en": "caption_en"}}}
    with pytest.raises(UserError) as caught:
        read(table(folder, path.name, **columns))
    assert str(caught.value).startswith(f"{path}, line 3: a cell begins with a quotation mark")
    assert "`quotes: true`" in str(caught.value) and "`quotes: false`" in str(caught.value)
    found = read(table(folder, path.name, quotes=False, **columns))
    texts = [text for draft in found for _, text in captions(draft)]
    assert texts == [line.split("\t")[1] for line in UNPAIRED]
    ((reason, told),) = bad_rows(table(folder, path.name, quotes=True, **columns))
    assert reason == "row" and told.startswith(f"{path}, line 3: a quotation mark opens")


def test_quoted_cells_of_a_tsv_file_are_read_where_the_recipe_says_so(folder: Path) -> None:
    write(folder / "c.tsv", "file\tcaption_en", 'images/0.jpg\t"a ""red"" ball"')
    columns = {"captions": {"by_language": {"en": "caption_en"}}}
    (draft,) = read(table(folder, "c.tsv", quotes=True, **columns))
    assert captions(draft) == [("en", 'a "red" ball')]


def test_a_csv_cell_never_holds_other_rows(folder: Path) -> None:
    lines = [line.replace("\t", ",") for line in UNPAIRED]
    path = write(folder / "c.csv", "file,caption_en", *lines)
    columns = {"captions": {"by_language": {"en": "caption_en"}}}
    with pytest.raises(UserError, match=rf"{path}, line 3: the quotation mark .* in line 5"):
        read(table(folder, "c.csv", **columns))
    # Cells may have several lines.
    write(path, "file,caption_en", 'images/0.jpg,"a dog, running', 'in a ""field"""')
    (draft,) = read(table(folder, "c.csv", **columns))
    assert captions(draft) == [("en", 'a dog, running\nin a "field"')]


def test_captions_of_one_image_in_two_splits_do_not_meet(folder: Path) -> None:
    rows = ["images/0.jpg,seen,train", "images/0.jpg,held out,test", "images/1.jpg,x,test"]
    write(folder / "c.csv", "file,caption_en,split", *rows)
    columns = {"captions": {"by_language": {"en": "caption_en"}}, "split_column": "split"}
    found = [
        (d.pair.split, d.pair.picture, captions(d)) for d in read(table(folder, "c.csv", **columns))
    ]
    assert found == [
        ("train", "images/0.jpg", [("en", "seen")]),
        ("test", "images/0.jpg", [("en", "held out")]),
        ("test", "images/1.jpg", [("en", "x")]),
    ]


def test_two_ways_to_write_a_path_are_one_image(folder: Path) -> None:
    rows = ["./images/0.jpg,en,one", "images/0.jpg,en,two", "images//x/../0.jpg,sw,moja"]
    write(folder / "c.csv", "file,lang,caption", *rows)
    (draft,) = read(table(folder, "c.csv", captions=LONG))
    assert draft.pair.picture == "images/0.jpg"
    assert captions(draft) == [("en", "one"), ("en", "two"), ("sw", "moja")]


def test_a_folder_that_0_1_0_built_counts_as_built(folder: Path) -> None:
    assert table(folder, "c.csv").model_dump()["quotes"] is True
    assert table(folder, "c.csv", quotes=False).model_dump()["quotes"] is False


def test_urls_are_refused_and_the_way_is_named(folder: Path) -> None:
    path = write(folder / "c.csv", WIDE_HEADER, "https://example.org/0.jpg,a ball,")
    with pytest.raises(UserError) as caught:
        read(table(folder, "c.csv"))
    assert str(caught.value).startswith(f"{path}, line 2: `file` holds URLs; download the images")
    assert "img2dataset" in str(caught.value)


def test_a_table_that_is_none_is_named(folder: Path) -> None:
    path = write(folder / "c.csv", "image,caption_en,caption_de")
    with pytest.raises(UserError, match=rf"{path}: has no column `file`; name one of image, "):
        read(table(folder, "c.csv"))
    with pytest.raises(UserError, match=r"no `none\.csv` there"):
        read(table(folder, "none.csv"))
    write(folder / "c.xlsx", "file")
    with pytest.raises(UserError, match=r"c\.xlsx: must be a \.csv, \.tsv"):
        read(table(folder, "c.xlsx"))
    (folder / "c.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"c\.csv\.gz: cannot be read"):
        read(table(folder, "c.csv.gz"))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({}, "give either `by_language` or both"),
        ({**BY_LANGUAGE, **LONG}, "give either `by_language` or both"),
        ({"text": "caption"}, "columns that belong together"),
        ({"by_language": {"e": "caption"}}, "`e`, which is no BCP-47 language code"),
    ],
)
def test_captions_are_named_in_one_way(folder: Path, columns: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        table(folder, "c.csv", captions=columns)


@pytest.mark.parametrize("as_struct", [False, True])
def test_images_may_be_in_the_parquet_file(folder: Path, as_struct: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    images = [make_image(i) for i in (0, 1, 1, 2, 3)]
    cells = [{"bytes": image, "path": None} for image in images] if as_struct else images
    rows = pyarrow.table(
        {"file": cells, "caption": [f"caption {i}" for i in range(5)], "lang": ["en"] * 5}
    )
    pyarrow.parquet.write_table(rows, folder / "t.parquet", row_group_size=2)
    drafts = read(table(folder, "t.parquet", captions=LONG))
    assert [draft.load().image for draft in drafts] == [images[i] for i in (0, 1, 3, 4)]
    assert captions(drafts[1]) == [("en", "caption 1"), ("en", "caption 2")]
    assert len({draft.pair.picture for draft in drafts}) == 4
    # Another file of that name is not taken for it.
    pyarrow.parquet.write_table(rows.slice(1), folder / "t.parquet", row_group_size=2)
    columns._group.cache_clear()
    columns._row_groups.cache_clear()
    with pytest.raises(BadRow, match="it changed while it was read"):
        drafts[0].load()


def test_captions_of_several_fields_keep_their_field_in_shards(folder: Path) -> None:
    write(
        folder / "f.csv",
        "file,alt,recaption,lang",
        "images/0.jpg,IMG_1,a dog,en",
        "images/1.jpg,,ein Hund,de",
    )
    columns = {"text": {"alt": "alt", "recaption": "recaption"}, "language": "lang"}
    drafts = read(table(folder, "f.csv", captions=columns))
    expected = [
        (Caption("en", "IMG_1", "alt"), Caption("en", "a dog", "recaption")),
        (Caption("de", "ein Hund", "recaption"),),
    ]
    assert [draft.pair.captions for draft in drafts] == expected
    shards = write_set(folder / "shards", [draft.load() for draft in drafts])
    assert [ShardSet(shards).read(i).captions for i in range(2)] == expected


def test_files_may_be_a_pattern(folder: Path) -> None:
    (folder / "t").mkdir()
    for number in (1, 0):
        write(folder / "t" / f"{number}.csv", WIDE_HEADER, f"images/{number}.jpg,a dog,ein Hund")
    write(folder / "t" / "notes.txt", "x")
    keys = [draft.pair.key for draft in read(table(folder, "t/*.csv"))]
    assert keys == ["t_0_csv-000000000", "t_1_csv-000000000"]
    # Two parts of a set often have tables of equal names; none is left out in silence.
    other = folder / "other"
    (other / "t").mkdir(parents=True)
    write(other / "t" / "0.csv", WIDE_HEADER, "images/0.jpg,a cat,eine Katze")
    both = table(folder, "t/*.csv").model_copy(update={"folders": (str(folder), str(other))})
    with pytest.raises(UserError, match=r"other/t/0\.csv: has the name of .*/t/0\.csv; rename"):
        read(both)
    with pytest.raises(UserError, match=r"no `t/\*\.tsv` there; fix `source\.files`"):
        read(table(folder, "t/*.tsv"))
