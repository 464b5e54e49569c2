"""A run's tensors by parameter name: the same on any number of ranks and under any stage of ZeRO.

    engine on all ranks -> capture -> AdamW's state, each rank writes some of the names; weights, on rank 0
    safetensors files, of any number of ranks -> restore -> the part of each tensor that this rank holds

DeepSpeed's own checkpoints are pickles of flat partitions that fit one number of ranks and one stage. Here
a parameter's state is assembled before it is written (AdamW: arXiv 1711.05101):

    exp_avg/<name>, exp_avg_sq/<name>   float32, shaped like the parameter
    updates/<name>                      int64, shape (): AdamW's steps on this parameter
    <name>                              the weight or buffer itself; the master weight equals it, because
                                        the engine keeps parameters in float32

Where AdamW keeps the state depends on the stage: 0, at the parameter; 1 and 2, at this rank's part of all
parameters of a group, concatenated; 3, at this rank's parts of single parameters, concatenated. In the last
two a parameter has no step count of its own: it has that of its group, which is the highest of its
parameters. Counts differ only where a parameter had no gradient in some steps under stage 0.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.errors import UserError

_MOMENTS = ("exp_avg", "exp_avg_sq")
_UPDATES = "updates"
_FIX = "resume with the model and the objective that wrote it, or start from its weights with init_from"

AdamWState = dict[str, Tensor]


@torch.no_grad()
def capture(
    deepspeed_engine: Any, module: nn.Module, zero_stage: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of all that an engine trains, on the CPU and contiguous; called on all ranks between steps.

    A rank needs memory for what it returns and for one complete parameter, also under ZeRO 3.

    Returns:
        AdamW's state of every world_size-th trainable parameter, starting with the rank's number.
        On rank 0 all tensors of `module.state_dict()`, each with memory of its own (safetensors refuses
        shared memory of tied names); on other ranks nothing.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_optimizer_state

    states = _adamw_states(deepspeed_engine, zero_stage)
    moments: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(_trainable(module)):
        mine = index % distributed.world_size() == distributed.rank()
        for moment in _MOMENTS:
            complete = states[parameter][moment]
            if zero_stage > 0:  # collective: also on the ranks that do not keep the result
                complete = safe_get_full_optimizer_state(parameter, moment)
            if mine:
                moments[f"{moment}/{name}"] = _copy(complete)
        if mine:
            moments[f"{_UPDATES}/{name}"] = torch.tensor(int(states[parameter]["step"]))
    weights: dict[str, Tensor] = {}
    for name, tensor in _weights(module).items():
        with GatheredParameters([tensor]):  # no effect unless ZeRO 3 has split the tensor
            if distributed.is_main():
                weights[name] = _copy(tensor)
    return moments, weights


@torch.no_grad()
def restore(
    deepspeed_engine: Any,
    module: nn.Module,
    zero_stage: int,
    weights_files: Mapping[str, Path],
    state_files: Sequence[Path],
    trained_files: Mapping[str, Path] = MappingProxyType({}),
    averages: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Load what `capture` returned from any engine of the same model; called on all ranks between steps.

    Rank 0 reads every tensor once and sends it to the others, which need no view of the files and end with
    the same numbers.

    Args:
        weights_files: prefix -> file. A name in the file and the prefix before it make the name in
            `module`: `{"": file}` where the file has the module's own names.
        state_files: of all ranks that wrote, in any order.
        trained_files: as `weights_files`, where they exist. `module` takes their tensors instead of those
            of `weights_files`, which are averages of them (`average.py`).
        averages: by names in `module`; filled with the tensors of `weights_files`.

    Raises:
        UserError: a file cannot be read, or a name is missing, unknown or duplicated, or a shape differs.
    """
    own = _weights(module)
    moment_shapes = {
        f"{kind}/{name}": () if kind == _UPDATES else _shape(parameter)
        for name, parameter in _trainable(module)
        for kind in (*_MOMENTS, _UPDATES)
    }
    stored: dict[str, _Stored] = {}  # on rank 0
    trained: dict[str, _Stored] = {}  # on rank 0

    def check() -> dict[str, int]:
        # All headers before the first change. Returns AdamW's steps by parameter.
        weights = _index(weights_files.items())
        moments = _index(("", file) for file in state_files)
        shapes = {n: _shape(t) for n, t in own.items()}
        _check(weights, shapes, list(weights_files.values()))
        _check(moments, moment_shapes, state_files)
        stored.update(weights | moments)
        found = _index((prefix, file) for prefix, file in trained_files.items() if file.is_file())
        _check_shapes(found, shapes)
        trained.update(_under_all_names(found, own))
        return {n: int(stored[f"{_UPDATES}/{n}"].read()) for n, _ in _trainable(module)}

    updates = distributed.on_main(check)
    _restore_weights(own, {**stored, **trained})
    _restore_weights(averages, stored)
    if zero_stage > 0:
        # ZeRO steps master weights of its own, which still hold the values from before.
        deepspeed_engine.optimizer.refresh_fp32_params()
    _restore_moments(
        module, _adamw_states(deepspeed_engine, zero_stage), zero_stage, stored, updates
    )


def _restore_weights(own: Mapping[str, Tensor], stored: Mapping[str, "_Stored"]) -> None:
    from deepspeed.runtime.zero import GatheredParameters

    for name, tensor in own.items():
        with GatheredParameters([tensor], modifier_rank=0):  # sends what ZeRO 3 has split
            if distributed.is_main():
                tensor.copy_(stored[name].read())
            if not _is_split(tensor):
                distributed.broadcast_([tensor])


def _restore_moments(
    module: nn.Module,
    states: dict[nn.Parameter, AdamWState],
    zero_stage: int,
    stored: dict[str, "_Stored"],
    updates: Mapping[str, int],
) -> None:
    for state in states.values():
        state["step"].zero_()
    parameter: Any
    for name, parameter in _trainable(module):
        # A partition takes the highest count of its parameters.
        states[parameter]["step"].clamp_(min=updates[name])
        for moment in _MOMENTS:
            complete = torch.empty(_shape(parameter), device=distributed.device())
            if distributed.is_main():
                complete.copy_(stored[f"{moment}/{name}"].read())
            distributed.broadcast_([complete])
            # Under stages 1 and 2 a parameter may lie completely in another rank's partition.
            if zero_stage not in (1, 2) or parameter._hp_mapping is not None:
                _set_moment(parameter, states[parameter], moment, zero_stage, complete)


@torch.no_grad()
def digest(module: nn.Module) -> str:
    """Hexadecimal sha256 of all weights and buffers between steps; called on all ranks."""
    from deepspeed.runtime.zero import GatheredParameters

    found = hashlib.sha256()
    for name, tensor in _weights(module).items():
        with GatheredParameters([tensor]):
            found.update(name.encode())
            found.update(_copy(tensor).view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _adamw_states(deepspeed_engine: Any, zero_stage: int) -> dict[nn.Parameter, AdamWState]:
    # Parameter -> the state of the tensor that holds it; zeros before the first step.
    states: dict[nn.Parameter, AdamWState] = {}
    zero = deepspeed_engine.optimizer
    adamw = zero if zero_stage == 0 else zero.optimizer
    for tensor, parameters, group in _stepped_tensors(zero, zero_stage):
        state = adamw.state[tensor]
        if not state:  # made as torch.optim.AdamW makes it at a tensor's first step
            on_device = group["fused"] or group["capturable"]
            state["step"] = torch.zeros((), device=tensor.device if on_device else "cpu")
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(tensor, requires_grad=False)
        states |= dict.fromkeys(parameters, state)
    if zero_stage in (1, 2):
        # DeepSpeed links after the step of the first group, when the other groups have no state yet.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    return states


def _stepped_tensors(
    zero: Any, zero_stage: int
) -> Iterator[tuple[Tensor, list[nn.Parameter], dict[str, Any]]]:
    # The tensors that AdamW steps: each with the parameters it is made of, and its parameter group. DeepSpeed
    # has no public name for these (0.19: runtime/zero/stage_1_and_2.py, stage3.py).
    if zero_stage == 0:
        for group in zero.param_groups:
            yield from ((parameter, [parameter], group) for parameter in group["params"])
        return
    groups = zero.optimizer.param_groups
    if zero_stage < 3:
        yield from zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, groups, strict=True)
        return
    for index, tensor in enumerate(zero.fp32_partitioned_groups_flat):
        yield tensor, zero.fp16_groups[index], groups[zero.sub_group_to_group_id[index]]


def _set_moment(
    parameter: Any, state: AdamWState, moment: str, zero_stage: int, complete: Tensor
) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if zero_stage == 0:
        state[moment].copy_(complete)
    elif zero_stage < 3:
        safe_set_full_optimizer_state(parameter, complete, moment)
    else:
        # DeepSpeed's setter of complete tensors fails on those that it had to pad to split them evenly.
        size = parameter.ds_tensor.numel()
        part = complete.flatten()[size * distributed.rank() :][:size]
        padded = F.pad(part, (0, size - part.numel()))
        safe_set_local_optimizer_state(parameter, padded, moment)


def _is_split(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")  # DeepSpeed's mark of ZeRO 3


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in module.named_parameters() if p.requires_grad)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    # Every parameter and persistent buffer, themselves; tied ones under each of their names.
    weights: dict[str, Tensor] = module.state_dict(keep_vars=True)
    return weights


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.ds_shape if _is_split(tensor) else tensor.shape)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


class _Stored(NamedTuple):
    """A tensor in a file, read on demand."""

    file: Path
    handle: Any
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.get_slice(self.key).get_shape())

    def read(self) -> Tensor:
        tensor: Tensor = self.handle.get_tensor(self.key)
        return tensor


def _index(files: Iterable[tuple[str, Path]]) -> dict[str, _Stored]:
    # By prefix and name; only the headers are read.
    stored: dict[str, _Stored] = {}
    for prefix, file in files:
        try:
            handle = safe_open(file, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read as safetensors ({error})") from None
        names: list[str] = handle.keys()
        for key in names:
            if prefix + key in stored:
                other = stored[prefix + key].file
                raise UserError(f"{file}: holds `{key}`, as {other} does; remove the stale file")
            stored[prefix + key] = _Stored(file, handle, key)
    return stored


def _under_all_names(
    stored: Mapping[str, _Stored], own: Mapping[str, Tensor]
) -> dict[str, _Stored]:
    # `trained.safetensors` has one name of a tied weight. Under another one `model.safetensors` holds the
    # average, which would be written after it.
    by_tensor = {id(own[name]): one for name, one in stored.items()}
    return {name: by_tensor[id(one)] for name, one in own.items() if id(one) in by_tensor}


def _check(
    stored: dict[str, _Stored], shapes: dict[str, tuple[int, ...]], files: Sequence[Path]
) -> None:
    # The files must hold exactly the expected tensors.
    _check_shapes(stored, shapes)
    missing = shapes.keys() - stored.keys()
    if missing:
        others = f" and the {len(files) - 1} files beside it" if len(files) > 1 else ""
        raise UserError(f"{files[0]}{others}: `{min(missing)}` is missing; {_FIX}")


def _check_shapes(stored: dict[str, _Stored], shapes: dict[str, tuple[int, ...]]) -> None:
    # The files may hold some of the expected tensors, and no others.
    for name, found in stored.items():
        if name not in shapes:
            problem = f"holds `{found.key}`, which this model does not have"
            raise UserError(f"{found.file}: {problem}; {_FIX}")
        if found.shape != shapes[name]:
            problem = f"`{found.key}` is {list(found.shape)}, in this model {list(shapes[name])}"
            raise UserError(f"{found.file}: {problem}; {_FIX}")
