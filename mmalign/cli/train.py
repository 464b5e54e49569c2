"""Verbs that train towers and cache image features, on this machine or as a job on many."""

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Overrides, app, find_yaml, note_command, say
from mmalign.core.commit import check_writable, write_atomic


@app.command()
def train(
    run: Annotated[Path, typer.Argument(metavar="RUN_YAML", help="Run YAML, or its name.")],
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="Run folder or URL; runs/<name>.")] = None,
    stop_after: Annotated[int | None, typer.Option(min=1, help="Stop at this step.")] = None,
    change: Annotated[list[str] | None, typer.Option(help="Field changed on a resume.")] = None,
    preflight: Annotated[bool, typer.Option("--preflight", help="Test all nodes first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan memory, traffic.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="Of --dry-run.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Of --dry-run.")] = 1,
) -> None:
    """Train a dual encoder, or go on with the run in the folder.

    Example: mmalign train train/emoji_scenes.yaml --out runs/demo

    On several processes: torchrun --nproc-per-node 2 --no-python mmalign train train/emoji_scenes.yaml

    --preflight tests all nodes before the first step: a node that fails ends the run, a slow one is named.

    In a store of objects (s3://, gs://): mmalign train train/emoji_scenes.yaml --out s3://bucket/demo

    More steps, or another rate, for a run that exists: mmalign train train/emoji_scenes.yaml --out runs/demo
    steps=6000 --change steps

    Planning: mmalign train train/clip_vit_b_32_xlm_r.yaml --dry-run --nodes 4 --gpus-per-node 8
    """
    from mmalign.core import distributed
    from mmalign.core.config import load_config
    from mmalign.training.run_config import RunConfig

    config = load_config(RunConfig, find_yaml(run, "train"), overrides or ())
    if dry_run:
        from mmalign.training.dry_run import dry_run as plan

        say(plan(config, nodes, gpus_per_node))
        return
    from mmalign.data.storage.remote import is_remote
    from mmalign.training.loop import train as train_run
    from mmalign.training.remote_run import RemoteRun
    from mmalign.training.signals import EXIT_STOPPED

    if preflight:
        from mmalign.launch.preflight import preflight as test_nodes

        test_nodes()
    if out is not None and is_remote(out):
        remote = RemoteRun(out, config.data.remote)
        stopped = train_run(config, remote, stop_after, change or ())
        note_command(remote.folder)
        distributed.on_main(remote.push)
    else:
        folder = Path(out or f"runs/{config.name}")
        check_writable(folder, is_folder=True)
        stopped = train_run(config, folder, stop_after, change or ())
        note_command(folder)
    distributed.stop()
    if stopped:
        raise typer.Exit(EXIT_STOPPED)


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(metavar="RUN_YAML|RUN", help="Run YAML, or run folder.")],
    overrides: Overrides = None,
    data: Annotated[list[Path] | None, typer.Option(help="Data set; the run's own.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Of a rank; data.workers.")] = None,
) -> None:
    """Write the features of a run's frozen image tower beside the shards, to train without pixels.

    A run with `data.image_features=true` reads them. Features that exist already are not computed again.

    Example: mmalign embed train/lit_multilingual.yaml --data data/pairs/train

    On several processes: torchrun --nproc-per-node 8 --no-python mmalign embed train/lit_multilingual.yaml
    """
    from mmalign.core import distributed
    from mmalign.training.embed import embed as embed_images

    embed_images(
        run if run.is_dir() else find_yaml(run, "train"), overrides or (), data or (), workers
    )
    distributed.stop()


@app.command()
def launch(
    run: Annotated[Path, typer.Argument(metavar="RUN_YAML", help="Run YAML, or its name.")],
    on: Annotated[str, typer.Option(help="torchrun, slurm, kubernetes or skypilot.")],
    nodes: Annotated[int, typer.Option(help="Hosts.")],
    gpus_per_node: Annotated[int, typer.Option(help="Ranks of a host; 0: CPUs only.")],
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="Run folder there, or URL; runs/<name>.")] = None,
    write: Annotated[Path | None, typer.Option(help="File to write; the screen.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="On CPUs only.")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(help="Cores.")] = None,
    memory_gib: Annotated[int | None, typer.Option(help="Memory of a node.")] = None,
    folder: Annotated[str | None, typer.Option(help="Working folder or mount there.")] = None,
    venv: Annotated[str | None, typer.Option(help="Virtual environment there.")] = None,
    interface: Annotated[str | None, typer.Option(help="Network between nodes: ib0.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for all ranks.")] = None,
    preflight: Annotated[bool | None, typer.Option("--preflight", help="Test nodes first.")] = None,
    host: Annotated[str | None, typer.Option(help="torchrun: host of the rendezvous.")] = None,
    port: Annotated[int | None, typer.Option(help="torchrun: 29500.")] = None,
    time: Annotated[str | None, typer.Option(help="slurm: limit of a start.")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm.")] = None,
    account: Annotated[str | None, typer.Option(help="slurm.")] = None,
    mount: Annotated[
        list[str] | None, typer.Option(help="slurm: more folders for --image.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="slurm (pyxis), kubernetes, skypilot.")] = None,
    volume: Annotated[str | None, typer.Option(help="kubernetes, skypilot: volume.")] = None,
    namespace: Annotated[str | None, typer.Option(help="kubernetes.")] = None,
    queue: Annotated[str | None, typer.Option(help="kubernetes: Kueue's.")] = None,
    toleration: Annotated[list[str] | None, typer.Option(help="kubernetes: KEY=VALUE.")] = None,
    rdma: Annotated[str | None, typer.Option(help="kubernetes: RESOURCE=NUMBER.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="skypilot: H100.")] = None,
) -> None:
    """Render a job script or manifest for many machines; nothing is submitted, nothing is guessed.

    Example: mmalign launch train/emoji_scenes.yaml --on torchrun --nodes 1 --gpus-per-node 8

    Example: mmalign launch train/clip_vit_b_32_xlm_r.yaml --on slurm --nodes 4 --gpus-per-node 8
    --cpus-per-node 64 --time 1-00:00:00 --write clip.sbatch
    """
    # Before any other name is bound: every option that was given, as the target's section names it.
    given = {name: value for name, value in locals().items() if value is not None}
    options = {n: given[n] for n in given if n not in ("run", "on", "overrides", "out", "write")}
    from mmalign.launch.render import render

    if write is not None:
        check_writable(write)
    text = render(on, run, overrides or (), out, options)
    if write is None:
        say(text.removesuffix("\n"))
    else:
        write_atomic(write, text)
        say(f"{write}")
