"""Batch normalisation over the global batch, so that a step is the same number on any number of ranks.

On GPUs torch has it (SyncBatchNorm, which does not run on CPUs). This is the same for gloo ranks: the sums
over rows, height and width are summed over the ranks, with their gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.errors import UserError


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        # In 16 bits a sum of thousands of values has no correct digits.
        value_BCHW = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        count = value_BCHW.new_tensor([value_BCHW.numel() // value_BCHW.shape[1]])
        counted = _gather_one(count).sum()
        mean_C = _sum_over_batch(value_BCHW) / counted
        centred_BCHW = value_BCHW - mean_C[:, None, None]
        # Two passes: the mean of squares minus the square of the mean loses digits.
        variance_C = _sum_over_batch(centred_BCHW.square()) / counted
        self._update_running(mean_C, variance_C, counted)
        output_BCHW = centred_BCHW * torch.rsqrt(variance_C + self.eps)[:, None, None]
        if self.affine:
            output_BCHW = output_BCHW * self.weight[:, None, None] + self.bias[:, None, None]
        return output_BCHW.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, variance_C: Tensor, counted: Tensor) -> None:
        tracked: Any = self.num_batches_tracked
        tracked += 1
        # None is torch's word for a plain mean over all batches.
        momentum = 1 / float(tracked) if self.momentum is None else self.momentum
        # As torch: the batch is normalised by the biased variance, the running one is unbiased.
        unbiased_C = variance_C * counted / (counted - 1)
        running: Any
        for running, value_C in ((self.running_mean, mean_C), (self.running_var, unbiased_C)):
            running.lerp_(value_C.to(running.dtype), momentum)


def _sum_over_batch(value_BCHW: Tensor) -> Tensor:
    # (C,), over the images and pixels of all ranks.
    return _gather_one(value_BCHW.sum((0, 2, 3))).sum(0)


def _gather_one(value: Tensor) -> Tensor:
    # The tensors of all ranks, stacked; shapes are equal on all ranks.
    return distributed.gather_rows(value[None], [1] * distributed.world_size(), "batch norm")


def use_global_batch(model: nn.Module) -> None:
    """Make every batch normalisation that trains use the batch of all ranks, in place.

    Raises:
        UserError: a kind of batch normalisation that cannot be shared between CPU ranks.
    """
    if distributed.world_size() == 1:
        return
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if module.weight is not None and not module.weight.requires_grad:
            continue
        if type(module) is not nn.BatchNorm2d:
            raise UserError(
                f"model.image: `{name}` is a {type(module).__name__}, whose statistics cannot be shared "
                "between ranks; use a network without it, or one rank"
            )
        # The class alone changes: checkpoints and the optimizer find the same names and parameters.
        is_cuda = distributed.device().type == "cuda"
        module.__class__ = nn.SyncBatchNorm if is_cuda else GlobalBatchNorm2d  # type: ignore[assignment]
        module.process_group = None  # type: ignore[assignment]  # that of all ranks
