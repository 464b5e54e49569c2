"""The memory of a model, measured without allocating it: parameters, and bytes alive during a step.

    config -> model on torch's meta device (shapes, no numbers) -> parameters of each part
           -> the same with fake tensors -> forward and backward -> most bytes alive at once

Nothing is loaded and nothing is computed. A fake tensor (`torch._subclasses.fake_tensor`, used by
torch.compile) has a shape, a dtype and a storage without bytes. Every operation of the step runs on them, and
the sizes of the storages that are created and freed are summed.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import TokenizerConfig
from mmalign.models.dual_encoder import (
    DualEncoder,
    ModelConfig,
    add_adapters,
    build_dual_encoder,
)
from mmalign.models.execution import checkpoint_activations
from mmalign.models.image_tower import without_origin
from mmalign.training.objective import MaskedLanguageModelConfig, ObjectiveConfig, trained_module


class Part(NamedTuple):
    """Parameters of a part of the model, by whether they train."""

    name: str
    trainable: int
    frozen: int


def build_on_meta(
    model: ModelConfig, tokenizer: TokenizerConfig, objective: ObjectiveConfig
) -> tuple[DualEncoder, nn.Module]:
    """The model that the configuration describes and the module that trains, on the meta device.

    Raises:
        UserError: the architecture of a tower is only known to the hub.
    """
    vocabulary, padding_id = _vocabulary(model, tokenizer)
    if ":" in (name := model.image.name):
        raise UserError(
            f"model.image.name: only the hub knows `{name}`; to plan a run, give timm's or open_clip's name"
        )
    architecture = {**(model.text.architecture or {}), "vocab_size": vocabulary}
    text = model.text.model_copy(update={"pretrained": None, "architecture": architecture})
    untrained = model.model_copy(update={"image": without_origin(model.image), "text": text})
    with torch.device("meta"):
        dual_encoder = build_dual_encoder(untrained, vocabulary, padding_id)
        add_adapters(dual_encoder, model, seed=0)
        return dual_encoder, trained_module(objective, dual_encoder)


def _vocabulary(model: ModelConfig, tokenizer: TokenizerConfig) -> tuple[int, int]:
    # Rows of the text tower's embedding, and the padding id among them.
    architecture = model.text.architecture
    if architecture is None:
        raise UserError(
            f"model.text.architecture: only the hub knows `{model.text.pretrained}`; to plan the run, give "
            "its `model_type`, `vocab_size` and sizes"
        )
    if "vocab_size" in architecture:
        # What `tokenizer.keep` leaves is known when the captions are read; at most as many rows.
        rows = architecture["vocab_size"] + (tokenizer.grow or 0)
        return rows, architecture.get("pad_token_id", 0)
    if tokenizer.kind == "trained":
        return tokenizer.vocabulary, 0
    raise UserError(
        f"model.text.architecture.vocab_size: only the hub knows `{tokenizer.name}`; give it to plan the run"
    )


def parts_of(module: nn.Module) -> list[Part]:
    """Parameters of each tower, and of everything else (projections, temperature, head)."""
    counts = {"image tower": [0, 0], "text tower": [0, 0], "other": [0, 0]}
    for name, parameter in module.named_parameters():
        inside = [part for part in counts if part.replace(" ", "_") in name.split(".")]
        count = counts[inside[0] if inside else "other"]
        count[not parameter.requires_grad] += parameter.numel()
    return [Part(name, trains, frozen) for name, (trains, frozen) in counts.items()]


def live_bytes(
    model: DualEncoder,
    module: nn.Module,
    objective: ObjectiveConfig,
    images: int,
    captions: int,
    tokens: int,
    is_bf16: bool,
    checkpoints: bool,
    reads_features: bool = False,
) -> int:
    """Peak bytes of a forward and backward pass, without weights and gradients.

    Args:
        model, module: from `build_on_meta`; left with fake tensors for parameters.
        images, captions, tokens: of one forward pass of one rank; `tokens` of the longest caption.
        checkpoints: whether the towers keep only the inputs of their blocks.
        reads_features: whether batches hold image features, so that the image tower computes nothing.
    """
    # Counted: the tensors that autograd saves, the 16-bit copies of weights that autocast keeps, and the
    # temporary tensors of operations.
    live = _LiveBytes()
    # On the CPU: a machine without a GPU cannot run a backward pass on fake tensors of one.
    with FakeTensorMode(allow_non_fake_inputs=True), _fused_attention():
        _take_fake_tensors(module.train())
        if checkpoints:
            checkpoint_activations(model)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(live.hand_over)
        # Before `live` counts: the batch is a row of its own in the table.
        token_NL = torch.ones(captions, tokens, dtype=torch.int64)
        mask_NL = torch.ones_like(token_NL)
        shape = (images, *image_shape(model, reads_features))
        inputs: tuple[Any, ...]
        if isinstance(objective, MaskedLanguageModelConfig):
            # Complete captions in place of single tokens: as many tokens, and a shape that does not depend
            # on data.
            predicted = math.ceil(captions * objective.share)
            inputs = (token_NL, mask_NL, torch.arange(predicted))
        elif reads_features:
            inputs = (None, token_NL, mask_NL, (), torch.empty(shape, dtype=torch.float16))
        else:
            inputs = (torch.empty(shape, dtype=torch.uint8), token_NL, mask_NL)
        with live:
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                scalar = _sum_of_outputs(module, *inputs)
            scalar.backward()
    return live.most


def image_shape(model: DualEncoder, reads_features: bool) -> tuple[int, ...]:
    """The shape of one image in a batch: its feature, or its pixels."""
    tower = model.image_tower
    return (tower.width,) if reads_features else (3, tower.size, tower.size)


def _take_fake_tensors(module: nn.Module) -> None:
    fake: dict[Tensor, Tensor] = {}  # parameters that are shared stay shared
    for part in module.modules():
        for name, old in part.named_parameters(recurse=False):
            if old not in fake:
                empty = torch.empty_like(old, device="cpu")
                fake[old] = nn.Parameter(empty, requires_grad=old.requires_grad)
            setattr(part, name, fake[old])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty_like(buffer, device="cpu"))


def _sum_of_outputs(module: nn.Module, first: Tensor | None, *others: Any) -> Any:
    if first is not None and first.ndim == 4:  # pixels; a step copies them as well (objective.py)
        first = first.contiguous(memory_format=torch.channels_last)
    outputs = module(first, *others)
    if isinstance(outputs, Tensor):
        return outputs.sum()
    return outputs.image_BD.sum() + outputs.text_ND.sum()


class _LiveBytes(TorchDispatchMode):
    """Sums the storages that operations create, until they are freed or become gradients."""

    def __init__(self) -> None:
        super().__init__()
        self._most = 0
        self._alive = 0
        # Alive after the latest operation, whose result may be a gradient that is still to be taken out.
        self._latest = 0
        self._bytes_of: dict[int, int] = {}

    @property
    def most(self) -> int:
        return max(self._most, self._latest)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # By address: views share a storage, which is counted once.
        storages = [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor)]
        new = {s._cdata: s for s in storages if s._cdata not in self._bytes_of}
        if new:
            self._most = self.most
            for address, storage in new.items():
                self._bytes_of[address] = storage.nbytes()
                self._alive += storage.nbytes()
                # Runs when the last tensor on it is freed, also those that autograd saved.
                weakref.finalize(storage, self._forget, address)
            self._latest = self._alive
        return result

    def hand_over(self, parameter: Tensor) -> None:
        # A parameter's gradient is counted elsewhere.
        assert parameter.grad is not None
        self._latest -= self._forget(parameter.grad.untyped_storage()._cdata)
        parameter.grad = None

    def _forget(self, address: int) -> int:
        size = self._bytes_of.pop(address, 0)
        self._alive -= size
        return size


@contextmanager
def _fused_attention() -> Iterator[None]:
    # Torch's attention, without dropout on its probabilities. GPU kernels draw that dropout inside and keep
    # no tokens x tokens matrix; torch on a CPU has no such kernel and would keep several.
    real = nn.functional.scaled_dot_product_attention

    def without_dropout(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0, **options: Any
    ) -> Tensor:
        return real(query, key, value, attn_mask, **options)

    nn.functional.scaled_dot_product_attention = without_dropout  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = real
