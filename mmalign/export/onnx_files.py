"""ONNX graphs as files, and the tools that make them kept silent.

onnx.ModelProto -> without notes -> one file, or a graph with its weights beside it, in a `_data` file
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_BYTES = 1_800_000_000  # of weights in one file; a protobuf message ends at 2 GiB


def write_graph(model: Any, path: Path) -> None:
    """Write the graph without what the tools noted in it, their source paths above all, and check it."""
    import onnx

    _strip(model)
    weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    beside = {"save_as_external_data": True, "location": data_file(path).name}
    onnx.save_model(model, path, **(beside if weights > MOST_BYTES else {}))
    onnx.checker.check_model(path)


def _strip(model: Any) -> None:
    graph = model.graph
    del graph.value_info[:]  # shapes in between, which every library works out for itself
    for part in (model, graph, *graph.input, *graph.output, *graph.node, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]


def data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}_data")


@contextmanager
def quiet() -> Iterator[None]:
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
