"""Verbs that measure models and show what came out."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Overrides, Run, app, is_run, note_command, say
from mmalign.errors import UserError

Model = Annotated[
    str,
    typer.Option(
        "--model", help="Run folder or one of its checkpoints; of a text suite any text encoder."
    ),
]


@app.command("eval")
def evaluate(
    suite: Annotated[Path, typer.Argument(metavar="SUITE", help="Suite YAML.")],
    model: Model,
    overrides: Overrides = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Measure the model before its first step as well.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Result folder; RUN/eval/<suite> if not given.")
    ] = None,
) -> None:
    """Measure a model with a suite: of images and captions (`sets`), or of text tasks (`groups`).

    Example: mmalign eval eval/emoji_scenes.yaml --model runs/demo --untrained

    Example: mmalign eval eval/xtreme_r.yaml --model xlm-roberta-base --out runs/xtreme_r
    """
    from mmalign import distributed
    from mmalign.config import read_yaml

    measure = _measure_texts if "groups" in read_yaml(suite) else _measure_images
    folder = measure(suite, list(overrides or ()), model, untrained, out)
    say(f"{folder / 'results.json'}")
    if is_run(model):
        note_command(Path(model))
    distributed.stop()


@app.command()
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="HTML file; RUN/report.html if not given.")
    ] = None,
) -> None:
    """Gather a run's results into RUN/results.json and one self-contained HTML page.

    Example: mmalign report runs/demo
    """
    from mmalign.report.collect import collect
    from mmalign.report.page import write_report

    results = collect(run)
    note_command(run)  # before the page, which shows the commands
    results.write(run / "results.json")
    out = out or run / "report.html"
    write_report(run, out)
    say(f"{out}")


def _measure_images(
    suite: Path, overrides: list[str], model: str, untrained: bool, out: Path | None
) -> Path:
    """Run a suite of shards, on all ranks; the folder of its results."""
    from mmalign import distributed
    from mmalign.config import load_config
    from mmalign.evaluation.encoder import load_encoder, run_of
    from mmalign.evaluation.suite import SuiteConfig, means_of, run_suite

    config = load_config(SuiteConfig, suite, overrides)
    run = Path(model)
    if out is None and run_of(run) != run:
        raise UserError(f"{model}: a checkpoint of a run; say with --out where the results go")
    distributed.start()
    baselines = {"untrained": load_encoder(run, untrained=True)} if untrained else {}
    out = out or run / "eval" / config.name
    results = run_suite(config, load_encoder(run), out, baselines)
    for name, value in means_of(results).items():
        luck = results.chance[name]
        say(f"{name}  {value:.4f}  (n = {results.counts[name]}, chance {luck:.4f})")
    return out


def _measure_texts(
    suite: Path, overrides: list[str], model: str, untrained: bool, out: Path | None
) -> Path:
    """Run a suite of text tasks; the folder of its results."""
    from mmalign.config import load_config
    from mmalign.evaluation.scores import PRIMARY
    from mmalign.finetuning.suite import TextSuiteConfig, run_text_suite

    config = load_config(TextSuiteConfig, suite, overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{suite}: a suite of text tasks runs in one process; leave torchrun out")
    if out is None and not is_run(model):
        raise UserError(f"{model}: not a run folder; say with --out where the results go")
    out = out or Path(model) / "eval" / config.name
    results = run_text_suite(config, model, out, untrained)
    for name, value in results.metrics.items():
        is_headline = "/mean/" in name and name.rpartition("/")[2] in PRIMARY.values()
        if is_headline or "/published/" in name:
            say(f"{name}  {value:.4f}  (n = {results.counts[name]})")
    return out
