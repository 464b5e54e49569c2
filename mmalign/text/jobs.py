"""The two things that a fine-tuning YAML can ask for, told apart by what it names.

    YAML with `task:`     -> FinetuneConfig          labels of one language, measured in the others
    YAML with `lexicon:`  -> LexicalInjectionConfig  words drawn to their translations at one layer

`mmalign finetune` runs them, `mmalign study` takes either as a task of its grid.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmalign.core.config import apply_override, read_yaml, validate
from mmalign.evaluation.lexical_probe import HELD_OUT, PRECISION
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import MEAN
from mmalign.results.results import Results
from mmalign.text import loop
from mmalign.text.lexical import inject
from mmalign.text.lexical.config import LexicalInjectionConfig
from mmalign.text.loop import FinetuneConfig
from mmalign.text.scores import PRIMARY
from mmalign.text.tasks.read import read_task

Job = FinetuneConfig | LexicalInjectionConfig


def read_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """The fine-tuning that a YAML file describes.

    Raises:
        UserError: one sentence with the file, the field and what is wrong.
    """
    tree = read_yaml(path)
    for override in overrides:
        apply_override(tree, override)
    return job_of(tree, str(path))


def job_of(tree: dict[str, Any], where: str) -> Job:
    """The same from the content of a file; `where` names it in a message."""
    if "lexicon" in tree:
        return validate(LexicalInjectionConfig, tree, where)
    return validate(FinetuneConfig, tree, where)


def name_of(job: Job) -> str:
    """The name of the task or of the lexicon."""
    return job.lexicon.name if isinstance(job, LexicalInjectionConfig) else job.task.name


def run_job(job: Job, model: str, out: Path) -> Results:
    """Fine-tune `model` with every seed and write what comes out to `out`."""
    if isinstance(job, LexicalInjectionConfig):
        return inject.inject(job, model, out)
    return loop.finetune(job, model, out)


def headlines(job: Job, results: Results) -> list[str]:
    """The names of the metrics that a person wants to see first."""
    if isinstance(job, LexicalInjectionConfig):
        tail = f"/{HELD_OUT}/{PRECISION}"
        return [name for name in results.metrics if f"/{MEAN}/" in name and name.endswith(tail)]
    primary = set(PRIMARY.values())
    return [
        name
        for name in results.metrics
        if f"/{MEAN}/" in name and name.rpartition("/")[2] in primary
    ]


def run_cell(job: Job, tower: TextEncoder, seed: int) -> Results:
    """One seed, as a study reads it: metrics `text/<task>/<language or mean>/<variant>/<metric>`."""
    if isinstance(job, LexicalInjectionConfig):
        return as_task(inject.run_seed(tower, job, seed)[0], job)
    return loop.run_seed(tower, read_task(job.task), job, seed)[0]


def as_task(results: Results, job: LexicalInjectionConfig) -> Results:
    """Precision@1 of the held-out words at the trained layer, in the place of a task's accuracy."""
    subject, layer = job.lexicon.name, str(results.model["layer"])
    head = f"{inject.INJECTED}/{subject}"
    told = replace(
        results, metrics={}, counts={}, ci95={}, chance={}, protocol={}, suite=f"text/{subject}"
    )
    for name in results.metrics:
        if name.startswith(f"{head}/") and name.split("/")[3:] == [layer, HELD_OUT, PRECISION]:
            own = f"text/{subject}/{name.split('/')[2]}/clean/{PRECISION}"
            hits = results.values.get(name, results.metrics[name])
            told.add(own, hits, results.counts[name], results.chance[name])
    told.protocol[f"text/{subject}"] = (
        f"Precision@1 of held-out words at layer {layer}. {results.protocol[head]}"
    )
    return told
