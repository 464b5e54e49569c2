"""The page of a study: complete in itself, safe, and bold only where a comparison is shown."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.report.study_page import write_study_page

HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(1)>\"'&$x$"
CHARTS = "_drop$|generalised"  # what the slow charts are drawn from
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
            **{name: {} for name in ("metrics", "counts", "ci95", "chance", "seeds")},
            "protocol": {"text/category": "A linear head on a fixed tower; 2 draws of noise."},
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
        if self.seeds > 1:
            half = 0.005 + 0.02 * float(self.rng.random())
            self.tree["ci95"][name] = (value - half, value + half)
        if chance is not None:
            self.tree["chance"][name] = chance

    def add_cell(self, tower: str, method: str, task: str) -> None:
        """Clean, perturbed and generalised numbers of one tower and method."""
        cell, luck = f"{tower}/{method}/{task}", 0.23
        skill = luck + STRENGTH[tower] * 0.8 + 0.03 * float(self.rng.standard_normal())
        for lang in (*LANGUAGES, "mean"):
            noise = 0.0 if lang == "mean" else 0.05 * float(self.rng.standard_normal())
            self.add(f"{cell}/{lang}/clean/accuracy", skill + noise, luck)
            self.add(f"{cell}/{lang}/clean/macro_f1", skill + noise - 0.04)
        for place, variant in enumerate(VARIANTS):
            drop = STRENGTH[tower] * (0.08 + 0.05 * place - 0.03 * METHODS.index(method))
            for lang in (*LANGUAGES[: 6 if variant.startswith("code") else None], "mean"):
                end = f"{cell}/{lang}/{variant}/accuracy"
                self.add(end, skill - drop, luck)
                self.add(f"{end}_drop", drop)
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
            f"{task}, {variant}, accuracy: images compared with {other}, both fine-tuned by `plain`: "
            "higher by 12.1 points (95 % interval +9.1 to +15.1 points, p = 0.010 after Holm) "
            f"(71.0 against 58.9 % on the first pretraining seed; difference over {OVER_PRETRAINING})."
            for task, variant, other in product(
                ("category", "same_thing"), ("clean", "keyboard-2"), HEADLINE
            )
        ]
    return study.tree


def written(tree: dict[str, Any], folder: Path) -> str:
    write_study_page(tree, folder / "study.html")
    return (folder / "study.html").read_text(encoding="utf-8")


def without(tree: dict[str, Any], pattern: str) -> dict[str, Any]:
    """The tree without the metrics and comparisons that match."""
    per_metric = ("metrics", "counts", "ci95", "chance", "seeds")
    kept = [one for one in tree["comparisons"] if not re.search(pattern, one["metric"])]
    cut = {n: {k: v for k, v in tree[n].items() if not re.search(pattern, k)} for n in per_metric}
    return tree | cut | {"comparisons": kept}


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(invented(), tmp_path_factory.mktemp("study"))


def test_every_section_is_there_and_every_link_leads_somewhere(page: str) -> None:
    assert sections(page) == [
        "headline",
        "towers",
        "chart",
        "scores",
        "robustness",
        "generalised",
        "languages",
        "comparisons",
        "protocol",
    ]
    for target in re.findall(r'href="#([\w-]+)"', page):
        assert f'id="{target}"' in page
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    # The headline, two lattices of drops, and a map of the one task that was tested in two languages.
    assert page.count("<svg") == page.count('role="img"') == 4


def test_nothing_comes_from_outside_and_names_are_text(tmp_path: Path) -> None:
    tree = invented()
    tree["question"] = tree["answer"][0] = HOSTILE
    tree["towers"]["masked"]["supervision"] = HOSTILE
    tree["protocol"][HOSTILE] = HOSTILE
    renamed = {"category": "a\"b'<i>", "rs_da": "<b onload=x>"}
    for part in ("metrics", "counts", "ci95", "chance", "seeds"):
        for old, new in renamed.items():
            tree[part] = {k.replace(f"/{old}/", f"/{new}/"): v for k, v in tree[part].items()}
    page = written(tree, tmp_path)
    assert not re.search(r"https?://", page.replace("src=https://evil.example", ""))
    assert not re.search(r"<[^>]*\ssrc\s*=", page)
    assert all(target.startswith("#") for target in re.findall(r'<[^>]*\shref="([^"]*)', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert not re.search(r"<(iframe|object|link|base|i|img)\b|<[^>]*\son\w+=", page)
    assert page.count("<script") == 1 and "script-src &#39;sha256-" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_seeds_of_every_interval_are_said(tmp_path: Path) -> None:
    tree = invented()
    for name in tree["seeds"]:
        if name.startswith("translations/"):
            tree["seeds"][name] = "5 fine-tuning seeds"
    page = written(tree, tmp_path)
    for words in {*tree["seeds"].values(), *(one["seeds"] for one in tree["comparisons"])}:
        assert words in page
    for figure in re.findall(r"<figcaption>.*?</figcaption>", page, re.DOTALL)[:3]:
        assert "5 fine-tuning seeds (translations)" in figure


def bold_cells(page: str, task: int = 0) -> dict[str, list[int]]:
    """Method of each bold number of a task's table -> its columns."""
    table = page[page.index('id="scores"') :].split("<tbody>", 1)[1].split('id="robustness"')[0]
    rows = re.findall(r'class="left">([^<]*)</th>(<td>.*?)</tr>', table.split("<h3>")[task])
    found: dict[str, list[int]] = {}
    for method, cells in rows:
        bold = [i for i, cell in enumerate(cells.split("<td>")[1:]) if "<b>" in cell]
        found.setdefault(method, []).extend(bold)
    return {method: places for method, places in found.items() if places}


def test_bold_is_what_is_best_and_shown_and_nothing_else(tmp_path: Path) -> None:
    tree = without(invented(), CHARTS)
    for tower in TOWERS:
        for method in METHODS:  # the best: rs_da, shown; and freelb, where rs_da is not the best
            best = 0.9 if method == "rs_da" else 0.5
            tree["metrics"][f"{tower}/{method}/category/mean/characters-2/accuracy"] = best
            best = 0.9 if method == "freelb" else 0.5
            tree["metrics"][f"{tower}/{method}/category/mean/keyboard-2/accuracy"] = best
    for one in tree["comparisons"]:
        one["p_holm"] = 1.0
        if one["kind"] == "method" and one["left"][1] == "rs_da" and one["left"][0] == "images":
            one |= {"p_holm": 0.01, "difference": 0.4}
    bold = bold_cells(written(tree, tmp_path))
    assert 1 in bold.pop("rs_da") and not bold
    for one in tree["comparisons"]:
        one["p_holm"] = 0.05
    page = written(tree, tmp_path)
    assert bold_cells(page) == {} and "Nothing is bold" in page


def test_a_worse_method_is_never_bold(tmp_path: Path) -> None:
    tree = without(invented(), CHARTS)
    for one in tree["comparisons"]:
        one |= {"p_holm": 0.001, "difference": -0.1}
    assert set(bold_cells(written(tree, tmp_path))) <= {"plain"}


def test_other_supervision_is_marked_wherever_numbers_stand(page: str) -> None:
    for section in ("towers", "scores", "generalised", "languages"):
        text = page[page.index(f'<section id="{section}"') :].partition("</section>")[0]
        assert "other supervision" in text, section
    scores = page[page.index('id="scores"') :].partition("</section>")[0]
    heads = re.findall(r'<tr class="tower">(.*?)</tr>', scores)
    assert [("other supervision" in head) for head in heads] == [False, False, True, True, True] * 2
    assert all(words in head for words, head in zip(TOWERS.values(), heads, strict=False))


def test_the_table_repeats_the_numbers(page: str) -> None:
    tree = invented()
    name = "masked/freelb/same_thing/mean/code_mix-2/accuracy"
    half = 50 * (tree["ci95"][name][1] - tree["ci95"][name][0])
    value, worst = (100 * tree["metrics"][one] for one in (name, f"{name}_worst"))
    cell = f'{value:.1f}<span class="pm">±{half:.1f}</span><span class="ci">worst {worst:.1f}<'
    assert cell in page.replace("<b>", "").replace("</b>", "")
    assert "<span>6 of 10 lang.</span>" in page  # a perturbation that four languages do not know


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    clean = without(without(invented(), "generalised"), "|".join(VARIANTS))
    page = written(clean, tmp_path)
    assert not {"robustness", "generalised"} & set(sections(page))
    assert 'href="#robustness"' not in page and "worst" not in page.partition("<main>")[2].lower()
    assert page.count("<svg") == 1


def test_a_study_of_one_seed_has_no_intervals_and_no_comparisons(tmp_path: Path) -> None:
    page = written(invented(seeds=1), tmp_path)
    body = page.partition("<main>")[2]
    assert 'class="ci">worst' in body and "±" not in body
    assert "95" + "\N{NO-BREAK SPACE}% interval" not in body and "intervals cover" not in body
    assert "comparisons" not in sections(page) and bold_cells(page) == {}
    assert f"{ON_FIRST.format(1)}: no intervals" in body


def test_towers_named_with_their_pretraining_seed_are_found(tmp_path: Path) -> None:
    tree = without(invented(), CHARTS)
    tree["towers"] = {
        f"{name}, pretraining seed {seed}": facts
        for name, facts in tree["towers"].items()
        for seed in (0, 1)
    }
    page = written(tree, tmp_path)
    assert "not known" not in page and "masked, pretraining seed 1" in page
    heads = re.findall(r'<tr class="tower"><th[^>]*>(\w+)<', page)
    assert heads == list(TOWERS) * 2


def test_the_same_tree_gives_the_same_bytes(page: str, tmp_path: Path) -> None:
    assert written(invented(), tmp_path) == page


def test_what_is_no_study_is_said_in_a_sentence(tmp_path: Path) -> None:
    tree = invented()
    with pytest.raises(UserError, match=r"`comparisons` is missing"):
        written({name: part for name, part in tree.items() if name != "comparisons"}, tmp_path)
    with pytest.raises(UserError, match=r"`metrics` is empty"):
        written(tree | {"metrics": {}}, tmp_path)
    with pytest.raises(UserError, match=r"`text/category/mean/clean/accuracy` is not named"):
        written(tree | {"metrics": {"text/category/mean/clean/accuracy": 0.5}}, tmp_path)
