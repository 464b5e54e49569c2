"""A part of a build that takes long and notes where it runs, for tests on a cluster of Ray."""

import os
import time
from pathlib import Path

from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.shards.lazy_pair import File


def slow_part(notes: Path, config: RecipeConfig, out: Path, part: tuple[int, int]) -> None:
    """`build` with a tenth of a second for each image; `notes` gets the part and the node of each start."""
    import ray

    with notes.open("a") as file:
        node = ray.get_runtime_context().get_node_id()
        file.write(f"{part[0]} {node} {os.getpid()}\n")
    read = File.read

    def slowly(self: File) -> bytes:
        time.sleep(0.1)
        return read(self)

    File.read = slowly  # type: ignore[method-assign]
    try:
        build(config, out, False, 1, part)
    finally:
        File.read = read  # type: ignore[method-assign]
