"""What ranks with different hardware choose; a module that ranks can import."""

from mmalign.core import distributed, precision


def choose_on(capable: tuple[bool, ...]) -> str:
    """The precision `auto` stands for, where rank r multiplies bfloat16 if `capable[r]`."""
    precision.multiplies_bf16 = lambda: capable[distributed.rank()]
    return precision.choose_precision("auto")
