"""A text tower layer by layer: where do its languages meet?

layers/<set>/<0 ... n>/<pooling>/bitext@1      0: the token embeddings, n: the last layer
layers/<set>/feature/<pooling>/bitext@1        what the tower itself gives, pooled in its own way

    EmbeddedSet -> a sample of its pictures, one caption a language -> batches, dealt out over the ranks
                -> states of every layer, pooled at once -> bitext@1 of every pair of languages -> mean

Start, end and padding tokens stand in every text alike and would make all texts alike; they are left out of
the pooling. Shapes: N captions, L tokens, F width of a state.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.config import Section
from mmalign.evaluation.alignment import (
    Pair,
    Scores,
    equal_labels,
    first_captions,
    for_each_pair,
    hits_at_1,
)
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.nearest import chance_at
from mmalign.models.hidden_states import content_mask
from mmalign.models.pooling import POOLINGS, Pooling, pool
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results

BATCH_SIZE = 64  # captions at a time: the states of all layers are alive at once

PROTOCOL = (
    "hidden states of each layer, 0 being the embeddings; {pooling}. {pictures} pictures with captions in "
    "two languages or more, drawn at random (seed {seed}), the first caption of each language; bitext@1 by "
    "cosine as in `alignment`, averaged over the ordered pairs of languages. `feature`: the tower's output"
)


class LayersConfig(Section):
    sets: tuple[str, ...] = pydantic.Field(min_length=1)
    """Names of sets of the suite, on whose captions the tower is probed."""
    poolings: tuple[Pooling, ...] = pydantic.Field(default=("mean",), min_length=1)
    """How the states of a text's tokens become one vector; special tokens are left out, but for `cls`."""
    pictures: int = pydantic.Field(default=500, ge=2)
    """How many pictures at most are drawn from each set; memory grows with pictures x languages x layers."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Of the draw."""


def probe_layers(
    tower: TextEncoder,
    embedded: EmbeddedSet,
    results: Results,
    poolings: Sequence[Pooling] = ("mean",),
    max_pictures: int = 500,
    seed: int = 0,
) -> None:
    """Add bitext@1 of every layer of the tower, and of its own feature, on captions of the set.

    A collective: every rank calls it with equal weights and the same set, and has the same results
    afterwards. Nothing is added where no two languages share two pictures.

    Args:
        embedded: its captions are used, its vectors are not.
    """
    sample = _sample(embedded, max_pictures, seed)
    if len(sample.texts) == 0:
        return
    prefix = f"layers/{embedded.name}"
    results.protocol[prefix] = PROTOCOL.format(
        pooling="; ".join(POOLINGS[one].of_content for one in poolings),
        pictures=len(np.unique(sample.picture_M)),
        seed=seed,
    )
    for name, state_NF in _encode(tower, sample.texts, poolings).items():
        parts = for_each_pair(replace(sample, text_MD=state_NF), _bitext)
        directions = [direction for part in parts for direction in part]
        if directions:
            value, count, chance = (list(column) for column in zip(*directions, strict=True))
            results.add(
                f"{prefix}/{name}/bitext@1",
                float(np.mean(value)),
                count=int(sum(count)),
                chance=float(np.mean(chance)),
            )


def _sample(embedded: EmbeddedSet, max_pictures: int, seed: int) -> EmbeddedSet:
    """First captions only, of some of the pictures that have two languages or more."""
    firsts = [first_captions(embedded, lang) for lang in embedded.languages]
    described, languages = np.unique([one for first in firsts for one in first], return_counts=True)
    pictures = described[languages > 1]
    if len(pictures) > max_pictures:
        pictures = np.random.default_rng(seed).choice(pictures, max_pictures, replace=False)
    drawn = set(pictures.tolist())
    places = sorted(place for first in firsts for one, place in first.items() if one in drawn)
    return replace(
        embedded,
        text_MD=embedded.text_MD[places],
        picture_M=embedded.picture_M[places],
        language_M=embedded.language_M[places],
        texts=[embedded.texts[place] for place in places],
    )


def _encode(
    tower: TextEncoder, texts: list[str], poolings: Sequence[Pooling]
) -> dict[str, np.ndarray]:
    """`<layer>/<pooling>` -> (N, F) float32 of unit length, the same on all ranks.

    The batches are the same whatever the number of ranks, so the vectors are too, up to rounding.
    """
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [by_length[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
    rank, ranks = distributed.rank(), distributed.world_size()
    states: dict[str, np.ndarray] = {}
    for first in range(0, len(batches), ranks):
        turn = batches[first : first + ranks]
        mine = turn[rank] if rank < len(turn) else turn[0][:1]
        rows = _encode_batch(tower, [texts[i] for i in mine], poolings)
        for name, row_BF in rows.items():
            # A rank without a batch brings no rows, but the width.
            gathered = distributed.gather_rows(row_BF if rank < len(turn) else row_BF[:0])
            kept = states.setdefault(name, np.empty((len(texts), gathered.shape[1]), np.float32))
            kept[[i for batch in turn for i in batch]] = gathered.numpy()
    return states


@torch.no_grad()
def _encode_batch(
    tower: TextEncoder, texts: list[str], poolings: Sequence[Pooling]
) -> dict[str, Tensor]:
    """`<layer>/<pooling>` -> (B, F) float32 of unit length, on the host; without dropout."""
    mode = tower.training
    tower.eval()
    tokens = tower.tokenize(texts, return_special_tokens_mask=True)
    types = {} if tokens.type_NL is None else {"token_type_ids": tokens.type_NL}
    output = tower.trunk(
        input_ids=tokens.token_NL, attention_mask=tokens.mask_NL, output_hidden_states=True, **types
    )
    content_BL = content_mask(tokens)
    masks = {one: tokens.mask_NL if POOLINGS[one].needs_special else content_BL for one in poolings}
    rows = {
        f"{layer}/{pooling}": pool(state_BLF, masks[pooling], pooling)
        for layer, state_BLF in enumerate(output.hidden_states)
        for pooling in poolings
    }
    feature_BD = tower.feature(output.last_hidden_state, tokens.mask_NL)
    rows[f"feature/{tower.pooling}"] = feature_BD
    tower.train(mode)
    return {name: F.normalize(row.float(), dim=-1).cpu() for name, row in rows.items()}


def _bitext(pair: Pair) -> list[tuple[float, int, float]]:
    """bitext@1, queries and chance level of both directions."""
    there = Scores.between(pair.a_ND, pair.b_ND)
    directions = ((there, pair.label_b_N), (there.transposed(), pair.label_a_N))
    rights = [(scores, equal_labels(label_N)) for scores, label_N in directions]
    return [
        (
            float(hits_at_1(scores, right).mean()),
            len(right.count_Q),
            chance_at(right.count_Q, len(right.count_Q), 1),
        )
        for scores, right in rights
    ]
