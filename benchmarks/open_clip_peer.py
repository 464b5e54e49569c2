"""An adapter to open_clip's trainer: its environment, files, flags, log and weights.

    run file -> Peer: a folder that describes the same two towers in open_clip's format
    Peer, settings -> open_clip_trainer.py in open_clip's environment -> pairs per second, checkpoint
    checkpoint -> the same tensors under our names -> DualEncoder; all names and shapes must match

The trainer (part of open_clip_torch 3.3.0) needs webdataset 0.2.86 or older, and thus its own environment.
That of a checkout, such as the main branch, runs in the same one.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from environments import make_environment

from mmalign.core.errors import UserError
from mmalign.data.stream.loader import captions_of
from mmalign.data.stream.order import GlobalOrder, open_sets
from mmalign.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from mmalign.models.dual_encoder import build_dual_encoder
from mmalign.models.encoder import Encoder
from mmalign.models.image_tower import TimmTower
from mmalign.training.run_config import RunConfig

REQUIREMENT = "open_clip_torch[training]==3.3.0"
NAME = "mmalign_run"  # of the model in open_clip's registry
LOG_EVERY = 10
_OUR_NAMES = {
    "visual.trunk.": "image_tower.trunk.",
    "visual.head.proj.": "image_projection.",
    "text.transformer.": "text_tower.trunk.",
    "text.proj.": "text_projection.",
    "logit_scale": "logit_scale",
}
_LOG_LINE = re.compile(r"Train Epoch: \d+ \[ *(\d+)/\d+ .*? Batch \(t\): ([\d.]+)")


@dataclass(frozen=True)
class Peer:
    """The settings of a run that open_clip's trainer needs.

    Attributes:
        name: of the trainer, in tables.
        python: interpreter of its environment.
        folder: `models/`, `text/` (the text tower's config.json), `tokenizer/` and `network.json`.
        context: length to which it pads every caption, in tokens.
        mean, std: of the normalisation of images.
        source: `src` of a checkout whose code takes the place of the environment's.
    """

    name: str
    python: Path
    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    context: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: Path | None = None


def describe(
    config: RunConfig, folder: Path, python: Path | None, context: int | None = None
) -> Peer:
    """Write the run's towers and tokenizer into `folder`, in open_clip's format.

    Args:
        context: length to which open_clip pads every caption, in tokens; None: that of the longest caption,
            the minimum without truncation.

    Raises:
        UserError: open_clip's trainer does not support a setting of the run.
    """
    _must_be_comparable(config)
    assert isinstance(config.model.image, TimmTower)
    plan = GlobalOrder(open_sets(config.data), config.data, config.seed)
    captions = list(captions_of(plan))
    given = config.tokenizer.name
    tokenizer = (
        load_tokenizer(given) if given else train_tokenizer(captions, config.tokenizer.vocabulary)
    )
    longest = max(map(len, tokenizer.inner(captions)["input_ids"]))
    context = context or min(longest, config.model.text.max_length)
    model = build_dual_encoder(config.model, tokenizer.vocabulary, tokenizer.padding_id)
    # In its own folder: next to a config.json, transformers would choose the tokenizer's class by
    # the model type.
    tokenizer.save(folder / "tokenizer")
    model.text_tower.trunk.config.save_pretrained(folder / "text")
    (folder / "models").mkdir()
    _write(folder / "models" / f"{NAME}.json", _model_config(config, folder, context))
    _write(folder / "network.json", {"timm_options": config.model.image.options})
    image = model.image_tower.architecture
    # Not resolved: the interpreter of a virtual environment is a link, and the path of the link
    # selects the environment.
    python = python.absolute() if python else make_environment("open-clip", [REQUIREMENT])
    return Peer("open_clip", python, folder, config, tokenizer, context, image.mean, image.std)


def of_checkout(peer: Peer, checkout: Path) -> Peer:
    """The same run for the trainer of a checkout of open_clip, as new as its variable-length text (2026).

    It pads captions to the longest one of the batch instead of `context`.

    Raises:
        UserError: no such trainer there.
    """
    source = checkout.absolute() / "src"
    if not (source / "open_clip_train" / "main.py").is_file():
        raise UserError(f"{checkout}: holds no src/open_clip_train; name a checkout of open_clip")
    folder = peer.folder / "checkout"
    (folder / "models").mkdir(parents=True)
    shutil.copy(peer.folder / "network.json", folder)
    name = f"models/{NAME}.json"
    tree = json.loads((peer.folder / name).read_text(encoding="utf-8"))
    _write(folder / name, {**tree, "text_cfg": {**tree["text_cfg"], "variable_text": True}})
    return replace(peer, name="open_clip checkout", folder=folder, source=source)


def train(
    peer: Peer,
    out: Path,
    steps: int,
    threads: int,
    precision: str,
    channels_last: bool,
    lr: float,
    compiled: bool = False,
) -> Path:
    """Train `steps` steps with a cosine schedule over them; returns the folder with `out.log`.

    Raises:
        UserError: the trainer failed; its last lines are in the message.
    """
    script = Path(__file__).with_name("open_clip_trainer.py")
    options = ["--channels-last"] if channels_last else []
    options += ["--torchcompile"] if compiled else []
    flags = [*options, *_flags(peer, out, steps), "--precision", precision, "--lr", str(lr)]
    run([peer.python, script, peer.folder, *flags], threads, peer.source)
    return out


def speeds(out: Path, batch_size: int, skip: int) -> list[float]:
    """Pairs per second of each interval of LOG_EVERY steps after the first `skip` steps.

    This is the mean over an interval; the samples per second that the trainer prints are those of its last
    step.
    """
    text = (out / "out.log").read_text(encoding="utf-8")
    stretches = [(int(n) // batch_size, float(t)) for n, t in _LOG_LINE.findall(text)]
    # The first line is after step 1; each other line ends an interval that began at the previous line.
    return [
        batch_size / seconds
        for (before, _), (_, seconds) in itertools.pairwise(stretches)
        if before >= skip
    ]


def load_encoder(peer: Peer, out: Path) -> Encoder:
    """The model trained by open_clip as our encoder; the networks are the same, so all tensors are used."""
    state = torch.load(out / "checkpoints" / "epoch_1.pt", map_location="cpu")["state_dict"]
    model = build_dual_encoder(
        peer.config.model, peer.tokenizer.vocabulary, peer.tokenizer.padding_id
    )
    wanted = model.state_dict()
    renamed = {_our_name(name): tensor.float() for name, tensor in state.items()}
    model.load_state_dict({n: t.reshape(wanted[n].shape) for n, t in renamed.items()})
    return Encoder(model, peer.config.model, peer.tokenizer, facts={"path": str(out)})


def run(command: Sequence[str | Path], threads: int, source: Path | None = None) -> None:
    """Run a program with `threads` threads, quietly; `source`: the folder whose modules it finds first.

    Raises:
        UserError: it failed; its last lines are in the message.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise UserError(f"`{command[0]} {command[1]}` failed ({done.returncode}):\n{tail}")


def _flags(peer: Peer, out: Path, steps: int) -> list[str]:
    """The run's settings as flags of open_clip's trainer: one long epoch."""
    config, optimizer = peer.config, peer.config.optimizer
    augmentation = config.data.augmentation
    ratio = augmentation.crop_ratio if augmentation.crop_scale[0] < 1 else (1.0, 1.0)
    named = {
        "model": NAME,
        "logs": out.parent,
        "name": out.name,
        "dataset-type": "webdataset",
        "train-data": "::".join(_shards(Path(folder)) for folder in config.data.train),
        "train-num-samples": steps * config.batch_size,
        "batch-size": config.batch_size,
        "epochs": 1,
        "workers": config.data.workers,
        "seed": config.seed,
        "beta1": optimizer.betas[0],
        "beta2": optimizer.betas[1],
        "eps": optimizer.eps,
        "wd": optimizer.weight_decay,
        "warmup": optimizer.warmup_steps,
        "grad-clip-norm": optimizer.clip,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "log-every-n-steps": LOG_EVERY,
    }
    flags = [str(word) for name, value in named.items() for word in (f"--{name}", value)]
    # timm's crop respects the requested ratio. open_clip's own always samples one and, for complete images,
    # fails ten times before it falls back.
    crop = f"scale={tuple(augmentation.crop_scale)}".replace(" ", "")
    flags += ["--aug-cfg", "use_timm=True", crop, f"ratio={tuple(ratio)}".replace(" ", "")]
    flags += ["--image-mean", *map(str, peer.mean), "--image-std", *map(str, peer.std)]
    return flags


def _must_be_comparable(config: RunConfig) -> None:
    data, text, optimizer = config.data, config.model.text, config.optimizer
    objective = config.objective
    needed = {
        "model.image.kind: timm": config.model.image.kind == "timm",
        "model.text.architecture": text.architecture is not None,
        "model.text.pooling: mean": text.pooling == "mean",
        "objective.kind: contrastive": objective.kind == "contrastive",
        "objective.loss: softmax": objective.kind == "contrastive" and objective.loss == "softmax",
        "optimizer.schedule: cosine": optimizer.schedule == "cosine",
        "optimizer.warmup_steps": optimizer.warmup_steps is not None,
        "data.train: FOLDER, without a weight": all(one.weight == 1 for one in data.train),
        "data.image_features: false": not data.image_features,
        **{
            f"data.{field}: null": getattr(data, field) is None
            for field in ("languages", "language_temperature", "language_floor", "language_cap")
        },
        "data.captions_per_image: 1": data.captions_per_image == 1,
        "data.token_dropout: 0": data.token_dropout == 0,
        "data.augmentation.flip: false": not data.augmentation.flip,
        "data.workers of 1 or more": data.workers >= 1,
    }
    for what, has_file in needed.items():
        if not has_file:
            raise UserError(
                f"{config.name}: open_clip's trainer does not support this run; set `{what}`"
            )


def _model_config(config: RunConfig, folder: Path, context: int) -> dict[str, object]:
    image = config.model.image
    return {
        "embed_dim": config.model.embedding,
        "vision_cfg": {
            "timm_model_name": image.name,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": image.image_size,
        },
        "text_cfg": {
            "hf_model_name": str(folder / "text"),
            "hf_tokenizer_name": str(folder / "tokenizer"),
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": context,
        },
    }


def _shards(folder: Path) -> str:
    numbers = sorted(path.stem for path in folder.glob("*.tar"))
    return f"{folder.absolute()}/{{{numbers[0]}..{numbers[-1]}}}.tar"


def _our_name(name: str) -> str:
    for theirs, ours in _OUR_NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise UserError(f"open_clip's checkpoint holds `{name}`, which the run's towers lack")


def _write(path: Path, tree: dict[str, object]) -> None:
    path.write_text(json.dumps(tree, indent=1), encoding="utf-8")
