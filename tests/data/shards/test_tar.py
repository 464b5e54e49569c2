"""The walk over a tar: as tarfile where all is well, and every byte accounted for where it is not."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest
from hostile_shards import BLOCK, END, header, member, samples, tar_of
from shard_sets import make_set

from mmalign.core.commit import sha256_of
from mmalign.data.shards import tar
from mmalign.data.shards.tar import Damage, HashedFile, Member, walk


def walked(data: bytes) -> list[Member | Damage]:
    return list(walk(io.BytesIO(data)))


def damages(data: bytes) -> list[tuple[int, int, str]]:
    return [(d.start, d.stop, d.reason) for d in walked(data) if isinstance(d, Damage)]


def names(data: bytes) -> list[str]:
    return [m.name for m in walked(data) if isinstance(m, Member) and m.problem is None]


NAMES = ("a.txt", "folder/" * 20 + "b.txt", "ñ漢.txt", "x" * 300 + ".jpg", "./c.json")


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_it_sees_what_tarfile_sees(tar_format: int) -> None:
    data = tar_of([(name, name.encode() * n) for n, name in enumerate(NAMES)], tar_format)
    found = [(m.name, m.offset, m.size) for m in walked(data) if isinstance(m, Member)]
    with tarfile.open(fileobj=io.BytesIO(data)) as reader:
        wanted = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in reader]
    assert found == wanted
    assert damages(data) == []


def test_directories_are_left_out_and_others_have_their_problem() -> None:
    data = (
        header("folder/", kind=b"5")
        + header("a.jpg", 4096, b"2", link="/etc/passwd")
        + header("b.jpg", kind=b"1", link="a.jpg")
        + header("c.jpg", kind=b"3")
        + member("d.jpg", b"data", b"S")
        + member("/e.jpg", b"data")
        + member("x/../../f.jpg", b"data")
        + member(b"g\xff.jpg", b"data")
        + member("h\n.jpg", b"data")
        + member("i.jpg", b"data")
        + END
    )
    found = [(m.name, m.problem) for m in walked(data) if isinstance(m, Member)]
    assert found == [
        ("a.jpg", "link"),
        ("b.jpg", "link"),
        ("c.jpg", "device"),
        ("d.jpg", "sparse"),
        ("/e.jpg", "unsafe name"),
        ("x/../../f.jpg", "unsafe name"),
        ("g\\xff.jpg", "name not UTF-8"),
        ("h\n.jpg", "unsafe name"),
        ("i.jpg", None),
    ]
    assert damages(data) == []


def test_it_goes_on_behind_a_bad_header() -> None:
    data = bytearray(tar_of(samples(3)))
    second = [m for m in walked(bytes(data)) if isinstance(m, Member)][1]
    data[second.start + 20] ^= 1
    assert damages(bytes(data)) == [(second.start, second.stop, "bad header")]
    assert names(bytes(data)) == [name for name, _ in samples(3) if name != second.name]


def test_zeros_between_members_are_damage_and_no_end() -> None:
    first, second = tar_of(samples(1)), tar_of(samples(2)[3:])
    both = first + second
    found = damages(both)
    assert [(stop, reason) for _, stop, reason in found] == [(len(first), "zeros")]
    assert len(names(both)) == 6
    data = bytearray(tar_of(samples(2)))
    fourth = [m for m in walked(bytes(data)) if isinstance(m, Member)][3]
    data[fourth.start : fourth.offset] = bytes(BLOCK)
    assert damages(bytes(data)) == [(fourth.start, fourth.stop, "zeros")]


def test_a_zeroed_tail_is_longer_than_any_padding() -> None:
    data = tar_of([*samples(1), ("z.jpg", b"x" * 20_000)])
    last = [m for m in walked(data) if isinstance(m, Member)][-1]
    assert damages(data[: last.start] + bytes(len(data) - last.start)) == [
        (last.start, len(data), "zeros")
    ]


def test_a_cut_shard_says_so_wherever_it_was_cut() -> None:
    data = tar_of(samples(2))
    last = [m for m in walked(data) if isinstance(m, Member)][-1]
    assert damages(data[: last.offset + 3])[0] == (last.start, last.offset + 3, "cut off")
    named = [d.name for d in walked(data[: last.offset + 3]) if isinstance(d, Damage)]
    assert named[0] == last.name
    assert damages(data[: last.stop]) == [(last.stop, last.stop, "no end mark")]
    assert damages(data[: last.start + 100])[0][2] == "bad header"
    assert damages(b"") == [(0, 0, "no end mark")]
    assert damages(b"not a tar" * 1000)[0] == (0, 9000, "bad header")


def test_a_member_larger_than_the_file_is_not_believed() -> None:
    huge = header("a.jpg", 0) + member("b.txt", b"text") + END
    big = header("a.jpg", 8 * 1024**3 - 1) + member("b.txt", b"text") + END
    assert names(huge) == ["a.jpg", "b.txt"]
    assert names(big) == ["b.txt"]
    assert damages(big) == [(0, BLOCK, "cut off")]
    base_256 = bytearray(header("a.jpg"))
    base_256[124:136] = b"\x80" + (2**80).to_bytes(11, "big")
    base_256[148:156] = b" " * 8
    base_256[148:156] = b"%06o\0 " % sum(base_256)
    assert damages(bytes(base_256) + member("b.txt", b"text") + END) == [(0, BLOCK, "cut off")]


def test_bytes_behind_a_member_must_be_zero() -> None:
    data = bytearray(member("a.txt", b"text") + member("b.txt", b"text") + END)
    data[BLOCK + 100] = 1
    assert damages(bytes(data)) == [(BLOCK + 4, 2 * BLOCK, "padding")]


def pax(*records: bytes) -> bytes:
    return member("pax", b"".join(records), b"x")


@pytest.mark.parametrize(
    "extended",
    [
        pax(b"99 path=short\n"),
        pax(b"no length"),
        pax(b"12 size=1x2\n"),
        pax(b"0" * 70_000),
        member("long", b"y" * 70_000, b"L"),
    ],
)
def test_what_stands_behind_a_bad_extended_header_has_no_name(extended: bytes) -> None:
    found = walked(extended + member("a.txt", b"text") + member("b.txt", b"text") + END)
    assert [(m.name, m.problem) for m in found if isinstance(m, Member)] == [
        ("a.txt", "extended header"),
        ("b.txt", None),
    ]


def test_extended_headers_have_an_end() -> None:
    good = member("a.txt", b"text") + END
    assert damages(pax() * 20 + good)[0][2] == "extended header"
    assert names(pax(b"18 path=other.txt\n") + good) == ["other.txt"]
    long_name = member("long", b"n" * 2000 + b"\0", b"L") + good
    assert [m.problem for m in walked(long_name) if isinstance(m, Member)] == ["name too long"]
    sparse = pax(b"22 GNU.sparse.major=1\n") + good
    assert [m.problem for m in walked(sparse) if isinstance(m, Member)] == ["sparse"]


def test_members_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBERS", 4)
    data = tar_of(samples(2))
    fifth = 4
    assert len(names(data)) == fifth
    assert damages(data)[0][2] == "too many members"


def test_every_byte_is_accounted_for_whatever_it_is() -> None:
    rng = random.Random(0)
    whole = tar_of(samples(4))
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            start = rng.randrange(len(data))
            data[start : start + rng.randint(1, 2000)] = rng.randbytes(rng.randint(0, 2000))
        position = 0
        for found in walked(bytes(data)):
            # Only a member's padding may lie between two finds: less than a block.
            assert position <= found.start < position + BLOCK
            assert found.start <= found.stop
            position = found.offset + found.size if isinstance(found, Member) else found.stop
        assert not any(data[position:])


def test_a_file_is_hashed_while_it_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_set(tmp_path / "set", 4) / "00000.tar"
    read: list[int] = []
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        data = pread(descriptor, size, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counting)
    with HashedFile(path) as file:
        members = list(walk(file))
        assert file.hexdigest() == sha256_of(path)
    assert len(members) == 12
    headers = 3 * 512 * len(members)
    assert path.stat().st_size <= sum(read) <= path.stat().st_size + headers + 10240
