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
Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A run, a checkpoint, a fine-tuning, or a LoRA adapter."),
]
Formats = Annotated[list[str] | None, typer.Option("--format", help=_FORMATS)]
Out = Annotated[Path | None, typer.Option(help="Target folder; MODEL/export if not given.")]
License = Annotated[
    str | None, typer.Option(help="Licence for the model card, for example apache-2.0.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Test shards, for onnx: the loss by its 8-bit text tower is measured on them."
    ),
]
Push = Annotated[str | None, typer.Option(help="OWNER/NAME: publish it on the Hugging Face hub.")]
Public = Annotated[
    bool, typer.Option("--public", help="With --push: everyone may read a new repository.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="With --push: list what would be sent, send nothing.")
]


@app.command()
def export(
    model: Model,
    formats: Formats = None,
    out: Out = None,
    license: License = None,
    data: Data = None,
    push: Push = None,
    public: Public = False,
    dry_run: DryRun = False,
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
    from mmalign.export.hub import push as push_folder

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
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
) -> None:
    """Every step on embedded data: build, train, measure, fine-tune, export, report.

    Example: mmalign demo
    """
    from mmalign.demo import run_demo

    run_demo(out)
