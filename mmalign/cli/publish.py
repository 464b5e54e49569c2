"""`export`, which writes and publishes a model for other libraries, and `demo`, which runs every step."""

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import app, note_command, say
from mmalign.core.errors import UserError

_FORMATS = (
    "sentence-transformers (texts; AutoModel loads its trunk), sentence-transformers-router (texts and "
    "images), transformers (VisionTextDualEncoder), open_clip or onnx (both towers). Give it again for "
    "several formats in one folder."
)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run, fine-tuning or adapter.")],
    formats: Annotated[list[str] | None, typer.Option("--format", help=_FORMATS)] = None,
    out: Annotated[Path | None, typer.Option(help="Target folder; MODEL/export.")] = None,
    license: Annotated[str | None, typer.Option(help="For the card: apache-2.0.")] = None,
    data: Annotated[Path | None, typer.Option(help="Test set for the loss by 8 bits.")] = None,
    push: Annotated[str | None, typer.Option(help="OWNER/NAME on the hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make it public there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List, do not push.")] = False,
) -> None:
    """Write a model in the formats of other libraries, check it there, and publish it.

    Each library loads the folder in a process of its own, and its vectors are compared with ours (max. abs.
    difference <= 1e-6, ONNX Runtime 1e-5). A folder that fails is not kept.

    Example: mmalign export runs/demo

    Example: mmalign export runs/demo --format sentence-transformers --format open_clip --format onnx

    Example: mmalign export runs/demo --format onnx --push me/my-model --dry-run
    """
    if (public or dry_run) and push is None:
        raise UserError("--public and --dry-run belong to a push; give --push OWNER/NAME too")
    from mmalign.export.build import export as write_export
    from mmalign.export.hub import check_target
    from mmalign.export.hub import push as push_folder

    if push is not None:
        check_target(push, dry_run)
    chosen = list(dict.fromkeys(formats or ["sentence-transformers"]))
    out = out or model / "export"
    for library, off in write_export(model, out, chosen, license, push, data).items():
        say(f"{library} loads it: its vectors differ from ours by at most {off:.1e}")
    say(f"{out}")
    note_command(model)
    if push is not None:
        address = push_folder(out, push, private=not public, dry_run=dry_run)
        if address is not None:
            say(address)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo")) -> None:
    """Every step on embedded data: build, train, measure, fine-tune, export, report.

    Example: mmalign demo
    """
    from mmalign.demo import run_demo

    run_demo(out)
