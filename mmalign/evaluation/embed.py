"""A shard set as vectors: every distinct picture once, every caption once.

ShardSet -> Encoder -> EmbeddedSet (image_PD, text_MD, which picture each caption describes)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.data.reader import ShardSet
from mmalign.errors import UserError
from mmalign.evaluation.encoder import Encoder


@dataclass(frozen=True)
class EmbeddedSet:
    """P distinct pictures and M captions in one space.

    Attributes:
        name: of the set in metric names.
        image_PD, text_MD: float32, unit length.
        sample_P: which sample of the shard set shows each picture.
        picture_M: int64, which of the P pictures each caption describes.
        language_M: BCP-47 code of each caption.
        texts: the captions themselves.
    """

    name: str
    image_PD: np.ndarray
    text_MD: np.ndarray
    sample_P: list[int]
    picture_M: np.ndarray
    language_M: np.ndarray
    texts: list[str]

    @property
    def languages(self) -> list[str]:
        return sorted(set(self.language_M.tolist()))


def embed_set(
    encoder: Encoder, shard_set: ShardSet, name: str, languages: Sequence[str] | None = None
) -> EmbeddedSet:
    """Encode the set; samples that show the same picture are one picture with all their captions.

    Args:
        languages: captions in these only; none: all.

    Raises:
        UserError: a language that the set lacks, or no captions at all.
    """
    held = {lang for langs in shard_set.languages for lang in langs}
    lacking = sorted(set(languages or ()) - held)
    if lacking:
        raise UserError(
            f"set `{name}`: language `{lacking[0]}` is not in {shard_set.folder}; it has "
            f"{', '.join(sorted(held))}"
        )
    sample_P: list[int] = []
    place_of: dict[int, int] = {}  # picture id -> its place among the P
    captions: list[tuple[int, str, str]] = []
    for sample, picture in enumerate(shard_set.picture_ids.tolist()):
        if picture not in place_of:
            place_of[picture] = len(sample_P)
            sample_P.append(sample)
        for caption in shard_set.read(sample).captions:
            if languages is None or caption.lang in languages:
                captions.append((place_of[picture], caption.lang, caption.text))
    if not captions:
        raise UserError(f"set `{name}`: {shard_set.folder} has no captions to measure")
    texts = [text for _, _, text in captions]
    return EmbeddedSet(
        name=name,
        image_PD=encoder.encode_images(shard_set.read(sample).image for sample in sample_P),
        text_MD=encoder.encode_texts(texts),
        sample_P=sample_P,
        picture_M=np.array([place for place, _, _ in captions], np.int64),
        language_M=np.array([lang for _, lang, _ in captions]),
        texts=texts,
    )
