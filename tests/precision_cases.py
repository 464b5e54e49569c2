"""What ranks with different hardware choose; a module that ranks can import."""

from mmalign.core import distributed, precision


def choose_on(*cases: tuple[bool, ...]) -> list[str]:
    """What `auto` means in each case, where rank r multiplies bfloat16 if `capable[r]`."""
    chosen: list[str] = []
    for capable in cases:
        precision.multiplies_bf16 = lambda capable=capable: capable[distributed.rank()]
        chosen.append(precision.choose_precision("auto"))
    return chosen
