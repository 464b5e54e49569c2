"""Short runs on shards in a store that fails: is each exactly the run on local files, and what does it read?

    a set of noise images -> a server on this machine that speaks S3 and HTTPS, and fails
    a run: an empty cache, 2 worker processes, the first batches -> sha256 of their keys, pixels and tokens

For the first two minutes of each run, 30 % of the requests fail: 503 (half of them with Retry-After),
connections that are reset before or within a body, silence, and a complete file instead of a range. A run is
exact if its sha256 is that of the run on local files. Runs take turns between s3:// and http://.

    first_batch_ratio   bytes that were sent until the first batch, over those of its samples, by a server
                        without faults; every shard is then still on its way

Prints a line per run and, as the last line, one JSON object. Needs the extra `remote`.

    python benchmarks/store.py [--runs 100] [--seed 0]
"""

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.preprocess import Preprocess
from mmalign.data.shards.reader import ShardSet
from mmalign.data.storage.remote import RemoteConfig
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader, batches
from mmalign.data.stream.order import GlobalOrder, open_sets
from mmalign.data.tokenizer import Tokenizer, train_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from flaky_server import Answer, FlakyServer
from shard_sets import make_pair, write_set

SHARDS, SAMPLES, BATCH, STEPS = 8, 24, 16, 16
FAILING, FAULT_SECONDS = 0.3, 120.0
TIMEOUT = 1.0


class FaultyStore(FlakyServer):
    """Fails at random for `FAULT_SECONDS` after `begin`."""

    def __init__(self) -> None:
        super().__init__()
        self._rng, self._end, self.faults = random.Random(), 0.0, 0

    def begin(self, seed: int) -> None:
        self._rng, self._end = random.Random(seed), time.monotonic() + FAULT_SECONDS
        self.faults = 0

    def answer(self, path: str) -> Answer:
        if time.monotonic() > self._end or self._rng.random() >= FAILING:
            return Answer()
        self.faults += 1
        size = len(self.files.get(path, b""))
        faults = (
            Answer(status=503),
            Answer(status=503, headers={"Retry-After": "1"}),
            Answer(cut=0),
            Answer(cut=size // 3),
            Answer(cut=0, stall=2 * TIMEOUT),
            Answer(ranges=False),
        )
        return self._rng.choice(faults)


def make_noise(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(SHARDS * SAMPLES):
        encoded = io.BytesIO()
        pixels = rng.integers(0, 256, (120, 160, 3), np.uint8)
        Image.fromarray(pixels).save(encoded, "JPEG", quality=90)
        pairs.append(replace(make_pair(number, ("en", "sw")), image=encoded.getvalue()))
    return write_set(folder, pairs, SAMPLES)


def loader(name: str, cache: Path, seed: int, tokenizer: Tokenizer) -> BatchLoader:
    remote = {"cache": str(cache), "timeout": TIMEOUT}
    config = validate(DataConfig, {"train": [name], "remote": remote}, "store")
    plan = GlobalOrder(open_sets(config), config, seed)
    view = Preprocess(64, config.augmentation)
    return BatchLoader(plan, config, tokenizer, 32, view, BATCH, 0, 1)


def stream_sha256(made: BatchLoader, workers: int) -> str:
    digest = hashlib.sha256()
    for batch in batches(made, 0, STEPS, workers):
        assert batch.image_BCHW is not None
        digest.update(repr((batch.key_B, batch.unusable)).encode())
        digest.update(batch.image_BCHW.numpy().tobytes() + batch.token_NL.numpy().tobytes())
    return digest.hexdigest()


def first_batch_ratio(url: str, store: FaultyStore, work: Path, tokenizer: Tokenizer) -> float:
    """Bytes that were sent until the first batch, over those of its samples."""
    store.sent = 0
    with contextlib.ExitStack() as stack:
        work.mkdir()
        # The turns of the downloads are taken: no shard is complete before the first batch, as on a store
        # where that takes minutes.
        for slot in range(RemoteConfig().prefetch):
            turn = stack.enter_context((work / f"lock-slot-{slot}").open("w"))
            fcntl.flock(turn, fcntl.LOCK_EX)
        made = loader(url, work, 0, tokenizer)
        made.make(0)
        sent = store.sent
    numbers = [made.plan.locate(made.plan.sample_at(position))[1] for position in range(BATCH)]
    return sent / sum(len(made.plan.sets[0].read(number).image) for number in numbers)


def run(options: argparse.Namespace, work: Path, store: FaultyStore) -> dict[str, float]:
    folder = make_noise(work / "set")
    for path in folder.iterdir():
        for name in ("set", "bucket/set"):
            store.files[f"/{name}/{path.name}"] = path.read_bytes()
    shard_set = ShardSet(folder)
    texts = [c.text for n in range(len(shard_set)) for c in shard_set.read(n).captions]
    tokenizer = train_tokenizer(texts, 300)
    urls = ("s3://bucket/set", f"{store.url}/set")
    ratios = [
        first_batch_ratio(url, store, work / f"start{number}", tokenizer)
        for number, url in enumerate(urls)
    ]
    exact, faults, seconds = 0, 0, []
    for number in range(options.runs):
        seed, url = options.seed + number, urls[number % 2]
        expected = stream_sha256(loader(str(folder), work, seed, tokenizer), 0)
        store.begin(seed)
        started, found = time.monotonic(), ""
        try:
            found = stream_sha256(loader(url, work / f"cache{number}", seed, tokenizer), 2)
        except UserError as error:
            sys.stdout.write(f"{error}\n")
        seconds.append(time.monotonic() - started)
        exact, faults = exact + (found == expected), faults + store.faults
        outcome = "exact" if found == expected else "NOT EXACT"
        sys.stdout.write(
            f"run {number}, {url}: {outcome}, {store.faults} faults, {seconds[-1]:.0f} s\n"
        )
        sys.stdout.flush()
    return {
        "runs": options.runs,
        "exact": exact,
        "faults_per_run": round(faults / options.runs, 1),
        "seconds_per_run": round(sum(seconds) / options.runs, 1),
        "first_batch_ratio": round(max(ratios), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, FaultyStore() as store:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": store.url,
        }
        figures = run(options, Path(work), store)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
