"""The towers of a study: trained where they are missing, one run folder per seed.

run YAML + seed -> towers/<name>-seed<seed>-<hash of configuration and data> -> weights
                                                                             -> tower.json: sha256, size, time

What is in `tower.json` names a tower's cells, so where these are kept its weights may be deleted.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from mmalign.core.commit import write_json
from mmalign.core.config import load_config
from mmalign.core.console import run_verb, say
from mmalign.core.resources import find_yaml
from mmalign.data.shards.folder import open_folder
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder
from mmalign.study.config import StudyConfig, TowerConfig
from mmalign.training.run_config import RunConfig

_FACTS = "tower.json"


@dataclass(frozen=True)
class TrainedTower:
    """A tower that can be fine-tuned.

    Attributes:
        seed: of its pretraining; None for a tower that the study did not train.
        path: what `load_text_encoder` takes.
        seconds: that its training took here; None where it was not trained here or was continued.
    """

    name: str
    seed: int | None
    path: str
    untrained: bool
    sha256: str
    seconds: float | None
    parameters: int = 0

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name}, pretraining seed {self.seed}"


def prepare_towers(study: StudyConfig, folder: Path) -> list[TrainedTower]:
    """Every tower of the grid on the first pretraining seed, the headline's on all.

    Raises:
        UserError: a run file that is not valid, or a training that stops.
    """
    headline = (study.headline.tower, *study.headline.against)
    towers = []
    for name, config in study.towers.items():
        if config.path is not None:
            tower = load_text_encoder(config.path)
            sha256, parameters = tower.facts["sha256"], size_of(tower)
            towers.append(TrainedTower(name, None, config.path, False, sha256, None, parameters))
            continue
        seeds = study.pretraining_seeds if name in headline else study.pretraining_seeds[:1]
        towers += [_train(name, config, seed, folder) for seed in seeds]
    return towers


def _train(name: str, config: TowerConfig, seed: int, folder: Path) -> TrainedTower:
    """Train the run with this seed, unless that was done."""
    assert config.run is not None
    # JSON is YAML: any value of `set` can be written as an override.
    changes = [f"{field}={json.dumps(value)}" for field, value in config.set.items()]
    changes.append(f"seed={seed}")
    run = load_config(RunConfig, find_yaml(config.run, "train"), changes)
    data = [
        open_folder(one.path, run.data.remote, check_files=False)[1].sha256
        for one in run.data.train
    ]
    parts = json.dumps([run.model_dump(mode="json"), data], sort_keys=True)
    out = folder / f"{run.name}-seed{seed}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
    if not (out / _FACTS).is_file():
        say(f"tower {name}, pretraining seed {seed}: training in {out}")
        is_new = not out.exists()
        started = time.monotonic()
        run_verb(["train", config.run, *changes, "--out", str(out)])
        # A training that continues after a stop does not know how long the first part took.
        seconds = time.monotonic() - started if is_new else None
        tower, before = (load_text_encoder(str(out), untrained) for untrained in (False, True))
        facts = {
            "seconds": seconds,
            "sha256": tower.facts["sha256"],
            "untrained_sha256": before.facts["sha256"],
            "parameters": size_of(tower),
        }
        write_json(out / _FACTS, facts)
    facts = json.loads((out / _FACTS).read_text(encoding="utf-8"))
    sha256 = facts["untrained_sha256" if config.untrained else "sha256"]
    # An untrained tower shares its run's folder, but not the time of its training.
    seconds = None if config.untrained else facts["seconds"]
    parameters = facts["parameters"]
    return TrainedTower(name, seed, str(out), config.untrained, sha256, seconds, parameters)


def size_of(tower: TextEncoder) -> int:
    return sum(one.numel() for one in tower.parameters())
