"""What all verbs share: the application that they register with, and common arguments and functions."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmalign.core.commit import check_writable
from mmalign.core.errors import UserError
from mmalign.core.resources import find_yaml as find_yaml

# What imports torch is imported where it is used: `mmalign --help` must answer at once.
if TYPE_CHECKING:
    from mmalign.models.prompts import Side
    from mmalign.results.results import Results

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

Model = Annotated[
    str,
    typer.Option("--model", help="Run, checkpoint, export, hub name, `open_clip:NAME/WEIGHTS`."),
]
PromptQuery = Annotated[
    str | None, typer.Option(help="Before queries and all other texts; the model's own.")
]
PromptPassage = Annotated[
    str | None, typer.Option(help="Before texts that are searched; the model's own.")
]


def given_prompts(query: str | None, passage: str | None) -> "dict[Side, str]":
    """The prompts that a command line names; an empty one takes the model's own away."""
    both: dict[Side, str | None] = {"query": query, "passage": passage}
    return {side: prompt for side, prompt in both.items() if prompt is not None}


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from mmalign.core.code_version import VERSION

        say(f"mmalign {VERSION}")
        raise typer.Exit


SEVERAL_PROCESSES = {"train", "embed", "eval", "finetune"}  # verbs whose work several ranks divide


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of `mmalign` itself, before the verb."""
    # Not WORLD_SIZE alone: pods of a training operator have it, where a verb is run by hand.
    is_rank = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if is_rank and context.invoked_subcommand not in SEVERAL_PROCESSES:
        raise UserError(
            f"mmalign {context.invoked_subcommand}: runs in one process; leave torchrun out"
        )


def say(text: str) -> None:
    from mmalign.core import console

    console.say(text)


def is_run(model: str | Path) -> bool:
    return (Path(model) / "config.yaml").is_file()


def result_folder(model: str, below: str, out: Path | None) -> Path:
    """Where results go: where the user says, else below the run; a UserError if it cannot be written."""
    if out is None and not is_run(model):
        raise UserError(f"{model}: not a run folder, it has no config.yaml; say where with --out")
    out = out or Path(model) / below
    check_writable(out, is_folder=True)
    return out


def say_metrics(results: "Results", names: Iterable[str]) -> None:
    for name in names:
        chance = f", chance {results.chance[name]:.4f}" if name in results.chance else ""
        say(f"{name}  {results.metrics[name]:.4f}  (n = {results.counts[name]}{chance})")


def note_command(run: Path) -> None:
    """Add this process's command line to the `commands.txt` of a run folder; of others nothing is noted."""
    if is_run(run):
        from mmalign.core import record

        # A name that is not text (of another encoding, or any in the POSIX locale) is written as escapes.
        words = [os.fsencode(word).decode("utf-8", "backslashreplace") for word in sys.argv[1:]]
        try:
            record.note_command(run, words)
        except OSError as error:  # the work is done: a run of somebody else must not spoil it
            say(f"{run}: this command is not in its commands.txt ({error.strerror})")
