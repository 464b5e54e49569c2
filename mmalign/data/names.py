"""Which names that others wrote (ids, paths, licences, ...) no manifest and no index can hold."""

from mmalign.core.errors import UNPRINTABLE


def fault_of(name: str) -> tuple[str, str] | None:
    """A reason to count by, and words; None if the name can be held."""
    found = UNPRINTABLE.search(name)
    if found is None:
        return None
    if found[0] >= "\ud800":
        return "not UTF-8", "half of a surrogate pair"
    return "row", "a control character"
