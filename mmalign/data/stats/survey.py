"""Reading a data set once, for its statistics: counts, and one row of 52 bytes per sample.

    manifest -> all shards, or some chosen by a seed -> one process each: index -> every sample -> Facts
             -> merged, in the order of the manifest -> Survey

Sizes and formats come from the headers of images. Only the search for similar images decodes them. Samples
that cannot be used are counted by reason and are in no other number.
"""

import hashlib
import io
import os
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image

from mmalign.core.batch import Pair
from mmalign.core.batching import batched
from mmalign.core.console import track
from mmalign.core.errors import UserError
from mmalign.core.workers import map_in_processes
from mmalign.data.image_formats import PILLOW_NAMES
from mmalign.data.images import upright_rgb, upright_size
from mmalign.data.shards.folder import Folder, open_folder
from mmalign.data.shards.jobs import Job, read_shard, shard_jobs
from mmalign.data.shards.manifest import Manifest
from mmalign.data.shards.reader import UnusableSample, picture_id
from mmalign.data.shards.scan import check_picture
from mmalign.data.stats.duplicates import LEAST_PIXELS, NO_HASH, Rows, image_hash
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.tokenizer import load_tokenizer

MAX_NAMED = 20  # samples that cannot be used of which key and reason are kept
MAX_NAMES = 1_000  # sources, and licences, that are counted by name
_INTEGERS = ("shard", "number", "width", "height", "size", "captions", "languages")
# One sample: its position, identity, hashes of its bytes and its look, `size` in bytes, and counts.
ROW = np.dtype(
    [*((name, "i4") for name in _INTEGERS), ("picture", "i8"), ("content", "u8"), ("look", "u8")]
)

_tokenizer = lru_cache(maxsize=1)(load_tokenizer)


@dataclass(frozen=True)
class Options:
    """What is read, and how."""

    shards: int | None = None  # how many are chosen; None: all
    seed: int = 0  # of the choice
    near: bool = True  # look for similar images, for which every image is decoded
    tokenizer: str | None = None  # hub name or folder of the one whose tokens are counted
    processes: int = 1  # shards that are read at once


@dataclass
class Facts:
    """What was found in one shard, or in several."""

    rows: Rows = field(default_factory=lambda: np.zeros(0, ROW))
    # `formats`, `sources`, `licenses`, `unusable` (reasons) and `samples` (languages) by name; `characters`
    # and `tokens`: captions by (language, length), so that memory does not grow with them.
    counts: dict[str, Counter[Any]] = field(default_factory=lambda: defaultdict(Counter))
    named: list[dict[str, Any]] = field(default_factory=list)  # the first ones that cannot be used


@dataclass(frozen=True)
class Survey:
    """A data set as it was read."""

    folder: Folder
    manifest: Manifest  # lists the shards that were read
    total: int  # how many shards there are
    options: Options
    facts: Facts


def survey(name: str | os.PathLike[str], options: Options) -> Survey:
    """Read the data set in a folder or at a URL.

    Raises:
        UserError: no data set there, an index that is damaged, no such tokenizer, or no usable sample.
    """
    folder, manifest = open_folder(name, RemoteConfig(), check_files=False)
    shards, total = manifest.shards, len(manifest.shards)
    if options.tokenizer is not None:
        _tokenizer(options.tokenizer)  # fails before any shard is read
    if options.shards is not None and options.shards < total:
        chosen = random.Random(options.seed).sample(range(total), options.shards)
        shards = tuple(shards[position] for position in sorted(chosen))
    manifest = replace(manifest, shards=shards)
    jobs = shard_jobs(folder, manifest, range(len(shards)))
    parts = map_in_processes(partial(_read_shard, options), jobs, options.processes)
    facts, rows = Facts(), []
    for part in track(parts, "shards", len(shards)):
        rows.append(part.rows)
        facts.named += part.named[: MAX_NAMED - len(facts.named)]
        for name, counter in part.counts.items():
            facts.counts[name].update(counter)
    facts.rows = np.concatenate([facts.rows, *rows])
    if not len(facts.rows):
        raise UserError(
            f"{folder}: no sample can be read; `mmalign data verify` says what is damaged"
        )
    return Survey(folder, manifest, total, options, facts)


def _read_shard(options: Options, job: Job) -> Facts:
    number, folder, manifest = job
    facts = Facts()
    rows, captions = [], []
    for position, (row, pair) in enumerate(read_shard(folder, manifest)):
        try:
            if isinstance(pair, UnusableSample):
                raise pair
            image_format, facts_of_image = look(pair, options.near)
        except UnusableSample as error:
            facts.counts["unusable"][error.reason] += 1
            if len(facts.named) < MAX_NAMED:
                file = manifest.shards[0].tar
                problem = {"file": file, "key": row["key"], "reason": error.reason}
                facts.named.append(problem | ({"detail": error.detail} if error.detail else {}))
            continue
        rows.append((number, position, *facts_of_image))
        facts.counts["formats"][image_format] += 1
        facts.counts["characters"].update((c.lang, len(c.text)) for c in pair.captions)
        facts.counts["samples"].update({caption.lang for caption in pair.captions})
        for counter, name in (("sources", pair.source), ("licenses", pair.license)):
            _count_name(facts.counts[counter], name)
        if options.tokenizer is not None:
            captions += [(caption.lang, caption.text) for caption in pair.captions]
    # Many at once: a tokenizer works on them in parallel.
    for chunk in batched(captions, 1_000):
        # Not truncated, and with the special tokens: this is what `max_length` of a tower counts.
        texts = [text for _, text in chunk]
        encoded = _tokenizer(str(options.tokenizer)).inner(texts, verbose=False)
        lengths = map(len, encoded["input_ids"])
        facts.counts["tokens"].update(zip((lang for lang, _ in chunk), lengths, strict=True))
    facts.rows = np.array(rows, ROW)
    return facts


def look(pair: Pair, near: bool) -> tuple[str, tuple[int, ...]]:
    """The format of an image and the row of its sample from `width` on; UnusableSample: it is damaged."""
    check_picture(pair.image)
    image = Image.open(io.BytesIO(pair.image), formats=PILLOW_NAMES)
    image_format, hashed = str(image.format), NO_HASH
    try:
        width, height = upright_size(image)
        if near:
            # A JPEG is decoded no larger than needed.
            image.draft("RGB", (LEAST_PIXELS, LEAST_PIXELS))
            hashed = image_hash(upright_rgb(image))
    except Exception as error:  # Pillow's parsers raise many kinds of errors on broken bytes
        raise UnusableSample("does not decode", str(error)) from None
    digest = hashlib.blake2b(pair.image, digest_size=8).digest()
    languages = len({caption.lang for caption in pair.captions})
    sizes = (width, height, len(pair.image), len(pair.captions), languages)
    hashes = (picture_id(pair.picture), int.from_bytes(digest, "big"), hashed)
    return image_format, sizes + hashes


def _count_name(counts: Counter[str], name: str) -> None:
    # Untrusted text: long names are cut, and a data set with very many does not fill the memory.
    name = name[:200]
    counts[name if name in counts or len(counts) < MAX_NAMES else "others"] += 1
