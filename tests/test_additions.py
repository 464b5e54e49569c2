"""A loss, a perturbation or a robust method is added by one file of code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

PERTURBATION = """
from typing import Literal
from mmalign.text.perturbations.sampling import Graded

class ShoutConfig(Graded):
    kind: Literal["shout"]

    def change(self, texts, lang, single_words):
        return lambda text, random: text.upper()
"""
METHOD = """
from typing import Literal
from mmalign.core.config import Section

class TwiceConfig(Section):
    kind: Literal["twice"]
    times: int = 2

    def backward(self, model, batch, generator):
        return 1.0 * self.times
"""
LOSS = """
def zero_loss(embeddings, *ids, weight_N=None, **options):
    return 0 * embeddings.image_BD.sum()
"""
USE = """
import torch
from mmalign.core.batch import Batch, Embeddings, StreamState
from mmalign.core.config import validate
from mmalign.text.fit_config import FitConfig
from mmalign.text.measure import TestConfig
from mmalign.text.perturbations.perturb import perturb
from mmalign.text.tasks.task import Example
from mmalign.training.exchange import Exchange
from mmalign.training.objective import ContrastiveConfig, contrast, exchange_ids

(noise,) = validate(TestConfig, {"perturbations": [{"kind": "shout", "severity": 1}]}, "").perturbations
(noisy,) = perturb([Example("1", "en", ("a dog",), "x")], "classification", noise, 0)
print(noisy.texts[0], noise.name)

fitting = validate(FitConfig, {"epochs": 1, "method": {"kind": "twice"}}, "")
print(fitting.method.backward(None, None, None))

objective = validate(ContrastiveConfig, {"kind": "contrastive", "loss": "zero"}, "")
ids, one = torch.arange(2), torch.ones(2, 1)
batch = Batch(None, ids[:, None], ids[:, None], ("en", "en"), ids, ids, ("a", "b"), StreamState(0, 2))
ids = exchange_ids(Exchange(), objective, batch)
print(contrast(objective, Embeddings(one, one, torch.ones(1)), batch, ids).local_loss.item())
"""


def test_a_perturbation_a_robust_method_and_a_loss_touch_one_file_each(tmp_path: Path) -> None:
    package = tmp_path / "mmalign"
    shutil.copytree(ROOT / "mmalign", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "text/perturbations/shout.py").write_text(PERTURBATION)
    (package / "text/robust/twice.py").write_text(METHOD)
    text = (package / "training/loss.py").read_text()
    for before, after in (
        ("\nLossName", f"\n{LOSS}\n\nLossName"),
        ('Literal["softmax"', 'Literal["zero", "softmax"'),
        ('"softmax": contrastive_loss', '"zero": zero_loss, "softmax": contrastive_loss'),
    ):
        assert before in text
        text = text.replace(before, after, 1)
    (package / "training/loss.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["A DOG shout-1", "2.0", "0.0"], done.stderr
