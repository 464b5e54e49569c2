"""Our weights under open_clip's names, and open_clip's under ours.

    ours                                    open_clip's (3.3.0, a text tower of transformers)
    image_tower.trunk.* (timm)              visual.trunk.*
    image_projection.weight (timm)          visual.head.proj.weight   (in exports to transformers as well)
    image_tower.trunk.* (open_clip)         visual.*, whose last linear map holds our projection as well
    text_tower.trunk.*                      text.transformer.*        (of T5 models the encoder stack)
    text_projection.weight, .0, .2          text.proj.weight, .0, .2
    logit_scale, logit_bias (1,)            logit_scale, logit_bias ()

A network of open_clip ends in a linear map of its own, and ours has one more behind it. On the way out the
two become one; on the way back one becomes two that compute the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder
from mmalign.models.encoder import on_host

State = dict[str, Tensor]
# Where the networks of open_clip end in a linear map (rows are outputs).
_LAST_LINEAR = ("attnpool.c_proj", "head.proj")
_TEXT, _PROJECTION = "text.transformer.", "text.proj."
_SCORES = ("logit_scale", "logit_bias")  # one number each, of shape () in open_clip and (1,) here
_EXACT = 1e-5  # relative; what rounding leaves of a map whose rank the model can hold


def to_open_clip(model: DualEncoder) -> State:
    """All weights under open_clip's names, on the host, each in memory of its own."""
    scores = {"logit_scale": model.logit_scale, "logit_bias": model.logit_bias}
    return on_host(
        {
            **_image_out(model),
            **text_weights(model.text_tower.trunk, model.text_projection),
            **{name: one.reshape(()) for name, one in scores.items() if one is not None},
        }
    )


def text_weights(trunk: Any, projection: nn.Module | None) -> State:
    """A text tower of transformers and the projection behind it, under open_clip's names."""
    stack, weights = _stack(trunk).state_dict(), projection.state_dict() if projection else {}
    # The zeros that exports write for an unused pooler have no place in open_clip's model.
    kept = {name: tensor for name, tensor in stack.items() if not name.startswith("pooler.")}
    return {**_prefixed(_TEXT, kept), **_prefixed(_PROJECTION, weights)}


def timm_wrapper_weights(name: str, model: Any, projection: nn.Linear) -> State:
    """An image tower of transformers and the projection behind it, under open_clip's names.

    Raises:
        UserError: the tower is none of timm's; `name` is that of the model, for the message.
    """
    if not hasattr(model, "timm_model"):
        raise UserError(
            f"init_from: the image tower of {name} is a {type(model).__name__} of transformers, whose names "
            "are not read here; give the run, or its export to open_clip"
        )
    return _timm_weights(model.timm_model, projection.weight.detach())


def from_open_clip(state: State, model: DualEncoder) -> State:
    """The weights of open_clip under our names, so that the model computes what open_clip's did.

    Args:
        state: as open_clip's `state_dict` gives it.
        model: what will take them. Weights that open_clip's model has not (the bias of scores, the part of an
            image tower's width that the folded map does not fill) stay as they are there.

    Returns:
        Our names. Weights without a counterpart in the model keep open_clip's name, and missing ones are left
        out: the caller compares names and shapes with the model's.
    """
    parts: dict[str, State] = {"visual.": {}, _TEXT: {}, _PROJECTION: {}, "": {}}
    for name, tensor in state.items():
        prefix = next(one for one in parts if name.startswith(one))
        parts[prefix][name.removeprefix(prefix)] = tensor
    # The width of open_clip's tower is that of the space where nothing stands between.
    projection = parts[_PROJECTION] or {"weight": torch.eye(model.text_tower.width)}
    named = {
        **_image_in(parts["visual."], model),
        **_text_in(parts[_TEXT], model),
        **_prefixed("text_projection.", projection),
        **({} if model.logit_bias is None else {"logit_bias": model.logit_bias.detach()}),
        **{n: t.reshape(1) if n in _SCORES else t for n, t in parts[""].items()},
    }
    if model.logit_bias is None:
        named.pop("logit_bias", None)  # a constant on all scores, which a softmax does not see
    return named


def _is_of_open_clip(trunk: Any) -> bool:
    """Whether an image tower's trunk is a network of open_clip and not of timm."""
    return type(trunk).__module__.startswith("open_clip.")


def _stack(trunk: Any) -> Any:
    """The encoder stack, as open_clip takes it out of a T5 model; T5's encoder class wraps it."""
    return trunk.encoder if type(trunk).__name__.endswith("EncoderModel") else trunk


def _timm_weights(network: nn.Module, weight_DF: Tensor) -> State:
    trunk = _prefixed("visual.trunk.", network.state_dict())
    return {**trunk, "visual.head.proj.weight": weight_DF}


def _image_out(model: DualEncoder) -> State:
    weight_DF, trunk = model.image_projection.weight.detach(), model.image_tower.trunk
    if not _is_of_open_clip(trunk):
        return _timm_weights(trunk, weight_DF)
    state = trunk.state_dict()
    if names := _last_map(state):
        # One map for its last one and our projection; in float64, so that nothing is lost between them.
        map_DK = weight_DF.double() @ _map_of(names, state).double()
        return _prefixed("visual.", {**state, **_as_last_map(names, map_DK.to(weight_DF))})
    return _prefixed("visual.", {**state, "head.proj.weight": weight_DF})


def _image_in(state: State, model: DualEncoder) -> State:
    trunk = model.image_tower.trunk
    own = trunk.state_dict()
    # A network of timm is open_clip's `trunk`, with a map of open_clip's behind it.
    names, prefix = (_last_map(own), "") if _is_of_open_clip(trunk) else ((), "trunk.")
    found: State = {}
    if names and all(name in state for name in names):
        maps = unfolded(_map_of(names, state), _map_of(names, own))
        state = {**state, **_as_last_map(names, maps[0])}
        found["image_projection.weight"] = maps[1]
    for name, tensor in state.items():
        if name == "head.proj.weight" and not names:
            found["image_projection.weight"] = tensor
        elif name.startswith(prefix):
            found[f"image_tower.trunk.{name.removeprefix(prefix)}"] = tensor
        else:
            found[f"visual.{name}"] = tensor
    return found


def unfolded(map_DK: Tensor, own_FK: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps whose product is the given one: (F, K) of the network's own shape, and (D, F) behind it.

    Where the network is wide enough, the map becomes its first D outputs; the others keep the values of
    `own_FK`, and the projection gives them no weight until training does. Where it is narrower than the
    space, the map is factored (which is exact if it came from such a network).

    Returns:
        Both; maps that do not fit together come back as they are, with a projection of no width.
    """
    (space, inputs), (width, own_inputs) = map_DK.shape, own_FK.shape
    if inputs != own_inputs:
        return map_DK, torch.zeros(space, 0)
    if width >= space:
        filled_FK = torch.cat([map_DK, own_FK[space:].to(map_DK)])
        return filled_FK, torch.eye(space, width, dtype=map_DK.dtype)
    left_DR, values_R, right_RK = torch.linalg.svd(map_DK.double(), full_matrices=False)
    if values_R[width:].norm() > _EXACT * values_R.norm():
        return map_DK, torch.zeros(space, 0)
    root_F = values_R[:width].sqrt()
    weight_DF, map_FK = left_DR[:, :width] * root_F, root_F[:, None] * right_RK[:width]
    return map_FK.to(map_DK), weight_DF.to(map_DK)


def _last_map(state: State) -> tuple[str, ...]:
    """Names of the weight and the bias of a network's last linear map; empty if it has none."""
    if "proj" in state:
        return ("proj",)
    last = next((name for name in _LAST_LINEAR if f"{name}.weight" in state), None)
    return tuple(n for n in (f"{last}.weight", f"{last}.bias") if n in state)


def _map_of(names: tuple[str, ...], state: State) -> Tensor:
    """(outputs, inputs); a bias is the input that is always 1, in the last column."""
    if names == ("proj",):  # its vision transformer keeps the map transposed
        return state["proj"].T
    columns = [state[name].reshape(len(state[name]), -1) for name in names]
    return torch.cat(columns, dim=1)


def _as_last_map(names: tuple[str, ...], map_DK: Tensor) -> State:
    if names == ("proj",):
        return {"proj": map_DK.T}
    if len(names) == 1:
        return {names[0]: map_DK}
    return {names[0]: map_DK[:, :-1], names[1]: map_DK[:, -1]}


def _text_in(state: State, model: DualEncoder) -> State:
    trunk = model.text_tower.trunk
    is_wrapped = _stack(trunk) is not trunk
    # Older versions of transformers kept the numbers of positions among the weights.
    state = {name: t for name, t in state.items() if not name.endswith("position_ids")}
    placed = _prefixed("text_tower.trunk." + ("encoder." if is_wrapped else ""), state)
    if is_wrapped and "embed_tokens.weight" in state:
        placed["text_tower.trunk.shared.weight"] = state["embed_tokens.weight"]
    return placed


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
