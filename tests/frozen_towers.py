"""A small frozen image tower, and a data set with an image that does not decode, for tests."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from shard_sets import make_pair, write_set
from tiny import MODEL, tiny_model, tiny_tokenizer

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.preprocess import stack_images
from mmalign.data.shards.reader import ShardSet
from mmalign.data.stream.image_features import plain_view
from mmalign.models.dual_encoder import ModelConfig
from mmalign.models.image_tower import ImageTower, build_image_tower
from mmalign.training.run_config import RunConfig

FROZEN: dict[str, Any] = {**MODEL, "image": {**MODEL["image"], "frozen": True}}
BROKEN = 5  # sample whose image does not decode
SAMPLES = 14


def frozen_tower(seed: int = 0, image_size: int = 32) -> ImageTower:
    tree = {**FROZEN, "image": {**FROZEN["image"], "image_size": image_size}}
    torch.manual_seed(seed)
    return build_image_tower(validate(ModelConfig, tree, "test").image).eval()


def make_set_to_embed(folder: Path, count: int = SAMPLES, broken: bool = True) -> Path:
    """A data set with 4 samples per shard."""
    pairs = [make_pair(number, ("en", "sw")) for number in range(count)]
    if broken:
        encoded = io.BytesIO()
        Image.new("RGB", (64, 64)).save(encoded, "JPEG")
        pairs[BROKEN] = replace(pairs[BROKEN], image=encoded.getvalue()[:-200])
    return write_set(folder, pairs)


@torch.no_grad()
def from_pixels(tower: ImageTower, data: Path, index: int) -> np.ndarray:
    """The feature of one image in float32, computed without a file of features."""
    view, shard_set = plain_view(tower.size), ShardSet(data)
    pixel_HWC = view(shard_set.read(index).image, np.random.default_rng(0))
    shard_set.close()
    feature: np.ndarray = tower(stack_images([pixel_HWC]))[0].numpy()
    return feature


def train_each(jobs: dict[str, tuple[RunConfig, int | None]], folder: Path) -> dict[str, str]:
    """Train one run after the other, on the ranks that call it; the errors, by name, of runs that failed.

    Args:
        jobs: configuration and last step, by the name of the run below `folder`; the part of a name after
            `+` is not part of the folder's name.
    """
    from mmalign.training.loop import train

    stopped = {}
    for name, (config, stop_after) in jobs.items():
        try:
            train(config, folder / name.partition("+")[0], stop_after)
        except UserError as error:
            stopped[name] = str(error)
    return stopped


def pretrained_model(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], list[Path]]:
    """The section `model` with a frozen, pretrained tower of timm and one of transformers; the files of both.

    Args:
        dtype: in which the text tower is stored; its tokenizer is beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, weights, text = tiny_model(seed=9), folder / "resnet.safetensors", folder / "text"
    save_file(source.image_tower.trunk.state_dict(), weights)
    source.text_tower.trunk.to(dtype).save_pretrained(text)
    tiny_tokenizer().save(text)
    overlay = {"file": str(weights), "num_classes": 0, "mean": [0.1, 0.2, 0.3]}
    options = {**FROZEN["image"]["options"], "pretrained_cfg_overlay": overlay}
    image = {**FROZEN["image"], "pretrained": True, "options": options}
    return {**MODEL, "image": image, "text": {"pretrained": str(text), "max_length": 32}}, [
        weights,
        text,
    ]
