"""Both towers as ONNX graphs, which ONNX Runtime computes where there is no torch.

    Tower   -> torch.export -> onnx/text_model.onnx -> onnx_int8.py -> onnx/text_model_int8.onnx
    Encoder -> torch.export -> onnx/image_model.onnx, preprocessor_config.json
    all of them run on probes, compared with the towers -> onnx/config.json, tokenizer files

    graph           inputs                                                    output, float32
    text_model      input_ids, attention_mask: int64 (batch, sequence)        text_embeds (batch, D)
    image_model     pixel_values: float32 (batch, 3, H, W), normalised        image_embeds (batch, D)

Pooling, projection and length are inside. Only operators of the ONNX standard are used, with attention
written out in its parts: fused operators of ONNX Runtime alone, or of a later opset, gained nothing that
could be measured, and fewer libraries read them. Weights beyond 1.8 GB lie beside a graph, in a `_data` file.
"""

import copy
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.export.onnx_files import quiet, write_graph
from mmalign.export.onnx_int8 import quantisation_loss, quantised
from mmalign.export.probes import probe_images, probe_texts
from mmalign.export.source import Source
from mmalign.export.tokenizer import write_tokenizer
from mmalign.export.vision import preprocessor_config
from mmalign.models.encoder import Encoder
from mmalign.models.external.onnx import (
    CONFIG,
    IMAGE_MODEL,
    PREPROCESSOR,
    TEXT_MODELS,
    OnnxModel,
    load_onnx,
    open_session,
)
from mmalign.models.text_encoder import TextEncoder, Tokens

OPSET = 18
TOLERANCE = 1e-5  # of one component of a vector of unit length; rounding stays below 1e-6
_BATCHES = (1, 3, 17)


def write_onnx(source: Source, folder: Path, data: Path | None = None) -> None:
    """Write the graphs, what their inputs are made with, and the measured loss of 8-bit weights.

    Args:
        folder: empty.
        data: a data set of pictures with captions (the test set of the run) on which the loss of 8-bit
            weights is measured as recall; none: it is measured on the probe texts alone.

    Raises:
        UserError: the towers cannot be written as ONNX graphs, ONNX Runtime computes other vectors from
            them, or a package lacks.
    """
    _must_be_installed()
    (folder / "onnx").mkdir()
    write_tokenizer(source.tower.tokenizer, source.tower.max_length, folder)
    _write_text_models(source.tower, folder)
    if source.encoder is not None:
        _write_image_model(source.encoder, folder)
    facts = _facts(source)
    write_json(folder / CONFIG, facts)  # which the graphs are loaded with
    _must_agree(source, load_onnx(str(folder)))
    write_json(folder / CONFIG, {**facts, "int8": quantisation_loss(folder, data=data)})


def _must_be_installed() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format onnx: needs the package `{package}`; install `mmalign[export]`"
            )


class _TextGraph(nn.Module):
    def __init__(self, tower: TextEncoder) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        state_NLF = self.tower.states(Tokens(input_ids, attention_mask, None, None))
        return self.tower.feature(state_NLF, attention_mask)


class _ImageGraph(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.tower = encoder.model.image_tower
        self.projection = encoder.model.image_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.projection(self.tower(pixel_values)), dim=-1)


def _write_text_models(tower: TextEncoder, folder: Path) -> None:
    trunk = copy.deepcopy(tower.trunk)
    trunk.set_attn_implementation("eager")
    parts = (tower.tokenizer, tower.pooling, copy.deepcopy(tower.projection), tower.unit_length)
    graph = _TextGraph(TextEncoder(trunk, *parts)).float().cpu()
    axes = {0: "batch", 1: "sequence"}
    token_NL, mask_NL = _tokens(2, min(8, tower.max_length), tower.tokenizer.vocabulary)
    inputs = {"input_ids": token_NL, "attention_mask": mask_NL}
    model = _export(graph, inputs, dict.fromkeys(inputs, axes), "text_embeds", "text")
    write_graph(model, folder / TEXT_MODELS["fp32"])
    rows = trunk.get_input_embeddings().weight.shape[0]
    write_graph(quantised(folder / TEXT_MODELS["fp32"], rows), folder / TEXT_MODELS["int8"])


def _write_image_model(encoder: Encoder, folder: Path) -> None:
    tower = encoder.model.image_tower
    graph = copy.deepcopy(_ImageGraph(encoder)).cpu().eval()
    inputs = {"pixel_values": torch.zeros(2, 3, tower.size, tower.size)}
    model = _export(graph, inputs, {"pixel_values": {0: "batch"}}, "image_embeds", "image")
    write_graph(model, folder / IMAGE_MODEL)
    write_json(folder / PREPROCESSOR, preprocessor_config(tower))


def _export(
    graph: nn.Module, inputs: dict[str, Tensor], axes: dict[str, Any], output: str, side: str
) -> Any:
    """The graph as an `onnx.ModelProto` that holds its weights.

    Raises:
        UserError: torch cannot trace it, or not with these axes.
    """
    import onnx

    try:
        with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
            program: Any = torch.onnx.export(
                graph.eval(),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=axes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            path = Path(scratch) / "model.onnx"
            program.save(path)  # which knows what to do with weights beyond 2 GiB
            return onnx.load(path)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.{side}: torch cannot write this tower as an ONNX graph ({reason}); export it to "
            "another format"
        ) from None


def _facts(source: Source) -> dict[str, Any]:
    tower = source.tower
    facts = {
        "opset": OPSET,
        "embedding": tower.feature_width,
        "max_length": tower.max_length,
        "pooling": f"{tower.pooling}, inside the graph",
        "unit_length": tower.unit_length,
    }
    images = {} if source.encoder is None else {"image_size": source.encoder.model.image_tower.size}
    return {**facts, **images}


@torch.no_grad()
def _must_agree(source: Source, model: OnnxModel) -> None:
    """Stop where ONNX Runtime computes something else than the towers do."""
    tower, texts = source.tower, probe_texts()
    ours_ND = F.normalize(torch.from_numpy(tower.encode(texts)), dim=-1).numpy()
    of_texts = float(np.abs(model.encode_texts(texts, max(_BATCHES)) - ours_ND).max())
    session = open_session(Path(model.facts["path"]) / TEXT_MODELS["fp32"])
    for length in sorted({1, min(5, tower.max_length), tower.max_length}):
        for size in _BATCHES:
            of_texts = max(of_texts, _difference_on_tokens(tower, session, size, length))
    _refuse_beyond("text", of_texts)
    if source.encoder is not None:
        pictures = probe_images()
        ours_BD = source.encoder.encode_images(pictures)
        for size in _BATCHES:
            theirs_BD = model.encode_images(pictures[:size], size)
            _refuse_beyond("image", float(np.abs(theirs_BD - ours_BD[:size]).max()))
        theirs_BD = model.encode_images(pictures)
        _refuse_beyond("image", float(np.abs(theirs_BD - ours_BD).max()))


def _difference_on_tokens(tower: TextEncoder, session: Any, size: int, length: int) -> float:
    """Largest difference of a component, relative to the largest one where that is beyond 1."""
    token_NL, mask_NL = _tokens(size, length, tower.tokenizer.vocabulary)
    inputs = {"input_ids": token_NL.numpy(), "attention_mask": mask_NL.numpy()}
    theirs_ND = session.run(["text_embeds"], inputs)[0]
    tokens = Tokens(token_NL.to(tower.device), mask_NL.to(tower.device), None, None)
    ours_ND = tower.feature(tower.states(tokens), tokens.mask_NL).float().cpu().numpy()
    return float(np.abs(theirs_ND - ours_ND).max() / max(1.0, np.abs(ours_ND).max()))


def _tokens(size: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Random tokens of several lengths, padded: ids and mask, (size, length) int64."""
    generator = torch.Generator().manual_seed(0)
    token_NL = torch.randint(vocabulary, (size, length), generator=generator)
    length_N1 = (length - torch.arange(size) % 4).clamp(min=1).unsqueeze(1)
    return token_NL, (torch.arange(length) < length_N1).to(torch.int64)


def _refuse_beyond(side: str, difference: float) -> None:
    if not difference <= TOLERANCE:
        raise UserError(
            f"model.{side}: ONNX Runtime computes other vectors from this tower (off by "
            f"{difference:.1g}); export it to another format"
        )
