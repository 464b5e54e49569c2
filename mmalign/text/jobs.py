"""The two things that a fine-tuning YAML can ask for, distinguished by its first section.

YAML with `task:`     -> FinetuneConfig          labels of one language, measured in the others
YAML with `lexicon:`  -> LexicalInjectionConfig  words moved to their translations at one layer
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.commit import check_writable
from mmalign.core.config import apply_override, read_yaml, validate
from mmalign.core.errors import UserError
from mmalign.evaluation.lexical_probe import HELD_OUT, PRECISION
from mmalign.models.load import OWN_PROMPTS
from mmalign.models.prompts import Side
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.results.protocol import HOW, joined
from mmalign.results.results import Results
from mmalign.text import finetune
from mmalign.text.finetune import FinetuneConfig
from mmalign.text.lexical import inject
from mmalign.text.lexical.config import LexicalInjectionConfig
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
    cls: type[Job] = LexicalInjectionConfig if "lexicon" in tree else FinetuneConfig
    return validate(cls, tree, where)


def name_of(job: Job) -> str:
    """The name of the task or of the lexicon."""
    return job.lexicon.name if isinstance(job, LexicalInjectionConfig) else job.task.name


def run_job(job: Job, model: str, out: Path, prompts: Mapping[Side, str] = OWN_PROMPTS) -> Results:
    """Fine-tune `model` with every seed and write towers and results to `out`.

    Args:
        prompts: in place of the model's own, see `load_model`.

    Raises:
        UserError: `out` cannot be written, which is known before any work; and as the two kinds of job.
    """
    # Before a model is loaded and words are probed: training may take hours.
    distributed.on_main(partial(_check_outputs, job, out))
    if isinstance(job, LexicalInjectionConfig):
        if distributed.world_size() > 1:
            raise UserError("a lexical injection runs in one process; leave torchrun out")
        return inject.inject(job, model, out, prompts)
    return finetune.finetune(job, model, out, prompts)


def _check_outputs(job: Job, out: Path) -> None:
    check_writable(out / "config.yaml")
    for folder in (out, *(out / f"seed-{seed}" for seed in job.seeds if len(job.seeds) > 1)):
        check_writable(folder / "results.json")
        check_writable(folder / "tower", is_folder=True)


def headlines(job: Job, results: Results) -> list[str]:
    """The names of the metrics that the command line prints: means over the languages."""
    names = {text: MetricName.parse(text) for text in results.metrics}
    means = {text: name for text, name in names.items() if name.language == MEAN}
    if isinstance(job, FinetuneConfig):
        return [text for text, name in means.items() if name.metric in PRIMARY.values()]
    # Not the trained words, which training moves together in any case.
    wanted = (HELD_OUT, PRECISION)
    return [text for text, name in means.items() if (name.setting[-1], name.metric) == wanted]


def run_cell(job: Job, tower: TextEncoder, seed: int, fits: Path) -> Results:
    """One seed, as a study reads it: metrics `text/<task>/<language or mean>/<variant>/<metric>`.

    Args:
        fits: where what is trained is kept, see `fit`.
    """
    if isinstance(job, LexicalInjectionConfig):
        return as_task(inject.run_seed(tower, job, seed)[0], job)
    return finetune.run_seed(tower, read_task(job.task), job, seed, fits)[0]


def as_task(results: Results, job: LexicalInjectionConfig) -> Results:
    """Precision@1 of the held-out words at the trained layer, in place of a task's accuracy."""
    subject, layer = job.lexicon.name, str(results.model["layer"])
    task = f"text/{subject}"
    first = {HOW: "Precision@1 of held-out words at layer {layer}."}
    protocol = {task: joined(first, results.protocol[f"{inject.INJECTED}/{subject}"])}
    found = replace(
        results, metrics={}, counts={}, ci95={}, chance={}, protocol=protocol, suite=task
    )
    wanted = (inject.INJECTED, subject, (layer, HELD_OUT), PRECISION)
    for text, metric in results.metrics.items():
        name = MetricName.parse(text)
        if (name.measure, name.subject, name.setting, name.metric) == wanted:
            own = f"{task}/{name.language}/clean/{PRECISION}"
            # A study compares word by word where the values of single words were kept.
            hits = results.values.get(text, metric)
            ids = results.ids_of(text) if text in results.values else None
            found.add(own, hits, results.counts[text], results.chance[text], ids)
    return found
