"""Strangers' tars: what can be used is used, everything else has its reason, and nothing runs or grows."""

import gzip
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_shards import (
    END,
    Members,
    RunsCode,
    header,
    member,
    pixel_bomb,
    sample,
    samples,
    tar_of,
    write_many_members,
)
from shard_sets import make_image

from mmalign.core.errors import UserError
from mmalign.data.shards import scan
from mmalign.data.shards.scan import Rules, Scan, split_name

PICTURE = make_image(7, "JPEG")
TXT = Rules("txt", "en")
JSON = Rules("json:caption", "json:LANGUAGE")


def scanned(
    data: bytes, rules: Rules = TXT
) -> tuple[list[str], list[tuple[str | None, str]], dict[str, Any]]:
    """(keys of rows, (key, reason) of refusals, counts)"""
    rows, refusals = io.StringIO(), io.StringIO()
    found = Scan("00000.tar", io.BytesIO(data), rules, rows, refusals)
    found.run()
    lines = [json.loads(line) for line in refusals.getvalue().splitlines()]
    keys = [json.loads(line)["key"] for line in rows.getvalue().splitlines()]
    return keys, [(line.get("key"), line["reason"]) for line in lines], found.counts()


def pair(key: str, image: bytes = PICTURE, text: bytes = b"a dog") -> Members:
    return [(f"{key}.jpg", image), (f"{key}.txt", text)]


def test_good_samples_become_rows() -> None:
    rows, refusals = io.StringIO(), io.StringIO()
    data = tar_of(samples(3))
    found = Scan("00000.tar", io.BytesIO(data), JSON, rows, refusals)
    found.run()
    parsed = [json.loads(line) for line in rows.getvalue().splitlines()]
    assert [row["langs"] for row in parsed] == [["en"], ["sw"], ["en"]]
    for number, row in enumerate(parsed):
        _, offset, size, _ = row["image"]
        assert data[offset : offset + size] == samples(3)[3 * number][1]
    assert refusals.getvalue() == ""
    assert found.counts()["languages"] == {"en": 2, "sw": 1}


CASES: dict[str, tuple[Members, str]] = {
    "no picture": ([("k.txt", b"a dog")], "no image"),
    "no caption": ([("k.jpg", PICTURE)], "no caption"),
    "empty caption": (pair("k", text=b" \n"), "no caption"),
    "not UTF-8": (pair("k", text=b"\xff\xfe"), "not UTF-8"),
    "NUL": (pair("k", text=b"a\0b"), "caption"),
    "10 MB caption": (pair("k", text=b"x" * 10_000_000), "too large"),
    "long caption": (pair("k", text=b"x" * 30_000), "caption too long"),
    "no picture at all": (pair("k", b"GIF89a"), "not an image"),
    "empty picture": (pair("k", b""), "not an image"),
    "pixel bomb": (pair("k", pixel_bomb()), "too many pixels"),
    "large picture": (pair("k", PICTURE + bytes(scan.MAX_IMAGE_BYTES)), "too large"),
    "twice": ([*pair("k"), ("k.txt", b"a cat")], "duplicate suffix"),
    "two pictures": ([*pair("k"), ("k.png", PICTURE)], "duplicate suffix"),
    "dots": ([(f"../{name}", data) for name, data in pair("k")], "unsafe name"),
    "absolute": ([(f"/etc/{name}", data) for name, data in pair("k")], "unsafe name"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_has_its_reason_and_its_neighbours_live(name: str) -> None:
    members, reason = CASES[name]
    keys, refused, counts = scanned(tar_of([*pair("a"), *members, *pair("z")]))
    assert keys == ["a", "z"]
    assert [r for _, r in refused] == [reason]
    assert str(refused[0][0]).endswith("k")
    assert counts["refused"] == {reason: 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "json"),
        (b'{"caption": ' + b"[" * 100_000, "json"),
        (b'["a"]', "json"),
        (b"\xff", "not UTF-8"),
        (b'{"caption": 3, "LANGUAGE": "en"}', "caption"),
        (b'{"LANGUAGE": "en"}', "no caption"),
        (b'{"caption": "a dog"}', "language"),
        (b'{"caption": "a dog", "LANGUAGE": "not a code"}', "language"),
        (b'{"caption": "a dog", "x": "' + b"y" * 3_000_000 + b'"}', "too large"),
    ],
)
def test_json_that_cannot_be_used(content: bytes, reason: str) -> None:
    data = tar_of([*sample(0), ("k.jpg", PICTURE), ("k.json", content), *sample(1)])
    keys, refused, _ = scanned(data, JSON)
    assert (len(keys), refused) == (2, [("k", reason)])


def test_keys_that_come_again() -> None:
    data = tar_of([*pair("a"), *pair("b"), *pair("a"), ("b.json", b"{}"), *pair("c")])
    keys, refused, _ = scanned(data)
    assert keys == ["a", "b", "c"]
    assert refused == [("a", "duplicate key"), ("b", "not adjacent")]


def test_a_sample_beside_damage_is_refused() -> None:
    # The caption of b is gone, and c's stands behind the damage: neither may go to the other.
    data = bytearray(tar_of([*pair("a"), *pair("b"), *pair("c")]))
    start = data.index(b"b.txt")
    data[start] ^= 1
    keys, refused, _ = scanned(bytes(data))
    assert keys == ["a", "c"]
    assert refused == [("b", "beside damage"), (None, "bad header")]


def test_a_member_that_is_cut_off_is_named() -> None:
    data = tar_of([*pair("a"), *pair("b")])
    cut = data[: data.index(b"b.txt") + 514]
    assert scanned(cut)[:2] == (
        ["a"],
        [("b", "beside damage"), ("b", "cut off"), (None, "no end mark")],
    )


def test_links_and_devices_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(PICTURE)
    data = (
        header("k.jpg", kind=b"2", link=str(secret)[:99])
        + member("k.txt", b"a dog")
        + header("d.jpg", kind=b"3")
        + header(".hidden", kind=b"2", link="x")
        + END
    )
    keys, refused, _ = scanned(data)
    assert keys == []
    assert refused == [("k", "link"), (".hidden", "link"), ("d", "device")]


def test_other_suffixes_are_counted_and_never_opened(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    code = pickle.dumps(RunsCode(proof))
    others = [(f"a.{suffix}", code) for suffix in ("pkl", "pickle", "pyd", "pth", "cls")]
    bomb = ("a.json.gz", gzip.compress(bytes(50_000_000)))
    data = tar_of([*pair("a"), *others, bomb, ("b.pkl", code), ("._a.jpg", b"x"), ("README", b"x")])
    keys, refused, counts = scanned(data)
    assert (keys, refused) == (["a"], [("b", "no image")])
    assert counts["ignored"] == {
        "cls": 1, "json.gz": 1, "no key": 2, "pickle": 1, "pkl": 2, "pth": 1, "pyd": 1,
    }  # fmt: skip
    assert not proof.exists()
    many = tar_of([*pair("a"), *((f"a.s{n}", b"") for n in range(500))])
    assert scanned(many)[2]["ignored"]["others"] == 400


def test_keys_end_at_the_first_dot_of_the_base_name() -> None:
    assert split_name("v1.0/00001.de.TXT") == ("v1.0/00001", "de.txt")
    assert split_name("00001.jpg") == ("00001", "jpg")
    assert split_name("folder/.DS_Store") == ("", "ds_store")
    assert split_name("folder/README") == ("", "")


def test_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_REFUSALS", 3)
    _, refused, counts = scanned(tar_of([(f"{n}.txt", b"x") for n in range(9)]))
    assert (len(refused), counts["refused"]) == (3, {"no image": 9})


def test_rules_that_make_no_sense() -> None:
    for captions, language in (("txt", None), ("json:", "en"), ("csv", "en"), ("txt", "no code")):
        with pytest.raises(UserError, match=r"--captions is|--language is"):
            Rules(captions, language)
    assert Rules("txt", "sw").to_json() == {"from": "txt", "language": "fixed:sw"}
    assert Rules("json:c", None).to_json() == {"from": "json:c", "language": "captions"}
    assert Rules("txt", "identify").to_json()["language"] == "identified"
    assert Rules("txt", "json:L").to_json()["language"] == "json:L"


_MEASURE = """
import re, sys
from pathlib import Path
from mmalign.data.shards.index import index
from mmalign.data.shards.scan import Rules
from mmalign.core.errors import UserError

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024

Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = peak()
try:
    index(sys.argv[1], Rules("txt", "en"))
except UserError as error:
    print(error)
print(peak() - before)
"""


def memory_growth(folder: Path) -> int:
    """MiB that indexing the folder's tars needs at most beyond what the imports left."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder)], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_memory_stays_small_on_hostile_tars(tmp_path: Path) -> None:
    bombs = [member for members, _ in CASES.values() for member in members]
    gz = ("g.json.gz", gzip.compress(bytes(1_000_000)) * 250)  # 250 MB once unpacked
    (tmp_path / "bombs.tar").write_bytes(tar_of([*pair("first"), *bombs, gz]))
    huge = header("h.jpg", 8 * 1024**3 - 1)
    (tmp_path / "huge.tar").write_bytes(huge + tar_of(pair("a")))
    write_many_members(tmp_path / "many.tar", 5_000)
    assert memory_growth(tmp_path) < 200
    lines = (tmp_path / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 5_000


@pytest.mark.slow
def test_a_million_members(tmp_path: Path) -> None:
    write_many_members(tmp_path / "many.tar", 1_000_000)
    assert memory_growth(tmp_path) < 200
    lines = (tmp_path / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1]) == {"more": 900_000}
