"""Commands that fine-tune text encoders: once, or as a study over many cells."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Overrides, app, find_yaml, is_run, note_command, say
from mmalign.core.errors import UserError


@app.command()
def finetune(
    task: Annotated[
        Path, typer.Argument(metavar="TASK_YAML", help="Fine-tuning YAML, or its name.")
    ],
    model: Annotated[
        str,
        typer.Option("--model", help="Run folder, sentence-transformers or transformers model."),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Result folder; RUN/finetune/<task> if not given.")
    ] = None,
) -> None:
    """Fine-tune a text encoder on English labels and measure it in the other languages.

    Example: mmalign finetune train/finetune/emoji_category.yaml --model runs/demo 'seeds=[0, 1, 2]'

    A file with `lexicon` in place of `task` moves words to their translations instead.

    Example: mmalign finetune train/finetune/lexical_injection.yaml --model runs/storybooks
    """
    from mmalign.text.jobs import headlines, name_of, read_job, run_job

    job = read_job(find_yaml(task, "train/finetune"), overrides or ())
    if out is None and not is_run(model):
        raise UserError(f"{model}: not a run folder; say with --out where the results go")
    out = out or Path(model) / "finetune" / name_of(job)
    results = run_job(job, model, out)
    for name in headlines(job, results):
        chance = f", chance {results.chance[name]:.4f}" if name in results.chance else ""
        say(f"{name}  {results.metrics[name]:.4f}  (n = {results.counts[name]}{chance})")
    say(f"{out / 'results.json'}")
    if is_run(model):
        note_command(Path(model))


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY_YAML", help="Study YAML, or its name.")],
    out: Annotated[Path, typer.Option(help="Folder of towers, cells, results and report.")],
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at the same time; all cores if not given.")
    ] = None,
) -> None:
    """Compare towers and ways of fine-tuning over tasks, perturbations and seeds; answer in words.

    Example: mmalign study eval/study_demo.yaml --out runs/study_demo

    It may be stopped at any time: the same command resumes it.
    """
    from mmalign.core.config import load_config
    from mmalign.study.config import StudyConfig
    from mmalign.study.run import run_study

    config = load_config(StudyConfig, find_yaml(file, "eval"), overrides or ())
    results = run_study(config, out, workers or os.cpu_count() or 1)
    for sentence in results.answer:
        say(sentence)
    say(f"{out / 'results.json'}")
    say(f"{out / 'report.html'}")
