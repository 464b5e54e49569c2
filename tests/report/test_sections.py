"""The declared sections: which metrics stand in which row and column, and what their charts show."""

from itertools import permutations
from typing import Any

from invented_run import SHA256

from mmalign.report.sections import measured_sections
from mmalign.results.results import Results


def invented(names: dict[str, float], counts: dict[str, int] | None = None) -> Results:
    results = Results(suite="invented", model={"sha256": SHA256})
    for name, value in names.items():
        results.add(name, value, count=(counts or {}).get(name, 30))
    return results


def only_section(results: Results) -> dict[str, Any]:
    """The one set of the one section that the results have."""
    ((_, (found,)),) = measured_sections(results, {}).items()
    return found


def test_many_languages_are_cut_to_the_forty_with_most_queries() -> None:
    languages = [f"{a}{b}" for a in "abcdef" for b in "nopqrstuv"][:44]
    small = set(languages[:4])
    names = {f"alignment/set/{a}-{b}/bitext@1": 0.5 for a, b in permutations(languages, 2)}
    names["alignment/set/mean/bitext@1"] = 0.5
    counts = {name: 3 for name in names if set(name.split("/")[2].split("-")) & small}
    found = only_section(invented(names, counts))
    assert found["chart"].count("data-metric=") == 40 * 39
    assert not any(f">{one}</text>" in found["chart"] for one in small)
    assert found["table"].rows == [] and found["left_out"] == 44 * 43
    assert [row.name for row in found["table"].means] == ["mean"]


def test_few_hits_make_recall_at_ten_the_tile() -> None:
    head = "retrieval/set/mean/text_to_image/recall"
    few = only_section(invented({f"{head}@1": 0.09, f"{head}@10": 0.4}))
    many = only_section(invented({f"{head}@1": 0.1, f"{head}@10": 0.4}))
    assert [tile[1] for one in (few, many) for tile in one["tiles"]] == ["recall@10", "recall@1"]


def test_a_text_task_shows_its_primary_metric_and_where_events_are() -> None:
    metrics = ("f1", "f1_within", "f1_across", "precision")
    variants = [f"text/meci/{lang}/clean/{one}" for lang in ("mean", "da", "tr") for one in metrics]
    results = invented(dict.fromkeys([*variants, "text/meci/mean/generalised/f1"], 0.25))
    results.chance["text/meci/mean/clean/f1"] = 0.1
    table = only_section(results)["table"]
    headings = ["clean", "clean, across sentences", "clean, within sentences"]
    assert table.columns == [("f1", heading) for heading in headings]
    assert [row.part for row in (*table.means, *table.rows)] == ["mean", "da", "tr"]
    assert table.last == ["chance", "count"]


def test_a_perturbed_score_stands_beside_the_clean_one_of_its_rows_and_their_number() -> None:
    metrics = {"clean/accuracy": 0.8, "typos-2/accuracy": 0.5, "typos-2/accuracy_clean": 0.7}
    metrics |= {"typos-2/changed_share": 0.4, "typos-2/accuracy_worst": 0.1}
    results = invented({f"text/category/sw/{name}": value for name, value in metrics.items()})
    results.add("text/category/mean/clean/accuracy", 0.8, 30, chance=0.1)
    table = only_section(results)["table"]
    columns = {
        heading: cell for (_, heading), cell in zip(table.columns, table.rows[0].cells, strict=True)
    }
    assert {heading: one.shown() for heading, one in columns.items() if one} == {
        "clean": "80.0",
        "typos-2": "50.0",
        "typos-2, clean, same rows": "70.0",
        "typos-2, rows changed": "12 of 30",
    }


def test_probes_are_rows_with_their_chance() -> None:
    results = invented({f"probe/flowers/{kind}/accuracy": 0.4 for kind in ("linear", "knn")})
    results.add("probe/flowers/knn/mean_per_class_recall", 0.3, 30, chance=0.1)
    table = only_section(results)["table"]
    assert [row.name for row in table.rows] == ["logistic regression", "nearest images"]
    assert table.columns == [("", "accuracy"), ("", "mean per class recall")]
    assert [one.shown() if one else None for one in table.rows[1].cells] == ["40.0", "30.0"]


def lexical(injected: bool) -> Results:
    layers, splits = ("0", "1", "10", "2", "feature"), ("trained", "held_out")
    names = {
        f"{measure}/words/{lang}/{layer}/{split}/{metric}{end}": 0.1 * number
        for measure in ("lexical", "injected")[: 1 + injected]
        for lang in ("sw", "mean")
        for number, layer in enumerate(layers)
        for split in splits
        for metric in ("similarity", "similarity_gain", "precision@1")
        for end in ("", "_centred")
    }
    return invented(names)


def test_words_by_layer_compare_as_it_is_centred_and_injected() -> None:
    found = only_section(lexical(injected=True))
    table = found["table"]
    assert [row.name for row in table.rows] == [
        *("layer 0", "layer 1", "layer 2", "layer 10"),
        "output of the model (feature)",
    ]
    assert table.groups == {"cosine gain": 6, "precision@1": 6}
    at = table.columns.index(("precision@1", "injected, held out"))
    assert table.rows[3].cells[at].name == "injected/words/mean/10/held_out/precision@1"
    # One point per cell; cosines are not in percent.
    assert found["chart"].count("data-metric=") == 5 * 12
    assert "10, as it is, trained: 0.200 · n = 30" in found["chart"]
    assert "10, injected, trained: 20.0 % · n = 30" in found["chart"]
    alone = only_section(lexical(injected=False))
    assert alone["table"].groups == {"cosine gain": 4, "precision@1": 4}
    assert "injected" not in alone["chart"]
    assert alone["chart"] == only_section(lexical(injected=False))["chart"]  # the same bytes
