"""Models of sentence-transformers: measured as they are, or taken apart into a text encoder of ours.

    folder or hub name -> SentenceTransformer -+-> load_sentence_transformers -> ExternalModel
                                               +-> read_text_encoder          -> TextEncoder

sentence-transformers is optional (`mmalign[export]`) and is imported when the first model is opened.
"""

from typing import Any

from torch import Tensor

from mmalign.core import distributed
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.models.external.model import ExternalModel
from mmalign.models.pooling import pooling_of_sentence_transformers
from mmalign.models.projection import projection_of
from mmalign.models.text_encoder import DEFAULT_LENGTH, TextEncoder

_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def open_sentence_transformer(name: str, device: str = "cpu") -> Any:
    """The `SentenceTransformer` in a folder or on the hub.

    Raises:
        UserError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"{name}: a sentence-transformers model; install `mmalign[export]` to read it"
        ) from None
    return SentenceTransformer(name, device=device)


def load_sentence_transformers(name: str) -> ExternalModel:
    """A text encoder, or a model whose modules take images as well (CLIP models, Router)."""
    # Its folders may hold float16; everything is compared in float32.
    model = open_sentence_transformer(name, str(distributed.device())).float().eval()

    def encode(inputs: list[Any]) -> Tensor:
        options = {"convert_to_tensor": True, "show_progress_bar": False}
        return model.encode(inputs, batch_size=len(inputs), **options)

    images = encode if model.supports("image") else None
    return ExternalModel(name, "sentence-transformers", model, encode, images)


def read_text_encoder(name: str) -> TextEncoder:
    """The modules of a model, where they are those of a plain text encoder.

    Raises:
        UserError: sentence-transformers is missing, or the modules are others.
    """
    # On the CPU: TextEncoder moves what it takes to this rank's device.
    modules = list(open_sentence_transformer(name))
    kinds = [type(module).__name__ for module in modules]
    in_order = [kind for kind in _MODULES for _ in range(kinds.count(kind))]
    if kinds != in_order or kinds[:2] != ["Transformer", "Pooling"]:
        raise UserError(
            f"{name}: its modules are {', '.join(kinds)}; can be read: {', '.join(_MODULES)}, in this order"
        )
    return TextEncoder(
        modules[0].auto_model,
        Tokenizer(modules[0].tokenizer),
        pooling_of_sentence_transformers(modules[1], name),
        projection_of([m for m in modules if type(m).__name__ == "Dense"], name),
        "Normalize" in kinds,
        modules[0].max_seq_length or DEFAULT_LENGTH,
    )
