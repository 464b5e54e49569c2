"""LoRA adapters of peft, folded into the model that they were trained on: an ordinary tower again.

    adapter_config.json -> base model (folder or hub name) -> load_tower -> trunk in float32 -+
    adapter_model.safetensors -> A, B of each adapted layer ----------------------------------+-> Tower

A layer's weight W becomes W + (alpha / rank) B A (LoRA, Hu et al. 2021, arXiv 2106.09685). Every tensor of
the file must find its place and every place its tensor: peft itself would go on with random ones.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmalign.core.errors import UserError
from mmalign.models.encoder import weights_sha256
from mmalign.models.text_encoder import TextEncoder, load_text_encoder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # before every name in an adapter's file


def settings_of(folder: Path) -> dict[str, Any]:
    """What the adapter's configuration sets.

    Raises:
        UserError: it is broken.
    """
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path}: not the configuration of an adapter of peft") from None
    return {name: value for name, value in settings if value not in (None, {}, [])}


def base_of(folder: Path) -> str:
    """The folder or hub name of the model that an adapter belongs to.

    Raises:
        UserError: the adapter's configuration is broken or names none.
    """
    base = settings_of(folder).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{folder / CONFIG}: does not say which model it adapts; write its folder or hub name as "
            "`base_model_name_or_path`"
        )
    return str(base)


def merge_adapter(folder: Path) -> TextEncoder:
    """The tower of the base model with the adapter folded in, in float32.

    How texts are pooled and projected is the base's own. The head of a task that was saved with the adapter
    is no part of a text encoder and is left out.

    Raises:
        UserError: peft is not there, the base cannot be loaded, or the adapter does not fit it.
    """
    tower = load_text_encoder(base_of(folder))
    tower.trunk = _merged(tower.trunk.float(), folder)
    tower.facts = {"path": str(folder), "sha256": weights_sha256(tower), "step": 0}
    return tower


def _merged(trunk: Any, folder: Path) -> Any:
    try:
        import peft
    except ImportError:
        raise UserError(
            f"{folder}: a LoRA adapter; install `mmalign[finetune]` to read it"
        ) from None
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        heads = _leave_out_heads(settings, trunk)
        tensors = _tensors(folder / WEIGHTS, heads, trunk.base_model_prefix)
        model = peft.PeftModel(trunk, settings)
        _check_names(peft.get_peft_model_state_dict(model, save_embedding_layers=False), tensors)
        peft.set_peft_model_state_dict(model, tensors)
        return model.merge_and_unload(safe_merge=True).eval()
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder}: the adapter does not fit {base_of(folder)} ({reason})"
        ) from None


def _leave_out_heads(settings: Any, trunk: Any) -> tuple[str, ...]:
    """The parts of a task's head that were saved whole beside the adapter; the settings forget them."""
    saved = tuple(settings.modules_to_save or ())
    known = {name.rpartition(".")[2] for name, _ in trunk.named_modules()}
    settings.modules_to_save = [name for name in saved if name in known] or None
    settings.task_type = None
    return tuple(name for name in saved if name not in known)


def _tensors(path: Path, heads: tuple[str, ...], model_prefix: str) -> dict[str, Tensor]:
    """The adapter's tensors, by their names for a trunk alone."""
    inner = f"{_PREFIX}{model_prefix}." if model_prefix else _PREFIX
    dropped = tuple(f"{_PREFIX}{head}." for head in heads)
    return {
        _PREFIX + name.removeprefix(inner).removeprefix(_PREFIX): one
        for name, one in load_file(path).items()
        if not name.startswith(dropped)
    }


def _check_names(wanted: dict[str, Tensor], held: dict[str, Tensor]) -> None:
    differing = sorted(wanted.keys() ^ held.keys())
    if differing:
        raise ValueError(f"`{differing[0]}` and {len(differing) - 1} more names differ")
