"""An exported ONNX folder behind the interface of our own encoders, computed by ONNX Runtime on the CPU.

    texts  -> tokenizer -> sorted by tokens -> onnx/text_model.onnx  -> unit length
    images -> Preprocess -> normalised      -> onnx/image_model.onnx -> unit length

    onnx/config.json            longest text in tokens, width of the space
    preprocessor_config.json    size, mean and standard deviation of images; where there is an image tower

Pooling and projection are inside the graphs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmalign.core.batching import length_sorted_batches
from mmalign.core.commit import sha256_of
from mmalign.core.errors import UserError, one_line
from mmalign.data.preprocess import Preprocess
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.models.encoder import BATCH_SIZE, DualModel

Precision = Literal["fp32", "int8"]
CONFIG = "onnx/config.json"
IMAGE_MODEL = "onnx/image_model.onnx"
TEXT_MODELS: dict[Precision, str] = {
    "fp32": "onnx/text_model.onnx",
    "int8": "onnx/text_model_int8.onnx",
}
PREPROCESSOR = "preprocessor_config.json"
_JSON_NAMES = {int: "number", dict: "object", list: "array"}
# What transformers may need to build a tokenizer, whichever kind it is.
_TOKENIZER_FILES = (
    *("tokenizer*", "config.json", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "vocab*", "merges.txt"),
)


class OnnxModel(DualModel):
    """Both towers, or the text tower alone, in ONNX Runtime.

    Attributes:
        facts: `path`, `kind`, `precision` of the text tower, `sha256` over the graphs, `files` with the
            sha256 of each, `step` (0): what results say about the model.
    """

    def __init__(self, name: str, folder: Path, precision: Precision) -> None:
        """Open the graphs; use `load_onnx`, which finds the folder."""
        settings = _read_json(folder / CONFIG, {"max_length": int, "embedding": int})
        files = _graph_files(folder, precision)
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
        self.takes_images = (folder / IMAGE_MODEL).is_file()
        if self.takes_images:
            self._image_graph = open_session(folder / IMAGE_MODEL)
            fields = {"size": dict, "image_mean": list, "image_std": list}
            preparation = _read_json(folder / PREPROCESSOR, fields)
            self.preprocess = Preprocess(size=int(preparation["size"]["height"]))
            # Images are bytes from 0 to 255, and the mean and the deviation are for values from 0 to 1.
            self._mean_3 = 255 * np.array(preparation["image_mean"], np.float32)
            self._std_3 = 255 * np.array(preparation["image_std"], np.float32)

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        byte_BHWC = np.stack([self.preprocess(image).numpy() for image in images])
        pixel_BHWC = (byte_BHWC.astype(np.float32) - self._mean_3) / self._std_3
        pixel_BCHW = np.ascontiguousarray(pixel_BHWC.transpose(0, 3, 1, 2))
        return _unit_rows(self._image_graph.run(["image_embeds"], {"pixel_values": pixel_BCHW})[0])

    def encode_texts(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Texts -> (n, D) float32 of unit length, in the order given."""
        embedding = np.zeros((len(texts), self.width), np.float32)
        cut = {"truncation": True, "max_length": self._max_length}
        # The tokenizer takes no empty list.
        ids = self.tokenizer.inner(list(texts), **cut)["input_ids"] if texts else []
        # By tokens and not by characters: a character is half a token in one script and two in another.
        for chunk in length_sorted_batches(map(len, ids), batch_size):
            inputs = _padded(self.tokenizer, [ids[i] for i in chunk])
            embedding[chunk] = self._text_graph.run(["text_embeds"], inputs)[0]
        return _unit_rows(embedding)


def _padded(tokenizer: Tokenizer, ids: list[list[int]]) -> dict[str, np.ndarray]:
    """Sequences as the graph's inputs, (N, L) int64 each, padded on the tokenizer's side."""
    longest = max(map(len, ids))
    sign = 1 if tokenizer.inner.padding_side == "right" else -1
    mask_NL = np.array([([1] * len(row) + [0] * (longest - len(row)))[::sign] for row in ids])
    token_NL = np.full(mask_NL.shape, tokenizer.padding_id)
    token_NL[mask_NL == 1] = np.concatenate(ids)
    return {"input_ids": token_NL, "attention_mask": mask_NL}


def load_onnx(name: str, precision: Precision = "fp32") -> OnnxModel:
    """The model in a folder that `mmalign export --format onnx` wrote, or in such a repository of the hub.

    Args:
        precision: which text tower: float32 weights, or 8-bit ones; the image tower has one only.

    Raises:
        UserError: no such folder or repository, a missing or damaged file, or no ONNX Runtime.
    """
    folder = Path(name) if Path(name).is_dir() else _from_hub(name, precision)
    for file in (CONFIG, TEXT_MODELS[precision]):
        if not (folder / file).is_file():
            raise UserError(
                f"{name}: has no {file}; give the complete folder that `mmalign export --format onnx` wrote"
            )
    return OnnxModel(name, folder, precision)


def open_session(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, with as many threads as torch has.

    Raises:
        UserError: ONNX Runtime is not installed or cannot read the file.
    """
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
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # the library's errors have no base class of their own
        raise UserError(
            f"{path}: ONNX Runtime cannot read it ({one_line(error)}); export or download it again"
        ) from None


def _from_hub(name: str, precision: Precision) -> Path:
    """A local copy of the files that one precision needs."""
    import huggingface_hub

    graphs = (TEXT_MODELS[precision], IMAGE_MODEL)
    wanted = [CONFIG, PREPROCESSOR, *graphs, *(f"{graph}_data" for graph in graphs)]
    try:
        copy = huggingface_hub.snapshot_download(name, allow_patterns=[*wanted, *_TOKENIZER_FILES])
    except (OSError, ValueError) as error:  # no such repository, no connection, or no name of one
        raise UserError(
            f"{name}: neither a folder nor a model on the hub ({one_line(error)})"
        ) from None
    return Path(copy)


def _graph_files(folder: Path, precision: Precision) -> dict[str, str]:
    """sha256 of each file that the graphs' weights lie in, by its name."""
    graphs = (TEXT_MODELS[precision], IMAGE_MODEL)
    names = (name for graph in graphs for name in (graph, f"{graph}_data"))
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def _read_json(path: Path, fields: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object that has these fields, each of its type."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); export or download it again") from None
    for name, kind in fields.items():
        if not isinstance(tree, dict) or not isinstance(tree.get(name), kind):
            raise UserError(
                f"{path}: `{name}` is missing or not a JSON {_JSON_NAMES[kind]}; export or download it again"
            )
    return dict(tree)


def _unit_rows(row_ND: np.ndarray) -> np.ndarray:
    length_N1 = np.linalg.norm(row_ND, axis=1, keepdims=True)
    return row_ND / np.maximum(length_N1, np.float32(1e-12))
