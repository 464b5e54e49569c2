"""Distillation: embeddings come to a teacher's, on any number of ranks, with the contrastive loss or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from run_cases import assert_equal_weights, config, losses, measured, mmalign
from shard_sets import make_pair, make_set
from tiny import MODEL, tiny_run

from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.models.encoder import load_encoder
from mmalign.training.distillation import distillation_loss
from mmalign.training.run_config import RunConfig

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def loss_of(rows: list[int]) -> float:
    """The loss over two ranks, or one, of which each has some of four captions."""
    from mmalign.core import distributed

    generator = torch.Generator().manual_seed(0)
    text_ND, teacher_ND = torch.randn((2, 4, 8), generator=generator, dtype=torch.float64)
    teacher_ND[1] = 0  # in a language that is not distilled
    share = len(rows) // distributed.world_size()
    mine = rows[distributed.rank() * share :][:share]
    count = sum(row != 1 for row in rows)
    local_loss = distillation_loss(text_ND[mine], teacher_ND[mine], count)
    return float(distributed.sum_over_ranks(local_loss))


def test_the_loss_is_the_mean_over_all_ranks(tmp_path: Path) -> None:
    whole = loss_of([0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    text_ND, teacher_ND = torch.randn((2, 4, 8), generator=generator, dtype=torch.float64)
    wanted = (1 - (text_ND * teacher_ND).sum(1))[[0, 2, 3]].mean()
    assert whole == pytest.approx(float(wanted), abs=1e-12)
    assert run_ranks(2, loss_of, tmp_path / "ranks", [0, 1, 2, 3]) == pytest.approx([whole] * 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns a teacher's vectors alone, of English captions, complete and in two parts."""
    folder = tmp_path_factory.mktemp("distillation")
    make_set(folder / "data", 14)
    tiny_run(folder / "teacher")
    text = {**MODEL["text"], "architecture": {**MODEL["text"]["architecture"], **STILL}}
    distillation = {"teacher": "teacher", "languages": ["en"]}
    objective = {"kind": "contrastive", "image_text": 0, "distillation": distillation}
    tree = config(folder / "data", model={**MODEL, "text": text}, objective=objective)
    tree |= {"steps": 12, "optimizer": {"lr": 1e-2}}
    (folder / "run.yaml").write_text(write_yaml(tree))
    mmalign("train", "run.yaml", "--out", "whole", folder=folder)
    mmalign("train", "run.yaml", "--out", "parts", "--stop-after", "4", folder=folder)
    mmalign("train", "run.yaml", "--out", "parts", folder=folder)
    return folder


def test_the_embeddings_come_to_the_teachers(runs: Path) -> None:
    english = [make_pair(number, ("en",)).captions[0].text for number in range(14)]
    teacher = load_encoder(runs / "teacher").encode_texts(english)
    cosines = [
        (load_encoder(runs / "whole", untrained).encode_texts(english) * teacher).sum(1).mean()
        for untrained in (True, False)
    ]
    assert cosines[1] > cosines[0] + 0.3
    logged = measured(runs / "whole", "distillation_loss")
    assert logged[-1][1] < logged[0][1] - 0.3
    assert losses(runs / "whole") == pytest.approx(dict(logged))  # no other loss counts


def test_a_stop_changes_nothing(runs: Path) -> None:
    assert losses(runs / "parts") == losses(runs / "whole")
    assert_equal_weights(runs / "parts", runs / "whole")


def test_two_ranks_and_cached_gradients_give_the_same(runs: Path) -> None:
    changes = ["model.image.frozen=true", "objective.image_text=1", "steps=3", "--out"]
    mmalign("train", "run.yaml", *changes, "one", folder=runs)
    mmalign("train", "run.yaml", "engine.micro_batch=1", *changes, "cached", folder=runs)
    mmalign("train", "run.yaml", "engine.zero_stage=2", *changes, "two", ranks=2, folder=runs)
    for other in ("cached", "two"):
        for name in ("loss", "distillation_loss"):
            one, found = ([v for _, v in measured(runs / r, name)] for r in ("one", other))
            np.testing.assert_allclose(found, one, rtol=2e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["model.embedding=8"], "teacher has vectors of 16 dimensions; set `model.embedding`"),
        (["objective.distillation.teacher=no/such/teacher"], "no/such/teacher: no model"),
    ],
)
def test_what_does_not_fit_is_one_sentence(runs: Path, changes: list[str], reason: str) -> None:
    refused = mmalign("train", "run.yaml", *changes, "--out", "no", expect=1, folder=runs)
    assert reason in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


def test_no_loss_at_all_is_refused(tmp_path: Path) -> None:
    objective: dict[str, Any] = {"kind": "contrastive", "image_text": 0}
    with pytest.raises(UserError, match="`image_text: 0` leaves no loss"):
        validate(RunConfig, config(tmp_path, objective=objective), "test")
