"""DeepSpeed around the model: one training step, and its state for a checkpoint.

    batch -> objective: forward (autocast, hooks of ZeRO), loss share -> backward -> clip, AdamW -> bounds

The DeepSpeed dictionary is built from the run's own fields; there is no second file to disagree with.
Parameters and the optimizer stay float32: `bf16` means autocast, because DeepSpeed's own bf16 mode casts
the temperature too. The objective gives each rank's share of the global loss; DeepSpeed averages
gradients over ranks, so the share is multiplied by their number first.

What a step draws at random (dropout) is a function of seed, step, rank and part: there is no random state
to save, and cached gradients replay it.
"""

import logging
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.batch import Batch
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.core.precision import Precision, choose_precision
from mmalign.models.dual_encoder import DualEncoder
from mmalign.models.execution import checkpoint_activations, compile_towers, unfuse_attention
from mmalign.training.batch_norm import use_global_batch
from mmalign.training.cached import cached_backward
from mmalign.training.objective import (
    ContrastiveConfig,
    ObjectiveConfig,
    outcome_of,
    trained_module,
)
from mmalign.training.optimizer import OptimizerConfig, build_optimizer, set_learning_rates
from mmalign.training.state import capture, restore

MODEL_FILE = "model.safetensors"
HEAD_FILE = "head.safetensors"
OPTIMIZER_FILES = "optimizer-rank"
BUCKET = 50_000_000
"""Gradients that are sent at a time. DeepSpeed's default, ten times as many, would reserve more memory than
ZeRO saves on towers of this size."""


class EngineConfig(Section):
    precision: Precision = "auto"
    """auto: bf16 where the device multiplies bfloat16 in hardware, else fp32; chosen at the first start for
    all ranks, and kept on resume. bf16: matrix products in bfloat16 (autocast); weights, optimizer and loss
    stay float32."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What is split over ranks: nothing, optimizer state, gradients too, parameters too (ZeRO,
    arXiv 1910.02054)."""
    micro_batch: int | None = pydantic.Field(default=None, ge=1)
    """Images of a rank in one forward pass; the gradient is still that of the whole batch (cached
    gradients, GradCache, arXiv 2101.06983), for a second forward pass. None: all at once."""
    checkpoint_activations: bool = False
    """Keep only the inputs of the towers' blocks and compute the rest again in the backward pass."""
    compile: bool = False
    """torch.compile of the towers; the first steps take a minute longer."""
    hang_seconds: int = pydantic.Field(default=0, ge=0)
    """A rank that makes no progress for this long writes its stacks and ends; 0: never. Longer than the
    longest step, evaluation or save."""


class Engine:
    """A model in training.

    Attributes:
        model: the dual encoder; under ZeRO 3 its parameters are split over the ranks.
        module: what DeepSpeed wraps, the model alone or with the objective's head.
        step_number: steps taken, those left out for numbers that are not finite among them.
    """

    def __init__(
        self,
        model: DualEncoder,
        objective: ObjectiveConfig,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        steps: int,
        batch_size: int,
        min_temperature: float,
        seed: int = 0,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.model = model
        self.module = trained_module(objective, model).to(distributed.device()).train()
        self.step_number = 0
        self._objective = objective
        self._config = config
        self._optimizer_config = optimizer
        self._steps = steps
        self._batch_size = batch_size
        self._max_log_scale = -math.log(min_temperature)
        self._seed = seed
        use_global_batch(self.module)
        if config.micro_batch is not None:
            _refuse_batch_statistics(self.module)
        uses_bf16 = choose_precision(config.precision) == "bf16"
        if uses_bf16 and distributed.device().type == "cpu":
            unfuse_attention(model)
        if config.checkpoint_activations:
            checkpoint_activations(model)
        if config.compile:
            compile_towers(model)
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=self.module,
            optimizer=build_optimizer(self.module, optimizer),
            config=_deepspeed_config(config, optimizer, batch_size, uses_bf16),
        )

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step on this rank's part of a global batch.

        Where the loss or a gradient is not finite on any rank, no rank changes a weight, a statistic or
        a moment; the metrics tell (`grad_norm` is then not finite).

        Returns:
            What the objective tells (loss of the global batch, ...), grad_norm (before clipping) and lr.
        """
        rate = set_learning_rates(
            self._optimizer.param_groups,
            self._optimizer_config,
            self.step_number,
            self._steps,
            self._batch_size,
        )
        statistics = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        metrics = {name: float(value) for name, value in self.backward(batch).items()}
        grad_norm = self._update()
        if not math.isfinite(grad_norm):
            for buffer, before in statistics:
                buffer.copy_(before)
        self.step_number += 1
        return {**metrics, "grad_norm": grad_norm, "lr": rate}

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the global loss, averaged over ranks, in the hands of DeepSpeed.

        Returns:
            The objective's metrics of the global batch, equal on all ranks.
        """
        batch = batch.to(distributed.device())
        images = self._config.micro_batch
        if images is None or images >= len(batch.key_B):
            self._seed_part(0)
            outcome = outcome_of(self._objective, self._deepspeed, batch)
            self._backward(outcome.to_minimise, is_last=True)
            return outcome.metrics
        assert isinstance(self._objective, ContrastiveConfig)
        return cached_backward(
            self._objective, self._deepspeed, self._backward, self._seed_part, batch, images
        ).metrics

    def capture(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """This rank's share of the optimizer's state, and on rank 0 the weights by the file that they
        belong in, as copies on the host; to be called on all ranks."""
        state, weights = capture(self._deepspeed, self.module, self._config.zero_stage)
        files: dict[str, dict[str, Tensor]] = {name: {} for name in self._weight_prefixes}
        for name, tensor in weights.items():
            is_model = name.startswith(self._weight_prefixes[MODEL_FILE])
            file = MODEL_FILE if is_model else HEAD_FILE
            files[file][name.removeprefix(self._weight_prefixes[file])] = tensor
        return state, files if weights else {}

    def restore(self, folder: Path, step: int) -> None:
        """Take over what `capture` gave on whatever number of ranks; to be called on all ranks.

        Raises:
            UserError: the files of `folder` belong to another model.
        """
        weights = {prefix: folder / name for name, prefix in self._weight_prefixes.items()}
        optimizer = sorted(folder.glob(f"{OPTIMIZER_FILES}*.safetensors"))
        restore(self._deepspeed, self.module, self._config.zero_stage, weights, optimizer)
        self.step_number = step

    @property
    def _weight_prefixes(self) -> dict[str, str]:
        """File -> what its names lack to be names of `module`."""
        if self.module is self.model:
            return {MODEL_FILE: ""}
        return {MODEL_FILE: "dual_encoder.", HEAD_FILE: ""}

    def whole_model(self) -> AbstractContextManager[Any]:
        """Within it every rank holds the whole of `model`, also under ZeRO 3; on all ranks."""
        import deepspeed

        gathers = self._config.zero_stage == 3
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(self.model.parameters()), enabled=gathers
        )
        return gathered

    def _backward(self, local_loss: Tensor, is_last: bool) -> None:
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        self._deepspeed.backward(local_loss * distributed.world_size())

    def _update(self) -> float:
        """Clip and step unless a gradient is not finite; returns the gradients' norm before clipping."""
        if self._config.zero_stage == 0:
            # After DeepSpeed's all-reduce, so every rank comes to the same norm.
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            grad_norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(grad_norm):
                self._deepspeed.zero_grad()
                return grad_norm
            self._deepspeed.step()
        else:
            # ZeRO knows the norm only inside its step; one that is not finite makes it leave the step out.
            self._deepspeed.step()
            grad_norm = float(self._deepspeed.get_global_grad_norm())
        self._bound_temperature()
        return grad_norm

    def _seed_part(self, number: int) -> None:
        key = (self._seed, self.step_number, distributed.rank(), number)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    @torch.no_grad()
    def _bound_temperature(self) -> None:
        """Keep the temperature above its least value, on the copy that the optimizer owns as well."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_set_full_fp32_param,
            safe_set_local_fp32_param,
        )

        parameter, stage = self.model.logit_scale, self._config.zero_stage
        if not parameter.requires_grad:
            return
        with GatheredParameters([parameter], modifier_rank=0, enabled=stage == 3):
            exceeds = bool(parameter > self._max_log_scale)
            if exceeds:
                parameter.clamp_(max=self._max_log_scale)
        if exceeds and stage in (1, 2):
            safe_set_full_fp32_param(parameter, parameter)
        elif exceeds and stage == 3:
            # DeepSpeed's setter of whole tensors fails on one number that is padded for several ranks.
            part = safe_get_local_fp32_param(parameter)
            safe_set_local_fp32_param(parameter, part.clamp(max=self._max_log_scale))


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise UserError(
                f"engine.micro_batch: `{name}` normalises over the images of a forward pass, so parts of a "
                "batch would give another gradient than the whole; use a network without batch "
                "normalisation, freeze it, or take micro_batch out"
            )


def _import_deepspeed() -> Any:
    """DeepSpeed, without its chatter and without the operator that it would compile on a CPU.

    That one speeds up the all-reduce of inference, which training never calls, and costs a minute.
    """
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _deepspeed_config(
    config: EngineConfig, optimizer: OptimizerConfig, batch_size: int, uses_bf16: bool
) -> dict[str, Any]:
    return {
        "train_batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip,
        "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": BUCKET},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": uses_bf16,
            "dtype": "bfloat16",
            # Otherwise ZeRO would send the gradients of linear and convolutional layers in 16 bits.
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31,
    }
