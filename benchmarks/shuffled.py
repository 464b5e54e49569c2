"""The demo's run beside the same run on images that are shuffled among the captions (`data.shuffle_images`).

    mmalign train -> mmalign eval -> recall@1, with and without the field

Text, order, loss and steps are the same; only the pivot is gone. What is left of recall@1 is chance. It needs
the data of `mmalign data build emoji_scenes` in the working folder. The last line is one JSON object with
recall@1 of text to image, the mean over the languages.

    python benchmarks/shuffled.py [--steps 180]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mmalign.core.config import write_yaml

METRIC = "retrieval/emoji_scenes/mean/text_to_image/recall@1"


def mmalign(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mmalign", *arguments], check=True, stdout=sys.stderr)


def recall(run: Path, steps: int, suite: Path, shuffle_images: str) -> float:
    changes = (f"steps={steps}", f"data.shuffle_images={shuffle_images}")
    mmalign("train", "emoji_scenes", "--out", str(run), *changes)
    mmalign("eval", str(suite), "--model", str(run))
    results = json.loads((run / "eval/emoji_scenes/results.json").read_text(encoding="utf-8"))
    return float(results["metrics"][METRIC])


def main() -> None:
    parser = argparse.ArgumentParser(description="the demo's run with shuffled images")
    parser.add_argument("--steps", type=int, default=180)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test = {"name": "emoji_scenes", "shards": "data/emoji_scenes/test"}
        one = {**test, "measures": ["retrieval"]}
        suite = folder / "suite.yaml"
        suite.write_text(write_yaml({"name": "emoji_scenes", "sets": [one]}), encoding="utf-8")
        figures = {
            kind: recall(folder / kind, options.steps, suite, shuffled)
            for kind, shuffled in (("recall", "false"), ("shuffled", "true"))
        }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
