"""Commands that make, index, append to, verify and count shards of image-caption pairs."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmalign.cli.app import Overrides, app, find_yaml, is_run, say
from mmalign.core.commit import check_writable, write_json
from mmalign.core.errors import UserError

if TYPE_CHECKING:
    from mmalign.data.shards.manifest import Manifest

data_app = typer.Typer(help="Make and inspect shards of image-caption pairs.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_SHOWN = 50  # problems of a data set that are printed
DataSet = Annotated[str, typer.Argument(metavar="SET", help="Folder or URL with a manifest.json.")]
Processes = Annotated[int, typer.Option(min=1, help="Shards that are read at once.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Report to write.")]


AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Read files outside of the sources.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Run parts as tasks of Ray, one per core: address, auto or local."
    ),
]
PartOption = Annotated[
    str | None, typer.Option("--part", metavar="I/N", help="Every Nth shard from the Ith, from 0.")
]


def part_of(text: str | None) -> tuple[int, int]:
    """`--part 3/8` as (3, 8); (0, 1) is all."""
    if text is None:
        return 0, 1
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise UserError(f"--part is `{text}`; give I/N, such as 0/8 to 7/8 for eight jobs")
    return int(number), int(parts)


def check_alone(part: str | None) -> None:
    """Refuse `--part` beside `--ray`, which makes parts of its own."""
    if part is not None:
        raise UserError("--part: Ray makes the parts; leave it out, or leave --ray out")


def _say_split(folder: Path, manifest: "Manifest") -> None:
    captions, languages = sum(manifest.languages.values()), len(manifest.languages)
    say(f"{folder}: {manifest.samples} images, {captions} captions in {languages} languages")


def say_built(out: Path, manifests: "Iterable[Manifest]") -> None:
    from mmalign.data.packing import REFUSED

    for manifest in manifests:
        _say_split(out / manifest.split, manifest)
    if (out / REFUSED).is_file():
        say(f"some rows could not be used; {out / REFUSED} lists them")


def say_indexed(manifest: "Manifest", folder: Path) -> None:
    from mmalign.data.shards.foreign_tars import REFUSED

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


def say_part(part: str | None, out: Path | None) -> None:
    """What joins the parts; `out` None: the folder of the tars."""
    merge = f"mmalign data merge {out or 'FOLDER'}"
    say(f"part {part} is done; when all parts are, `{merge}` completes the data set")


def _check_files(*outputs: Path | None) -> None:
    for path in filter(None, outputs):
        check_writable(path)


def _changes(
    overrides: list[str] | None, folders: list[str] | None, allow_outside: bool
) -> list[str]:
    """The overrides of a recipe, with those that options stand for."""
    changes = list(overrides or ())
    if folders:
        # Quoted as YAML: a folder's name may contain commas, brackets or quotes.
        quoted = ("'" + folder.replace("'", "''") + "'" for folder in folders)
        changes.append(f"source.folders=[{', '.join(quoted)}]")
    if allow_outside:
        changes.append("source.allow_outside=true")
    return changes


@data_app.command("build")
def data_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe YAML, or its name.")],
    overrides: Overrides = None,
    folders: Annotated[list[str] | None, typer.Option("--from", help="Source; repeat it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; data/<name>.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a data set.")] = False,
    allow_outside: AllowOutside = False,
    resize: Annotated[
        int | None, typer.Option(metavar="N", help="Shorter side of images, at most N pixels.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="That write; all cores.")] = None,
    part: PartOption = None,
    ray: Ray = None,
) -> None:
    """Run a recipe: write shards of every split, with manifests.

    Example: mmalign data build data_recipes/emoji_scenes.yaml
    """
    from mmalign.core.config import load_config
    from mmalign.data.recipe import build, build_by_ray
    from mmalign.data.recipe_config import RecipeConfig

    changes = _changes(overrides, folders, allow_outside)
    if resize is not None:
        changes.append(f"resize.shortest={resize}")
    config = load_config(RecipeConfig, find_yaml(recipe, "data_recipes"), changes)
    out = out or Path("data") / config.name
    check_writable(out, is_folder=True)
    if ray is None:
        manifests = build(config, out, force, processes, part_of(part))
    else:
        check_alone(part)
        manifests = build_by_ray(config, out, force, ray)
    if not manifests:
        say_part(part, out)
    say_built(out, manifests)


@data_app.command("index")
def data_index(
    tars: Annotated[
        str, typer.Argument(metavar="TARS", help="Folder, pattern, brace list; or URLs.")
    ],
    captions: Annotated[str, typer.Option(help="txt, json:FIELD or json:FIELD,FIELD.")] = "txt",
    language: Annotated[
        str | None, typer.Option(help="Code, json:FIELD, identify[:MODEL].")
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(help="Where there is no valid code: a code or identify[:MODEL].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; that of the tars.")] = None,
    processes: Processes = 1,
    part: PartOption = None,
    ray: Ray = None,
) -> None:
    """Index existing tars: scan them once, write index and manifest. The tars stay as they are.

    Example: mmalign data index path/to/img2dataset --captions json:caption --language identify
    """
    from mmalign.data.shards.index import index, index_by_ray
    from mmalign.data.shards.scan import Rules

    if out is not None:
        check_writable(out, is_folder=True)
    rules = Rules(captions, language, fallback)
    if ray is None:
        done = index(tars, rules, out, processes, part_of(part))
    else:
        check_alone(part)
        done = index_by_ray(tars, rules, out, ray)
    if done is None:
        say_part(part, out)
    else:
        say_indexed(*done)


@data_app.command("append")
def data_append(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A set that `data build` or `data index` made.")
    ],
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Of new rows; that of the set.")
    ] = None,
    overrides: Overrides = None,
    sources: Annotated[
        list[str] | None, typer.Option("--from", help="New folder, or tars; repeat it.")
    ] = None,
    allow_outside: AllowOutside = False,
    processes: Annotated[int | None, typer.Option(min=1, help="That write; all cores.")] = None,
) -> None:
    """Append new shards to a data set. A run that goes on keeps its order of samples; a new one sees all.

    Example: mmalign data append data/pairs --from path/to/new/folder
    """
    from mmalign.core.config import load_config
    from mmalign.core.workers import usable_cores
    from mmalign.data.append import append_rows, append_tars, recipe_of
    from mmalign.data.recipe_config import RecipeConfig

    check_writable(folder, is_folder=True)
    if recipe is not None:
        changes = _changes(overrides, sources, allow_outside)
        config = load_config(RecipeConfig, find_yaml(recipe, "data_recipes"), changes)
        done = append_rows(config, folder, processes)
    elif (of_set := recipe_of(folder, sources or [], allow_outside)) is not None:
        done = append_rows(of_set, folder, processes)
    else:
        done = [append_tars(folder, sources or [], processes or usable_cores())]
    for one in done:
        known = f"; {one.known} of the source were there already" if one.known else ""
        say(f"{one.folder}: {one.shards} new shards{known}")
        _say_split(one.folder, one.manifest)


@data_app.command("verify")
def data_verify(
    folder: DataSet,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image in full.")] = False,
    processes: Processes = 1,
    json_file: JsonFile = None,
) -> None:
    """Check a data set against its manifest; exit code 1 and the names of damaged samples if it is damaged.

    Example: mmalign data verify data/emoji_scenes/train
    """
    from mmalign.data.verify import describe, verify

    _check_files(json_file)
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
    folder: DataSet,
    against: Annotated[str | None, typer.Option(help="Test set to look for in SET.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Run, folder or hub name.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Read so many of SET.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of shards.")] = 0,
    near: Annotated[bool, typer.Option(help="Find images that look alike; decodes all.")] = True,
    processes: Processes = 1,
    json_file: JsonFile = None,
    picture: Annotated[Path | None, typer.Option(help="Chart to draw, .png or .svg.")] = None,
) -> None:
    """Count languages, lengths, sizes and duplicates of a data set, and its overlap with a test set.

    Example: mmalign data stats data/emoji_scenes/train --against data/emoji_scenes/test --picture stats.png
    """
    from mmalign.data.stats.summary import lines, summarise
    from mmalign.data.stats.survey import Options, survey

    _check_files(json_file, picture)
    if picture is not None:
        from mmalign.data.stats.chart import check_target, draw

        check_target(picture)
    if tokenizer is not None and is_run(tokenizer):
        tokenizer = str(Path(tokenizer) / "tokenizer")
    found = survey(folder, Options(shards, seed, near, tokenizer, processes))
    # All shards of the test set, whatever part of SET is read: overlap is a share of its images.
    other = survey(against, Options(near=near, processes=processes)) if against else None
    tree = summarise(found, other)
    if json_file is not None:
        write_json(json_file, tree)
    if picture is not None:
        draw(tree, picture)
    for line in lines(tree, folder):
        say(line)
