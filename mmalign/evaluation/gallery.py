"""A gallery: a few captions in different scripts and the pictures that the model finds for them.

EmbeddedSet -> one query per language -> first five pictures -> gallery.json for the report
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmalign.data.images import decode
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.nearest import search

_PICTURES_PER_QUERY = 5
_THUMBNAIL = 128  # longest side in pixels


def make_gallery(
    embedded: EmbeddedSet, shard_set: ShardSet, languages: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """One caption drawn at random per language, with its best pictures.

    Drawn, not chosen: a gallery of successes would say nothing.
    """
    rng = np.random.default_rng(seed)
    queries = []
    for lang in languages:
        places = np.flatnonzero(embedded.language_M == lang)
        if len(places) == 0:
            continue
        place = int(rng.choice(places))
        scores, found = search(
            embedded.text_MD[place : place + 1], embedded.image_PD, _PICTURES_PER_QUERY
        )
        images = [
            {
                "picture": shard_set.keys[embedded.sample_P[picture]],
                "jpeg": _thumbnail(shard_set.read(embedded.sample_P[picture]).image),
                "score": round(score, 4),
                "hit": picture == int(embedded.picture_M[place]),
            }
            for score, picture in zip(scores[0].tolist(), found[0].tolist(), strict=True)
        ]
        queries.append({"lang": lang, "text": embedded.texts[place], "images": images})
    return {"set": embedded.name, "queries": queries}


def _thumbnail(data: bytes) -> str:
    image = decode(data)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=88)
    return base64.b64encode(encoded.getvalue()).decode("ascii")
