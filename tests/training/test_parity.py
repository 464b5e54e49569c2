"""One training step is the same number on 1, 2 and 4 ranks, under every stage of ZeRO, with cached gradients
and without, with the loss in tiles and whole."""

from pathlib import Path
from typing import Any

import parity_cases
import pytest
import torch
from parity_cases import EVERY_WAY, MASKED_WAYS, PREFIX_WAYS, SOME_WAYS, Way
from ranks import run_ranks

WORLD_SIZES = (1, 2, 4)
ENGINE_TOWER = parity_cases.ENGINE_TOWER
CASES = (*parity_cases.IMAGE_TOWERS, "text_text", "prefixes", "masked_language_model")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    return {
        n: run_ranks(n, parity_cases.everything, folder / str(n), SOME_WAYS) for n in WORLD_SIZES
    }


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_float64_loss_and_gradients_do_not_depend_on_the_ranks(
    runs: dict[int, list[dict[str, Any]]], world_size: int, case: str
) -> None:
    one = runs[1][0]["plain"][case]
    wanted = {"logit_scale", "image_projection.weight", "text_projection.weight"}
    if case == "masked_language_model":
        wanted = {"dense.weight", "norm.weight", "decoder.bias"}
    assert wanted <= one.keys()
    for rank in range(world_size):
        many = runs[world_size][rank]["plain"][case]
        assert many.keys() == one.keys()
        for name, value in one.items():
            # The key's bias shifts every score of a softmax alike: its gradient is zero but for noise.
            if value.norm() < 1e-12:
                assert many[name].norm() < 1e-12, name
            else:
                assert relative(many[name], value) < 1e-10, name


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("way", SOME_WAYS, ids=str)
def test_engine_gradients_and_loss_curve_agree(
    runs: dict[int, list[dict[str, Any]]], world_size: int, way: Way
) -> None:
    check_agreement(runs[1][0], runs[world_size][0]["engine"][way])


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("way", PREFIX_WAYS, ids=str)
def test_prefixes_train_alike(
    runs: dict[int, list[dict[str, Any]]], world_size: int, way: Way
) -> None:
    check_agreement(runs[1][0], runs[world_size][0]["prefix_engine"][way], "prefixes")


@pytest.mark.slow
def test_engine_gradients_and_loss_curve_agree_in_every_way(tmp_path: Path) -> None:
    runs = {
        n: run_ranks(n, parity_cases.everything, tmp_path / str(n), EVERY_WAY) for n in WORLD_SIZES
    }
    for world_size in WORLD_SIZES:
        for way in EVERY_WAY:
            check_agreement(runs[1][0], runs[world_size][0]["engine"][way])


def check_agreement(
    first: dict[str, Any], many: dict[str, Any], objective: str = ENGINE_TOWER
) -> None:
    """Gradients and losses of any way on any number of ranks against float64 and against one rank."""
    truth = first["plain"][objective]
    one = first["prefix_engine" if objective == "prefixes" else "engine"][Way(0)]
    whole = torch.cat([truth[n].flatten() for n in many["gradients"]])
    ours = torch.cat([g.double().flatten() for g in many["gradients"].values()])
    assert many["gradients"].keys() == {n for n in truth if "buffer" not in n} - {"loss"}
    assert relative(ours, whole) < 1e-6
    for part in ("image_tower.", "text_tower.", "logit_scale"):
        names = [n for n in many["gradients"] if n.startswith(part)]
        part_truth = torch.cat([truth[n].flatten() for n in names])
        part_ours = torch.cat([many["gradients"][n].double().flatten() for n in names])
        assert relative(part_ours, part_truth) < 1e-6, part
    assert many["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert one["losses"][-1] < one["losses"][0]


def test_the_engine_returns_the_norm_of_the_global_gradient(
    runs: dict[int, list[dict[str, Any]]],
) -> None:
    plain = runs[1][0]["plain"][ENGINE_TOWER]
    truth = {n: v for n, v in plain.items() if n != "loss" and "buffer" not in n}
    norm = float(torch.cat([g.flatten() for g in truth.values()]).norm())
    for world_size in (1, 2, 4):
        for way in SOME_WAYS:
            found = runs[world_size][0]["engine"][way]["grad_norms"][0]
            assert found == pytest.approx(norm, rel=1e-5), (world_size, way)


def test_the_text_text_term_and_the_masked_words_have_gradients_of_their_own(
    runs: dict[int, list[dict[str, Any]]],
) -> None:
    plain, text_text = (runs[1][0]["plain"][name] for name in (ENGINE_TOWER, "text_text"))
    assert text_text["loss"] > plain["loss"]
    name = "text_projection.weight"
    assert relative(text_text[name], plain[name]) > 0.01
    trained = runs[1][0]["plain"]["masked_language_model"].keys() - {"loss"}
    head = {"dense", "norm", "decoder"}
    outside = {n for n in trained if n.split(".")[0] not in head}
    assert outside
    assert all(n.startswith("dual_encoder.text_tower.") for n in outside)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("way", MASKED_WAYS, ids=str)
def test_the_engine_trains_a_masked_language_model_alike(
    runs: dict[int, list[dict[str, Any]]], world_size: int, way: Way
) -> None:
    truth = {n: g for n, g in runs[1][0]["plain"]["masked_language_model"].items() if n != "loss"}
    one = runs[1][0]["masked_engine"][Way(0)]
    many = runs[world_size][0]["masked_engine"][way]
    assert many["gradients"].keys() == truth.keys()
    whole = torch.cat([truth[n].flatten() for n in truth])
    ours = torch.cat([many["gradients"][n].double().flatten() for n in truth])
    assert relative(ours, whole) < 1e-5
    assert many["grad_norms"][0] == pytest.approx(float(whole.norm()), rel=1e-5)
    assert many["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["losses"][-1] < one["losses"][0]
    assert set(many["metrics"]) == {"loss", "accuracy", "grad_norm", "lr"}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("way", MASKED_WAYS, ids=str)
def test_a_masked_language_model_leaves_a_dual_encoder_whose_image_side_did_not_move(
    runs: dict[int, list[dict[str, Any]]], world_size: int, way: Way
) -> None:
    found = runs[world_size][0]["masked_engine"][way]
    before = parity_cases.build_model(ENGINE_TOWER).state_dict()
    assert found["weights"].keys() == before.keys()
    for name, tensor in found["weights"].items():
        if not name.startswith("text_tower."):
            assert tensor.equal(before[name]), name
    name = "text_tower.trunk.embeddings.word_embeddings.weight"
    assert not found["weights"][name].equal(before[name])
