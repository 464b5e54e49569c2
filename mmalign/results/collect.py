"""Everything that was measured on a run, as one `Results`.

    RUN/eval/<suite>/results.json, RUN/finetune/<name>/results.json -> Results

Several fine-tunings may test the same task; each then keeps its numbers under `<task>@<folder>`.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.results.metric_names import subjects
from mmalign.results.results import Results, read_results


def result_files(run: Path) -> list[Path]:
    """The files of what was measured on a run, of whichever of its checkpoints."""
    return sorted((*run.glob("eval/*/results.json"), *run.glob("finetune/*/results.json")))


def measured_on(run: Path, sha256: str) -> dict[Path, Results]:
    """What was measured on the weights of this sha256, by the file that holds it."""
    found = {path: read_results(path) for path in result_files(run)}
    return {path: results for path, results in found.items() if results.model["sha256"] == sha256}


def collect(run: Path) -> Results:
    """The merged results of a run folder.

    Raises:
        UserError: nothing was measured, or some of it on other weights than the rest.
    """
    found = {path: read_results(path) for path in result_files(run)}
    if not found:
        raise UserError(
            f"{run}: nothing was measured on this run yet; use `mmalign eval SUITE --model {run}`"
        )
    _check_same_weights(found)
    return merged(found)


def merged(found: dict[Path, Results]) -> Results:
    """Results of the same weights as one; at least one file."""
    tested = Counter(task for one in found.values() for task in subjects(one.metrics, "text"))
    repeated = {task for task, times in tested.items() if times > 1}
    whole = Results(suite="report", model=next(iter(found.values())).model)
    for path, results in found.items():
        whole.environment.update(results.environment)
        whole.merge(_tell_apart(results, repeated, path.parent.name))
    return whole


def _check_same_weights(found: dict[Path, Results]) -> None:
    first, *others = found
    for path in others:
        if found[path].model["sha256"] != found[first].model["sha256"]:
            raise UserError(
                f"{path}: measured on other weights than {first}; measure the older one again or "
                "remove it"
            )


def _tell_apart(results: Results, tasks: set[str], folder: str) -> Results:
    """The same results with `@<folder>` behind the names of these tasks."""

    def named(name: str) -> str:
        measure, subject, *rest = name.split("/")
        told = measure == "text" and subject in tasks
        return "/".join((measure, f"{subject}@{folder}" if told else subject, *rest))

    return replace(
        results,
        metrics={named(name): value for name, value in results.metrics.items()},
        counts={named(name): value for name, value in results.counts.items()},
        ci95={named(name): value for name, value in results.ci95.items()},
        chance={named(name): value for name, value in results.chance.items()},
        protocol={named(name): value for name, value in results.protocol.items()},
        baselines={
            name: _tell_apart(inner, tasks, folder) for name, inner in results.baselines.items()
        },
    )
