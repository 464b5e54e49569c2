"""The demo's run rendered for each target, with the options that the target requires."""

from pathlib import Path
from typing import Any

from mmalign.launch.render import render

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "train" / "emoji_scenes.yaml"
NODES: dict[str, Any] = {"nodes": 2, "gpus_per_node": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "torchrun": NODES | {"host": "first"},
    "slurm": NODES | {"time": "1-00:00:00", "cpus_per_node": 64},
    "kubernetes": NODES
    | {
        "image": "registry.example/mmalign:gpu",
        "volume": "storage",
        "folder": "/storage",
        "cpus_per_node": 64,
        "memory_gib": 512,
    },
    "skypilot": NODES
    | {"image": "python:3.11", "accelerator": "H100", "volume": "storage", "folder": "/storage"},
}


def demo(target: str, out: str | None = None, **changes: Any) -> str:
    """The demo's run, rendered; an option of None is left out."""
    options = {k: v for k, v in (OPTIONS[target] | changes).items() if v is not None}
    return render(target, DEMO, (), out, options)
