"""Rules of `mmalign data select` on columns of side tables.

columns with bounds -> the table that has each -> its rows, joined with the samples -> what fails is removed
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.errors import UserError
from mmalign.data.select.choice import Choice
from mmalign.data.select.rules import Bound, SelectConfig
from mmalign.data.select.source import ChosenFrom, Descriptions
from mmalign.data.select.tables import columns_of, join, table_files


def tables_of(config: SelectConfig, descriptions: Descriptions) -> dict[str, dict[str, Bound]]:
    """The bounds of the columns of each table; the first table that has a column counts."""
    columns = {table: set(columns_of(table_files(table)[0])) for table in config.tables}
    found: dict[str, dict[str, Bound]] = {}
    for column, bound in config.columns.items():
        table = next((table for table, names in columns.items() if column in names), None)
        found.setdefault(table or descriptions.of_set(column), {})[column] = bound
    return found


def keep_bounds(
    table: str, bounds: dict[str, Bound], missing: str, source: ChosenFrom, choice: Choice
) -> None:
    """Apply the bounds of the columns of one table."""
    lacking = {column: choice.reason(f"{column} is missing") for column in bounds}
    seen_S = np.zeros(len(choice.sample_S), bool)
    for batch, rows, samples in join(source.keys, table, bounds):
        seen_S[samples] = True
        for column, bound in bounds.items():
            values = batch.column(column).take(rows)
            numbers = samples
            remove: Callable[[np.ndarray, int], None] = choice.remove
            if hasattr(values, "value_lengths"):  # a list: one value per caption
                # Side tables have null in place of a list for rows that failed.
                is_there = values.is_valid().to_numpy(zero_copy_only=False)
                if missing == "remove":
                    choice.remove(samples[~is_there], lacking[column])
                values = values.drop_null()
                numbers, count = choice.captions_of(samples[is_there])
                _check_counts(table, column, values, count)
                values, remove = values.flatten(), choice.remove_captions
            values = _nan_as_missing(values)
            for reason, failed in _failures(column, bound, values, table):
                remove(numbers[failed], choice.reason(reason))
            if missing == "remove":
                remove(numbers[values.is_null().to_numpy(zero_copy_only=False)], lacking[column])
    if missing == "remove":
        choice.remove(np.flatnonzero(~seen_S), choice.reason(f"not in {Path(table).name}"))
    choice.settle()


def _check_counts(table: str, column: str, values: Any, count: np.ndarray) -> None:
    lengths = values.value_lengths().to_numpy()
    if (wrong := np.flatnonzero(lengths != count)).size:
        raise UserError(
            f"{table}: `{column}` has {lengths[wrong[0]]} values for a sample of {count[wrong[0]]} captions; "
            "make the table of this very set"
        )


def _nan_as_missing(values: Any) -> Any:
    # NaN is neither below nor above any bound. numpy and polars write it where a value is missing.
    import pyarrow
    from pyarrow import compute

    if not pyarrow.types.is_floating(values.type):
        return values
    return compute.if_else(compute.is_nan(values), pyarrow.scalar(None, values.type), values)


def _failures(
    column: str, bound: Bound, values: Any, table: str
) -> Iterator[tuple[str, np.ndarray]]:
    """(reason, which values it holds for); a value that is missing has no other reason."""
    import pyarrow
    from pyarrow import compute

    try:
        failed = []
        if bound.min is not None:
            failed.append((f"{column} < {bound.min}", compute.less(values, bound.min)))
        if bound.max is not None:
            failed.append((f"{column} > {bound.max}", compute.greater(values, bound.max)))
        if bound.among is not None:
            among = pyarrow.array(bound.among).cast(_plain(values.type))
            fails = compute.and_(compute.invert(compute.is_in(values, among)), values.is_valid())
            failed.append((f"{column} is another", fails))
    except (pyarrow.ArrowException, TypeError):
        raise UserError(
            f"columns.{column}: the bounds are not of the type of the column in {table}, which is "
            f"{values.type}"
        ) from None
    for reason, fails in failed:
        yield reason, compute.fill_null(fails, False).to_numpy(zero_copy_only=False)


def _plain(kind: Any) -> Any:
    """The type of a column's values, also where they are stored as a dictionary."""
    return getattr(kind, "value_type", kind)
