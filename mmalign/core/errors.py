"""The one exception for mistakes that a user can fix.

`UserError` is one sentence that says which file or field is wrong, what is wrong and how to fix it. The
command line prints it and exits with 1; any other exception is a bug and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in the input: one sentence for the person who can fix it."""


def one_line(error: BaseException, longest: int = 200) -> str:
    """The message of another library's error, on one line and cut, for the sentence of a `UserError`."""
    return " ".join(str(error).split())[:longest]
