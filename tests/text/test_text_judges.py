"""A short form of `benchmarks/text_judges.py`: every metric agrees with its outside judge."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import text_judges
from text_judges import CASES, JUDGES, TARGET, compare, differences

from mmalign.text.tasks.task import Kind


@pytest.mark.parametrize("kind", JUDGES)
def test_metrics_agree_with_their_judge(kind: Kind) -> None:
    rows = compare({kind: JUDGES[kind]}, count=9, seed=0)[kind]
    assert rows and all(row["difference"] <= TARGET for row in rows.values()), rows
    assert max(row["cases"] for row in rows.values()) >= 10


@pytest.mark.parametrize("kind", JUDGES)
def test_a_wrong_metric_would_be_seen(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    right = text_judges.score

    def wrong(*call: object) -> dict[str, object]:
        return {name: np.mean(value) * 0.99 for name, value in right(*call).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(text_judges, "score", wrong)
    case = next(iter(CASES[kind](np.random.default_rng(0), 1)))
    assert max(differences(kind, case, JUDGES[kind]).values()) > TARGET
