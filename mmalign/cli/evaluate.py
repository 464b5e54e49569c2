"""Verbs that measure models and show the results."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Overrides, Run, app, find_yaml, is_run, note_command, say
from mmalign.core.errors import UserError

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Run folder or one of its checkpoints, or any model: an exported folder, a hub name, "
        "`open_clip:ViT-B-32/laion2b_s34b_b79k`; of a text suite any text encoder.",
    ),
]


@app.command("eval")
def evaluate(
    suite: Annotated[Path, typer.Argument(metavar="SUITE", help="Suite YAML, or its name.")],
    model: Model,
    overrides: Overrides = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Measure the model before its first step as well.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Result folder; RUN/eval/<suite> if not given.")
    ] = None,
) -> None:
    """Measure a model with a suite: of images and texts, of text tasks (`groups`), or of FAISS (`indexes`).

    Example: mmalign eval eval/emoji_scenes.yaml --model runs/demo --untrained

    Example: mmalign eval eval/xm3600.yaml --model open_clip:ViT-B-32/laion2b_s34b_b79k --out runs/peer

    Example: mmalign eval eval/faiss.yaml --model runs/demo

    Example: mmalign eval eval/xtreme_r.yaml --model xlm-roberta-base --out runs/xtreme_r
    """
    from mmalign.core import distributed
    from mmalign.core.config import read_yaml

    suite = find_yaml(suite, "eval")
    fields = read_yaml(suite)
    measure = _measure_images
    if "groups" in fields:
        measure = _measure_texts
    elif "indexes" in fields:
        measure = _measure_indexes
    folder = measure(suite, list(overrides or ()), model, untrained, out)
    say(f"{folder / 'results.json'}")
    if is_run(model):
        note_command(Path(model))
    distributed.stop()


@app.command()
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="A B [C]...", help="Run folders, result folders, results.json."),
    ],
    suite: Annotated[
        str | None, typer.Option(help="Of run folders that were measured with several suites.")
    ] = None,
    languages: Annotated[
        bool, typer.Option("--languages", help="Every language, not only the means.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the table: .json, .csv or .md.")
    ] = None,
) -> None:
    """One table of models measured on the same data, with paired differences to the first.

    Example: mmalign compare runs/demo runs/peer --languages --out comparison.md
    """
    from mmalign.results import comparison

    if out is not None:
        comparison.check_target(out)
    table = comparison.compare(results, suite, languages)
    comparison.show(table)
    if out is not None:
        comparison.write_comparison(table, out)
        say(f"{out}")


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
    from mmalign.report.page import write_report
    from mmalign.results.collect import collect

    results = collect(run)
    note_command(run)  # before the page, which shows the commands
    results.write(run / "results.json")
    out = out or run / "report.html"
    write_report(run, out)
    say(f"{out}")


@app.command()
def search(
    model: Model,
    data: Annotated[Path, typer.Option(help="Folder of shards to search.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    cache: Annotated[Path, typer.Option(help="Where embeddings are kept.")] = Path(
        "data/embeddings"
    ),
) -> None:
    """Serve a page: type in any language and see images, drop an image and see captions.

    Example: mmalign search --model runs/demo --data data/emoji_scenes/test
    """
    from mmalign.core import distributed
    from mmalign.models.load import load_model
    from mmalign.search.corpus import build_index
    from mmalign.search.server import serve

    distributed.start()
    index = build_index(load_model(model), data, cache)
    serve(index, host, port, lambda url: say(f"{url}  (Ctrl-C ends it)"))


def _measure_images(
    suite: Path, overrides: list[str], model: str, untrained: bool, out: Path | None
) -> Path:
    """Run a suite of shards, on all ranks; the folder of its results."""
    from mmalign.core import distributed
    from mmalign.core.config import load_config
    from mmalign.evaluation.suite import SuiteConfig, means_of, run_suite
    from mmalign.models.encoder import DualModel, load_encoder, run_of
    from mmalign.models.load import load_model

    config = load_config(SuiteConfig, suite, overrides)
    out = _result_folder(model, config.name, out)
    if untrained and not is_run(str(run_of(Path(model)))):
        raise UserError(f"{model}: not a run; only a run knows its model before training")
    distributed.start()
    baselines: dict[str, DualModel] = {}
    if untrained:
        baselines["untrained"] = load_encoder(Path(model), untrained=True)
    results = run_suite(config, load_model(model), out, baselines)
    for name, value in means_of(results).items():
        chance = f", chance {results.chance[name]:.4f}" if name in results.chance else ""
        say(f"{name}  {value:.4f}  (n = {results.counts[name]}{chance})")
    return out


def _measure_indexes(
    suite: Path, overrides: list[str], model: str, untrained: bool, out: Path | None
) -> Path:
    """Run a benchmark of FAISS indexes; the folder of its results."""
    from mmalign.core.config import load_config
    from mmalign.evaluation.ann.benchmark import run_faiss
    from mmalign.evaluation.ann.config import FaissConfig
    from mmalign.models.load import load_model
    from mmalign.report.pareto import write_pareto

    config = load_config(FaissConfig, suite, overrides)
    if untrained:
        raise UserError("--untrained: a benchmark of indexes takes one model; leave it out")
    out = _result_folder(model, config.name, out)
    tree = run_faiss(config, load_model(model), out)
    write_pareto(tree["rows"], config.timed_at, out)
    say(f"{out / 'pareto.svg'}")
    return out


def _measure_texts(
    suite: Path, overrides: list[str], model: str, untrained: bool, out: Path | None
) -> Path:
    """Run a suite of text tasks; the folder of its results."""
    from mmalign.core.config import load_config
    from mmalign.text.benchmark import BenchmarkConfig, run_benchmark
    from mmalign.text.scores import PRIMARY

    config = load_config(BenchmarkConfig, suite, overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{suite}: a suite of text tasks runs in one process; leave torchrun out")
    out = _result_folder(model, config.name, out)
    results = run_benchmark(config, model, out, untrained)
    for name, value in results.metrics.items():
        is_headline = "/mean/" in name and name.rpartition("/")[2] in PRIMARY.values()
        if is_headline or "/published/" in name:
            say(f"{name}  {value:.4f}  (n = {results.counts[name]})")
    return out


def _result_folder(model: str, suite: str, out: Path | None) -> Path:
    """Where results go: where the user says, else into the run."""
    if out is None and not is_run(model):
        raise UserError(
            f"{model}: not a run folder, it has no config.yaml; of another model say with --out where the "
            "results go"
        )
    return out or Path(model) / "eval" / suite
