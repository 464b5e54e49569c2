"""A gallery: a few captions in different scripts and the images that the model finds for them."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmalign.data.images import decode
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.nearest import search

_IMAGES_PER_QUERY = 5
_THUMBNAIL = 128  # longest side in pixels


def make_gallery(
    embedded: EmbeddedSet, shard_set: ShardSet, languages: Sequence[str]
) -> dict[str, Any]:
    """One caption drawn at random per language, with its best images."""
    rng = np.random.default_rng(0)
    queries = []
    for lang in (lang for lang in languages if lang in embedded.languages):
        # Drawn, not chosen: a gallery of successes would show nothing.
        caption = int(rng.choice(np.flatnonzero(embedded.language_M == lang)))
        text_1D = embedded.text_MD[caption : caption + 1]
        scores, found = search(text_1D, embedded.image_PD, _IMAGES_PER_QUERY)
        images = [
            {
                "picture": shard_set.keys[embedded.sample_P[image]],
                "jpeg": _thumbnail(shard_set.read(embedded.sample_P[image]).image),
                "score": round(score, 4),
                "hit": image == int(embedded.picture_M[caption]),
            }
            for score, image in zip(scores[0].tolist(), found[0].tolist(), strict=True)
        ]
        queries.append({"lang": lang, "text": embedded.texts[caption], "images": images})
    return {"set": embedded.name, "queries": queries}


def _thumbnail(data: bytes) -> str:
    image = decode(data)
    # Small: the report is one file that holds its images itself.
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=88)
    return base64.b64encode(encoded.getvalue()).decode("ascii")
