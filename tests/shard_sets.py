"""Small shard sets for tests."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from PIL import Image

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import validate
from mmalign.data.shards.columns import Shard
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.manifest import Manifest
from mmalign.data.shards.pack import write_pairs, write_split
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.order import GlobalOrder

LANGUAGES = ("en", "sw", "ja")


def make_image(number: int, image_format: str = "PNG", size: int = 16) -> bytes:
    """An image of two colours that depend on its number."""
    image = Image.new("RGB", (size, size), (number * 37 % 256, number * 91 % 256, 128))
    image.paste((number * 53 % 256, 64, number * 17 % 256), (0, 0, size // 2, size // 2))
    encoded = io.BytesIO()
    image.save(encoded, image_format)
    return encoded.getvalue()


def make_pair(number: int, languages: tuple[str, ...], picture: str | None = None) -> Pair:
    key = f"k{number:03d}"
    return Pair(
        key=key,
        image=make_image(number, ("PNG", "JPEG", "WEBP")[number % 3]),
        captions=tuple(
            Caption(lang, f"{lang} {number} dog ñ 漢" * (1 + number % 2)) for lang in languages
        ),
        picture=picture or key,
        split="train",
        source="test",
        license="CC0-1.0",
    )


def write_set(folder: Path, pairs: list[Pair], samples_per_shard: int = 4) -> Path:
    """Write the pairs as a finished data set."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [pairs[i : i + samples_per_shard] for i in range(0, len(pairs), samples_per_shard)]
    reports = [write_pairs(folder / f"{i:05d}.tar", part) for i, part in enumerate(parts)]
    facts = {"name": "set", "split": "train", "recipe": {}, "recipe_sha256": "0" * 64}
    write_split(folder, facts, reports)
    return folder


def finished(rows: Iterable[LazyPair | BadRow]) -> Iterator[Pair]:
    """The pairs of all rows of a source, in order; raises the first bad row."""
    for row in rows:
        if isinstance(row, BadRow):
            raise row
        yield row.load()


def make_set(
    folder: Path, count: int, languages: Callable[[int], tuple[str, ...]] | None = None
) -> Path:
    """A data set of `count` images; by default with 1, 2 or 4 captions, some languages twice."""

    def default(number: int) -> tuple[str, ...]:
        return (("en",), ("sw", "en"), ("en", "en", "ja", "sw"))[number % 3]

    chosen = languages or default
    return write_set(folder, [make_pair(i, chosen(i)) for i in range(count)])


def open_descriptors() -> set[Path]:
    """The open file descriptors of this process."""
    return set(Path("/proc/self/fd").iterdir())


class SetOnPaper:
    """A data set of which there is only a manifest; shards of samples with one caption each."""

    def __init__(self, languages: Sequence[Sequence[str]]) -> None:
        """`languages`: for each shard the language of each sample."""
        self.samples = [[(lang,) for lang in of_shard] for of_shard in languages]
        shards = tuple(
            Shard(f"{n:05d}.tar", len(one), len(one), dict(Counter(one)), captioned=len(one))
            for n, one in enumerate(languages)
        )
        self.manifest = Manifest("paper", "train", {}, "", shards, "txt", {}, {}, {}, "")
        self.starts, self.files = SimpleNamespace(most=128), SimpleNamespace(most=256)
        self.announced: list[int] = []

    def __len__(self) -> int:
        return self.manifest.samples

    def languages_in(self, number: int) -> list[tuple[str, ...]]:
        return self.samples[number]

    def prefetch(self, numbers: Iterable[int], by_range: bool = False) -> None:
        self.announced += numbers


def plan_on_paper(
    *sets: Sequence[Sequence[str]], seed: int = 3, train: Any = None, **fields: Any
) -> GlobalOrder:
    """The order of such sets under these fields of `data`."""
    train = train or [str(number) for number, _ in enumerate(sets)]
    config = validate(DataConfig, {"train": train, **fields}, "test")
    return GlobalOrder([cast(ShardSet, SetOnPaper(one)) for one in sets], config, seed)
