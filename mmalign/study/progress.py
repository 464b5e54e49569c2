"""How far a study is: a live table of towers and methods on a terminal, a line a cell elsewhere."""

import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from mmalign.core.console import say
from mmalign.results.results import Results
from mmalign.study.cells import Cell


class ProgressTable:
    """Counts finished cells; to be used as a context."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._total = Counter((str(cell.tower), cell.method) for cell in cells)
        self._done: Counter[tuple[str, str]] = Counter()
        self._live: Any = None

    def __enter__(self) -> "ProgressTable":
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._draw(), refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def finished(self, cell: Cell, results: Results, seconds: float) -> None:
        """Note a cell."""
        self._done[str(cell.tower), cell.method] += 1
        if self._live is not None:
            self._live.update(self._draw())
            return
        count = f"{self._done.total()} of {self._total.total()}"
        say(f"{count}  {cell}: {_clean_mean(cell, results)}  ({seconds:.1f} s)")

    def _draw(self) -> Any:
        """Towers down, methods across, finished cells of all."""
        from rich import box
        from rich.table import Table

        towers = list(dict.fromkeys(tower for tower, _ in self._total))
        methods = list(dict.fromkeys(method for _, method in self._total))
        table = Table(
            box=box.SIMPLE_HEAD, title=f"{self._done.total()} of {self._total.total()} cells"
        )
        table.add_column("tower")
        for method in methods:
            table.add_column(method, justify="right")
        for tower in towers:
            counts = [
                f"{self._done[tower, method]}/{self._total[tower, method]}"
                if self._total[tower, method]
                else ""
                for method in methods
            ]
            table.add_row(tower, *counts)
        return table


def _clean_mean(cell: Cell, results: Results) -> str:
    """The clean primary metric, a mean over languages."""
    prefix = f"text/{cell.task}/mean/clean/"
    for name in results.metrics:
        if name.startswith(prefix) and name in results.chance:
            return f"{name.removeprefix(prefix)} {results.metrics[name]:.3f}"
    return "done"
