"""img2dataset's output: captions from texts, JSON or columns; what the scan refuses is refused here."""

import json
from pathlib import Path
from typing import Any

import pytest
from hostile_shards import RunsCode, sample, tar_of
from published_sets import write_lines
from shard_sets import make_image

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.reader import ShardSet
from mmalign.data.sources.img2dataset import Img2dataset

COLUMNS = {"by_language": {"en": "caption", "de": "caption_de"}}


def key(number: int) -> str:
    """Two samples a shard: the number of the shard, then that in the shard."""
    return f"{number // 2:05d}{number % 2:04d}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of two samples."""
    folder = tmp_path / "laion"
    folder.mkdir()
    for shard in range(2):
        numbers = (2 * shard, 2 * shard + 1)
        members = [member for n in numbers for member in sample(n, key(n))]
        (folder / f"{shard:05d}.tar").write_bytes(tar_of(members))
        stats = {"count": 3, "successes": 2}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return folder


def write_metadata(folder: Path) -> None:
    """A row a URL; the last one of each shard was not downloaded."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for shard in range(2):
        rows = [
            {
                "key": key(number),
                "status": "success",
                "caption": f"dog {number}",
                "caption_de": f"Hund {number}" if number else None,
            }
            for number in (2 * shard, 2 * shard + 1)
        ]
        rows.append({"key": f"{shard:05d}0002", "status": "failed_to_download"})
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")


def source(folder: Path, **fields: Any) -> Img2dataset:
    tree = {"kind": "img2dataset", "folders": [str(folder)], **fields}
    return validate(Img2dataset, tree, "x.yaml")


def read(config: Img2dataset) -> tuple[list[LazyPair], list[BadRow]]:
    rows = list(config.read(seed=0))
    good = [row for row in rows if isinstance(row, LazyPair)]
    return good, [row for row in rows if isinstance(row, BadRow)]


def test_samples_become_pairs_of_our_shards(folder: Path, tmp_path: Path) -> None:
    tree = {"name": "laion", "samples_per_shard": 3}
    fields = {"language": "json:LANGUAGE", "license": "see the pages", "folders": [str(folder)]}
    config = {**tree, "source": {"kind": "img2dataset", **fields}}
    (manifest,) = build(validate(RecipeConfig, config, "x.yaml"), tmp_path / "out")
    assert (manifest.samples, manifest.languages) == (4, {"en": 2, "sw": 2})
    pairs = ShardSet(tmp_path / "out" / "train")
    third = pairs.read(2)
    assert third.image == make_image(2, "JPEG")
    assert [(c.lang, c.text) for c in third.captions] == [("en", "caption 2 of a dog ñ 漢")]
    assert (third.key, third.license, third.source) == ("000010000", "see the pages", "laion")
    assert len(third.picture) == 64  # its sha256: equal pictures are equal in all shards


def test_captions_come_from_a_field_of_the_json(folder: Path) -> None:
    good, bad = read(source(folder, captions="json:caption", language="en"))
    assert [draft.pair.captions[0].text[:9] for draft in good] == [f"caption {n}" for n in range(4)]
    assert bad == []


def test_captions_come_from_columns_of_the_metadata(folder: Path) -> None:
    write_metadata(folder)
    good, bad = read(source(folder, captions=COLUMNS))
    assert [[(c.lang, c.text) for c in draft.pair.captions] for draft in good] == [
        [("en", "dog 0")],
        *([("en", f"dog {n}"), ("de", f"Hund {n}")] for n in (1, 2, 3)),
    ]
    assert bad == []  # what was not downloaded is no loss


@pytest.mark.parametrize("text", [None, b"", "Caf\xe9".encode("latin-1")])
def test_captions_of_columns_need_no_text_in_the_tar(folder: Path, text: bytes | None) -> None:
    write_metadata(folder)
    for shard in range(2):
        members = []
        for n in (2 * shard, 2 * shard + 1):
            members += [(f"{key(n)}.jpg", make_image(n, "JPEG"))]
            members += [(f"{key(n)}.txt", text)] if text is not None else []
        (folder / f"{shard:05d}.tar").write_bytes(tar_of(members))
    good, bad = read(source(folder, captions=COLUMNS))
    assert [draft.pair.captions[0].text for draft in good] == [f"dog {n}" for n in range(4)]
    assert good[3].load().image == make_image(3, "JPEG")
    assert bad == []


def test_a_sample_is_refused_once(folder: Path) -> None:
    write_metadata(folder)
    members = [*sample(0, key(0)), (f"{key(1)}.jpg", b"no picture")]
    (folder / "00000.tar").write_bytes(tar_of(members))
    good, bad = read(source(folder, captions=COLUMNS))
    assert [draft.pair.key for draft in good] == [key(0), key(2), key(3)]
    assert [row.reason for row in bad] == ["not an image"]


def test_a_byte_order_mark_is_no_part_of_a_caption(folder: Path) -> None:
    members = [
        *[("a.jpg", make_image(0, "JPEG")), ("a.txt", "\ufeffa ball".encode())],
        *[("b.jpg", make_image(1, "JPEG")), ("b.txt", b"x")],
        ("b.json", '\ufeff{"caption": "a dog"}'.encode()),
    ]
    (folder / "00000.tar").write_bytes(tar_of(members))
    texts = read(source(folder, language="en"))[0]
    assert texts[0].pair.captions[0].text == "a ball"
    fields = read(source(folder, captions="json:caption", language="en"))[0]
    assert fields[0].pair.captions[0].text == "a dog"


def test_metadata_and_tar_must_agree(folder: Path) -> None:
    write_metadata(folder)
    members = [*sample(0, key(0)), *sample(9, "000000009")]
    (folder / "00000.tar").write_bytes(tar_of(members))
    good, bad = read(source(folder, captions=COLUMNS))
    assert [draft.pair.key for draft in good] == [key(0), key(2), key(3)]
    tar = folder / "00000.tar"
    assert [(row.reason, str(row)) for row in bad] == [
        (
            "status",
            f"{tar}, sample `000000009`: its metadata do not say that it was downloaded",
        ),
        ("status", f"{tar}: has no sample `{key(1)}`, which its metadata say was downloaded"),
    ]


def test_what_the_scan_refuses_is_refused_and_nothing_is_unpickled(
    folder: Path, tmp_path: Path
) -> None:
    import pickle

    members = sample(0, key(0))
    members += [(f"{key(1)}.jpg", b"no picture"), (f"{key(1)}.txt", b"a dog")]
    members.append((f"{key(1)}.pyd", pickle.dumps(RunsCode(tmp_path / "ran"))))
    (folder / "00000.tar").write_bytes(tar_of([*members, ("../x.jpg", b""), *sample(0, key(0))]))
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[: len(whole) // 2])
    good, bad = read(source(folder, language="en"))
    assert [draft.pair.key for draft in good] == [key(0), key(2)]
    cut = ["no caption", "no end mark"]  # the end of the second shard
    found = [row.reason for row in bad]
    assert found == ["not an image", "unsafe name", "duplicate key", *cut]
    assert str(bad[0]).startswith(f"{folder}/00000.tar, sample `{key(1)}`, bytes ")
    assert not (tmp_path / "ran").exists()


def test_keys_of_other_writers_and_of_several_folders_differ(folder: Path, tmp_path: Path) -> None:
    for shard in range(2):
        (folder / f"{shard:05d}.tar").write_bytes(tar_of(sample(shard, "a/x.y"[:3])))
        (folder / f"{shard:05d}_stats.json").unlink()
    good, _ = read(source(folder, language="en"))
    assert [draft.pair.key for draft in good] == ["00000-a_x", "00001-a_x"]
    config = source(folder, language="en").model_copy(update={"folders": (str(folder),) * 2})
    assert len({draft.pair.key for draft in read(config)[0]}) == 4


def test_a_tar_that_changes_under_the_build_is_noticed(folder: Path) -> None:
    good, _ = read(source(folder, language="en"))
    tar = folder / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(make_image(0, "JPEG"), make_image(0, "JPEG")[::-1]))
    with pytest.raises(BadRow, match="its image cannot be read \\(it changed while"):
        good[0].load()


def test_mistakes_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="language is missing: give a code, `json:FIELD` or"):
        source(folder)
    with pytest.raises(UserError, match="captions is `text`; give `txt` or `json:FIELD`"):
        source(folder, captions="text", language="en")
    with pytest.raises(UserError, match="`language` has no meaning where `captions` names columns"):
        source(folder, captions=COLUMNS, language="en")
    with pytest.raises(UserError, match=r"00000\.parquet: no such file; captions from columns"):
        read(source(folder, captions=COLUMNS))
    write_lines(tmp_path / "empty" / "notes.txt", [])
    with pytest.raises(UserError, match=r"empty: holds no \.tar; name img2dataset's output"):
        read(source(tmp_path / "empty", language="en"))


def test_a_language_has_one_spelling_and_changes_are_counted(folder: Path, tmp_path: Path) -> None:
    (folder / "00001.tar").unlink()
    (folder / "00000_stats.json").unlink()
    (folder / "00000.tar").write_bytes(
        tar_of(
            [
                member
                for number, code in enumerate(("zh_CN", "EN", "en"))
                for member in (
                    (f"{key(number)}.png", make_image(number)),
                    (
                        f"{key(number)}.json",
                        json.dumps({"caption": "dog", "LANGUAGE": code}).encode(),
                    ),
                )
            ]
        )
    )
    for fields, languages, respelled in (
        ({"language": "json:LANGUAGE"}, {"en": 2, "zh-CN": 1}, {"EN": 1, "zh_CN": 1}),
        ({"language": "zh_CN"}, {"zh-CN": 3}, {"zh_CN": 3}),
    ):
        tree = source(folder, captions="json:caption", **fields).model_dump()
        config = validate(RecipeConfig, {"name": "set", "source": tree}, "x.yaml")
        out = tmp_path / "out" / str(len(languages))
        (manifest,) = build(config, out)
        assert manifest.languages == languages
        assert json.loads((out / "train" / "manifest.json").read_text())["respelled"] == respelled
