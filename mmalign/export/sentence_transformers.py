"""The text tower as a sentence-transformers folder, loadable without a line of ours.

    Tower -> config.json, model.safetensors, tokenizer files  the trunk, as transformers loads it
          -> 1_Pooling, 2_Dense, ..., N_Normalize             what sentence-transformers adds
          -> modules.json                                     their order

The modules carry their old names (`sentence_transformers.models.*`), which every version from 2 on
can import; version 6 writes other names that older ones cannot. The files are written by hand, so
sentence-transformers itself is not needed here.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.export.source import Source
from mmalign.export.tokenizer import write_tokenizer
from mmalign.models.pooling import flags_of_sentence_transformers
from mmalign.models.text_encoder import TextEncoder

# sentence-transformers would take Tanh where no activation is named.
_ACTIVATIONS = {
    nn.Identity: "torch.nn.modules.linear.Identity",
    nn.GELU: "torch.nn.modules.activation.GELU",
}


def write_sentence_transformers(source: Source, folder: Path) -> None:
    """Write the text tower to `folder`.

    Raises:
        UserError: transformers cannot load this trunk without its decoder.
    """
    tower = source.tower
    write_trunk(tower.trunk, folder)
    write_tokenizer(tower.tokenizer, tower.max_length, folder)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": tower.max_length, "do_lower_case": False},
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    kinds = ["Transformer", *_write_head(tower, folder)]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], start=1))]
    write_json(
        folder / "modules.json",
        [
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
    )


def _write_head(tower: TextEncoder, folder: Path) -> list[str]:
    """The modules behind the trunk, in folders `1_<kind>`, `2_<kind>`, ...; returns their kinds."""
    write_pooling(tower, folder / "1_Pooling")
    kinds = ["Pooling"]
    for linear, activation in dense_layers(tower.projection):
        kinds.append("Dense")
        write_dense(linear, activation, folder / f"{len(kinds)}_Dense")
    if tower.unit_length:
        kinds.append("Normalize")
        write_normalize(folder / f"{len(kinds)}_Normalize")
    return kinds


def auto_class(trunk: Any) -> Any:
    """The class of transformers that loads the exported trunk and nothing beside it.

    Raises:
        UserError: there is none; it would load the whole encoder-decoder, its decoder at random.
    """
    from transformers import (
        MODEL_FOR_TEXT_ENCODING_MAPPING,
        MODEL_MAPPING,
        AutoModel,
        AutoModelForTextEncoding,
    )

    if MODEL_MAPPING.get(type(trunk.config), None) is type(trunk):
        return AutoModel
    if MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(trunk.config), None) is type(trunk):
        return AutoModelForTextEncoding
    raise UserError(
        "model.text: transformers cannot load the encoder half of a "
        f"`{trunk.config.model_type}` model on its own, only with a decoder that this run does not "
        "have; train on an encoder (XLM-R, BERT, mT5) to publish for sentence-transformers"
    )


def write_trunk(trunk: Any, folder: Path) -> None:
    """The trunk as `auto_class(trunk).from_pretrained(folder)` loads it, with nothing left to chance."""
    from transformers.utils import logging

    loader = auto_class(trunk)
    tensors = {name: tensor.detach().cpu() for name, tensor in trunk.state_dict().items()}
    logging.disable_progress_bar()
    trunk.save_pretrained(str(folder), state_dict={**tensors, **_idle_pooler(trunk, loader)})
    if loader.__name__ == "AutoModelForTextEncoding":
        # The encoder class of T5 writes false here. Google's own files of mT5 say true, and open_clip, which
        # takes the encoder out of the whole model, builds none from anything else.
        path = folder / "config.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**facts, "is_encoder_decoder": True})


def _idle_pooler(trunk: Any, loader: Any) -> dict[str, Tensor]:
    """Zeros for the pooler with which BERT's kin are loaded.

    Ours has none, and a loader would draw one at random: no two loads would be equal. Zeros are
    loaded by everyone and used by nobody.
    """
    with torch.device("meta"):
        loaded = loader.from_config(trunk.config).state_dict()
    absent = {name: tensor for name, tensor in loaded.items() if name not in trunk.state_dict()}
    assert all(name.startswith("pooler.") for name in absent), sorted(absent)
    return {name: torch.zeros(tensor.shape) for name, tensor in absent.items()}


def write_pooling(tower: TextEncoder, folder: Path) -> None:
    """One feature a text from the states of its tokens."""
    flags = flags_of_sentence_transformers(tower.pooling)
    folder.mkdir()
    write_json(folder / "config.json", {"word_embedding_dimension": tower.state_width, **flags})


def dense_layers(projection: nn.Module | None) -> list[tuple[nn.Linear, nn.Module]]:
    """The linear layers of a projection, each with the activation behind it."""
    layers = list(projection) if isinstance(projection, nn.Sequential) else [projection]
    followers = [*layers[1:], None]
    return [
        (layer, follower if isinstance(follower, nn.GELU) else nn.Identity())
        for layer, follower in zip(layers, followers, strict=True)
        if isinstance(layer, nn.Linear)
    ]


def write_dense(linear: nn.Linear, activation: nn.Module, folder: Path) -> None:
    """One linear layer and its activation."""
    folder.mkdir()
    write_json(
        folder / "config.json",
        {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": _ACTIVATIONS[type(activation)],
        },
    )
    tensors = {f"linear.{name}": one.detach().cpu() for name, one in linear.state_dict().items()}
    # Copies of their own: safetensors refuses tensors that share memory.
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def write_normalize(folder: Path) -> None:
    """Vectors of unit length."""
    folder.mkdir()
    write_json(folder / "config.json", {})
