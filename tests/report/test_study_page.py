"""The page of a study: self-contained, safe, and with a verdict for every comparison."""

import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.report.study_page import write_study_page

HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(1)>\"'&$x$"
TOWERS = {
    "images": "pictures with one caption each; no two languages ever paired",
    "images_mlm": "pictures with one caption each; no two languages ever paired",
    "masked": "the same captions without their pictures, masked language modelling",
    "translations": "pairs of captions that say the same in two languages: direct supervision",
    "untrained": "nothing: random weights",
}
HEADLINE = ("masked", "translations")
METHODS = ("plain", "code_switch", "freelb", "rs_da")
LANGUAGES = ("en", "de", "pt-BR", "ru", "zh", "ar", "fa", "tr", "ko", "ja")
VARIANTS = (
    "characters-2",
    "keyboard-2",
    "code_mix-2",
    "attack_characters",
)
ON_FIRST = "{} fine-tuning seeds on the tower of pretraining seed 0"
OVER_PRETRAINING = "3 pretraining seeds, each the mean of 5 fine-tuning seeds"
STRENGTH = {"images": 0.6, "images_mlm": 0.64, "masked": 0.45, "translations": 0.7, "untrained": 0}


class Invented:
    """A study's tree with the names and shapes of a real one; the numbers are drawn."""

    def __init__(self, seeds: int = 5) -> None:
        self.rng = np.random.default_rng(3)
        self.seeds = seeds
        self.tree: dict[str, Any] = {
            "suite": "study_demo",
            "question": "Do pictures alone let labels in English carry over to other languages?",
            "model": {},
            **{name: {} for name in ("metrics", "counts", "ci95", "chance", "seeds", "items")},
            "verdict": "Yes on category; not shown on same_thing.",
            "scope": ["images against masked.", "category: 200 items in 2600 rows."],
            "diverged": {},
            "protocol": {
                "text/category": {"how": "A linear head, {draws} draws of noise.", "draws": 2}
            },
            "environment": {"python": "3.12.3", "torch": "2.10.0", "workers": 2},
            "comparisons": [],
            "answer": [],
            "towers": {
                name: {
                    "supervision": words,
                    "sha256": f"{place}a5b3f0c" * 8,
                    "training_seconds": None if name == "untrained" else 200.0 + 61 * place,
                }
                for place, (name, words) in enumerate(TOWERS.items())
            },
        }

    def add(self, name: str, value: float, chance: float | None = None) -> None:
        self.tree["metrics"][name] = value
        self.tree["counts"][name] = 2600 if "/mean/" in name else 260
        self.tree["seeds"][name] = ON_FIRST.format(self.seeds)
        self.tree["items"][name] = 20 if "attack" in name else 200
        if self.seeds > 1:
            half = 0.005 + 0.02 * float(self.rng.random())
            self.tree["ci95"][name] = (value - half, value + half)
        if chance is not None:
            self.tree["chance"][name] = chance

    def add_cell(self, tower: str, method: str, task: str) -> None:
        """Clean, perturbed and generalised numbers of one tower and method."""
        cell, chance = f"{tower}/{method}/{task}", 0.23
        skill = chance + STRENGTH[tower] * 0.8 + 0.03 * float(self.rng.standard_normal())
        for lang in (*LANGUAGES, "mean"):
            noise = 0.0 if lang == "mean" else 0.05 * float(self.rng.standard_normal())
            self.add(f"{cell}/{lang}/clean/accuracy", skill + noise, chance)
            self.add(f"{cell}/{lang}/clean/macro_f1", skill + noise - 0.04)
        for place, variant in enumerate(VARIANTS):
            drop = STRENGTH[tower] * (0.08 + 0.05 * place - 0.03 * METHODS.index(method))
            for lang in (*LANGUAGES[: 6 if variant.startswith("code") else None], "mean"):
                end = f"{cell}/{lang}/{variant}/accuracy"
                self.add(end, skill - drop, chance)
                self.add(f"{end}_clean", skill)
                self.add(f"{end}_drop", drop)
                if lang != "mean":
                    self.add(f"{cell}/{lang}/{variant}/changed_share", 0.5)
                self.add(f"{end}_worst", skill - drop - (0.07 if "attack" not in variant else 0))
        if task == "same_thing":
            for first, second in product(LANGUAGES, repeat=2):
                value = skill - 0.2 * (first != second) * float(self.rng.random())
                self.add(f"{cell}/{first}-{second}/generalised/accuracy", value)
            self.add(f"{cell}/mean/generalised/accuracy", skill - 0.1)
            self.add(f"{cell}/mean/generalised/accuracy_same_language", skill)

    def compare(
        self,
        kind: str,
        task: str,
        metric: str,
        left: tuple[str, str],
        right: tuple[str, str],
        p: float,
    ) -> None:
        """A paired difference; shown where p is below 0.05."""
        values = [
            self.tree["metrics"][f"{'/'.join(one)}/{task}/mean/{metric}"] for one in (left, right)
        ]
        difference, half = values[0] - values[1], 0.03
        one = {"kind": kind, "task": task, "metric": metric, "left": left, "right": right}
        one |= {"difference": difference, "ci95": (difference - half, difference + half)}
        one |= {"p": p / 2, "p_holm": p, "pairs": 3 if kind == "headline" else self.seeds}
        one["seeds"] = OVER_PRETRAINING if kind == "headline" else ON_FIRST.format(self.seeds)
        one |= {"rows": 2600, "items": 200, "primary": kind == "headline"}
        self.tree["comparisons"].append(one)

    def add_comparisons(self, task: str) -> None:
        for other in HEADLINE:
            p = 0.2 if other == "translations" else 0.01
            plain = ("images", "plain"), (other, "plain")
            self.compare("headline", task, "clean/accuracy", *plain, p)
        for tower, method, variant in product(TOWERS, METHODS[1:], ("clean", *VARIANTS)):
            p = 0.004 if method == "rs_da" and variant != "clean" else 0.3
            sides = (tower, method), (tower, "plain")
            self.compare("method", task, f"{variant}/accuracy", *sides, p)
        for other, method in product(list(TOWERS)[1:], METHODS):
            self.compare("tower", task, "clean/accuracy", ("images", method), (other, method), 0.1)


def invented(seeds: int = 5) -> dict[str, Any]:
    study = Invented(seeds)
    for tower, method, task in product(TOWERS, METHODS, ("category", "same_thing")):
        study.add_cell(tower, method, task)
    if seeds > 1:
        for task in ("category", "same_thing"):
            study.add_comparisons(task)
        study.tree["answer"] = [
            f"shown: {task}, {variant}, accuracy: images, plain against {other}, plain: +12.1 points"
            for task, variant, other in product(
                ("category", "same_thing"), ("clean", "keyboard-2"), HEADLINE
            )
        ]
    return study.tree


class Tags(HTMLParser):
    """Every element of a page: its tag and its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))


def written(tree: dict[str, Any], folder: Path) -> str:
    write_study_page(tree, folder / "study.html")
    return (folder / "study.html").read_text(encoding="utf-8")


def without(tree: dict[str, Any], pattern: str) -> dict[str, Any]:
    """The tree without the metrics and comparisons that match."""
    per_metric = ("metrics", "counts", "ci95", "chance", "seeds", "items")
    kept = [one for one in tree["comparisons"] if not re.search(pattern, one["metric"])]
    cut = {n: {k: v for k, v in tree[n].items() if not re.search(pattern, k)} for n in per_metric}
    return tree | cut | {"comparisons": kept}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(invented(), tmp_path_factory.mktemp("study"))


def test_every_section_is_there_and_every_link_leads_somewhere(page: str) -> None:
    sections = re.findall(r'<section id="([\w-]+)"', page)
    assert sections == ["headline", "towers", "task-1", "task-2", "comparisons", "protocol"]
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([\w-]+)"', page)) <= set(ids)
    # One chart of means, drops of two tasks, and a map of the one task that was tested in two languages.
    assert page.count("<svg") == page.count('role="img"') == 4


def test_the_page_begins_with_the_verdict_its_scope_and_one_chart(tmp_path: Path) -> None:
    tree = invented()
    tree["diverged"] = {"masked · category · pgd · seed 1": "the loss is nan before step 7"}
    page = written(tree, tmp_path)
    top = page.partition("<h1>")[2].partition("<h2>")[0]
    places = [top.index(words) for words in (tree["verdict"], *tree["scope"], "Without a number:")]
    assert places == sorted(places) and top.count("<svg") == 1
    assert places[-1] < top.index("<svg") and "the loss is nan before step 7" in top
    assert "A linear head, 2 draws of noise." in page


def test_a_difference_without_a_test_says_so(tmp_path: Path) -> None:
    tree = invented()
    tree["comparisons"][0] |= {"ci95": None, "p": None, "p_holm": None}
    page = written(tree, tmp_path)
    table = page[page.index('<section id="comparisons"') :]
    row = table[table.index("<tr><td>headline") :].partition("</tr>")[0]
    assert row.count("<td>–</td>") == 3 and row.endswith("<td>no difference can be told</td>")


def test_fewer_points_lost_are_better(tmp_path: Path) -> None:
    tree = invented()
    changed = {"metric": "keyboard-2/accuracy_drop", "difference": -0.12, "p_holm": 0.001}
    tree["comparisons"][0] |= changed
    page = written(tree, tmp_path)
    row = page[page.index("keyboard-2, accuracy drop</td>") :].partition("</tr>")[0]
    assert "<td>-12.0</td>" in row and ">shown</td>" in row


def test_nothing_comes_from_outside_and_names_are_text(tmp_path: Path) -> None:
    tree = without(invented(), "code_mix|keyboard|attack")
    tree["question"] = tree["answer"][0] = tree["verdict"] = tree["scope"][0] = HOSTILE
    tree["towers"]["masked"]["supervision"] = HOSTILE
    tree["protocol"][HOSTILE] = {"how": HOSTILE}
    tree["diverged"][HOSTILE] = HOSTILE
    renamed = {"category": "a\"b'<i>", "rs_da": "<b onload=x>"}
    for part in ("metrics", "counts", "ci95", "chance", "seeds", "items"):
        for old, new in renamed.items():
            tree[part] = {k.replace(f"/{old}/", f"/{new}/"): v for k, v in tree[part].items()}
    page = written(tree, tmp_path)
    assert not re.search(r"https?://", page.replace("src=https://evil.example", ""))
    found = Tags()
    found.feed(page)
    # Names are values of attributes too, so elements are looked at, not text.
    assert not {"iframe", "object", "link", "base", "i", "img"} & {tag for tag, _ in found.all}
    names = {name for _, attributes in found.all for name in attributes}
    assert "src" not in names and not any(name.startswith("on") for name in names)
    targets = [str(of["href"]) for _, of in found.all if "href" in of]
    targets += re.findall(r"url\(([^)]*)\)", page)
    assert all(target.startswith("#") for target in targets)
    assert page.count("<script") == 1 and "script-src &#39;sha256-" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_seeds_and_pretraining_seeds_are_named(tmp_path: Path) -> None:
    tree = without(invented(), "generalised")
    for name in tree["seeds"]:
        if name.startswith("translations/"):
            tree["seeds"][name] = "5 fine-tuning seeds"
    tree["towers"] = {
        f"{name}, pretraining seed {seed}": facts
        for name, facts in tree["towers"].items()
        for seed in (0, 1)
    }
    page = written(tree, tmp_path)
    for words in {*tree["seeds"].values(), *(one["seeds"] for one in tree["comparisons"])}:
        assert words in page
    captions = re.findall(r"<caption>.*?</caption>", page, re.DOTALL)
    covered = [caption for caption in captions if "intervals cover" in caption]
    assert len(covered) == 4  # scores and languages of two tasks
    assert all("5 fine-tuning seeds (translations)" in caption for caption in covered)
    # The metrics name a tower without its seed; it still has its supervision.
    assert "masked, pretraining seed 1" in page and "images (other supervision)" not in page
    assert page.count("masked (other supervision)") >= 2


def test_every_comparison_has_its_verdict(page: str) -> None:
    tree = invented()
    table = page[page.index('<section id="comparisons"') :].partition("</section>")[0]
    rows = re.findall(r"<tr( class=\"shown\")?>(<td>.*?)</tr>", table)
    assert len(rows) == len(tree["comparisons"])
    for (is_marked, cells), one in zip(rows, tree["comparisons"], strict=True):
        assert "<td>200</td><td>2600</td>" in cells
        verdict = (
            "not shown" if one["p_holm"] >= 0.05 else "worse" if one["difference"] < 0 else "shown"
        )
        assert cells.endswith(f"<td>{verdict}</td>") and bool(is_marked) == (verdict != "not shown")
        assert f"<td>{100 * one['difference']:+.1f}</td>".replace("-0.0", "+0.0") in cells
        assert f"<td>{one['p_holm']:.2g}</td>" in cells and one["seeds"] in cells


def test_tables_repeat_the_numbers_and_mark_other_supervision(page: str) -> None:
    tree = invented()
    for end in ("accuracy", "accuracy_worst"):
        name = f"masked/freelb/same_thing/mean/code_mix-2/{end}"
        low, high = (f"{100 * one:.1f}" for one in tree["ci95"][name])
        cell = re.search(
            rf'data-metric="{name}" data-field="value" title="([^"]*)">([\d.]+)<', page
        )
        assert cell and cell[2] == f"{100 * tree['metrics'][name]:.1f}"
        assert f"95 % interval {low} to {high} · n = 2,600 rows of 200 items" in cell[1]
    for tower in TOWERS:
        row = re.search(rf"<th>{tower}, plain.*?</th>", page)
        assert row and ("other supervision" in row[0]) == (not tower.startswith("images")), tower


def test_scores_under_perturbation_are_shown_by_language_with_the_rows_that_changed(
    page: str,
) -> None:
    tree = invented()
    for end in ("accuracy", "accuracy_clean", "changed_share"):
        name = f"images/plain/same_thing/de/code_mix-2/{end}"
        cell = re.search(rf'data-metric="{name}" data-field="value"[^>]*>([^<]*)<', page)
        value = tree["metrics"][name]
        assert cell and cell[1] == (
            "130 of 260" if end == "changed_share" else f"{100 * value:.1f}"
        )


def test_a_study_of_one_seed_has_no_intervals_and_no_comparisons(tmp_path: Path) -> None:
    clean = without(without(invented(seeds=1), "generalised"), "|".join(VARIANTS))
    page = written(clean, tmp_path)
    body = page.partition("<main>")[2]
    assert "95 % interval" not in body and "intervals cover" not in body
    assert 'id="comparisons"' not in body and "no difference was tested" in body
    assert f"{ON_FIRST.format(1)}: no intervals" in body
    # What was not measured is left out.
    assert "Robustness" not in body and "worst" not in body and page.count("<svg") == 1


def test_the_same_tree_gives_the_same_bytes(page: str, tmp_path: Path) -> None:
    assert written(invented(), tmp_path) == page


def test_a_tree_of_something_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    tree = invented()
    with pytest.raises(UserError, match=r"`comparisons` is missing"):
        written({name: part for name, part in tree.items() if name != "comparisons"}, tmp_path)
    with pytest.raises(UserError, match=r"`metrics` is missing or empty"):
        written(tree | {"metrics": {}}, tmp_path)
    with pytest.raises(UserError, match=r"`text/category/mean/clean/accuracy` is not named"):
        written(tree | {"metrics": {"text/category/mean/clean/accuracy": 0.5}}, tmp_path)
