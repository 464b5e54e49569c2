"""ONNX graphs as files, the text tower with 8-bit weights among them, and what these weights cost.

onnx.ModelProto      -> without notes -> one file, or a graph and its weights in a `_data` file
onnx/text_model.onnx -> matrix products in 8 bits -> table of tokens in 8 bits -> a graph
both graphs on texts, and on the captions of a data set -> cosines, recall@1 with either
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import embed_set
from mmalign.evaluation.nearest import hits_at
from mmalign.export.probes import probe_texts
from mmalign.models.external.onnx import VISION_MODEL, OnnxModel, load_onnx
from mmalign.results.statistics import drawn_means, percentile_interval

MOST_BYTES = 1_800_000_000  # of weights in one file; a protobuf message ends at 2 GiB


def write_graph(model: Any, path: Path) -> None:
    """Write the graph without the notes of the exporter and the quantiser, and check it."""
    import onnx

    graph = model.graph
    del graph.value_info[:]  # shapes of intermediate values, which every library infers itself
    for part in (model, graph, *graph.input, *graph.output, *graph.node, *graph.initializer):
        # The notes name source files of this machine, and make two exports differ.
        part.ClearField("doc_string")
        del part.metadata_props[:]
    weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    beside = {"save_as_external_data": True, "location": data_file(path).name}
    onnx.save_model(model, path, **(beside if weights > MOST_BYTES else {}))
    onnx.checker.check_model(path)


def data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}_data")


@contextmanager
def quiet() -> Iterator[None]:
    """Without messages of the exporter and the quantiser, and without the log handler that they install."""
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers


def quantised(path: Path, rows: int) -> Any:
    """The graph with 8-bit weights in its matrix products and its table of tokens, which has `rows` rows."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "int8.onnx"
        # Dynamic: activations are quantised while the graph runs.
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # 7 bits of the 8: processors without VNNI add two products in 16 bits, which overflow with all 8,
            # so that the loss would differ between machines.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=data_file(path).is_file(),
        )
        model = onnx.load(out)
    _quantise_token_table(model.graph, rows)
    return model


def _quantise_token_table(graph: Any, rows: int) -> None:
    """Store the token embeddings as int8 with one scale per token, multiplied after the lookup."""
    # ONNX Runtime's own way has one scale for the whole table, by which tokens with small vectors lose most.
    from onnx import TensorProto, helper, numpy_helper

    held = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    lookups = (n for n in graph.node if n.op_type == "Gather" and n.input[0] in held)
    lookup = next(n for n in lookups if held[n.input[0]].dims[0] == rows)
    table = held[lookup.input[0]]
    weight_VF = numpy_helper.to_array(table)
    # A token that is never used may be all zeros: 0 / 1e-12 is still 0.
    scale_V1 = np.maximum(np.abs(weight_VF).max(1, keepdims=True) / 127, np.float32(1e-12))
    byte_VF = np.rint(weight_VF / scale_V1).astype(np.int8)
    bytes_name, scales_name = f"{table.name}_int8", f"{table.name}_scale"
    graph.initializer.remove(table)
    for array, name in ((byte_VF, bytes_name), (scale_V1, scales_name)):
        graph.initializer.append(numpy_helper.from_array(array, name))
    position = list(graph.node).index(lookup)  # nodes stand in the order in which they are computed
    graph.node.remove(lookup)
    token, out = lookup.input[1], lookup.output[0]
    nodes = (
        helper.make_node("Gather", [bytes_name, token], [f"{out}_int8"]),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales_name, token], [f"{out}_scale"]),
        helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [out]),
    )
    for offset, node in enumerate(nodes):
        graph.node.insert(position + offset, node)


def quantisation_loss(folder: Path, data: Path | None = None) -> dict[str, Any]:
    """What 8-bit weights of the text tower cost, measured on the files of an exported folder.

    Args:
        data: a data set of images with captions; not used where the folder has no image tower.

    Returns:
        `cosine` of the two vectors of each probe text and, with `data`, `recall@1` of captions among its
        images, with the difference in paired draws of images (95 % interval, bootstrap).
    """
    fp32, int8 = load_onnx(str(folder)), load_onnx(str(folder), "int8")
    texts = probe_texts(fp32.tokenizer.inner)
    cosine_N = (fp32.encode_texts(texts) * int8.encode_texts(texts)).sum(1)
    loss: dict[str, Any] = {
        "quantised": "matrix products (one scale per column, 7 bits), token embeddings (one scale per token)",
        "cosine": {
            "measured_on": f"{len(texts)} probe texts in many scripts, most of them no captions",
            "mean": round(float(cosine_N.mean()), 5),
            "worst": round(float(cosine_N.min()), 5),
        },
    }
    if data is not None and (folder / VISION_MODEL).is_file():
        loss["recall@1"] = _recall_loss(fp32, int8, ShardSet(data))
    return loss


def _recall_loss(fp32: OnnxModel, int8: OnnxModel, shard_set: ShardSet) -> dict[str, Any]:
    name = f"{shard_set.manifest.name}/{shard_set.manifest.split}"
    embedded = embed_set(fp32, shard_set, name)
    picture_P = np.arange(len(embedded.image_PD))
    texts = (
        embedded.text_MD,
        int8.encode_texts(embedded.texts),
    )  # the images are the same for both
    to_search = (embedded.image_PD, embedded.picture_M, picture_P, (1,))
    hits_2M = np.stack([hits_at(text_MD, *to_search)[1] for text_MD in texts])
    drawn_2R = drawn_means({"all": hits_2M}, {"all": embedded.picture_M}, draws=1000)["all"]
    low, high = percentile_interval(drawn_2R[1] - drawn_2R[0])
    of_fp32, of_int8 = hits_2M.mean(1).tolist()
    return {
        "measured_on": f"{name}: all captions search all images",
        "captions": len(embedded.texts),
        "languages": len(embedded.languages),
        "pictures": len(picture_P),
        "fp32": round(of_fp32, 5),
        "int8": round(of_int8, 5),
        "difference": round(of_int8 - of_fp32, 5),
        "difference_ci95": [round(low, 5), round(high, 5)],
    }
