"""Folders that sentence-transformers loads with no code of ours: the text tower, or both as a Router.

Source -> config.json, model.safetensors, tokenizer files  the text trunk, as transformers loads it
       -> 1_Pooling, 2_Dense, ..., N_Normalize             what sentence-transformers adds
       -> modules.json                                     their order

Source -> text_0_Transformer, text_1_Pooling, text_2_Dense, ...  the route of texts
       -> image_0_Transformer, image_1_Dense                     the route of images (see vision.py)
       -> router_config.json, 1_Normalize, modules.json          which route is taken, and unit length
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.export.source import Source
from mmalign.export.vision import preprocessor_config, vision_model
from mmalign.models.encoder import on_host
from mmalign.models.external.onnx import PREPROCESSOR
from mmalign.models.pooling import flags_of_sentence_transformers
from mmalign.models.prompts import NO_PROMPTS, Prompts
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import save_pretrained

# sentence-transformers would take Tanh where no activation is named.
_ACTIVATIONS = {
    nn.Identity: "torch.nn.modules.linear.Identity",
    nn.GELU: "torch.nn.modules.activation.GELU",
}
# The text tower alone has the modules' old names, which every version from 2 on can import. A Router needs
# version 6.2, the first that takes images through any model of transformers, and has the names of that.
_OLD = "sentence_transformers.models."
_ROUTER_TYPES = {
    "Router": "sentence_transformers.base.modules.router.Router",
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
# The files are written by hand, so sentence-transformers itself is not needed here.
# What a tokenizer remembers of the machine that it was loaded on.
_LOCAL_FIELDS = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "vocab_file")


def write_sentence_transformers(source: Source, folder: Path) -> None:
    """Write the text tower to `folder`; a UserError where transformers needs a decoder for the trunk."""
    tower = source.tower
    _write_transformer(tower, folder, {})
    head = _write_head(tower, folder, "")
    if tower.unit_length:
        head.append(f"{len(head) + 1}_Normalize")
        _write_config(folder / head[-1], {})
    types = [f"{_OLD}{name.split('_')[-1]}" for name in ("0_Transformer", *head)]
    _write_modules(folder, list(zip(["", *head], types, strict=True)), tower.prompts)


def write_router(source: Source, folder: Path) -> None:
    """Write both towers to `folder`, where `model.encode` takes texts and images."""
    encoder, tower = source.both_towers("sentence-transformers-router"), source.tower
    trunk, network = folder / "text_0_Transformer", folder / "image_0_Transformer"
    trunk.mkdir()
    network.mkdir()
    _write_transformer(tower, trunk, _modality("text", "last_hidden_state", "token_embeddings"))
    model, projection = vision_model(encoder)
    save_pretrained(model, network)
    write_json(network / PREPROCESSOR, preprocessor_config(encoder.model.image_tower))
    # Without the backend, torchvision would resize wherever it is installed, to other pixels.
    pil = {"processor_kwargs": {"backend": "pil"}}
    output = _modality("image", "pooler_output", "sentence_embedding")
    write_json(network / "sentence_bert_config.json", {**pil, **output})
    routes = {
        "text": [trunk.name, *_write_head(tower, folder, "text_")],
        "image": [network.name, *_write_dense(projection, folder, "image_", 1)],
    }
    names = [name for route in routes.values() for name in route]
    router = {
        "types": {name: _ROUTER_TYPES[name.split("_")[-1]] for name in names},
        "structure": routes,
        "parameters": {"default_route": "text", "allow_empty_key": True, "route_mappings": {}},
    }
    write_json(folder / "router_config.json", router)
    _write_config(folder / "1_Normalize", {})
    modules = {"": "Router", "1_Normalize": "Normalize"}
    _write_modules(folder, [(path, _ROUTER_TYPES[kind]) for path, kind in modules.items()])


def _write_transformer(tower: TextEncoder, folder: Path, output: dict[str, Any]) -> None:
    write_trunk(tower.trunk, folder)
    write_tokenizer(tower.tokenizer, tower.max_length, folder)
    facts = {"max_seq_length": tower.max_length, "do_lower_case": False, **output}
    write_json(folder / "sentence_bert_config.json", facts)


def _modality(name: str, output: str, feature: str) -> dict[str, Any]:
    """Which output of a model sentence-transformers continues with."""
    forward = {"method": "forward", "method_output_name": output}
    task = {"transformer_task": "feature-extraction", "modality_config": {name: forward}}
    return {**task, "module_output_name": feature}


def _write_modules(
    folder: Path, modules: list[tuple[str, str]], prompts: Prompts = NO_PROMPTS
) -> None:
    """`modules.json` from (path, type) of each module, and the settings of the model."""
    facts = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", facts)
    settings: dict[str, Any] = {
        "prompts": {"query": prompts.query, "document": prompts.passage} if prompts.facts else {},
        # `encode` of the library then does as ours does.
        "default_prompt_name": "query" if prompts.query else None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", settings)


def _write_head(tower: TextEncoder, folder: Path, prefix: str) -> list[str]:
    """Write pooling and projection behind a trunk; returns the names of their folders."""
    flags = flags_of_sentence_transformers(tower.pooling)
    pooling = f"{prefix}1_Pooling"
    _write_config(folder / pooling, {"word_embedding_dimension": tower.state_width, **flags})
    return [pooling, *_write_dense(tower.projection, folder, prefix, 2)]


def _write_dense(projection: nn.Module | None, folder: Path, prefix: str, first: int) -> list[str]:
    """A folder for each linear layer, counted from `first`; returns their names."""
    names = []
    for number, (linear, activation) in enumerate(dense_layers(projection), start=first):
        names.append(f"{prefix}{number}_Dense")
        facts = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": _ACTIVATIONS[type(activation)],
        }
        _write_config(folder / names[-1], facts)
        weights = folder / names[-1] / "model.safetensors"
        save_file(on_host(linear.state_dict(), "linear."), weights)
    return names


def _write_config(folder: Path, facts: dict[str, Any]) -> None:
    folder.mkdir()
    write_json(folder / "config.json", facts)


def dense_layers(projection: nn.Module | None) -> list[tuple[nn.Linear, nn.Module]]:
    """The linear layers of a projection, each with the activation behind it."""
    layers = list(projection) if isinstance(projection, nn.Sequential) else [projection]
    return [
        (layer, follower if isinstance(follower, nn.GELU) else nn.Identity())
        for layer, follower in zip(layers, [*layers[1:], None], strict=True)
        if isinstance(layer, nn.Linear)
    ]


def auto_class(trunk: Any) -> Any:
    """The class of transformers that loads the exported trunk and nothing else, or a UserError."""
    import transformers as library

    for mapping, loader in (
        (library.MODEL_MAPPING, library.AutoModel),
        (library.MODEL_FOR_TEXT_ENCODING_MAPPING, library.AutoModelForTextEncoding),
    ):
        if mapping.get(type(trunk.config), None) is type(trunk):
            return loader
    # AutoModel would load the complete encoder-decoder, with random weights in its decoder.
    raise UserError(
        f"model.text: transformers cannot load the encoder half of a `{trunk.config.model_type}` model "
        "without its decoder; train on an encoder (XLM-R, BERT, mT5) to publish for sentence-transformers"
    )


def write_trunk(trunk: Any, folder: Path) -> None:
    """Write the trunk as `auto_class(trunk).from_pretrained(folder)` loads it."""
    loader = auto_class(trunk)
    ours = {name: tensor.detach().cpu() for name, tensor in trunk.state_dict().items()}
    with torch.device("meta"):
        loaded = loader.from_config(trunk.config, trust_remote_code=False).state_dict()
    # The class has a pooler that ours lacks. Without weights in the file it would be drawn at random, and no
    # two loads would be equal; so zeros are written, which no format uses.
    absent = {name: torch.zeros(t.shape) for name, t in loaded.items() if name not in ours}
    assert all(name.startswith("pooler.") for name in absent), sorted(absent)
    save_pretrained(trunk, folder, state_dict={**ours, **absent})
    if loader.__name__ == "AutoModelForTextEncoding":
        # The encoder class of T5 writes false here. Google's own files of mT5 say true, and open_clip, which
        # takes the encoder out of the complete model, builds it only from that.
        path = folder / "config.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**facts, "is_encoder_decoder": True})


def write_tokenizer(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Write the files that AutoTokenizer reads, without what a machine or a call left in them."""
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {name: value for name, value in settings.items() if name not in _LOCAL_FIELDS}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        # The name that transformers 5 gives it; 4 knows the old one alone, and 5 takes either.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, {**settings, "model_max_length": max_length})
    path = folder / "tokenizer.json"
    if path.is_file():
        fast = json.loads(path.read_text(encoding="utf-8"))
        # Those that version 0.1 trained have no decoder, and would decode to "▁re d ▁apple".
        words = fast["pre_tokenizer"] or {}
        if fast["decoder"] is None and words.get("type") == "Metaspace":
            fast["decoder"] = words
        # Padding and truncation are state of the last call and no part of the tokenizer.
        write_json(path, {**fast, "truncation": None, "padding": None})
