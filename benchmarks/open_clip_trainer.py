"""open_clip's own trainer on the network of an mmalign run; runs in open_clip's environment.

    folder that open_clip_peer.py wrote (the network), flags -> open_clip_train.main -> log, checkpoint

The trainer has no flags for options of timm's constructor, for a folder of model configurations, for a text
tower with random weights and for the memory format of images. These four are set here; everything else is
unchanged code of open_clip.

    python open_clip_trainer.py FOLDER [--channels-last] FLAGS OF open_clip_train.main ...
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import open_clip_train.main
import timm
import torch


def channels_last_first(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook before the image tower: converts images to the memory format of mmalign."""
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


def set_model_factory(channels_last: bool) -> None:
    """Make the trainer build its model with a random text tower, and optionally with the hook."""
    create = open_clip_train.main.create_model_and_transforms

    def create_model(*arguments: Any, **options: Any) -> tuple[Any, ...]:
        model, *transforms = create(*arguments, **options, pretrained_text=False)
        if channels_last:
            model.visual.register_forward_pre_hook(channels_last_first)
        return model, *transforms

    open_clip_train.main.create_model_and_transforms = create_model


def main() -> None:
    folder, flags = Path(sys.argv[1]), sys.argv[2:]
    network = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    # open_clip calls timm under this name when it builds the tower.
    timm.create_model = functools.partial(timm.create_model, **network["timm_options"])
    open_clip.add_model_config(folder / "models")
    set_model_factory(channels_last="--channels-last" in flags)
    open_clip_train.main.main([flag for flag in flags if flag != "--channels-last"])


if __name__ == "__main__":
    main()
