"""The one exception for mistakes that a person can mend.

Everything that a user can get wrong (a key in a YAML file, a missing folder, a broken line) raises
`UserError` with one sentence that names the file, the field, what is wrong and how to mend it. The
command line prints that sentence and exits with 1; any other exception is a bug and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in the input: one sentence for the person who can mend it."""


def one_line(error: BaseException, longest: int = 200) -> str:
    """What another library's error says, on one line and not too long, for the sentence of a `UserError`."""
    return " ".join(str(error).split())[:longest]
