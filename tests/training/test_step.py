"""What a step asks of the other ranks and of the device: few messages, and no waiting."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from parity_cases import Way, make_batch_for, make_engine, taken
from ranks import run_ranks
from step_cases import collectives_of_a_step, reads_of_steps, sums_begin_during_the_backward_pass

from mmalign.core import distributed

# These grow with the model and the batch, and every trainer exchanges them.
DATA = ("embeddings", "embeddings: gradients", "gradients")


def test_a_step_makes_two_collectives_beside_embeddings_and_gradients(tmp_path: Path) -> None:
    for found in run_ranks(2, collectives_of_a_step, tmp_path):
        for case, (ours, everybody) in found.items():
            # Nothing calls the process group past the counter.
            assert ours.total() == everybody, case
            beside = Counter({name: n for name, n in ours.items() if name not in DATA})
            assert beside.total() <= 2, (case, beside)
            assert ours["embeddings"] <= 1, case
        assert found["contrastive", False][0]["step"] == 1


def test_a_step_reads_nothing_from_the_device(tmp_path: Path) -> None:
    (reads,) = run_ranks(1, reads_of_steps, tmp_path)
    # transformers looks whether a mask hides anything; on GPUs the text tower gives it the mask that it
    # would make (see `TextTower`). That it is found shows that reads are found.
    places = [one for one in reads if "transformers/masking_utils.py" not in one]
    assert not places, places[0]
    assert reads


def test_sums_of_gradients_begin_during_the_backward_pass(tmp_path: Path) -> None:
    for found in run_ranks(2, sums_begin_during_the_backward_pass, tmp_path):
        # One bucket for each of the four layers and one for the parameter that is not used.
        assert found["sent at the first layer"] == [0, 3]
        assert found["sent"] == 5
        assert found["unused"].tolist() == [0, 0, 0]
        assert found["error"] < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("way", [Way(0), Way(0, cached=True)], ids=str)
def test_a_step_on_a_gpu_never_waits(way: Way) -> None:
    distributed.start()
    engine = make_engine("contrastive", way)
    taken(engine, make_batch_for("contrastive", 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics = engine.step(make_batch_for("contrastive", 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metrics.shared["grad_norm"].isfinite()
