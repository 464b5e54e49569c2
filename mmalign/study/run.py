"""A study from its YAML file to `results.json` and `report.html`.

    StudyConfig -> towers (trained where missing) -> cells (computed where missing) -> analysis
                -> results.json, report.html

It can be stopped at any time: the same command continues where it stopped.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import psutil

from mmalign.core.code_version import code_version
from mmalign.core.commit import check_writable, write_atomic
from mmalign.core.config import write_yaml
from mmalign.core.console import say, track
from mmalign.core.workers import usable_cores
from mmalign.report.study_page import write_study_page
from mmalign.results.results import Results, writing
from mmalign.study.analysis import StudyResults, analyse
from mmalign.study.cells import Cell, cells_of, kept_cell, run_cell
from mmalign.study.config import StudyConfig
from mmalign.study.towers import prepare_towers

# Of a worker, roughly: libraries, texts, cached features.
_BASE_BYTES = 2 << 30
# Float32: the tower, the copy that trains, its gradient, two moments of AdamW, the best check.
_BYTES_PER_PARAMETER = 24


def run_study(study: StudyConfig, out: Path, workers: int | None = None) -> StudyResults:
    """Train, fine-tune, measure and compare all that the study names; writes below `out`.

    Args:
        workers: cells computed at the same time; None: one per GPU, or as `workers_for` says.

    Raises:
        UserError: a part of the study that cannot be used, or a training that stops.
    """
    for file in ("study.yaml", "results.json", "report.html", "towers/x", "cells/x"):
        check_writable(out / file)
    out.mkdir(parents=True, exist_ok=True)
    towers = prepare_towers(study, out / "towers")
    cells = cells_of(study, towers)
    workers = workers or workers_for(max(one.parameters for one in towers))
    say(f"{study.name}: {len(towers)} towers, {len(cells)} cells, {workers} at the same time")
    started = time.monotonic()
    computed = {cell.key: results for cell, results in _compute(cells, out / "cells", workers)}
    seconds = round(time.monotonic() - started, 1)
    # In the grid's order. A cell whose training diverged has a sentence in place of numbers.
    both = [(cell, computed[cell.key]) for cell in cells]
    done = [(cell, one) for cell, one in both if isinstance(one, Results)]
    results = analyse(study, towers, done)
    results.diverged = {str(cell): one for cell, one in both if isinstance(one, str)}
    results.environment |= {"cells_seconds": seconds, "workers": workers}
    with writing(out / "study.yaml"):
        write_atomic(out / "study.yaml", write_yaml(study.model_dump(mode="json")))
    results.write(out / "results.json")
    with writing(out / "report.html"):
        write_study_page(asdict(results), out / "report.html")
    return results


def _compute(
    cells: Sequence[Cell], folder: Path, workers: int
) -> Iterator[tuple[Cell, Results | str]]:
    """Every cell with its results as soon as they are there; a line for each, on a terminal also a bar."""
    folder.mkdir(parents=True, exist_ok=True)
    # Cells of equal towers, as untrained ones of several seeds, are one.
    all_cells = {cell.key: cell for cell in cells}
    missing, commits = [], Counter[str]()
    for cell in all_cells.values():
        if (results := kept_cell(cell, folder)) is None:
            missing.append(cell)
        else:
            if isinstance(results, Results):
                commits[str(results.environment.get("commit"))] += 1
            yield cell, results
    del commits[str(code_version()["commit"])]
    if commits:
        say(
            f"{commits.total()} cells in {folder} were computed by other commits of mmalign "
            f"({', '.join(commits)}); delete them to compute them again"
        )
    if not missing:
        return
    if len(missing) < len(all_cells):
        say(f"{len(all_cells) - len(missing)} of {len(all_cells)} cells are kept in {folder}")
    # Not forked: the parent has used torch, whose threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    numbers, gpus = context.SimpleQueue(), gpu_names()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_prepare_worker, initargs=(numbers, gpus)
    ) as pool:
        waiting = {pool.submit(run_cell, cell, folder): cell for cell in missing}
        finished: Iterable[Future[tuple[Results | str, float]]] = as_completed(waiting)
        if sys.stdout.isatty():
            finished = track(finished, "cells", len(missing))
        try:
            for number, future in enumerate(finished, start=1):
                cell = waiting[future]
                results, seconds = future.result()
                words = f"{cell}: {_clean_mean(cell, results)}  ({seconds:.1f} s)"
                say(f"{number} of {len(missing)}  {words}")
                yield cell, results
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _clean_mean(cell: Cell, results: Results | str) -> str:
    if isinstance(results, str):
        return f"no number: {results}"
    prefix = f"text/{cell.task}/mean/clean/"
    primary = (name for name in results.chance if name.startswith(prefix))
    return next((f"{n.removeprefix(prefix)} {results.metrics[n]:.3f}" for n in primary), "done")


def workers_for(parameters: int) -> int:
    """How many cells to compute at once: one per GPU, without GPUs one per core that memory allows.

    Args:
        parameters: of the largest tower.
    """
    cores = len(gpu_names()) or usable_cores()
    fit = psutil.virtual_memory().available // (_BASE_BYTES + _BYTES_PER_PARAMETER * parameters)
    return max(1, min(cores, fit))


def gpu_names() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process sees."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return given[:count] if given != [""] else [str(number) for number in range(count)]


def _prepare_worker(numbers: "SimpleQueue[int]", gpus: Sequence[str]) -> None:
    import torch

    number = numbers.get()
    if gpus:  # dealt in turn; before CUDA starts in this process, which reads the variable once
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    # One thread, so that the number of workers changes no result; no output, the parent reports.
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A parent that is killed cannot stop its workers; they would wait for the next cell for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
