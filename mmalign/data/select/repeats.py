"""Rules of `mmalign data select` on what is there twice: within the set, or in a test set.

    descriptions -> hashes of the images' bytes and looks, of captions -> equal or near ones -> removed

Within the set, an image or caption goes if an earlier one is equal or near, whether that one stays or not. So
no two that stay are near, and the result does not depend on the order of the comparisons.

At two billion images one array of hashes is 16 GB. `near_pairs` needs about 90 bytes per hash at a time; the
first bits of its sort key divide the hashes into parts that can be compared one after the other.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmalign.data.select.choice import Choice
from mmalign.data.select.describe import CONTENT, HASHES, PHASH, PICTURE, TEXT_HASH
from mmalign.data.select.rules import Leaks, Repeats
from mmalign.data.select.source import ChosenFrom, Descriptions
from mmalign.data.select.tables import SPREAD, join
from mmalign.data.stats.duplicates import NO_HASH, near_pairs


def remove_repeats(
    rule: Repeats, source: ChosenFrom, choice: Choice, descriptions: Descriptions
) -> None:
    hashes = _hashes(rule, source, choice, descriptions)
    if rule.images is not None:
        samples = np.flatnonzero(choice.sample_S & hashes["known"])
        repeated = samples[_repeats(hashes[CONTENT][samples])]
        choice.remove(repeated, choice.reason("duplicate image, equal bytes"))
    if rule.images == "near":
        samples = np.flatnonzero(choice.sample_S & hashes["known"] & (hashes[PHASH] != NO_HASH))
        choice.remove(
            samples[_near_repeats(hashes[PHASH][samples])],
            choice.reason("duplicate image, looks alike"),
        )
    if rule.texts:
        captions = np.flatnonzero(choice.caption_C & hashes["known_C"])
        # Equal words of two languages are not repeats.
        text = hashes[TEXT_HASH] ^ (source.language_C.astype(np.uint64) * SPREAD)
        repeated = captions[_repeats(text[captions])]
        choice.remove_captions(repeated, choice.reason("duplicate caption"))
    choice.settle()


def remove_leaks(
    rule: Leaks, source: ChosenFrom, choice: Choice, descriptions: Descriptions
) -> None:
    hashes = _hashes(rule, source, choice, descriptions)
    for name in rule.against:
        manifest, batches = descriptions.against(name, rule.images == "near")
        test = {
            column: np.concatenate([np.zeros(0, np.uint64), *(_values(b, column) for b in batches)])
            for column in HASHES
        }
        where = f"leak of {manifest.name}/{manifest.split}"
        if rule.images is not None:
            for column, how in ((CONTENT, "equal bytes"), (PICTURE, "same identity")):
                samples = np.flatnonzero(np.isin(hashes[column], test[column]) & hashes["known"])
                choice.remove(samples, choice.reason(f"{where}, {how}"))
        if rule.images == "near":
            samples = np.flatnonzero(choice.sample_S & (hashes[PHASH] != NO_HASH))
            known = np.unique(test[PHASH][test[PHASH] != NO_HASH])
            reason = choice.reason(f"{where}, looks alike")
            for asked, _, _ in near_pairs(hashes[PHASH][samples], known):
                choice.remove(samples[asked], reason)
        if rule.texts:
            captions = np.flatnonzero(
                np.isin(hashes[TEXT_HASH], test[TEXT_HASH]) & hashes["known_C"]
            )
            choice.remove_captions(captions, choice.reason(f"{where}, equal caption"))
    choice.settle()


def _hashes(
    rule: Repeats, source: ChosenFrom, choice: Choice, descriptions: Descriptions
) -> Mapping[str, np.ndarray]:
    """What a rule compares, by name, (S,) or (C,) uint64; `known` and `known_C`: where there is a value."""
    table = descriptions.table(source.name, source.manifest.sha256, rule.images == "near")
    wanted = (CONTENT, PHASH, PICTURE) if rule.images else ()
    arrays = {name: np.zeros(len(choice.sample_S), np.uint64) for name in wanted}
    known = np.zeros(len(choice.sample_S), bool)
    text_C = np.zeros(len(source.language_C) if rule.texts else 0, np.uint64)
    columns = [*wanted, TEXT_HASH] if rule.texts else wanted
    for batch, rows, samples in join(source.keys, table, columns):
        known[samples] = True
        for name in wanted:
            arrays[name][samples] = _values(batch, name)[rows]
        if rule.texts:
            captions, _ = choice.captions_of(samples)
            text_C[captions] = batch.column(TEXT_HASH).take(rows).flatten().to_numpy()
    known_C = np.repeat(known, np.diff(choice.first_S)) if rule.texts else known[:0]
    return {**arrays, TEXT_HASH: text_C, "known": known, "known_C": known_C}


def _values(batch: Any, column: str) -> np.ndarray:
    values = batch.column(column)
    flat = values.flatten() if column == TEXT_HASH else values
    return np.asarray(flat.to_numpy(zero_copy_only=False)).view(np.uint64)


def _repeats(hash_N: np.ndarray) -> np.ndarray:
    """(N,) bool: where an earlier value is equal."""
    order = np.argsort(hash_N, kind="stable")
    again = np.zeros(len(hash_N), bool)
    again[order[1:]] = hash_N[order[1:]] == hash_N[order[:-1]]
    return again


def _near_repeats(hash_N: np.ndarray) -> np.ndarray:
    """(N,) bool: where an earlier hash is equal or differs in few bits."""
    again = _repeats(hash_N)
    first = np.flatnonzero(~again)
    for one, two, _ in near_pairs(hash_N[first]):
        again[first[np.maximum(one, two)]] = True
    return again
