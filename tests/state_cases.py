"""Functions that ranks run in the state tests: train, capture, restore elsewhere, capture again, train."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parity_cases import ENGINE_TOWER, IMAGES, OBJECTIVES, build_model, make_batch_for, taken
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.training.engine import Engine, EngineConfig
from mmalign.training.optimizer import OptimizerConfig
from mmalign.training.state import capture, restore

MASKED = "masked_language_model"
# Masked language modelling freezes the image tower; this one has buffers of batch normalisation.
TOWERS = {"contrastive": ENGINE_TOWER, MASKED: "resnet10t"}
STEPS, STEPS_MORE = 3, 2
Tensors = dict[str, Tensor]


def make_engine(objective: str, stage: int, seed: int) -> Engine:
    config = validate(EngineConfig, {"precision": "fp32", "zero_stage": stage}, "test")
    optimizer = validate(OptimizerConfig, {"lr": 1e-3, "warmup_steps": 2}, "test")
    model = build_model(TOWERS[objective], seed)
    return Engine(model, OBJECTIVES[objective], config, optimizer, 8, IMAGES, 0.01)


def train(engine: Engine, objective: str, steps: int) -> list[float]:
    first = engine.step_number
    batches = (make_batch_for(objective, step) for step in range(first, first + steps))
    return [metrics["loss"] for metrics in taken(engine, *batches)]


def write(engine: Engine, stage: int, folder: Path) -> Tensors:
    """Write the captured state of all ranks into `folder`; returns it."""
    moments, weights = capture(engine._deepspeed, engine.module, stage)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(moments, folder / f"optimizer-{distributed.rank()}.safetensors")
    if distributed.is_main():
        save_file(weights, folder / "model.safetensors")
    gathered = distributed.gather_objects((moments, weights))
    assert not any(weights for _, weights in gathered[1:])
    whole = {name: tensor for moments, _ in gathered for name, tensor in moments.items()}
    counts = [len(moments) for moments, _ in gathered]
    assert len(whole) == sum(counts) and max(counts) - min(counts) <= 3
    return {**whole, **gathered[0][1]}


def read(engine: Engine, stage: int, folder: Path, step: int) -> None:
    files = sorted(folder.glob("optimizer-*.safetensors"))
    weights = {"": folder / "model.safetensors"}
    restore(engine._deepspeed, engine.module, stage, weights, files)
    engine.step_number = step


def original(objective: str, stage: int, folder: Path) -> dict[str, Any]:
    """The uninterrupted run: its state after 3 steps, also written to `folder`, and after 5."""
    engine = make_engine(objective, stage, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, buffer in engine.module.named_buffers():
        if "running" in name or "num_batches" in name:
            buffer.copy_(torch.randint(1, 9, buffer.shape, generator=generator))
    train(engine, objective, STEPS)
    state = write(engine, stage, folder)
    losses = train(engine, objective, STEPS_MORE)
    return {"state": state, "losses": losses, "end": write(engine, stage, folder / "end")}


def visit(objective: str, stage: int, source: Path, folder: Path) -> dict[str, Any]:
    """The same, resumed from `source` in an engine with another seed."""
    engine = make_engine(objective, stage, seed=1)
    read(engine, stage, source, STEPS)
    state = write(engine, stage, folder)
    losses = train(engine, objective, STEPS_MORE)
    return {"state": state, "losses": losses, "end": write(engine, stage, folder / "end")}


def chain(objective: str, stages: tuple[int, ...], source: Path, folder: Path) -> dict[int, Any]:
    """Each stage restores what the one before wrote."""
    visits = {}
    for stage in stages:
        target = folder / f"{objective}-{distributed.world_size()}-{stage}"
        visits[stage] = visit(objective, stage, source, target)
        source = target
    return visits


def begin(chains: dict[str, tuple[int, ...]], folder: Path) -> dict[str, Any]:
    """For each objective an original and the chain from it; of the contrastive one, under every stage, an
    original and an equal resume."""
    found: dict[str, Any] = {}
    for objective, stages in chains.items():
        equal = stages if objective == "contrastive" else ()
        sources = {stage: folder / f"{objective}-{stage}" for stage in stages}
        originals = {s: original(objective, s, sources[s]) for s in equal or stages[:1]}
        again = {s: visit(objective, s, sources[s], folder / "again" / str(s)) for s in equal}
        visits = chain(objective, stages[1:], sources[stages[0]], folder)
        found[objective] = {"originals": originals, "again": again, "visits": visits}
    return found


def go_on(chains: dict[str, tuple[int, ...]], sources: dict[str, Path], folder: Path) -> Any:
    return {o: {"visits": chain(o, stages, sources[o], folder)} for o, stages in chains.items()}


def alone(
    chains: dict[str, tuple[int, ...]], sources: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """The part of one rank alone: its stages of the chain, and the cases that do not need several ranks."""
    source = sources["contrastive"]
    return {
        **go_on(chains, sources, folder),
        "before_any_step": {stage: before_any_step(stage, folder / "0") for stage in range(4)},
        "never_updated": {stage: never_updated(stage, source, folder / "n") for stage in (0, 2, 3)},
        "errors": errors(source, folder / "errors"),
    }


def before_any_step(stage: int, folder: Path) -> dict[str, Any]:
    run, other = (make_engine("contrastive", stage, seed) for seed in (0, 1))
    state = write(run, stage, folder)
    read(other, stage, folder, 0)
    losses = [train(engine, "contrastive", STEPS_MORE) for engine in (run, other)]
    ends = [write(engine, stage, folder / "end") for engine in (run, other)]
    return {"state": state, "losses": losses, "ends": ends}


def never_updated(stage: int, source: Path, folder: Path) -> Tensors:
    """A state in which the temperature had no gradient yet; only stage 0 can write it."""
    damage(source, folder, lambda state, _: state["updates/logit_scale"].zero_())
    engine = make_engine("contrastive", stage, seed=1)
    read(engine, stage, folder, STEPS)
    return write(engine, stage, folder / str(stage))


def errors(source: Path, folder: Path) -> dict[str, str]:
    """The errors of `restore` on damaged files, and the names of tensors that it changed."""
    name = "exp_avg/logit_scale"
    damages: dict[str, Callable[[Tensors, Tensors], object]] = {
        "missing": lambda state, _: state.pop(name),
        "unknown": lambda state, _: state.update({"exp_avg/other": torch.zeros(1)}),
        "shape": lambda state, _: state.update({name: torch.zeros(2)}),
        "weight": lambda _, weights: weights.pop("logit_scale"),
        "double": lambda state, _: save_file(
            {name: state[name]}, folder / "double" / "optimizer-9.safetensors"
        ),
    }
    engine = make_engine("contrastive", 0, seed=1)
    before = write(engine, 0, folder / "before")
    messages = {}
    for kind, harm in damages.items():
        damage(source, folder / kind, harm)
        messages[kind] = refusal(engine, folder / kind)
    damage(source, folder / "unreadable", lambda *_: None)
    (folder / "unreadable" / "model.safetensors").write_bytes(b"none")
    messages["unreadable"] = refusal(engine, folder / "unreadable")
    after = write(engine, 0, folder / "after")
    messages["changed"] = ", ".join(n for n in before if not torch.equal(before[n], after[n]))
    return messages


def damage(source: Path, folder: Path, harm: Callable[[Tensors, Tensors], object]) -> None:
    """Copy a state and change one of its files of moments."""
    state: Tensors = {}
    for file in source.glob("optimizer-*.safetensors"):
        state |= load_file(file)
    weights = load_file(source / "model.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    harm(state, weights)
    save_file(state, folder / "optimizer-0.safetensors")
    save_file(weights, folder / "model.safetensors")


def refusal(engine: Engine, folder: Path) -> str:
    try:
        read(engine, 0, folder, STEPS)
    except UserError as error:
        return str(error)
    return "no error"
