"""The table of a task of event pairs shows where the pairs stand."""

from mmalign.report.transfer_section import transfers
from mmalign.results.results import Results


def results_of(metrics: tuple[str, ...]) -> Results:
    results = Results("text/meci", {})
    for lang, value in (("mean", 0.25), ("da", 0.2), ("tr", 0.3)):
        for number, metric in enumerate(metrics):
            name = f"text/meci/{lang}/clean/{metric}"
            results.add(name, value + number / 100, count=103)
            results.ci95[name] = (value - 0.1, value + 0.1)
        results.chance[f"text/meci/{lang}/clean/{metrics[0]}"] = 0.1
    return results


def test_pairs_within_and_across_sentences_have_columns() -> None:
    (found,) = transfers(results_of(("f1", "f1_within", "f1_across", "precision")))
    assert (found.task, found.metric) == ("meci", "f1")
    assert [column.heading for column in found.table.columns] == [
        "clean",
        "clean, within a sentence",
        "clean, across sentences",
        "chance",
        "n",
    ]
    shown = [[one.value for one in cell] for cell in found.table.means[0].cells[:3]]
    assert shown == [[0.25], [0.26], [0.27]]
    assert [row.part for row in found.table.rows] == ["da", "tr"]


def test_other_tasks_have_none() -> None:
    (found,) = transfers(results_of(("accuracy",)))
    assert [column.heading for column in found.table.columns] == ["clean", "chance", "n"]
