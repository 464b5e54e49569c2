"""Reading a data set once, for its statistics: counts, and a row of 52 bytes a sample.

    manifest -> all shards, or some drawn by a seed -> a process each: index -> every sample read -> Facts
             -> merged, in the order of the manifest -> Survey

Sizes and formats come from the headers of pictures. Only the search for pictures that look alike decodes
them, JPEGs as small as JPEG's own scaling allows. Lengths are counted by value, so that memory does not grow
with the captions. Samples that cannot be used are counted by reason and are in no other number.
"""

import hashlib
import io
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.core.batch import Pair
from mmalign.core.console import track
from mmalign.core.errors import UserError
from mmalign.core.workers import map_in_processes
from mmalign.data.decoders import upright_rgb, upright_size
from mmalign.data.image_formats import PILLOW_NAMES
from mmalign.data.shards.folder import LocalFolder
from mmalign.data.shards.manifest import Manifest, Shard, load_manifest
from mmalign.data.shards.reader import UnusableSample, picture_id, read_pair
from mmalign.data.shards.scan import check_picture
from mmalign.data.shards.shard_index import read_rows
from mmalign.data.stats.duplicates import Rows
from mmalign.data.stats.image_hash import LEAST_PIXELS, NO_HASH, picture_hash
from mmalign.data.tokenizer import Tokenizer, load_tokenizer

MAX_NAMED = 20
"""Samples that cannot be used that are named."""
MAX_NAMES = 1_000
"""Sources, and licences, that are counted by name."""
_TEXTS_AT_ONCE = 1_000  # that a tokenizer gets

ROW = np.dtype(
    [
        ("shard", "i4"),
        ("number", "i4"),
        ("picture", "i8"),
        ("content", "u8"),
        ("look", "u8"),
        ("width", "i4"),
        ("height", "i4"),
        ("size", "i4"),
        ("captions", "i4"),
        ("languages", "i4"),
    ]
)
"""A sample: its place, identity, hashes of its bytes and of its look, and its counts; `size` is in bytes."""

Lengths = dict[str, Counter[int]]
"""Language -> length -> captions."""


@dataclass(frozen=True)
class Options:
    """What is read, and how.

    Attributes:
        shards: how many are drawn; None: all.
        seed: of the draw.
        near: look for pictures that look alike, which decodes every picture.
        tokenizer: hub name or folder of the one whose tokens are counted.
        processes: shards that are read at once.
    """

    shards: int | None = None
    seed: int = 0
    near: bool = True
    tokenizer: str | None = None
    processes: int = 1


@dataclass
class Facts:
    """What was found in one shard, or in several: `rows` of type ROW, and counts of captions and samples."""

    rows: Rows = field(default_factory=lambda: np.zeros(0, ROW))
    characters: Lengths = field(default_factory=dict)
    tokens: Lengths = field(default_factory=dict)
    samples: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    named: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """A data set as it was read: `manifest` names the shards that were, `total` is how many there are."""

    folder: Path
    manifest: Manifest
    total: int
    options: Options
    facts: Facts


def survey(folder: Path, options: Options) -> Survey:
    """Read a data set.

    Raises:
        UserError: no data set there, an index that is damaged, or no sample that can be used.
    """
    whole = load_manifest(folder)
    if options.tokenizer is not None:
        _tokenizer(options.tokenizer)  # says at once whether there is one
    manifest = replace(whole, shards=_drawn(whole.shards, options))
    jobs = [
        _Job(folder, number, _part(manifest, shard), options)
        for number, shard in enumerate(manifest.shards)
    ]
    facts = _merge(
        track(map_in_processes(_read_shard, jobs, options.processes), "shards", len(jobs))
    )
    if not len(facts.rows):
        raise UserError(
            f"{folder}: no sample can be read; `mmalign data verify` tells what is damaged"
        )
    return Survey(folder, manifest, len(whole.shards), options, facts)


@dataclass(frozen=True)
class _Job:
    folder: Path
    number: int
    manifest: Manifest
    options: Options


def _drawn(shards: Sequence[Shard], options: Options) -> tuple[Shard, ...]:
    if options.shards is None or options.shards >= len(shards):
        return tuple(shards)
    places = random.Random(options.seed).sample(range(len(shards)), options.shards)
    return tuple(shards[place] for place in sorted(places))


def _part(manifest: Manifest, shard: Shard) -> Manifest:
    """What a process needs of the manifest to read one shard: it is sent there for each."""
    files = {name: facts for name, facts in manifest.files.items() if name == shard.index}
    return replace(manifest, recipe={}, shards=(shard,), files=files, refused={}, ignored={})


def _read_shard(job: _Job) -> Facts:
    (shard,) = job.manifest.shards
    index = read_rows(LocalFolder(job.folder), job.manifest, shard)
    facts = Facts()
    try:
        file = (job.folder / shard.tar).open("rb")
    except OSError as error:
        facts.unusable["read error"] += len(index)
        detail = f"{error.strerror}, {len(index)} samples"
        facts.named.append({"file": shard.tar, "reason": "read error", "detail": detail})
        return facts
    rows, texts = [], _Texts(facts.tokens, job.options.tokenizer)
    with file:
        for number, row in enumerate(index):
            try:
                pair = read_pair(file.fileno(), row, job.manifest)
                rows.append((job.number, number, *_look(pair, facts, job.options.near)))
            except UnusableSample as error:
                _note(facts, shard, row["key"], error)
                continue
            _count_captions(pair, facts)
            texts.add(pair)
    texts.flush()
    facts.rows = np.array(rows, ROW)
    return facts


def _look(pair: Pair, facts: Facts, near: bool) -> tuple[int, ...]:
    """The row of a sample from its `picture` on; counts the format of its picture."""
    check_picture(pair.image)
    opened = Image.open(io.BytesIO(pair.image), formats=PILLOW_NAMES)
    image_format = str(opened.format)
    try:
        width, height = upright_size(opened)
        look = _hash_of(opened) if near else NO_HASH
    except Exception as error:  # Pillow's parsers raise what they like on broken bytes
        raise UnusableSample("does not decode", str(error)) from None
    facts.formats[image_format] += 1
    digest = hashlib.blake2b(pair.image, digest_size=8).digest()
    return (
        picture_id(pair.picture),
        int.from_bytes(digest, "big"),
        look,
        width,
        height,
        len(pair.image),
        len(pair.captions),
        len({caption.lang for caption in pair.captions}),
    )


def _hash_of(opened: Image.Image) -> int:
    """The hash of a picture whose header was checked."""
    opened.draft("RGB", (LEAST_PIXELS, LEAST_PIXELS))
    return picture_hash(upright_rgb(opened))


def _note(facts: Facts, shard: Shard, key: str, error: UnusableSample) -> None:
    facts.unusable[error.reason] += 1
    if len(facts.named) < MAX_NAMED:
        problem = {"file": shard.tar, "key": key, "reason": error.reason}
        facts.named.append(problem | ({"detail": error.detail} if error.detail else {}))


def _count_captions(pair: Pair, facts: Facts) -> None:
    for caption in pair.captions:
        facts.characters.setdefault(caption.lang, Counter())[len(caption.text)] += 1
    facts.samples.update({caption.lang for caption in pair.captions})
    _count_name(facts.sources, pair.source)
    _count_name(facts.licenses, pair.license)


def _count_name(counter: Counter[str], name: str) -> None:
    """Count a stranger's text by itself as long as there are few."""
    name = name[:200]
    counter[name if name in counter or len(counter) < MAX_NAMES else "others"] += 1


class _Texts:
    """Captions that wait for the tokenizer, which is fast on many at once."""

    def __init__(self, tokens: Lengths, tokenizer: str | None) -> None:
        self.tokens, self.tokenizer = tokens, tokenizer
        self._waiting: list[tuple[str, str]] = []

    def add(self, pair: Pair) -> None:
        if self.tokenizer is not None:
            self._waiting += [(caption.lang, caption.text) for caption in pair.captions]
            if len(self._waiting) >= _TEXTS_AT_ONCE:
                self.flush()

    def flush(self) -> None:
        if self.tokenizer is None or not self._waiting:
            return
        texts = [text for _, text in self._waiting]
        # Whole, with the special tokens: it is what `max_length` of a tower counts.
        encoded = _tokenizer(self.tokenizer).inner(texts, verbose=False)["input_ids"]
        for (lang, _), ids in zip(self._waiting, encoded, strict=True):
            self.tokens.setdefault(lang, Counter())[len(ids)] += 1
        self._waiting = []


@lru_cache(maxsize=1)
def _tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(name)


def _merge(parts: Iterable[Facts]) -> Facts:
    whole, rows = Facts(), [np.zeros(0, ROW)]
    for part in parts:
        rows.append(part.rows)
        for name in ("samples", "formats", "sources", "licenses", "unusable"):
            getattr(whole, name).update(getattr(part, name))
        for name in ("characters", "tokens"):
            for lang, counts in getattr(part, name).items():
                getattr(whole, name).setdefault(lang, Counter()).update(counts)
        whole.named += part.named[: MAX_NAMED - len(whole.named)]
    whole.rows = np.concatenate(rows)
    return whole
