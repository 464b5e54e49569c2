"""The report page: complete in itself, safe against strangers' text, and true to the results."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmalign.commit import write_json
from mmalign.config import write_yaml
from mmalign.errors import UserError
from mmalign.evaluation.results import Results
from mmalign.report.collect import collect
from mmalign.report.page import percent, write_report

LANGUAGES = ["en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar"]
CAPTIONS = {
    "en": "bear, hot beverage, umbrella",
    "ar": "قوس قزح، قطة، دراجة",
    "fa": "چتر، گربه، رنگین کمان",
    "ja": "かさ、クマ、ラーメン",
    "ru": "зонт, медведь, дом с садом",
    "ko": "우산, 곰, 뜨거운 음료",
}
HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(1)>\"'&"
SHA256 = "5d7e0a3c" * 8
CONFIG = {
    "name": "emoji_scenes",
    "seed": 0,
    "steps": 400,
    "batch_size": 256,
    "data": {"train": ["data/emoji_scenes/train"], "captions_per_image": 1},
    "model": {
        "embedding": 128,
        "image": {"kind": "timm", "name": "resnet10t", "image_size": 64},
        "text": {"pretrained": None, "architecture": {"model_type": "bert", "hidden_size": 128}},
    },
    "hub_token": "hf_abcdefghijklmnop",
}


def picture(rng: np.random.Generator) -> str:
    image = Image.new("RGB", (96, 96), tuple(rng.integers(200, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for x, y in ((8, 8), (52, 12), (30, 52)):
        color = tuple(rng.integers(0, 200, 3).tolist())
        draw.ellipse((x, y, x + 34, y + 34), fill=color)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=88)
    return base64.b64encode(data.getvalue()).decode()


def measured(
    rng: np.random.Generator, languages: list[str], strength: float, pictures: int
) -> Results:
    """Results with the names, counts and shapes of real ones; the numbers are drawn."""
    results = Results(
        suite="emoji_scenes",
        model={"path": "runs/demo", "sha256": SHA256, "step": 400},
        environment={"python": "3.12.3", "platform": "Linux", "torch": "2.9.0"},
    )
    skill = {lang: float(np.clip(strength * (1 - 0.3 * rng.random()), 0, 1)) for lang in languages}

    def add(name: str, share: float, count: int, chance: float) -> None:
        results.add(
            name, rng.binomial(1, min(share + chance, 1.0), count).astype(float), chance=chance
        )

    sets = "emoji_scenes"
    for lang, share in skill.items():
        for direction in ("text_to_image", "image_to_text"):
            for k in (1, 5, 10):
                reached = share ** (1 / (1 + 0.8 * np.log(k)))
                add(
                    f"retrieval/{sets}/{lang}/{direction}/recall@{k}",
                    reached,
                    pictures,
                    k / pictures,
                )
        for other in languages:
            if other != lang:
                both = share * skill[other] * (0.9 + 0.2 * rng.random())
                add(f"alignment/{sets}/{lang}-{other}/bitext@1", both, pictures, 1 / pictures)
        for task in ("category", "category_unseen"):
            for variant, loss in (("clean", 1.0), ("typos", 0.8)):
                known = 0.9 if task == "category" else 0.6
                accuracy = 0.25 + 0.75 * share * loss * known
                add(f"text/{task}/{lang}/{variant}/accuracy", min(accuracy, 0.97) - 0.22, 200, 0.22)
    names = sorted({re.sub(r"^(\w+/\w+)/[^/]+/", r"\1/mean/", name) for name in results.metrics})
    for name in names:
        head, tail = name.split("/mean/")
        parts = [n for n in results.metrics if n.startswith(f"{head}/") and n.endswith(f"/{tail}")]
        results.add(
            name,
            float(np.mean([results.metrics[n] for n in parts])),
            count=sum(results.counts[n] for n in parts),
            chance=float(np.mean([results.chance[n] for n in parts])),
        )
    results.protocol[f"retrieval/{sets}"] = f"All captions against all {pictures} pictures."
    results.protocol[f"alignment/{sets}"] = "The caption of the same picture must come first."
    results.protocol["text/category"] = "A linear head trained on 200 English rows."
    return results


def part(results: Results, *measures: str) -> Results:
    """Only some measures, as one suite's file holds them."""

    def of(tree: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in tree.items() if name.split("/")[0] in measures}

    return Results(
        suite=measures[0],
        model=results.model,
        metrics=of(results.metrics),
        counts=of(results.counts),
        ci95=of(results.ci95),
        chance=of(results.chance),
        protocol=of(results.protocol),
        environment=results.environment,
        baselines={name: part(inner, *measures) for name, inner in results.baselines.items()},
    )


def write_records(path: Path, languages: list[str], rng: np.random.Generator) -> None:
    lines = []
    for step in range(10, 401, 10):
        record = {
            "step": step,
            "loss": 1.1 + 4.4 * float(np.exp(-step / 90)) + 0.05 * rng.standard_normal(),
            "temperature": 0.03 + 0.04 * float(np.exp(-step / 150)),
            "grad_norm": 1.0,
            "lr": 1e-3,
            "pairs_per_second": 330 + 8 * rng.standard_normal(),
            "pairs_seen": step * 256,
            **{f"captions/{lang}": 2560 // len(languages) for lang in languages},
        }
        lines.append(json.dumps(record))
        if step % 100 == 0:
            share = 1 - float(np.exp(-step / 150))
            evaluation = {
                "step": step,
                "retrieval/emoji_scenes/mean/text_to_image/recall@1": 0.8 * share,
                "retrieval/emoji_scenes/mean/text_to_image/recall@10": share,
                "retrieval/emoji_scenes/mean/image_to_text/recall@1": 0.78 * share,
                "alignment/emoji_scenes/mean/bitext@1": 0.66 * share,
            }
            lines.append(json.dumps(evaluation))
    path.write_text("\n".join(lines) + "\n")


def write_run(run: Path, languages: list[str], pictures: int = 1000, strength: float = 0.9) -> Path:
    """A run folder as training, evaluation and fine-tuning leave it, with drawn numbers."""
    rng = np.random.default_rng(5)
    run.mkdir()
    (run / "config.yaml").write_text(write_yaml(CONFIG))
    write_records(run / "metrics.jsonl", languages, rng)
    results = measured(rng, languages, strength, pictures)
    results.baselines["untrained"] = measured(rng, languages, 0.004, pictures)
    part(results, "retrieval", "alignment").write(run / "eval/emoji_scenes/results.json")
    part(results, "text").write(run / "finetune/category/results.json")
    queries = []
    for lang, text in {**CAPTIONS, "de": HOSTILE}.items():
        right = int(rng.integers(0, 8))
        images = [
            {"picture": f"p{i}", "jpeg": picture(rng), "score": 0.8 - 0.07 * i, "hit": i == right}
            for i in range(5)
        ]
        queries.append({"lang": lang, "text": text, "images": images})
    write_json(run / "eval/emoji_scenes/gallery.json", {"set": "emoji_scenes", "queries": queries})
    (run / "commands.txt").write_text(
        "mmalign data build data_recipes/emoji_scenes.yaml\n"
        "mmalign train train/emoji_scenes.yaml --out runs/demo\n"
        "HF_TOKEN=hf_abcdefghijklmnop mmalign eval eval/emoji_scenes.yaml --model runs/demo\n"
    )
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", LANGUAGES)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    write_report(run, run / "report.html")
    return (run / "report.html").read_text(encoding="utf-8")


def test_every_section_is_there(page: str) -> None:
    sections = re.findall(r'<(?:section|details|h3) id="(\w+)"', page)
    assert sections == [
        "headline",
        "training",
        "retrieval",
        "alignment",
        "gallery",
        "transfer",
        "protocol",
        "record",
        "commands",
        "environment",
        "config",
        "metrics",
    ]
    for target in re.findall(r'href="#([\w-]+)"', page):
        assert f'id="{target}"' in page
    assert page.count("<svg") == page.count('role="img"') == 6
    assert SHA256 in page and "102,400 captions seen" in page and "resnet10t, 64 px" in page


def test_nothing_comes_from_outside_and_nothing_runs(page: str) -> None:
    without_hostile = page.replace("src=https://evil.example", "")
    assert not re.search(r"https?://", without_hostile)
    loaded = re.findall(r"<[^>]*\ssrc\s*=\s*\"?([^\s\">]*)", page)
    assert len(loaded) == 35 and all(one.startswith("data:image/jpeg;base64,") for one in loaded)
    assert all(target.startswith("#") for target in re.findall(r'<[^>]*\shref="([^"]*)', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert not re.search(r"<(script|iframe|object|link|base)\b|<[^>]*\son\w+=", page)


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_a_hostile_caption_is_shown_as_text(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=https" in page
    assert '<q lang="ar" dir="auto">قوس قزح، قطة، دراجة</q>' in page


def test_secrets_do_not_appear(page: str) -> None:
    assert "hf_abcdefghijklmnop" not in page and "[redacted]" in page


def test_hits_are_marked_in_words(page: str) -> None:
    hits = page.count('<li class="hit">')
    assert hits and hits == page.count("✓") == page.count(", the right picture")


def test_the_tiles_repeat_the_results(page: str, run: Path) -> None:
    results = collect(run)
    untrained = results.baselines["untrained"]
    tiles = re.findall(r'<div class="tile">.*?<p class="subject">', page, re.DOTALL)
    assert len(tiles) == 5
    for tile in tiles:
        name = re.search(r'data-metric="([^"]*)"', tile)
        assert name is not None
        shown = [
            re.sub(r"[^\d.]", "", x) for x in re.findall(r'(?:"number"[^>]*|<dd)>([\d.,]+)', tile)
        ]
        assert shown == [
            percent(results.metrics[name[1]]),
            percent(untrained.metrics[name[1]]),
            percent(results.chance[name[1]]),
            str(results.counts[name[1]]),
        ]


def test_the_same_run_gives_the_same_bytes(page: str, run: Path, tmp_path: Path) -> None:
    write_report(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_a_run_with_results_alone_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bare", ["sw", "pt-BR"], pictures=20)
    for name in ("metrics.jsonl", "commands.txt", "eval/emoji_scenes/gallery.json"):
        (run / name).unlink()
    (run / "finetune/category/results.json").unlink()
    tree = json.loads((run / "eval/emoji_scenes/results.json").read_text())
    tree["baselines"] = {}
    write_json(run / "eval/emoji_scenes/results.json", tree)
    write_report(run, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    present = set(re.findall(r'<(?:section|details|h3) id="(\w+)"', page))
    assert not present & {"training", "gallery", "transfer", "commands"}
    assert {"headline", "retrieval", "alignment", "protocol", "config"} <= present
    assert "untrained" not in page.partition("<main>")[2]


def test_many_languages_are_cut_to_the_forty_largest_and_the_page_says_so(tmp_path: Path) -> None:
    languages = [f"{a}{b}" for a in "abcdef" for b in "nopqrstuv"][:44]
    run = write_run(tmp_path / "many", languages, pictures=30)
    path = run / "eval/emoji_scenes/results.json"
    tree = json.loads(path.read_text())
    small = languages[:4]
    for name in tree["counts"]:
        if name.startswith("alignment/") and set(name.split("/")[2].split("-")) & set(small):
            tree["counts"][name] = 3
    write_json(path, tree)
    write_report(run, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Shown are the 40 languages with most queries, of 44" in page
    heat_map = page[page.index('id="alignment"') : page.index("Shown are the 40")]
    shown = {lang for lang in languages if f">{lang}</text>" in heat_map}
    assert shown == set(languages) - set(small)


def test_few_hits_make_recall_at_ten_the_headline(tmp_path: Path) -> None:
    run = write_run(tmp_path / "weak", ["sw", "en"], pictures=400, strength=0.01)
    write_report(run, tmp_path / "page.html")
    tiles = (tmp_path / "page.html").read_text(encoding="utf-8").partition("<nav")[0]
    assert "text to image <span>recall@10<" in tiles and "recall@1<" not in tiles


def test_two_fine_tunings_of_one_task_stay_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", ["sw", "en"], pictures=20)
    tree = json.loads((run / "finetune/category/results.json").read_text())
    tree["metrics"]["text/category/mean/clean/accuracy"] = 0.5
    (run / "finetune/all").mkdir()
    write_json(run / "finetune/all/results.json", tree)
    results = collect(run)
    assert results.metrics["text/category@all/mean/clean/accuracy"] == 0.5
    assert "text/category@category/mean/clean/accuracy" in results.baselines["untrained"].metrics
    write_report(run, tmp_path / "page.html")
    assert "<h3>category@all</h3>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_cannot_be_reported_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder, it has no config\.yaml"):
        write_report(tmp_path, tmp_path / "page.html")
    run = write_run(tmp_path / "mixed", ["sw", "en"], pictures=20)
    tree = json.loads((run / "finetune/category/results.json").read_text())
    tree["model"]["sha256"] = "0" * 64
    write_json(run / "finetune/category/results.json", tree)
    with pytest.raises(UserError, match="measured on other weights than"):
        collect(run)
    for path in run.rglob("results.json"):
        path.unlink()
    with pytest.raises(UserError, match="nothing was measured on this run yet"):
        collect(run)
