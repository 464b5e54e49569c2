"""A projection has two forms; both are written, read and recognised, and nothing else passes for one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mmalign.core.errors import UserError
from mmalign.models.projection import out_features, projection_of, read_projection, write_projection

FORMS = {
    "linear": nn.Linear(6, 4),
    "without a bias": nn.Linear(6, 4, bias=False),
    "mlp": nn.Sequential(nn.Linear(6, 5, bias=False), nn.GELU(), nn.Linear(5, 4, bias=False)),
}


def dense(linear: nn.Module, activation: nn.Module, residual: bool = False) -> Any:
    return SimpleNamespace(linear=linear, activation_function=activation, use_residual=residual)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_written_comes_back(tmp_path: Path, form: str) -> None:
    projection, path = FORMS[form], tmp_path / "projection.safetensors"
    write_projection(projection, path)
    again = read_projection(path)
    assert again is not None and out_features(again) == out_features(projection) == 4
    row_NF = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(row_NF), projection(row_NF))
    assert list(again.state_dict()) == list(projection.state_dict())


def test_no_file_is_no_projection(tmp_path: Path) -> None:
    assert read_projection(tmp_path / "projection.safetensors") is None


def test_dense_modules_become_one_of_the_two_forms() -> None:
    first, last = nn.Linear(6, 5), nn.Linear(5, 4)
    assert projection_of([], "m") is None
    assert projection_of([dense(first, nn.Identity())], "m") is first
    row_NF = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    both = projection_of([dense(first, nn.GELU()), dense(last, nn.Identity())], "m")
    assert both is not None and out_features(both) == 4
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
