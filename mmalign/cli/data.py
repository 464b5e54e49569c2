"""Verbs that make shards of image-caption pairs."""

from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Overrides, app, say

data_app = typer.Typer(help="Make and inspect shards of image-caption pairs.", no_args_is_help=True)
app.add_typer(data_app, name="data")


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


def _yaml_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
