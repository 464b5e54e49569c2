"""What the engine refuses to train."""

import pytest
import torch
from tiny import tiny_model

from mmalign.core.errors import UserError
from mmalign.training.engine import Engine, EngineConfig
from mmalign.training.objective import ContrastiveConfig
from mmalign.training.optimizer import OptimizerConfig


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_are_refused(dtype: torch.dtype) -> None:
    model = tiny_model()
    model.text_tower.to(dtype)
    settings = (ContrastiveConfig(kind="contrastive"), EngineConfig(), OptimizerConfig(lr=1e-3))
    with pytest.raises(
        UserError, match=r"model: `text_tower.* is torch\..*float.*, and only float32"
    ):
        Engine(model, *settings, steps=1, batch_size=4, min_temperature=0.01)
