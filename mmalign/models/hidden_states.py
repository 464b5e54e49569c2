"""Words -> one unit vector per layer: what the probe measures and what the injection trains.

    words -> tokens (padded on the right) -> hidden states of every layer -> mean over the tokens -> length 1
                                          -> the tower's own feature --------------------------------^

`0` names the embeddings of the tokens, `n` the last layer, `feature` the encoder's own feature.

`content` leaves special tokens out, `all` is the pooling of targeted lexical injection as published
(arXiv 2506.15415).

Shapes: B words, L tokens of the longest, F width of a state, D width of the feature.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.core.batching import length_sorted_batches
from mmalign.core.precision import inference
from mmalign.models.encoder import as_list
from mmalign.models.pooling import pool
from mmalign.models.text_encoder import TextEncoder, Tokens

FEATURE = "feature"
BATCH_SIZE = 128  # words at a time: the states of all layers are alive at once

WordPooling = Literal["content", "all"]


def word_states(
    tower: TextEncoder, words: Sequence[str], pooling: WordPooling
) -> dict[str, Tensor]:
    """Layer -> (B, F) float32 of unit length, `feature` -> (B, D); gradients flow where they are on."""
    # Padding stands on the right: positions of models that count them from the left stay what they are.
    words = tower.prompts.add(words, "query")  # as the model reads them
    tokens = tower.tokenize(words, return_special_tokens_mask=True, padding_side="right")
    output = tower.trunk(**tokens.inputs, output_hidden_states=True)
    mask_BL = tokens.mask_NL if pooling == "all" else content_mask(tokens)
    rows = {
        str(layer): pool(state_BLF.float(), mask_BL, "mean")
        for layer, state_BLF in enumerate(output.hidden_states)
    }
    rows[FEATURE] = tower.feature(output.last_hidden_state, tokens.mask_NL).float()
    return {layer: F.normalize(row, dim=-1) for layer, row in rows.items()}


def content_mask(tokens: Tokens) -> Tensor:
    """(B, L) int64, 1 on tokens that are not special; on all tokens of a word that has no others."""
    # A decoder's start token has the same state in every word, as it sees nothing before it. Where that state
    # is long, a mean that includes it hardly differs from word to word.
    special_BL = tokens.encoding["special_tokens_mask"].to(tokens.mask_NL.device)
    content_BL = tokens.mask_NL * (1 - special_BL)
    return torch.where(content_BL.any(1, keepdim=True), content_BL, tokens.mask_NL)


def encode_words(
    tower: TextEncoder, words: Sequence[str], pooling: WordPooling
) -> dict[str, np.ndarray]:
    """Layer -> (n, F) float32 of unit length on the host, `feature` -> (n, D); without dropout."""
    mode = tower.training
    tower.eval()
    states: dict[str, np.ndarray] = {}
    for chunk in length_sorted_batches(map(len, as_list(words)), BATCH_SIZE):
        with inference(tower.precision):
            rows = word_states(tower, [words[i] for i in chunk], pooling)
        for layer, row_BF in rows.items():
            kept = states.setdefault(layer, np.empty((len(words), row_BF.shape[1]), np.float32))
            # A vector that is not numbers becomes zero, which ties with everything.
            kept[chunk] = row_BF.nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    tower.train(mode)
    return states
