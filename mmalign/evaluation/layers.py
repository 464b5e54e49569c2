"""A text tower layer by layer: where do its languages meet?

layers/<set>/<0 ... n>/<pooling>/bitext@1      0: the token embeddings, n: the last layer
layers/<set>/feature/<pooling>/bitext@1        what the tower itself gives, pooled in its own way

Shapes: N captions, L tokens, F width of a state.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core.config import Section
from mmalign.core.precision import inference
from mmalign.evaluation.alignment import for_each_pair
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.over_ranks import encode_texts_over_ranks
from mmalign.models.hidden_states import content_mask
from mmalign.models.pooling import POOLINGS, Pooling, pool
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import MetricName
from mmalign.results.results import Results

BATCH_SIZE = 64  # captions at a time: the states of all layers are alive at once

# Recorded in results and compared between them: another wording makes older results incomparable.
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
    """How many images at most are drawn from each set; memory grows with images x languages x layers."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Of the draw."""


def probe_layers(
    tower: TextEncoder, embedded: EmbeddedSet, results: Results, config: LayersConfig
) -> None:
    """Add bitext@1 of every layer of the tower, and of its own feature, on captions of the set.

    A collective. Nothing is added where no two languages share two images.
    """
    sample = _sample(embedded, config.pictures, config.seed)
    if len(sample.texts) == 0:
        return
    first = MetricName("layers", embedded.name, None, (), "bitext@1")
    results.protocol[first.prefix] = {
        "how": PROTOCOL,
        "pooling": "; ".join(POOLINGS[one].of_content for one in config.poolings),
        "pictures": len(np.unique(sample.picture_M)),
        "seed": config.seed,
    }
    for setting, state_NF in _encode(tower, sample.texts, config.poolings).items():
        parts = for_each_pair(
            replace(sample, text_MD=state_NF),
            lambda pair: [
                (one.hits().mean(), len(one.query_QD), one.chance) for one in pair.directions
            ],
        )
        if parts:
            value, count, chance = np.concatenate(parts).T
            name = replace(first, setting=setting)
            results.add(name, float(value.mean()), int(count.sum()), chance=float(chance.mean()))


def _sample(embedded: EmbeddedSet, max_images: int, seed: int) -> EmbeddedSet:
    first = embedded.first_captions()
    described, languages = np.unique(embedded.picture_M[first], return_counts=True)
    images = described[languages > 1]  # the others have no translation
    if len(images) > max_images:
        images = np.random.default_rng(seed).choice(images, max_images, replace=False)
    return embedded.with_captions(first[np.isin(embedded.picture_M[first], images)])


def _encode(
    tower: TextEncoder, texts: list[str], poolings: Sequence[Pooling]
) -> dict[tuple[str, str], np.ndarray]:
    """(layer, pooling) -> (N, F) float32 of unit length, the same on all ranks."""
    widths: dict[tuple[str, str], int] = {}

    def encode(batch: list[str]) -> np.ndarray:
        # All layers side by side, so that the ranks gather them in one go.
        with inference(tower.precision):
            rows = _encode_batch(tower, batch, poolings)
        widths.update((setting, row_BF.shape[1]) for setting, row_BF in rows.items())
        return torch.cat(list(rows.values()), dim=1).numpy()

    state_NS = encode_texts_over_ranks(encode, texts, BATCH_SIZE)
    ends = np.cumsum(list(widths.values()))  # in the order of the columns
    return dict(zip(widths, np.split(state_NS, ends[:-1], axis=1), strict=True))


def _encode_batch(
    tower: TextEncoder, texts: list[str], poolings: Sequence[Pooling]
) -> dict[tuple[str, str], Tensor]:
    """(layer, pooling) -> (B, F) float32 of unit length, on the host."""
    mode = tower.training  # a probe during training must not change it
    tower.eval()
    prompted = tower.prompts.add(texts, "query")
    tokens = tower.tokenize(prompted, return_special_tokens_mask=True)
    types = {} if tokens.type_NL is None else {"token_type_ids": tokens.type_NL}
    output = tower.trunk(
        input_ids=tokens.token_NL, attention_mask=tokens.mask_NL, output_hidden_states=True, **types
    )
    # Start, end and padding tokens are the same in every text and would make all texts alike.
    content_BL = content_mask(tokens)
    masks = {one: tokens.mask_NL if POOLINGS[one].needs_special else content_BL for one in poolings}
    rows = {
        (str(layer), pooling): pool(state_BLF, masks[pooling], pooling)
        for layer, state_BLF in enumerate(output.hidden_states)
        for pooling in poolings
    }
    rows["feature", tower.pooling] = tower.feature(output.last_hidden_state, tokens.mask_NL)
    tower.train(mode)
    return {setting: F.normalize(row.float(), dim=-1).cpu() for setting, row in rows.items()}
