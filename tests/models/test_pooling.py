"""Each pooling takes the right tokens, and the libraries know it by the spelling that we have for it."""

from typing import Any, get_args

import pytest
import torch
from open_clip.hf_model import _POOLERS
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from mmalign.core.errors import UserError
from mmalign.models.pooling import (
    POOLINGS,
    Pooling,
    pool,
    pooling_of_open_clip,
    pooling_of_sentence_transformers,
)

STATE_NLF = torch.arange(8.0).reshape(2, 4, 1)


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [0.5, 6.0]), ("cls", [0.0, 5.0]), ("last", [1.0, 7.0])]
)
def test_the_right_tokens_are_taken_on_either_side_of_the_padding(
    pooling: Pooling, expected: list[float]
) -> None:
    mask_NL = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    assert pool(STATE_NLF, mask_NL, pooling).squeeze(1).tolist() == expected


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_the_libraries_know_the_spellings(pooling: Pooling) -> None:
    one, mask_NL = POOLINGS[pooling], torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = pool(STATE_NLF, mask_NL, pooling)
    module = TheirPooling(1, pooling_mode=one.sentence_transformers)
    assert pooling_of_sentence_transformers(module, "m") == pooling
    features = {"token_embeddings": STATE_NLF, "attention_mask": mask_NL}
    assert torch.equal(module(features)["sentence_embedding"], expected)
    assert one.open_clip is None or one.open_clip in _POOLERS
    assert pooling_of_open_clip(one.open_clip or "") == (pooling if one.open_clip else None)
    names: dict[str, Any] = {"torch": torch, "states": STATE_NLF, "mask": mask_NL}
    exec("\n".join(one.code), names)
    assert torch.equal(names["vectors"], expected)


def test_a_pooling_without_a_name_here_is_refused() -> None:
    for modes, named in (("max", "max"), (("mean", "max"), "mean, max")):
        with pytest.raises(UserError, match=f"m: pools by `{named}`; can be read: mean, cls"):
            pooling_of_sentence_transformers(TheirPooling(1, pooling_mode=modes), "m")
