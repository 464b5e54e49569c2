"""Tasks that the library `datasets` reads: by their name on the hub, or from disk.

    name, configuration -> load_dataset   -+-> rows -> Layout (columns) -> examples
    folder of save_to_disk or of parquet  -+

On disk each language may have a folder of its own, named by its code. Parquet files are named by their split
(`train-00000-of-00001.parquet`), as on the hub. Numbers of a `ClassLabel` become its names.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.text.tasks.codes import Language, bcp47
from mmalign.text.tasks.formats import Layout, checked, examples_of
from mmalign.text.tasks.layout import SPLIT
from mmalign.text.tasks.tables import Row
from mmalign.text.tasks.task import Kind, Splits

_SPLITS = {**SPLIT, "validation": "dev", "valid": "dev"}


class DatasetConfig(Section):
    """What the columns of a data set are."""

    texts: tuple[str, ...] = Field(min_length=1)
    """Columns of the text, or of the two texts."""
    label: str = "label"
    """Column of the label."""
    score: str | None = None
    """Column of a number that is the target, in place of a label."""
    id: str | None = None
    """Column of an id that translations share; none: the number of the row, in files that are row-aligned."""
    language: str | None = None
    """Column of the language; none: each configuration, or folder, is one language."""
    configurations: dict[Language, str] | None = None
    """Language -> name of its configuration on the hub; none: those whose names are language codes."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Name of a split there -> train, dev or test, where it is another than the usual ones."""
    revision: str | None = None
    """Commit of a data set on the hub."""


def read_dataset(name: str, config: DatasetConfig) -> tuple[Kind, Splits]:
    """The kind of task and the examples of a data set.

    Raises:
        UserError: `datasets` is not installed, it cannot read the data, or a column is missing.
    """
    try:
        import datasets
    except ImportError:
        raise UserError("hf: needs datasets; `pip install 'mmalign[recipes]'` brings it") from None
    layout = Layout(
        kind="classification",
        files="",
        texts=config.texts,
        label=(config.label,),
        score=config.score,
        language=config.language,
        id=f"{{{config.id}}}" if config.id else "{split}-{number}",
        empty="refuse",
    )
    splits: Splits = {}
    try:
        for lang, found in _languages(datasets, name, config):
            for split, table in found.items():
                where = config.splits.get(split) or _SPLITS.get(split)
                if where is None:
                    continue  # MNLI has `validation_mismatched`; `splits` can name it
                parts = {"split": where, **({"lang": lang} if lang else {})}
                rows = _rows(table, config, Path(name) / (lang or "") / split)
                for key, example in examples_of(layout, rows, parts):
                    splits.setdefault(key, []).append(example)
    except UserError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name}: datasets cannot read it ({error})") from None
    return checked("classification", splits, Path(name))


def _languages(
    datasets: Any, name: str, config: DatasetConfig
) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """(language, split -> table) of every configuration; no language where a column has it."""
    folder = Path(name)
    if not folder.is_dir():
        names: Mapping[str, str | None] | None = config.configurations
        if names is None:
            known = datasets.get_dataset_config_names(name, revision=config.revision)
            names = {bcp47(one): one for one in known if is_language_code(bcp47(one))}
        if config.language is not None and not config.configurations:
            names = {"": None}
        for lang, one in names.items():
            yield lang or None, datasets.load_dataset(name, one, revision=config.revision)
        return
    below = [one for one in sorted(folder.iterdir()) if one.is_dir()]
    languages = {bcp47(one.name): one for one in below if is_language_code(bcp47(one.name))}
    for lang, below_it in languages.items():
        if tables := _on_disk(datasets, below_it):
            yield lang, tables
    if tables := _on_disk(datasets, folder):
        yield None, tables


def _on_disk(datasets: Any, folder: Path) -> dict[str, Any]:
    if (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(folder)))
    if (folder / "dataset_info.json").is_file():
        one = datasets.load_from_disk(str(folder))
        return {str(one.split or "test"): one}
    files: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")):
        files.setdefault(re.split(r"-\d+-of-\d+", path.stem)[0], []).append(str(path))
    # Not `from_parquet`, which copies everything into a cache.
    from pyarrow import parquet

    return {
        split: datasets.concatenate_datasets(
            [datasets.Dataset(parquet.read_table(path)) for path in paths]
        )
        for split, paths in files.items()
    }


def _rows(table: Any, config: DatasetConfig, path: Path) -> Iterator[Row]:
    target = config.score or config.label
    wanted = [*config.texts, target, *filter(None, (config.id, config.language))]
    missing = [one for one in wanted if one not in table.column_names]
    if missing:
        raise UserError(
            f"{path}: has no column `{missing[0]}`; it has {', '.join(table.column_names)}"
        )
    names = getattr(table.features[target], "names", None)
    for number, row in enumerate(table.select_columns(wanted), start=1):
        label = row[target]
        if names is not None and isinstance(label, int):
            if label < 0:
                continue  # the hub's way to say that a test row has no label
            row[target] = names[label]
        if config.id:
            row[config.id] = str(row[config.id])
        yield Row(path, number, number, row)
