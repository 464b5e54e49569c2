"""The configuration of one training run. Each section is defined in the module that it configures."""

import hashlib
import json
from typing import Any, Literal, NamedTuple

import pydantic

from mmalign.core.config import Section
from mmalign.data.stream.config import DataConfig
from mmalign.data.tokenizer import TokenizerConfig
from mmalign.models.dual_encoder import ModelConfig
from mmalign.training.checkpoint import CheckpointConfig
from mmalign.training.engine import EngineConfig
from mmalign.training.evaluate import EvaluationConfig
from mmalign.training.non_finite import NonFiniteConfig
from mmalign.training.objective import (
    ContrastiveConfig,
    MaskedLanguageModelConfig,
    ObjectiveConfig,
)
from mmalign.training.optimizer import OptimizerConfig
from mmalign.training.throughput import ProfileConfig


class LogConfig(Section):
    every: int = pydantic.Field(default=10, ge=1)
    """Steps between two records."""
    tensorboard: bool = False
    track: Literal["wandb", "trackio"] | None = None
    """Send the records there too, as the run's `name` in the project `mmalign`; the package must be there."""
    profile: ProfileConfig | None = None
    """A window of steps of which each rank writes a trace: {from_step: 20, steps: 3}."""


class RunConfig(Section):
    """One training run."""

    name: str
    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    steps: int = pydantic.Field(ge=1)
    batch_size: int = pydantic.Field(ge=2)
    """Images of a step, over all ranks."""
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    objective: ObjectiveConfig = ContrastiveConfig(kind="contrastive")
    """Images and captions (contrastive), or captions alone (masked language modelling, the control)."""
    optimizer: OptimizerConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    non_finite: NonFiniteConfig = NonFiniteConfig()
    log: LogConfig = LogConfig()
    evaluation: EvaluationConfig | None = None
    resume_from: str | None = None
    """Run folder whose newest checkpoint, with all state, this run goes on from."""
    init_from: str | None = None
    """What this run's weights start as (see `initialization.py`): a run, a checkpoint, an export, a
    fine-tuned tower, a model of another library. `model` and `tokenizer` must describe what it holds;
    `model.image.image_size` may differ, position embeddings are then interpolated."""
    init_optimizer: bool = False
    """Also take the optimizer's moments of the run that `init_from` names: the next stage of its training, on
    other data or by another schedule."""

    @property
    def sha256(self) -> str:
        tree = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(tree.encode()).hexdigest()

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if self.resume_from and self.init_from:
            raise ValueError("give `resume_from` or `init_from`, not both")
        if self.init_optimizer and not self.init_from:
            raise ValueError(
                "`init_optimizer` needs `init_from`; give the run whose next stage this is"
            )
        if self.batch_size % self.data.groups:
            raise ValueError(
                f"`batch_size` ({self.batch_size}) does not divide by `data.groups` ({self.data.groups}), "
                "each of which supplies an equal part of it; change one of them"
            )
        if self.optimizer.average is not None and self.engine.zero_stage == 3:
            raise ValueError(
                "`optimizer.average` needs complete weights on every rank; set `engine.zero_stage` to 2 "
                "or less"
            )
        # What begins or ends within the run must fit into its steps; a run of one step is a smoke test.
        for name in ("image_from_step", "text_from_step", "cooldown_steps"):
            if getattr(self.optimizer, name) >= self.steps > 1:
                raise ValueError(f"`optimizer.{name}` is not below `steps`; make it smaller")
        if isinstance(self.objective, MaskedLanguageModelConfig):
            if self.model.text.frozen:
                raise ValueError("`model.text.frozen` leaves the objective nothing; remove it")
            for name in (
                "engine.micro_batch",
                "engine.tokens_per_micro_batch",
                "data.shuffle_images",
            ):
                section, _, field = name.partition(".")
                if getattr(getattr(self, section), field):
                    raise ValueError(f"`{name}` is of the contrastive objective; remove it")
        elif max(self.objective.dims, default=0) >= self.model.embedding:
            raise ValueError(
                f"`objective.dims` must be below `model.embedding` ({self.model.embedding}), which is always "
                "trained; lower them"
            )
        elif self.objective.text_text and self.data.captions_per_image < 2:
            raise ValueError(
                "`objective.text_text` compares the captions of one image; set `data.captions_per_image` to "
                "2 or more, or remove it"
            )
        elif self.data.image_features and not self.model.image.frozen:
            raise ValueError(
                "`data.image_features` are of an image tower that stays as it is; set `model.image.frozen`"
            )
        elif self.data.image_features and self._teacher_needs_pixels:
            raise ValueError(
                "`objective.distillation.image_weight` needs pixels, which `data.image_features` leaves out; "
                "give `objective.distillation.image_features` too, or remove one"
            )
        elif (self.objective.loss == "sigmoid") != (self.model.logit_bias is not None):
            raise ValueError(
                "`objective.loss: sigmoid` and `model.logit_bias` (-10) go together: give both or neither"
            )
        return self

    @property
    def _teacher_needs_pixels(self) -> bool:
        taught = getattr(self.objective, "distillation", None)
        return taught is not None and taught.image_weight > 0 and not taught.image_features


# A run goes on with other values of these: they change nothing that it computes, except rounding and the
# random numbers of dropout.
FREE_TO_CHANGE = frozenset(
    {
        "checkpoint",
        "evaluation",
        "log",
        "non_finite",
        "resume_from",
        "init_from",
        "init_optimizer",
        "data.workers",
        "data.prefetch",
        "data.remote",
        "data.image_features",
        "data.max_bad_fraction",
        "engine.zero_stage",
        "engine.micro_batch",
        "engine.tokens_per_micro_batch",
        "engine.checkpoint_activations",
        "engine.compile",
        "engine.hang_seconds",
    }
)
# And of these where the user names them (`mmalign train --change FIELD`): the steps that follow differ from
# those of the run as it was planned. What was changed is kept in its checkpoints.
CHANGED_BY_NAME = ("steps", "optimizer.")


class Change(NamedTuple):
    """A field with two values."""

    field: str  # dotted
    before: Any
    after: Any


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[Change]:
    """The fields in which two resolved configurations are not the same run."""
    found: list[Change] = []
    for name in (*new, *(old.keys() - new.keys())):
        dotted = f"{prefix}{name}"
        if dotted in FREE_TO_CHANGE:
            continue
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{dotted}.")
        elif before != after:
            found.append(Change(dotted, before, after))
    return found
