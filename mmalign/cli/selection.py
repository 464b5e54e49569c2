"""Commands that choose samples of a data set, and make the tables by which they are chosen."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import Model, PromptQuery, find_yaml, given_prompts, say
from mmalign.cli.data import (
    DataSet,
    PartOption,
    Processes,
    Ray,
    check_alone,
    data_app,
    part_of,
    say_built,
    say_indexed,
    say_part,
)
from mmalign.core.commit import check_writable
from mmalign.core.errors import UserError

Table = Annotated[Path, typer.Option("--out", metavar="FILE", help="Table to write, .parquet.")]


@data_app.command("describe")
def data_describe(
    folder: DataSet,
    out: Table,
    identify: Annotated[
        str | None, typer.Option(help="Identify languages: py3langid, or a fastText file.")
    ] = None,
    near: Annotated[bool, typer.Option(help="Hash how images look; decodes all.")] = True,
    processes: Processes = 1,
    part: PartOption = None,
    ray: Ray = None,
) -> None:
    """Write a table with one row per sample: sizes, hashes, and lengths and scripts of its captions.

    Example: mmalign data describe data/emoji_scenes/train --out samples.parquet
    """
    from mmalign.data.select.describe import Options, describe, describe_by_ray

    check_writable(out)
    options = Options(near, identify, processes)
    if ray is None:
        found = describe(folder, out, options, part_of(part))
    else:
        check_alone(part)
        found = describe_by_ray(folder, out, options, ray)
    _say_rows(out, found.samples, found.unusable)


@data_app.command("score")
def data_score(
    folder: DataSet,
    model: Model,
    out: Table,
    column: Annotated[str, typer.Option(help="Name of the column.")] = "clip_score",
    prompt_query: PromptQuery = None,
    part: PartOption = None,
    ray: Ray = None,
) -> None:
    """Write a table with the similarity of every image and each of its captions.

    Example: mmalign data score data/emoji_scenes/train --model runs/demo --out scores.parquet
    """
    from mmalign.evaluation.score import score, score_by_ray
    from mmalign.models.load import load_model

    check_writable(out)
    prompts = given_prompts(prompt_query, None)
    if ray is None:
        done = score(folder, out, load_model(model, prompts), column, part_of(part))
    else:
        check_alone(part)
        done = score_by_ray(folder, out, model, prompts, column, ray)
    _say_rows(out, *done)


def _say_rows(out: Path, samples: int, unusable: dict[str, int]) -> None:
    say(f"{out}: {samples:,} samples")
    for reason, count in unusable.items():
        say(f"  without a row: {count:,} samples ({reason})")


@data_app.command("select")
def data_select(
    folder: DataSet,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new set.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Rules: columns.clip_score.min=0.28"),
    ] = None,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML of the rules.")] = None,
    tables: Annotated[
        list[str] | None, typer.Option("--table", help="Side table: parquet, CSV; repeat it.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Test set that must not leak; repeat it.")
    ] = None,
    processes: Processes = 1,
    part: PartOption = None,
    ray: Ray = None,
) -> None:
    """Choose samples by side tables and rules; the new set names the tars of the old one and copies none.

    Example: mmalign data select data/emoji_scenes/train data/chosen duplicates.images=near
    """
    from mmalign.core.config import apply_override, read_yaml, validate
    from mmalign.data.select.rules import SelectConfig
    from mmalign.data.select.select import say_selected, select, select_by_ray

    tree: dict[str, Any] = (
        read_yaml(rules := find_yaml(rules, "data_recipes/rules")) if rules else {}
    )
    for override in overrides or ():
        apply_override(tree, override)
    if tables:
        tree["tables"] = [*(tree.get("tables") or ()), *tables]
    if against:
        leaks = tree.get("leaks") or {}
        tree["leaks"] = {**leaks, "against": [*(leaks.get("against") or ()), *against]}
    config = validate(SelectConfig, tree, str(rules or "mmalign data select"))
    if ray is None:
        found = select(folder, out, config, processes, part_of(part))
    else:
        check_alone(part)
        found = select_by_ray(folder, out, config, ray)
    if found is None:
        say_part(part, out)
    else:
        say_selected(found, out)


@data_app.command("merge")
def data_merge(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Set, or table, of which there are parts.")
    ],
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART]...", help="Of a table: files, or their folder."),
    ] = None,
) -> None:
    """Join what jobs with --part have made: a data set (build, index, select), or a table (describe, score).

    Example: mmalign data merge data/pairs
    """
    from mmalign.data import recipe
    from mmalign.data.select import select
    from mmalign.data.select.tables import merge_tables
    from mmalign.data.shards import index

    if parts:
        check_writable(out)
        _say_rows(out, merge_tables(out, parts), {})
    elif recipe.is_in_parts(out):
        say_built(out, recipe.merge(out))
    elif index.is_in_parts(out):
        say_indexed(*index.merge(out))
    elif select.is_in_parts(out):
        select.say_selected(select.merge(out), out)
    else:
        raise UserError(
            f"{out}: no parts of `data build`, `index` or `select` there; of a table, name its parts too"
        )
