"""The map from a pooled state into the shared space: one linear map, or two with a GELU between them.

    nn.Linear                                -+
    nn.Sequential(Linear, GELU, Linear)      -+-> projection.safetensors -> the same
    Dense modules of sentence-transformers   -+

The second form is what open_clip calls `hf_proj_type: mlp`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmalign.core.errors import UserError


def out_features(projection: nn.Module) -> int:
    """D, the width of the output."""
    return [one for one in projection.modules() if isinstance(one, nn.Linear)][-1].out_features


def write_projection(projection: nn.Module, path: Path) -> None:
    """Write the weights: `weight`, or `0.weight` and `2.weight`; biases beside them."""
    # A copy: safetensors refuses tensors that share memory.
    tensors = {
        name: one.detach().cpu().clone().contiguous()
        for name, one in projection.state_dict().items()
    }
    save_file(tensors, path)


def read_projection(path: Path) -> nn.Module | None:
    """What `write_projection` wrote; None: there is no such file."""
    if not path.is_file():
        return None
    weights = load_file(path)
    if "weight" in weights:
        projection: nn.Module = _linear(weights)
    else:
        projection = nn.Sequential(_linear(weights, "0."), nn.GELU(), _linear(weights, "2."))
    projection.load_state_dict(weights)
    return projection


def projection_of(dense: Sequence[Any], path: str) -> nn.Module | None:
    """The projection that Dense modules of sentence-transformers are; None where there are none.

    Args:
        path: of the model, for the message.

    Raises:
        UserError: they have another form.
    """
    activations = [type(one.activation_function) for one in dense]
    forms: tuple[list[type], ...] = ([], [nn.Identity], [nn.GELU, nn.Identity])
    if activations not in forms or any(getattr(one, "use_residual", False) for one in dense):
        names = ", ".join(kind.__name__ for kind in activations)
        raise UserError(
            f"{path}: its Dense modules ({names}) cannot be read here; can be read: one that is linear, "
            "or one with GELU before one that is linear"
        )
    if len(dense) == 2:
        return nn.Sequential(dense[0].linear, dense[0].activation_function, dense[1].linear)
    return dense[0].linear if dense else None


def _linear(weights: dict[str, Tensor], prefix: str = "") -> nn.Linear:
    width_out, width_in = weights[f"{prefix}weight"].shape
    return nn.Linear(width_in, width_out, bias=f"{prefix}bias" in weights)
