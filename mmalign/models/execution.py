"""How the towers of a model are run in training: activations kept or recomputed, eager or compiled.

    checkpoint_activations   forward keeps the input of each block; backward runs the block again
    compile_towers           each trunk's forward through torch.compile
    unfuse_attention         the text trunk's attention as plain matrix products

None changes what the model computes, but for rounding, nor the names of its weights.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.module_tracker import ModuleTracker

from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder


def checkpoint_activations(model: DualEncoder) -> None:
    """Keep only the inputs of the blocks of each trunk that trains, in place (arXiv 1604.06174).

    Raises:
        UserError: a trunk that has no blocks to run again.
    """
    # Dropout draws the same masks in both passes: torch's checkpoint restores the random state.
    checkpoints = {"image": _checkpoint_images, "text": _checkpoint_texts}
    for side, checkpoint in checkpoints.items():
        trunk: Any = getattr(model, f"{side}_tower").trunk
        if not any(parameter.requires_grad for parameter in trunk.parameters()):
            continue  # frozen trunks keep no activations anyway
        if not checkpoint(trunk):
            kind = type(trunk).__name__
            raise UserError(
                f"engine.checkpoint_activations: the {side} tower, a `{kind}`, cannot do it; leave it out"
            )
        for module in trunk.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(_move_statistics_once(module.momentum))


def compile_towers(model: DualEncoder) -> None:
    """Compile the forward pass of each trunk, in place; the first calls are slow."""
    # `module.compile()`, not `torch.compile(module)`: names in the state dict stay.
    model.image_tower.trunk.compile()
    # Captions differ in length from batch to batch.
    model.text_tower.trunk.compile(dynamic=True)


def unfuse_attention(model: DualEncoder) -> None:
    """Let the text trunk's attention be plain matrix products, in place, where transformers can choose."""
    # On CPUs in bfloat16 torch's fused attention is slower on captions of few tokens.
    trunk: Any = model.text_tower.trunk
    if getattr(trunk.config, "_attn_implementation", None) == "sdpa":
        trunk.set_attn_implementation("eager")


def _checkpoint_images(trunk: Any) -> bool:
    network = getattr(trunk, "trunk", trunk)  # open_clip's adapter of timm hides a refusal
    try:
        network.set_grad_checkpointing(True)
    except (AssertionError, AttributeError):
        return False
    # Not all networks report a refusal.
    return any(getattr(module, "grad_checkpointing", False) for module in network.modules())


def _checkpoint_texts(trunk: Any) -> bool:
    # Later releases of transformers 5 have the first name and warn at the second.
    enable = getattr(trunk, "activation_checkpointing_enable", None)
    enable = enable or trunk.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError:
        return False
    return True


def _move_statistics_once(momentum: float | None) -> Callable[..., None]:
    tracker = ModuleTracker()

    def before_forward(module: _BatchNorm, _: tuple[Tensor, ...]) -> None:
        recomputes = tracker.is_bw
        # Running statistics would move twice in a step. Those of the batch, by which it is normalised, are
        # computed as in the first pass.
        module.momentum = 0.0 if recomputes else momentum
        if recomputes and module.training and module.num_batches_tracked is not None:
            module.num_batches_tracked -= 1  # the forward pass that follows adds it again

    return before_forward
