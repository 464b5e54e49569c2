"""What shorter and quantised vectors cost: recall@1 of all captions of a data set among its images.

data set -> vectors of D dimensions -> the first of them | 8 bits | signs -> recall@1 -> vector_sizes.json

Both sides are stored in the same way. Truncated vectors are scaled to unit length again, as
sentence-transformers does for its cosine. In 8 bits each dimension has one scale, from the smallest to the
largest value of the set, as `quantize_embeddings` of sentence-transformers has it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmalign.core.commit import write_json
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import embed_set
from mmalign.evaluation.nearest import hits_at
from mmalign.evaluation.truncate import truncate
from mmalign.models.encoder import DualModel

FILE = "vector_sizes.json"


def write_vector_sizes(
    model: DualModel, data: Path, folder: Path, dims: Sequence[int] = ()
) -> None:
    """Measure the ways to store a vector on a data set, and write them to `folder`.

    Args:
        dims: to which vectors are cut, besides all D; none: D/2 and D/4.

    The file holds `measured_on`, `captions`, `languages`, `images` and `ways`: for each `kind` its
    `dimensions`, `bytes` of a vector and `recall@1`.
    """
    shard_set = ShardSet(data)
    name = f"{shard_set.manifest.name}/{shard_set.manifest.split}"
    embedded = embed_set(model, shard_set, name)
    sides, width = (embedded.text_MD, embedded.image_PD), embedded.text_MD.shape[1]
    parts = sorted({width, *(dims or (width // 2, width // 4))}, reverse=True)
    ways = [("float32", part, 4 * part, [truncate(one, part) for one in sides]) for part in parts]
    ways.append(("8 bits", width, width, _in_8_bits(sides)))
    # Equal signs minus unequal ones: the order of the Hamming distance.
    ways.append(("signs", width, -(-width // 8), [np.where(one > 0, 1, -1) for one in sides]))
    labels = (embedded.picture_M, np.arange(len(embedded.image_PD)))
    rows = []
    for kind, dimensions, size, (text_MK, image_PK) in ways:
        found = hits_at(text_MK.astype(np.float32), image_PK, *labels, (1,))[1].mean()
        facts = {"kind": kind, "dimensions": dimensions, "bytes": size}
        rows.append({**facts, "recall@1": round(float(found), 5)})
    counts = {"captions": len(embedded.texts), "languages": len(embedded.languages)}
    write_json(
        folder / FILE,
        {"measured_on": name, **counts, "images": len(embedded.image_PD), "ways": rows},
    )


def _in_8_bits(sides: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    every_ND = np.concatenate(sides)
    low_D = every_ND.min(0)
    step_D = np.maximum((every_ND.max(0) - low_D) / 255, np.float32(1e-12))
    # From -128 to 127, towards zero: what numpy's conversion to int8 does there.
    return [
        low_D + step_D * (np.trunc((rows_ND - low_D) / step_D - 128) + 128) for rows_ND in sides
    ]
