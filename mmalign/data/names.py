"""Names that others wrote (ids, paths, licences, ...): how they are shown, and which no file can hold.

name with half of a surrogate pair (a byte that is not UTF-8) or a control character --> fault
"""

import re

_FAULTS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def fault_of(name: str) -> tuple[str, str] | None:
    """Why no manifest and no index may hold a name: a reason to count by, and words; None if they may."""
    found = _FAULTS.search(name)
    if found is None:
        return None
    if found[0] >= "\ud800":
        return "not UTF-8", "half of a surrogate pair"
    return "row", "a control character"


def readable(text: str) -> str:
    """The text on one line, with escapes for what no terminal should get: `\\x1b`, `\\udcff`."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
