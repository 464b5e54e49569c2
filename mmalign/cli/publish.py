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
