"""Rows of a FAISS benchmark: as a table, summed up by recall, and as advice in words.

A row is a flat dict: `direction`, `index` (`IndexConfig.label`), `search` (its parameters), `threads`;
`recall@k` against exact search in all dimensions, `difference_to_numpy`; `task_recall@k` (mean of the
languages), `task_loss@k` against exact search, and of the language that loses most; `queries_per_second`
(best of the repeats, one call with many queries) and its median; `p50_ms`, `p95_ms`, `p99_ms` of
`single_queries`; `train_rows`, `train_s`, `add_s`, `build_peak_bytes`, `bytes` (serialised),
`bytes_per_vector`; `warning` of FAISS, or empty. A row with `refused` has nothing beyond its index.
"""

import csv
import io
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from mmalign.core.commit import write_atomic

Row = dict[str, Any]
FLAT = "Flat"
RECALLS = (0.90, 0.95, 0.99)
_WORDS = {"text_to_image": "text to image", "image_to_text": "image to text"}
SPEED = itemgetter("queries_per_second_median")  # the best of a few repeats would be chance


def label_of(factory: str, setting: str) -> str:
    """An index with the parameters of its search, as in metric names: `HNSW32,Flat efSearch=64`."""
    return f"{factory} {setting}".rstrip()


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row; the columns of all rows, empty where a row has none."""
    # An ordered set: refused indexes have fewer columns.
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def best_at(rows: Sequence[Row], recall: float, k: int) -> list[Row]:
    """Of each direction, index and number of threads the quickest row with recall@k of at least `recall`."""
    able = [row for row in rows if "refused" not in row and row[f"recall@{k}"] >= recall]
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in able:
        groups.setdefault((row["direction"], row["index"], row["threads"]), []).append(row)
    return [max(group, key=SPEED) for group in groups.values()]


def throughput_at(rows: Sequence[Row], k: int) -> list[Row]:
    """Queries a second at fixed recall: one entry for each recall, direction, index and number of threads."""
    columns = (
        "direction",
        "index",
        "threads",
        "search",
        f"recall@{k}",
        "queries_per_second_median",
    )
    return [
        {"recall_wished": recall, **{column: row[column] for column in columns}}
        for recall in RECALLS
        for row in best_at(rows, recall, k)
    ]


def recommend(
    rows: Sequence[Row], recall: float, direction: str = "text_to_image", k: int = 10
) -> str:
    """One sentence: the quickest index that reaches a recall, and the smallest, on the fewest threads."""
    wish = f"For recall@{k} >= {recall:.2f}, {_WORDS[direction]}"
    mine = [row for row in rows if row["direction"] == direction and "refused" not in row]
    # One number of threads, so that the rows are comparable.
    fewest = min(row["threads"] for row in mine)
    mine = [row for row in mine if row["threads"] == fewest]
    flat = next(row for row in mine if row["index"] == FLAT)
    able = [row for row in best_at(mine, recall, k) if row["index"] != FLAT]
    if not able:
        return f"{wish}: nothing but Flat reaches it ({_cost(flat, flat)})."
    quickest = max(able, key=SPEED)
    reaching = [row for row in mine if row["index"] != FLAT and row[f"recall@{k}"] >= recall]
    # Settings of one index have one size; among them the quickest.
    smallest = min(reaching, key=lambda row: (row["bytes"], -SPEED(row)))
    if SPEED(quickest) <= SPEED(flat):
        words = f"{wish}: Flat; nothing that reaches it is quicker ({_cost(flat, flat)})"
    else:
        words = f"{wish}: {_advice(quickest, flat, k)}"
    if smallest["bytes"] < quickest["bytes"]:
        words += f"; the smallest that reaches it: {_advice(smallest, flat, k)}"
    return f"{words}."


def recommendations(rows: Sequence[Row], k: int) -> list[str]:
    """`recommend` for each direction in which Flat was measured, at each of `RECALLS`."""
    measured = {row["direction"] for row in rows if row["index"] == FLAT and "refused" not in row}
    directions = [one for one in _WORDS if one in measured]
    return [recommend(rows, recall, one, k) for one in directions for recall in RECALLS]


def _advice(row: Row, flat: Row, k: int) -> str:
    setting = f" with {row['search']}" if row["search"] else ""
    depth = max(int(name.removeprefix("task_recall@")) for name in row if "task_recall@" in name)
    loss, worst = row[f"task_loss@{depth}"], row[f"task_loss_worst@{depth}"]
    loses = "nothing in any language"
    if worst > 0:
        lang = row[f"task_loss_worst_language@{depth}"]
        loses = f"{loss:.3f} in the mean of the languages and {worst:.3f} in {lang}"
    return (
        f"`{row['index']}`{setting}: recall@{k} {row[f'recall@{k}']:.3f}, {_cost(row, flat)}; of the right "
        f"items' recall@{depth} it loses {loses}"
        + (f"; FAISS warns: {row['warning']}" if row["warning"] else "")
    )


def _cost(row: Row, flat: Row) -> str:
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    than_flat = "" if row is flat else f"{SPEED(row) / SPEED(flat):.1f} times Flat's throughput, "
    return (
        f"{than_flat}{SPEED(row):,.0f} queries/s on {threads}, p99 of {row['single_queries']:,} single "
        f"queries {row['p99_ms']:.2f} ms, {row['bytes_per_vector']:,.0f} bytes per vector, built in "
        f"{row['train_s'] + row['add_s']:.1f} s"
    )
