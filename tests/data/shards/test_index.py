"""`mmalign data index`: other people's tars become a data set, once, the same by every way."""

import json
import os
from pathlib import Path

import pytest
from hostile_shards import Members, sample, samples, tar_of
from shard_sets import make_image, make_set
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.commit import exclusive
from mmalign.core.errors import UserError
from mmalign.data.shards import foreign_tars
from mmalign.data.shards.foreign_tars import REFUSED, find_tars
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import MANIFEST
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.scan import Rules

RULES = Rules("json:caption", "json:LANGUAGE")


def write_tars(folder: Path, shards: int = 3) -> Path:
    """Shards of four samples; the last sample of each has no caption."""
    folder.mkdir(parents=True)
    for number in range(shards):
        members: Members = [
            m for n in range(3) for m in sample(10 * number + n, f"{number:05d}{n:04d}")
        ]
        members.append((f"{number:05d}0003.jpg", samples(1)[0][1]))
        (folder / f"{number:05d}.tar").write_bytes(tar_of(members))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_foreign_shards_become_a_data_set(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "set")
    before = {name: data for name, data in contents(folder).items() if name.endswith(".tar")}
    manifest, out = index(str(folder), RULES)
    assert out == folder
    assert manifest.samples == 9
    assert manifest.languages == {"en": 6, "sw": 3}
    assert manifest.refused["00001.tar"] == {"no caption": 1}
    shards = ShardSet(folder)
    assert shards.keys[3] == "000010000"
    assert shards.read(3).image == sample(10)[0][1]
    assert {name: contents(folder)[name] for name in before} == before
    lines = [json.loads(line) for line in (folder / REFUSED).read_text().splitlines()]
    assert [(line["shard"], line["key"]) for line in lines] == [
        (f"{n:05d}.tar", f"{n:05d}0003") for n in range(3)
    ]


def test_equal_pictures_share_their_identity(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_of([*sample(4, "a"), *sample(5, "b"), *sample(4, "c", "another")])
    )
    index(str(tmp_path), Rules("txt", "en"))
    ids = ShardSet(tmp_path).picture_ids
    assert ids[0] == ids[2] != ids[1]


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        folder = write_tars(tmp_path / str(processes) / "set")
        index(str(folder), RULES, processes=processes)
        found.append(contents(folder))
    assert found[0] == found[1]


def test_only_what_is_new_is_scanned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tars(tmp_path / "set")
    index(str(folder), RULES)
    first = contents(folder)
    seen: list[str] = []

    class Counting(foreign_tars.Scan):
        def run(self) -> None:
            seen.append(self.shard)
            super().run()

    monkeypatch.setattr(foreign_tars, "Scan", Counting)
    index(str(folder), RULES)
    assert (seen, contents(folder)) == ([], first)
    os.utime(folder / "00001.tar", ns=(1, 1))
    index(str(folder), RULES)
    assert (seen, contents(folder)) == (["00001.tar"], first)
    (folder / "00002.index.jsonl").write_text("{}\n")
    index(str(folder), RULES)
    assert (seen[1:], contents(folder)) == (["00002.tar"], first)
    index(str(folder), Rules("txt", "de"))
    assert len(seen) == 5


def test_the_manifest_may_lie_elsewhere(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tars(tmp_path / name, 1)
    before = [sorted(contents(tmp_path / name)) for name in ("a", "b")]
    out = tmp_path / "out"
    manifest, _ = index(f"{tmp_path}/{{a,b}}/*.tar", RULES, out)
    assert [shard.file for shard in manifest.shards] == ["a-00000.tar", "b-00000.tar"]
    assert ShardSet(out).read(4).image == sample(1)[0][1]
    assert [sorted(contents(tmp_path / name)) for name in ("a", "b")] == before


def test_tars_are_found_by_folder_pattern_and_braces(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "set")
    tars = [folder / f"{n:05d}.tar" for n in range(3)]
    assert find_tars(str(folder)) == tars
    assert find_tars(f"{folder}/0000[01].tar") == tars[:2]
    assert find_tars(f"{folder}/{{00001..00002}}.tar") == tars[1:]
    with pytest.raises(UserError, match="no tars there"):
        find_tars(str(tmp_path))
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(b"")
    with pytest.raises(UserError, match="only plain tars"):
        find_tars(str(packed))


def test_a_folder_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    for name in ("[x] {a,b}", "a{b", "x*"):
        folder = write_tars(tmp_path / name, 1)
        # Also where it is the part of a pattern that exists.
        for rest in ("", "/00000.tar", "/*.tar", "/0000{0,1}.tar", "/../{*,none}/00000.tar"):
            assert [tar.resolve() for tar in find_tars(f"{folder}{rest}")][-1:] == [
                folder / "00000.tar"
            ]
    # From Python 3.13 on `**` within a name is a pattern, as `*` is.
    for pattern in ("no{where", "a**z/*.tar"):
        with pytest.raises(UserError, match=r"not a valid pattern|no tars there"):
            find_tars(str(tmp_path / pattern))


def test_a_data_set_of_a_recipe_is_not_written_over(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", 5)
    before = contents(folder)
    with pytest.raises(UserError, match=r"holds a data set of another kind.*--out"):
        index(str(folder), Rules("json:captions"))
    assert contents(folder) == before
    assert not (folder / ".index").exists()
    index(str(folder), Rules("json:captions"), tmp_path / "again")
    first, again = ShardSet(folder), ShardSet(tmp_path / "again")
    assert [again.read(i).captions for i in range(5)] == [first.read(i).captions for i in range(5)]
    assert again.picture_ids.tolist() == first.picture_ids.tolist()
    assert again.read(0) == first.read(0)


def test_two_index_runs_do_not_write_to_one_place(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "set")
    held = exclusive(folder / ".index")
    with held, pytest.raises(UserError, match=r"set/\.index: in use by process \d+ on "):
        index(str(folder), RULES)
    assert not (folder / MANIFEST).exists()
    index(str(folder), RULES)


def test_samples_that_went_without_a_trace_are_counted(tmp_path: Path) -> None:
    # Cut between two members: a whole tar, which only a count can tell from what it was.
    for name in ("a.tar", "b.tar", "c.tar"):
        (tmp_path / name).write_bytes(tar_of(samples(2)))
    (tmp_path / "sizes.json").write_text('{"a.tar": 2, "b.tar": 3}')
    (tmp_path / "c_stats.json").write_text('{"count": 5, "successes": 4}')
    manifest, _ = index(str(tmp_path), RULES)
    assert manifest.refused == {"b.tar": {"fewer samples": 1}, "c.tar": {"fewer samples": 1}}
    lines = [json.loads(line) for line in (tmp_path / REFUSED).read_text().splitlines()]
    assert [line["detail"] for line in lines] == ["2, not 3", "2, not 4"]


def test_nothing_usable_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"no sample of 1 shards can be used \(bad header: 1"):
        index(str(tmp_path), RULES)
    assert not (tmp_path / MANIFEST).exists()
    assert "bad header" in (tmp_path / REFUSED).read_text()


def test_the_command_says_what_it_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "set")
    (folder / "x.tar").write_bytes(tar_of([*sample(7), ("000000007.pkl", b"code")]))
    arguments = ["data", "index", str(folder), "--captions", "txt", "--language", "sw"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "10 images in 4 shards, 10 captions in 1 languages" in done.output
    assert "never opened: members of other suffixes (pkl: 1)" in done.output
    assert "refused 3 (no caption: 3)" in done.output


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"captions": [{"lang": "en", "text": "x"}], "picture": "\ud800"}, "not UTF-8"),
        ({"captions": [{"lang": "e\ud800", "text": "x"}]}, "language"),
        ({"captions": [{"lang": "en", "text": "\udfff"}]}, "not UTF-8"),
    ],
)
def test_texts_without_bytes_are_refused(
    tmp_path: Path, facts: dict[str, object], reason: str
) -> None:
    good = {"captions": [{"lang": "en", "text": "x"}]}
    image = sample(1)[0][1]
    members = []
    for key, one in (("a", facts), ("b", good)):
        members += [(f"{key}.jpg", image), (f"{key}.json", json.dumps(one).encode())]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    manifest, _ = index(str(tmp_path), Rules("json:captions"))
    assert manifest.samples == 1
    assert manifest.refused == {"a.tar": {reason: 1}}
    (line,) = (tmp_path / REFUSED).read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["key"] == "a"


@pytest.mark.parametrize(("size", "why"), [(1024, "no members"), (40960, "zeros: 1")])
def test_a_tar_of_zeros_is_named_as_such(tmp_path: Path, size: int, why: str) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(size))
    with pytest.raises(UserError, match=why):
        index(str(tmp_path), Rules("txt", "en"))


def test_a_language_has_one_spelling_and_changes_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    codes = ("EN", "iw", "zh_CN", "en", "EN")
    members: Members = []
    for number, code in enumerate(codes):
        captions = {"captions": [{"lang": code, "text": f"dog {number}"}]}
        members += [
            (f"{number}.png", make_image(number)),
            (f"{number}.json", json.dumps(captions).encode()),
        ]
    (folder / "0.tar").write_bytes(tar_of(members))
    canonical = {"en": 3, "he": 1, "zh-CN": 1}
    for _ in range(2):  # the second run reuses the scan of the first
        manifest, _ = index(str(folder), Rules("json:captions"))
        assert manifest.languages == canonical
        tree = json.loads((folder / MANIFEST).read_text())
        assert tree["respelled"] == {"EN": 2, "iw": 1, "zh_CN": 1}
        assert "`EN` -> `en`: 2" in capsys.readouterr().out
    assert [one.captions[0].lang for one in map(ShardSet(folder).read, range(3))] == [
        "en",
        "he",
        "zh-CN",
    ]
    # A scan of an older version kept the codes as they were written.
    report = folder / ".index" / "0.tar.json"
    old = json.loads(report.read_text())
    del old["respelled"]
    report.write_text(json.dumps({**old, "languages": {"EN": 5}}))
    assert index(str(folder), Rules("json:captions"))[0].languages == canonical


def test_a_missing_or_invalid_code_is_that_of_the_fallback_and_counted(tmp_path: Path) -> None:
    members: Members = []
    for number, code in enumerate(("sw", None, "??", "??")):
        facts = {"caption": "ein Hund schläft unter dem Stuhl", "lang": code}
        members += [
            (f"{number}.png", make_image(number)),
            (f"{number}.json", json.dumps(facts).encode()),
        ]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    strict, _ = index(str(tmp_path), Rules("json:caption", "json:lang"))
    assert strict.languages == {"sw": 1} and strict.refused == {"0.tar": {"language": 3}}
    for fallback, lang in (("DE", "de"), ("identify", "de")):
        if fallback == "identify":
            pytest.importorskip("py3langid", reason="the extra `identify` is not installed")
        found, _ = index(str(tmp_path), Rules("json:caption", "json:lang", fallback))
        assert found.languages == {lang: 3, "sw": 1} and found.refused == {}
        tree = json.loads((tmp_path / MANIFEST).read_text())
        assert tree["filled"] == {"??": 2, "none": 1}
        assert tree["captions"]["fallback"] == fallback
    with pytest.raises(UserError, match="--fallback is `json:x`"):
        Rules("txt", "en", "json:x")


@pytest.mark.parametrize(("code", "lang"), [("EN", "en"), ("iw", "he"), ("zh_CN", "zh-CN")])
def test_a_code_of_the_command_line_has_one_spelling(tmp_path: Path, code: str, lang: str) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of(sample(0, "a")))
    assert index(str(tmp_path), Rules("txt", code))[0].languages == {lang: 1}


def test_a_name_with_a_control_character_is_refused(tmp_path: Path) -> None:
    captions = {"captions": [{"lang": "en", "text": "dog"}]}
    members: Members = []
    for key, picture in (("a", "p"), ("b\x9b", "q"), ("c", "r\x1b[2J"), ("d\x7f", "s")):
        text = json.dumps({**captions, "picture": picture}).encode()
        members += [(f"{key}.png", make_image(0)), (f"{key}.json", text)]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    manifest, _ = index(str(tmp_path), Rules("json:captions"))
    assert manifest.samples == 1
    assert manifest.refused == {"0.tar": {"row": 1, "unsafe name": 2}}
