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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run, fine-tuning or adapter.")],
    formats: Annotated[list[str] | None, typer.Option("--format", help=_FORMATS)] = None,
    out: Annotated[Path | None, typer.Option(help="Target folder; MODEL/export.")] = None,
    license: Annotated[str | None, typer.Option(help="The hub's name: apache-2.0.")] = None,
    license_name: Annotated[str | None, typer.Option(help="Of --license other.")] = None,
    license_link: Annotated[str | None, typer.Option(help="URL of its text.")] = None,
    data: Annotated[Path | None, typer.Option(help="Test set for costs of 8 bits.")] = None,
    push: Annotated[str | None, typer.Option(help="OWNER/NAME on the hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make it public there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List, do not push.")] = False,
) -> None:
    """Write a model in the formats of other libraries, check it there, and publish it.

    Each library loads the folder in a process of its own, and its vectors are compared with ours (max. abs.
    difference <= 1e-6, ONNX Runtime 1e-5). A folder that fails is not kept.

    --push publishes the finished folder, in all its formats or those named, and changes nothing here.
    --dry-run lists the files instead. What is not in the folder is exported to a temporary one.

    Example: mmalign export runs/demo

    Example: mmalign export runs/demo --format sentence-transformers --format open_clip --format onnx

    Example: mmalign export runs/demo --push me/my-model --license cc-by-sa-4.0 --dry-run
    """
    if (public or dry_run) and push is None:
        raise UserError("--public and --dry-run belong to a push; give --push OWNER/NAME too")
    from mmalign.data.storage.remote import is_remote
    from mmalign.export import build
    from mmalign.export.hub import check_target
    from mmalign.export.licenses import check_license
    from mmalign.models.stored_run import local_path

    if push is not None:
        check_target(push, dry_run)
    terms = check_license(license, license_name, license_link)
    chosen = list(dict.fromkeys(formats or ()))
    if is_remote(model) and out is None and push is None:
        raise UserError(f"{model}: nothing is exported to a URL; say where with --out")
    folder = local_path(model)
    out = out or folder / "export"
    if push is None:
        build.export(folder, out, chosen, terms, data)
        say(f"{out}")
        note_command(folder)
        return
    options = {"private": not public, "dry_run": dry_run}
    address = build.publish(folder, out, chosen, push, terms, data, **options)
    if address is not None:
        note_command(folder)
        say(address)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo")) -> None:
    """Every step on embedded data: build, train, measure, fine-tune, export, report.

    Example: mmalign demo
    """
    from mmalign.demo import run_demo

    run_demo(out)
