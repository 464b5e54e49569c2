"""Text tasks and word lists that a source brings beside its pairs, as TSV files.

rows  -> <folder>/tasks/<task>/<split>.<lang>.tsv
words -> <folder>/words/<list>.tsv
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mmalign.core.commit import write_atomic
from mmalign.core.config import Section
from mmalign.data.sources import emoji_tasks, emoji_words
from mmalign.data.sources.emoji_scenes import EmojiScenes
from mmalign.data.sources.emoji_tasks import TaskRow

TASKS = "tasks"
WORDS = "words"

Table = list[tuple[str, ...]]
"""Rows of a TSV file; the first one names the columns."""

_TEXT_COLUMNS = {1: ("text",), 2: ("premise", "hypothesis")}


def write_tables(source: Section, seed: int, folder: Path) -> None:
    """Write the tasks and word lists of a source below `folder`; most sources have none."""
    _write(_task_tables(_read_tasks(source, seed)), folder / TASKS)
    _write(_read_words(source), folder / WORDS)


def _read_tasks(source: Section, seed: int) -> Iterator[TaskRow]:
    if isinstance(source, EmojiScenes):
        return emoji_tasks.read_tasks(source, seed)
    return iter(())


def _read_words(source: Section) -> dict[str, Table]:
    if isinstance(source, EmojiScenes):
        return emoji_words.read_words(source)
    return {}


def _task_tables(rows: Iterable[TaskRow]) -> dict[str, Table]:
    """One table per task, split and language, the layout of SIB-200: id, label, then one text or two."""
    tables: dict[str, Table] = {}
    for task, split, row in rows:
        header = ("id", "label", *_TEXT_COLUMNS[len(row.texts)])
        table = tables.setdefault(f"{task}/{split}.{row.lang}", [header])
        table.append((row.id, row.target, *row.texts))
    return tables


def _write(tables: dict[str, Table], folder: Path) -> None:
    """Write TSV files without quoting: no cell may hold a tab or a line break."""
    for name, rows in tables.items():
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join("\t".join(row) + "\n" for row in rows))
