"""A model as evaluation sees it: encoded images and texts in, vectors of unit length out.

    run folder (config.yaml, towers.json, tokenizer/, checkpoints/) -> load_encoder -> Encoder, a DualModel

    encoded images -> decoded here -> another library's own transform and tower -+-> ExternalModel
    texts          ->                 its own tokenizer and tower               -+

`external/` makes these; `load.py` finds out which kind a name means.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.batching import batched, encode_sorted
from mmalign.core.commit import newest_folder, verify
from mmalign.core.config import read_yaml, validate
from mmalign.core.errors import UserError
from mmalign.core.precision import Precision, inference, precision_note
from mmalign.data.images import decode
from mmalign.data.preprocess import Preprocess, stack_images
from mmalign.data.tokenizer import Tokenizer, check_texts, load_tokenizer
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder, plain_weights
from mmalign.models.prompts import NO_PROMPTS, Side
from mmalign.models.run_towers import build_run
from mmalign.models.stored_run import CHECKPOINTS, MOMENTS
from mmalign.models.text_tower import longest_text
from mmalign.models.vocabulary import adapt_vocabulary, tokenizer_of

BATCH_SIZE = 256  # images or texts that a tower sees at a time
T = TypeVar("T")


class DualModel:
    """Whatever can be measured. The vectors of one model lie in one space.

    A subclass encodes one batch (`_encode_images`, `_encode_texts`).

    Attributes:
        facts: `path`, `sha256` of the weights, `step`, and whatever else says which model it was.
        width: D, the width of the space.
        takes_images: whether there is an image tower.
        cut: for the protocol, where texts are cut for want of positions; empty: nowhere (see `longest_text`).
        prompts: what `encode_texts` puts before the texts.
        precision: what the towers compute in (see `inference_precision`).
    """

    precision: Precision = "auto"
    takes_images = True
    cut = ""
    prompts = NO_PROMPTS

    def __init__(self, facts: dict[str, Any], width: int) -> None:
        self.facts = facts
        self.width = width

    @property
    def note(self) -> str:
        """For the protocol: where texts are cut, the prompts, the precision."""
        return self.cut + self.prompts.words + precision_note(self.precision)

    def encode_images(self, images: Iterable[bytes], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Encoded images (JPEG, PNG, WebP) -> (n, D) float32 of unit length.

        Raises:
            UserError: an image that cannot be decoded, a model that has no image tower, or whose vectors are
                not finite.
        """
        self._refuse_images()
        # An empty start: there may be no images.
        rows = [np.zeros((0, self.width), np.float32)]
        with inference(self.precision):
            rows += [self._encode_images(chunk) for chunk in batched(as_list(images), batch_size)]
        return finite(np.concatenate(rows), self.facts)

    def encode_pixels(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, RGB, of any size -> (B, D) float32 of unit length, on the same device.

        Raises:
            UserError: a model that has no image tower.
        """
        self._refuse_images()
        with inference(self.precision):
            parts = [self._encode_pixels(part) for part in image_BCHW.split(BATCH_SIZE)]
        return torch.cat(parts).to(image_BCHW.device)

    def _refuse_images(self) -> None:
        # If there is no image tower.
        if not self.takes_images:
            name = self.facts["path"]
            raise UserError(
                f"{name}: a text encoder without an image tower; measure it with `measures: [alignment]`"
            )

    def encode_texts(
        self, texts: Sequence[str], batch_size: int = BATCH_SIZE, side: Side | None = "query"
    ) -> np.ndarray:
        """Texts -> (n, D) float32 of unit length, in the order given; UserError: they are not finite.

        Args:
            side: whose prompt is put before each text; None: no prompt.
        """
        check_texts(as_list(texts))
        prompted = self.prompts.add(texts, side)
        with inference(self.precision):
            return finite(self._encode_in_order(prompted, batch_size), self.facts)

    def _encode_in_order(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        return encode_sorted(self._encode_texts, texts, batch_size, self.width)

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        raise NotImplementedError

    def _encode_pixels(self, image_BCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError


class Encoder(DualModel):
    """A dual encoder with its tokenizer and its preprocessing.

    Attributes:
        model: in evaluation mode, float32, on this rank's device.
        max_length: where texts are cut, in tokens.
    """

    def __init__(
        self, model: DualEncoder, config: ModelConfig, tokenizer: Tokenizer, facts: dict[str, Any]
    ) -> None:
        super().__init__(facts, config.embedding)
        self.device = distributed.device()
        self.model = model.to(self.device).eval()
        self.config = config
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(size=model.image_tower.size)
        asked = config.text.max_length
        self.max_length, self.cut = longest_text(model.text_tower.trunk, asked)

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        image_BCHW = stack_images([self.preprocess(image) for image in images])
        return self._encode_pixels(image_BCHW).cpu().numpy()

    def _encode_pixels(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW, size = image_BCHW.to(self.device), self.preprocess.size
        if image_BCHW.shape[-2:] != (size, size):
            # In float32: GPUs do not resize bytes. Bicubic overshoots.
            seen = F.interpolate(image_BCHW.float(), (size, size), mode="bicubic", antialias=True)
            image_BCHW = seen.round().clamp(0, 255).byte()
        return self.model.encode_image(image_BCHW).float()

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        texts = with_tokens(texts, self.tokenizer.inner)
        token_NL, mask_NL = self.tokenizer(texts, self.max_length)
        rows_ND = self.model.encode_text(token_NL.to(self.device), mask_NL.to(self.device))
        return rows_ND.cpu().numpy()


class ExternalModel(DualModel):
    """A model of another library, measured by the same code; its facts also have `kind`, the library.

    Images are decoded under the same limits as in training. From there on everything is the library's own:
    the transform, the tokenizer, where long texts are cut.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        model: nn.Module,
        texts: Callable[[list[str]], Tensor],
        images: Callable[[list[Image.Image]], Tensor] | None = None,
        tokenizer: Any = None,
    ) -> None:
        """`model` is in evaluation mode and float32; `images` None: it has no image tower.

        `tokenizer`: of transformers, if `texts` uses one.
        """
        with torch.no_grad():  # measured: each library names it in another way
            width = texts(["a"]).shape[1]
        facts = {"path": name, "kind": kind, "sha256": weights_sha256(model), "step": 0}
        super().__init__(facts, width)
        self.takes_images = images is not None
        self._texts, self._images, self._tokenizer = texts, images, tokenizer

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        assert self._images is not None
        opened = [decode(image) for image in images]
        for one in opened:
            # `decode` laid a transparent colour on white; other libraries would do it a second time.
            one.info.pop("transparency", None)
        return _unit_rows(self._images(opened)).cpu().numpy()

    def _encode_pixels(self, image_BCHW: Tensor) -> Tensor:
        assert self._images is not None
        image_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return _unit_rows(self._images([Image.fromarray(one) for one in image_BHWC]))

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        return _unit_rows(self._texts(with_tokens(texts, self._tokenizer))).cpu().numpy()


def as_list(values: T) -> T:
    """The same values; UserError: one text, which would be a list of its letters, or one image's bytes."""
    if isinstance(values, str | bytes):
        shown = repr(values[:40])
        raise UserError(f"a list is needed, not {shown} alone; write [{shown}]")
    return values


def finite(row_ND: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    """The same vectors; UserError, with the model's name: they hold NaN or infinity."""
    if not np.isfinite(row_ND).all():
        name = facts.get("path", "the model")
        raise UserError(f"{name}: its vectors are not finite; give a model whose weights are")
    return row_ND


def with_tokens(texts: Sequence[str], tokenizer: Any) -> list[str]:
    """The texts, with the end token in place of each that would have no tokens.

    Where a tokenizer of transformers adds no special tokens (GPT-2's, Qwen's), an empty text has none: models
    fail on it alone, and in a batch its vector would depend on the padding.
    """
    adds = getattr(tokenizer, "num_special_tokens_to_add", None)
    if not texts or adds is None or adds() > 0:
        return list(texts)
    end = tokenizer.eos_token or tokenizer.pad_token
    ids = tokenizer(list(texts))["input_ids"]
    return [text if tokens else end for text, tokens in zip(texts, ids, strict=True)]


def _unit_rows(row_ND: Tensor) -> Tensor:
    return F.normalize(row_ND.float(), dim=-1)


def load_encoder(path: Path, untrained: bool = False) -> Encoder:
    """The model of a run folder, or of one of its checkpoints (`RUN/checkpoints/best`).

    Args:
        untrained: as it was before its first step: the baseline that shows what training did. This alone
            needs the pretrained weights that the run started from.

    Raises:
        UserError: no run there, no checkpoint that verifies, weights of another model, or `untrained` and
            the pretrained weights cannot be loaded.
    """
    run = run_of(path)
    config_path = run / "config.yaml"
    if not config_path.is_file():
        raise UserError(f"{path}: not a run folder, it has no config.yaml")
    tree = read_yaml(config_path)
    config = validate(ModelConfig, tree.get("model"), f"{config_path}, section `model`")
    tokenizer = load_tokenizer(run / "tokenizer")
    facts: dict[str, Any] = {"path": str(path), "step": 0}
    if untrained:
        torch.manual_seed(int(tree["seed"]))  # as training does before it builds the model
        try:
            old = tokenizer_of(config.text, tokenizer)
            model = build_dual_encoder(config, old.vocabulary, old.padding_id)
            adapt_vocabulary(model.text_tower.trunk, old, tokenizer)
        except UserError as error:
            raise UserError(
                f"{path}: untrained, it needs the pretrained weights that it started from: {error}"
            ) from None
    else:
        model = build_run(run, config, tokenizer)
        folder, info = checkpoint_of(path, MOMENTS)
        found = plain_weights(load_file(folder / "model.safetensors"), config)
        own = model.state_dict()
        if differing := differing_names(found, own):
            raise UserError(
                f"{folder / 'model.safetensors'}: a checkpoint of another model: `{differing[0]}` differs "
                f"(and {len(differing) - 1} more); use the configuration that it was trained with"
            )
        model.load_state_dict(found)
        facts["step"] = info["step"]
    facts["sha256"] = weights_sha256(model)
    return Encoder(model, config, tokenizer, facts)


def run_of(path: Path) -> Path:
    """The run folder that a path means: itself, or the one whose `checkpoints` it lies in."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else path


def checkpoint_of(path: Path, leave_out: str | None = None) -> tuple[Path, dict[str, Any]]:
    """A run's newest checkpoint that verifies, or `path`, if it is one; and what its manifest says.

    Args:
        leave_out: files whose names begin like this are not looked at.
    """
    if run_of(path) == path:
        return newest_folder(path / CHECKPOINTS, leave_out)
    return path, verify(path, leave_out=leave_out)


def differing_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names, sorted, that only one of two state dicts has, or that have two shapes."""
    theirs, ours = ({(n, t.shape) for n, t in tensors.items()} for tensors in (found, wanted))
    return sorted({name for name, _ in theirs ^ ours})


def weights_sha256(model: nn.Module) -> str:
    """Hexadecimal sha256 over names and bytes of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def on_host(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own: safetensors refuses tensors that share memory."""
    return {prefix + name: t.detach().cpu().clone().contiguous() for name, t in state.items()}
