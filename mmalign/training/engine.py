"""DeepSpeed around the model: one training step, and its state for a checkpoint.

    batch -> ids of all ranks (exchange.py)
    batch, ids -> objective: forward (autocast, ZeRO's hooks), local_loss -> backward -> clip, AdamW -> bounds

Under stage 0 nothing in a step waits for the device: what depends on numbers (clipping, steps that are
skipped, the temperature's bound) is decided there, and `read_metrics` is where the host learns of it. There
are three exceptions: under ZeRO 1 to 3 DeepSpeed reads the norm on the host, a teacher's vectors come from
there, and masked language modelling selects its positions by a mask.

Random numbers of a step (dropout) are a function of seed, step, rank and micro-batch: there is no random
state to save, and cached gradients replay them.
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
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
from mmalign.models.stored_run import MOMENTS
from mmalign.training.average import TRAINED_FILE, WeightAverage
from mmalign.training.batch_norm import use_global_batch
from mmalign.training.cached import cached_backward, split
from mmalign.training.distillation import Teacher
from mmalign.training.exchange import NO_VOTES, Exchange, GlobalIds, Votes
from mmalign.training.gradients import GradientSum
from mmalign.training.meter import StepMetrics
from mmalign.training.objective import (
    ContrastiveConfig,
    ObjectiveConfig,
    Outcome,
    embed,
    exchange_ids,
    outcome_of,
    trained_module,
)
from mmalign.training.optimizer import OptimizerConfig, build_optimizer, set_learning_rates
from mmalign.training.state import capture, digest, restore
from mmalign.training.throughput import operations_per_image

MODEL_FILE = "model.safetensors"
HEAD_FILE = "head.safetensors"
# Gradients per message. DeepSpeed's default, ten times as many, would reserve more memory than ZeRO saves on
# towers of this size.
BUCKET = 50_000_000


class EngineConfig(Section):
    precision: Precision = "auto"
    """See `mmalign.core.precision`; auto is decided at the first start, and kept on resume."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What is partitioned over ranks: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""
    micro_batch: int | None = pydantic.Field(default=None, ge=1)
    """Images per forward pass and rank (cached gradients: the same gradient, at the cost of a second forward
    pass). None: all at once."""
    tokens_per_micro_batch: int | None = pydantic.Field(default=None, ge=1)
    """Tokens of the captions per forward pass and rank, with their images; as `micro_batch`, which may be
    given too. The batch of a step stays the same."""
    checkpoint_activations: bool = False
    """Keep only the inputs of the towers' blocks and recompute the rest in the backward pass."""
    compile: bool = False
    """torch.compile of the towers; the first steps take a minute longer."""
    hang_seconds: int = pydantic.Field(default=1800, ge=0)
    """A rank without progress for this long writes its stacks and ends; 0: never. Must exceed the longest
    step, batch of an evaluation and file of a checkpoint."""


class Engine:
    """A model in training.

    Attributes:
        model: the dual encoder; under ZeRO 3 its parameters are partitioned over the ranks.
        module: what DeepSpeed wraps, the model alone or with the objective's head.
        teacher: of distillation, if there is one.
        step_number: steps taken, also those skipped because of numbers that are not finite.
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
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.float32:
                raise UserError(
                    f"model: `{name}` is {parameter.dtype}, and only float32 weights train"
                )
        deepspeed = _import_deepspeed()
        self.model = model
        self.module = trained_module(objective, model).to(distributed.device()).train()
        self.step_number = 0
        self._objective = objective
        taught = getattr(objective, "distillation", None)
        width = model.image_projection.weight.shape[0]
        self.teacher = None if taught is None else Teacher(taught, width)
        self._config = config
        self._optimizer_config = optimizer
        self._steps = steps
        self._batch_size = batch_size
        # The parameter is the logarithm of 1 / temperature.
        self._max_log_scale = -math.log(min_temperature)
        self._seed = seed
        self._exchange = Exchange()
        use_global_batch(self.module)
        if config.micro_batch is not None or config.tokens_per_micro_batch is not None:
            _refuse_batch_statistics(self.module)
        uses_bf16 = choose_precision(config.precision) == "bf16"
        if uses_bf16 and distributed.device().type == "cpu":
            unfuse_attention(model)
        if config.checkpoint_activations:
            checkpoint_activations(model)
        if config.compile:
            compile_towers(model)
        decay = optimizer.average
        prefix = self._weight_prefixes[MODEL_FILE]
        self._average = None if decay is None else WeightAverage(self.module, prefix, decay)
        with _local_rank():
            self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
                model=self.module,
                optimizer=build_optimizer(self.module, optimizer),
                config=_deepspeed_config(config, optimizer, batch_size, uses_bf16),
            )
        self._gradients: GradientSum | None = None
        if config.zero_stage == 0:
            self._gradients = GradientSum(self.module.parameters())
            self._deepspeed.enable_backward_allreduce = False

    def exchange(self, batch: Batch, votes: Votes = NO_VOTES) -> GlobalIds:
        """What the step on a batch needs to know of the other ranks, and what they voted; on all ranks."""
        passes = len(self._edges(batch, 1)) - 1
        return exchange_ids(self._exchange, self._objective, batch, votes, passes)

    def step(self, batch: Batch, ids: GlobalIds | None = None) -> StepMetrics:
        """One optimizer step on this rank's part of a global batch.

        If the loss or a gradient is not finite on any rank, no rank changes a weight, a statistic or a
        moment, and the `grad_norm` that is returned is not finite.

        Args:
            ids: what `exchange` returned for the batch, if it was called.

        Returns:
            The objective's metrics (loss of the global batch, ...), grad_norm (before clipping) and lr, for
            `read_metrics`.
        """
        settings = (self._optimizer_config, self.step_number, self._steps, self._batch_size)
        rate = set_learning_rates(self._optimizer.param_groups, *settings)
        # The forward pass updates the running statistics of batch normalisation before it is known whether
        # its numbers are finite.
        statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(self.module)]
        outcome = self.backward(batch, ids)
        grad_norm = self._update()
        is_finite = grad_norm.isfinite()
        for buffer, before in statistics:
            buffer.copy_(torch.where(is_finite, buffer, before))
        if self._average is not None:
            self._average.update(self.step_number, is_finite)
        self.step_number += 1
        return StepMetrics(outcome.parts, {**outcome.shared, "grad_norm": grad_norm}, rate)

    def operations_per_image(self, batch: Batch) -> float:
        """As the function of that name; 0 where there are no images. Called on all ranks."""
        if not isinstance(self._objective, ContrastiveConfig):
            return 0.0
        forward = partial(embed, self._deepspeed)
        statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(self.module)]
        found = operations_per_image(self.model, forward, batch.to(distributed.device()))
        for buffer, before in statistics:  # the pass is no step
            buffer.copy_(before)
        return found

    def backward(self, batch: Batch, ids: GlobalIds | None = None) -> Outcome:
        """Compute the gradients of the global loss, which DeepSpeed holds."""
        ids = ids or self.exchange(batch)
        batch = batch.to(distributed.device())
        if self.teacher is not None:
            batch = self.teacher.teach(batch)
        edges = self._edges(batch, ids.passes)
        if len(edges) == 2:
            self._seed_part(0)
            outcome = outcome_of(self._objective, self._deepspeed, batch, ids)
            self._backward(outcome.to_minimise, is_last=True)
            return outcome
        assert isinstance(self._objective, ContrastiveConfig)
        return cached_backward(
            self._objective, self._deepspeed, self._backward, self._seed_part, batch, ids, edges
        )

    def _edges(self, batch: Batch, passes: int) -> list[int]:
        # Of the micro-batches, at least `passes`: under ZeRO all ranks must make as many.
        config = self._config
        return split(batch, config.micro_batch, config.tokens_per_micro_batch, passes)

    def capture(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """This rank's part of the optimizer state, and on rank 0 the weights by file; on all ranks."""
        state, weights = capture(self._deepspeed, self.module, self._config.zero_stage)
        files: dict[str, dict[str, Tensor]] = {}
        if weights and self._average is not None:  # on rank 0
            # Before the tensors are divided by file: a tied one has names in both.
            weights, trained = self._average.split(weights)
            prefix = self._weight_prefixes[MODEL_FILE]
            files[TRAINED_FILE] = {n.removeprefix(prefix): one for n, one in trained.items()}
        for name, tensor in weights.items():
            # The model's prefix comes first; that of the head is empty and fits all names.
            file, prefix = next(f for f in self._weight_prefixes.items() if name.startswith(f[1]))
            files.setdefault(file, {})[name.removeprefix(prefix)] = tensor
        return state, files

    def restore(self, folder: Path, step: int) -> None:
        """Load what `capture` returned on any number of ranks; on all ranks. UserError: another model's."""
        weights = {prefix: folder / name for name, prefix in self._weight_prefixes.items()}
        # Empty on a rank that does not see the folder: rank 0 alone reads.
        optimizer = sorted(folder.glob(f"{MOMENTS}*.safetensors"))
        trained = {self._weight_prefixes[MODEL_FILE]: folder / TRAINED_FILE}
        averages = {} if self._average is None else self._average.tensors
        stage = self._config.zero_stage
        restore(self._deepspeed, self.module, stage, weights, optimizer, trained, averages)
        self.step_number = step

    def digest(self) -> str:
        """Hexadecimal sha256 of the weights and buffers that this rank trains; on all ranks."""
        return digest(self.module)

    @property
    def _weight_prefixes(self) -> dict[str, str]:
        # File -> prefix that turns its names into names of `module`.
        has_head = self.module is not self.model
        return {MODEL_FILE: "dual_encoder.", HEAD_FILE: ""} if has_head else {MODEL_FILE: ""}

    def full_model(self) -> AbstractContextManager[Any]:
        """A context in which every rank holds the complete `model`, also under ZeRO 3; for all ranks.

        Where an average is kept, the model holds that meanwhile.
        """
        import deepspeed

        if self._average is not None:
            return self._average.in_place()

        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(self.model.parameters()), enabled=self._config.zero_stage == 3
        )
        return gathered

    def _backward(self, local_loss: Tensor, is_last: bool) -> None:
        # Under stages 0 and 1 ranks exchange gradients only at this boundary.
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        if self._gradients is None:
            # ZeRO divides gradients by the number of ranks; the sum of local_loss is what counts.
            self._deepspeed.backward(local_loss * distributed.world_size())
            return
        if is_last:
            self._gradients.begin()
        self._deepspeed.backward(local_loss)
        if is_last:
            self._gradients.finish()

    @torch.no_grad()
    def _update(self) -> Tensor:
        # Clips and steps, unless a gradient is not finite. Returns the norm before clipping.
        if self._config.zero_stage == 0:
            # Of the sums over ranks, so the norm is equal on all of them.
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            grad_norm = torch.nn.utils.get_total_norm(gradients)
            # As a GradScaler tells it: fused AdamW divides by the one, and leaves everything as it was where
            # the other is 1. 1e-6: as in torch's clip_grad_norm_.
            clipped = ((grad_norm + 1e-6) / self._optimizer_config.clip).clamp(min=1)
            self._optimizer.grad_scale = clipped.float()
            self._optimizer.found_inf = (~grad_norm.isfinite()).float()
            self._deepspeed.step()
        else:
            # ZeRO computes the norm inside its step, and skips the step if the norm is not finite.
            self._deepspeed.step()
            grad_norm = self._deepspeed.get_global_grad_norm()
            grad_norm = torch.as_tensor(grad_norm).to(distributed.device(), non_blocking=True)
        for temperature in self._temperatures():
            temperature.clamp_(max=self._max_log_scale)
        return grad_norm

    def _seed_part(self, number: int) -> None:
        # SeedSequence mixes the four: sums or products of them would repeat between steps and ranks.
        key = (self._seed, self.step_number, distributed.rank(), number)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def _temperatures(self) -> list[Tensor]:
        # The logarithmic scale wherever this rank has it, also the optimizer's own copy.
        from deepspeed import utils

        parameter: Any = self.model.logit_scale
        if not parameter.requires_grad:
            return []
        if self._config.zero_stage == 3:
            # ZeRO 3 keeps small parameters complete as well; of others `data` is empty.
            parts = [parameter.ds_tensor, utils.safe_get_local_fp32_param(parameter)]
            return [parameter.data, *parts]
        # None where the parameter lies in another rank's partition.
        mapping = getattr(parameter, "_hp_mapping", None)
        return [parameter.data, *([] if mapping is None else [mapping.get_hp_fragment()])]


def _running_statistics(module: nn.Module) -> list[Tensor]:
    # The buffers that a forward pass changes.
    changing = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
    return [buffer for part in changing if part.training for buffer in part.buffers()]


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise UserError(
                f"engine.micro_batch: `{name}` normalises over the images of a forward pass, so the gradient "
                "would differ; use a network without batch normalisation, freeze it, or remove micro_batch "
                "and tokens_per_micro_batch"
            )


def _import_deepspeed() -> Any:
    import deepspeed
    import deepspeed.ops

    # An operator that DeepSpeed would compile on a CPU, which takes a minute. It speeds up the all-reduce of
    # inference, which training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextmanager
def _local_rank() -> Iterator[None]:
    # DeepSpeed asks for the variable without torchrun too. Left there, it would make accelerate, in the same
    # process, look for a torchrun that does not exist.
    is_alone = "LOCAL_RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        yield
    finally:
        if is_alone:
            del os.environ["LOCAL_RANK"]


def _deepspeed_config(
    config: EngineConfig, optimizer: OptimizerConfig, batch_size: int, uses_bf16: bool
) -> dict[str, Any]:
    # From the run's own fields: there is no second file that could disagree.
    return {
        "train_batch_size": batch_size,
        # Micro-batches are ours (cached.py): to DeepSpeed a step is one batch.
        "gradient_accumulation_steps": 1,
        # Stage 0: ours, with the norm that is computed anyway.
        "gradient_clipping": optimizer.clip if config.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": BUCKET,
            "overlap_comm": distributed.device().type == "cuda",
        },
        # Its timer would wait for the device at both ends of each step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Parameters stay float32: DeepSpeed's own bf16 mode would cast the temperature too.
        "torch_autocast": {
            "enabled": uses_bf16,
            "dtype": "bfloat16",
            # By default ZeRO sends the gradients of linear and convolutional layers in 16 bits.
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31,  # never
    }
