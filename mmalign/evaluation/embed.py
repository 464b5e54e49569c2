"""A shard set as vectors: every distinct image once, every caption once.

    ShardSet -> batches, shared by the ranks -> DualModel -> gathered, in the set's order -> EmbeddedSet

Of a sharded set no rank holds all images: rank r encodes and keeps the r-th run of batches, and retrieval
searches the runs (`nearest.search_shards`). The captions are all on every rank: 2 GB per million at D = 512.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from mmalign.core import distributed
from mmalign.core.batching import batched
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.data.images import UndecodableImage, decode
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.over_ranks import encode_over_ranks, encode_run, encode_texts_over_ranks
from mmalign.evaluation.truncate import truncate
from mmalign.models.encoder import BATCH_SIZE, DualModel
from mmalign.results.metric_names import DIMS


@dataclass(frozen=True)
class EmbeddedSet:
    """P distinct images and M captions in one space.

    Attributes:
        image_PD, text_MD: float32, unit length. Of a sharded set, image_PD is this rank's run of the
            images, from `first_picture` on. Empty where no measure looks at images.
        sample_P: which sample of the shard set shows each image.
        source_P: the source of that sample; empty where it was not recorded.
        picture_M: int64, which of the P images each caption describes.
        language_M: BCP-47 code of each caption.
    """

    name: str
    image_PD: np.ndarray
    text_MD: np.ndarray
    sample_P: list[int]
    picture_M: np.ndarray
    language_M: np.ndarray
    texts: list[str]
    sharded: bool = False
    first_picture: int = 0
    source_P: list[str] = field(default_factory=list)

    @property
    def captions(self) -> dict[str, int]:
        """Language -> how many captions; sorted by language."""
        return dict(sorted(Counter(self.language_M.tolist()).items()))

    @property
    def languages(self) -> list[str]:
        return list(self.captions)

    def with_captions(self, kept: np.ndarray) -> "EmbeddedSet":
        """The set with the captions at these ascending positions only."""
        return replace(
            self,
            text_MD=take(self.text_MD, kept),
            picture_M=self.picture_M[kept],
            language_M=self.language_M[kept],
            texts=[self.texts[i] for i in kept],
        )

    def with_dims(self, dims: int) -> "EmbeddedSet":
        """The set in its first dimensions, re-normalised, with a name of its own."""
        vectors = truncate(self.image_PD, dims), truncate(self.text_MD, dims)
        return replace(
            self, name=self.name + DIMS.format(dims), image_PD=vectors[0], text_MD=vectors[1]
        )

    def first_captions(self) -> np.ndarray:
        """Ascending positions of the first caption of each image in each language."""
        _, language_M = np.unique(self.language_M, return_inverse=True)
        # One number per pair of an image and a language; np.unique returns the first caption of each.
        pair_M = self.picture_M * (language_M.max() + 1) + language_M
        return np.sort(np.unique(pair_M, return_index=True)[1])


def take(rows_ND: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows at these ascending positions."""
    # No copy if they are all: a set may fill half of the memory.
    return rows_ND if len(kept) == len(rows_ND) else rows_ND[kept]


def embed_set(
    encoder: DualModel,
    shard_set: ShardSet,
    name: str,
    languages: Sequence[str] | None = None,
    sharded: bool = False,
    pictures: bool = True,
) -> EmbeddedSet:
    """Encode the set; samples that show the same image are one image with all their captions. A collective.

    Args:
        languages: captions in these only; none: all.
        sharded: each rank keeps its run of the images only.
        pictures: whether a measure looks at the images; if not, the model may be a text encoder alone.

    Raises:
        UserError: a language that the set lacks, or no captions at all.
    """
    spelled = {one for langs in shard_set.languages for one in langs}
    check_languages(languages, set(map(canonical_language, spelled)), name)
    ids, first_S, image_S = np.unique(shard_set.picture_ids, return_index=True, return_inverse=True)
    # np.unique sorts by id; images are numbered in the order in which the set shows them first.
    order = np.argsort(first_S)
    sample_P, number = first_S[order].tolist(), np.argsort(order)
    rank, ranks, samples = distributed.rank(), distributed.world_size(), len(shard_set)
    # Neighbours, so that a rank reads some of the shards only.
    mine = range(samples * rank // ranks, samples * (rank + 1) // ranks)
    read = [(pair.captions, pair.source) for pair in map(shard_set.read, mine)]
    parts = list(chain.from_iterable(distributed.gather_objects(read)))
    # Shards may spell a language in several ways; it is measured as one.
    captions = [
        (image, lang, caption.text)
        for image, (of_sample, _) in zip(number[image_S], parts, strict=True)
        for caption in of_sample
        if (lang := canonical_language(caption.lang)) in (languages or (lang,))
    ]
    if not captions:
        raise UserError(f"set `{name}`: {shard_set.folder} has no captions to measure")
    texts = [text for _, _, text in captions]

    def encode(batch: Sequence[int]) -> np.ndarray:
        return encode_images(
            encoder,
            lambda i: shard_set.read(sample_P[i]).image,
            lambda i: f"{shard_set.folder}, sample `{shard_set.keys[sample_P[i]]}`",
            batch,
        )

    # Texts first: they say how wide a vector is, where no image is encoded.
    text_MD = encode_texts_over_ranks(encoder.encode_texts, texts)
    first_picture, image_PD = 0, np.zeros((0, text_MD.shape[1]), np.float32)
    batches = list(batched(range(len(ids)), BATCH_SIZE))
    if pictures and sharded:
        first_picture, image_PD = encode_run(encode, batches)
    elif pictures:
        image_PD = encode_over_ranks(encode, batches)
    picture_M = np.array([image for image, _, _ in captions], np.int64)
    language_M = np.array([lang for _, lang, _ in captions])
    source_P, arrays = [parts[i][1] for i in sample_P], (picture_M, language_M, texts)
    return EmbeddedSet(name, image_PD, text_MD, sample_P, *arrays, sharded, first_picture, source_P)


def encode_images(
    model: DualModel,
    read: Callable[[int], bytes],
    where: Callable[[int], str],
    numbers: Sequence[int],
) -> np.ndarray:
    """(n, D) float32 of unit length; a UserError says where an image lies that cannot be decoded."""
    try:
        return model.encode_images(read(i) for i in numbers)
    except UndecodableImage:
        for i in numbers:  # the model does not say which one it is
            try:
                decode(read(i))
            except UndecodableImage as error:
                raise UserError(f"{where(i)}: {error}; fix it or remove it") from None
        raise


def check_languages(wanted: Sequence[str] | None, there: set[str], name: str) -> None:
    if lacking := sorted(set(wanted or ()) - there):
        raise UserError(
            f"set `{name}`: language `{lacking[0]}` is not in it; it has {', '.join(sorted(there))}"
        )
