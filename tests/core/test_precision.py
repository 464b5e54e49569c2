"""Precision `auto` follows the device, and all ranks choose the same."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from precision_cases import choose_on
from ranks import run_ranks
from tiny import TEXTS, tiny_run

from mmalign.core.precision import (
    choose_precision,
    inference,
    inference_precision,
    multiplies_bf16,
)
from mmalign.models.encoder import load_encoder
from mmalign.models.load import text_encoder_of


@pytest.mark.parametrize("requested", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(requested: str) -> None:
    assert choose_precision(requested) == requested  # type: ignore[arg-type]


def test_instructions_that_torch_may_not_use_do_not_count() -> None:
    # A process of its own, because torch reads the variable when it is imported.
    ask = "from mmalign.core.precision import multiplies_bf16; print(multiplies_bf16())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.fixture
def avx512(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU with AVX-512 and nothing that limits its use."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return monkeypatch


@pytest.mark.parametrize("amx", [False, True])
def test_a_cpu_needs_matrix_units(amx: bool, avx512: pytest.MonkeyPatch) -> None:
    avx512.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    avx512.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert multiplies_bf16() == amx


def test_instructions_that_onednn_may_not_use_do_not_count(avx512: pytest.MonkeyPatch) -> None:
    avx512.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    below = ["SSE41", "AVX", "avx2", "AVX2_VNNI", "AVX2_VNNI_2", "avx512_core", "AVX512_CORE_VNNI"]
    below += ["AVX512_CORE_BF16", "AVX512_CORE_FP16"]
    for name in ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"):
        for limit in below:
            avx512.setenv(name, limit)
            assert not multiplies_bf16(), limit
        for limit in ("", "ALL", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16"):
            avx512.setenv(name, limit)
            assert multiplies_bf16(), limit


def test_one_rank_without_bf16_decides_for_all(tmp_path: Path) -> None:
    chosen = run_ranks(2, choose_on, tmp_path, (True, False), (True, True))
    assert chosen == [["fp32", "bf16"]] * 2


def test_inference_is_bf16_on_gpus_that_multiply_it_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmalign.core.precision.multiplies_bf16", lambda: True)
    assert inference_precision() == "fp32"  # this machine's CPU
    monkeypatch.setattr(
        "mmalign.core.precision.distributed.device", lambda: torch.device("cuda", 0)
    )
    assert inference_precision() == "bf16"
    assert inference_precision("fp32") == "fp32"
    monkeypatch.setattr("mmalign.core.precision.multiplies_bf16", lambda: False)
    assert inference_precision() == "fp32"


def test_inference_has_no_gradients_and_leaves_training_as_it_was() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    before = torch.get_float32_matmul_precision()
    with inference("bf16"):
        product = weight @ weight
    assert (product.dtype, product.requires_grad) == (torch.bfloat16, False)
    assert (weight @ weight).dtype == torch.float32
    assert (weight @ weight).requires_grad
    assert torch.get_float32_matmul_precision() == before


def test_vectors_in_bf16_are_float32_close_and_recorded(tmp_path: Path) -> None:
    encoder = load_encoder(tiny_run(tmp_path / "run"))
    exact = encoder.encode_texts(TEXTS)
    tower = text_encoder_of(encoder)
    assert encoder.note == tower.note == ""
    encoder.precision = "bf16"
    rough = encoder.encode_texts(TEXTS)
    assert rough.dtype == np.float32
    assert np.abs(rough - exact).max() > 0
    assert (rough * exact).sum(1).min() >= 0.999
    rough_tower = text_encoder_of(encoder)
    assert encoder.note == rough_tower.note == " Encoded in bfloat16."
    rough, exact = rough_tower.encode(TEXTS), tower.encode(TEXTS)
    assert np.abs(rough - exact).max() > 0
    assert (rough * exact).sum(1).min() >= 0.999
