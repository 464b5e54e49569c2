"""Correctness of the distributed loss: mmalign and open_clip's ClipLoss on gloo ranks, against one process.

    one process, complete batch   -> loss and gradients, the reference
    W ranks, a part each          -> the same, gradients averaged as in data-parallel training

All values are float64, so that differences come from the method and not from rounding. Prints a table and, as
the last line, one JSON object: for each method the difference of the loss to the reference, the ratio of the
norm of the towers' gradient to the reference, and the cosine of the two gradients.

    python benchmarks/gradients.py [--ranks 2] [--batch 64] [--width 32]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import open_clip.loss
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from mmalign.core.batch import Embeddings
from mmalign.training.exchange import Exchange
from mmalign.training.loss import contrastive_loss, gather

OPEN_CLIP = {
    f"open_clip local_loss={local} gather_with_grad={grad}": {
        "local_loss": local,
        "gather_with_grad": grad,
    }
    for local in (False, True)
    for grad in (False, True)
}


def towers(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two linear towers and the inverse temperature, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.randn(width, 16, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    scale = torch.tensor([14.0], dtype=torch.float64)
    return image.requires_grad_(), text.requires_grad_(), scale.requires_grad_()


def measure(method: str, rank: int, world_size: int, batch: int, width: int) -> dict[str, Any]:
    """Loss and averaged gradients of one method on the part of the batch of `rank`."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, batch, width, generator=generator, dtype=torch.float64)
    part = slice(rank * batch // world_size, (rank + 1) * batch // world_size)
    image, text, scale = towers(width)
    image_BD = F.normalize(inputs[0, part] @ image, dim=-1)
    text_BD = F.normalize(inputs[1, part] @ text, dim=-1)
    if method == "mmalign":
        ids = torch.arange(batch)[part]
        embeddings = Embeddings(image_BD, text_BD, scale)
        local_loss = contrastive_loss(embeddings, gather(embeddings, Exchange()(ids, ids)))
        loss = local_loss * world_size
    else:
        settings = OPEN_CLIP[method]
        loss = open_clip.loss.ClipLoss(**settings, rank=rank, world_size=world_size)(
            image_BD, text_BD, scale
        )
    loss.backward()
    found = [loss.detach(), *(p.grad for p in (image, text, scale) if p.grad is not None)]
    if world_size > 1:
        for tensor in found:
            dist.all_reduce(tensor)
            tensor /= world_size
    return dict(zip(("loss", "image", "text", "scale"), found, strict=True))


def run_rank(rank: int, world_size: int, folder: str, batch: int, width: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    methods = ("mmalign", *OPEN_CLIP)
    found = {method: measure(method, rank, world_size, batch, width) for method in methods}
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    truth = measure("mmalign", 0, 1, options.batch, options.width)
    peer = measure(
        "open_clip local_loss=False gather_with_grad=False", 0, 1, options.batch, options.width
    )
    assert torch.allclose(truth["loss"], peer["loss"], atol=1e-12), (
        "the two losses differ in one process"
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.ranks, folder, options.batch, options.width)
        mp.spawn(run_rank, args=arguments, nprocs=options.ranks)
        found = torch.load(Path(folder) / "found.pt")
    rows = {}
    for method, values in found.items():
        ours = torch.cat([values["image"].flatten(), values["text"].flatten()])
        true = torch.cat([truth["image"].flatten(), truth["text"].flatten()])
        rows[method] = {
            "loss_difference": float((values["loss"] - truth["loss"]).abs()),
            "gradient_length": float(ours.norm() / true.norm()),
            "gradient_cosine": float(F.cosine_similarity(ours, true, dim=0)),
        }
    write = sys.stdout.write
    write(f"{options.ranks} gloo ranks, batch {options.batch}, float64; reference: one process\n\n")
    write(f"{'method':<55}{'loss differs by':>18}{'gradient norm':>18}{'cosine':>10}\n")
    for method, row in rows.items():
        write(
            f"{method:<55}{row['loss_difference']:>18.1e}{row['gradient_length']:>18.3f}"
            f"{row['gradient_cosine']:>10.4f}\n"
        )
    write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
