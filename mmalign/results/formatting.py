"""Numbers as people read them: in reports, cards and tables of the terminal."""

MISSING = "–"


def percent(share: float | None) -> str:
    """A share in percent, without the sign: one decimal, or two significant digits below 1 %."""
    if share is None:
        return MISSING
    if 0 < abs(share) < 0.01:
        return f"{100 * share:.2g}"
    return f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, with its sign and one decimal."""
    # `z` writes a rounded -0.0 as +0.0.
    return MISSING if difference is None else f"{100 * difference:+z.1f}"
