"""Dense modules of sentence-transformers are a projection in one of its two forms, or are refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, source_of
from safetensors.torch import load_file, save_file
from tiny import TEXTS
from torch import nn
from transformers.utils import logging

from mmalign.core.errors import UserError
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.models.external.sentence_transformers import projection_of
from mmalign.models.load import load_text_encoder


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


def test_a_folder_in_16_bits_is_read_in_float32(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = source_of(build_encoder())
    write_sentence_transformers(source, tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        save_file({n: one.half() for n, one in load_file(path).items()}, path, {"format": "pt"})
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**facts, "dtype": "float16"}))
    logging.enable_progress_bar()  # as in a new process
    tower = load_text_encoder(str(tmp_path))
    assert capfd.readouterr().err == ""
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    np.testing.assert_allclose(tower.encode(TEXTS), source.tower.encode(TEXTS), atol=5e-3)
