"""An exported ONNX folder behind the interface of our own encoders, computed by ONNX Runtime on the CPU.

    texts  -> tokenizer -> sorted by tokens -> onnx/text_model.onnx  -> unit length
    images -> Preprocess -> normalised      -> onnx/vision_model.onnx -> unit length

Pooling and projection are inside the graphs.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmalign.core.batching import length_sorted_batches
from mmalign.core.commit import sha256_of
from mmalign.core.errors import UserError, one_line
from mmalign.data.preprocess import Preprocess
from mmalign.data.tokenizer import load_tokenizer
from mmalign.models.encoder import DualModel, with_tokens

Precision = Literal["fp32", "int8"]
CONFIG = "onnx/config.json"
VISION_MODEL = "onnx/vision_model.onnx"
_OLD_VISION_MODEL = "onnx/image_model.onnx"  # of version 0.1
TEXT_MODELS: dict[Precision, str] = {
    "fp32": "onnx/text_model.onnx",
    "int8": "onnx/text_model_int8.onnx",
}
PREPROCESSOR = "preprocessor_config.json"
_AGAIN = "export or download it again"
# What transformers may need to build a tokenizer, whichever kind it is.
_TOKENIZER_FILES = (
    *("tokenizer*", "config.json", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "vocab*", "merges.txt"),
)


class OnnxModel(DualModel):
    """Both towers, or the text tower alone, in ONNX Runtime; `load_onnx` makes one."""

    precision = "fp32"  # of what runs around the graphs, whose own precision is a fact of the model

    def __init__(self, name: str, folder: Path, precision: Precision) -> None:
        settings = _read_json(folder / CONFIG, "max_length", "embedding")
        present = (name for name in _graph_files(precision) if (folder / name).is_file())
        files = {name: sha256_of(folder / name) for name in present}
        facts = {
            "path": name,
            "kind": "onnx",
            "precision": precision,
            "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            "files": files,
            "step": 0,
        }
        super().__init__(facts, settings["embedding"])
        self.tokenizer = load_tokenizer(folder)
        self._max_length: int = settings["max_length"]
        self._text_graph = open_session(folder / TEXT_MODELS[precision])
        graph = next((name for name in (VISION_MODEL, _OLD_VISION_MODEL) if name in files), None)
        self.takes_images = graph is not None
        if graph is not None:
            self._image_graph = open_session(folder / graph)
            pixels = _read_json(folder / PREPROCESSOR, "size", "image_mean", "image_std")
            self.preprocess = Preprocess(size=int(pixels["size"]["height"]))
            # Images are bytes from 0 to 255, and the mean and the deviation are for values from 0 to 1.
            self._mean_3 = 255 * np.array(pixels["image_mean"], np.float32)
            self._std_3 = 255 * np.array(pixels["image_std"], np.float32)

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        byte_BHWC = np.stack([self.preprocess(image).numpy() for image in images])
        pixel_BHWC = (byte_BHWC.astype(np.float32) - self._mean_3) / self._std_3
        pixel_BCHW = np.ascontiguousarray(pixel_BHWC.transpose(0, 3, 1, 2))
        return _unit_rows(self._image_graph.run(["image_embeds"], {"pixel_values": pixel_BCHW})[0])

    def _encode_in_order(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        embedding = np.zeros((len(texts), self.width), np.float32)
        cut = {"truncation": True, "max_length": self._max_length}
        inner = self.tokenizer.inner
        # The tokenizer takes no empty list.
        ids = inner(with_tokens(texts, inner), **cut)["input_ids"] if texts else []
        # By tokens and not by characters: a character is half a token in one script and two in another.
        for chunk in length_sorted_batches(map(len, ids), batch_size):
            rows = {"input_ids": [ids[i] for i in chunk]}
            inputs = inner.pad(rows, return_attention_mask=True, return_tensors="np")
            embedding[chunk] = self._text_graph.run(["text_embeds"], dict(inputs))[0]
        return _unit_rows(embedding)


def load_onnx(name: str, precision: Precision = "fp32") -> OnnxModel:
    """The model in a folder that `mmalign export --format onnx` wrote, or in such a repository of the hub.

    Args:
        precision: of the text tower; the image tower has one only.

    Raises:
        UserError: no such folder or repository, a missing or damaged file, or no ONNX Runtime.
    """
    folder = Path(name)
    if not folder.is_dir():
        import huggingface_hub

        wanted = [CONFIG, PREPROCESSOR, *_graph_files(precision), *_TOKENIZER_FILES]
        try:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
        # No such repository, no connection, or no name of one.
        except (OSError, ValueError) as error:
            reason = one_line(error)
            raise UserError(f"{name}: neither a folder nor a model on the hub ({reason})") from None
    for file in (CONFIG, TEXT_MODELS[precision]):
        if not (folder / file).is_file():
            raise UserError(f"{name}: has no {file}; give all that `mmalign export` wrote")
    return OnnxModel(name, folder, precision)


def open_session(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, with as many threads as torch has."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: an ONNX graph; install `mmalign[export]` to run it") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # Threads that wait for the next call by spinning would take the cores from tokenizer and torch.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(
            path, options, ["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # the library's errors have no base class of their own
        reason = f"ONNX Runtime cannot read it ({one_line(error)})"
        raise UserError(f"{path}: {reason}; {_AGAIN}") from None


def _graph_files(precision: Precision) -> list[str]:
    # Large graphs have their weights beside them.
    graphs = (TEXT_MODELS[precision], VISION_MODEL, _OLD_VISION_MODEL)
    return [name for graph in graphs for name in (graph, f"{graph}_data")]


def _read_json(path: Path, *fields: str) -> dict[str, Any]:
    try:
        tree = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
    if missing := [name for name in fields if not tree.get(name)]:
        raise UserError(f"{path}: `{missing[0]}` is missing; {_AGAIN}")
    return tree


def _unit_rows(row_ND: np.ndarray) -> np.ndarray:
    length_N1 = np.linalg.norm(row_ND, axis=1, keepdims=True)
    return row_ND / np.maximum(length_N1, np.float32(1e-12))
