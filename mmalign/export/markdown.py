"""Untrusted text in Markdown: names of sets, licences, configurations.

text -> escaped -> a line or a table cell, which stays one
"""

import re
from collections.abc import Iterable, Sequence

# GitHub's flavour (https://github.github.com/gfm/), which the hub shows: a bar ends a cell, `<` begins HTML.
# An underscore inside a word marks nothing and is left alone.
_SPECIAL = re.compile(r"[\\`*<>|~\[\]]|(?<![^\W_])_|_(?![^\W_])")
_ESCAPE = r"\\\g<0>"
_NAMED = re.compile(r"(`[\w.@/ -]+`)")
_MOST_LISTED = 30


def plain(text: object) -> str:
    """The text on one line, with everything escaped that Markdown or HTML would interpret."""
    return _SPECIAL.sub(_ESCAPE, one_line(text))


def prose(text: str) -> str:
    """Sentences as `plain`, but names in backticks stay code where nothing else is in them."""
    parts = _NAMED.split(one_line(text))
    return "".join(part if i % 2 else _SPECIAL.sub(_ESCAPE, part) for i, part in enumerate(parts))


def one_line(text: object) -> str:
    """The text with every run of white space made one space; a newline would end a table."""
    return " ".join(str(text).split())


def code_block(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def listed(words: Iterable[object]) -> str:
    """`a`, `a and b`, `a, b and c`, escaped; of many the first 30 and how many more there are."""
    *first, last = [plain(word) for word in words]
    if len(first) >= _MOST_LISTED:
        first, last = first[:_MOST_LISTED], f"{len(first) + 1 - _MOST_LISTED} more"
    return f"{', '.join(first)} and {last}" if first else last


def percents_apart(shares: Sequence[float]) -> list[str]:
    """Shares in percent, with the 1 to 3 decimals that different ones need to differ."""
    ways = [[f"{100 * share:z.{digits}f}" for share in shares] for digits in (1, 2, 3)]
    return next((way for way in ways if len(set(way)) == len(set(shares))), ways[-1])
