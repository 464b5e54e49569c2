"""The towers of a run as its first start resolved them: `towers.json`, by which the run stands on its own.

    first start        -> build_dual_encoder: pretrained names, weights -> towers_of -> RUN/towers.json
    every load, resume -> build_run: RUN/towers.json -> the same model, for the weights of a checkpoint

    image     the network's name, its arguments, its preprocessing (`ImageArchitecture`)
    text      the complete configuration of a trunk of transformers
    origins   by tower: name, revision and sha256 of the pretrained weights that the first start loaded

Runs of mmalign 0.1.0 have no such file: for these, `model` in config.yaml must still find what it names.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.core.commit import write_json
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.image_tower import ImageArchitecture, rebuild_image_tower
from mmalign.models.text_tower import TextTower, rebuild_trunk, trunk_config

FILE = "towers.json"


@dataclass(frozen=True)
class RunTowers:
    """What both towers are, without weights and without where these came from."""

    image: ImageArchitecture
    text: dict[str, Any]
    origins: dict[str, Any] = field(default_factory=dict)

    def write(self, run: Path) -> None:
        tree = {"image": self.image.model_dump(mode="json"), "text": self.text}
        write_json(run / FILE, {**tree, "origins": self.origins})

    def build(self, config: ModelConfig) -> DualEncoder:
        """The model with random weights; pooling, projections and what trains are the configuration's."""
        text_tower = TextTower(rebuild_trunk(self.text), config.text.pooling)
        return DualEncoder(rebuild_image_tower(self.image), text_tower, config)


def towers_of(model: DualEncoder, origins: dict[str, Any]) -> RunTowers:
    return RunTowers(model.image_tower.architecture, trunk_config(model.text_tower.trunk), origins)


def read_towers(run: Path) -> RunTowers | None:
    """What `RunTowers.write` wrote; None: nothing did. UserError: the file is damaged."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        image, text, origins = tree["image"], dict(tree["text"]), dict(tree["origins"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; copy it again from where the run was trained") from None
    return RunTowers(validate(ImageArchitecture, image, str(path)), text, origins)


def build_run(run: Path, config: ModelConfig, tokenizer: Tokenizer) -> DualEncoder:
    """The model of a run, for the weights of one of its checkpoints."""
    towers = read_towers(run)
    if towers is not None:
        return towers.build(config)
    return build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)
