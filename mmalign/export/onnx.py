"""Both towers as ONNX graphs, which ONNX Runtime runs without torch.

    Tower   -> torch.export -> onnx/text_model.onnx -> onnx_graphs.py -> onnx/text_model_int8.onnx
    Encoder -> torch.export -> onnx/vision_model.onnx, preprocessor_config.json
    what loads them         -> onnx/config.json, tokenizer files

    graph           inputs                                                    output, float32
    text_model      input_ids, attention_mask: int64 (batch, sequence)        text_embeds (batch, D),
                                                        last_hidden_state (batch, sequence, F)
    vision_model    pixel_values: float32 (batch, 3, H, W), normalised        image_embeds (batch, D)

Pooling, projection and length are inside. The names are those of transformers.js; the token states are what
sentence-transformers' ONNX backend continues with. Weights beyond 1.8 GB are in a `_data` file beside the
graph.
"""

import copy
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError, one_line
from mmalign.export.onnx_graphs import quantisation_loss, quantised, quiet, write_graph
from mmalign.export.sentence_transformers import write_tokenizer
from mmalign.export.source import Source
from mmalign.export.vision import preprocessor_config
from mmalign.models.encoder import Encoder
from mmalign.models.external.onnx import CONFIG, PREPROCESSOR, TEXT_MODELS, VISION_MODEL
from mmalign.models.text_encoder import TextEncoder, Tokens

OPSET = 18


def write_onnx(source: Source, folder: Path, data: Path | None = None) -> None:
    """Write the graphs, what their inputs are made with, and the measured loss of 8-bit weights.

    Args:
        data: see `quantisation_loss`.

    Raises:
        UserError: the towers cannot be written as ONNX graphs, or a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format onnx: needs the package `{package}`; install `mmalign[export]`"
            )
    tower, encoder = source.tower, source.encoder
    facts: dict[str, Any] = {
        "opset": OPSET,
        "embedding": tower.feature_width,
        "max_length": tower.max_length,
        "pooling": f"{tower.pooling}, inside the graph",
        "unit_length": tower.unit_length,
    }
    (folder / "onnx").mkdir()
    write_tokenizer(tower.tokenizer, tower.max_length, folder)
    _write_text_models(tower, folder)
    if encoder is not None:
        image_tower = encoder.model.image_tower
        facts["image_size"] = image_tower.size
        graph = copy.deepcopy(_ImageGraph(encoder)).cpu()
        inputs = {"pixel_values": torch.zeros(2, 3, image_tower.size, image_tower.size)}
        model = _export(graph, inputs, {"pixel_values": {0: "batch"}}, ["image_embeds"], "image")
        write_graph(model, folder / VISION_MODEL)
        write_json(folder / PREPROCESSOR, preprocessor_config(image_tower))
    # Without this file the graphs cannot be loaded for the measurement, which is then added.
    write_json(folder / CONFIG, facts)
    write_json(folder / CONFIG, {**facts, "int8": quantisation_loss(folder, data=data)})


class _TextGraph(nn.Module):
    def __init__(self, tower: TextEncoder) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        state_NLF = self.tower.states(Tokens(input_ids, attention_mask, None, None))
        return self.tower.feature(state_NLF, attention_mask), state_NLF


class _ImageGraph(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.tower = encoder.model.image_tower
        self.projection = encoder.model.image_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.projection(self.tower(pixel_values)), dim=-1)


def _write_text_models(tower: TextEncoder, folder: Path) -> None:
    # A copy, because the trunk of the caller keeps its attention, its dtype and its device.
    trunk = copy.deepcopy(tower.trunk)
    # Attention in its parts uses operators of the ONNX standard alone. Fused operators of ONNX Runtime, or of
    # a later opset, were not measurably faster, and fewer libraries read them.
    trunk.set_attn_implementation("eager")
    parts = (tower.tokenizer, tower.pooling, copy.deepcopy(tower.projection), tower.unit_length)
    graph = _TextGraph(TextEncoder(trunk, *parts)).float().cpu()
    length, generator = min(8, tower.max_length), torch.Generator().manual_seed(0)
    token_NL = torch.randint(tower.tokenizer.vocabulary, (2, length), generator=generator)
    # Texts of two lengths, so that the trace sees padding.
    length_N1 = torch.tensor([[length], [max(1, length - 1)]])
    mask_NL = (torch.arange(length) < length_N1).to(torch.int64)
    inputs = {"input_ids": token_NL, "attention_mask": mask_NL}
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    model = _export(graph, inputs, axes, ["text_embeds", "last_hidden_state"], "text")
    write_graph(model, folder / TEXT_MODELS["fp32"])
    rows = trunk.get_input_embeddings().weight.shape[0]
    write_graph(quantised(folder / TEXT_MODELS["fp32"], rows), folder / TEXT_MODELS["int8"])


def _export(
    graph: nn.Module, inputs: dict[str, Tensor], axes: dict[str, Any], outputs: list[str], side: str
) -> Any:
    """The graph as an `onnx.ModelProto` that holds its weights, or a UserError if torch cannot trace it."""
    import onnx

    try:
        with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
            program: Any = torch.onnx.export(
                graph.eval(),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=axes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            path = Path(scratch) / "model.onnx"
            # Through a file: a protobuf message in memory ends at 2 GiB, where `save` splits the weights.
            program.save(path)
            return onnx.load(path)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"model.{side}: torch cannot write an ONNX graph ({one_line(error)}); export to another format"
        ) from None
