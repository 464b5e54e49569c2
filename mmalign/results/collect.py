"""Everything that was measured on a run, as one `Results`.

    RUN/eval/<suite>/results.json, RUN/finetune/<name>/results.json -> Results

Several fine-tunings may test the same task; each then keeps its numbers under `<task>@<folder>`.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.results.metric_names import mark_subjects, subjects
from mmalign.results.results import Results, read_results


def result_files(run: Path) -> list[Path]:
    """The files of everything that was measured on a run, whichever checkpoint it was."""
    return sorted((*run.glob("eval/*/results.json"), *run.glob("finetune/*/results.json")))


def measured_on(run: Path, sha256: str) -> dict[Path, Results]:
    """The results of the weights with this sha256, by the file that holds them."""
    found = {path: read_results(path) for path in result_files(run)}
    return {
        path: results for path, results in found.items() if results.model.get("sha256") == sha256
    }


def collect(run: Path) -> Results:
    """The merged results of a run folder.

    Raises:
        UserError: nothing was measured, or some of it on other weights than the rest.
    """
    found = {path: read_results(path) for path in result_files(run)}
    if not found:
        raise UserError(
            f"{run}: nothing was measured on it; use `mmalign eval SUITE --model {run}`"
        )
    first = next(iter(found))
    for path, results in found.items():
        if results.model.get("sha256") != found[first].model.get("sha256"):
            raise UserError(f"{path}: measured on other weights than {first}; remove the older one")
    return merged(found)


def merged(found: dict[Path, Results]) -> Results:
    """Results of the same weights as one; at least one file."""
    tested = Counter(task for one in found.values() for task in subjects(one.metrics, "text"))
    # Only then: a mark on every name would make two runs incomparable.
    repeated = {task for task, times in tested.items() if times > 1}
    everything = Results(suite="report", model=next(iter(found.values())).model)
    for path, results in found.items():
        everything.environment.update(results.environment)
        everything.merge(_marked(results, repeated, f"@{path.parent.name}"))
    return everything


def _marked(results: Results, tasks: Collection[str], mark: str) -> Results:
    """The same results with a mark behind the names of these tasks."""
    # A copy has no values of single queries, which a collection does not hold.
    marked = replace(results)
    marked.baselines = {n: _marked(inner, tasks, mark) for n, inner in results.baselines.items()}
    for field in ("metrics", "counts", "ci95", "chance", "protocol"):
        named = getattr(results, field).items()
        setattr(marked, field, {mark_subjects(n, "text", tasks, mark): v for n, v in named})
    return marked
