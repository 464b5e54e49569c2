"""Both towers as a sentence-transformers folder: `model.encode` takes texts and pictures.

    Source -> text_0_Transformer, text_1_Pooling, text_2_Dense, ...  the route of texts
           -> image_0_Transformer, image_1_Dense                     the route of pictures (see vision.py)
           -> router_config.json, 1_Normalize, modules.json          which route is taken, and unit length

The layout and the names are those that sentence-transformers 6.2 itself writes; it is the first that takes
pictures through any model of transformers. The files are written by hand, so it is not needed here, but where
it is installed the folder is loaded and compared.
"""

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from mmalign.core.commit import write_json
from mmalign.export.agreement import must_agree
from mmalign.export.sentence_transformers import (
    dense_layers,
    write_dense,
    write_normalize,
    write_pooling,
    write_trunk,
)
from mmalign.export.source import Source
from mmalign.export.tokenizer import write_tokenizer
from mmalign.export.vision import vision_model, write_vision
from mmalign.models.encoder import Encoder
from mmalign.models.text_encoder import TextEncoder

FORMAT = "sentence-transformers-router"
_PACKAGE = "sentence_transformers"
_TYPES = {
    "Router": f"{_PACKAGE}.base.modules.router.Router",
    "Transformer": f"{_PACKAGE}.base.modules.transformer.Transformer",
    "Pooling": f"{_PACKAGE}.sentence_transformer.modules.pooling.Pooling",
    "Dense": f"{_PACKAGE}.base.modules.dense.Dense",
    "Normalize": f"{_PACKAGE}.base.modules.normalize.Normalize",
}


def write_router(source: Source, folder: Path) -> None:
    """Write both towers to `folder`.

    Raises:
        UserError: this is a text tower alone, or transformers has no twin of one of the towers.
    """
    encoder = source.both_towers(FORMAT)
    routes = {
        "text": _write_text_route(source.tower, folder),
        "image": _write_image_route(encoder, folder),
    }
    write_json(folder / "router_config.json", _router_config(routes))
    write_normalize(folder / "1_Normalize")
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": _TYPES["Router"]},
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": _TYPES["Normalize"]},
        ],
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    if importlib.util.find_spec(_PACKAGE) is not None:
        must_agree(encoder, folder, "sentence-transformers", FORMAT)


def _router_config(routes: dict[str, list[str]]) -> dict[str, Any]:
    """The modules of each route, by the names of their folders, which end in their kinds."""
    types = {name: _TYPES[name.split("_")[-1]] for names in routes.values() for name in names}
    parameters = {"default_route": "text", "allow_empty_key": True, "route_mappings": {}}
    return {"types": types, "structure": routes, "parameters": parameters}


def _write_text_route(tower: TextEncoder, folder: Path) -> list[str]:
    """The trunk, its pooling and its projection; returns the names of their folders."""
    trunk = folder / "text_0_Transformer"
    trunk.mkdir()
    write_trunk(tower.trunk, trunk)
    write_tokenizer(tower.tokenizer, tower.max_length, trunk)
    write_json(
        trunk / "sentence_bert_config.json",
        {
            "max_seq_length": tower.max_length,
            "do_lower_case": False,
            **_modality("text", output="last_hidden_state", feature="token_embeddings"),
        },
    )
    write_pooling(tower, folder / "text_1_Pooling")
    return [trunk.name, "text_1_Pooling", *_write_projection(tower.projection, folder, "text", 2)]


def _write_image_route(encoder: Encoder, folder: Path) -> list[str]:
    """The network, its preprocessing and its projection; returns the names of their folders."""
    model, projection = vision_model(encoder)
    network = folder / "image_0_Transformer"
    network.mkdir()
    write_vision(model, encoder.model.image_tower, network)
    write_json(
        network / "sentence_bert_config.json",
        {
            # Without this, torchvision would resize wherever it is installed, to other pixels.
            "processor_kwargs": {"backend": "pil"},
            **_modality("image", output="pooler_output", feature="sentence_embedding"),
        },
    )
    return [network.name, *_write_projection(projection, folder, "image", 1)]


def _modality(name: str, output: str, feature: str) -> dict[str, Any]:
    """Which output of a model is what sentence-transformers goes on with."""
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {name: {"method": "forward", "method_output_name": output}},
        "module_output_name": feature,
    }


def _write_projection(
    projection: nn.Module | None, folder: Path, route: str, first: int
) -> list[str]:
    """A folder for each linear layer; they are counted from `first`."""
    names = []
    for number, (linear, activation) in enumerate(dense_layers(projection), start=first):
        names.append(f"{route}_{number}_Dense")
        write_dense(linear, activation, folder / names[-1])
    return names
