"""Parameter groups and the schedule."""

from itertools import pairwise

import pytest
from tiny import tiny_model

from mmalign.config import validate
from mmalign.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    learning_rate_factor,
    set_learning_rate,
)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = tiny_model()
    model.image_tower.requires_grad_(False)
    config = validate(OptimizerConfig, {"lr": 1e-3, "text_lr": 5e-4}, "test")
    groups = build_optimizer(model, config).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            decays = parameter.ndim >= 2
            assert group["weight_decay"] == (0.1 if decays else 0.0), name
            assert not (decays and ("norm" in name.lower() or name.endswith("bias"))), name
            assert group["highest_lr"] == (5e-4 if name.startswith("text_tower.") else 1e-3), name
            assert decays == (name != "logit_scale" and parameter.ndim >= 2)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert learning_rate_factor(0, 5, 0) == 1.0
    groups = [{"highest_lr": 2.0, "lr": 0.0}, {"highest_lr": 1.0, "lr": 0.0}]
    set_learning_rate(groups, 0.25)
    assert [group["lr"] for group in groups] == [0.5, 0.25]
