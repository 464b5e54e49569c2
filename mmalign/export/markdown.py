"""Words, names and tables in Markdown, where some of the words were written by strangers.

    names of sets, languages, licences -> escaped -> a line or a table that stays what it is

GitHub's flavour (https://github.github.com/gfm/), which the hub shows: a bar ends a cell, a newline ends a
table, `<` begins HTML, and three backticks end a block of code.
"""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"[\\`*<>|~\[\]]|(?<![^\W_])_|_(?![^\W_])")
_NAMED = re.compile(r"(`[\w.@/ -]+`)")
_BACKTICKS = re.compile(r"`+")


def plain(text: object) -> str:
    """The text on one line, with nothing in it that Markdown or HTML would take for a sign of its own."""
    return _escaped(one_line(text))


def prose(text: str) -> str:
    """Sentences as `plain`, but names in backticks stay code where nothing else is in them."""
    parts = _NAMED.split(one_line(text))
    return "".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def one_line(text: object) -> str:
    """The text with every run of white space made one space."""
    return " ".join(str(text).split())


def code_block(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any that the text holds."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; columns whose cells are all empty are left out."""
    used = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    lines = [[columns[i] for i in used], *([row[i] for i in used] for row in rows)]
    written = [f"| {' | '.join(plain(cell) for cell in line)} |" for line in lines]
    return "\n".join([written[0], "|" + "---|" * len(used), *written[1:]])


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def percent(share: float) -> str:
    """A share in percent with the digits that it needs, without the sign."""
    return f"{100 * share:.1f}" if abs(share) >= 0.01 or share == 0 else f"{100 * share:.2g}"


def percents_apart(*shares: float) -> list[str]:
    """Shares in percent, with as many digits behind the point (1 to 3) as different ones need to differ."""
    ways = [[f"{100 * share:z.{digits}f}" for share in shares] for digits in (1, 2, 3)]
    return next((way for way in ways if len(set(way)) == len(set(shares))), ways[-1])
