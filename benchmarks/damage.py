"""Reading of damaged shards: mmalign's reader and webdataset's reader on the same seeded damage.

    shard of 12 samples -> one corruption -> every sample: delivered unchanged, refused by name, or neither

Six kinds: truncation, bit flips, zeroed bytes, splices with another shard, duplicated members, random bytes
over a header. In every second case the shard is indexed before the damage, and a reader has it open while it
is damaged; in the other cases it is damaged before `mmalign data index`. Shards have the layout of
img2dataset (keys begin with the number of the shard) and are written by Python's tarfile.

    crashes         any exception except a refusal
    wrong_pairs     an image and a caption that do not belong together, or bytes that were never there;
                    after indexing, also any byte that changed
    unnamed_losses  a sample of the shard that is not delivered, whose key is in no refusal, and of which
                    neither the bytes nor the position where they were removed are in a reported range

No reader can detect a byte of a member that changed before the first checksum; such samples are counted as
"changed". A splice that cuts both shards exactly between two members leaves a valid tar and cannot be
detected either, so it is not drawn. webdataset has no index; its losses count as silent if its handler was
not called for the shard.

As many shards again hold valid pictures with broken metadata (damage_metadata.py). Prints a table and, as the
last line, one JSON object with mmalign's figures.

    python benchmarks/damage.py [--cases 1000] [--seed 0]
"""

import argparse
import io
import json
import os
import random
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import damage_metadata
import webdataset
from PIL import Image

from mmalign.core.errors import UserError
from mmalign.data.shards.foreign_tars import REFUSED
from mmalign.data.shards.index import index
from mmalign.data.shards.manifest import read_manifest
from mmalign.data.shards.reader import ShardSet, UnusableSample
from mmalign.data.shards.scan import Rules

SAMPLES = 12
BLOCK = 512
RULES = Rules("txt", "en")
Delivered = dict[str, tuple[bytes, str]]


@dataclass(frozen=True)
class Member:
    """A member of an undamaged shard: its bytes are at `offset`, its header is at `start`."""

    key: str
    suffix: str
    start: int
    offset: int
    size: int

    @property
    def stop(self) -> int:
        return self.offset + -(-self.size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Shard:
    """An undamaged shard and its contents."""

    data: bytes
    members: list[Member]
    pairs: Delivered

    @property
    def boundaries(self) -> set[int]:
        return {m.start for m in self.members} | {m.stop for m in self.members}


@dataclass(frozen=True)
class Damaged:
    """A corrupted shard in pieces: their positions in the undamaged shard (None: from elsewhere) and their
    bytes."""

    pieces: list[tuple[int | None, bytes]]

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Where bytes of the undamaged shard are now, and the positions where bytes were removed."""
        position, kept, behind = 0, 0, 0
        for origin, data in self.pieces:
            if origin is not None:
                if kept < stop and origin > start:
                    yield position, position
                first, last = max(start, origin), min(stop, origin + len(data))
                if first < last:
                    yield position + first - origin, position + last - origin
                kept = origin + len(data)
                behind = position + len(data)
            position += len(data)
        if kept < stop:
            yield behind, behind


def make_shard(number: int, rng: random.Random) -> Shard:
    """Twelve images of noise, so that no two members have the same size or bytes."""
    tar, pairs = io.BytesIO(), Delivered()
    members = []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        for place in range(SAMPLES):
            key = f"{number:05d}{place:04d}"
            size = (rng.randrange(104, 136), rng.randrange(104, 136))
            picture = io.BytesIO()
            Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(
                picture, "JPEG", quality=90
            )
            text = f"caption of {key} " + "".join(
                rng.choices("abcdefgh éü漢字", k=rng.randrange(40, 400))
            )
            pairs[key] = picture.getvalue(), text
            facts = json.dumps({"key": key, "caption": text, "status": "success"})
            for suffix, data in (
                ("jpg", picture.getvalue()),
                ("json", facts.encode()),
                ("txt", text.encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                start = tar.tell()
                writer.addfile(info, io.BytesIO(data))
                members.append(Member(key, suffix, start, start + BLOCK, len(data)))
    return Shard(tar.getvalue(), members, pairs)


def truncate(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    return Damaged([(0, shard.data[: rng.randrange(1, shard.members[-1].stop)])])


def flip_bits(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    data = bytearray(shard.data)
    for _ in range(rng.randint(1, 16)):
        data[rng.randrange(shard.members[-1].stop)] ^= 1 << rng.randrange(8)
    return Damaged([(0, bytes(data))])


def zero(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    """Up to 64 KiB of zeros; in half of the cases complete blocks."""
    unit = rng.choice((1, BLOCK))
    start = rng.randrange(shard.members[-1].stop) // unit * unit
    count = min(rng.randint(1, 128 * BLOCK) // unit * unit + unit, len(shard.data) - start)
    return Damaged([(0, shard.data[:start] + bytes(count) + shard.data[start + count :])])


def splice(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    """Continue with another shard, or insert a part of it; in half of the cases cut at block boundaries."""
    unit = rng.choice((1, BLOCK))
    while True:
        cut, entry = (rng.randrange(len(s.data)) // unit * unit for s in (shard, other))
        if cut not in shard.boundaries or entry not in other.boundaries:
            break
    if rng.random() < 0.5:
        return Damaged([(0, shard.data[:cut]), (None, other.data[entry:])])
    part = other.data[entry : entry + rng.randint(1, 64) * unit]
    return Damaged([(0, shard.data[:cut]), (None, part), (cut, shard.data[cut:])])


def duplicate(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    """Repeat one to six members, between any two members."""
    first = rng.randrange(len(shard.members))
    last = min(first + rng.randint(1, 6), len(shard.members)) - 1
    copy = shard.data[shard.members[first].start : shard.members[last].stop]
    at = rng.choice(sorted(shard.boundaries))
    return Damaged([(0, shard.data[:at]), (None, copy), (at, shard.data[at:])])


def break_header(shard: Shard, other: Shard, rng: random.Random) -> Damaged:
    start = rng.choice(shard.members).start + rng.randrange(BLOCK)
    noise = rng.randbytes(rng.choice((1, 2, 8, 64, BLOCK)))
    return Damaged([(0, shard.data[:start] + noise + shard.data[start + len(noise) :])])


KINDS: dict[str, Callable[[Shard, Shard, random.Random], Damaged]] = {
    "truncation": truncate,
    "bit flips": flip_bits,
    "zeros": zero,
    "splices": splice,
    "duplicated members": duplicate,
    "bad headers": break_header,
}


@dataclass(frozen=True)
class Outcome:
    """What a reader returned for one damaged shard.

    Attributes:
        delivered: pairs with their keys, in order.
        keys, ranges: reported keys of samples and byte ranges of the shard.
        spoke: whether it reported anything at all.
        crash: an exception that is not a refusal.
    """

    delivered: list[tuple[str, tuple[bytes, str]]]
    keys: set[str]
    ranges: list[tuple[int, int]]
    spoke: bool
    crash: str | None = None


def read_all(shards: ShardSet) -> tuple[list[tuple[str, tuple[bytes, str]]], set[str]]:
    """(what is delivered, keys that are refused)"""
    delivered, refused = [], set()
    for number, key in enumerate(shards.keys):
        try:
            pair = shards.read(number)
            delivered.append((key, (pair.image, pair.captions[0].text)))
        except UnusableSample as error:
            refused.add(error.key)
    shards.close()
    return delivered, refused


def read_indexed(folder: Path, shard: Shard, damaged: Damaged) -> Outcome:
    """mmalign, on a shard that is damaged while a reader has it open."""
    path = folder / "00000.tar"
    path.write_bytes(shard.data)
    index(str(folder), RULES)
    shards = ShardSet(folder)
    shards.read(0)  # opens the file
    with path.open("r+b") as file:
        file.truncate(file.write(damaged.data))
    delivered, refused = read_all(shards)
    if len(damaged.data) != len(shard.data):
        try:
            read_manifest(folder)
            return Outcome(delivered, refused, [], True, "another size went unseen")
        except UserError:
            pass
    return Outcome(delivered, refused, [], bool(refused))


def read_unindexed(folder: Path, damaged: Damaged) -> Outcome:
    """mmalign, on a shard that is damaged before it is indexed."""
    (folder / "00000.tar").write_bytes(damaged.data)
    delivered, refused = [], set[str]()
    try:
        index(str(folder), RULES)
        delivered, refused = read_all(ShardSet(folder))
    except UserError:  # no sample could be used
        pass
    lines = [json.loads(line) for line in (folder / REFUSED).read_text("utf-8").splitlines()]
    keys = {line["key"] for line in lines if "key" in line} | refused
    ranges = [(line["start"], line["stop"]) for line in lines]
    return Outcome(delivered, keys, ranges, bool(lines))


def read_mmalign(folder: Path, shard: Shard, damaged: Damaged, indexed: bool) -> Outcome:
    try:
        return read_indexed(folder, shard, damaged) if indexed else read_unindexed(folder, damaged)
    except Exception as error:  # crashes are counted
        return Outcome([], set(), [], False, repr(error))


def read_webdataset(folder: Path, damaged: Damaged) -> Outcome:
    """webdataset's reader with a handler that records every error and continues."""
    path = folder / "peer.tar"
    path.write_bytes(damaged.data)
    complaints: list[BaseException] = []

    def note(error: BaseException) -> bool:
        complaints.append(error)
        return True

    delivered = []
    crash = None
    try:
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, handler=note):
            if "jpg" in sample and "txt" in sample:
                text = sample["txt"].decode("utf-8", "replace")
                delivered.append((sample["__key__"], (sample["jpg"], text)))
    except Exception as error:
        crash = repr(error)
    return Outcome(delivered, set(), [], bool(complaints), crash)


def stands_there(shard: Shard, damaged: Damaged, key: str, pair: tuple[bytes, str]) -> bool:
    """Whether the pair equals the current bytes at the positions of the sample's members."""
    data = damaged.data
    for suffix, held in (("jpg", pair[0]), ("txt", pair[1].encode())):
        member = next(m for m in shard.members if (m.key, m.suffix) == (key, suffix))
        places = list(damaged.places(member.offset, member.offset + member.size))
        if len(places) != 1 or data[places[0][0] : places[0][1]] != held:
            return False
    return True


def is_named(shard: Shard, damaged: Damaged, key: str, outcome: Outcome) -> bool:
    """Whether the key of a lost sample, or a current or former position of its bytes, is reported."""
    if key in outcome.keys:
        return True
    own = [m for m in shard.members if m.key == key]
    return any(
        start <= last and first <= stop
        for first, last in damaged.places(own[0].start, own[-1].stop)
        for start, stop in outcome.ranges
    )


def judge(
    shard: Shard, other: Shard, damaged: Damaged, outcome: Outcome, indexed: bool
) -> Counter[str]:
    """Counts of what happened to the samples of one case."""
    counts = Counter(cases=1, crashes=int(outcome.crash is not None))
    truth = shard.pairs if indexed else shard.pairs | other.pairs
    whole = set()
    for key, pair in outcome.delivered:
        if truth.get(key) == pair:
            whole.add(key)
        elif not indexed and key in shard.pairs and stands_there(shard, damaged, key, pair):
            counts["changed"] += 1
            whole.add(key)
        else:
            counts["wrong_pairs"] += 1
    lost = [key for key in shard.pairs if key not in whole]
    counts["lost"] = len(lost)
    counts["unnamed_losses"] = sum(not is_named(shard, damaged, key, outcome) for key in lost)
    counts["silent"] = 0 if outcome.spoke else len(lost)
    return counts


def run(cases: int, seed: int) -> dict[str, dict[str, Counter[str]]]:
    """Counts by reader and kind of damage."""
    rng = random.Random(seed)
    shards = [make_shard(number, rng) for number in range(8)]
    total = {
        reader: {kind: Counter[str]() for kind in KINDS} for reader in ("mmalign", "webdataset")
    }
    with tempfile.TemporaryDirectory() as scratch:
        for case in range(cases):
            kind = list(KINDS)[case % len(KINDS)]
            indexed = case // len(KINDS) % 2 == 1
            shard, other = rng.sample(shards, 2)
            damaged = KINDS[kind](shard, other, rng)
            folder = Path(scratch) / str(case)
            folder.mkdir()
            ours = read_mmalign(folder, shard, damaged, indexed)
            if ours.crash is not None:
                sys.stdout.write(f"case {case}, {kind}: {ours.crash}\n")
            peer = read_webdataset(folder, damaged)
            for reader, outcome in (("mmalign", ours), ("webdataset", peer)):
                total[reader][kind] += judge(shard, other, damaged, outcome, indexed)
            for path in folder.rglob("*"):
                if path.is_file():
                    os.truncate(path, 0)
    return total


def run_metadata(cases: int, seed: int) -> Counter[str]:
    rng, total = random.Random(seed), Counter[str]()
    for case in range(cases):
        with tempfile.TemporaryDirectory() as folder:
            counts, crashes = damage_metadata.run_case(Path(folder), rng)
        for crash in crashes:
            sys.stdout.write(f"metadata, case {case}, {crash}\n")
        total += counts
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="damaged shards: mmalign and webdataset")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = run(options.cases, options.seed)
    columns = ("cases", "crashes", "wrong_pairs", "changed", "lost", "silent")
    heads = ("cases", "crashes", "wrong", "changed", "lost", "lost silently")
    write = sys.stdout.write
    write(f"{'':<32}" + "".join(f"{head:>15}" for head in heads) + "\n")
    for reader, kinds in total.items():
        for kind, counts in kinds.items():
            cells = "".join(f"{counts[column]:>15}" for column in columns)
            write(f"{reader + ', ' + kind:<32}{cells}\n")
    ours = sum(total["mmalign"].values(), Counter[str]())
    metadata = run_metadata(options.cases, options.seed)
    cells = "".join(f"{metadata[column]:>15}" for column in columns)
    write(f"{'mmalign, metadata':<32}{cells}\n")
    figures = ("cases", "crashes", "wrong_pairs", "unnamed_losses")
    found = {name: ours[name] for name in figures}
    write(json.dumps(found | {f"metadata_{name}": metadata[name] for name in figures}) + "\n")


if __name__ == "__main__":
    main()
