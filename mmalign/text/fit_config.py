"""What a fit trains, and how: the fields of a fine-tuning YAML that training depends on."""

from typing import Literal

from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.precision import Precision, choose_precision
from mmalign.models.lora import LoraConfig
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.heads.features import Pairs
from mmalign.text.robust.method import AugmentConfig, MethodConfig, PlainConfig


class FitConfig(Section):
    """What is trained, and how."""

    trainable: Literal["head", "lora", "all"] = "head"
    """head: on a fixed tower; lora: low-rank adapters in the trunk as well; all: the entire tower as well."""
    lora: LoraConfig = LoraConfig()
    """Only with `trainable: lora`."""
    frozen_layers: int | None = Field(default=None, ge=0)
    """Keep the word embeddings and so many of the first blocks as they are; none: not even the embeddings."""
    precision: Precision = "auto"
    """Of the encoder. auto: in training bf16 on GPUs from Ampere on and CPUs with AMX, in measuring on these
    GPUs alone, else fp32; bf16: its matrix products in bfloat16 (autocast). Weights, head and loss stay
    float32, and so does a fixed encoder (`trainable: head`)."""
    pairs: Pairs = "joint"
    """How the head sees two texts: read as one sequence, or each alone in the tower's space."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of the head's hidden layer; none: a linear head."""
    epochs: int = Field(ge=1)
    repeats: int = Field(default=1, ge=1)
    """Times that an epoch goes through the training rows: as many steps as RS-DA with so many copies."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of a step, those of all ranks together."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Rows of a batch that go through the encoder of a rank at once; gradients add up to the batch's."""
    max_length: int | None = Field(default=None, ge=8)
    """Where sequences are cut, in tokens; none: where the tower cuts them."""
    class_weights: Literal["balanced"] | None = None
    """balanced: a row's loss times rows / (classes x rows of its class), in classification."""
    group_by_length: bool = True
    """Batches of examples of like length, for little padding. In every epoch the examples are shuffled and
    sorted within groups of 50 batches, and the batches are shuffled."""
    lr: float = Field(default=2e-5, gt=0)
    """Peak learning rate of the tower, or of its adapters; unused with `trainable: head`."""
    head_lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate of the head."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of `lr` from each block to the one below (arXiv 1905.05583); embeddings are below the first."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's; matrices only, not biases and norms."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it then falls linearly to zero."""
    checks: int = Field(default=1, ge=1)
    """Checks on dev per epoch; the weights kept are those of the best one, without dev the last."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many checks in a row that are not better; none: never."""
    oracle: bool = False
    """Also report, for each language, the outcome at the best check of its own dev examples."""
    augment: AugmentConfig | None = None
    """What is done to the training texts; none: nothing."""
    method: MethodConfig = PlainConfig(kind="plain")
    """How a batch's gradient is made."""
    causality: CausalityConfig | None = None
    """Graph and contrast of event_causality; none: its defaults, and with any other kind of task."""


def precision_of(config: FitConfig) -> Literal["fp32", "bf16"]:
    """What the encoder computes in while it trains. A fixed one is only read, which float32 is for."""
    return "fp32" if config.trainable == "head" else choose_precision(config.precision)
