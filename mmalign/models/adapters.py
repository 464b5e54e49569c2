"""LoRA adapters of peft, merged into the model that they were trained on: an ordinary text encoder again.

    adapter_config.json -> base model (folder or hub name), loaded by the caller -+-> merge_adapter
    adapter_model.safetensors -> A, B of each adapted layer ----------------------+   -> the trunk, float32

A layer's weight W becomes W + (alpha / rank) B A (LoRA, Hu et al. 2021, arXiv 2106.09685).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmalign.core.errors import UserError, one_line

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # before every name in an adapter's file


def settings_of(folder: Path) -> dict[str, Any]:
    """What the adapter's configuration sets."""
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path}: not the configuration of an adapter of peft") from None
    # peft writes every field, most of them empty.
    return {name: value for name, value in settings if value not in (None, {}, [])}


def base_of(folder: Path) -> str:
    """The folder or hub name of the model that an adapter belongs to."""
    base = settings_of(folder).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder / CONFIG}: set `base_model_name_or_path` to the model's name")
    return str(base)


def merge_adapter(trunk: Any, folder: Path) -> Any:
    """The base model's trunk, changed: with the adapter of a folder merged in, in float32.

    Raises:
        UserError: peft is not installed, or the adapter does not fit the trunk.
    """
    try:
        import peft
    except ImportError:
        raise UserError(f"{folder}: a LoRA adapter; install `mmalign[finetune]`") from None
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        # A task's head may be saved with the adapter. It is no part of a text encoder, and peft looks for
        # the module in the trunk.
        saved = tuple(settings.modules_to_save or ())
        known = {name.rpartition(".")[2] for name, _ in trunk.named_modules()}
        settings.modules_to_save = [name for name in saved if name in known] or None
        settings.task_type = None  # it would ask for a model with the task's head
        heads = (name for name in saved if name not in known)
        tensors = _tensors(folder / WEIGHTS, heads, trunk.base_model_prefix)
        model = peft.PeftModel(trunk.float(), settings)
        wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        # peft itself would only warn, and leave what it did not find at random.
        if differing := sorted(wanted.keys() ^ tensors.keys()):
            raise ValueError(f"`{differing[0]}` and {len(differing) - 1} more names differ")
        peft.set_peft_model_state_dict(model, tensors)
        return model.merge_and_unload(safe_merge=True).eval()
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        base, reason = base_of(folder), one_line(error)
        raise UserError(f"{folder}: the adapter does not fit {base} ({reason})") from None


def _tensors(path: Path, heads: Iterable[str], model_prefix: str) -> dict[str, Tensor]:
    # An adapter of a model with a head names the trunk in it; ours is for the trunk alone.
    inner = f"{_PREFIX}{model_prefix}." if model_prefix else _PREFIX
    dropped = tuple(f"{_PREFIX}{head}." for head in heads)
    return {
        _PREFIX + name.removeprefix(inner).removeprefix(_PREFIX): one
        for name, one in load_file(path).items()
        if not name.startswith(dropped)
    }
