"""Verbs that make, index and verify shards of image-caption pairs."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Overrides, app, say

data_app = typer.Typer(help="Make and inspect shards of image-caption pairs.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_SHOWN = 50  # problems of a data set that are printed


@data_app.command("build")
def data_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe YAML.")],
    overrides: Overrides = None,
    folders: Annotated[
        list[str] | None, typer.Option("--from", help="Folder of the source; repeat it.")
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
        say(
            f"{out / manifest.split}: {manifest.samples} pictures, {captions} captions in "
            f"{len(manifest.languages)} languages"
        )


@data_app.command("index")
def data_index(
    tars: Annotated[
        str, typer.Argument(metavar="TARS", help="Folder of tars, a pattern or a brace list.")
    ],
    captions: Annotated[str, typer.Option(help="txt, or json:FIELD.")] = "txt",
    language: Annotated[
        str | None, typer.Option(help="A code such as sw, json:FIELD, or identify.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where index and manifest go; beside the tars if not given.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Shards that are scanned at once.")] = 1,
) -> None:
    """Make tars of others usable: scan them once, write index and manifest. The tars stay as they are.

    Example: mmalign data index path/to/img2dataset --captions json:caption --language identify
    """
    from mmalign.data.index import REFUSED, index
    from mmalign.data.scan import Rules

    manifest, folder = index(tars, Rules(captions, language), out, processes)
    refused = Counter[str]()
    for counts in manifest.refused.values():
        refused.update(counts)
    say(
        f"{folder}: {manifest.samples} pictures in {len(manifest.shards)} shards, "
        f"{sum(manifest.languages.values())} captions in {len(manifest.languages)} languages"
    )
    if refused:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in refused.most_common())
        say(f"refused {refused.total()} ({reasons}); {folder / REFUSED} names them")
    if manifest.ignored:
        suffixes = ", ".join(f"{suffix}: {count}" for suffix, count in manifest.ignored.items())
        say(f"never opened: members of other suffixes ({suffixes})")


@data_app.command("verify")
def data_verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a manifest.json.")],
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every picture, not only its header.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Shards that are read at once.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was found there.")
    ] = None,
) -> None:
    """Prove a data set whole against its manifest; exit code 1 and the names of what is damaged otherwise.

    Example: mmalign data verify data/emoji_scenes/train
    """
    from mmalign.commit import write_json
    from mmalign.data.verify import describe, verify

    report = verify(folder, decode, processes)
    if json_file is not None:
        write_json(json_file, report.to_json())
    for problem in report.problems[:_SHOWN]:
        say(describe(problem))
    if len(report.problems) > _SHOWN:
        say(f"... and {len(report.problems) - _SHOWN} more; --json FILE takes them all")
    if report.problems:
        say(f"{folder}: damaged, {len(report.problems)} problems in {report.shards} shards")
        raise typer.Exit(1)
    say(f"{folder}: whole, {report.samples} samples in {report.shards} shards")


def _yaml_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
