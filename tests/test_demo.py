"""The table at the end of the demo."""

import pytest

from mmalign.demo import _show
from mmalign.results.results import Results


def test_the_table_shows_every_mean_that_has_a_chance_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    results = Results("report", {})
    for name, value in (
        ("text/t/de/clean/accuracy", 0.5),
        ("text/t/sw/clean/accuracy", 0.25),
        ("text/t/mean/clean/accuracy", 0.375),
        ("text/t/mean/generalised/accuracy_same_language", 0.75),
        ("retrieval/s/mean/text_to_image/recall@5", 0.9),
    ):
        results.add(name, value, count=8, chance=0.125)
    results.add("text/t/mean/clean/macro_f1", 0.625, count=8)
    results.baselines["untrained"] = Results(
        "report", {}, metrics={"text/t/mean/clean/accuracy": 0.1}
    )
    _show(results)
    shown = capsys.readouterr().out
    (first,) = [line for line in shown.splitlines() if " clean accuracy " in line]
    for part in ("0.375", "0.250 (sw)", "0.100", "0.125"):
        assert part in first
    assert "accuracy_same_language" in shown and "0.750" in shown
    assert "macro_f1" not in shown and "recall@5" not in shown
