"""A synthetic run folder with every measure, as written by training and evaluation; the numbers are
random."""

import base64
import io
import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmalign.core.commit import write_json
from mmalign.core.config import write_yaml
from mmalign.results.results import Results

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
ADVICE = "For recall@10 >= 0.95: IVF256,PQ16 with nprobe=8, 3.1 times as fast as Flat."
_DIRECTIONS = ("text_to_image", "image_to_text")


def picture(rng: np.random.Generator) -> str:
    """A small JPEG in base64."""
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
    """Results with the names, counts and shapes of real ones."""
    results = Results(
        suite="emoji_scenes",
        model={"path": "runs/demo", "sha256": SHA256, "step": 400},
        environment={"python": "3.12.3", "platform": "Linux", "torch": "2.9.0"},
    )
    skill = {lang: float(np.clip(strength * (1 - 0.3 * rng.random()), 0, 1)) for lang in languages}

    def add(name: str, share: float, count: int, chance: float) -> None:
        hits = rng.binomial(1, min(share + chance, 1.0), count).astype(float)
        results.add(name, hits, chance=chance)

    _add_pictures(add, results, skill, pictures)
    _add_pairs(add, results, rng, skill, pictures)
    _add_spaces(results, rng, skill, pictures)
    _add_texts(add, results, skill)
    for name in sorted({name.rpartition("/")[0].split("/", 2)[0] for name in results.metrics}):
        results.protocol[f"{name}/emoji_scenes"] = {
            "how": "All of {pictures} pictures.",
            "pictures": pictures,
        }
    return results


def _add_pictures(
    add: Callable[..., None], results: Results, skill: dict[str, float], pictures: int
) -> None:
    for protocol in ("", "@first-caption"):
        head = f"retrieval/emoji_scenes{protocol}"
        tails = [f"{one}/recall@{k}" for one in _DIRECTIONS for k in (1, 5, 10)]
        for tail in tails:
            k = int(tail.partition("@")[2])
            for lang, share in skill.items():
                reached = share ** (1 / (1 + 0.8 * np.log(k)))
                add(f"{head}/{lang}/{tail}", reached, pictures, k / pictures)
            _add_means(results, head, tail, list(skill))
            some = list(skill)[:2]
            _add_mean(results, head, tail, some, "family:Indo-European, invented")
    for k in (1, 5):
        for lang, share in skill.items():
            add(f"zero_shot/things/{lang}/accuracy@{k}", 0.6 * share + 0.05 * k, 300, k / 50)
        _add_means(results, "zero_shot/things", f"accuracy@{k}", list(skill))


def _add_pairs(
    add: Callable[..., None],
    results: Results,
    rng: np.random.Generator,
    skill: dict[str, float],
    pictures: int,
) -> None:
    head = "alignment/emoji_scenes"
    pairs = {f"{a}-{b}": skill[a] * skill[b] for a, b in permutations(skill, 2)}
    for pair, share in pairs.items():
        both = share * (0.9 + 0.2 * rng.random())
        add(f"{head}/{pair}/bitext@1", both, pictures, 1 / pictures)
        add(f"{head}/{pair}/bitext_csls@1", both**0.9, pictures, 1 / pictures)
        for metric in ("translation_gap", "translation_gap_centred", "cka"):
            results.add(f"{head}/{pair}/{metric}", 0.9 * both, pictures)
    for metric in (
        "bitext@1",
        "bitext_csls@1",
        "translation_gap",
        "translation_gap_centred",
        "cka",
    ):
        _add_mean(results, head, metric, list(pairs), "mean")
    spoken = list(skill)[1:]
    words = [pair for lang in spoken for pair in (f"en-{lang}", f"{lang}-en")]
    for pair in words:
        add(f"words/emoji_names/{pair}/translation@1", 0.3 * min(skill.values()), 120, 1 / 800)
    _add_mean(results, "words/emoji_names", "translation@1", words, "mean")


def _add_spaces(
    results: Results, rng: np.random.Generator, skill: dict[str, float], pictures: int
) -> None:
    means = {"isotropy": 0.3, "modality_gap": 0.7, "alignment": 0.9, "uniformity": -2.4}
    for metric, value in means.items():
        for lang in skill:
            drawn = value * (0.9 + 0.2 * rng.random())
            results.add(f"geometry/emoji_scenes/{lang}/{metric}", drawn, pictures)
        _add_mean(results, "geometry/emoji_scenes", metric, list(skill), "mean")
    top = float(np.mean(list(skill.values())))
    for pooling, loss in (("mean", 1.0), ("first", 0.6)):
        for layer in range(5):
            name = f"layers/emoji_scenes/{layer}/{pooling}/bitext@1"
            results.add(name, top * loss * (layer + 1) / 6, 90, chance=1 / 300)
    results.add("layers/emoji_scenes/feature/mean/bitext@1", top, 90, chance=1 / 300)
    for label, share in (("exact", 1.0), ("IVF256,PQ16 nprobe=8", 0.8)):
        for direction in _DIRECTIONS:
            for part in (*skill, "mean"):
                name = f"faiss/emoji_scenes/{label}/{part}/{direction}/recall@10"
                results.add(name, top * share, 500)


def _add_texts(add: Callable[..., None], results: Results, skill: dict[str, float]) -> None:
    for task, known in (("category", 0.9), ("category_unseen", 0.6)):
        for variant, loss in (("clean", 1.0), ("typos", 0.8)):
            for lang, share in skill.items():
                accuracy = min(0.25 + 0.75 * share * loss * known, 0.97)
                add(f"text/{task}/{lang}/{variant}/accuracy", accuracy - 0.22, 200, 0.22)
            _add_mean(results, f"text/{task}", f"{variant}/accuracy", list(skill), "mean")
        for lang, share in skill.items():
            add(f"text/{task}/{lang}/typos/accuracy_clean", share, 200, 0.0)
            results.add(f"text/{task}/{lang}/typos/changed_share", 0.8, 250)


def _add_means(results: Results, head: str, tail: str, languages: list[str]) -> None:
    _add_mean(results, head, tail, languages, "mean")
    if len(languages) > 5:
        lowest = sorted(languages, key=lambda lang: results.metrics[f"{head}/{lang}/{tail}"])
        _add_mean(results, head, tail, lowest[:5], "worst5")


def _add_mean(results: Results, head: str, tail: str, parts: list[str], name: str) -> None:
    names = [f"{head}/{part}/{tail}" for part in parts]
    chances = [results.chance[one] for one in names if one in results.chance]
    results.add(
        f"{head}/{name}/{tail}",
        float(np.mean([results.metrics[one] for one in names])),
        count=sum(results.counts[one] for one in names),
        chance=float(np.mean(chances)) if chances else None,
    )


def part(results: Results, is_text: bool) -> Results:
    """Only the text tasks, or only the other metrics, as in the file of one suite."""

    def of(tree: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in tree.items() if name.startswith("text/") == is_text}

    return Results(
        suite="category" if is_text else "emoji_scenes",
        model=results.model,
        metrics=of(results.metrics),
        counts=of(results.counts),
        ci95=of(results.ci95),
        chance=of(results.chance),
        protocol=of(results.protocol),
        environment=results.environment,
        baselines={name: part(inner, is_text) for name, inner in results.baselines.items()},
    )


def write_records(path: Path, languages: list[str], rng: np.random.Generator) -> None:
    """`metrics.jsonl` of 400 steps with four evaluations."""
    lines = []
    for step in range(10, 401, 10):
        record = {
            "step": step,
            "loss": 1.1 + 4.4 * float(np.exp(-step / 90)) + 0.05 * rng.standard_normal(),
            "temperature": 0.03 + 0.04 * float(np.exp(-step / 150)),
            "grad_norm": 1.0,
            "lr": 1e-3,
            "images_per_second": 330 + 8 * rng.standard_normal(),
            "captions_seen": step * 256,
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


def write_gallery(path: Path, rng: np.random.Generator) -> None:
    """Queries in several scripts, one of them hostile, each with five images."""
    queries = []
    for lang, text in {**CAPTIONS, "de": HOSTILE}.items():
        right = int(rng.integers(0, 8))
        images = [
            {"picture": f"p{i}", "jpeg": picture(rng), "score": 0.8 - 0.07 * i, "hit": i == right}
            for i in range(5)
        ]
        queries.append({"lang": lang, "text": text, "images": images})
    write_json(path, {"set": "emoji_scenes", "queries": queries})


def write_run(run: Path, languages: list[str], pictures: int = 1000, strength: float = 0.9) -> Path:
    """A run folder as written by training, evaluation and fine-tuning."""
    rng = np.random.default_rng(5)
    run.mkdir()
    (run / "config.yaml").write_text(write_yaml(CONFIG))
    write_records(run / "metrics.jsonl", languages, rng)
    results = measured(rng, languages, strength, pictures)
    results.baselines["untrained"] = measured(rng, languages, 0.004, pictures)
    part(results, is_text=False).write(run / "eval/emoji_scenes/results.json")
    part(results, is_text=True).write(run / "finetune/category/results.json")
    write_gallery(run / "eval/emoji_scenes/gallery.json", rng)
    write_json(run / "eval/emoji_scenes/faiss.json", {"recommendations": [ADVICE]})
    line = '<path d="M0 20L40 0" stroke="#000"/>'
    plot = f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20">{line}</svg>'
    (run / "eval/emoji_scenes/pareto.svg").write_text(plot)
    (run / "commands.txt").write_text(
        "mmalign data build data_recipes/emoji_scenes.yaml\n"
        "mmalign train train/emoji_scenes.yaml --out runs/demo\n"
        "HF_TOKEN=hf_abcdefghijklmnop mmalign eval eval/emoji_scenes.yaml --model runs/demo\n"
    )
    return run
