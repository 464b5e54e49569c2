"""The configuration of one training run. Each section is defined in the module that it configures."""

import hashlib
import json
from typing import Any

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


class LogConfig(Section):
    every: int = pydantic.Field(default=10, ge=1)
    """Steps between two records."""
    tensorboard: bool = False


class RunConfig(Section):
    """One training run."""

    name: str
    seed: int = pydantic.Field(default=0, ge=0)
    steps: int = pydantic.Field(ge=1)
    batch_size: int = pydantic.Field(ge=2)
    """Images of a step, over all ranks."""
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    objective: ObjectiveConfig = ContrastiveConfig(kind="contrastive")
    """What the towers learn from: images and captions (contrastive), or captions alone (masked language
    modelling, the control)."""
    optimizer: OptimizerConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    non_finite: NonFiniteConfig = NonFiniteConfig()
    log: LogConfig = LogConfig()
    evaluation: EvaluationConfig | None = None
    resume_from: str | None = None
    """Run folder whose newest checkpoint, with all state, this run goes on from."""
    init_from: str | None = None
    """What this run's weights start as; optimizer and position in the data start
    from scratch. One of

        runs/a, runs/a/checkpoints/best             a run's newest weights, or one of its checkpoints
        runs/a/export                               an export to open_clip (complete), to
                                                    sentence-transformers-router or transformers (both
                                                    towers), or to sentence-transformers (text side)
        local-dir:FOLDER, hf-hub:OWNER/NAME         a model of open_clip whose text tower is of transformers
        open_clip:ARCHITECTURE/TAG, epoch_3.pt      its released weights; a checkpoint of its trainer
        runs/a/finetune/x, OWNER/NAME               a fine-tuned tower, or any other text encoder

    `model` and `tokenizer` must describe what it holds: an export has its tokenizer with it, which
    `tokenizer: {kind: pretrained, name: FOLDER}` takes. Parts that it does not hold start as `model` says."""

    @property
    def sha256(self) -> str:
        """Of the whole configuration."""
        tree = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(tree.encode()).hexdigest()

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if self.resume_from and self.init_from:
            raise ValueError("give `resume_from` or `init_from`, not both")
        # What begins or ends within the run must fit into its steps; a run of one step is a smoke test.
        for name in ("image_from_step", "text_from_step", "cooldown_steps"):
            if getattr(self.optimizer, name) >= self.steps > 1:
                raise ValueError(
                    f"`optimizer.{name}` is not below `steps` ({self.steps}); make it smaller"
                )
        if isinstance(self.objective, MaskedLanguageModelConfig):
            self._check_masked()
        elif self.data.image_features and not self.model.image.frozen:
            raise ValueError(
                "`data.image_features` are of an image tower that stays as it is, and `model.image.frozen` "
                "is false; set it to true, or remove `image_features`"
            )
        elif (self.objective.loss == "sigmoid") != (self.model.logit_bias is not None):
            raise ValueError(
                "`objective.loss: sigmoid` and `model.logit_bias` go together: give both or neither "
                "(SigLIP starts with -10 and a temperature of 0.1)"
            )
        return self

    def _check_masked(self) -> None:
        if self.model.text.frozen:
            raise ValueError(
                "`model.text.frozen` leaves masked language modelling no tower to train; remove it"
            )
        if self.engine.micro_batch is not None:
            raise ValueError(
                "`engine.micro_batch` is of the contrastive objective; remove it from this run"
            )


# A run may continue with other values of these. They change nothing that it computes, except rounding and the
# random numbers of dropout.
FREE_TO_CHANGE = frozenset(
    {
        "checkpoint",
        "log",
        "resume_from",
        "init_from",
        "data.workers",
        "data.remote",
        "data.image_features",
        "data.max_bad_fraction",
        "engine.zero_stage",
        "engine.micro_batch",
        "engine.checkpoint_activations",
        "engine.compile",
        "engine.hang_seconds",
    }
)


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """The dotted name of the first field in which two resolved configurations are not the same run."""
    for name in (*new, *(old.keys() - new.keys())):
        dotted = f"{prefix}{name}"
        if dotted in FREE_TO_CHANGE:
            continue
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = first_difference(before, after, f"{dotted}.")
            if inner is not None:
                return inner
        elif before != after:
            return dotted
    return None
