"""The Pareto plot: the points of the front, and files that show every index."""

from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.report.pareto import front, write_pareto


def row(
    direction: str, index: str, recall: float, speed: float, threads: int = 1
) -> dict[str, Any]:
    return {
        "direction": direction,
        "index": index,
        "threads": threads,
        "recall@10": recall,
        "queries_per_second_median": speed,
        "bytes_per_vector": 516.4,
    }


ROWS = [
    row("text_to_image", "Flat", 1.0, 1000),
    row("text_to_image", "HNSW32,Flat", 0.8, 9000),
    row("text_to_image", "HNSW32,Flat", 0.95, 4000),
    row("text_to_image", "SQ8", 0.99, 1e9, threads=8),
    row("image_to_text", "Flat", 1.0, 1100),
    {"direction": "image_to_text", "index": "Odd", "refused": "no such index"},
]


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [(1.0, 10.0), (0.9, 5.0), (0.9, 30.0), (0.8, 20.0), (0.5, 90.0), (0.5, 90.0)]
    assert front(points) == [(1.0, 10.0), (0.9, 30.0), (0.5, 90.0)]


def test_files_are_written_twice_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_pareto(ROWS, 10, tmp_path / name)
    svg = (tmp_path / "a" / "pareto.svg").read_text(encoding="utf-8")
    assert svg == (tmp_path / "b" / "pareto.svg").read_text(encoding="utf-8")
    for words in ("HNSW32,Flat (516 bytes)", "Texts search images", "queries per second, 1 thread"):
        assert words in svg
    assert "SQ8" not in svg  # measured on more threads than the others
    assert "Odd" not in svg
    with Image.open(tmp_path / "a" / "pareto.png") as image:
        assert image.width > 1000
