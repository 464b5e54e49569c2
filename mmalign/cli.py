"""The command line: one function per verb.

Every verb reads one YAML file, takes dotted overrides (`optimizer.lr=5e-4`) and does its work in the
package; what it wrote into a run folder is noted there in `commands.txt`. Heavy imports (torch, transformers,
deepspeed, faiss) stay inside the verbs, so that `mmalign --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmalign.errors import UserError

app = typer.Typer(
    name="mmalign",
    help="Align the languages of a text encoder through images: data, training, measurement, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make and inspect shards of image-caption pairs.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Replace fields of the file: optimizer.lr=5e-4"),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="Run folder or one of its checkpoints; of a text suite any text encoder."
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


@data_app.command("build")
def data_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe YAML.")],
    overrides: Overrides = None,
    folders: Annotated[
        list[str] | None, typer.Option("--from", help="Source folder (jsonl recipes); repeat it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to; data/<name> if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build over what is there.")] = False,
) -> None:
    """Run a recipe: write shards of every split, with manifests.

    Example: mmalign data build data_recipes/emoji_scenes.yaml
    """
    from mmalign.config import load_config
    from mmalign.data.recipe import RecipeConfig, build

    changes = list(overrides or ())
    if folders:
        changes.append(f"source.folders=[{', '.join(_yaml_text(folder) for folder in folders)}]")
    config = load_config(RecipeConfig, recipe, changes)
    out = out or Path("data") / config.name
    for manifest in build(config, out, force):
        captions = sum(manifest.languages.values())
        _say(
            f"{out / manifest.split}: {manifest.samples} pictures, {captions} captions in "
            f"{len(manifest.languages)} languages"
        )


@app.command()
def train(
    run: Annotated[Path, typer.Argument(metavar="RUN_YAML", help="Run YAML.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<name> if not given.")] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Stop at this step; the same command goes on.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Tell memory and traffic by ZeRO stage; train nothing."),
    ] = False,
    nodes: Annotated[int, typer.Option(min=1, help="Of --dry-run.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Of --dry-run.")] = 1,
) -> None:
    """Train a dual encoder, or go on with the run in the folder.

    Example: mmalign train train/emoji_scenes.yaml --out runs/demo

    On several processes: torchrun --nproc-per-node 2 --no-python mmalign train train/emoji_scenes.yaml

    What it would take: mmalign train train/clip_vit_b_32_xlm_r.yaml --dry-run --nodes 4 --gpus-per-node 8
    """
    from mmalign import distributed
    from mmalign.config import load_config
    from mmalign.training.run_config import RunConfig

    config = load_config(RunConfig, run, overrides or ())
    if dry_run:
        from mmalign.training.dry_run import dry_run as plan

        _say(plan(config, nodes, gpus_per_node))
        return
    from mmalign.training.loop import train as train_run
    from mmalign.training.signals import EXIT_STOPPED

    out = out or Path("runs") / config.name
    stopped = train_run(config, out, stop_after)
    _note_command(out)
    distributed.stop()
    if stopped:
        raise typer.Exit(EXIT_STOPPED)


@app.command()
def launch(
    run: Annotated[Path, typer.Argument(metavar="RUN_YAML", help="Run YAML.")],
    on: Annotated[str, typer.Option(help="torchrun, slurm, kubernetes or skypilot.")],
    nodes: Annotated[int, typer.Option(help="Hosts.")],
    gpus_per_node: Annotated[int, typer.Option(help="Ranks of a host; 0: CPUs only.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder there; runs/<name>.")] = None,
    write: Annotated[Path | None, typer.Option(help="File to write; the screen.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="On CPUs only.")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(help="Cores.")] = None,
    memory_gib: Annotated[int | None, typer.Option(help="Memory of a node.")] = None,
    folder: Annotated[str | None, typer.Option(help="Working folder or mount there.")] = None,
    venv: Annotated[str | None, typer.Option(help="Virtual environment there.")] = None,
    interface: Annotated[str | None, typer.Option(help="Network between nodes: ib0.")] = None,
    host: Annotated[str | None, typer.Option(help="torchrun: where hosts meet.")] = None,
    port: Annotated[int | None, typer.Option(help="torchrun: 29500.")] = None,
    time: Annotated[str | None, typer.Option(help="slurm: limit of a start.")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm.")] = None,
    account: Annotated[str | None, typer.Option(help="slurm.")] = None,
    image: Annotated[str | None, typer.Option(help="kubernetes, skypilot: image.")] = None,
    volume: Annotated[str | None, typer.Option(help="kubernetes, skypilot: volume.")] = None,
    namespace: Annotated[str | None, typer.Option(help="kubernetes.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="skypilot: H100.")] = None,
) -> None:
    """Render a job script or manifest for many machines; nothing is submitted, nothing is guessed.

    Example: mmalign launch train/emoji_scenes.yaml --on torchrun --nodes 1 --gpus-per-node 8

    Example: mmalign launch train/clip_vit_b_32_xlm_r.yaml --on slurm --nodes 4 --gpus-per-node 8
    --cpus-per-node 64 --time 1-00:00:00 --write clip.sbatch
    """
    given = dict(locals())
    from mmalign.launch.render import render

    for name in ("run", "on", "overrides", "out", "write"):
        given.pop(name)
    options = {name: value for name, value in given.items() if value is not None}
    text = render(on, run, overrides or (), out, options)
    if write is None:
        _say(text.removesuffix("\n"))
    else:
        write.write_text(text, encoding="utf-8")
        _say(f"{write}")


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
    _say(f"{folder / 'results.json'}")
    if _is_run(model):
        _note_command(Path(model))
    distributed.stop()


@app.command()
def finetune(
    task: Annotated[Path, typer.Argument(metavar="TASK_YAML", help="Fine-tuning YAML.")],
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
    """
    from mmalign.config import load_config
    from mmalign.evaluation.scores import PRIMARY
    from mmalign.finetuning.loop import FinetuneConfig
    from mmalign.finetuning.loop import finetune as finetune_tower

    config = load_config(FinetuneConfig, task, overrides or ())
    is_run = (Path(model) / "config.yaml").is_file()
    if out is None and not is_run:
        raise UserError(f"{model}: not a run folder; say with --out where the results go")
    out = out or Path(model) / "finetune" / config.task.name
    results = finetune_tower(config, model, out)
    for name, value in results.metrics.items():
        if "/mean/" in name and name.rpartition("/")[2] in PRIMARY.values():
            luck = f", chance {results.chance[name]:.4f}" if name in results.chance else ""
            _say(f"{name}  {value:.4f}  (n = {results.counts[name]}{luck})")
    _say(f"{out / 'results.json'}")
    if is_run:
        _note_command(Path(model))


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY_YAML", help="Study YAML.")],
    out: Annotated[Path, typer.Option(help="Folder of towers, cells, results and report.")],
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at the same time; all cores if not given.")
    ] = None,
) -> None:
    """Compare towers and ways of fine-tuning over tasks, perturbations and seeds; answer in words.

    Example: mmalign study eval/study_demo.yaml --out runs/study_demo

    It may be stopped at any time: the same command goes on.
    """
    from mmalign.config import load_config
    from mmalign.study.config import StudyConfig
    from mmalign.study.run import run_study

    config = load_config(StudyConfig, file, overrides or ())
    results = run_study(config, out, workers or os.cpu_count() or 1)
    for sentence in results.answer:
        _say(sentence)
    _say(f"{out / 'results.json'}")
    _say(f"{out / 'report.html'}")


@app.command()
def export(
    run: Run,
    to: Annotated[
        str, typer.Option("--format", help="sentence-transformers")
    ] = "sentence-transformers",
    out: Annotated[
        Path | None, typer.Option(help="Target folder; RUN/export if not given.")
    ] = None,
) -> None:
    """Write the text tower in the format of another library.

    Example: mmalign export runs/demo --format sentence-transformers
    """
    from mmalign.config import read_yaml
    from mmalign.evaluation.encoder import load_encoder
    from mmalign.export.sentence_transformers import export_sentence_transformers
    from mmalign.report.collect import collect

    if to != "sentence-transformers":
        raise UserError(f"--format {to}: known is sentence-transformers")
    encoder = load_encoder(run)
    out = out or run / "export"
    export_sentence_transformers(encoder, out, collect(run), read_yaml(run / "config.yaml"))
    _say(f"{out}")
    _note_command(run)


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
    _note_command(run)  # before the page, which shows the commands
    results.write(run / "results.json")
    out = out or run / "report.html"
    write_report(run, out)
    _say(f"{out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
) -> None:
    """The whole way on embedded data: build, train, measure, fine-tune, export, report.

    Example: mmalign demo
    """
    from mmalign.demo import run_demo

    run_demo(out)


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 1."""
    # oneDNN keeps up to 1,024 prepared operators, one for each shape that it met. Captions make new shapes
    # every step, and a CPU run would grow by tens of megabytes a step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"mmalign: {error}\n")
        sys.exit(1)


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
        _say(f"{name}  {value:.4f}  (n = {results.counts[name]}, chance {luck:.4f})")
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
    if out is None and not _is_run(model):
        raise UserError(f"{model}: not a run folder; say with --out where the results go")
    out = out or Path(model) / "eval" / config.name
    results = run_text_suite(config, model, out, untrained)
    for name, value in results.metrics.items():
        is_headline = "/mean/" in name and name.rpartition("/")[2] in PRIMARY.values()
        if is_headline or "/published/" in name:
            _say(f"{name}  {value:.4f}  (n = {results.counts[name]})")
    return out


def _is_run(model: str) -> bool:
    return (Path(model) / "config.yaml").is_file()


def _say(text: str) -> None:
    from mmalign.console import say

    say(text)


def _yaml_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _note_command(run: Path) -> None:
    """Add this process's command line to the run's `commands.txt`."""
    from mmalign.record import note_command

    note_command(run, sys.argv[1:])
