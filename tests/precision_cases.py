"""The precision of ranks with different hardware; a module that ranks can import."""

from mmalign.core import distributed, precision


def choose_on(capable: tuple[bool, ...]) -> str:
    """The precision of `auto` if rank r multiplies bfloat16 in hardware where `capable[r]`."""
    precision.multiplies_bf16 = lambda: capable[distributed.rank()]
    return precision.choose_precision("auto")
