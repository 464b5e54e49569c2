"""A model of another library behind the interface of ours, so that it is measured by the same code.

    encoded images -> decoded here -> the library's own transform and tower -+
    texts          ->                 the library's own tokenizer and tower -+-> scaled to unit length

Images are decoded under the same limits as in training. From there on everything is the library's own: the
transform, the tokenizer, where long texts are cut.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmalign.data.preprocess import decode
from mmalign.models.encoder import DualModel, weights_sha256


class ExternalModel(DualModel):
    """A model of another library; its facts also have `kind`, the library."""

    def __init__(
        self,
        name: str,
        kind: str,
        model: nn.Module,
        texts: Callable[[list[str]], Tensor],
        images: Callable[[list[Image.Image]], Tensor] | None = None,
    ) -> None:
        """Put the interface around a model.

        Args:
            model: in evaluation mode, float32.
            texts: n texts -> (n, D).
            images: n RGB images -> (n, D); None: the model has no image tower.
        """
        with torch.no_grad():  # measured: each library names it in another way
            width = texts(["a"]).shape[1]
        facts = {"path": name, "kind": kind, "sha256": weights_sha256(model), "step": 0}
        super().__init__(facts, width)
        self.takes_images = images is not None
        self._texts, self._images = texts, images

    def _encode_images(self, images: list[bytes]) -> np.ndarray:
        assert self._images is not None
        return _unit_rows(self._images([_open(image) for image in images]))

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        return _unit_rows(self._texts(texts))


def _open(data: bytes) -> Image.Image:
    image = decode(data)
    # `decode` laid a transparent colour on white; transforms of other libraries would do it a second time.
    image.info.pop("transparency", None)
    return image


def _unit_rows(row_ND: Tensor) -> np.ndarray:
    return F.normalize(row_ND.float(), dim=-1).cpu().numpy()
