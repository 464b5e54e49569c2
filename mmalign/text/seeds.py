"""One training per seed, and the folder that the seeds leave."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.code_version import code_version
from mmalign.core.commit import committed_folder, sha256_of, write_atomic
from mmalign.core.config import Section, write_yaml
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results
from mmalign.text.heads.base import TaskModel


def run_seeds(
    config: Section,
    seeds: Sequence[int],
    model: str,
    out: Path,
    task: str,
    data: Sequence[Mapping[str, Any]],
    run: Callable[[int], tuple[Results, TextEncoder | TaskModel]],
) -> list[Results]:
    """Train once per seed; rank 0 writes `config.yaml` and `tower/` to `out`. The results of each seed.

    With several seeds, `tower/` and `results.json` of each are in `out/seed-<seed>/`. What an earlier run
    left in `out` is replaced. The caller writes `out/results.json`, last.

    Args:
        model: its name or folder, as `load_text_encoder` takes it.
        task, data: the name of the task or lexicon and its files, recorded beside the weights.
        run: trains and measures one seed.
    """

    def write(seed: int, results: Results, trained: TextEncoder | TaskModel) -> None:
        if seed == seeds[0]:
            # Only now, so that training that fails leaves an earlier result as it was. The old results go
            # before the new tower comes, so that the two never belong to different runs.
            out.mkdir(parents=True, exist_ok=True)
            (out / "results.json").unlink(missing_ok=True)
            write_atomic(out / "config.yaml", write_yaml(config.model_dump(mode="json")))
        folder = out / f"seed-{seed}" if len(seeds) > 1 else out
        folder.mkdir(exist_ok=True)
        facts = {
            "task": task,
            "model": results.model,
            "base_model": None if Path(model).exists() else model,  # no folder: a name on the hub
            "code": code_version(),
            "data": data,
        }
        with committed_folder(folder / "tower", facts) as place:
            trained.save(place)
        if len(seeds) > 1:
            results.write(folder / "results.json")

    runs: list[Results] = []
    for seed in seeds:
        results, trained = run(seed)
        distributed.on_main(partial(write, seed, results, trained))
        runs.append(results)
    return runs


def read_files(folder: Path, paths: Iterable[Path]) -> dict[str, Any]:
    """What to record of files in a folder: `{"folder", "files": {path below it: sha256}}`."""
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    # A name that is not UTF-8 is half surrogate pairs in Python, which JSON files cannot hold.
    files = {
        os.fsencode(name).decode(errors="backslashreplace"): sha256_of(found[name])
        for name in sorted(found)
    }
    return {"folder": str(folder), "files": files}
