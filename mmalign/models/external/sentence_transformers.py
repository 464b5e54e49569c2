"""Models of sentence-transformers: measured as they are, or taken apart into towers of ours.

folder or hub name -> SentenceTransformer -+-> load_sentence_transformers -> ExternalModel
                                           +-> read_text_encoder          -> TextEncoder
                                           +-> read_router                -> weights of both towers
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmalign.core import distributed
from mmalign.core.console import hide_library_progress
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.models.encoder import ExternalModel
from mmalign.models.external.open_clip import State, text_weights, timm_wrapper_weights
from mmalign.models.pooling import Pooling, pooling_of_sentence_transformers
from mmalign.models.prompts import Prompts
from mmalign.models.text_encoder import DEFAULT_LENGTH, TextEncoder, chain
from mmalign.models.text_tower import longest_text

_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def _open(name: str, device: str = "cpu") -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(f"{name}: of sentence-transformers; install `mmalign[export]`") from None
    hide_library_progress()
    # Folders may store 16 bits; everything is compared and trained in float32.
    return SentenceTransformer(name, device=device, trust_remote_code=False).float()


def load_sentence_transformers(name: str) -> ExternalModel:
    """A text encoder, or a model whose modules take images as well (CLIP models, Router)."""
    model = _open(name, str(distributed.device())).eval()

    def encode(inputs: list[Any]) -> Tensor:
        options = {"convert_to_tensor": True, "show_progress_bar": False}
        return model.encode(inputs, batch_size=len(inputs), **options)

    images = encode if model.supports("image") else None
    # Of the route for texts, in a model that has routes.
    tokenizer = getattr(model, "tokenizer", None)
    # Read first: the library's own default prompt would be added a second time.
    prompts = _prompts_of(model, name)
    model.default_prompt_name = None
    external = ExternalModel(name, "sentence-transformers", model, encode, images, tokenizer)
    external.prompts = prompts
    for module in model.modules():
        # The library cuts at `max_position_embeddings`, of which RoBERTa and its variants cannot use two.
        trunk, asked = getattr(module, "auto_model", None), getattr(module, "max_seq_length", None)
        if trunk is not None and asked:
            module.max_seq_length, cut = longest_text(trunk, asked)
            external.cut = external.cut or cut
    return external


def read_text_encoder(name: str) -> TextEncoder:
    """The modules of a model, where they are those of a plain text encoder.

    Raises:
        UserError: sentence-transformers is missing, or the modules are others.
    """
    model = _open(name)  # on the CPU: TextEncoder moves what it takes to this rank's device
    modules = list(model)
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
        prompts=_prompts_of(model, name),
    )


def _prompts_of(model: Any, name: str) -> Prompts:
    """The prompts of a model, by the names that the library looks for.

    Raises:
        UserError: its pooling leaves the tokens of the prompt out.
    """
    named, default = model.prompts, model.prompts.get(model.default_prompt_name, "")
    passages = (named[one] for one in ("document", "passage", "corpus") if named.get(one))
    # The default prompt is that of `encode`; where no passage has one, `encode_document` adds nothing.
    prompts = Prompts(named.get("query") or default, next(passages, ""))
    # INSTRUCTOR models (arXiv 2212.09741).
    if prompts != Prompts() and not all(getattr(m, "include_prompt", True) for m in model):
        raise UserError(
            f"{name}: its pooling leaves prompts out (`include_prompt: false`), which cannot be done here"
        )
    return prompts


def read_router(name: str) -> tuple[State, Pooling, Tokenizer]:
    """The weights of a model with a text and an image route, under open_clip's names; pooling; tokenizer.

    Raises:
        UserError: sentence-transformers is missing, or the routes hold other modules than our exports do.
    """
    routes = dict(_open(name)[0].sub_modules.items())
    # Of each route the modules by the names of their classes.
    text, image = (
        {kind: [m for m in routes.get(route, ()) if type(m).__name__ == kind] for kind in _MODULES}
        for route in ("text", "image")
    )
    if not (text["Transformer"] and text["Pooling"] and image["Transformer"] and image["Dense"]):
        raise UserError(f"init_from: the routes of {name} are not those of an export of mmalign")
    trunk, network = text["Transformer"][0], image["Transformer"][0].auto_model
    state = {
        **text_weights(trunk.auto_model, projection_of(text["Dense"], name)),
        **timm_wrapper_weights(name, network, image["Dense"][0].linear),
    }
    pooling = pooling_of_sentence_transformers(text["Pooling"][0], name)
    return state, pooling, Tokenizer(trunk.tokenizer)


def projection_of(dense: Sequence[Any], path: str) -> nn.Module | None:
    """The projection that the Dense modules of the model `path` are; None where there are none.

    Raises:
        UserError: they have another form.
    """
    activations = [type(one.activation_function).__name__ for one in dense]
    forms: tuple[list[str], ...] = ([], ["Identity"], ["GELU", "Identity"])
    if activations not in forms or any(getattr(one, "use_residual", False) for one in dense):
        raise UserError(
            f"{path}: its Dense modules ({', '.join(activations)}) cannot be read here; can be read: one "
            "that is linear, or one with GELU before one that is linear"
        )
    return chain([one.linear for one in dense])
