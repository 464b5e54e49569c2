"""The one exception for mistakes that a user can fix, and errors of the machine.

`UserError` is one sentence that says which file or field is wrong, what is wrong and how to fix it. The
command line prints it, or what the system refused (OSError), and exits with 1; any other exception is a bug
and keeps its traceback.
"""

import errno
import re

_ULIMIT = "raise the limit of open files with `ulimit -n 4096`"
_SPACE = "free space on that disk"
# What the machine lacks: never a fault of a sample or a file, so it stops the work.
_OF_MACHINE = {
    errno.EMFILE: _ULIMIT,
    errno.ENFILE: _ULIMIT,
    errno.ENOMEM: "free memory",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of a file's size with `ulimit -f unlimited`",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network disk",
}
# What the machine refuses to whoever asks: space, files, permission.
REFUSALS = {*_OF_MACHINE, errno.EROFS, errno.EACCES, errno.EPERM}
# Control characters, which a terminal would obey, and halves of surrogate pairs, which have no bytes.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(ValueError):
    """A mistake in the input: one sentence for the person who can fix it."""


class Diverged(UserError):
    """A training whose loss is no longer a number."""


def raise_if_of_machine(error: Exception) -> None:
    """Raise an error that tells of the machine (no descriptors, a full disk), and not of the data."""
    if isinstance(error, OSError) and error.errno in _OF_MACHINE:
        raise error


def describe_os_error(error: OSError) -> str:
    """What the system refused, as the sentence of a `UserError`."""
    fix = _OF_MACHINE.get(error.errno or 0, "allow it")
    what = f"{error.filename or 'the system'}: {error.strerror or one_line(error)}"
    return f"{what}; {fix}, or name another place, and run the same command again"


def printable(text: str, keep: str = "") -> str:
    """The text with escapes (`\\x1b`, `\\udcff`) for what no terminal should get, but for `keep`."""
    return UNPRINTABLE.sub(lambda one: one[0] if one[0] in keep else repr(one[0])[1:-1], text)


def one_line(error: object, longest: int = 200) -> str:
    """The message of another library's error, on one line and cut, for the sentence of a `UserError`."""
    return " ".join(str(error).split())[:longest]
