"""Which files of a folder belong to a set: templates of their paths.

A template is a path below the folder, for example `[MNLI/]{train,dev}.{jsonl,tsv}`:

    [...]         may be missing            *    any part of a name
    {a,b}         one of these; a choice between names of splits is the split
    {x=a,b}       one of these, which the reader gets under the name x
    **/           any folders, or none      or   between two templates: either fits
    <language>    the publisher's language code; see `_LANGUAGES` for other spellings
    <locale>      a language and a region, of which the language counts
    <name>        any other part of a name, which the reader gets under this name

A set without a language in its paths is in English; one without a split is a test.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import NAMES, bcp47, bcp47_of_locale
from mmalign.text.tasks.task import Entry, Splits

# Publishers' names of splits -> ours.
SPLIT = {
    **dict.fromkeys(("train", "translated_train", "in_domain_train", "trn", "TRAIN"), "train"),
    **dict.fromkeys(("dev", "val", "dev_2k", "dev_matched", "in_domain_dev"), "dev"),
    **dict.fromkeys(("trial", "TRIAL"), "dev"),
    **dict.fromkeys(("test", "test_2k", "test_annotated", "TEST"), "test"),
    # Labelled sets of other domains or attacks that nobody tunes on: papers report them as tests.
    **dict.fromkeys(("dev_mismatched", "out_of_domain_dev", "evaluation"), "test"),
}

_LANGUAGES = {
    # Underscores before a region or a script alone: others begin the name of a treebank.
    "language": r"[A-Za-z]{2,3}(?:-[A-Za-z]+|_[A-Za-z]{2}|_[A-Za-z]{4})?",
    "BCP-47 code": r"[^./]+",
    "FLORES-200 code": r"[a-z]{3}_[A-Z][a-z]{3}",
    "Wikipedia code": r"[A-Za-z_-]{2,}",
    "language in English": f"(?i:{'|'.join(NAMES)})",
}
_TOKEN = re.compile(r"\*\*/|\*|\[|\]|\{[^}]*\}|<[^>]*>|[^*\[\]{<]+")
_FIXED = {"**/": r"(?:.+/)?", "*": r"[^/]*", "[": "(?:", "]": ")?"}


class NoFiles(UserError):
    """No file of a set was found. A suite may go on without the set; a broken file stops it."""


def matching(folder: Path, template: str) -> list[tuple[Path, dict[str, str]]]:
    """The files below `folder` whose path fits the template, in the order of their paths.

    Returns:
        Each file with the named parts of its path: `split` (ours), `lang` (BCP-47) where the template
        has a language, and others under their own names.

    Raises:
        NoFiles: no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise NoFiles(f"{folder}: no such task folder; download the set or give another folder")
    patterns = [re.compile("".join(_pattern_parts(one))) for one in template.split(" or ")]
    found = []
    # Sorted: the order of files decides the order of examples, and a file system promises none.
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder).as_posix()
        match = next((m for pattern in patterns if (m := pattern.fullmatch(relative))), None)
        if match is not None:
            parts = {name: part for name, part in match.groupdict().items() if part is not None}
            parts["split"] = SPLIT[parts.get("split", "test")]
            if "lang" in parts:
                parts["lang"] = bcp47(parts["lang"])
            elif "locale" in parts:
                parts["lang"] = bcp47_of_locale(parts["locale"])
            found.append((path, parts))
    if not found:
        raise NoFiles(f"{folder}: holds no file of this layout; looked for {template}")
    return found


def read_files(
    folder: Path,
    template: str,
    reader: Callable[[Path, dict[str, str]], Iterator[Entry] | None],
    join: bool = False,
) -> Splits:
    """The examples of all files that fit the template; `reader` returns None for a file to leave out.

    Raises:
        UserError: a file has none, or without `join` an earlier one held the same split and language.
    """
    splits: Splits = {}
    first: dict[tuple[str, str], Path] = {}
    for path, parts in matching(folder, template):
        entries = reader(path, parts)
        if entries is None:  # XTREME's tests have no labels
            continue
        found: Splits = {}
        for key, example in entries:
            found.setdefault(key, []).append(example)
        if not found:
            raise UserError(f"{path}: holds no examples; fill it or remove it")
        for key, rows in found.items():
            # One language may be spelled in two ways: `EN` and `en`, `iw` and `he`.
            if first.setdefault(key, path) != path and not join:
                raise UserError(
                    f"{path}: a second file for {key[0]} in `{key[1]}`, beside {first[key]}; keep one"
                )
            splits.setdefault(key, []).extend(rows)
    return splits


def _pattern_parts(template: str) -> Iterator[str]:
    named: set[str] = set()
    for token in _TOKEN.findall(template):
        name, _, choices = token[1:-1].rpartition("=")
        if token in _FIXED:
            yield _FIXED[token]
            continue
        if token[0] not in "{<":
            yield re.escape(token)
            continue
        if token[0] == "{":
            is_split = set(choices.split(",")) <= SPLIT.keys()
            name = name or ("split" if is_split else f"choice_{len(named)}")
            pattern = "|".join(map(re.escape, choices.split(",")))
        else:
            name = "lang" if choices in _LANGUAGES else choices
            pattern = _LANGUAGES.get(choices, "[^/]+")
            if choices == "locale":
                pattern = "[a-z]{2,3}-[A-Z]{2}"
        # What occurs twice in a path (MLQA: split, language of context and question) must be equal.
        yield f"(?P={name})" if name in named else f"(?P<{name}>{pattern})"
        named.add(name)
