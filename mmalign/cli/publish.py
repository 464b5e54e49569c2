"""Verbs that hand a model to others, and the demo, which goes the whole way."""

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Run, app, note_command, say
from mmalign.errors import UserError


@app.command()
def export(
    run: Run,
    to: Annotated[
        str,
        typer.Option("--format", help="sentence-transformers (texts) or open_clip (both towers)."),
    ] = "sentence-transformers",
    out: Annotated[
        Path | None,
        typer.Option(help="Target folder; RUN/export, or RUN/export_open_clip, if not given."),
    ] = None,
    repo_id: Annotated[
        str | None,
        typer.Option(
            help="open_clip: OWNER/NAME on the hub; without it the folder must stay there."
        ),
    ] = None,
) -> None:
    """Write a model in the format of another library.

    Example: mmalign export runs/demo --format sentence-transformers

    Example: mmalign export runs/demo --format open_clip --repo-id me/my-model
    """
    from mmalign.config import read_yaml
    from mmalign.evaluation.encoder import load_encoder
    from mmalign.report.collect import collect

    folders = {"sentence-transformers": "export", "open_clip": "export_open_clip"}
    if to not in folders:
        raise UserError(f"--format {to}: known are {', '.join(folders)}")
    if repo_id is not None and to != "open_clip":
        raise UserError("--repo-id: only a folder for open_clip holds the name of its repository")
    encoder, results, config = load_encoder(run), collect(run), read_yaml(run / "config.yaml")
    out = out or run / folders[to]
    if to == "open_clip":
        from mmalign.export.open_clip import export_open_clip

        export_open_clip(encoder, out, results, config, repo_id=repo_id)
    else:
        from mmalign.export.sentence_transformers import export_sentence_transformers

        export_sentence_transformers(encoder, out, results, config)
    say(f"{out}")
    note_command(run)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
) -> None:
    """The whole way on embedded data: build, train, measure, fine-tune, export, report.

    Example: mmalign demo
    """
    from mmalign.demo import run_demo

    run_demo(out)
