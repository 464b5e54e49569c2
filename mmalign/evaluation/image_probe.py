"""Probes of image embeddings: can a linear classifier, or the nearest training images, tell the classes?

    training images -> embeddings -> logistic regression, or a vote of the nearest -+
    test images     -> embeddings --------------------------------------------------+-> accuracy

    probe/<set>/<linear or knn>/accuracy
    probe/<set>/<linear or knn>/mean_per_class_recall     every class of the test images counts alike

As in CLIP_benchmark the features are the embeddings themselves, at unit length. The strength of the
regularisation is searched as in CLIP (arXiv 2103.00020, appendix A.3), on training images that are held out.

Shapes: N training and M test images, D dimensions.
"""

import hashlib
import warnings
from collections import Counter
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from mmalign.core import distributed
from mmalign.core.config import Section
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.evaluation.class_images import (
    LabelledImages,
    draw_per_class,
    encode_labelled,
    images_of_folder,
)
from mmalign.evaluation.measured import SetName
from mmalign.evaluation.nearest import search
from mmalign.models.encoder import DualModel
from mmalign.results.metric_names import PROBE, MetricName
from mmalign.results.protocol import HOW
from mmalign.results.results import Results

# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    "{classifier}, on image embeddings of unit length. {training_images} training images and {test_images} "
    "test images of {classes} classes. mean_per_class_recall: the mean over the classes of the test images. "
    "Chance: always the most frequent class of the test images."
)
_LINEAR = (
    "Logistic regression with an L2 penalty (L-BFGS), whose C is the best on one in five training images of "
    "each class, then trained on all"
)
_KNN = "Majority of the {} nearest training images by cosine, of equals the first class by name"

# Of the power of ten.
_COARSE = range(-6, 7, 2)
_FINER = (1.0, 0.5)
_ITERATIONS = 1000


class ImageProbeConfig(Section):
    name: SetName
    train: str
    """Folder of training images in ImageNet's layout: one subfolder per class."""
    test: str
    """Folder of test images, with subfolders of the same names."""
    kind: Literal["linear", "knn"] = "linear"
    neighbours: pydantic.PositiveInt = 20
    """Of `knn`: how many training images vote."""
    pictures_per_class: pydantic.PositiveInt | None = None
    """At most so many training images of a class, drawn with `seed` (few-shot); none: all."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Also of the training images that choose C."""


def measure_image_probe(model: DualModel, config: ImageProbeConfig, results: Results) -> None:
    """Add accuracy and mean per-class recall to `results`. A collective.

    Raises:
        UserError: a folder without images, equal folders, a class that only the test images have, classes
            of one image each (no C can be chosen), embeddings that are not finite, or ranks that differ in
            files.
    """
    where = f"probe `{config.name}`"
    train, test = (images_of_folder(Path(folder)) for folder in (config.train, config.test))
    _check(train, test, config)
    rows = draw_per_class(train.classes, config.pictures_per_class, config.seed)
    train_ND = encode_labelled(model, train, rows)
    test_MD = encode_labelled(model, test, list(range(len(test.classes))))
    if not (np.isfinite(train_ND).all() and np.isfinite(test_MD).all()):
        raise UserError(f"{where}: the image embeddings hold NaN or infinity; check the model")
    class_N = np.array([train.classes[i] for i in rows])
    class_M = np.array(test.classes)
    fields: dict[str, Any] = {
        "classifier": _LINEAR if config.kind == "linear" else _KNN.format(config.neighbours),
        "training_images": len(rows),
        "test_images": len(class_M),
        "classes": len(set(train.classes)),
    }
    if config.pictures_per_class:
        fields["pictures_per_class"] = config.pictures_per_class
    if config.pictures_per_class or config.kind == "linear":
        fields["seed"] = config.seed
    if left_out := [*train.left_out, *test.left_out]:
        fields["not_used"] = left_out
    if config.kind == "linear":
        # The fit is the same on every rank: one makes it.
        found_M, fields["C"] = distributed.on_main(
            partial(linear_probe, train_ND, class_N, test_MD, config.seed, where)
        )
    else:
        found_M = nearest_classes(train_ND, class_N, test_MD, config.neighbours)
    name = MetricName(PROBE, config.name, None, (config.kind,), "accuracy")
    results.protocol[name.prefix] = {HOW: PROTOCOL, **fields}
    results.data[config.name] = hashlib.sha256(f"{train.sha256} {test.sha256}".encode()).hexdigest()
    counts = Counter(test.classes)
    hit_M, ids = (found_M == class_M).astype(np.float64), np.arange(len(class_M))
    results.add(name, hit_M, chance=max(counts.values()) / len(class_M), ids=ids)
    # The mean over classes of their means is the mean of the hits under these weights.
    weight_M = np.array([len(class_M) / len(counts) / counts[one] for one in test.classes])
    recall = replace(name, metric="mean_per_class_recall")
    results.add(recall, hit_M * weight_M, chance=1 / len(counts), ids=ids)


def linear_probe(
    train_ND: np.ndarray, class_N: np.ndarray, test_MD: np.ndarray, seed: int, where: str = "probe"
) -> tuple[np.ndarray, float]:
    """The class of each test row by logistic regression, (M,), and the C that was chosen.

    C runs over 1e-6, 1e-4, ..., 1e6, then by factors of 10 and of its root around the best one. Of equal
    accuracies on the held-out rows the smallest C counts, which regularises most.

    Raises:
        UserError: fewer than two classes, or none with two rows, so that none can be held out.
    """
    held_N = held_out(class_N, seed)
    if not held_N.any() or len(set(class_N)) < 2:
        raise UserError(
            f"{where}: a linear probe needs two classes, and two training images of a class to choose its "
            "regularisation; add images, raise `pictures_per_class`, or take `kind: knn`"
        )

    @cache
    def accuracy(exponent: float) -> float:
        fitted = _fit(train_ND[~held_N], class_N[~held_N], 10.0**exponent)
        return float((fitted.predict(train_ND[held_N]) == class_N[held_N]).mean())

    best: float = min(_COARSE, key=lambda one: (-accuracy(one), one))
    for step in _FINER:
        best = min((best - step, best, best + step), key=lambda one: (-accuracy(one), one))
    return _fit(train_ND, class_N, 10.0**best).predict(test_MD), 10.0**best


def held_out(class_N: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool: one in five rows of each class, at least one, but for classes of a single row."""
    rng, held_N = np.random.default_rng(seed), np.zeros(len(class_N), bool)
    for one in np.unique(class_N):
        rows = rng.permutation(np.flatnonzero(class_N == one))
        held_N[rows[: max(1, len(rows) // 5)] if len(rows) > 1 else []] = True
    return held_N


def nearest_classes(
    train_ND: np.ndarray, class_N: np.ndarray, test_MD: np.ndarray, neighbours: int
) -> np.ndarray:
    """(M,): the most frequent class of the nearest training rows by inner product; of equals the first."""
    classes, number_N = np.unique(class_N, return_inverse=True)
    _, index_MK = search(test_MD, train_ND, neighbours)
    votes = np.zeros((len(test_MD), len(classes)), np.int32)
    np.add.at(votes, (np.arange(len(test_MD))[:, None], number_N[index_MK]), 1)
    found: np.ndarray = classes[votes.argmax(1)]
    return found


def _fit(row_ND: np.ndarray, class_N: np.ndarray, strength: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # at a very large C the optimum is at infinity
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(row_ND, class_N)


def _check(train: LabelledImages, test: LabelledImages, config: ImageProbeConfig) -> None:
    where = f"probe `{config.name}`"
    for side, images in (("train", train), ("test", test)):
        distributed.must_agree(images.sha256, f"{where}: `{side}` images")
        for left_out in images.left_out:
            say(f"{where}, {side}: {left_out}")
    if train.sha256 == test.sha256:
        raise UserError(f"{where}: `train` and `test` hold the same files; name two folders")
    if unknown := sorted(set(test.classes) - set(train.classes)):
        near = get_close_matches(unknown[0], set(train.classes), n=1)
        raise UserError(
            f"{config.test}: a subfolder `{unknown[0]}`, of which {config.train} has no images; "
            + (f"did you mean `{near[0]}`?" if near else "remove it, or add training images")
        )
