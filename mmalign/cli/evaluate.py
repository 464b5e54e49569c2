"""Verbs that measure models and show the results."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmalign.cli.app import (
    Model,
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
from mmalign.core.errors import UserError

if TYPE_CHECKING:
    from mmalign.models.prompts import Side

CACHE = Path("data/embeddings")
MTEB = "mteb:"  # before the names of its tasks, in place of a suite


@app.command("eval")
def evaluate(
    suite: Annotated[
        Path, typer.Argument(metavar="SUITE", help="Suite YAML, its name, or mteb:TASK[,TASK].")
    ],
    model: Model,
    overrides: Overrides = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Also before training.")] = False,
    prompt_query: PromptQuery = None,
    prompt_passage: PromptPassage = None,
    out: Annotated[Path | None, typer.Option(help="Result folder; RUN/eval/<suite>.")] = None,
) -> None:
    """Measure a model with a suite: of images and texts, of text tasks (`groups`), or of FAISS (`indexes`).

    Example: mmalign eval eval/emoji_scenes.yaml --model runs/demo --untrained

    Example: mmalign eval eval/xm3600.yaml --model open_clip:ViT-B-32/laion2b_s34b_b79k --out runs/peer

    Example: mmalign eval eval/faiss.yaml --model runs/demo

    Example: mmalign eval eval/xtreme_r.yaml --model intfloat/multilingual-e5-base --prompt-query 'query: '
    --prompt-passage 'passage: ' --out runs/xtreme_r

    Example: mmalign eval mteb:STS22.v2,BUCC.v2 --model runs/demo
    """
    from mmalign.core import distributed
    from mmalign.core.config import read_yaml

    kinds = {"groups": _measure_texts, "indexes": _measure_indexes}
    if str(suite).startswith(MTEB):
        measure = _measure_mteb
    else:
        suite = find_yaml(suite, "eval")
        fields = read_yaml(suite)
        measure = next((kinds[name] for name in kinds if name in fields), _measure_images)
    prompts = given_prompts(prompt_query, prompt_passage)
    folder = measure(suite, list(overrides or ()), model, untrained, out, prompts)
    say(f"{folder / 'results.json'}")
    note_command(Path(model))
    distributed.stop()


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(metavar="A B [C]...", help="Runs or results.")],
    suite: Annotated[str | None, typer.Option(help="Of runs with several suites.")] = None,
    languages: Annotated[bool, typer.Option("--languages", help="All, not only means.")] = False,
    out: Annotated[Path | None, typer.Option(help="Table: .json, .csv or .md.")] = None,
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
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Page; RUN/report.html.")] = None,
) -> None:
    """Gather a run's results into RUN/results.json and one self-contained HTML page.

    Example: mmalign report runs/demo
    """
    from mmalign.report.page import write_report
    from mmalign.results.collect import collect

    out = out or run / "report.html"
    for path in (out, run / "results.json"):
        check_writable(path)
    results = collect(run)
    note_command(run)  # before the page, which shows the commands
    results.write(run / "results.json")
    write_report(run, out)
    say(f"{out}")


@app.command()
def index(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As `--model` of eval.")],
    data: Annotated[Path, typer.Option(help="Folder of shards to index.")],
    factory: Annotated[str, typer.Option(help="FAISS's factory string.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the index; RUN/index.")] = None,
    cache: Annotated[Path, typer.Option(help="For embeddings.")] = CACHE,
    prompt_query: PromptQuery = None,
) -> None:
    """Keep a FAISS index of images and captions, for `mmalign search --index` and Python.

    The fields are those of an index in eval/faiss.yaml: build, search (one value each), train_rows, dims.

    Example: mmalign index runs/demo --data data/emoji_scenes/test --factory HNSW32,Flat
    build.efConstruction=200 'search.efSearch=[64]'
    """
    from mmalign.core import distributed
    from mmalign.core.config import apply_override, validate
    from mmalign.evaluation.ann.index import IndexConfig
    from mmalign.models.load import load_model
    from mmalign.search.kept_index import build_index, check_target, write_index

    tree: dict[str, Any] = {}
    for override in overrides or ():
        apply_override(tree, override)
    config = validate(IndexConfig, {**tree, "factory": factory}, "mmalign index")
    if len(config.settings) > 1:
        raise UserError("mmalign index: `search` has several values; give one of each")
    # Before the images are encoded, which may take long.
    out = result_folder(model, "index", out)
    check_target(out)
    check_writable(cache, is_folder=True)
    distributed.start()
    loaded = load_model(model, given_prompts(prompt_query, None))
    kept = build_index(loaded, data, config, cache)
    write_index(kept, out)
    say(f"{out}: {kept.facts['images']} images, {kept.facts['captions']} distinct captions")
    note_command(Path(model))
    distributed.stop()


@app.command()
def search(
    model: Annotated[
        str | None, typer.Option("--model", help="As of eval; that of the index.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Shards to search; those of the index.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder that `mmalign index` wrote.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    cache: Annotated[Path, typer.Option(help="For embeddings.")] = CACHE,
    prompt_query: PromptQuery = None,
) -> None:
    """Serve a page: type in any language and see images, drop an image and see captions.

    Example: mmalign search --model runs/demo --data data/emoji_scenes/test

    Example: mmalign search --index runs/demo/index
    """
    from mmalign.core import distributed
    from mmalign.evaluation.ann.index import IndexConfig
    from mmalign.models.load import load_model
    from mmalign.search.corpus import SearchIndex
    from mmalign.search.kept_index import build_index, read_index
    from mmalign.search.server import listen, serve

    kept = None if index is None else read_index(index)
    if kept is not None:
        model, data = model or kept.facts["model"]["path"], data or Path(kept.facts["data"])
    if model is None or data is None:
        raise UserError("mmalign search: give --model and --data, or the --index that has them")
    # Before the images are encoded, which may take long.
    check_writable(cache, is_folder=True)
    listener = listen(host, port)
    distributed.start()
    own = {} if kept is None else kept.facts["model"].get("prompts", {})
    loaded = load_model(model, {**own, **given_prompts(prompt_query, None)})
    kept = kept or build_index(loaded, data, IndexConfig(factory="Flat"), cache)
    serve(SearchIndex(loaded, data, kept), listener, host)


def _measure_mteb(
    suite: Path,
    overrides: list[str],
    model: str,
    untrained: bool,
    out: Path | None,
    prompts: "dict[Side, str]",
) -> Path:
    """Run tasks of mteb by its own code; returns the folder of the results, as the next three do."""
    from mmalign.evaluation.mteb_tasks import run_mteb
    from mmalign.models.load import load_model

    if overrides or untrained:
        raise UserError(f"{suite}: tasks of mteb take no KEY=VALUE and no --untrained")
    _check_one_process(suite, "tasks of mteb run")
    out = result_folder(model, "eval/mteb", out)
    check_writable(out / "results.json")
    names = [one.strip() for one in str(suite).removeprefix(MTEB).split(",") if one.strip()]
    if not names:
        raise UserError("mteb: name tasks behind the colon, as in mteb:STS22.v2,BUCC.v2")
    results = run_mteb(names, load_model(model, prompts))
    results.write(out / "results.json")
    main = {f"/{fields['main']}" for fields in results.protocol.values()}
    say_metrics(results, [name for name in results.metrics if name.endswith(tuple(main))])
    return out


def _measure_images(
    suite: Path,
    overrides: list[str],
    model: str,
    untrained: bool,
    out: Path | None,
    prompts: "dict[Side, str]",
) -> Path:
    """Run a suite of shards, on all ranks."""
    from mmalign.core import distributed
    from mmalign.core.config import load_config
    from mmalign.evaluation.suite import SuiteConfig, means_of, run_suite
    from mmalign.models.encoder import DualModel, load_encoder
    from mmalign.models.load import load_model
    from mmalign.models.stored_run import local_path

    config = load_config(SuiteConfig, suite, overrides)
    out = result_folder(model, f"eval/{config.name}", out)
    distributed.start()
    names = ["untrained"] if untrained else []
    # First: only a run knows its model before training.
    baselines: dict[str, DualModel] = {
        name: load_encoder(local_path(model), untrained=True) for name in names
    }
    measured = load_model(model, prompts)
    for baseline in baselines.values():
        baseline.prompts = measured.prompts
    results = run_suite(config, measured, out, baselines)
    say_metrics(results, means_of(results))
    return out


def _measure_indexes(
    suite: Path,
    overrides: list[str],
    model: str,
    untrained: bool,
    out: Path | None,
    prompts: "dict[Side, str]",
) -> Path:
    from mmalign.core.config import load_config
    from mmalign.evaluation.ann.benchmark import run_faiss
    from mmalign.evaluation.ann.config import FaissConfig
    from mmalign.models.load import load_model
    from mmalign.report.pareto import write_pareto

    config = load_config(FaissConfig, suite, overrides)
    if untrained:
        raise UserError("--untrained: a benchmark of indexes takes one model; leave it out")
    out = result_folder(model, f"eval/{config.name}", out)
    check_writable(Path(config.cache), is_folder=True)
    tree = run_faiss(config, load_model(model, prompts), out)
    write_pareto(tree["rows"], config.timed_at, out)
    say(f"{out / 'pareto.svg'}")
    return out


def _measure_texts(
    suite: Path,
    overrides: list[str],
    model: str,
    untrained: bool,
    out: Path | None,
    prompts: "dict[Side, str]",
) -> Path:
    from mmalign.core.config import load_config
    from mmalign.text.benchmark import BenchmarkConfig, run_benchmark
    from mmalign.text.scores import PRIMARY

    config = load_config(BenchmarkConfig, suite, overrides)
    _check_one_process(suite, "a suite of text tasks runs")
    out = result_folder(model, f"eval/{config.name}", out)
    results = run_benchmark(config, model, out, untrained, prompts)
    primary = tuple(f"/{metric}" for metric in PRIMARY.values())
    heads = ((name, "/mean/" in name and name.endswith(primary)) for name in results.metrics)
    say_metrics(results, [name for name, is_mean in heads if is_mean or "/published/" in name])
    return out


def _check_one_process(suite: Path, what: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun's, and no group was started yet
        raise UserError(f"{suite}: {what} in one process; leave torchrun out")
