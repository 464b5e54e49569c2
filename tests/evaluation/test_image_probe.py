"""Probes of image embeddings agree with scikit-learn, and say what cannot be probed."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.evaluation.image_probe import (
    ImageProbeConfig,
    held_out,
    linear_probe,
    measure_image_probe,
    nearest_classes,
)
from mmalign.evaluation.suite import SuiteConfig, means_of, run_suite
from mmalign.results.comparison import compare
from mmalign.results.protocol import sentence
from mmalign.results.results import Results


class Pixels:
    """The embedding of an image is its top left pixel, at unit length."""

    facts: dict[str, Any] = {"path": "pixels", "sha256": "0"}  # noqa: RUF012
    note = ""
    scale = 1.0
    squeeze = 1.0

    def encode_images(self, images: Iterable[bytes], batch_size: int = 4) -> np.ndarray:
        rows = [Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0)) for image in images]
        return unit(np.array(rows) * (1, self.squeeze, 1)) * np.float32(self.scale)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 4) -> np.ndarray:
        raise AssertionError("a probe reads no texts")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write(folder: Path, images: dict[str, list[tuple[int, int, int]]]) -> str:
    for one, pixels in images.items():
        (folder / one).mkdir(parents=True)
        for number, pixel in enumerate(pixels):
            Image.new("RGB", (2, 2), pixel).save(folder / one / f"{number}.png")
    return str(folder)


def cloud(seed: int, sizes: dict[str, int]) -> dict[str, list[tuple[int, int, int]]]:
    """Pixels of classes that overlap."""
    rng, centres = np.random.default_rng(seed), {"a": (200, 60, 60), "b": (60, 200, 60)}
    return {
        one: [
            tuple(map(int, np.clip(rng.normal(centres.get(one, (90, 90, 200)), 60), 1, 255)))
            for _ in range(size)
        ]
        for one, size in sizes.items()
    }


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    return {
        "train": write(tmp_path / "train", cloud(0, {"a": 30, "b": 20, "c": 25})),
        "test": write(tmp_path / "test", cloud(1, {"a": 12, "b": 5, "c": 20})),
    }


def pixels(folder: str) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(Path(folder).glob("*/*.png"))
    return Pixels().encode_images([file.read_bytes() for file in files]), np.array(
        [file.parent.name for file in files]
    )


def measured(model: Any = None, **tree: Any) -> Results:
    results = Results(suite="x", model={})
    config = validate(ImageProbeConfig, {"name": "s", **tree}, "x.yaml")
    measure_image_probe(model or Pixels(), config, results)
    return results


def test_a_linear_probe_is_that_of_scikit_learn(folders: dict[str, str]) -> None:
    results = measured(**folders)
    rows, classes = pixels(folders["train"])
    test, wanted = pixels(folders["test"])
    strength = results.protocol["probe/s"]["C"]
    found = LogisticRegression(C=strength, max_iter=1000).fit(rows, classes).predict(test)
    assert results.metrics == pytest.approx(
        {
            "probe/s/linear/accuracy": (found == wanted).mean(),
            "probe/s/linear/mean_per_class_recall": balanced_accuracy_score(wanted, found),
        },
        abs=1e-6,
    )
    assert 0.5 < results.metrics["probe/s/linear/accuracy"] < 1
    assert set(results.counts.values()) == {37}
    assert results.chance == pytest.approx(
        {"probe/s/linear/accuracy": 20 / 37, "probe/s/linear/mean_per_class_recall": 1 / 3}
    )
    for name, (low, high) in results.ci95.items():
        assert low < results.metrics[name] < high
    assert results.ci95.keys() == results.metrics.keys()


def test_the_regularisation_is_the_best_on_held_out_rows(folders: dict[str, str]) -> None:
    rows, classes = pixels(folders["train"])
    held = held_out(classes, 0)
    assert [int(held[classes == one].sum()) for one in "abc"] == [6, 4, 5]
    assert held.tolist() == held_out(classes, 0).tolist() != held_out(classes, 1).tolist()
    _, strength = linear_probe(rows, classes, rows[:1], 0)

    def accuracy(exponent: float) -> float:
        fitted = LogisticRegression(C=10.0**exponent, max_iter=1000)
        fitted.fit(rows[~held], classes[~held])
        return float(fitted.score(rows[held], classes[held]))

    # By hand: the coarse grid, then steps of 10 and of its root around the best.
    best = max(range(-6, 7, 2), key=accuracy)
    for step in (1.0, 0.5):
        best = max((best - step, best, best + step), key=accuracy)
    assert strength == pytest.approx(10.0**best)
    assert accuracy(best) > accuracy(-6)


@pytest.mark.parametrize("neighbours", [1, 5, 1000])
def test_neighbours_vote_as_in_scikit_learn(neighbours: int) -> None:
    rng = np.random.default_rng(neighbours)
    rows, test = unit(rng.normal(size=(300, 8))), unit(rng.normal(size=(100, 8)))
    classes = rng.choice(["x", "y", "z", "v"], 300)
    k = min(neighbours, 300)
    judge = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(rows, classes)
    found = nearest_classes(rows, classes, test, neighbours)
    assert found.tolist() == judge.predict(test).tolist()


def test_equal_votes_go_to_the_first_class() -> None:
    rows = unit(np.array([[1, 0.1], [1, -0.1], [0, 1], [0, -1]]))
    classes = np.array(["b", "a", "c", "c"])
    assert nearest_classes(rows, classes, unit(np.array([[1.0, 0.0]])), 2).tolist() == ["a"]


def test_neighbours_of_folders(folders: dict[str, str]) -> None:
    results = measured(**folders, kind="knn", neighbours=3)
    rows, classes = pixels(folders["train"])
    test, wanted = pixels(folders["test"])
    judge = KNeighborsClassifier(3, metric="cosine", algorithm="brute").fit(rows, classes)
    assert results.metrics["probe/s/knn/accuracy"] == pytest.approx(
        judge.score(test, wanted), abs=1e-6
    )
    words = sentence(results.protocol["probe/s"])
    assert "Majority of the 3 nearest training images" in words and "75 training images" in words
    assert "seed" not in results.protocol["probe/s"]


def test_few_shots_are_drawn_by_seed(folders: dict[str, str]) -> None:
    few = [measured(**folders, pictures_per_class=4, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    fields = few[0].protocol["probe/s"]
    assert (fields["training_images"], fields["pictures_per_class"], fields["seed"]) == (12, 4, 0)


def test_classes_without_test_images_may_be_predicted(folders: dict[str, str]) -> None:
    for file in (Path(folders["test"]) / "b").iterdir():
        file.unlink()
    (Path(folders["test"]) / "b" / "notes.txt").write_text("none")
    results = measured(**folders)
    assert set(results.counts.values()) == {32}
    assert results.chance["probe/s/linear/mean_per_class_recall"] == 1 / 2
    rows, classes = pixels(folders["train"])
    test, wanted = pixels(folders["test"])
    strength = results.protocol["probe/s"]["C"]
    found = LogisticRegression(C=strength, max_iter=1000).fit(rows, classes).predict(test)
    by_class = [(found == wanted)[wanted == one].mean() for one in "ac"]
    assert results.metrics["probe/s/linear/mean_per_class_recall"] == pytest.approx(
        np.mean(by_class), abs=1e-6
    )
    assert "classes without images: 1 (b)" in sentence(results.protocol["probe/s"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"test": "train"}, "probe `s`: `train` and `test` hold the same files; name two folders"),
        ({"test": "none"}, "none: no such folder"),
        ({"test": "other"}, r"a subfolder `aa`, of which .*train has no images; did you mean `a`"),
        ({"pictures_per_class": 1}, "two training images of a class to choose its regularisation"),
        ({"kind": "svm"}, "`kind` is 'svm'"),
    ],
)
def test_mistakes_are_one_sentence(
    folders: dict[str, str], tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    write(tmp_path / "other", {"aa": [(1, 2, 3)]})
    if "test" in change:
        change = {"test": str(tmp_path / change["test"])}
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        measured(**{**folders, **change})
    assert caught.match(complaint)


def test_embeddings_that_are_not_finite_are_refused(folders: dict[str, str]) -> None:
    model = Pixels()
    model.scale = np.nan
    with pytest.raises(UserError, match="the image embeddings hold NaN or infinity"):
        measured(model, **folders)


def suite_of(folders: dict[str, str], *kinds: str) -> SuiteConfig:
    tree = {
        "name": "probes",
        "probe": [{"name": f"pixels_{kind}", "kind": kind, **folders} for kind in kinds],
    }
    return validate(SuiteConfig, tree, "x.yaml")


def test_a_suite_probes_and_two_models_are_compared(
    folders: dict[str, str], tmp_path: Path
) -> None:
    config, peer = suite_of(folders, "linear", "knn"), Pixels()
    peer.squeeze = 0.01
    ours = run_suite(config, Pixels(), tmp_path / "ours", {})
    theirs = run_suite(config, peer, tmp_path / "theirs", {})
    strengths = [one.protocol["probe/pixels_linear"]["C"] for one in (ours, theirs)]
    assert strengths[0] != strengths[1]
    assert means_of(ours) == ours.metrics
    # C is of the model: it does not make two results incomparable.
    table = compare([tmp_path / one / "results.json" for one in ("ours", "theirs")])
    assert {row.metric for row in table.rows} == set(ours.metrics)
    with pytest.raises(UserError, match="two sets have the same name"):
        suite_of(folders, "knn", "knn")
