"""Functions that ranks run in the tests of averages: train, write the files, change them, restore them."""

from pathlib import Path
from typing import Any

import torch
from parity_cases import (
    ENGINE_TOWER,
    IMAGE_TOWERS,
    IMAGES,
    MODEL,
    OBJECTIVES,
    build_model,
    make_batch_for,
    taken,
)
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from torch import Tensor

from mmalign.core import distributed
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.training.average import TRAINED_FILE
from mmalign.training.engine import HEAD_FILE, MODEL_FILE, Engine, EngineConfig
from mmalign.training.optimizer import OptimizerConfig

MASKED = "masked_language_model"
DECAY = 0.5
STEPS, STEPS_MORE = 3, 2
TABLE = "text_tower.trunk.shared.weight"
ALIAS = "text_tower.trunk.encoder.embed_tokens.weight"  # T5's other name of it
WORDS = "text_tower.trunk.embeddings.word_embeddings.weight"  # the decoder's weight is this one
Files = dict[str, dict[str, Tensor]]


def t5_model(seed: int) -> DualEncoder:
    """A dual encoder whose text tower has two names for its embeddings."""
    architecture = {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 2,
        "dropout_rate": 0.0,
    }
    options = IMAGE_TOWERS[ENGINE_TOWER]
    image = {"kind": "timm", "name": ENGINE_TOWER, "image_size": 32, "options": options}
    text = {"architecture": architecture, "max_length": 32}
    config = validate(ModelConfig, {**MODEL, "image": image, "text": text}, "test")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    return build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)


def make_engine(objective: str, stage: int, seed: int, average: float | None = DECAY) -> Engine:
    """Contrastive: with T5's text tower; masked language modelling: with BERT's."""
    config = validate(EngineConfig, {"precision": "fp32", "zero_stage": stage}, "test")
    tree = {"lr": 1e-2, "warmup_steps": 2, "average": average}
    optimizer = validate(OptimizerConfig, tree, "test")
    model = build_model(ENGINE_TOWER, seed) if objective == MASKED else t5_model(seed)
    return Engine(model, OBJECTIVES[objective], config, optimizer, 8, IMAGES, 0.01)


def train(engine: Engine, objective: str, steps: int) -> list[float]:
    first = engine.step_number
    batches = (make_batch_for(objective, step) for step in range(first, first + steps))
    return [metrics["loss"] for metrics in taken(engine, *batches)]


def write(engine: Engine, folder: Path) -> Files:
    """Write the files of a checkpoint into `folder`; those of weights, read again."""
    folder.mkdir(parents=True, exist_ok=True)
    moments, files = engine.capture()
    save_file(moments, folder / f"optimizer-rank{distributed.rank():05d}.safetensors")
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    distributed.gather_objects(None)  # all ranks have written
    names = (MODEL_FILE, HEAD_FILE, TRAINED_FILE)
    return {name: load_file(folder / name) for name in names if (folder / name).is_file()}


def copies(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def run(objective: str, stage: int, folder: Path) -> dict[str, Any]:
    """A run of 3 and then 2 steps, with its weights after each of the first and what evaluation sees."""
    engine = make_engine(objective, stage, seed=0)
    weights = [copies(engine.model.state_dict())]
    for _ in range(STEPS):
        train(engine, objective, 1)
        weights.append(copies(engine.model.state_dict()))
    with engine.full_model():
        measured = copies(engine.model.state_dict())
    files = write(engine, folder)
    losses = train(engine, objective, STEPS_MORE)
    end = write(engine, folder / "end")
    return {"weights": weights, "measured": measured, "files": files, "losses": losses, "end": end}


def resume(
    objective: str, stage: int, source: Path, folder: Path, average: float | None = DECAY
) -> dict[str, Any]:
    """The same from `source` on, in an engine with another seed."""
    engine = make_engine(objective, stage, 1, average)
    engine.restore(source, STEPS)
    files = write(engine, folder)
    losses = train(engine, objective, STEPS_MORE)
    return {"files": files, "losses": losses, "end": write(engine, folder / "end")}


def make_old(source: Path, folder: Path) -> Path:
    """The checkpoint as it was once written: other names of an averaged parameter have trained values."""
    if distributed.is_main():
        folder.mkdir()
        for path in source.glob("*.safetensors"):
            tensors = load_file(path)
            trained = load_file(source / TRAINED_FILE)
            if path.name == MODEL_FILE and ALIAS in tensors:
                tensors[ALIAS] = trained[TABLE].clone()
            if path.name == HEAD_FILE:
                tensors["decoder.weight"] = trained[WORDS].clone()
            save_file(tensors, folder / path.name)
    distributed.gather_objects(None)
    return folder


def refusal(source: Path, folder: Path) -> dict[str, Any]:
    """The error of a checkpoint whose trained weights are another model's, and whether anything changed."""
    if distributed.is_main():
        folder.mkdir()
        for path in source.glob("*.safetensors"):
            tensors = load_file(path)
            if path.name == TRAINED_FILE:
                tensors["other"] = torch.zeros(2)
            save_file(tensors, folder / path.name)
    distributed.gather_objects(None)
    engine = make_engine("contrastive", 0, seed=1)
    before = engine.digest()
    try:
        engine.restore(folder, STEPS)
    except UserError as error:
        return {"error": str(error), "changed": engine.digest() != before}
    return {"error": "", "changed": True}


def everything(folder: Path) -> dict[str, Any]:
    """One start of ranks for all cases."""
    found: dict[str, Any] = {"refusal": {}}
    for objective, stage in (("contrastive", 0), (MASKED, 1)):
        here = folder / objective
        case = {"run": run(objective, stage, here / "run")}
        case["again"] = resume(objective, stage, here / "run", here / "again")
        case["old"] = resume(objective, stage, make_old(here / "run", here / "old"), here / "next")
        for other in (2, 3):
            case[f"no average, stage {other}"] = resume(
                objective, other, here / "run", here / f"no-average-{other}", average=None
            )
        found[objective] = case
    found["refusal"] = refusal(folder / "contrastive/run", folder / "other")
    return found
