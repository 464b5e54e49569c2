"""Both towers as ONNX graphs, which ONNX Runtime computes where there is no torch.

    Tower   -> torch.export -> onnx/text_model.onnx  -> 8-bit weights -> onnx/text_model_int8.onnx
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
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.commit import write_json
from mmalign.data.reader import ShardSet
from mmalign.errors import UserError
from mmalign.evaluation.comparison.paired import drawn_means, interval_and_p
from mmalign.evaluation.embed import embed_set
from mmalign.evaluation.encoder import Encoder
from mmalign.evaluation.index import hits_at
from mmalign.evaluation.onnx_model import (
    CONFIG,
    IMAGE_MODEL,
    PREPROCESSOR,
    TEXT_MODELS,
    OnnxModel,
    load_onnx,
    open_session,
)
from mmalign.evaluation.tower import Tokens, Tower
from mmalign.export.probes import probe_images, probe_texts
from mmalign.export.source import Source
from mmalign.export.tokenizer import write_tokenizer
from mmalign.export.vision import preprocessor_config

OPSET = 18
TOLERANCE = 1e-5  # of one component of a vector of unit length; rounding stays below 1e-6
MOST_BYTES = 1_800_000_000  # of weights in one file; a protobuf message ends at 2 GiB
QUANTISED = ("MatMul", "Gemm")
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


def quantisation_loss(
    folder: Path, texts: Sequence[str] | None = None, data: Path | None = None
) -> dict[str, Any]:
    """What 8-bit weights of the text tower cost, measured on the files of an exported folder.

    Args:
        texts: none: the package's probe texts.
        data: a data set of pictures with captions; left out where the folder has no image tower.

    Returns:
        `cosine`: of each text's two vectors, mean and worst. With `data`, `recall@1`: of captions searching
        all pictures of the set, whose vectors are the same for both, with the difference in paired draws
        of pictures (95 % interval, bootstrap).
    """
    fp32, int8 = load_onnx(str(folder)), load_onnx(str(folder), "int8")
    chosen = probe_texts() if texts is None else list(texts)
    cosine_N = (fp32.encode_texts(chosen) * int8.encode_texts(chosen)).sum(1)
    what = "probe texts in many scripts, most of them no captions" if texts is None else "texts"
    loss: dict[str, Any] = {
        "quantised": "matrix products (a scale a column, 7 bits) and token embeddings (a scale a token)",
        "cosine": {
            "measured_on": f"{len(chosen)} {what}",
            "mean": round(float(cosine_N.mean()), 5),
            "worst": round(float(cosine_N.min()), 5),
        },
    }
    if data is not None and (folder / IMAGE_MODEL).is_file():
        loss["recall@1"] = _recall_loss(fp32, int8, ShardSet(data))
    return loss


def _recall_loss(fp32: OnnxModel, int8: OnnxModel, shard_set: ShardSet) -> dict[str, Any]:
    """Recall@1 of all captions of the set among its pictures, with either text tower."""
    name = f"{shard_set.manifest.name}/{shard_set.manifest.split}"
    embedded = embed_set(fp32, shard_set, name)
    picture_P = np.arange(len(embedded.image_PD))
    hits_2M = np.stack(
        [
            hits_at(text_MD, embedded.image_PD, embedded.picture_M, picture_P, (1,))[1]
            for text_MD in (embedded.text_MD, int8.encode_texts(embedded.texts))
        ]
    )
    drawn_2R = drawn_means({"all": hits_2M}, {"all": embedded.picture_M}, draws=1000)["all"]
    (low, high), _ = interval_and_p(drawn_2R[1] - drawn_2R[0])
    of_fp32, of_int8 = hits_2M.mean(1).tolist()
    return {
        "measured_on": f"{name}: all captions search all pictures",
        "captions": len(embedded.texts),
        "languages": len(embedded.languages),
        "pictures": len(picture_P),
        "fp32": round(of_fp32, 5),
        "int8": round(of_int8, 5),
        "difference": round(of_int8 - of_fp32, 5),
        "difference_ci95": [round(low, 5), round(high, 5)],
    }


def _must_be_installed() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format onnx: needs the package `{package}`; install `mmalign[export]`"
            )


class _TextGraph(nn.Module):
    def __init__(self, tower: Tower) -> None:
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


def _write_text_models(tower: Tower, folder: Path) -> None:
    trunk = copy.deepcopy(tower.trunk)
    trunk.set_attn_implementation("eager")
    parts = (tower.tokenizer, tower.pooling, copy.deepcopy(tower.projection), tower.unit_length)
    graph = _TextGraph(Tower(trunk, *parts)).float().cpu()
    axes = {0: "batch", 1: "sequence"}
    token_NL, mask_NL = _tokens(2, min(8, tower.max_length), tower.tokenizer.vocabulary)
    inputs = {"input_ids": token_NL, "attention_mask": mask_NL}
    model = _export(graph, inputs, dict.fromkeys(inputs, axes), "text_embeds", "text")
    _write(model, folder / TEXT_MODELS["fp32"])
    rows = trunk.get_input_embeddings().weight.shape[0]
    _write(_quantised(folder / TEXT_MODELS["fp32"], rows), folder / TEXT_MODELS["int8"])


def _write_image_model(encoder: Encoder, folder: Path) -> None:
    tower = encoder.model.image_tower
    graph = copy.deepcopy(_ImageGraph(encoder)).cpu().eval()
    inputs = {"pixel_values": torch.zeros(2, 3, tower.size, tower.size)}
    model = _export(graph, inputs, {"pixel_values": {0: "batch"}}, "image_embeds", "image")
    _write(model, folder / IMAGE_MODEL)
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
        with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
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


def _quantised(path: Path, rows: int) -> Any:
    """The graph with 8-bit weights in its matrix products and its table of tokens.

    A scale a column, and 7 bits of the 8 used: processors without VNNI add two products in 16 bits, which
    overflow with all 8, so that the loss would differ from machine to machine. What is multiplied with the
    weights is rounded as it comes (dynamic quantisation).

    Args:
        rows: of the table of tokens.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "int8.onnx"
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_data_file(path).is_file(),
        )
        model = onnx.load(out)
    _quantise_token_table(model.graph, rows)
    return model


def _quantise_token_table(graph: Any, rows: int) -> None:
    """Keep the token embeddings as int8 with a scale a token, multiplied after a row is looked up.

    The table is most of a multilingual encoder. ONNX Runtime's own way has one scale for the whole of it, by
    which tokens with small vectors lose most.
    """
    from onnx import TensorProto, helper, numpy_helper

    held = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    lookups = (n for n in graph.node if n.op_type == "Gather" and n.input[0] in held)
    lookup = next(n for n in lookups if held[n.input[0]].dims[0] == rows)
    table = held[lookup.input[0]]
    weight_VF = numpy_helper.to_array(table)
    scale_V1 = np.maximum(np.abs(weight_VF).max(1, keepdims=True) / 127, np.float32(1e-12))
    byte_VF = np.rint(weight_VF / scale_V1).astype(np.int8)
    bytes_name, scales_name = f"{table.name}_int8", f"{table.name}_scale"
    graph.initializer.remove(table)
    graph.initializer.extend(
        [
            numpy_helper.from_array(byte_VF, bytes_name),
            numpy_helper.from_array(scale_V1, scales_name),
        ]
    )
    place = list(graph.node).index(lookup)
    graph.node.remove(lookup)
    token, out = lookup.input[1], lookup.output[0]
    nodes = (
        helper.make_node("Gather", [bytes_name, token], [f"{out}_int8"]),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales_name, token], [f"{out}_scale"]),
        helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [out]),
    )
    for offset, node in enumerate(nodes):
        graph.node.insert(place + offset, node)


def _write(model: Any, path: Path) -> None:
    """Write the graph without what the tools noted in it, their source paths above all, and check it."""
    import onnx

    _strip(model)
    weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    beside = {"save_as_external_data": True, "location": _data_file(path).name}
    onnx.save_model(model, path, **(beside if weights > MOST_BYTES else {}))
    onnx.checker.check_model(path)


def _strip(model: Any) -> None:
    graph = model.graph
    del graph.value_info[:]  # shapes in between, which every library works out for itself
    for part in (model, graph, *graph.input, *graph.output, *graph.node, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]


def _data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}_data")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the quantiser's words, and without the handler that those leave behind."""
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers


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


def _difference_on_tokens(tower: Tower, session: Any, size: int, length: int) -> float:
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
