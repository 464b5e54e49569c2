"""What is compared was measured alike; differences are those of the same queries."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.results.comparison import (
    Comparison,
    Difference,
    Row,
    check_target,
    compare,
    csv_text,
    find_results,
    markdown,
    write_comparison,
)
from mmalign.results.results import Results
from mmalign.results.seeds import mean_over_seeds

LANGUAGES = ("de", "en", "fr", "it", "sw", "tr", "zh")
IMAGES = 60
DIRECTION = "text_to_image"
SUFFIX = f"{DIRECTION}/recall@1"
Save = Callable[[str, Results], Path]


def measured(share: float, ids: bool = True, seed: int = 0) -> Results:
    """Hits of every language on the same images: a model with a larger share finds all that others find."""
    results = Results("suite", {"path": "x", "sha256": f"{share:.2f}".ljust(64, "0")})
    results.protocol["retrieval/s"] = {"how": "{k} of them", "k": 3, "kept_step": len(str(share))}
    results.data["s"] = "a" * 64
    rng = np.random.default_rng(seed)
    hard = rng.random(IMAGES)
    hits = {
        lang: (0.7 * hard + 0.3 * rng.random(IMAGES) < share).astype(float) for lang in LANGUAGES
    }
    images = np.arange(IMAGES) if ids else None
    for lang, one in hits.items():
        results.add(f"retrieval/s/{lang}/{SUFFIX}", one, chance=0.1, ids=images)
    of_all = np.concatenate(list(hits.values()))
    again = np.tile(np.arange(IMAGES), len(LANGUAGES)) if ids else None
    results.add(f"retrieval/s/all/{SUFFIX}", of_all, chance=0.1, ids=again)
    means = {lang: one.mean() for lang, one in hits.items()}
    aggregates = {
        "mean": list(means.values()),
        "worst5": sorted(means.values())[:5],
        "family:Romance": [means["fr"], means["it"]],
    }
    for part, values in aggregates.items():
        name = f"retrieval/s/{part}/{SUFFIX}"
        results.add(name, float(np.mean(values)), count=7 * IMAGES, chance=0.1)
    return results


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    def save(name: str, results: Results) -> Path:
        results.write(tmp_path / name / "results.json")
        return tmp_path / name

    return save


def row(comparison: Comparison, part: str) -> Row:
    return next(r for r in comparison.rows if r.metric == f"retrieval/s/{part}/{SUFFIX}")


def test_differences_are_those_of_the_values(saved: Save) -> None:
    first, second, third = measured(0.3), measured(0.5), measured(0.3)
    paths = [saved("a", first), saved("b", second), saved("c", third)]
    comparison = compare(paths)
    assert comparison.models == ("a", "b", "c")
    assert comparison.sha256[1].startswith("0.50")
    parts = [r.metric.split("/")[2] for r in comparison.rows]
    assert parts == ["all", "mean", "worst5"]
    for one in comparison.rows:
        better, same = one.differences
        assert one.values == tuple(x.metrics[one.metric] for x in (first, second, third))
        assert better.value == pytest.approx(one.values[1] - one.values[0])
        assert better.ci95 and better.ci95[0] < better.value < better.ci95[1]
        assert better.p_holm is not None and better.p is not None
        assert better.p <= better.p_holm < 0.05
        # Not p = 1 either: nothing varies, so nothing was tested.
        assert same == Difference(0.0, note="no difference can be told")
    assert "no difference can be told" in markdown(comparison)


def test_a_difference_of_two_queries_by_hand(saved: Save) -> None:
    """Of 4 queries the second model finds one more: a draw has none of it with (3/4)^4."""
    paths = []
    for name, hits in (("a", [1, 0, 0, 1]), ("b", [1, 1, 0, 1])):
        results = Results("suite", {})
        results.add(f"retrieval/s/en/{SUFFIX}", np.array(hits, float))
        paths.append(saved(name, results))
    only = compare(paths).rows[0]
    (difference,) = only.differences
    assert (only.values, only.count, only.chance) == ((0.5, 0.75), 4, None)
    assert difference.value == 0.25 and difference.ci95 == (0.0, 0.75)
    assert difference.p == pytest.approx(2 * 0.75**4, abs=0.02)


def test_languages_are_shown_on_request(saved: Save) -> None:
    paths = [saved("a", measured(0.3)), saved("b", measured(0.5))]
    comparison = compare(paths, languages=True)
    assert compare(paths, languages=True) == comparison  # always the same draws
    parts = [r.metric.split("/")[2] for r in comparison.rows]
    assert parts == ["all", "mean", "worst5", "family:Romance", *LANGUAGES]
    for part in ("family:Romance", "sw"):
        one = row(comparison, part).differences[0]
        assert one.p_holm is not None and one.p is not None and one.p_holm >= one.p


def test_images_are_drawn_together_where_ids_are_known(
    saved: Save,
) -> None:
    known = compare([saved("a", measured(0.4)), saved("b", measured(0.5))])
    unknown = compare([saved("c", measured(0.4, ids=False)), saved("d", measured(0.5, ids=False))])

    def width(comparison: Comparison) -> float:
        interval = row(comparison, "mean").differences[0].ci95
        assert interval is not None
        return interval[1] - interval[0]

    assert width(known) > 1.3 * width(unknown)
    assert any("drawn together, in every language" in words for words in known.words)
    assert any("intervals of means over languages may be too narrow" in w for w in unknown.words)


def test_a_mean_over_other_languages_has_no_interval(
    saved: Save,
) -> None:
    """The mean of a text task may leave out the language of the labels."""
    results = [measured(0.3), measured(0.5)]
    for one in results:
        one.metrics[f"retrieval/s/mean/{SUFFIX}"] += 0.01
    comparison = compare([saved(name, one) for name, one in zip("ab", results, strict=True)])
    assert row(comparison, "mean").differences[0].ci95 is None
    assert row(comparison, "worst5").differences[0].ci95 is not None
    assert any(words.startswith("Differences without an interval") for words in comparison.words)


def test_results_without_queries_or_checksums_are_compared_with_a_word(saved: Save) -> None:
    results = [measured(0.3), measured(0.5)]
    for one in results:
        one.data.clear()
    paths = [saved(name, one) for name, one in zip("ab", results, strict=True)]
    assert any("was recorded for s: that they" in words for words in compare(paths).words)
    (paths[0] / "queries.npz").unlink()
    comparison = compare(paths)
    assert {one.ci95 for r in comparison.rows for one in r.differences} == {None}
    assert comparison.words[0] == "Differences are to a."


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda one: one.data.update(s="b" * 64),
            "was measured on other data than in .*manifest bbbbbbbbbbbb, not aaaaaaaaaaaa",
        ),
        (
            lambda one: one.data.clear(),
            "other data than in .*manifest not recorded, not aaaaaaaaaaaa",
        ),
        (
            lambda one: one.protocol["retrieval/s"].update(k=4),
            r"was measured by another protocol than in .*results.json \(`k` is 4, not 3\)",
        ),
        (
            lambda one: one.protocol.update({"retrieval/s": {"how": "in another way"}}),
            r"was measured by another protocol than in .*\(see `protocol` in both files",
        ),
        (
            lambda one: one.ids.update({f"retrieval/s/de/{DIRECTION}": np.arange(IMAGES) + 1}),
            "was measured on other rows",
        ),
        (
            lambda one: one.add(f"retrieval/s/de/{SUFFIX}", np.ones(IMAGES + 1)),
            f"was measured on {IMAGES + 1} queries, in .* on {IMAGES}; measure both",
        ),
    ],
)
def test_what_was_not_measured_alike_is_refused(
    saved: Save, change: Callable[[Results], None], reason: str
) -> None:
    other = measured(0.5)
    change(other)
    paths = [saved("a", measured(0.3)), saved("b", measured(0.4)), saved("c", other)]
    with pytest.raises(UserError, match=reason) as failure:
        compare(paths)
    assert f"retrieval/s/de/{SUFFIX}" in str(failure.value)


def test_nothing_in_common_is_refused(saved: Save) -> None:
    other = Results("suite", {}, metrics={"text/t/en/clean/accuracy": 0.5}, counts={})
    other.counts["text/t/en/clean/accuracy"] = 4
    with pytest.raises(UserError, match="no metric in common"):
        compare([saved("a", measured(0.3)), saved("b", other)])
    with pytest.raises(UserError, match="two models or more"):
        compare([saved("a", measured(0.3))])


def test_a_run_is_found_by_its_suite(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="no results; measure it with `mmalign eval SUITE"):
        find_results(run, None)
    measured(0.3).write(run / "eval" / "small" / "results.json")
    measured(0.3).write(run / "results.json")
    (run / "queries.npz").unlink()  # the report's results have no queries
    (run / "config.yaml").touch()
    assert find_results(run, None) == run / "eval" / "small" / "results.json"
    measured(0.3).write(run / "eval" / "big" / "results.json")
    with pytest.raises(UserError, match="has several suites; give --suite with one of big, small"):
        find_results(run, None)
    assert find_results(run, "big") == run / "eval" / "big" / "results.json"
    with pytest.raises(UserError, match="has no suite `huge`; give --suite with one of big, small"):
        find_results(run, "huge")
    assert find_results(run / "results.json", "big") == run / "results.json"
    measured(0.5).write(tmp_path / "peer" / "results.json")
    assert compare([run, tmp_path / "peer"], "big").models == ("run", "peer")
    twins = [tmp_path / "x" / "same", tmp_path / "y" / "same"]
    for twin in twins:
        measured(0.3).write(twin / "results.json")
    assert compare(twins).models == tuple(map(str, twins))


def test_the_table_in_three_formats(saved: Save, tmp_path: Path) -> None:
    comparison = compare([saved("a", measured(0.3)), saved("b", measured(0.5))])
    for suffix in (".json", ".csv", ".md"):
        write_comparison(comparison, tmp_path / "out" / f"table{suffix}")
    tree = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    mean, of_json = row(comparison, "mean"), tree["rows"][1]
    assert of_json["metric"] == mean.metric and of_json["values"] == list(mean.values)
    assert of_json["differences"][0]["p_holm"] == mean.differences[0].p_holm
    lines = list(csv.DictReader(csv_text(comparison).splitlines()))
    assert [line["metric"] for line in lines] == [r.metric for r in comparison.rows]
    assert float(lines[1]["b - a"]) == mean.differences[0].value
    assert float(lines[1]["b - a, low"]) == mean.differences[0].ci95[0]  # type: ignore[index]
    text = markdown(comparison)
    assert text == (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| metric | n | chance | a | b | b - a |" in text
    assert (
        f"| {mean.values[0]:.4f} | {mean.values[1]:.4f} | {mean.differences[0].value:+.4f} ("
        in text
    )
    with pytest.raises(UserError, match=r"give --out a file that ends in \.json, \.csv, \.md"):
        check_target(tmp_path / "table.html")


def test_what_is_not_a_number_is_compared_and_written(saved: Save, tmp_path: Path) -> None:
    ours, theirs = measured(0.3), measured(0.5)
    for results in (ours, theirs):
        results.add("text/t/mean/clean/spearman", float("nan"), count=9)
    comparison = compare([saved("a", ours), saved("b", theirs)])
    one = next(r for r in comparison.rows if "spearman" in r.metric)
    assert one.differences[0].p is None
    others = [d for r in comparison.rows if r != one for d in r.differences]
    assert all(d.p_holm is not None and d.p_holm < 0.05 for d in others)
    write_comparison(comparison, tmp_path / "c.json")
    assert "NaN" not in (tmp_path / "c.json").read_text()


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.md").mkdir()
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "c.md", tmp_path / "file" / "c.csv"):
        with pytest.raises(UserError, match=r"c\.(md|csv): "):
            check_target(target)


def of_seeds(shares: tuple[float, ...], seed: int) -> Results:
    """A text model fine-tuned with several seeds: the mean is over other languages than English."""
    runs, ids = [], np.arange(40)
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(9).random(40)
    for number, share in enumerate(shares):
        how = {"how": "Step {kept_step}.", "kept_step": number, "mean_over": ["de", "sw"]}
        run = Results("s", {"path": "x", "seed": number}, protocol={"text/t": how})
        hits = {
            lang: (0.8 * hard + 0.2 * rng.random(40) < share).astype(float)
            for lang in ("en", "de", "sw")
        }
        for lang, one in hits.items():
            run.add(f"text/t/{lang}/clean/accuracy", one, ids=ids)
        mean = float(np.mean([hits["de"], hits["sw"]]))
        run.add("text/t/mean/clean/accuracy", mean, count=80)
        run.data["t"] = "d" * 64
        runs.append(run)
    return mean_over_seeds(runs)


def test_two_text_models_of_several_seeds_are_compared(saved: Save) -> None:
    """Their kept steps and dev scores differ, and their rows lie in another order."""
    first, second = of_seeds((0.4, 0.5, 0.45), 0), of_seeds((0.7, 0.8, 0.75, 0.72), 1)
    for name in second.values:
        second.values[name] = second.values[name][:, ::-1]
    second.ids = {group: ids[::-1] for group, ids in second.ids.items()}
    paths = [saved("a", first), saved("b", second)]
    (mean,) = compare(paths).rows
    (difference,) = mean.differences
    assert mean.metric == "text/t/mean/clean/accuracy"
    assert difference.value == pytest.approx(0.3, abs=0.1)
    assert difference.ci95 and 0 < difference.ci95[0] < difference.value < difference.ci95[1]
    assert any("queries and of seeds" in words for words in compare(paths).words)
    # The same items with less agreement between the seeds tell less.
    loud = of_seeds((0.4, 0.95, 0.3), 0)
    (wider,) = compare([saved("c", loud), paths[1]]).rows[0].differences
    assert wider.ci95 and np.ptp(wider.ci95) > 1.5 * np.ptp(difference.ci95)


def test_a_protocol_of_version_0_1_0_is_its_sentence(saved: Save) -> None:
    old, new = measured(0.3), measured(0.5)
    old.protocol["retrieval/s"] = {"how": "3 of them"}
    new.protocol["retrieval/s"] = {"how": "{k} of them", "k": 3}
    assert compare([saved("a", old), saved("b", new)]).rows
    new.protocol["retrieval/s"]["k"] = 4
    with pytest.raises(UserError, match="another protocol"):
        compare([saved("a", old), saved("b", new)])
