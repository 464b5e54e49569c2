"""Tasks of mteb (arXiv 2210.07316), run and scored by mteb itself on any model that is measured here.

    names -> mteb.get_tasks -> mteb.evaluate(MtebModel) -> its scores of each split and subset -> Results

    mteb/<task>/<language, pair of languages or subset>/<split>/<mteb's name of the metric>
    mteb/<task>/mean/<split>/<main metric>            over the subsets

mteb reads its data sets from the hub or its cache and keeps no count of what it scored, so a metric's count
is that of the rows which it had encoded: the queries of retrieval, all rows otherwise.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.models.encoder import DualModel
from mmalign.models.external.mteb import MtebModel
from mmalign.results.metric_names import MEAN
from mmalign.results.protocol import HOW
from mmalign.results.results import Results, environment


def run_mteb(names: Sequence[str], model: DualModel) -> Results:
    """Measure a model on tasks of mteb.

    Args:
        names: as mteb spells them.

    Raises:
        UserError: mteb is not installed, a task that it does not know, or data that it cannot read.
    """
    try:
        import mteb
    except ImportError:
        raise UserError("mteb is not installed; `pip install 'mmalign[mteb]'` brings it") from None
    try:
        tasks = list(mteb.get_tasks(tasks=list(names)))
    except KeyError as error:
        raise UserError(f"mteb {mteb.__version__}: {error.args[0]}") from None
    return measure_tasks(tasks, model)


def measure_tasks(tasks: Sequence[Any], model: DualModel) -> Results:
    """As `run_mteb`, with task objects of mteb."""
    import mteb

    counting = MtebModel(model)
    results = Results(suite="mteb", model=model.facts, environment=environment())
    for task in tasks:
        name = task.metadata.name
        try:
            # Without its cache: that would hand out scores of another model of this name.
            done = mteb.evaluate(
                counting, task, cache=None, show_progress_bar=False, co2_tracker=False
            )
        except (OSError, ConnectionError) as error:
            raise UserError(f"mteb {name}: its data cannot be read ({error})") from None
        _add(results, task, done.task_results[0].scores, counting, mteb.__version__)
    return results


def _add(
    results: Results, task: Any, scores: dict[str, Any], counting: MtebModel, version: str
) -> None:
    name, main = task.metadata.name, task.metadata.main_score
    subsets = []
    for split, found in scores.items():
        labels = _labels(found)
        counts = [_count(counting, name, split, one["hf_subset"]) for one in found]
        for one, label, count in zip(found, labels, counts, strict=True):
            for metric, value in one.items():
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if is_number and metric != "main_score" and math.isfinite(value):
                    key = f"mteb/{name}/{label}/{split}/{metric.replace('/', '_')}"
                    results.add(key, float(value), count)
        if len(found) > 1:
            mean = float(np.mean([one["main_score"] for one in found]))
            results.add(f"mteb/{name}/{MEAN}/{split}/{main}", mean, sum(counts))
        subsets += labels
    revision = str(task.metadata.dataset.get("revision"))
    results.data[f"mteb/{name}"] = revision
    results.protocol[f"mteb/{name}"] = {
        HOW: "Task {task} of mteb {version}, data {path} at revision {revision}, main metric {main}; the "
        "count is that of the encoded rows. `mean`: over {subsets}.",
        "task": name,
        "version": version,
        "path": str(task.metadata.dataset.get("path")),
        "revision": revision,
        "main": main,
        "subsets": list(dict.fromkeys(subsets)),
    }


def _count(model: MtebModel, task: str, split: str, subset: str) -> int:
    """Queries that were encoded; where nothing is a query, all rows."""
    queries = model.rows[task, split, subset, "query"]
    return queries or sum(n for key, n in model.rows.items() if key[:3] == (task, split, subset))


def _labels(found: Sequence[dict[str, Any]]) -> list[str]:
    """For each subset its language or pair of languages; where these are not its own, mteb's name."""
    languages = []
    for one in found:
        # mteb sorts the languages of a pair; only the name of the subset has their order.
        pair = one["hf_subset"].split("-")
        named = pair if len(pair) == 2 == len(one["languages"]) else one["languages"]
        codes = [canonical_language(re.split("[-_]", code)[0]) for code in named]
        languages.append("-".join(codes) if 1 <= len(codes) <= 2 else one["hf_subset"])
    if len(set(languages)) < len(languages):
        languages = [one["hf_subset"] for one in found]
    return [one.replace("/", "_") for one in languages]
