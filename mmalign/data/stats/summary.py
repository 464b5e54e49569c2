"""`mmalign data stats`: what a data set contains, as one dictionary and as lines for a terminal.

    data set -> survey.py: counts and one row per sample -> summarise -> a dictionary of JSON values (--json)
    dictionary -> lines: totals, one row per language, images, duplicates, leaks, what cannot be used
               -> chart.py: one figure (--picture)

All numbers are of the shards that were read. Quantiles are exact.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmalign.core.errors import printable
from mmalign.core.languages import language_name
from mmalign.data.shards.shard_index import read_rows
from mmalign.data.stats.duplicates import Example, find_duplicates, find_leaks
from mmalign.data.stats.survey import MAX_NAMES, Facts, Survey
from mmalign.data.verify import describe

MAX_LANGUAGES = 150  # with a line of their own
_WIDTH = 30  # of the first column
_RANGES = {
    "captions_per_picture": "captions per image",
    "languages_per_sample": "languages per sample",
    "width": "width, pixels",
    "height": "height, pixels",
    "picture_bytes": "bytes per image",
}


def summarise(found: Survey, against: Survey | None = None) -> dict[str, Any]:
    """The statistics as JSON values; the names are stable.

    Quantiles are `p5`, `p50`, `p95` and `max`. `pictures` are distinct identities. `sizes` are groups of
    images of nearly equal size: mean width, mean height, samples.

    Args:
        against: another set; `leaks` then says how many of its samples show an image of the first.
    """
    facts, options, manifest = found.facts, found.options, found.manifest
    duplicates, examples = find_duplicates(facts.rows, options.near)
    refused = Counter[str]()  # by `mmalign data index`
    for shard in manifest.shards:
        refused.update(manifest.refused.get(shard.file, {}))
    sampled = len(manifest.shards) < found.total
    tree = {
        "name": manifest.name,
        "split": manifest.split,
        "manifest_sha256": manifest.sha256,
        "shards": {
            "read": len(manifest.shards),
            "of": found.total,
            "seed": options.seed if sampled else None,
        },
        "samples": len(facts.rows),
        "captions": int(facts.rows["captions"].sum()),
        "bytes": {
            "shards": sum(manifest.files.get(s.tar, {}).get("size", 0) for s in manifest.shards),
            "pictures": int(facts.rows["size"].sum(dtype=np.int64)),
        },
        "tokenizer": options.tokenizer,
        "languages": _languages(facts),
        "formats": dict(facts.counts["formats"].most_common()),
        **_image_facts(facts),
        "sources": dict(facts.counts["sources"].most_common(MAX_NAMES)),
        "licenses": dict(facts.counts["licenses"].most_common(MAX_NAMES)),
        "duplicates": {
            **duplicates,
            "examples": {
                kind: [_pair(found, found, one) for one in some] for kind, some in examples.items()
            },
        },
        "refused": dict(refused.most_common()),
        "unusable": {
            "samples": facts.counts["unusable"].total(),
            "reasons": dict(facts.counts["unusable"].most_common()),
            "named": facts.named,
        },
    }
    if against is not None:
        near = options.near and against.options.near
        counts, leaks = find_leaks(facts.rows, against.facts.rows, near)
        other = against.manifest
        tree["leaks"] = {
            **{"name": other.name, "split": other.split, "manifest_sha256": other.sha256},
            **counts,
            "examples": [_pair(found, against, example) for example in leaks],
        }
    return tree


def quantiles(values: Any, counts: Any = None) -> dict[str, int]:
    """The 5 %, 50 % and 95 % quantiles, which are values that occur, and the largest value."""
    array = np.asarray(values)
    found = np.quantile(array, (0.05, 0.5, 0.95), method="inverted_cdf", weights=counts)
    return dict(zip(("p5", "p50", "p95", "max"), map(int, (*found, array.max())), strict=True))


def _languages(facts: Facts) -> dict[str, Any]:
    """By language, the one with most captions first."""
    units = [unit for unit in ("characters", "tokens") if facts.counts[unit]]
    lengths: dict[str, dict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    for unit in units:
        for (lang, length), captions in facts.counts[unit].items():
            lengths[lang][unit][length] += captions
    captions_of = {lang: found["characters"].total() for lang, found in lengths.items()}
    return {
        lang: {
            "name": language_name(lang),
            "captions": captions_of[lang],
            "samples": facts.counts["samples"][lang],
            **{
                u: quantiles(list(lengths[lang][u]), list(lengths[lang][u].values())) for u in units
            },
        }
        for lang in sorted(lengths, key=lambda lang: (-captions_of[lang], lang))
    }


def _image_facts(facts: Facts) -> dict[str, Any]:
    rows, width, height = facts.rows, facts.rows["width"], facts.rows["height"]
    pictures, inverse = np.unique(rows["picture"], return_inverse=True)
    captions = np.bincount(inverse, rows["captions"]).astype(np.int64)
    # Groups of an eighth of an octave in each direction, the largest first.
    cell = np.rint(8 * np.log2(np.stack([width, height]))).astype(np.int64)
    _, inverse, count = np.unique(cell, axis=1, return_inverse=True, return_counts=True)
    means = [np.rint(np.bincount(inverse, side) / count).astype(int) for side in (width, height)]
    order = np.argsort(-count, kind="stable")
    languages = rows["languages"]
    return {
        "pictures": len(pictures),
        "captions_per_picture": {**quantiles(captions), "mean": float(captions.mean())},
        "languages_per_sample": {**quantiles(languages), "mean": float(languages.mean())},
        "width": quantiles(width),
        "height": quantiles(height),
        "picture_bytes": quantiles(rows["size"]),
        "shapes": {
            "landscape": int((width > height).sum()),
            "portrait": int((width < height).sum()),
            "square": int((width == height).sum()),
        },
        "sizes": np.stack([*means, count], axis=1)[order].tolist(),
    }


def _pair(one: Survey, two: Survey, example: Example) -> dict[str, Any]:
    """Shards and keys of two samples."""
    samples = []
    for found, position in zip((one, two), example, strict=False):
        row = found.facts.rows[position]
        shard = found.manifest.shards[row["shard"]]
        index = read_rows(found.folder, found.manifest, shard)
        samples.append({"shard": shard.file, "key": index[row["number"]]["key"]})
    return {"samples": samples, "distance": example[2]}


def lines(tree: Mapping[str, Any], folder: str) -> Iterator[str]:
    """The statistics of the data set in `folder`, line by line."""
    read, of, seed = (tree["shards"][name] for name in ("read", "of", "seed"))
    yield (
        f"{folder}: {tree['samples']:,} samples, {tree['pictures']:,} images, "
        f"{tree['captions']:,} captions in {len(tree['languages'])} languages"
    )
    part = "" if seed is None else f" of {of:,}, chosen with seed {seed}: every number is of these"
    yield f"shards: {read:,}{part}; {size_in_words(tree['bytes']['shards'])}"
    yield f"sources: {_counts(tree['sources'])}"
    yield f"licences: {_counts(tree['licenses'])}"
    yield ""
    yield from _language_lines(tree)
    yield ""
    yield f"{'':{_WIDTH}}{'5 %':>10}{'50 %':>10}{'95 %':>10}{'max':>10}"
    for name, words in _RANGES.items():
        cells = "".join(f"{tree[name][quantile]:>10,}" for quantile in ("p5", "p50", "p95", "max"))
        yield f"{words:{_WIDTH}}{cells}"
    yield f"formats: {_counts(tree['formats'])}; shapes: {_counts(tree['shapes'])}"
    yield from _duplicate_lines(tree)
    if tree["refused"]:
        yield f"refused by `mmalign data index`: {_counts(tree['refused'])}"
    unusable = tree["unusable"]
    if unusable["samples"]:
        yield f"cannot be used: {unusable['samples']:,} samples ({_counts(unusable['reasons'])})"
        for problem in unusable["named"]:
            yield f"  {describe(problem)}"
        yield f"`mmalign data verify {folder}` checks every file and lists all that is damaged"


def _language_lines(tree: Mapping[str, Any]) -> Iterator[str]:
    units = ["characters", "tokens"] if tree["tokenizer"] else ["characters"]
    yield f"{'':{_WIDTH}}{'':>22}" + "".join(f"{unit:>24}" for unit in units)
    below = f"{'5 %':>6}{'50 %':>6}{'95 %':>6}{'max':>6}" * len(units)
    yield f"{'language':{_WIDTH}}{'captions':>12}{'samples':>10}" + below
    languages = list(tree["languages"].items())
    for code, facts in languages[:MAX_LANGUAGES]:
        cells = "".join(f"{value:>6}" for unit in units for value in facts[unit].values())
        label = short_label(facts["name"], printable(code), _WIDTH - 1)
        yield f"{label:{_WIDTH}}{facts['captions']:>12,}{facts['samples']:>10,}{cells}"
    rest = languages[MAX_LANGUAGES:]
    if rest:
        captions = sum(facts["captions"] for _, facts in rest)
        yield f"... and {len(rest)} more languages, {captions:,} captions; --json FILE writes them all"


def _duplicate_lines(tree: Mapping[str, Any]) -> Iterator[str]:
    exact, near = tree["duplicates"]["exact"], tree["duplicates"].get("near")
    yield ""
    yield (
        f"exact duplicates: {exact['samples']:,} samples repeat the bytes of an earlier one, "
        f"{exact['under_another_identity']:,} of them under another identity"
    )
    if near:
        yield (
            f"near duplicates: {near['pictures']:,} of {near['compared']:,} images look like one that is "
            f"taken for another image ({near['method']})"
        )
        yield from _example_lines(tree["duplicates"]["examples"]["near"])
    if "leaks" in tree:
        leaks = tree["leaks"]
        alike = f", {leaks['near']['samples']:,} look alike" if "near" in leaks else ""
        yield ""
        yield (
            f"leaks: {leaks['samples']:,} of {leaks['of']:,} samples of {printable(leaks['name'])}/"
            f"{printable(leaks['split'])} show an image of this set: {leaks['exact']:,} with equal bytes, "
            f"{leaks['same_identity']:,} of the same identity{alike}"
        )
        yield from _example_lines(leaks["examples"], " of this set")


def _example_lines(pairs: list[dict[str, Any]], of_first: str = "") -> Iterator[str]:
    for pair in pairs[:5]:
        one, two = (f"{printable(s['shard'])} `{printable(s['key'])}`" for s in pair["samples"])
        yield f"  {one}{of_first} and {two}, {pair['distance']} bits apart"


def size_in_words(count: int) -> str:
    """Bytes in the largest unit of which there is at least one."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} bytes"


def short_label(name: str, code: str, width: int) -> str:
    """Name and code of a language in at most `width` letters; the name is cut before the code."""
    room = width - len(code) - 3
    if name == code or room < 4:
        return code[:width]
    return f"{name if len(name) <= room else name[: room - 1].rstrip() + '…'} ({code})"


def _counts(counts: Mapping[str, int]) -> str:
    """The first eight counts, in words."""
    shown = [f"{printable(name)}: {count:,}" for name, count in list(counts.items())[:8]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")
