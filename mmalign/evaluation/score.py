"""`mmalign data score`: how well each caption of a data set fits its image, in a side table.

    shard -> batches of samples -> DualModel -> cosine of image and caption -> <file>.parquet

The score is that of CLIPScore (Hessel et al. 2021, arXiv 2104.08718) without its factor: the number by which
LAION and DataComp filter. Samples that cannot be used have no row.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.batch import Pair
from mmalign.core.batching import batched
from mmalign.core.console import track
from mmalign.core.ray_tasks import map_parts
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.parts import Part
from mmalign.data.select.tables import KEY, SHARD, merge_tables, parts_of_table, write_table
from mmalign.data.shards.folder import open_folder
from mmalign.data.shards.jobs import read_shard, shard_jobs
from mmalign.data.shards.reader import UnusableSample
from mmalign.data.storage.remote import RemoteConfig
from mmalign.models.encoder import BATCH_SIZE, DualModel
from mmalign.models.load import load_model
from mmalign.models.prompts import Side


def score(
    name: str | os.PathLike[str],
    out: Path,
    model: DualModel,
    column: str = "clip_score",
    part: Part = (0, 1),
) -> tuple[int, dict[str, int]]:
    """Write the table of the data set in a folder or at a URL.

    Args:
        column: of the scores, a list of float32 with one value per caption.
        part: which shards.

    Returns:
        samples with a row, and those without one by reason.
    """
    folder, manifest = open_folder(name, RemoteConfig())
    numbers = range(part[0], len(manifest.shards), part[1])
    reasons = Counter[str]()

    def parts() -> Iterator[dict[str, Any]]:
        for _, inside, one in track(shard_jobs(folder, manifest, numbers), "shards", len(numbers)):
            keys: list[str] = []
            scores: list[np.ndarray] = []
            for batch in batched(_usable(read_shard(inside, one), reasons), BATCH_SIZE):
                some_keys, some_scores = _scored(model, list(batch), reasons)
                keys += some_keys
                scores += some_scores
            yield {SHARD: [one.shards[0].file] * len(keys), KEY: keys, column: scores}

    facts = {"kind": "score", "data_sha256": manifest.sha256, "part": part, "model": model.facts}
    samples = write_table(out, [(column, float, True)], facts, parts())
    return samples, dict(reasons.most_common())


def score_by_ray(
    name: str | os.PathLike[str],
    out: Path,
    model: str,
    prompts: dict[Side, str],
    column: str,
    address: str,
) -> tuple[int, dict[str, int]]:
    """As `score`, in parts that are tasks of the Ray cluster at an address, each on a GPU if there are any.

    Args:
        model, prompts: as `load_model` takes them; every task loads the model.
    """
    with parts_of_table(out) as folder:
        work = partial(_score_part, name, folder, model, prompts, column)
        done = map_parts(work, address, on_gpus=True)
        samples = merge_tables(out, [str(folder)])
    reasons = sum((Counter(lost) for _, lost in done), Counter[str]())
    return samples, dict(reasons.most_common())


def _score_part(
    name: str | os.PathLike[str],
    folder: Path,
    model: str,
    prompts: dict[Side, str],
    column: str,
    part: Part,
) -> tuple[int, dict[str, int]]:
    return score(name, folder / f"{part[0]}.parquet", load_model(model, prompts), column, part)


def similarities(model: DualModel, pairs: list[Pair]) -> list[np.ndarray]:
    """The cosine of each image with each of its captions, float32; one array per pair."""
    image_BD = model.encode_images([pair.image for pair in pairs])
    text_ND = model.encode_texts([caption.text for pair in pairs for caption in pair.captions])
    count_B = [len(pair.captions) for pair in pairs]
    score_N = (np.repeat(image_BD, count_B, axis=0) * text_ND).sum(1)
    return np.split(score_N, np.cumsum(count_B[:-1], dtype=int))


def _scored(
    model: DualModel, pairs: list[Pair], reasons: Counter[str]
) -> tuple[list[str], list[np.ndarray]]:
    """Keys and scores of the pairs whose image decodes; the others are counted."""
    try:
        return [pair.key for pair in pairs], similarities(model, pairs)
    except UndecodableImage:
        valid = [pair for pair in pairs if _decodes(pair, reasons)]  # it does not say which one
        if not valid:
            return [], []
        return [pair.key for pair in valid], similarities(model, valid)


def _decodes(pair: Pair, reasons: Counter[str]) -> bool:
    try:
        decode(pair.image)
    except UndecodableImage as error:
        reasons[error.reason] += 1
        return False
    return True


def _usable(
    samples: Iterable[tuple[dict[str, Any], Pair | UnusableSample]], reasons: Counter[str]
) -> Iterator[Pair]:
    """The samples that can be read; the others are counted."""
    for _, pair in samples:
        if isinstance(pair, UnusableSample):
            reasons[pair.reason] += 1
        else:
            yield pair
