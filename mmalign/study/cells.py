"""The cells of a study: one fine-tuning each, kept by the hash of everything that it depends on.

StudyConfig + towers -> Cell (tower, task, method, seed) -> key -> cells/<key>/results.json

What was trained for a cell is kept beside `cells/`, in `fits/`: cells that differ in their tests share it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmalign.core.code_version import VERSION
from mmalign.core.commit import write_atomic
from mmalign.core.config import apply_override_value, read_yaml
from mmalign.core.errors import Diverged, UserError
from mmalign.core.resources import find_yaml
from mmalign.models.load import load_text_encoder
from mmalign.results.results import Results, read_results
from mmalign.study.config import StudyConfig
from mmalign.study.towers import TrainedTower
from mmalign.text import jobs
from mmalign.text.jobs import Job
from mmalign.text.kept_fits import files_read_by, hash_of_files, tower_identity

_DIVERGED = "diverged.txt"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the grid; `config` is resolved, and its `seeds` hold the one of this cell."""

    tower: TrainedTower
    task: str
    method: str
    seed: int
    config: Job
    key: str

    def __str__(self) -> str:
        return f"{self.tower} · {self.task} · {self.method} · seed {self.seed}"


def cells_of(study: StudyConfig, towers: Sequence[TrainedTower]) -> list[Cell]:
    """All cells: the whole grid on the first pretraining seed, the headline's on the others.

    Raises:
        UserError: a task or a method that is no valid fine-tuning.
    """
    configs = fine_tunings(study)
    hash_once = cache(hash_of_files)
    cells = []
    for tower in towers:
        is_first = tower.seed in (None, study.pretraining_seeds[0])
        for (task, method), config in configs.items():
            if is_first or method == study.headline.method:
                cells += [
                    _cell(tower, task, method, config, seed, hash_once) for seed in study.seeds
                ]
    return cells


def fine_tunings(study: StudyConfig) -> dict[tuple[str, str], Job]:
    """(task, method) -> the fine-tuning, for every combination that the study wants."""
    configs = {}
    for entry in study.tasks:
        path, own = (entry, {}) if isinstance(entry, str) else (entry.finetune, entry.set)
        for method, changes in study.methods.items():
            tree = read_yaml(find_yaml(path, "train/finetune"))
            for dotted, value in (own | changes).items():
                apply_override_value(tree, dotted, value)
            # A study has its own seeds, folds and baselines.
            tree |= {"seeds": [0]}
            if "lexicon" not in tree:
                tree |= {"baselines": [], "folds": None}
            config = jobs.job_of(tree, f"{path} with method `{method}`")
            name = jobs.name_of(config)
            if (name, method) in configs:
                raise UserError(
                    f"{path}: two tasks are named `{name}`; give one another name by `set`"
                )
            configs[name, method] = config
    tasks = {name for name, _ in configs}
    for method, only in study.only.items():
        if lacking := sorted(set(only) - tasks):
            raise UserError(
                f"only: `{method}` is used with `{lacking[0]}`, which is no task; the tasks are "
                f"{', '.join(sorted(tasks))}"
            )
    return {
        (name, method): config
        for (name, method), config in configs.items()
        if name in study.only.get(method, (name,))
    }


def _cell(
    tower: TrainedTower,
    task: str,
    method: str,
    config: Job,
    seed: int,
    hash_once: Callable[[Path], str],
) -> Cell:
    config = config.model_copy(update={"seeds": (seed,)})
    # A tower of one seed is never used for another, and cells of changed data are computed again. A change of
    # the code between two versions does not change the key; `run_study` says so.
    tree = config.model_dump(mode="json")
    parts = {
        "tower": tower.identity,
        "config": tree,
        "files": {str(path): hash_once(path) for path in files_read_by(tree)},
        "mmalign": VERSION,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
    return Cell(tower, task, method, seed, config, key)


def kept_cell(cell: Cell, folder: Path) -> Results | str | None:
    """The results of a cell that was computed before; of a training that diverged, the sentence."""
    path, diverged = folder / cell.key / "results.json", folder / cell.key / _DIVERGED
    if path.is_file():
        return read_results(path)
    return diverged.read_text(encoding="utf-8") if diverged.is_file() else None


def run_cell(cell: Cell, folder: Path) -> tuple[Results | str, float]:
    """Compute and keep the results of a cell; also returns the seconds that it took.

    Of a training that diverged the sentence that says so: the cell has no number, and the study goes on.
    """
    started = time.monotonic()
    tower = load_text_encoder(cell.tower.path, cell.tower.untrained)
    if tower_identity(tower) != cell.tower.identity:
        raise UserError(
            f"{cell.tower.path}: has changed since the study began; train no further in this folder, and run "
            "the study again"
        )
    results: Results | str
    try:
        results = jobs.run_cell(cell.config, tower, cell.seed, folder.with_name("fits"))
        results.write(folder / cell.key / "results.json")
    except Diverged as error:
        results = str(error)
        (folder / cell.key).mkdir(parents=True, exist_ok=True)
        write_atomic(folder / cell.key / _DIVERGED, results)
    return results, time.monotonic() - started
