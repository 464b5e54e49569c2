"""Which number format matrix products run in: chosen by the device, once for all ranks.

    training:  `auto` -> every rank asks its device -> bf16 if all multiply bfloat16 in hardware, else fp32
    inference: `auto` -> bf16 on a GPU that does, else fp32, also on a CPU

bf16 means autocast: weights, optimizer state and the loss stay float32. In inference the vectors that come
out are float32. Their cosine to those of float32 is 0.999 or more (`tests/core/test_precision.py`).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from mmalign.core import distributed

Precision = Literal["auto", "fp32", "bf16"]
"""`auto`: bf16 where the hardware has matrix units for it (GPUs from Ampere on, CPUs with AMX), fp32
elsewhere; bf16: matrix products in bfloat16 (autocast); fp32: everything in float32."""

_AMPERE = (8, 0)  # compute capability of the first GPUs with bfloat16 tensor cores
# Values of ONEDNN_MAX_CPU_ISA with AMX kernels, or without a limit (oneDNN's documentation, "CPU Dispatcher
# Control").
_WITH_AMX = re.compile(r"|ALL|DEFAULT|.*AMX.*")


def choose_precision(requested: Precision) -> Literal["fp32", "bf16"]:
    """The precision to compute in, equal on all ranks; to be called on all ranks."""
    if requested != "auto":
        return requested
    # bfloat16 without hardware for it is correct but slow: torch on a CPU with AVX2 alone is about 18 times
    # slower than in float32.
    return "bf16" if all(distributed.gather_objects(multiplies_bf16())) else "fp32"


def inference_precision(requested: Precision = "auto") -> Literal["fp32", "bf16"]:
    """What models compute in outside training, on this rank's device."""
    if requested != "auto":
        return requested
    # Results of a CPU stay comparable with those of any other CPU.
    return "bf16" if distributed.device().type == "cuda" and multiplies_bf16() else "fp32"


@contextmanager
def inference(requested: Precision = "auto") -> Iterator[None]:
    """Run models without gradients, in `inference_precision`; also a decorator.

    Under bf16, float32 products that autocast leaves on a GPU are TF32 (10 bits of mantissa, which is more
    than bfloat16 has).
    """
    device, is_bf16 = distributed.device().type, inference_precision(requested) == "bf16"
    before = torch.get_float32_matmul_precision()
    # Not `inference_mode`: under ZeRO 3 a call gathers weights, and training could not go on with tensors
    # that were made in inference mode.
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=is_bf16):
        if is_bf16 and device == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def precision_note(requested: Precision = "auto") -> str:
    """For a protocol, a sentence with a space before it; empty for fp32, which needs no words."""
    return " Encoded in bfloat16." if inference_precision(requested) == "bf16" else ""


def multiplies_bf16() -> bool:
    """Whether this rank's device has matrix units for bfloat16, with the instruction set it may use."""
    device = distributed.device()
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    # torch and oneDNN can be told to leave instructions unused: what counts is the effective set, because a
    # machine without them is imitated, or avoided, in this way.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if not _WITH_AMX.fullmatch(limit) or torch.backends.cpu.get_cpu_capability() in (
        "DEFAULT",
        "AVX2",
    ):
        return False
    # AVX-512-BF16 alone is not enough: its products are no faster than those of float32, and autocast's
    # copies cost time (benchmarks/precision.py: a step takes 1.3 to 1.4 times as long).
    return bool(torch.cpu._is_amx_tile_supported())
