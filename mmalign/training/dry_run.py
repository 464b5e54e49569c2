"""The memory and traffic of a run, without GPUs, weights or images: `mmalign train --dry-run`.

    run file, nodes, GPUs -> footprint.py (parameters, activations) -> bytes by ZeRO stage -> table

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
weights, and every stage has buckets of gradients.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmalign.core.errors import UserError
from mmalign.data.shards.folder import open_folder
from mmalign.data.stream.mixing import mix
from mmalign.training.engine import BUCKET
from mmalign.training.footprint import (
    Part,
    build_on_meta,
    live_bytes,
    parts_of,
    picture_shape,
)
from mmalign.training.loss_tiles import GPU_SIDE
from mmalign.training.objective import ContrastiveConfig
from mmalign.training.run_config import RunConfig

STAGES = (0, 1, 2, 3)
_FLOAT = 4
_MIB = 2**20


@dataclass(frozen=True)
class Load:
    """The inputs of the formulas.

    Attributes:
        ranks: W.
        parameters, trainable: P and T.
        batch: bytes of a rank's images.
        activations: most bytes alive in one forward and backward pass (`live_bytes`).
        passes: forward passes with a graph in one step of a rank.
        captions: of a step, over all ranks.
        embedding: D.
        is_contrastive: whether the objective is the contrastive one.
    """

    ranks: int
    parameters: int
    trainable: int
    batch: int
    activations: int
    passes: int
    captions: int
    embedding: int
    is_contrastive: bool


def dry_run(config: RunConfig, nodes: int, gpus_per_node: int) -> str:
    """Tables of what the run needs; nothing is loaded, nothing is written.

    Parameters, memory per GPU and bytes on the wire by ZeRO stage, steps per epoch, shares of languages.
    Every caption is assumed to be as long as `model.text.max_length`, and every image to have
    `data.captions_per_image` of them.

    Raises:
        UserError: the batch does not divide by the ranks, the architecture of a tower is only known to the
        hub, or the
            languages' floor and cap leave no shares.
    """
    ranks = nodes * gpus_per_node
    if config.batch_size % ranks:
        raise UserError(
            f"batch_size: {config.batch_size} does not divide by the {ranks} ranks of {nodes} x "
            f"{gpus_per_node} GPUs"
        )
    parts, load = _load_of(config, ranks)
    chosen = config.engine.zero_stage
    return "\n\n".join(
        [
            f"{config.name} on {nodes} x {gpus_per_node} GPUs = {ranks} ranks",
            _parameter_table(parts),
            _steps_of(config, ranks),
            _stage_table("MiB per GPU", memory_bytes(load), chosen),
            _stage_table("MiB sent per rank and step", wire_bytes(load), chosen),
            f"* engine.zero_stage of this run. Activations: {_how_activations(config)}\n"
            "Not counted: CUDA's own memory and fragmentation; leave a tenth of the GPU free.",
        ]
    )


def _load_of(config: RunConfig, ranks: int) -> tuple[list[Part], Load]:
    model, module = build_on_meta(config.model, config.tokenizer, config.objective)
    parts = parts_of(module)
    is_contrastive = isinstance(config.objective, ContrastiveConfig)
    images, part, captions = _rank_batch(config, ranks)
    features = config.data.image_features
    picture = math.prod(picture_shape(model, features))
    load = Load(
        ranks=ranks,
        parameters=sum(p.trainable + p.frozen for p in parts),
        trainable=sum(p.trainable for p in parts),
        batch=images * picture * _FLOAT if is_contrastive else 0,
        activations=live_bytes(
            model,
            module,
            config.objective,
            part,
            captions,
            config.model.text.max_length,
            config.engine.precision != "fp32",  # `auto` is bf16 on every GPU from Ampere on
            config.engine.checkpoint_activations,
            features,
        ),
        passes=-(-images // part),
        captions=config.batch_size * config.data.captions_per_image,
        embedding=config.model.embedding,
        is_contrastive=is_contrastive,
    )
    return parts, load


def _rank_batch(config: RunConfig, ranks: int) -> tuple[int, int, int]:
    """Images of a rank, images of one forward pass, and captions of one forward pass."""
    images = config.batch_size // ranks
    part = min(images, config.engine.micro_batch or images)
    return images, part, part * config.data.captions_per_image


def memory_bytes(load: Load) -> dict[str, list[float]]:
    """Bytes of a GPU by ZeRO stage, by what they hold; the formulas are in the module's docstring."""
    weights, trainable, ranks = load.parameters, load.trainable, load.ranks
    split = [_FLOAT * trainable, _FLOAT * trainable / ranks]
    return {
        "weights": [_FLOAT * weights] * 3 + [_FLOAT * weights / ranks],
        "gradients": [split[0], split[0], split[1], split[1]],
        "moments of AdamW": [2 * split[0]] + [2 * split[1]] * 3,
        "copies and buckets": [_copies(load, stage) for stage in STAGES],
        "batch": [load.batch] * 4,
        "activations": [load.activations] * 4,
        "loss": [_loss_bytes(load)] * 4,
    }


def _copies(load: Load, stage: int) -> float:
    """Memory of DeepSpeed beyond ZeRO's states; under stage 3 an upper bound (all weights gathered)."""
    if stage == 0:  # a bucket of gradients is copied into one contiguous piece to be sent
        return _FLOAT * min(load.trainable, BUCKET) if load.ranks > 1 else 0
    if stage == 3:
        return _FLOAT * (BUCKET + load.parameters)
    return _FLOAT * (BUCKET + load.trainable / load.ranks)


def _loss_bytes(load: Load) -> float:
    """Embeddings of all captions, their gradient and its sum over ranks, those of this rank, two tiles."""
    if not load.is_contrastive:
        return 0
    side = min(GPU_SIDE, load.captions)
    own = 2 * load.captions / load.ranks
    return _FLOAT * ((3 * load.captions + 2 * own) * load.embedding + 2 * side * side)


def wire_bytes(load: Load) -> dict[str, list[float]]:
    """Bytes that a rank sends per step, by ZeRO stage; it receives as many.

    Under stage 3 this is an upper bound: weights are counted as gathered for each pass, while DeepSpeed keeps
    those that it needs again soon.
    """
    half = (load.ranks - 1) / load.ranks
    trained = _FLOAT * load.trainable
    gradients = [2 * trained, 2 * trained, 2 * trained * load.passes, trained * load.passes]
    # Cached gradients run forward once more, without a graph.
    gathers = 2 * load.passes if load.passes == 1 else 3 * load.passes
    weights = [0, trained, trained, _FLOAT * load.parameters * gathers]
    # Gathered forwards (half a ring), all-reduced backwards (two), with a log sum for each rank and caption.
    numbers = load.captions * (load.embedding + load.ranks) if load.is_contrastive else 0
    return {
        "gradients": [half * number for number in gradients],
        "weights": [half * number for number in weights],
        "embeddings": [3 * half * _FLOAT * numbers] * 4,
    }


def _steps_of(config: RunConfig, ranks: int) -> str:
    images, part, _ = _rank_batch(config, ranks)
    captions = config.batch_size * config.data.captions_per_image
    passes = f"{part:,} in a pass, forward twice" if part < images else "all in one pass"
    lines = [
        f"step   {config.batch_size:,} images and up to {captions:,} captions of up to "
        f"{config.model.text.max_length} tokens",
        f"rank   {images:,} images of a step, {passes}",
        f"run    {config.steps:,} steps, {config.steps * config.batch_size:,} images",
    ]
    try:
        manifests = [open_folder(one.path, config.data.remote)[1] for one in config.data.train]
    except UserError as error:
        return "\n".join([*lines, f"epoch  unknown until there are data ({error})"])
    total = sum(manifest.samples for manifest in manifests)
    lines.append(f"epoch  {total / config.batch_size:,.1f} steps, {total:,} images in `data.train`")
    return "\n".join(lines) + "\n\n" + mix(manifests, config.data).table()


def _how_activations(config: RunConfig) -> str:
    kept = "the inputs of blocks" if config.engine.checkpoint_activations else "all"
    return f"one forward and backward pass, measured on tensors without storage; kept: {kept}."


def _parameter_table(parts: Sequence[Part]) -> str:
    rows = [[part.name, f"{part.trainable:,}", f"{part.frozen:,}"] for part in parts]
    total = [sum(part.trainable for part in parts), sum(part.frozen for part in parts)]
    rows.append(["total", *(f"{number:,}" for number in total)])
    return _table(["parameters", "trainable", "frozen"], rows)


def _stage_table(title: str, bytes_of: dict[str, list[float]], chosen: int) -> str:
    totals = [sum(column) for column in zip(*bytes_of.values(), strict=True)]
    rows = [
        [name, *(f"{number / _MIB:,.0f}" for number in numbers)]
        for name, numbers in [*bytes_of.items(), ("total", totals)]
    ]
    heads = [f"ZeRO {stage}{'*' if stage == chosen else ''}" for stage in STAGES]
    return _table([title, *heads], rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
