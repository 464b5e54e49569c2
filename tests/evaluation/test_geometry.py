"""The shape of the space, on clouds whose shape is known."""

import numpy as np
import pytest
import torch
from evaluation.alignment_cases import make_embedded, unit

from mmalign.evaluation import geometry
from mmalign.evaluation.geometry import isotropy, measure_geometry, uniformity
from mmalign.results.results import Results


def random_unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(rows, width)))


def measured(spaces: dict[str, np.ndarray], image_PD: np.ndarray | None = None) -> Results:
    results = Results(suite="x", model={})
    measure_geometry(make_embedded(spaces, image_PD), results)
    return results


def iso_score(rows: np.ndarray) -> float:
    """IsoScore by the steps of its paper: principal variances, scaled, their distance to equal ones."""
    variance = np.linalg.eigvalsh(np.cov(rows.T))
    n = len(variance)
    scaled = np.sqrt(n) * variance / np.linalg.norm(variance)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    in_use = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return float((n * in_use - 1) / (n - 1))


def test_isotropy_of_many_rows_is_the_paper_s_score() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20_000, 10)) * np.linspace(0.2, 2, 10) + 3
    assert isotropy(torch.from_numpy(rows)) == pytest.approx(iso_score(rows), abs=2e-3)


@pytest.mark.parametrize("width", [10, 64])
def test_isotropy_does_not_depend_on_the_number_of_captions(width: int) -> None:
    many = torch.from_numpy(random_unit(6000, width))
    cone = many * torch.linspace(0.1, 1, width)
    for rows in (many, cone):
        few = np.mean([isotropy(rows[start : start + 40]) for start in range(0, 4000, 40)])
        assert few == pytest.approx(isotropy(rows), abs=0.03)
    # The plain score takes the lack of captions for a lack of directions.
    assert iso_score(many[:40].numpy()) < 0.8
    assert isotropy(cone) < 0.9 * isotropy(many)


def test_isotropy_of_a_line_and_of_a_point_is_zero() -> None:
    line = torch.linspace(-1, 1, 50)[:, None] * torch.eye(8)[:1]
    assert isotropy(line) == pytest.approx(0, abs=0.01)
    assert isotropy(torch.ones(50, 8) / 8**0.5) == 0.0


def test_uniformity_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_unit(90, 6)
    distance = np.linalg.norm(rows[:, None].astype(float) - rows[None], axis=2)
    pairs = np.triu_indices(90, 1)
    expected = np.log(np.exp(-2 * distance[pairs] ** 2).mean())
    assert uniformity(torch.from_numpy(rows)) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(geometry, "_BLOCK", 1000)  # blocks of 11 rows, the last one shorter
    assert uniformity(torch.from_numpy(rows)) == pytest.approx(expected, abs=1e-6)


def test_uniformity_of_many_captions_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_unit(400, 6)
    exact = measured({"en": rows}).metrics["geometry/s/en/uniformity"]
    monkeypatch.setattr(geometry, "MOST_FOR_UNIFORMITY", 300)
    results = measured({"en": rows})
    assert results.counts["geometry/s/en/uniformity"] == 300
    drawn = results.metrics["geometry/s/en/uniformity"]
    assert drawn == measured({"en": rows}).metrics["geometry/s/en/uniformity"] != exact
    assert drawn == pytest.approx(exact, abs=0.02)


def test_captions_on_their_pictures() -> None:
    rows = random_unit(30, 6)
    results = measured({"en": rows, "sw": -rows}, rows)
    assert results.metrics["geometry/s/en/alignment"] == pytest.approx(0)
    assert results.metrics["geometry/s/sw/alignment"] == pytest.approx(4)
    assert results.metrics["geometry/s/mean/alignment"] == pytest.approx(2)
    assert results.metrics["geometry/s/en/modality_gap"] == pytest.approx(0)
    expected = 2 * np.linalg.norm(rows.mean(0))
    assert results.metrics["geometry/s/sw/modality_gap"] == pytest.approx(expected, abs=1e-6)
    assert results.counts["geometry/s/mean/alignment"] == 60
    assert set(results.ci95) == {"geometry/s/en/alignment", "geometry/s/sw/alignment"}


def test_only_pictures_with_captions_of_the_language_count() -> None:
    rows = random_unit(30, 6)
    results = measured({"en": rows, "sw": rows[:10]}, rows)
    assert results.metrics["geometry/s/sw/modality_gap"] == pytest.approx(0, abs=1e-7)


def test_a_collapsed_model_is_aligned_but_neither_isotropic_nor_uniform() -> None:
    point = np.tile(unit(np.ones((1, 6))), (20, 1))
    metrics = measured({"en": point}, point).metrics
    parts = {name.split("/")[3]: value for name, value in metrics.items()}
    assert parts == pytest.approx(
        {"isotropy": 0, "modality_gap": 0, "alignment": 0, "uniformity": 0}, abs=1e-6
    )


def test_few_captions_and_no_numbers() -> None:
    rows = random_unit(20, 6)
    assert measured({"en": rows[:3]}).metrics == {}
    names = measured({"en": rows, "sw": rows[:3]}).metrics
    assert {name.split("/")[2] for name in names} == {"en", "mean"}
    broken = measured({"en": np.full((20, 6), np.nan, np.float32)}).metrics
    assert np.isfinite(list(broken.values())).all()
