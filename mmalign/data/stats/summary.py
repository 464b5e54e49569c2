"""`mmalign data stats`: what a data set holds, in numbers.

    data set -> survey.py: counts and a row a sample -> one tree of JSON values
             -> stats_table.py: lines for a terminal; stats_picture.py: a figure; --json: the tree itself

All numbers are of the shards that were read. Quantiles are exact.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.core.languages import language_name
from mmalign.data.shards.folder import LocalFolder
from mmalign.data.shards.manifest import Manifest
from mmalign.data.shards.shard_index import read_rows
from mmalign.data.stats.duplicates import Example, find_duplicates, find_leaks
from mmalign.data.stats.survey import MAX_NAMED, MAX_NAMES, Facts, Survey

_CELLS_PER_OCTAVE = 8  # of the table of picture sizes


def summarise(found: Survey, against: Survey | None = None) -> dict[str, Any]:
    """The statistics as JSON values; names are stable.

    Quantiles are `p5`, `p50`, `p95` and `max`. `pictures` are distinct identities. `sizes` are cells of
    pictures of nearly equal size: mean width, mean height, samples.

    Args:
        against: another set; `leaks` then says how many of its samples show a picture of the first.
    """
    facts, options, manifest = found.facts, found.options, found.manifest
    counts, examples = find_duplicates(facts.rows, options.near)
    named = {kind: [_pair(found, found, e) for e in listed] for kind, listed in examples.items()}
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
        **_totals(found),
        "tokenizer": options.tokenizer,
        "languages": _languages(facts),
        **_picture_facts(facts),
        "sources": dict(facts.sources.most_common(MAX_NAMES)),
        "licenses": dict(facts.licenses.most_common(MAX_NAMES)),
        "duplicates": {**counts, "examples": named},
        "refused": _refused(manifest),
        "unusable": {
            "samples": facts.unusable.total(),
            "reasons": dict(facts.unusable.most_common()),
            "named": facts.named[:MAX_NAMED],
        },
    }
    return tree if against is None else {**tree, "leaks": _leaks(found, against)}


def quantiles(values: Any, counts: Any = None) -> dict[str, int]:
    """The 5 %, 50 % and 95 % quantiles, which are values that occur, and the largest value."""
    array = np.asarray(values)
    found = np.quantile(array, (0.05, 0.5, 0.95), method="inverted_cdf", weights=counts)
    return {
        **dict(zip(("p5", "p50", "p95"), map(int, found), strict=True)),
        "max": int(array.max()),
    }


def _totals(found: Survey) -> dict[str, Any]:
    rows = found.facts.rows
    tars = [found.manifest.files.get(shard.tar, {}) for shard in found.manifest.shards]
    return {
        "samples": len(rows),
        "pictures": len(np.unique(rows["picture"])),
        "captions": int(rows["captions"].sum()),
        "bytes": {
            "shards": sum(facts.get("size", 0) for facts in tars),
            "pictures": int(rows["size"].sum(dtype=np.int64)),
        },
    }


def _languages(facts: Facts) -> dict[str, Any]:
    """By language, the one with most captions first."""
    order = sorted(facts.characters, key=lambda lang: (-facts.characters[lang].total(), lang))
    return {
        lang: {
            "name": language_name(lang),
            "captions": facts.characters[lang].total(),
            "samples": facts.samples[lang],
            "characters": _of_counts(facts.characters[lang]),
            **({"tokens": _of_counts(facts.tokens[lang])} if facts.tokens else {}),
        }
        for lang in order
    }


def _of_counts(counts: Mapping[int, int]) -> dict[str, int]:
    return quantiles(list(counts), list(counts.values()))


def _picture_facts(facts: Facts) -> dict[str, Any]:
    rows = facts.rows
    _, inverse = np.unique(rows["picture"], return_inverse=True)
    captions = np.bincount(inverse, rows["captions"]).astype(np.int64)
    width, height = rows["width"], rows["height"]
    return {
        "captions_per_picture": {**quantiles(captions), "mean": float(captions.mean())},
        "languages_per_sample": {
            **quantiles(rows["languages"]),
            "mean": float(rows["languages"].mean()),
        },
        "formats": dict(facts.formats.most_common()),
        "width": quantiles(width),
        "height": quantiles(height),
        "picture_bytes": quantiles(rows["size"]),
        "shapes": {
            "landscape": int((width > height).sum()),
            "portrait": int((width < height).sum()),
            "square": int((width == height).sum()),
        },
        "sizes": _sizes(width, height),
    }


def _sizes(width: NDArray[np.int32], height: NDArray[np.int32]) -> list[list[int]]:
    """Cells of an eighth of an octave each way, the fullest first: mean width, mean height, samples."""
    cell = np.rint(_CELLS_PER_OCTAVE * np.log2(np.stack([width, height]))).astype(np.int64)
    _, inverse, count = np.unique(cell, axis=1, return_inverse=True, return_counts=True)
    means = [np.rint(np.bincount(inverse, side) / count).astype(int) for side in (width, height)]
    order = np.argsort(-count, kind="stable")
    return np.stack([*means, count], axis=1)[order].tolist()


def _refused(manifest: Manifest) -> dict[str, int]:
    """What `mmalign data index` refused of these shards, by reason."""
    total = Counter[str]()
    for shard in manifest.shards:
        total.update(manifest.refused.get(shard.file, {}))
    return dict(total.most_common())


def _leaks(found: Survey, against: Survey) -> dict[str, Any]:
    near = found.options.near and against.options.near
    counts, examples = find_leaks(found.facts.rows, against.facts.rows, near)
    manifest = against.manifest
    return {
        "name": manifest.name,
        "split": manifest.split,
        "manifest_sha256": manifest.sha256,
        **counts,
        "examples": [_pair(found, against, example) for example in examples],
    }


def _pair(one: Survey, two: Survey, example: Example) -> dict[str, Any]:
    left, right, distance = example
    return {"samples": [_name(one, left), _name(two, right)], "distance": distance}


def _name(found: Survey, place: int) -> dict[str, str]:
    """Shard and key of the sample at a place of the rows."""
    row = found.facts.rows[place]
    shard = found.manifest.shards[row["shard"]]
    index = read_rows(LocalFolder(found.folder), found.manifest, shard)
    return {"shard": shard.file, "key": index[row["number"]]["key"]}
