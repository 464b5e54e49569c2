"""A model of ours, or of another library, as a model of mteb: an outside judge runs its own tasks on it.

    mteb's loader (batches of texts, images or both) -> DualModel -> (n, D) of unit length -> mteb's scores

A row with a text and an image is the sum of both vectors, scaled back to length 1, as mteb's own models
of this kind do it.

    mteb.evaluate(MtebModel(load_model("runs/demo")), tasks=mteb.get_tasks(["XM3600T2IRetrieval"]))
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.models.encoder import BATCH_SIZE, DualModel
from mmalign.models.prompts import Side

_PASSAGES = ("document", "passage")  # mteb's and older names of that side
_PNG_MODES = ("RGB", "RGBA", "L", "LA", "P")  # what `decode` turns into RGB as it should


class MtebModel:
    """The interface that mteb calls `EncoderProtocol`, around anything that can be measured here."""

    def __init__(self, encoder: DualModel) -> None:
        self._encoder = encoder
        # Rows that were encoded, by task, split, subset and side: mteb keeps no count of what it scored.
        self.rows: Counter[tuple[str, str, str, str]] = Counter()

    @property
    def mteb_model_meta(self) -> Any:
        # mteb (2.26) needs packages that nothing else here does.
        from mteb.models import ModelMeta

        facts = self._encoder.facts
        return ModelMeta.create_empty(
            {
                "name": f"mmalign/{Path(str(facts['path'])).name}",
                "revision": facts["sha256"],
                "modalities": ["text", "image"],
                "framework": ["PyTorch"],
                "use_instructions": False,
            }
        )

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = BATCH_SIZE,
        **kwargs: Any,
    ) -> np.ndarray:
        """(n, D) float32 of unit length: vectors of all rows of a loader.

        Args:
            inputs: batches, each with a list of texts under `text`, of PIL images under `image`, or
                both; other columns are ignored.
        """
        found = self._encode(inputs, prompt_type, batch_size)
        name = getattr(task_metadata, "name", "")
        asked = str(getattr(prompt_type, "value", prompt_type))
        self.rows[name, hf_split, hf_subset, asked] += len(found)
        return found

    def _encode(
        self, inputs: Iterable[dict[str, Any]], prompt_type: Any, batch_size: int
    ) -> np.ndarray:
        # Only the side that a text is on decides its vector, not the task that the rows belong to.
        side: Side = (
            "passage" if str(getattr(prompt_type, "value", prompt_type)) in _PASSAGES else "query"
        )
        texts: list[str] = []
        # One pass: images are encoded as they come, their texts are kept.
        images = _encoded(inputs, texts)
        first = next(images, None)
        if first is None:  # no images, so that all texts have been read
            return self._encoder.encode_texts(texts, batch_size, side)
        image_ND = self._encoder.encode_images(chain([first], images), batch_size)
        if not texts:
            return image_ND
        text_ND = self._encoder.encode_texts(texts, batch_size, side)
        return _unit(image_ND + text_ND).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of all pairs: (N, D) and (M, D), or (D,) each -> (N, M) float32."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of the rows that stand beside each other: (N, D) and (N, D) -> (N,) float32."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(1)


def _encoded(batches: Iterable[dict[str, Any]], texts: list[str]) -> Iterator[bytes]:
    # Images as files without loss; the texts beside them are added to `texts`.
    for batch in batches:
        texts += batch.get("text", ())
        for image in batch.get("image", ()):
            file = io.BytesIO()
            readable = image if image.mode in _PNG_MODES else image.convert("RGB")
            readable.save(file, "PNG", compress_level=1)  # little compression, for speed
            yield file.getvalue()


def _unit(embeddings: Any) -> Tensor:
    # From an array or a tensor of any device; one vector is one row.
    rows = torch.as_tensor(embeddings, dtype=torch.float32, device="cpu").detach()
    return F.normalize(torch.atleast_2d(rows), dim=1)
