"""Every layout that can be read: the name of a format -> the kind of its task and its examples.

format, folder -> Layout (a row of formats.yaml) -> matching files -> examples of each file -> Splits
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmalign.core.config import Section, read_yaml, validate
from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.text.tasks import meci, question_answering, retrieval
from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.layout import SPLIT, read_files
from mmalign.text.tasks.slots import words_and_tags
from mmalign.text.tasks.tables import UNUSABLE, Row, json_tree, lines, parallel, read_text, rows
from mmalign.text.tasks.task import Entry, Example, Kind, Splits, Target


class Layout(Section):
    """How a publisher's files become examples."""

    kind: Kind
    files: str
    """Template of their paths, see layout.py."""
    rows: str | None = None
    """`file`: each file is one text. Otherwise a key of a JSON file, whose value is the list of rows. By
    default rows of .tsv, .csv or .jsonl files; of tagging without `slots`, lines of a sentence."""
    columns: tuple[str, ...] = ()
    """Names of the columns, where no header line names them."""
    quoted: bool = False
    skip_broken: bool = False
    """See `tables.rows`."""
    unlabelled_tests: bool = False
    """Test files without the last column may occur; they are left out."""
    labels_file: tuple[str, str] | None = None
    """Part of a file's name -> part of the name of the file beside it that holds its labels by line; only
    where the rows have none."""
    join: bool = False
    """Several files may hold one split of one language."""
    language: str | None = None
    """Column with the language of a row."""
    split: str | None = None
    """Column with the split of a row, if the file has it."""
    texts: tuple[str, ...] = ()
    """Columns; `a + b` joins two of them by a space."""
    slots: str | None = None
    """Of tagging: column of a sentence with marked slots, see slots.py."""
    words: Mapping[str, dict[str, str]] = Field(default_factory=dict)
    """Column of a text -> its values -> what to write for them."""
    replace: tuple[str, str] | None = None
    """Regular expression and replacement in every text."""
    empty: Literal["keep", "refuse", "skip"] = "keep"
    """What to do with rows that have an empty text."""
    label: tuple[str, ...] = ("label",)
    """Column of the target; of several, the first that the file has."""
    labels: dict[str, str | int | None] | None = None
    """The publisher's labels -> ours; null: the row is left out. By default labels stay as they are."""
    other_labels: bool = False
    """Labels that `labels` lacks stay as they are; by default they are errors."""
    score: str | None = None
    """Column of a number that is the target, instead of a label."""
    id: str = "{split}-{number}"
    """Template of columns, named parts of the path, `split`, `lang` and `number` (of the row, from 1)."""

    def read(self, folder: Path) -> Splits:
        """The examples of all files of this layout in a folder; errors are those of `read`."""

        def entries(path: Path, parts: dict[str, str]) -> Iterator[Entry] | None:
            if self.unlabelled_tests and parts["split"] == "test":
                first = next((line for line in lines(path) if line.strip()), "")
                if first.count("\t") < len(self.columns) - 1:
                    return None
            read_file = _table if self.slots else _READ_FILE.get(self.kind, _table)
            return read_file(self, path, parts)

        return read_files(folder, self.files, entries, self.join)

    def target(self, row: Row) -> Target | None:
        # None: the row is left out.
        if self.score is not None:
            return row.score(self.score)
        column = next((one for one in self.label if one in row.cells), self.label[0])
        if self.labels is not None and not self.other_labels:
            return row.renamed(column, self.labels)
        label = row.name(column).strip()
        return (self.labels or {}).get(label, label)

    def text(self, row: Row, columns: str) -> str:
        text = " ".join(
            row.renamed(column, self.words[column]) if column in self.words else row.cell(column)
            for column in columns.split(" + ")
        )
        return re.sub(*self.replace, text) if self.replace else text

    def name(self, row: Row, parts: Mapping[str, str]) -> str:
        known = {**parts, "number": str(row.number)}
        return re.sub(r"\{(\w+)\}", lambda m: known.get(m[1]) or row.name(m[1]), self.id)


def _table(layout: Layout, path: Path, parts: dict[str, str]) -> Iterator[Entry]:
    return examples_of(layout, _rows(layout, path, parts), parts)


def examples_of(layout: Layout, rows: Iterable[Row], parts: dict[str, str]) -> Iterator[Entry]:
    """The examples of a table's rows; `parts` has the split, and the language if no column has it."""
    for row in rows:
        lang = row.language(layout.language) if layout.language else parts.get("lang", "en")
        split = parts["split"]
        if layout.split is not None and layout.split in row.cells:
            split = row.renamed(layout.split, SPLIT)
        if layout.slots is not None:
            yield (split, lang), _with_slots(layout, row, {**parts, "split": split, "lang": lang})
            continue
        texts = tuple(layout.text(row, columns) for columns in layout.texts)
        is_empty = not all(text.strip() for text in texts)
        if is_empty and layout.empty == "refuse":
            raise row.error(f"`{layout.texts[0]}` must be text and not empty")
        target = None if is_empty and layout.empty == "skip" else layout.target(row)
        if target is not None:
            name = layout.name(row, {**parts, "split": split, "lang": lang})
            yield (split, lang), Example(name, lang, texts, target, row.place)


def _with_slots(layout: Layout, row: Row, parts: dict[str, str]) -> Example:
    try:
        words, tags = words_and_tags(row.text(layout.slots or ""), parts["lang"])
    except ValueError as error:
        raise row.error(f"`{layout.slots}`: {error}; write `[slot : words]`") from None
    return Example(layout.name(row, parts), parts["lang"], words, tags, row.place)


def _rows(layout: Layout, path: Path, parts: dict[str, str]) -> Iterable[Row]:
    if layout.rows == "file":
        return [Row(path, 1, 1, {**parts, "text": read_text(path)})]
    if layout.rows is not None:
        trees = json_tree(path).get(layout.rows)
        if not isinstance(trees, list) or not all(isinstance(tree, dict) for tree in trees):
            raise UserError(f"{path}: has no list of examples `{layout.rows}`; get the file again")
        return [Row(path, n, n, tree) for n, tree in enumerate(trees, start=1)]
    found = rows(path, layout.columns, layout.quoted, layout.skip_broken)
    if layout.labels_file is None:
        return found  # row by row: some files have millions
    # The labels lie in a file beside it, unless the rows have them.
    column, bare = layout.label[0], list(found)
    if any(column in row.cells for row in bare):
        return bare
    beside = path.with_name(path.name.replace(*layout.labels_file))
    labelled = parallel(beside, lines(beside), path, bare)
    return [replace(row, cells={**row.cells, column: label}) for row, label in labelled]


def _sentences(layout: Layout, path: Path, parts: dict[str, str]) -> Iterator[Entry]:
    """One example per block of lines, a word and its tag per line; an empty line ends a sentence."""
    words: list[tuple[str, str]] = []
    number, lang = 1, parts["lang"]
    for line_number, line in enumerate([*lines(path), ""], start=1):
        cells = dict(zip(layout.columns, line.split("\t"), strict=False))
        row = Row(path, line_number, number, cells)
        if not line.strip():
            if words:
                texts, tags = zip(*words, strict=True)
                name = layout.name(row, parts)
                yield (parts["split"], lang), Example(name, lang, texts, tags, row.place)
                words, number = [], number + 1
        elif line.startswith("#") and layout.columns[0] == "id":
            continue  # CoNLL-U has comments; a word of other formats may start with #
        elif line.count("\t") != len(layout.columns) - 1:
            raise row.error(
                f"{line.count(chr(9)) + 1} columns; there must be {len(layout.columns)}: "
                f"{', '.join(layout.columns)}"
            )
        # CoNLL-U numbers multiword tokens 1-2 and empty nodes 1.1; neither is a word.
        elif not re.fullmatch(r"\d+[-.]\d+", cells.get("id", "")):
            word, (column, *_) = cells[layout.texts[0]], layout.texts
            if column.startswith("lang:"):
                start, colon, word = word.partition(":")
                if not colon:
                    raise row.error(f"`{start}` has no language before it; write `lang:word`")
            words.append((word, cells[layout.label[0]].strip()))


_READ_FILE: dict[Kind, Callable[[Layout, Path, dict[str, str]], Iterator[Entry]]] = {
    "tagging": _sentences,
    "span_qa": lambda _, path, parts: question_answering.questions(path, parts),
    "retrieval": lambda _, path, parts: retrieval.translations(path, parts),
    "event_causality": lambda _, path, parts: meci.document(path, parts),
}

_OWN_TEXTS = (("text",), ("premise", "hypothesis"), ("sentence1", "sentence2"))


def _read_own(folder: Path, files: str) -> Splits:
    """Our own layout, for every set that has none.

    A TSV file has a header line and no quoting; a JSONL file has one object per line with the same names
    as keys. The kind of task follows from the columns (others are not read):

        text, label                                                        classification
        premise, hypothesis, label  or  sentence1, sentence2, label        classification of pairs
        sentence1, sentence2, score                                        similarity

    Rows with the same `id` are translations of each other, so ids differ within a split and language. Without
    an `id` column, row n of a split is the same in every language.
    """
    for path in sorted(folder.glob("*.*")):
        match = re.fullmatch(r"(train|dev|test)\.([^./]+)\.\w+", path.name)
        is_task_file = match is not None and is_language_code(bcp47(match[2]))
        # A typing error in a name would otherwise leave out the file.
        if path.suffix in (".tsv", ".jsonl") and not is_task_file:
            raise UserError(
                f"{path}: not the name of a task file; call it <train, dev or test>.<language>.tsv"
            )
    return read_files(folder, files, _own)


def _own(path: Path, parts: dict[str, str]) -> Iterator[Entry]:
    split, lang = parts["split"], parts["lang"]
    for row in rows(path):
        columns = next((one for one in _OWN_TEXTS if one[0] in row.cells), None)
        if columns is None or not {"label", "score"} & row.cells.keys():
            raise row.error(
                f"has the columns {', '.join(row.cells)}; a task needs `text` and `label`, `premise`, "
                "`hypothesis` and `label`, or `sentence1`, `sentence2` and `label` or `score`"
            )
        name = row.name("id") if "id" in row.cells else f"{split}-{row.number}"
        target = row.name("label") if "label" in row.cells else row.score("score")
        texts = tuple(map(row.text, columns))
        yield (split, lang), Example(name, lang, texts, target, row.place)


LAYOUTS = {
    name: validate(Layout, tree, f"formats.yaml, {name}")
    for name, tree in read_yaml(Path(__file__).with_name("formats.yaml")).items()
}
# What no entry of formats.yaml can express: our own layout, whose columns decide the kind of task, and
# retrieval sets whose candidates are known only when all rows are.
_READ_FOLDER: dict[str, Callable[[Path, str], Splits]] = {
    "tsv": _read_own,
    "parallel": retrieval.parallel_texts,
    "lareqa": retrieval.read_lareqa,
    "mewslix": retrieval.read_mewslix,
}

# Of ids and labels, which files of predictions hold; other control characters in a text do no harm.
_IN_A_NAME = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")

if TYPE_CHECKING:
    Format = str
else:  # mypy needs the names of a Literal written out
    Format = Literal[tuple(LAYOUTS)]


def read(format: Format, folder: Path) -> tuple[Kind, Splits]:
    """The kind of task and the examples that a folder in this layout holds.

    Raises:
        UserError: nothing of the layout is there, or a file of it is broken (file, line, what is wrong).
    """
    layout = LAYOUTS[format]
    is_own = format in _READ_FOLDER
    splits = _READ_FOLDER[format](folder, layout.files) if is_own else layout.read(folder)
    return checked(layout.kind, splits, folder)


def checked(kind: Kind, splits: Splits, folder: Path) -> tuple[Kind, Splits]:
    """The kind of task and the examples as they are, after a look at every id and text."""
    # Languages may share one pool of candidates.
    for examples in {id(one): one for one in splits.values()}.values():
        _check(examples, folder)
    scored = {isinstance(one.target, float) for rows in splits.values() for one in rows}
    if len(scored) > 1:
        raise UserError(
            f"{folder}: some task files have the column `label` and others `score`; separate them"
        )
    return ("similarity" if scored == {True} else kind), splits


def _check(examples: Iterable[Example], folder: Path) -> None:
    first: dict[str, Example] = {}
    for one in examples:
        target = one.target if isinstance(one.target, tuple) else (one.target,)
        names = (one.id, *(part for part in target if isinstance(part, str)))
        if not all(isinstance(part, str) for part in (one.id, *one.texts)):
            raise UserError(
                f"{one.place or folder}: an id or a text is not text; get the file again"
            )
        found = [
            match[0]
            for pattern, parts in ((UNUSABLE, one.texts), (_IN_A_NAME, names))
            for part in parts
            if (match := pattern.search(part))
        ]
        if found:
            raise UserError(
                f"{one.place or folder}: holds U+{ord(found[0]):04X}, a control character or half of a "
                "surrogate pair; remove it"
            )
        # Intervals are drawn over ids: rows with one id would count as one.
        if (other := first.setdefault(one.id, one)) is not one:
            raise UserError(
                f"{one.place or folder}: the id `{one.id}` is also that of {other.place}; make them differ"
            )
