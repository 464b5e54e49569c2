"""The towers of a study: trained where they are missing, one run folder per seed.

run YAML + seed -> towers/<name>-seed<seed>-<hash of configuration and data> -> weights
                                                                             -> study.json: sha256, size, time

What is in `study.json` names a tower's cells, so where these are kept its weights may be deleted.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.core.commit import write_json
from mmalign.core.config import load_config
from mmalign.core.console import run_verb, say
from mmalign.core.resources import find_yaml
from mmalign.data.shards.folder import open_folder
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder
from mmalign.study.config import StudyConfig, TowerConfig
from mmalign.text.kept_fits import tower_identity
from mmalign.training.run_config import RunConfig

_FACTS = "study.json"  # not tower.json, by which a fine-tuned tower is known


@dataclass(frozen=True)
class TrainedTower:
    """A tower that can be fine-tuned.

    Attributes:
        seed: of its pretraining; None for a tower that the study did not train.
        path: what `load_text_encoder` takes.
        sha256: of the weights.
        identity: of all that its features depend on, see `tower_identity`.
        seconds: that its training took here; None where it was not trained here or was continued.
    """

    name: str
    seed: int | None
    path: str
    untrained: bool
    sha256: str
    identity: str
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
            given = _names_of(load_text_encoder(config.path))
            towers.append(TrainedTower(name, None, config.path, False, seconds=None, **given))
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
        facts = {
            "seconds": seconds,
            "trained": _names_of(load_text_encoder(str(out))),
            "untrained": _names_of(load_text_encoder(str(out), untrained=True)),
        }
        write_json(out / _FACTS, facts)
    facts = json.loads((out / _FACTS).read_text(encoding="utf-8"))
    names = facts["untrained" if config.untrained else "trained"]
    # An untrained tower shares its run's folder, but not the time of its training.
    seconds = None if config.untrained else facts["seconds"]
    return TrainedTower(name, seed, str(out), config.untrained, seconds=seconds, **names)


def _names_of(tower: TextEncoder) -> dict[str, Any]:
    parameters = sum(one.numel() for one in tower.parameters())
    sha256, identity = tower.facts["sha256"], tower_identity(tower)
    return {"sha256": sha256, "identity": identity, "parameters": parameters}
