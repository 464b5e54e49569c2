"""Commands that fine-tune text encoders: once, or as a study over many cells."""

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import (
    Overrides,
    PromptPassage,
    PromptQuery,
    app,
    find_yaml,
    given_prompts,
    note_command,
    result_folder,
    say,
    say_metrics,
)
from mmalign.core.commit import check_writable


@app.command()
def finetune(
    task: Annotated[Path, typer.Argument(metavar="TASK_YAML", help="Task YAML, or its name.")],
    model: Annotated[str, typer.Option("--model", help="Run, or any text encoder.")],
    overrides: Overrides = None,
    prompt_query: PromptQuery = None,
    prompt_passage: PromptPassage = None,
    out: Annotated[Path | None, typer.Option(help="Result folder; RUN/finetune/<task>.")] = None,
) -> None:
    """Fine-tune a text encoder on English labels and measure it in the other languages.

    Example: mmalign finetune train/finetune/emoji_category.yaml --model runs/demo 'seeds=[0, 1, 2]'

    Example: mmalign finetune train/finetune/sib200.yaml --model intfloat/multilingual-e5-small
    --prompt-query 'query: ' --out runs/sib200

    Example: torchrun --nproc-per-node 2 --no-python mmalign finetune train/finetune/sib200.yaml
    --model xlm-roberta-base --out runs/sib200 trainable=all

    A file with `lexicon` in place of `task` moves words to their translations instead.

    Example: mmalign finetune train/finetune/lexical_injection.yaml --model runs/storybooks
    """
    from mmalign.core import distributed
    from mmalign.text.jobs import headlines, name_of, read_job, run_job

    job = read_job(find_yaml(task, "train/finetune"), overrides or ())
    out = result_folder(model, f"finetune/{name_of(job)}", out)
    distributed.start()
    results = run_job(job, model, out, given_prompts(prompt_query, prompt_passage))
    say_metrics(results, headlines(job, results))
    say(f"{out / 'results.json'}")
    note_command(Path(model))
    distributed.stop()


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY_YAML", help="Study YAML, or its name.")],
    out: Annotated[Path, typer.Option(help="Folder of towers, cells, results and report.")],
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at once; one per GPU or core.")
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
    check_writable(out, is_folder=True)
    results = run_study(config, out, workers)
    for sentence in results.answer:
        say(sentence)
    say(f"{out / 'results.json'}")
    say(f"{out / 'report.html'}")
