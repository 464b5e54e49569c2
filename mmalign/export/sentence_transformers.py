"""The text tower as a sentence-transformers folder, loadable without a line of ours.

    Encoder -> config.json, model.safetensors, tokenizer files  the trunk, as transformers loads it
            -> 1_Pooling, 2_Dense, 3_Normalize, modules.json    what sentence-transformers adds
            -> README.md, results.json, MANIFEST.json           what a person needs

The modules carry their old names (`sentence_transformers.models.*`), which every version from 2 on
can import; version 6 writes other names that older ones cannot. The files are written by hand, so
sentence-transformers itself is not needed here.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmalign.commit import committed_folder, write_json
from mmalign.errors import UserError
from mmalign.evaluation.encoder import Encoder
from mmalign.evaluation.results import Results
from mmalign.export.card import write_card
from mmalign.model.text_tower import Pooling

MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Dense", "sentence_transformers.models.Dense"),
    ("3_Normalize", "sentence_transformers.models.Normalize"),
)
POOLING_MODES: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
# What a tokenizer remembers of the machine that it was loaded on.
LOCAL_TOKENIZER_FIELDS = (
    "is_local",
    "local_files_only",
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
)


def export_sentence_transformers(
    encoder: Encoder,
    out: Path,
    results: Results | None,
    run_config: dict[str, Any],
    license: str | None = None,
) -> None:
    """Write the text tower to the folder `out`, whole or not at all.

    Args:
        results: what the card and `results.json` report; none: both stay silent.
        run_config: the resolved configuration of the run, for the card.
        license: identifier for the card (`apache-2.0`); none: the card names no licence.

    Raises:
        UserError: transformers cannot load this trunk without its decoder.
    """
    loader = auto_class(encoder)
    info = {
        "format": "sentence-transformers",
        "model_sha256": encoder.facts["sha256"],
        "step": encoder.facts["step"],
    }
    with committed_folder(out, info) as folder:
        _write_trunk(encoder, folder)
        write_tokenizer(encoder, folder)
        _write_modules(encoder, folder)
        write_card(encoder, folder, out.name, loader.__name__, results, run_config, license)
        if results is not None:
            without_paths(results).write(folder / "results.json")


def auto_class(encoder: Encoder) -> Any:
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

    trunk = encoder.model.text_tower.trunk
    if MODEL_MAPPING.get(type(trunk.config), None) is type(trunk):
        return AutoModel
    if MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(trunk.config), None) is type(trunk):
        return AutoModelForTextEncoding
    raise UserError(
        "model.text: transformers cannot load the encoder half of a "
        f"`{trunk.config.model_type}` model on its own, only with a decoder that this run does not "
        "have; train on an encoder (XLM-R, BERT, mT5) to publish for sentence-transformers"
    )


def without_paths(results: Results) -> Results:
    """Where the model lay on somebody's disk is not published; its sha256 says which one it was."""
    facts = {name: value for name, value in results.model.items() if name != "path"}
    baselines = {name: without_paths(inner) for name, inner in results.baselines.items()}
    return replace(results, model=facts, baselines=baselines)


def _write_trunk(encoder: Encoder, folder: Path) -> None:
    from transformers.utils import logging

    trunk = encoder.model.text_tower.trunk
    tensors = {name: tensor.detach().cpu() for name, tensor in trunk.state_dict().items()}
    logging.disable_progress_bar()
    trunk.save_pretrained(str(folder), state_dict={**tensors, **_idle_pooler(encoder)})


def _idle_pooler(encoder: Encoder) -> dict[str, Tensor]:
    """Zeros for the pooler with which BERT's kin are loaded.

    Ours has none, and a loader would draw one at random: no two loads would be equal. Zeros are
    loaded by everyone and used by nobody.
    """
    trunk = encoder.model.text_tower.trunk
    with torch.device("meta"):
        loaded = auto_class(encoder).from_config(trunk.config).state_dict()
    absent = {name: tensor for name, tensor in loaded.items() if name not in trunk.state_dict()}
    assert all(name.startswith("pooler.") for name in absent), sorted(absent)
    return {name: torch.zeros(tensor.shape) for name, tensor in absent.items()}


def write_tokenizer(encoder: Encoder, folder: Path) -> None:
    encoder.tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {k: v for k, v in settings.items() if k not in LOCAL_TOKENIZER_FIELDS}
    settings["model_max_length"] = encoder.config.text.max_length
    write_json(path, settings)
    # The last call's padding and cut are state of that call and no part of the tokenizer.
    path = folder / "tokenizer.json"
    if path.is_file():
        fast = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**fast, "truncation": None, "padding": None})


def _write_modules(encoder: Encoder, folder: Path) -> None:
    config, width = encoder.config, encoder.model.text_tower.width
    chosen = POOLING_MODES[config.text.pooling]
    modes = {name: name == chosen for name in (*POOLING_MODES.values(), "pooling_mode_max_tokens")}
    for path, _ in MODULES:
        (folder / path).mkdir(exist_ok=True)
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": kind}
            for index, (path, kind) in enumerate(MODULES)
        ],
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.text.max_length, "do_lower_case": False},
    )
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **modes})
    write_json(
        folder / "2_Dense/config.json",
        {
            "in_features": width,
            "out_features": config.embedding,
            "bias": False,
            # Without a name the activation would be Tanh.
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    weight = encoder.model.text_projection.weight.detach().cpu().contiguous()
    save_file({"linear.weight": weight}, folder / "2_Dense/model.safetensors")
    write_json(folder / "3_Normalize/config.json", {})
