"""The tiles at the head of the page: the means of every set and task, as far as they were measured.

Results -> words and metric of each wished tile -> those that were measured, with their worst five
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mmalign.report.measurement import Measurement, look_up, protocol_of
from mmalign.report.transfer_section import UNSEEN, primary_metric
from mmalign.results.metric_names import MEAN, WORST5, languages, subjects
from mmalign.results.results import Results

DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
# Below this mean recall@1 the first hit says little, and the headline is recall@10.
_FEW_HITS = 0.1


@dataclass(frozen=True)
class Tile:
    """One headline number, the words around it, and the mean of the five worst languages beside it."""

    label: str
    metric: str
    subject: str
    measured: Measurement
    worst: Measurement | None


def headline(results: Results) -> list[Tile]:
    """The tiles in the order of the page."""
    wanted = (*_retrieval(results), *_alignment(results), *_zero_shot(results), *_transfer(results))
    tiles = []
    for label, metric, subject, name in wanted:
        measured = look_up(results, name)
        if measured:
            worst = look_up(results, name.replace(f"/{MEAN}/", f"/{WORST5}/", 1))
            tiles.append(Tile(label, metric, subject, measured, worst))
    return tiles


def headline_k(results: Results, subject: str) -> int:
    """1, or 10 where the first hit is too rare to compare models by."""
    first = results.metrics.get(f"retrieval/{subject}/{MEAN}/text_to_image/recall@1", 1.0)
    has_tenth = f"retrieval/{subject}/{MEAN}/text_to_image/recall@10" in results.metrics
    return 10 if first < _FEW_HITS and has_tenth else 1


def _retrieval(results: Results) -> Iterator[tuple[str, str, str, str]]:
    for subject in subjects(results.metrics, "retrieval"):
        name, protocol = protocol_of(subject)
        k = headline_k(results, subject)
        spoken = len(languages(results.metrics, "retrieval", subject))
        over = f"{name}, {protocol}, mean of {spoken} languages"
        for direction, words in DIRECTIONS.items():
            metric = f"retrieval/{subject}/{MEAN}/{direction}/recall@{k}"
            yield words, f"recall@{k}", over, metric


def _alignment(results: Results) -> Iterator[tuple[str, str, str, str]]:
    for subject in subjects(results.metrics, "alignment"):
        over = f"{subject}, mean of all ordered pairs of languages"
        yield "caption to caption", "bitext@1", over, f"alignment/{subject}/{MEAN}/bitext@1"


def _zero_shot(results: Results) -> Iterator[tuple[str, str, str, str]]:
    for subject in subjects(results.metrics, "zero_shot"):
        spoken = len(languages(results.metrics, "zero_shot", subject))
        over = f"{subject}, mean of {spoken} languages"
        metric = f"zero_shot/{subject}/{MEAN}/accuracy@1"
        yield "picture to class", "accuracy@1", over, metric


def _transfer(results: Results) -> Iterator[tuple[str, str, str, str]]:
    for task in subjects(results.metrics, "text"):
        unseen = task.partition("@")[0].endswith(UNSEEN)
        over = f"{task}, " + ("items never trained on" if unseen else "languages without labels")
        metric = primary_metric(results, task)
        yield "zero-shot", metric, over, f"text/{task}/{MEAN}/clean/{metric}"
