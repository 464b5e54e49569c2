"""Text tasks and word lists that a source brings beside its pairs, as TSV files.

rows  -> <folder>/tasks/<task>/<split>.<lang>.tsv
words -> <folder>/words/<list>.tsv
"""

from collections.abc import Iterable
from pathlib import Path

from mmalign.core.commit import write_atomic
from mmalign.core.config import Section
from mmalign.data.sources.emoji_scenes import EmojiScenes
from mmalign.data.sources.emoji_tasks import TaskRow, read_tasks
from mmalign.data.sources.emoji_words import Table, read_words

TASKS = "tasks"
WORDS = "words"

_TEXT_COLUMNS = {1: ("text",), 2: ("premise", "hypothesis")}


def write_tables(source: Section, seed: int, folder: Path) -> None:
    """Write the tasks and word lists of a source below `folder`; most sources have none."""
    if isinstance(source, EmojiScenes):
        _write(_task_tables(read_tasks(source, seed)), folder / TASKS)
        _write(read_words(source), folder / WORDS)


def _task_tables(rows: Iterable[TaskRow]) -> dict[str, Table]:
    """One table per task, split and language, the layout of SIB-200: id, label, then one text or two."""
    tables: dict[str, Table] = {}
    for task, split, row in rows:
        header = ("id", "label", *_TEXT_COLUMNS[len(row.texts)])
        table = tables.setdefault(f"{task}/{split}.{row.lang}", [header])
        table.append((row.id, row.target, *row.texts))
    return tables


def _write(tables: dict[str, Table], folder: Path) -> None:
    for name, rows in tables.items():
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without quoting: no cell may hold a tab or a line break.
        write_atomic(path, "".join("\t".join(row) + "\n" for row in rows))
