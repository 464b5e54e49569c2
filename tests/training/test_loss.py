"""The losses against their definitions, against hand-made truths and against torch's, on 1, 2 and 4 ranks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from loss_cases import (
    LOSSES,
    Found,
    dense_contrastive,
    dense_sigmoid,
    dense_text_text,
    gathered,
    global_batch,
    leaves,
    on_this_rank,
    random_embeddings,
    with_gradients,
)
from ranks import run_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmalign.core import distributed
from mmalign.core.batch import Embeddings
from mmalign.training import loss_tiles
from mmalign.training.loss import contrastive_loss, sigmoid_loss, text_text_loss


def assert_equal(found: Found, wanted: Found, tolerance: float = 1e-10) -> None:
    """Equal within `tolerance` of the largest number."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        difference = (found[name] - value).abs().max()
        assert difference <= tolerance * max(value.abs().max().item(), 1e-3), name


def from_logits(logits: Tensor) -> Embeddings:
    """Embeddings whose scores are `logits`, and whose image gradients are the scores' gradients."""
    one = torch.ones(1, dtype=logits.dtype)
    texts = torch.eye(logits.shape[1], dtype=logits.dtype)
    return Embeddings(logits.clone().requires_grad_(), texts, one, 0 * one)


def random_batch(
    images: int, texts: int, pictures: int
) -> tuple[Embeddings, tuple[Tensor, Tensor]]:
    """Every image has a caption and the other way round; equal pictures are in both."""
    generator = torch.Generator().manual_seed(1)
    picture_id_B = torch.randint(pictures, (images,), generator=generator)
    extra = picture_id_B[torch.randint(images, (texts - images,), generator=generator)]
    order = torch.randperm(texts, generator=generator)
    picture_id_N = torch.cat([picture_id_B, extra])[order]
    return random_embeddings(images, texts), (picture_id_B, picture_id_N)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_with_one_caption_per_picture_it_is_clips_loss(label_smoothing: float) -> None:
    found = random_embeddings(6, 6)
    ids = torch.arange(6)
    logits = found.logit_scale * found.image_BD @ found.text_ND.T
    expected = (
        F.cross_entropy(logits, ids, label_smoothing=label_smoothing)
        + F.cross_entropy(logits.T, ids, label_smoothing=label_smoothing)
    ) / 2
    ours = contrastive_loss(*gathered(found, ids, ids), label_smoothing=label_smoothing)
    assert_equal(with_gradients(ours, found), with_gradients(expected, found), 1e-12)


def test_a_hand_made_case_with_two_captions_and_an_equal_picture() -> None:
    # Images 0 and 1 show the same picture; captions 0 and 1 describe it, caption 2 describes image 2.
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.3, 0.1, 0.2], [0.0, 0.4, 3.0]], dtype=torch.float64)
    ids = torch.tensor([7, 7, 9])

    def pair(score: float, *negatives: float) -> float:
        return -math.log(math.exp(score) / (math.exp(score) + sum(map(math.exp, negatives))))

    images = [
        (pair(1.0, 0.5) + pair(2.0, 0.5)) / 2,
        (pair(0.3, 0.2) + pair(0.1, 0.2)) / 2,
        pair(3.0, 0.0, 0.4),
    ]
    captions = [
        (pair(1.0, 0.0) + pair(0.3, 0.0)) / 2,
        (pair(2.0, 0.4) + pair(0.1, 0.4)) / 2,
        pair(3.0, 0.5, 0.2),
    ]
    expected = (sum(images) / 3 + sum(captions) / 3) / 2
    assert contrastive_loss(*gathered(from_logits(logits), ids, ids)).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_a_hand_made_sigmoid_loss() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    ids = torch.tensor([4, 8])
    expected = sum(math.log1p(math.exp(x)) for x in (-1.0, -2.0, 0.5, -3.0)) / 2
    assert sigmoid_loss(*gathered(from_logits(logits), ids, ids)).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_positives_are_never_each_others_negatives() -> None:
    picture_B, picture_N = torch.tensor([7, 7, 9]), torch.tensor([7, 7, 9, 7, 9])
    generator = torch.Generator().manual_seed(0)
    found = from_logits(torch.randn(3, 5, generator=generator, dtype=torch.float64))
    contrastive_loss(*gathered(found, picture_B, picture_N)).backward()
    slope = found.image_BD.grad
    assert slope is not None
    positive = picture_B[:, None] == picture_N
    assert (slope[positive] < 0).all()
    assert (slope[~positive] > 0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_batch_without_negatives_has_no_loss_and_no_gradient(label_smoothing: float) -> None:
    found = random_embeddings(2, 3)
    ids = torch.tensor([4, 4]), torch.tensor([4, 4, 4])
    values = with_gradients(
        contrastive_loss(*gathered(found, *ids), label_smoothing=label_smoothing), found
    )
    assert all(value.abs().max() < 1e-14 for value in values.values())
    if not label_smoothing:
        assert values["loss"] == 0
    lonely = with_gradients(text_text_loss(*gathered(found, ids[0], torch.arange(3))), found)
    assert all(value.abs().max() == 0 for value in lonely.values())


@pytest.mark.parametrize("tile", [1, 5, 16, 1000, None])
@pytest.mark.parametrize("sizes", [(13, 31, 9), (17, 17, 40), (11, 23, 2)])
def test_any_tile_gives_the_loss_of_the_definition(
    sizes: tuple[int, int, int], tile: int | None
) -> None:
    found, ids = random_batch(*sizes)
    weight_N = torch.linspace(0.2, 3, len(ids[1]), dtype=torch.float64)
    pairs = [
        (contrastive_loss(*gathered(found, *ids), tile=tile), dense_contrastive(found, *ids)),
        (
            contrastive_loss(*gathered(found, *ids, weight_N), label_smoothing=0.1, tile=tile),
            dense_contrastive(found, *ids, weight_N, 0.1),
        ),
        (
            sigmoid_loss(*gathered(found, *ids, weight_N), tile=tile),
            dense_sigmoid(found, *ids, weight_N),
        ),
        (text_text_loss(*gathered(found, *ids), tile=tile), dense_text_text(found, ids[1])),
    ]
    for ours, wanted in pairs:
        assert_equal(with_gradients(ours, found), with_gradients(wanted, found))


def test_equal_weights_are_no_weights() -> None:
    found, ids = random_batch(13, 31, 9)
    for loss in (contrastive_loss, sigmoid_loss):
        plain = with_gradients(loss(*gathered(found, *ids)), found)
        assert_equal(
            with_gradients(loss(*gathered(found, *ids, torch.ones(31))), found), plain, tolerance=0
        )
        tripled = with_gradients(loss(*gathered(found, *ids, torch.full((31,), 3.0))), found)
        assert_equal(tripled, plain, tolerance=1e-12)


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Found]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    return {n: run_ranks(n, on_this_rank, folder / str(n)) for n in (1, 2, 4)}


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_have_the_loss_and_the_gradients_of_the_definition(
    on_ranks: dict[int, list[dict[str, Found]]], world_size: int, case: str
) -> None:
    arguments = global_batch()
    wanted = with_gradients(LOSSES[case][1](*arguments), arguments[0])
    ranks = [rank[case] for rank in on_ranks[world_size]]
    found = {
        name: torch.cat([rank[name] for rank in ranks]) if name in ("image", "text") else value
        for name, value in ranks[0].items()
    }
    assert_equal(found, wanted)


def test_prefixes_are_gathered_with_the_embeddings_they_belong_to() -> None:
    found, ids = random_batch(13, 31, 9)

    def gathers(dims: tuple[int, ...]) -> int:
        with patch.object(distributed, "gather_rows", wraps=distributed.gather_rows) as gather:
            contrastive_loss(*gathered(found, *ids), dims=dims)
            sigmoid_loss(*gathered(found, *ids), dims=dims)
            text_text_loss(*gathered(found, *ids), dims=dims)
        return gather.call_count

    assert gathers((1, 2, 3, 4)) == gathers(())


def test_gradients_pass_gradcheck() -> None:
    found, ids = random_batch(3, 5, 2)
    weight_N = torch.linspace(0.5, 2, 5, dtype=torch.float64)

    def every_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        given = Embeddings(image, text, scale, bias)
        return (
            contrastive_loss(*gathered(given, *ids, weight_N), label_smoothing=0.1, tile=2),
            sigmoid_loss(*gathered(given, *ids, weight_N), tile=2),
            text_text_loss(*gathered(given, *ids), tile=2),
        )

    assert torch.autograd.gradcheck(every_loss, tuple(leaves(found).values()))


def test_extreme_scores_stay_finite_and_right() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    for ids in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        for loss in (contrastive_loss, sigmoid_loss):
            found = from_logits(logits)
            value = loss(*gathered(found, torch.tensor([0, 1]), ids))
            value.backward()
            assert found.image_BD.grad is not None
            assert found.image_BD.grad.isfinite().all()
            assert value.item() == (0 if ids[0] == 0 else 2e4)


def test_float32_at_the_highest_scale_is_close_to_float64() -> None:
    exact, ids = random_batch(40, 70, 30)
    exact = replace(exact, logit_scale=torch.tensor([100.0], dtype=torch.float64).requires_grad_())
    rough = Embeddings(*(v.detach().float().requires_grad_() for v in leaves(exact).values()))
    for loss in (contrastive_loss, sigmoid_loss):
        assert_equal(
            with_gradients(loss(*gathered(rough, *ids), tile=16), rough),
            with_gradients(loss(*gathered(exact, *ids), tile=16), exact),
            tolerance=2e-5,
        )


class _Products(TorchDispatchMode):
    """The number of matrix products."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


def test_scores_that_fit_into_one_tile_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_tiles, "CPU_SIDE", 8)
    found, ids = random_batch(4, 16, 5)  # as many scores as a tile of 8 x 8

    def products(tile: int | None) -> int:
        with _Products() as products:
            values = with_gradients(contrastive_loss(*gathered(found, *ids), tile=tile), found)
        assert_equal(values, with_gradients(dense_contrastive(found, *ids), found))
        return products.count

    assert products(None) == 3  # the scores, and the gradients of rows and columns
    assert products(8) == 2 * 4
    monkeypatch.setattr(loss_tiles, "CPU_SIDE", 7)
    assert products(None) == 3 * 4


def test_rounded_scores_are_those_of_rounded_embeddings() -> None:
    exact, ids = random_batch(40, 70, 30)
    found = Embeddings(*(v.detach().float().requires_grad_() for v in leaves(exact).values()))
    scaled = found.logit_scale.detach() * found.image_BD.detach()
    rounded = replace(
        found,
        image_BD=scaled.bfloat16().float(),
        text_ND=found.text_ND.detach().bfloat16().float(),
        logit_scale=torch.ones(1),
    )
    for loss in (contrastive_loss, sigmoid_loss):
        for tile in (16, None):
            ours = loss(*gathered(found, *ids), bf16_scores=True, tile=tile)
            assert ours.dtype == torch.float32
            wanted = loss(*gathered(rounded, *ids))
            assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)


# At the highest scale the pairs are nearly told apart, so that the gradient is small beside its terms.
@pytest.mark.parametrize(("scale", "most"), [(1 / 0.07, 0.005), (100.0, 0.02)])
def test_rounding_changes_gradients_by_a_small_fraction(scale: float, most: float) -> None:
    exact = random_embeddings(96, 96, width=64)
    near = F.normalize(exact.text_ND.detach() + exact.image_BD.detach(), dim=-1).requires_grad_()
    exact = replace(exact, text_ND=near, logit_scale=torch.tensor([scale]).double())
    exact.logit_scale.requires_grad_()
    rough = Embeddings(*(v.detach().float().requires_grad_() for v in leaves(exact).values()))
    ids = torch.arange(96)
    for loss, pictures in (
        (contrastive_loss, ids),
        (sigmoid_loss, ids),
        (text_text_loss, ids // 2),
    ):
        arguments = (ids, pictures)
        options = {"bf16_scores": True, "tile": 32}
        found = with_gradients(loss(*gathered(rough, *arguments), **options), rough)
        wanted = with_gradients(loss(*gathered(exact, *arguments)), exact)
        for name in {"image", "text"} & wanted.keys():
            error = (found[name] - wanted[name]).norm() / wanted[name].norm()
            assert 1e-4 < error < most, (loss, name)  # and it is rounded at all


def test_autocast_changes_nothing() -> None:
    double, ids = random_batch(13, 31, 9)
    found = Embeddings(*(v.detach().float().requires_grad_() for v in leaves(double).values()))

    def values() -> list[Found]:
        return [
            with_gradients(contrastive_loss(*gathered(found, *ids), label_smoothing=0.1), found),
            with_gradients(sigmoid_loss(*gathered(found, *ids)), found),
            with_gradients(text_text_loss(*gathered(found, *ids)), found),
        ]

    plain = values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inside, outside in zip(values(), plain, strict=True):
            assert_equal(inside, outside, tolerance=0)


class _Largest(TorchDispatchMode):
    """The most numbers of any tensor that an operation gives, forward or backward."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return out


def test_no_tensor_grows_with_the_square_of_the_batch() -> None:
    images, width = 64, 8
    found = random_embeddings(images, images, width=width)
    ids = torch.arange(images)
    with _Largest() as dense:
        dense_sigmoid(found, ids, ids).backward()
    assert dense.numbers == images * images
    for loss in (
        lambda: contrastive_loss(*gathered(found, ids, ids), label_smoothing=0.1, tile=16),
        lambda: sigmoid_loss(*gathered(found, ids, ids), tile=16),
        lambda: text_text_loss(*gathered(found, ids, ids // 2), tile=16),
        lambda: contrastive_loss(
            *gathered(found, ids, ids), dims=(2, 3), label_smoothing=0.1, tile=16
        ),
    ):
        with _Largest() as tiled:
            loss().backward()
        assert tiled.numbers <= images * width
