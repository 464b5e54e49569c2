"""Commands that make, index, verify and count shards of image-caption pairs."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from mmalign.cli.app import Overrides, app, find_yaml, is_run, say

data_app = typer.Typer(help="Make and inspect shards of image-caption pairs.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_SHOWN = 50  # problems of a data set that are printed


@data_app.command("build")
def data_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe YAML, or its name.")],
    overrides: Overrides = None,
    folders: Annotated[
        list[str] | None, typer.Option("--from", help="Folder of the source; repeat it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; data/<name> if not given.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a data set that is there.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that write shards; one per core if not given."),
    ] = None,
) -> None:
    """Run a recipe: write shards of every split, with manifests.

    Example: mmalign data build data_recipes/emoji_scenes.yaml
    """
    from mmalign.core.config import load_config
    from mmalign.data.recipe import REFUSED, RecipeConfig, build

    changes = list(overrides or ())
    if folders:
        # Quoted as YAML: a folder's name may contain commas, brackets or quotes.
        quoted = ("'" + folder.replace("'", "''") + "'" for folder in folders)
        changes.append(f"source.folders=[{', '.join(quoted)}]")
    config = load_config(RecipeConfig, find_yaml(recipe, "data_recipes"), changes)
    out = out or Path("data") / config.name
    for manifest in build(config, out, force, processes):
        captions = sum(manifest.languages.values())
        say(
            f"{out / manifest.split}: {manifest.samples} images, {captions} captions in "
            f"{len(manifest.languages)} languages"
        )
    if (out / REFUSED).is_file():
        say(f"some rows could not be used; {out / REFUSED} lists them")


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
        Path | None,
        typer.Option(help="Folder of index and manifest; beside the tars if not given."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Shards that are scanned at once.")] = 1,
) -> None:
    """Index existing tars: scan them once, write index and manifest. The tars stay as they are.

    Example: mmalign data index path/to/img2dataset --captions json:caption --language identify
    """
    from mmalign.data.shards.index import REFUSED, index
    from mmalign.data.shards.scan import Rules

    manifest, folder = index(tars, Rules(captions, language), out, processes)
    refused = sum(map(Counter, manifest.refused.values()), Counter[str]())
    say(
        f"{folder}: {manifest.samples} images in {len(manifest.shards)} shards, "
        f"{sum(manifest.languages.values())} captions in {len(manifest.languages)} languages"
    )
    if refused:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in refused.most_common())
        say(f"refused {refused.total()} ({reasons}); {folder / REFUSED} lists them")
    if manifest.ignored:
        suffixes = ", ".join(f"{suffix}: {count}" for suffix, count in manifest.ignored.items())
        say(f"never opened: members of other suffixes ({suffixes})")


@data_app.command("verify")
def data_verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a manifest.json.")],
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image, not only its header.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Shards that are read at once.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there.")
    ] = None,
) -> None:
    """Check a data set against its manifest; exit code 1 and the names of damaged samples if it is damaged.

    Example: mmalign data verify data/emoji_scenes/train
    """
    from mmalign.core.commit import check_writable, write_json
    from mmalign.data.verify import describe, verify

    if json_file is not None:
        check_writable(json_file)
    report = verify(folder, decode, processes)
    if json_file is not None:
        write_json(json_file, report.to_json())
    for name, state in report.features.items():
        say(f"{folder}/features/{name}: {state}")
    for problem in report.problems[:_SHOWN]:
        say(describe(problem))
    if len(report.problems) > _SHOWN:
        say(f"... and {len(report.problems) - _SHOWN} more; --json FILE writes them all")
    if report.problems:
        say(f"{folder}: damaged, {len(report.problems)} problems in {report.shards} shards")
        raise typer.Exit(1)
    say(f"{folder}: complete, {report.samples} samples in {report.shards} shards")


@data_app.command("stats")
def data_stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a manifest.json.")],
    against: Annotated[
        Path | None, typer.Option(help="A test set: how many of its images are in DIR?")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Count tokens: a run, a folder or a hub name.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Read this many shards of DIR, drawn by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of shards.")] = 0,
    near: Annotated[
        bool, typer.Option(help="Look for images that look alike; decodes every image.")
    ] = True,
    processes: Annotated[int, typer.Option(min=1, help="Shards that are read at once.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a chart, .png or .svg.")
    ] = None,
) -> None:
    """Count languages, lengths, sizes and duplicates of a data set, and its overlap with a test set.

    Example: mmalign data stats data/emoji_scenes/train --against data/emoji_scenes/test --picture stats.png
    """
    from mmalign.core.commit import check_writable, write_json
    from mmalign.data.stats.summary import lines, summarise
    from mmalign.data.stats.survey import Options, survey

    for target in (json_file, picture):
        if target is not None:
            check_writable(target)
    if picture is not None:
        from mmalign.data.stats.chart import check_target, draw

        check_target(picture)
    if tokenizer is not None and is_run(tokenizer):
        tokenizer = str(Path(tokenizer) / "tokenizer")
    found = survey(folder, Options(shards, seed, near, tokenizer, processes))
    # All shards of the test set, whatever part of DIR is read: overlap is a share of its images.
    other = survey(against, Options(near=near, processes=processes)) if against else None
    tree = summarise(found, other)
    if json_file is not None:
        write_json(json_file, tree)
    if picture is not None:
        draw(tree, picture)
    for line in lines(tree, folder):
        say(line)
