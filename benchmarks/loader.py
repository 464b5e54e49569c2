"""Speed of data loading: mmalign, open_clip's pipeline and plain webdataset.

    tars of JPEGs -> index, tokenizer (once) -> new process: a loader and its workers -> samples per second

    ours         `mmalign.data.stream.loader`; the batch is normalised as by the image tower
    open_clip    `get_wds_dataset` and `image_transform` of open_clip_torch 3.3.0, in its own environment
    webdataset   webdataset as in its manual: decode("pil"), torchvision's RandomResizedCrop, ToTensor and
                 Normalize, in the environment of mmalign

All produce the same tensors: (B, 3, 224, 224) float32, normalised, and token ids of the same tokenizer. Each
loads from the same tars with the same number of workers; torch has one thread in each process. The first
batches, while workers start and buffers fill, are not timed. The loaders take turns. Ratios are medians over
the ratios within a round, of samples per second and of samples per processor second including workers; other
work on the machine has less influence on the latter. The pixel difference is the mean absolute difference, of
255, between the training view of a centre crop (90 % of the area) and Pillow's full decode and bicubic resize
of the same box.

Without --shards and --large-shards, noise images with the file size of photographs are generated. To measure
on other images, give folders of tars with .jpg and .txt (at least as many tars as workers).

Prints a table and, as the last line, one JSON object. Reads /proc, so it needs Linux.

    python benchmarks/loader.py [--batches 32] [--rounds 3] [--workers 2] [--batch-size 64]
                                [--crop-scale 0.9] [--shards DIR] [--large-shards DIR]
                                [--open-clip-python PATH]

`--batches 10 --rounds 1 --batch-size 32` is the short run, a minute on a quiet machine. Without PATH,
`.venv-open-clip` is created next to this file once, with pip.
"""

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from environments import make_environment
from PIL import Image

REQUIREMENT = "open_clip_torch[training]==3.3.0"
SIDES = (640, 1280)  # pixels of the long side of the generated images
PICTURES = 48  # number of different images; they repeat
GRAIN = 6.0  # standard deviation of noise, so that a file is about as large as a photograph
SIZE = 224
CONTEXT = 64
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ENDLESS = 1_000_000  # batches
WARM = 2  # batches of each worker that are not timed

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Job:
    """The measurement of a child process.

    Attributes:
        tars: paths.
        index: folder with mmalign's index of the tars.
        tokenizer: folder.
        crop_scale: minimum share of the area of a crop.
    """

    tars: list[str]
    index: str
    tokenizer: str
    batches: int
    batch_size: int
    workers: int
    crop_scale: float


def ours(job: Job) -> Iterator[torch.Tensor]:
    from mmalign.core.config import validate
    from mmalign.data.preprocess import Preprocess
    from mmalign.data.stream.config import DataConfig
    from mmalign.data.stream.loader import BatchLoader, batches
    from mmalign.data.stream.order import GlobalOrder, open_sets
    from mmalign.data.tokenizer import load_tokenizer

    tree = {"train": [job.index], "augmentation": {"crop_scale": [job.crop_scale, 1.0]}}
    config = validate(DataConfig, tree, "benchmark")
    plan = GlobalOrder(open_sets(config), config, seed=0)
    preprocess = Preprocess(SIZE, config.augmentation)
    tokenizer = load_tokenizer(job.tokenizer)
    maker = BatchLoader(plan, config, tokenizer, CONTEXT, preprocess, job.batch_size, 0, 1)
    # In the memory format of the batch: broadcasting along its last dimension alone is slow.
    mean, std = (
        (torch.tensor(shares) * 255)
        .view(1, 3, 1, 1)
        .expand(1, 3, SIZE, SIZE)
        .contiguous(memory_format=torch.channels_last)
        for shares in (MEAN, STD)
    )
    normalised_BCHW = torch.empty(job.batch_size, 3, SIZE, SIZE).to(
        memory_format=torch.channels_last
    )
    for batch in batches(maker, 0, ENDLESS, job.workers):
        assert batch.image_BCHW is not None
        # Reuses the same memory each time, as a GPU's allocator does.
        yield normalised_BCHW.copy_(batch.image_BCHW).sub_(mean).div_(std)


def open_clip(job: Job) -> Iterator[torch.Tensor]:
    from open_clip.tokenizer import HFTokenizer
    from open_clip.transform import AugmentationCfg, image_transform
    from open_clip_train.data import get_wds_dataset

    augmentation = AugmentationCfg(scale=(job.crop_scale, 1.0))
    transform = image_transform(SIZE, True, MEAN, STD, aug_cfg=augmentation)
    arguments = argparse.Namespace(
        train_data="::".join(job.tars),
        train_num_samples=ENDLESS * job.batch_size,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=job.batch_size,
        workers=job.workers,
        world_size=1,
    )
    tokenizer = HFTokenizer(job.tokenizer, context_length=CONTEXT)
    info = get_wds_dataset(arguments, transform, is_train=True, tokenizer=tokenizer)
    for image_BCHW, _ in info.dataloader:
        yield image_BCHW


def webdataset(job: Job) -> Iterator[torch.Tensor]:
    import webdataset as wds
    from torchvision import transforms
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(job.tokenizer)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, (job.crop_scale, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def tokens(text: str) -> torch.Tensor:
        padded = inner(text, padding="max_length", truncation=True, max_length=CONTEXT)
        return torch.tensor(padded["input_ids"])

    dataset = (
        wds.WebDataset(job.tars, shardshuffle=len(job.tars), nodesplitter=wds.split_by_node, seed=0)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(transform, tokens)
        .batched(job.batch_size, partial=False)
    )
    loader = wds.WebLoader(dataset.repeat(), batch_size=None, num_workers=job.workers)
    for image_BCHW, _ in loader:
        yield image_BCHW


LOADERS = {"ours": ours, "open_clip": open_clip, "webdataset": webdataset}


def measure_here(method: str, job: Job) -> None:
    """Print the figures of one loader (runs in the child process)."""
    torch.set_num_threads(1)
    warm = WARM * max(1, job.workers)
    loader = LOADERS[method](job)  # keeps the workers alive until the timing ends
    clock = processor = 0.0
    # No loader ends here: a loader at its end would have no batches in preparation.
    for number, image_BCHW in enumerate(islice(loader, warm + job.batches)):
        assert image_BCHW.shape == (job.batch_size, 3, SIZE, SIZE), image_BCHW.shape
        assert image_BCHW.dtype == torch.float32, image_BCHW.dtype
        if number == warm - 1:
            clock, processor = time.perf_counter(), processor_seconds()
    samples = job.batches * job.batch_size
    figures = {
        "per_second": samples / (time.perf_counter() - clock),
        "per_processor_second": samples / (processor_seconds() - processor),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def processor_seconds() -> float:
    """Processor seconds of this process and its workers so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        seconds += sum(map(int, fields.split()[11:13])) / ticks  # utime, stime: proc(5)
    return seconds


def in_fresh_process(python: Path, method: str, job: Job) -> Figures:
    command = [
        str(python),
        __file__,
        "--only",
        method,
        "--job",
        json.dumps(dataclasses.asdict(job)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr[-3000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(job: Job, open_clip_python: Path, rounds: int) -> dict[str, Figures]:
    """Medians over the rounds of our ratios to each other loader; writes one line per loader."""
    own = Path(sys.executable)
    pythons = {"ours": own, "open_clip": open_clip_python, "webdataset": own}
    found = [
        {method: in_fresh_process(python, method, job) for method, python in pythons.items()}
        for _ in range(rounds)
    ]
    ratios = {}
    for method in pythons:
        speeds = medians([figures[method] for figures in found])
        ratios[method] = medians(
            [
                {key: figures["ours"][key] / value for key, value in figures[method].items()}
                for figures in found
            ]
        )
        cells = [speeds[key] for key in speeds] + [ratios[method][key] for key in speeds]
        sys.stdout.write(f"{method:<14}" + "".join(f"{cell:>14.2f}" for cell in cells) + "\n")
        sys.stdout.flush()
    return ratios


def medians(rounds: list[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def centre_box(width: int, height: int) -> tuple[float, float, float, float]:
    """A crop of 90 % of the area from the middle."""
    margin = (1 - 0.9**0.5) / 2
    return margin * width, margin * height, (1 - margin) * width, (1 - margin) * height


def pixel_difference(pictures: list[bytes]) -> float:
    """Mean absolute difference of the training view of a centre crop to Pillow's full decode and resize."""
    from mmalign.data.preprocess import see

    differences = []
    for data in pictures:
        picture = Image.open(io.BytesIO(data))
        box = centre_box(*picture.size)
        view_HWC = see(picture, data, box, SIZE).numpy().astype(np.int16)
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        exact = whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)
        differences.append(np.abs(view_HWC - np.asarray(exact, np.int16)).mean())
    return float(np.mean(differences))


def make_pictures(side: int) -> list[bytes]:
    """JPEGs of smooth noise with grain, 4:3 and 3:4."""
    rng = np.random.default_rng(side)
    found = []
    for number in range(PICTURES):
        size = (side, side * 3 // 4) if number % 2 else (side * 3 // 4, side)
        shapes = rng.integers(0, 256, (24, 24, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(shapes).resize(size, Image.Resampling.BICUBIC))
        grain = rng.normal(0, GRAIN, smooth.shape)
        picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=90)
        found.append(encoded.getvalue())
    return found


def make_tars(folder: Path, side: int, samples: int, count: int) -> None:
    """`count` tars of .jpg, .json and .txt with `samples` samples in all."""
    from mmalign.core.batch import Caption, Pair
    from mmalign.data.shards.manifest import write_shard

    pictures = make_pictures(side)
    folder.mkdir(parents=True)
    for tar in range(count):
        pairs = [
            Pair(
                key=f"{number:08d}",
                image=pictures[number % PICTURES],
                captions=(Caption("en", f"a noise image with the number {number}"),),
                picture=f"{number:08d}",
                split="train",
                source="noise",
                license="CC0-1.0",
            )
            for number in range(tar, samples, count)
        ]
        write_shard(folder / f"{tar:05d}.tar", pairs)


def make_job(shards: Path, work: Path, options: argparse.Namespace) -> tuple[Job, list[bytes]]:
    """Index the tars and train a tokenizer on their captions; also returns some of the images."""
    from mmalign.data.shards.index import index
    from mmalign.data.shards.reader import ShardSet
    from mmalign.data.shards.scan import Rules
    from mmalign.data.tokenizer import train_tokenizer

    _, folder = index(str(shards), Rules("txt", "en"), work / "index")
    shard_set = ShardSet(folder)
    captions = [c.text for i in range(len(shard_set)) for c in shard_set.read(i).captions]
    train_tokenizer(captions, 6000).save(work / "tokenizer")
    tars = [str(path.absolute()) for path in sorted(shards.glob("*.tar"))]
    job = Job(
        tars=tars,
        index=str(folder),
        tokenizer=str(work / "tokenizer"),
        batches=options.batches,
        batch_size=options.batch_size,
        workers=options.workers,
        crop_scale=options.crop_scale,
    )
    return job, [shard_set.read(i).image for i in range(min(PICTURES, len(shard_set)))]


def run(options: argparse.Namespace, work: Path) -> Figures:
    python = options.open_clip_python or make_environment("open-clip", [REQUIREMENT])
    columns = ("per second", "per cpu s", "ours x", "ours x, cpu")
    sys.stdout.write(f"{'samples':<14}" + "".join(f"{name:>14}" for name in columns) + "\n")
    ratios, differences = [], []
    for side, given in zip(SIDES, (options.shards, options.large_shards), strict=True):
        shards = given or work / f"shards{side}"
        if given is None:
            make_tars(shards, side, 8 * options.batch_size, 2 * max(1, options.workers))
        job, pictures = make_job(shards, work / f"job{side}", options)
        differences.append(pixel_difference(pictures))
        sys.stdout.write(f"{side} px, pixel difference {differences[-1]:.2f}\n")
        ratios.append(compare(job, python.absolute(), options.rounds))
    return {
        "open_clip_ratio": ratios[0]["open_clip"]["per_second"],
        "webdataset_ratio": ratios[0]["webdataset"]["per_second"],
        "ratio_1280": ratios[1]["open_clip"]["per_second"],
        "webdataset_ratio_1280": ratios[1]["webdataset"]["per_second"],
        "open_clip_cpu_ratio": ratios[0]["open_clip"]["per_processor_second"],
        "webdataset_cpu_ratio": ratios[0]["webdataset"]["per_processor_second"],
        "cpu_ratio_1280": ratios[1]["open_clip"]["per_processor_second"],
        "webdataset_cpu_ratio_1280": ratios[1]["webdataset"]["per_processor_second"],
        "pixel_difference": differences[0],
        "pixel_difference_1280": differences[1],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=32, help="batches of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--crop-scale", type=float, default=0.9, help="minimum area of a crop")
    parser.add_argument("--shards", type=Path, help="folder of tars with JPEGs of 640 px")
    parser.add_argument("--large-shards", type=Path, help="folder of tars with JPEGs of 1,280 px")
    parser.add_argument(
        "--open-clip-python", type=Path, help="interpreter with open_clip's trainer"
    )
    parser.add_argument("--only", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.only:
        measure_here(options.only, Job(**options.job))
        return
    with tempfile.TemporaryDirectory() as work:
        figures = run(options, Path(work))
    sys.stdout.write(json.dumps({key: round(value, 3) for key, value in figures.items()}) + "\n")


if __name__ == "__main__":
    main()
