"""A shard set as vectors: every distinct picture once, every caption once.

    ShardSet -> batches, dealt out over the ranks -> DualModel -> gathered, in the set's order -> EmbeddedSet

A set is cut into batches in one way, whatever the number of ranks; batch i is encoded on rank i % W. So W
ranks take 1/W of the time, to a batch, and with equal processors and threads the vectors are the same to
the last bit. With others they differ by rounding, below 1e-6 in float32.

Of a sharded set no rank holds all pictures: rank r encodes and keeps the r-th run of batches, and retrieval
searches the runs (`index.search_shards`). The captions, which are the smaller part of the work and are cut by
language, lie whole on every rank: 2 GB a million at D = 512.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch

from mmalign.core import distributed
from mmalign.core.batch import Caption
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.models.encoder import BATCH_SIZE, DualModel


@dataclass(frozen=True)
class EmbeddedSet:
    """P distinct pictures and M captions in one space.

    Attributes:
        name: of the set in metric names.
        image_PD, text_MD: float32, unit length. Of a sharded set, image_PD is this rank's run of the
            pictures, which may be empty; the runs of all ranks, in rank order, are all P.
            Empty, too, where no measure looks at pictures.
        sample_P: which sample of the shard set shows each picture.
        picture_M: int64, which of the P pictures each caption describes.
        language_M: BCP-47 code of each caption.
        texts: the captions themselves.
        sharded: whether each rank holds a run of the pictures only.
        first_picture: where this rank's run begins; 0 if the set is not sharded.
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

    @property
    def languages(self) -> list[str]:
        return sorted(set(self.language_M.tolist()))


def embed_set(
    encoder: DualModel,
    shard_set: ShardSet,
    name: str,
    languages: Sequence[str] | None = None,
    sharded: bool = False,
    pictures: bool = True,
) -> EmbeddedSet:
    """Encode the set; samples that show the same picture are one picture with all their captions.

    A collective: every rank calls it with equal weights and equal data, and gets the whole set, or with
    `sharded` all but the pictures of the others.

    Args:
        languages: captions in these only; none: all.
        sharded: for sets whose pictures one process should not hold, or not search alone.
        pictures: whether a measure looks at them; if not, `image_PD` has no rows, and the model may be a
            text encoder alone.

    Raises:
        UserError: a language that the set lacks, or no captions at all.
    """
    _check_languages(shard_set, name, languages)
    sample_P, place_S = _distinct_pictures(shard_set)
    captions = [
        (place, caption)
        for place, of_sample in zip(place_S, _read_captions(shard_set), strict=True)
        for caption in of_sample
        if languages is None or caption.lang in languages
    ]
    if not captions:
        raise UserError(f"set `{name}`: {shard_set.folder} has no captions to measure")
    texts = [caption.text for _, caption in captions]
    # Texts of like length share a batch: little padding.
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))

    def encode_pictures(batch: Sequence[int]) -> np.ndarray:
        return encoder.encode_images(shard_set.read(sample_P[i]).image for i in batch)

    text_MD = encode_dealt(lambda batch: encoder.encode_texts([texts[i] for i in batch]), by_length)
    first_picture, image_PD = 0, np.zeros((0, text_MD.shape[1]), np.float32)
    if pictures and sharded:
        first_picture, image_PD = _encode_run(encode_pictures, len(sample_P))
    elif pictures:
        image_PD = encode_dealt(encode_pictures, range(len(sample_P)))
    return EmbeddedSet(
        name=name,
        image_PD=image_PD,
        text_MD=text_MD,
        sample_P=sample_P,
        picture_M=np.array([place for place, _ in captions], np.int64),
        language_M=np.array([caption.lang for _, caption in captions]),
        texts=texts,
        sharded=sharded,
        first_picture=first_picture,
    )


def _check_languages(shard_set: ShardSet, name: str, languages: Sequence[str] | None) -> None:
    held = {lang for langs in shard_set.languages for lang in langs}
    lacking = sorted(set(languages or ()) - held)
    if lacking:
        raise UserError(
            f"set `{name}`: language `{lacking[0]}` is not in {shard_set.folder}; it has "
            f"{', '.join(sorted(held))}"
        )


def _distinct_pictures(shard_set: ShardSet) -> tuple[list[int], list[int]]:
    """The first sample of each of the P pictures, and for each sample the place of its picture among them."""
    pictures = shard_set.picture_ids.tolist()
    first: dict[int, int] = {}
    for sample, picture in enumerate(pictures):
        first.setdefault(picture, sample)
    place_of = {picture: place for place, picture in enumerate(first)}
    return list(first.values()), [place_of[picture] for picture in pictures]


def _read_captions(shard_set: ShardSet) -> list[tuple[Caption, ...]]:
    """The captions of each sample; each rank reads its part of the shards."""
    rank, ranks, samples = distributed.rank(), distributed.world_size(), len(shard_set)
    mine = range(samples * rank // ranks, samples * (rank + 1) // ranks)
    parts = distributed.gather_objects([shard_set.read(sample).captions for sample in mine])
    return [captions for part in parts for captions in part]


def encode_dealt(encode: Callable[[Sequence[int]], np.ndarray], order: Sequence[int]) -> np.ndarray:
    """Row i is what `encode` makes of i; (n, D) float32, the same on all ranks.

    A collective: every rank calls it with the same order. Batch b goes to rank b % W.

    Args:
        encode: the numbers of a batch, at most `BATCH_SIZE` -> as many rows. Called equally often on all
            ranks, because under ZeRO 3 a call gathers weights from all of them.
        order: the numbers from 0 to n - 1, n > 0; neighbours share a batch.
    """
    ranks = distributed.world_size()
    batches = _batches(order)
    mine = _encode_batches(encode, batches[distributed.rank() :: ranks], batches)
    gathered = distributed.gather_rows(torch.from_numpy(mine)).numpy()
    arrived = [i for rank in range(ranks) for batch in batches[rank::ranks] for i in batch]
    rows = np.empty_like(gathered)
    rows[arrived] = gathered
    return rows


def _encode_run(
    encode: Callable[[Sequence[int]], np.ndarray], count: int
) -> tuple[int, np.ndarray]:
    """This rank's run of the rows 0 to count - 1: where it begins, and the rows. Nothing is gathered.

    The batches are those of `encode_dealt`, so the rows are the same to the last bit.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    batches = _batches(range(count))
    first, last = len(batches) * rank // ranks, len(batches) * (rank + 1) // ranks
    begin = batches[first][0] if first < len(batches) else count
    return begin, _encode_batches(encode, batches[first:last], batches)


def _batches(order: Sequence[int]) -> list[Sequence[int]]:
    return [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]


def _encode_batches(
    encode: Callable[[Sequence[int]], np.ndarray],
    mine: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
) -> np.ndarray:
    """The rows of this rank's share of the batches, in as many calls as the rank with the most makes."""
    rows = [encode(batch) for batch in mine]
    if len(rows) < ceil(len(batches) / distributed.world_size()):
        # A batch less than others have: one call whose row is thrown away.
        rows.append(encode(batches[0][:1])[:0])
    return np.concatenate(rows)
