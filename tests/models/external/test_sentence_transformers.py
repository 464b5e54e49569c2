"""Dense modules of sentence-transformers are a projection in one of its two forms, or are refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mmalign.core.errors import UserError
from mmalign.models.external.sentence_transformers import projection_of


def dense(linear: nn.Module, activation: nn.Module, residual: bool = False) -> Any:
    return SimpleNamespace(linear=linear, activation_function=activation, use_residual=residual)


def test_dense_modules_become_one_of_the_two_forms() -> None:
    first, last = nn.Linear(6, 5), nn.Linear(5, 4)
    assert projection_of([], "m") is None
    assert projection_of([dense(first, nn.Identity())], "m") is first
    row_NF = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    both = projection_of([dense(first, nn.GELU()), dense(last, nn.Identity())], "m")
    assert both is not None
    assert torch.equal(both(row_NF), last(nn.functional.gelu(first(row_NF))))


@pytest.mark.parametrize(
    "modules",
    [
        [dense(nn.Linear(6, 4), nn.Tanh())],
        [dense(nn.Linear(6, 4), nn.Identity(), residual=True)],
        [dense(nn.Linear(6, 5), nn.Identity()), dense(nn.Linear(5, 4), nn.GELU())],
    ],
    ids=["tanh", "residual", "order"],
)
def test_other_dense_modules_are_refused(modules: list[Any]) -> None:
    with pytest.raises(UserError, match="some/model: its Dense modules"):
        projection_of(modules, "some/model")
