"""Work that is divided among jobs: which shards a part has, and what each job leaves when its part is done.

`--part i/n` -> the shards i, i + n, i + 2n, ... -> <state>/part-i-of-n.json, last
all parts done -> read_parts -> `mmalign data merge` writes what one process would have written
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError

T = TypeVar("T")
Part = tuple[int, int]
"""(i, n): the shards i, i + n, i + 2n, ... of a data set; (0, 1): all."""


def write_part(state: Path, part: Part, same: dict[str, Any], own: dict[str, Any]) -> None:
    """Note that a part is done.

    Args:
        same: what every part must say (sources, options).
        own: what this part adds.
    """
    write_json(state / f"part-{part[0]}-of-{part[1]}.json", {"same": same, **own})


def has_parts(state: Path) -> bool:
    return any(state.glob("part-*-of-*.json"))


def read_parts(state: Path) -> list[dict[str, Any]]:
    """What the parts have noted, in their order.

    Raises:
        UserError: a part is missing, or parts are of different sources or options.
    """
    found: dict[int, dict[int, Path]] = {}
    newest, count = -1, 0
    for path in state.glob("part-*-of-*.json"):
        _, position, _, of = path.stem.split("-")
        found.setdefault(int(of), {})[int(position)] = path
        # Jobs of another number of parts, or by other rules, may have been there before.
        newest, count = max((newest, count), (path.stat().st_mtime_ns, int(of)))
    if not found:
        raise UserError(f"{state}: no part is done; run the parts with `--part 0/N` and so on")
    if missing := sorted(set(range(count)) - found[count].keys()):
        raise UserError(
            f"{state}: {len(missing)} of {count} parts are not done; run `--part {missing[0]}/{count}`"
        )
    parts = [json.loads(found[count][number].read_bytes()) for number in range(count)]
    for number, one in enumerate(parts):
        if one["same"] != parts[0]["same"]:
            raise UserError(
                f"{state}: the parts 0/{count} and {number}/{count} are of different sources or options; "
                "run one of them again"
            )
    return parts


def interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """What the parts have of each shard, in the order of all shards."""
    most = max(map(len, parts), default=0)
    return [part[row] for row in range(most) for part in parts if row < len(part)]
