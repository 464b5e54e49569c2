"""What all verbs share: the application that they register with, and common arguments and functions.

Nothing heavy is imported here: `mmalign --help` must answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="mmalign",
    help="Align the languages of a text encoder through images: data, training, measurement, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Replace fields of the file: optimizer.lr=5e-4"),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from mmalign.core.code_version import VERSION

        say(f"mmalign {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of `mmalign` itself, before the verb."""


def find_yaml(argument: Path, folder: str) -> Path:
    """The YAML file that an argument means: a path, or the name of one that comes with mmalign."""
    from mmalign.core import resources

    return resources.find_yaml(argument, folder)


def say(text: str) -> None:
    """Print one line on rank 0."""
    from mmalign.core import console

    console.say(text)


def is_run(model: str) -> bool:
    """Whether this is a run folder."""
    return (Path(model) / "config.yaml").is_file()


def note_command(run: Path) -> None:
    """Add this process's command line to the run's `commands.txt`."""
    from mmalign.core import record

    record.note_command(run, sys.argv[1:])
