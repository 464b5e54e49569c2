"""The demo's run beside the same run on images that are shuffled among the captions.

    training tars -> images dealt anew -> mmalign data index -> mmalign train -> mmalign eval -> recall@1

Text, order, loss and steps are the same; only the pivot is gone. What is left of recall@1 is chance. It needs
the data of `mmalign data build emoji_scenes` in the working folder. The last line is one JSON object with
recall@1 of text to image, the mean over the languages.

    python benchmarks/shuffled.py [--steps 180]
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from mmalign.core.config import write_yaml

METRIC = "retrieval/emoji_scenes/mean/text_to_image/recall@1"
DATA = Path("data/emoji_scenes")


def shuffle(source: Path, target: Path) -> None:
    """Write the tars of `source` to `target`, with their images in another order."""
    target.mkdir()
    tars = sorted(source.glob("*.tar"))
    images = [data for tar in tars for name, data in members(tar) if name.endswith(".jpg")]
    random.Random(0).shuffle(images)
    for tar in tars:
        with tarfile.open(target / tar.name, "w") as out:
            for name, data in members(tar):
                if name.endswith(".jpg"):
                    data = images.pop()
                elif name.endswith(".json"):
                    # `data index` reads the language of a .txt from a field.
                    data = json.dumps({"lang": json.loads(data)["captions"][0]["lang"]}).encode()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))


def members(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as archive:
        return [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]


def mmalign(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mmalign", *arguments], check=True, stdout=sys.stderr)


def recall(train: Path, run: Path, steps: int, suite: Path) -> float:
    mmalign("train", "emoji_scenes", "--out", str(run), f"steps={steps}", f"data.train=[{train}]")
    mmalign("eval", str(suite), "--model", str(run))
    results = json.loads((run / "eval/emoji_scenes/results.json").read_text(encoding="utf-8"))
    return float(results["metrics"][METRIC])


def main() -> None:
    parser = argparse.ArgumentParser(description="the demo's run with shuffled images")
    parser.add_argument("--steps", type=int, default=180)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = {"name": "emoji_scenes", "shards": str(DATA / "test"), "measures": ["retrieval"]}
        suite = folder / "suite.yaml"
        suite.write_text(write_yaml({"name": "emoji_scenes", "sets": [one]}), encoding="utf-8")
        shuffle(DATA / "train", folder / "train")
        mmalign("data", "index", str(folder / "train"), "--language", "json:lang")
        figures = {
            kind: recall(train, folder / kind, options.steps, suite)
            for kind, train in (("recall", DATA / "train"), ("shuffled", folder / "train"))
        }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
