"""The memory and traffic of a run, without GPUs, weights or images: `mmalign train --dry-run`.

    run file, nodes, GPUs -> footprint.py (parameters, activations) -> bytes by ZeRO stage -> tables

With P parameters of which T train, W ranks, and 4 bytes a number (weights, gradients and AdamW's two moments
stay float32), a GPU holds, after ZeRO (arXiv 1910.02054, section 5):

    stage                weights       gradients     moments
    0                    4 P           4 T           8 T
    1  moments split     4 P           4 T           8 T / W
    2  gradients too     4 P           4 T / W       8 T / W
    3  weights too       4 P / W       4 T / W       8 T / W

and a step sends, per rank, with f = (W - 1) / W for each half of a ring:

    0  gradients all-reduced                     2 f
    1  gradients reduced, weights gathered       f + f
    2  the same for each forward pass's gradients
    3  and weights gathered for each pass        f of all weights

DeepSpeed 0.19 differs from the paper in what it does by default, and the table follows it, as read in its
source: stages 1 and 2 reduce gradients by an all-reduce (2 f) and keep a second copy of a rank's part of the
weights, and they and stage 3 have two buckets of gradients, one to fill while the other is sent. Stage 0 has
buckets of its own (`gradients.py`), each of which replaces the gradients that it holds.

The processes that load data keep batches ready in the host's shared memory (/dev/shm): `prefetch` for each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmalign.core.errors import UserError
from mmalign.data.shards.folder import open_folder
from mmalign.data.stream.config import check_ranks
from mmalign.data.stream.mixing import mix
from mmalign.training.distillation import check_teacher
from mmalign.training.engine import BUCKET
from mmalign.training.footprint import Part, build_on_meta, image_shape, live_bytes, parts_of
from mmalign.training.gradients import buckets_of
from mmalign.training.loss_tiles import GPU_SIDE
from mmalign.training.objective import MaskedLanguageModelConfig
from mmalign.training.prepare import check_sizes
from mmalign.training.run_config import RunConfig

STAGES = (0, 1, 2, 3)
_FLOAT = 4
_MIB = 2**20


@dataclass(frozen=True)
class Load:
    """The inputs of the formulas."""

    ranks: int  # W
    parameters: int  # P
    trainable: int  # T
    bucket: int  # gradients that stage 0 copies at once
    batch: int  # bytes of a rank's images
    activations: int  # most bytes alive in one forward and backward pass (`live_bytes`)
    passes: int  # forward passes with a graph in one step of a rank
    captions: int  # that a step contrasts, over all ranks; 0 for masked language modelling
    embedding: int  # D
    averaged: int = 0  # parameters of which an average is kept


def needs(config: RunConfig, nodes: int, gpus_per_node: int) -> tuple[float, int]:
    """Bytes of a GPU under `engine.zero_stage`, and of a node's shared memory; raises as `dry_run`."""
    _, load = _load_of(config, nodes * gpus_per_node, _pass_of(config, nodes * gpus_per_node))
    of_gpu = sum(row[config.engine.zero_stage] for row in memory_bytes(load).values())
    return of_gpu, _shared_bytes(config, load, gpus_per_node)


class _Pass(NamedTuple):
    """One forward pass of a rank: its most images, its most captions, and how many passes there are."""

    of_step: int  # images of the rank
    images: int
    captions: int
    number: int


def _pass_of(config: RunConfig, ranks: int) -> _Pass:
    check_ranks(config.batch_size, config.data.groups, ranks)
    of_step, each = config.batch_size // ranks, config.data.captions_per_image
    images = min(of_step, config.engine.micro_batch or of_step)
    captions = images * each
    if (tokens := config.engine.tokens_per_micro_batch) is not None:
        # Images of short captions come together in larger numbers, so their limit stays.
        captions = min(captions, max(each, tokens // config.model.text.max_length))
    number = max(-(-of_step // images), -(-of_step * each // captions))
    return _Pass(of_step, images, captions, number)


def _shared_bytes(config: RunConfig, load: Load, ranks: int) -> int:
    # Pixels travel as bytes and become float32 on the GPU; features are float16.
    size = load.batch // (2 if config.data.image_features else _FLOAT)
    return ranks * config.data.workers * config.data.prefetch * size


def dry_run(config: RunConfig, nodes: int, gpus_per_node: int) -> str:
    """Tables of what the run needs; nothing is loaded, nothing is written.

    Every caption is assumed to be as long as `model.text.max_length`, and every image to have
    `data.captions_per_image` of them.

    Raises:
        UserError: the batch does not divide by the ranks, the architecture of a tower is only known to the
            hub, or the languages' floor and cap leave no shares.
    """
    ranks = nodes * gpus_per_node
    one_pass = _pass_of(config, ranks)
    parts, load = _load_of(config, ranks, one_pass)
    shared = _shared_bytes(config, load, gpus_per_node) / 1e9
    stages = [f"ZeRO {s}{'*' if s == config.engine.zero_stage else ''}" for s in STAGES]
    kept = "the inputs of blocks" if config.engine.checkpoint_activations else "all"
    return "\n\n".join(
        [
            f"{config.name} on {nodes} x {gpus_per_node} GPUs = {ranks} ranks",
            _table(
                ["parameters", "trainable", "frozen"],
                {part.name: (part.trainable, part.frozen) for part in parts},
            ),
            _steps_of(config, one_pass),
            _table(["MiB per GPU", *stages], memory_bytes(load), _MIB),
            _table(["MiB sent per rank and step", *stages], wire_bytes(load), _MIB),
            f"shared memory of a node: {shared:,.1f} GB, for {gpus_per_node} x {config.data.workers} "
            f"processes (data.workers) with {config.data.prefetch} batches each",
            "* engine.zero_stage of this run. Activations: one forward and backward pass, measured on "
            f"tensors without storage; kept: {kept}.\n"
            "Not counted: CUDA's own memory and fragmentation; leave a tenth of the GPU free.",
        ]
    )


def _load_of(config: RunConfig, ranks: int, one_pass: _Pass) -> tuple[list[Part], Load]:
    if (taught := getattr(config.objective, "distillation", None)) is not None:
        check_teacher(taught, config.model.embedding)
    model, module = build_on_meta(config.model, config.tokenizer, config.objective)
    check_sizes(config.model, model)
    parts = parts_of(module)
    contrasts = not isinstance(config.objective, MaskedLanguageModelConfig)
    reads_features = config.data.image_features
    image_bytes = math.prod(image_shape(model, reads_features)) * _FLOAT
    return parts, Load(
        ranks=ranks,
        parameters=sum(part.trainable + part.frozen for part in parts),
        trainable=sum(part.trainable for part in parts),
        bucket=max(sum(p.numel() for p in one) for one in buckets_of(module.parameters())),
        batch=one_pass.of_step * image_bytes if contrasts else 0,
        activations=live_bytes(
            model,
            module,
            config.objective,
            one_pass.images,
            one_pass.captions,
            config.model.text.max_length,
            config.engine.precision != "fp32",  # `auto` is bf16 on every GPU from Ampere on
            config.engine.checkpoint_activations,
            reads_features,
        ),
        passes=one_pass.number,
        captions=config.batch_size * config.data.captions_per_image if contrasts else 0,
        embedding=config.model.embedding,
        averaged=0 if config.optimizer.average is None else sum(part.trainable for part in parts),
    )


def memory_bytes(load: Load) -> dict[str, list[float]]:
    """Bytes of a GPU by ZeRO stage, by what they hold; the formulas are in the module's docstring."""
    weights, trainable, ranks = load.parameters, load.trainable, load.ranks
    all_trainable, split = _FLOAT * trainable, _FLOAT * trainable / ranks
    copies = [
        # A bucket of gradients is copied into one contiguous piece to be sent; one rank sends nothing.
        load.bucket if ranks > 1 else 0,
        2 * BUCKET + trainable / ranks,
        2 * BUCKET + trainable / ranks,
        # An upper bound: as if all weights were gathered at once.
        2 * BUCKET + weights,
    ]
    # The embeddings of all captions, their gradient and its sum over ranks; embeddings and gradients of this
    # rank's captions and of at most as many images; and two tiles of scores, or three where one tile holds
    # all and is kept.
    rows = 3 * load.captions + 2 * (2 * load.captions / ranks)
    scores = load.captions * load.captions / ranks
    tiles = 3 * scores if scores <= GPU_SIDE**2 else 2 * GPU_SIDE**2
    return {
        "weights": [_FLOAT * weights] * 3 + [_FLOAT * weights / ranks],
        "gradients": [all_trainable, all_trainable, split, split],
        "moments of AdamW": [2 * all_trainable] + [2 * split] * 3,
        "copies and buckets": [_FLOAT * (number + load.averaged) for number in copies],
        "batch": [load.batch] * 4,
        "activations": [load.activations] * 4,
        "loss": [_FLOAT * (rows * load.embedding + tiles)] * 4,
    }


def wire_bytes(load: Load) -> dict[str, list[float]]:
    """Bytes that a rank sends per step, by ZeRO stage; it receives as many."""
    half = (load.ranks - 1) / load.ranks
    trained = _FLOAT * load.trainable
    gradients = [2 * trained, 2 * trained, 2 * trained * load.passes, trained * load.passes]
    # A forward and a backward pass gather once each. Cached gradients run forward once more, without a graph.
    # Under stage 3 this is an upper bound: DeepSpeed keeps weights that it needs again soon.
    gathers = 2 * load.passes if load.passes == 1 else 3 * load.passes
    weights = [0, trained, trained, _FLOAT * load.parameters * gathers]
    # Each caption's embedding, and its log sum of each rank.
    numbers = load.captions * (load.embedding + load.ranks)
    return {
        "gradients": [half * number for number in gradients],
        "weights": [half * number for number in weights],
        # Gathered forwards (half a ring), all-reduced backwards (two halves).
        "embeddings": [3 * half * _FLOAT * numbers] * 4,
    }


def _steps_of(config: RunConfig, one_pass: _Pass) -> str:
    captions = config.batch_size * config.data.captions_per_image
    passes = "all in one pass"
    if one_pass.number > 1:
        passes = f"up to {one_pass.images:,} with {one_pass.captions:,} captions in a pass, forward twice"
    lines = [
        f"step   {config.batch_size:,} images and up to {captions:,} captions of up to "
        f"{config.model.text.max_length} tokens",
        f"rank   {one_pass.of_step:,} images of a step, {passes}",
        f"run    {config.steps:,} steps, {config.steps * config.batch_size:,} images",
    ]
    try:
        manifests = [open_folder(one.path, config.data.remote)[1] for one in config.data.train]
    except UserError as error:  # a run may be planned before its data are built
        return "\n".join([*lines, f"epoch  unknown until there are data ({error})"])
    total = sum(manifest.samples for manifest in manifests)
    lines.append(f"epoch  {total / config.batch_size:,.1f} steps, {total:,} images in `data.train`")
    return "\n".join(lines) + "\n\n" + mix(manifests, config.data).table()


def _table(heads: list[str], rows: Mapping[str, Sequence[float]], unit: int = 1) -> str:
    totals = [sum(column) for column in zip(*rows.values(), strict=True)]
    lines = [f"{heads[0]:<26}" + "".join(f"{head:>15}" for head in heads[1:])]
    for name, numbers in [*rows.items(), ("total", totals)]:
        lines.append(f"{name:<26}" + "".join(f"{number / unit:>15,.0f}" for number in numbers))
    return "\n".join(lines)
