"""A model as evaluation sees it: pictures and texts in, unit-length vectors out.

    run folder (config.yaml, tokenizer/, checkpoints/) -> Encoder -+-> DualModel: encode_images, encode_texts
    a model of another library (peers.py)              -> Peer    -+

A run's newest checkpoint whose files verify is taken. Nothing here asks other ranks: `embed.py` deals out
the work. Gradients are off by `no_grad` and not by `inference_mode`: under ZeRO 3 a call gathers weights, and
training could not go on with tensors that were made in inference mode.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from mmalign.core import distributed
from mmalign.core.batching import batched
from mmalign.core.commit import newest_folder, verify
from mmalign.core.config import read_yaml, validate
from mmalign.core.errors import UserError
from mmalign.data.preprocess import Preprocess, stack_images
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder

T = TypeVar("T")
BATCH_SIZE = 256  # pictures or texts that a tower sees at a time


class DualModel(Protocol):
    """Whatever can be measured. The vectors of one model lie in one space of D dimensions.

    Attributes:
        facts: `path`, `sha256` of the weights, `step`, and whatever else tells which model it was.
    """

    facts: dict[str, Any]

    def encode_images(self, images: Iterable[bytes], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Encoded pictures (JPEG, PNG, WebP) -> (n, D) float32 of unit length.

        Raises:
            UserError: a picture that cannot be decoded, or a model that has no image tower.
        """
        ...

    def encode_texts(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Texts -> (n, D) float32 of unit length, in the order given."""
        ...


class Encoder:
    """A dual encoder with its tokenizer and its preprocessing.

    Attributes:
        model: in evaluation mode, float32, on this rank's device.
        facts: `path`, `sha256` of the weights, `step`: what results say about the model.
    """

    def __init__(
        self,
        model: DualEncoder,
        config: ModelConfig,
        tokenizer: Tokenizer,
        facts: dict[str, Any],
    ) -> None:
        self.device = distributed.device()
        self.model = model.to(self.device).eval()
        self.config = config
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(size=model.image_tower.size)
        self.facts = facts

    @torch.no_grad()
    def encode_images(self, images: Iterable[bytes], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Encoded pictures (JPEG, PNG, WebP) -> (n, D) float32 of unit length."""
        rows = [np.zeros((0, self.config.embedding), np.float32)]
        for chunk in batched(images, batch_size):
            image_BCHW = stack_images([self.preprocess(image) for image in chunk])
            image_BCHW = image_BCHW.to(self.device)
            rows.append(self.model.encode_image(image_BCHW).cpu().numpy())
        return np.concatenate(rows)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Texts -> (n, D) float32 of unit length, in the order given."""
        embedding = np.zeros((len(texts), self.config.embedding), np.float32)
        # Texts of like length share a batch: little padding, and the order is put back.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for chunk in batched(order, batch_size):
            token_NL, mask_NL = self.tokenizer(
                [texts[i] for i in chunk], self.config.text.max_length
            )
            rows_ND = self.model.encode_text(token_NL.to(self.device), mask_NL.to(self.device))
            embedding[list(chunk)] = rows_ND.cpu().numpy()
        return embedding


def load_model(name: str) -> DualModel:
    """Any model that can be measured.

    Args:
        name: one of

            runs/demo, runs/demo/checkpoints/best       a run, or one of its checkpoints
            runs/demo/export                            a folder of any library that is named below
            open_clip:ViT-B-32/laion2b_s34b_b79k        open_clip: architecture / weights (a tag or a file)
            local-dir:FOLDER, hf-hub:OWNER/NAME         open_clip's own names
            sentence-transformers:NAME                  sentence-transformers, by folder or hub name
            transformers:NAME                           transformers, where a folder serves several libraries
            onnx:NAME, onnx-int8:NAME                   the ONNX graphs of an export, in float32 or int8
            OWNER/NAME                                  the hub, whichever library its files are for

    Raises:
        UserError: nothing there that can be loaded; the sentence says what was looked for.
    """
    from mmalign.models.external import peers  # which needs this module

    kind = peers.kind_of(name)
    return load_encoder(Path(name)) if kind == "run" else peers.load_peer(name, kind)


def load_encoder(path: Path, untrained: bool = False) -> Encoder:
    """The model of a run folder.

    Args:
        path: the folder, or one of its checkpoints (`RUN/checkpoints/best`).
        untrained: the run's model as it was before its first step (same seed, same tokenizer): the
            baseline that tells what training did.

    Raises:
        UserError: no run there, no checkpoint that verifies, or weights of another model.
    """
    run = run_of(path)
    config_path = run / "config.yaml"
    if not config_path.is_file():
        raise UserError(f"{path}: not a run folder, it has no config.yaml")
    tree = read_yaml(config_path)
    config = validate(ModelConfig, tree.get("model"), f"{config_path}, section `model`")
    tokenizer = load_tokenizer(run / "tokenizer")
    torch.manual_seed(int(tree["seed"]))
    model = build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)
    facts: dict[str, Any] = {"path": str(path), "step": 0}
    if not untrained:
        folder, info = newest_folder(path / "checkpoints") if path == run else (path, verify(path))
        load_weights(model, folder / "model.safetensors")
        facts["step"] = info["step"]
    facts["sha256"] = weights_sha256(model)
    return Encoder(model, config, tokenizer, facts)


def run_of(path: Path) -> Path:
    """The run folder that a path means: itself, or the one whose `checkpoints` it lies in."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the tensors of a safetensors file into the model.

    Raises:
        UserError: the file belongs to another model.
    """
    tensors = load_file(path)
    wanted = model.state_dict()
    differing = sorted(
        name
        for name in wanted.keys() | tensors.keys()
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape
    )
    if differing:
        raise UserError(
            f"{path}: a checkpoint of another model: `{differing[0]}` differs (and "
            f"{len(differing) - 1} more); use the configuration that it was trained with"
        )
    model.load_state_dict(tensors)


def weights_sha256(model: nn.Module) -> str:
    """Hexadecimal sha256 over names and bytes of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def has_file(name: str, file: str) -> bool:
    """Whether the file is in the folder or the hub's repository of that name."""
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    from transformers.utils import cached_file

    try:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such repository, or nothing that could be a name of one
        return False
    return found is not None
