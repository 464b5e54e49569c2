"""Models of other libraries behind the interface of ours, so that a peer is measured by the same code.

    open_clip              name or folder -+
    sentence-transformers  name or folder -+-> Peer: PIL pictures, texts -> its own calls -> unit length
    transformers           name or folder -+
    a text tower alone     name or folder -+
    ONNX graphs            folder -> onnx_model.py

Pictures are decoded here, under the same limits as for training; from there on everything is the peer's
own: transform, tokenizer, cut of long texts. What a peer makes is only scaled to length 1.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.batching import batched
from mmalign.core.errors import UserError
from mmalign.data.images import decode
from mmalign.data.tokenizer import load_tokenizer
from mmalign.models.encoder import (
    BATCH_SIZE,
    DualModel,
    has_file,
    run_of,
    weights_sha256,
)
from mmalign.models.external.onnx import load_onnx, no_image_tower
from mmalign.models.external.open_clip_folder import load_open_clip_folder
from mmalign.models.text_encoder import TextEncoder, load_text_encoder, saved_text_encoder
from mmalign.models.text_tower import load_trunk

Kind = Literal[
    "run", "open_clip", "sentence-transformers", "transformers", "onnx", "onnx-int8", "tower"
]
_PREFIXES: dict[str, Kind] = {
    "open_clip:": "open_clip",
    "local-dir:": "open_clip",
    "hf-hub:": "open_clip",
    "sentence-transformers:": "sentence-transformers",
    "transformers:": "transformers",
    "onnx:": "onnx",
    "onnx-int8:": "onnx-int8",
}
_FILES: dict[str, Kind] = {
    "tower.json": "tower",
    "open_clip_config.json": "open_clip",
    "modules.json": "sentence-transformers",
    "adapter_config.json": "tower",
    "config.json": "transformers",
    "onnx/text_model.onnx": "onnx",
}
# The processors of these know the one length to which texts are padded; that of SigLIP must be told.
_KNOW_LENGTH = ("align", "siglip2", "tipsv2")


class Peer:
    """A model of another library.

    Attributes:
        facts: `path`, `kind`, `sha256` of the weights, `step` (0): what results say about the model.
        width: D.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        model: nn.Module,
        texts: Callable[[list[str]], Tensor],
        images: Callable[[list[Image.Image]], Tensor] | None,
    ) -> None:
        """Put together a peer.

        Args:
            model: in evaluation mode, float32.
            texts: n texts -> (n, D).
            images: n RGB pictures -> (n, D); None: the model has no image tower.
        """
        self.facts: dict[str, Any] = {
            "path": name,
            "kind": kind,
            "sha256": weights_sha256(model),
            "step": 0,
        }
        self._texts = texts
        self._images = images
        with torch.no_grad():
            self.width = texts(["a"]).shape[1]

    @torch.no_grad()
    def encode_images(self, images: Iterable[bytes], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Encoded pictures (JPEG, PNG, WebP) -> (n, D) float32 of unit length.

        Raises:
            UserError: a picture that cannot be decoded, or a model that has no image tower.
        """
        if self._images is None:
            raise no_image_tower(self.facts["path"])
        rows = [np.zeros((0, self.width), np.float32)]
        for chunk in batched(images, batch_size):
            rows.append(_unit_rows(self._images([_opaque(image) for image in chunk])))
        return np.concatenate(rows)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Texts -> (n, D) float32 of unit length, in the order given."""
        embedding = np.zeros((len(texts), self.width), np.float32)
        # Texts of like length share a batch: little padding, and the order is put back.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for chunk in batched(order, batch_size):
            embedding[chunk] = _unit_rows(self._texts([texts[i] for i in chunk]))
        return embedding


def kind_of(name: str) -> Kind:
    """Which library a model is for: told by its prefix, or by the files in its folder or on the hub.

        tower/tower.json       tower                   a fine-tuning
        config.yaml            run                     (of a checkpoint: in its run folder)
        tower.json             tower                   the text tower of a fine-tuning
        open_clip_config.json  open_clip
        modules.json           sentence-transformers
        adapter_config.json    tower                   a LoRA adapter of peft, with its base
        config.json            transformers
        onnx/text_model.onnx   onnx

    The first that is there counts; where one folder serves several libraries, a prefix chooses:
    `open_clip:`, `sentence-transformers:`, `transformers:`, `onnx:`, `onnx-int8:`.

    Raises:
        UserError: none of them is there.
    """
    for prefix, kind in _PREFIXES.items():
        if name.startswith(prefix):
            return kind
    if saved_text_encoder(Path(name)) is not None:
        return "tower"
    if (run_of(Path(name)) / "config.yaml").is_file():
        return "run"
    for file, kind in _FILES.items():
        if has_file(name, file):
            return kind
    where = "in this folder" if Path(name).is_dir() else "in a folder or on the hub of that name"
    raise UserError(
        f"{name}: no model {where}: it has none of config.yaml (a run), {', '.join(_FILES)}; give a "
        "folder, a hub name or a prefix such as `open_clip:`"
    )


def load_peer(name: str, kind: Kind) -> DualModel:
    """The model of another library, on this rank's device (ONNX graphs: on CPUs).

    Args:
        kind: what `kind_of` says of the name.

    Raises:
        UserError: the library is not installed or cannot load the model.
    """
    load: Callable[[str], DualModel] = {
        "open_clip": _load_open_clip,
        "sentence-transformers": _load_sentence_transformers,
        "transformers": _load_transformers,
        "onnx": _load_onnx,
        "onnx-int8": _load_onnx,
        "tower": _load_tower,
    }[kind]
    try:
        return load(name)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: {kind} cannot load it ({reason})") from None


def _load_open_clip(name: str) -> Peer:
    """A model by open_clip's own name for it, or `open_clip:ARCHITECTURE/WEIGHTS`, or a folder."""
    device = distributed.device()
    folder = Path(name.removeprefix("local-dir:").removeprefix("open_clip:"))
    if folder.is_dir():
        model, preprocess, tokenize = load_open_clip_folder(folder, str(device))
    else:
        model, preprocess, tokenize = _by_open_clip_name(name, device)
    return Peer(
        name,
        "open_clip",
        model,
        lambda texts: model.encode_text(tokenize(texts).to(device)),
        lambda pictures: model.encode_image(
            torch.stack([preprocess(p) for p in pictures]).to(device)
        ),
    )


def _by_open_clip_name(name: str, device: torch.device) -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer; `name` is none of a folder."""
    import open_clip

    architecture, weights = name, None
    if name.startswith("open_clip:"):
        architecture, _, weights = name.removeprefix("open_clip:").partition("/")
        if not weights:
            raise UserError(f"{name}: no weights; write open_clip:ARCHITECTURE/TAG")
    elif not name.startswith(("local-dir:", "hf-hub:")):
        architecture = f"hf-hub:{name}"
    model, preprocess = open_clip.create_model_from_pretrained(
        architecture, weights, precision="fp32", device=device
    )
    return model.eval(), preprocess, open_clip.get_tokenizer(architecture)


def _load_sentence_transformers(name: str) -> Peer:
    """A text encoder, or a model whose modules take pictures as well (CLIP models, Router)."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"{name}: a sentence-transformers model; install `mmalign[export]` to read it"
        ) from None
    path = name.removeprefix("sentence-transformers:")
    model = SentenceTransformer(path, device=str(distributed.device())).float().eval()

    def encode(inputs: list[Any]) -> Tensor:
        rows: Tensor = model.encode(
            inputs, batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False
        )
        return rows

    images = encode if model.supports("image") else None
    return Peer(name, "sentence-transformers", model, encode, images)


def _load_transformers(name: str) -> Peer:
    """A dual encoder (CLIP, SigLIP, Chinese-CLIP, AltCLIP, VisionTextDualEncoder, ...), or a text encoder."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoProcessor

    path = name.removeprefix("transformers:")
    settings = AutoConfig.from_pretrained(path)
    is_known = type(settings) in MODEL_MAPPING
    if not (is_known and hasattr(MODEL_MAPPING[type(settings)], "get_image_features")):
        return _text_peer(name, TextEncoder(load_trunk(path), load_tokenizer(path)))
    device = distributed.device()
    model = AutoModel.from_pretrained(path, dtype=torch.float32).to(device).eval()
    processor = AutoProcessor.from_pretrained(path, **_backend(path))
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise UserError(f"{name}: no processor of texts and pictures; save the model's beside it")
    how = _padding(model, processor.tokenizer)

    def texts(batch: list[str]) -> Tensor:
        inputs = processor(text=batch, return_tensors="pt", **how).to(device)
        return _features(model.get_text_features(**inputs))

    def images(batch: list[Image.Image]) -> Tensor:
        inputs = processor(images=batch, return_tensors="pt").to(device)
        return _features(model.get_image_features(**inputs))

    return Peer(name, "transformers", model, texts, images)


def _backend(path: str) -> dict[str, str]:
    """Pillow, where the model's file names a processor that computes with it; transformers ignores that."""
    from transformers.utils import cached_file

    if not has_file(path, "preprocessor_config.json"):
        return {}
    file = str(cached_file(path, "preprocessor_config.json"))
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    return {"backend": "pil"} if settings.get("image_processor_type", "").endswith("Pil") else {}


def _load_onnx(name: str) -> DualModel:
    precision: Literal["fp32", "int8"] = "int8" if name.startswith("onnx-int8:") else "fp32"
    return load_onnx(name.removeprefix("onnx-int8:").removeprefix("onnx:"), precision)


def _load_tower(name: str) -> Peer:
    """A text encoder alone, as the text tasks see it."""
    return _text_peer(name, load_text_encoder(name))


def _text_peer(name: str, tower: TextEncoder) -> Peer:
    return Peer(name, "tower", tower, lambda texts: torch.from_numpy(tower.encode(texts)), None)


def _padding(model: Any, tokenizer: Any) -> dict[str, Any]:
    """How texts are cut and padded, as keywords of the processor.

    SigLIP (arXiv 2303.15343) reads the state of the last place, and was trained with padding up to it.
    """
    kind = model.config.model_type
    if kind in _KNOW_LENGTH:
        return {"truncation": True}
    padding = "max_length" if kind == "siglip" else True
    return {"padding": padding, "truncation": True, "max_length": _longest(model, tokenizer)}


def _longest(model: Any, tokenizer: Any) -> int:
    """How many tokens the text tower takes: as its tokenizer says, but no more than it has places for."""
    places = model.config.text_config.max_position_embeddings
    # RoBERTa's kin count places from behind the number of their padding token.
    tables = [m for name, m in model.named_modules() if name.endswith(".position_embeddings")]
    offsets = [m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None]
    return int(min(tokenizer.model_max_length, places - max(offsets, default=0)))


def _features(output: Any) -> Tensor:
    """(n, D); transformers 5 returns an output whose pooled state is the feature, 4 the feature itself."""
    rows: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return rows


def _opaque(data: bytes) -> Image.Image:
    """The picture as our own towers see it: what PNG calls transparent is not laid on white once more."""
    image = decode(data)
    image.info.pop("transparency", None)
    return image


def _unit_rows(row_ND: Tensor) -> np.ndarray:
    unit_ND: np.ndarray = F.normalize(row_ND.float(), dim=-1).cpu().numpy()
    return unit_ND
