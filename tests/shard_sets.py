"""Small shard sets for tests."""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from mmalign.core.batch import Caption, Pair
from mmalign.data.shards.lazy_pair import BadRow, LazyPair
from mmalign.data.shards.pack import write_pairs, write_split

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
