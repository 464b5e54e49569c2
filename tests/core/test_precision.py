"""Precision `auto` follows the device, and all ranks choose the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from precision_cases import choose_on
from ranks import run_ranks

from mmalign.core.precision import choose_precision, multiplies_bf16

ASK = "from mmalign.core.precision import multiplies_bf16; print(multiplies_bf16())"


@pytest.mark.parametrize("requested", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(requested: str) -> None:
    assert choose_precision(requested) == requested  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "limit",
    [
        {"ATEN_CPU_CAPABILITY": "avx2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"DNNL_MAX_CPU_ISA": "avx512_core"},
    ],
    ids=str,
)
def test_instructions_that_may_not_be_used_do_not_count(limit: dict[str, str]) -> None:
    # A process of its own: torch reads these variables when it is imported.
    environment = {**os.environ, **limit, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_a_cpu_needs_bf16_or_amx_instructions(
    bf16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert multiplies_bf16() == (bf16 or amx)


def test_one_rank_without_bf16_decides_for_all(tmp_path: Path) -> None:
    assert run_ranks(2, choose_on, tmp_path / "mixed", (True, False)) == ["fp32", "fp32"]
    assert run_ranks(2, choose_on, tmp_path / "equal", (True, True)) == ["bf16", "bf16"]
