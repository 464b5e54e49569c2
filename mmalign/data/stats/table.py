"""The statistics of a data set as lines for a terminal.

    tree of stats.summarise -> totals, a row a language, pictures, duplicates, leaks, what cannot be used

Names of sources, licences and samples are strangers' text: what could steer a terminal is replaced.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmalign.data.reasons import REASONS

MAX_LANGUAGES = 150
"""That have a row of their own."""
_MAX_NAMES = 8  # of sources, of licences
_MAX_EXAMPLES = 5
_WIDTH = 30  # of a language's name


def lines(tree: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The statistics, line by line.

    Args:
        folder: of the data set, for what is said of it.
    """
    yield from _totals(tree, folder)
    yield from _languages(tree)
    yield from _pictures(tree)
    yield from _duplicates(tree)
    if "leaks" in tree:
        yield from _leaks(tree["leaks"])
    yield from _losses(tree, folder)


def plain(text: str) -> str:
    """A stranger's text without what could steer a terminal."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def size_in_words(count: int) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} bytes"


def _totals(tree: Mapping[str, Any], folder: Path) -> Iterator[str]:
    read, of, seed = (tree["shards"][name] for name in ("read", "of", "seed"))
    yield (
        f"{folder}: {tree['samples']:,} samples, {tree['pictures']:,} pictures, "
        f"{tree['captions']:,} captions in {len(tree['languages'])} languages"
    )
    drawn = "" if seed is None else f" of {of:,}, drawn with seed {seed}: every number is of these"
    yield f"shards: {read:,}{drawn}; {size_in_words(tree['bytes']['shards'])}"
    for name, words in (("sources", "sources"), ("licenses", "licences")):
        yield f"{words}: {_named(tree[name])}"


def _named(counts: Mapping[str, int]) -> str:
    shown = [f"{plain(name)}: {count:,}" for name, count in list(counts.items())[:_MAX_NAMES]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def _languages(tree: Mapping[str, Any]) -> Iterator[str]:
    lengths = ["characters"] + (["tokens"] if tree["tokenizer"] else [])
    heads = [f"{name:>24}" for name in lengths]
    below = [f"{'5 %':>6}{'50 %':>6}{'95 %':>6}{'max':>6}" for _ in lengths]
    yield ""
    yield f"{'':{_WIDTH}}{'':>22}" + "".join(heads)
    yield f"{'language':{_WIDTH}}{'captions':>12}{'samples':>10}" + "".join(below)
    for code, facts in list(tree["languages"].items())[:MAX_LANGUAGES]:
        cells = "".join(f"{value:>6}" for name in lengths for value in facts[name].values())
        name = short_label(facts["name"], code, _WIDTH - 1)
        yield f"{name:{_WIDTH}}{facts['captions']:>12,}{facts['samples']:>10,}{cells}"
    rest = list(tree["languages"].values())[MAX_LANGUAGES:]
    if rest:
        captions = sum(facts["captions"] for facts in rest)
        yield f"... and {len(rest)} more languages, {captions:,} captions; --json FILE takes them all"


def short_label(name: str, code: str, width: int) -> str:
    """Name and code in at most `width` letters; the code stays whole where it can."""
    if name == code:
        return code[:width]
    room = width - len(code) - 3
    if room < 4:
        return code[:width]
    cut = name if len(name) <= room else f"{name[: room - 1].rstrip()}…"
    return f"{cut} ({code})"


def _pictures(tree: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'':{_WIDTH}}{'5 %':>10}{'50 %':>10}{'95 %':>10}{'max':>10}"
    for name, words in (
        ("captions_per_picture", "captions a picture"),
        ("languages_per_sample", "languages a sample"),
        ("width", "width, pixels"),
        ("height", "height, pixels"),
        ("picture_bytes", "bytes a picture"),
    ):
        cells = "".join(f"{tree[name][place]:>10,}" for place in ("p5", "p50", "p95", "max"))
        yield f"{words:{_WIDTH}}{cells}"
    yield f"formats: {_named(tree['formats'])}; shapes: {_named(tree['shapes'])}"


def _duplicates(tree: Mapping[str, Any]) -> Iterator[str]:
    counts = tree["duplicates"]
    exact = counts["exact"]
    yield ""
    yield (
        f"exact duplicates: {exact['samples']:,} samples repeat the bytes of an earlier one, "
        f"{exact['under_another_identity']:,} of them under another identity"
    )
    if "near" in counts:
        near = counts["near"]
        yield (
            f"near duplicates: {near['pictures']:,} of {near['compared']:,} pictures have a twin that is "
            f"taken for another picture ({near['method']})"
        )
        yield from _examples(counts["examples"]["near"])


def _leaks(leaks: Mapping[str, Any]) -> Iterator[str]:
    near = f", {leaks['near']['samples']:,} look alike" if "near" in leaks else ""
    yield ""
    yield (
        f"leaks: {leaks['samples']:,} of {leaks['of']:,} samples of {plain(leaks['name'])}/"
        f"{plain(leaks['split'])} show a picture of this set: {leaks['exact']:,} with equal bytes, "
        f"{leaks['same_identity']:,} of the same identity{near}"
    )
    yield from _examples(leaks["examples"], " of this set")


def _examples(pairs: list[dict[str, Any]], of_first: str = "") -> Iterator[str]:
    for pair in pairs[:_MAX_EXAMPLES]:
        one, two = (f"{plain(s['shard'])} `{plain(s['key'])}`" for s in pair["samples"])
        yield f"  {one}{of_first} and {two}, {pair['distance']} bits apart"


def _losses(tree: Mapping[str, Any], folder: Path) -> Iterator[str]:
    if tree["refused"]:
        yield f"refused by `mmalign data index`: {_named(tree['refused'])}"
    unusable = tree["unusable"]
    if not unusable["samples"]:
        return
    yield f"cannot be used: {unusable['samples']:,} samples ({_named(unusable['reasons'])})"
    for problem in unusable["named"]:
        key = f", sample `{plain(problem['key'])}`" if "key" in problem else ""
        detail = f" ({plain(problem['detail'])})" if "detail" in problem else ""
        yield f"  {plain(problem['file'])}{key}: {REASONS[problem['reason']]}{detail}"
    yield f"`mmalign data verify {folder}` looks at every file and names all that is damaged"
