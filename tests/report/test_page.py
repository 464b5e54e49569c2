"""The report page: self-contained, safe with untrusted text, and the same for the same run."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from invented_run import ADVICE, SHA256, write_run

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.report.page import write_report
from mmalign.report.sections import measured_sections
from mmalign.results.collect import collect


def sections(page: str) -> list[str]:
    return re.findall(r'<(?:section|details|h3) id="(\w+)"', page)


def test_every_section_is_there(page: str) -> None:
    assert sections(page) == [
        "headline",
        "training",
        *("retrieval", "zero_shot", "alignment", "layers", "geometry", "words", "text", "faiss"),
        "indexes",
        "gallery",
        "protocol",
        "record",
        "commands",
        "environment",
        "config",
        "metrics",
    ]
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([\w-]+)"', page)) <= set(ids)
    assert page.count("<svg") == page.count('role="img"') == 9
    assert SHA256 in page and "102,400 captions seen" in page and "resnet10t, 64 px" in page
    assert ADVICE.replace(">", "&gt;") in page


def test_nothing_comes_from_outside_and_only_the_script_runs(page: str) -> None:
    without_hostile = page.replace("src=https://evil.example", "")
    assert not re.search(r"https?://", without_hostile)
    loaded = re.findall(r"<[^>]*\ssrc\s*=\s*\"?([^\s\">]*)", page)
    assert len(loaded) == 36 and all(one.startswith("data:image/") for one in loaded)
    assert all(target.startswith("#") for target in re.findall(r'<[^>]*\shref="([^"]*)', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert not re.search(r"<(iframe|object|link|base)\b|<[^>]*\son\w+=", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; " in page.replace("&#39;", "'")


def test_a_hostile_caption_is_shown_as_text(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=https" in page


def test_languages_are_named_and_written_their_own_way(page: str) -> None:
    assert '<q lang="ar" dir="auto">قوس قزح، قطة، دراجة</q>' in page
    assert 'Persian <span class="quiet">fa</span> <bdi class="quiet" lang="fa" dir="auto">' in page
    assert ">فارسی</bdi>" in page
    assert ">Persian (fa)</text>" in page  # in a chart


def test_protocols_stand_beside_the_numbers(page: str) -> None:
    for protocol in ("all-captions", "first-caption"):
        assert page.count(f"<caption>emoji_scenes, protocol {protocol};") == 1
        assert page.count(f"emoji_scenes, {protocol}, mean of 14 languages") == 2
        assert f'emoji_scenes <span class="pill">{protocol}</span>' in page


def test_secrets_do_not_appear(page: str) -> None:
    assert "hf_abcdefghijklmnop" not in page and "[redacted]" in page


def test_hits_are_marked_in_words(page: str) -> None:
    hits = page.count('<li class="hit">')
    assert hits and hits == page.count("✓") == page.count(", the right image")


def test_the_same_run_gives_the_same_bytes(page: str, run: Path, tmp_path: Path) -> None:
    write_report(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_a_run_with_results_alone_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bare", ["sw", "pt-BR"], pictures=20)
    for name in ("metrics.jsonl", "commands.txt"):
        (run / name).unlink()
    for name in ("gallery.json", "faiss.json", "pareto.svg"):
        (run / "eval/emoji_scenes" / name).unlink()
    (run / "finetune/category/results.json").unlink()
    tree = json.loads((run / "eval/emoji_scenes/results.json").read_text())
    tree["baselines"] = {}
    for part in ("metrics", "counts", "ci95", "chance"):
        kept = {
            n: v for n, v in tree[part].items() if n.split("/")[0] in ("retrieval", "alignment")
        }
        tree[part] = kept
    write_json(run / "eval/emoji_scenes/results.json", tree)
    write_report(run, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert sections(page)[:4] == ["headline", "retrieval", "alignment", "protocol"]
    assert not {"training", "gallery", "faiss", "commands"} & set(sections(page))
    body = page.partition("<main>")[2].replace("untrained value", "").replace("before training", "")
    assert "untrained" not in body
    assert "Portuguese, Brazil (pt-BR) → sw: " in page  # a cell of the map
    assert "Portuguese, Brazil → Swahili" in page  # a row of the table


def test_two_fine_tunings_of_one_task_stay_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", ["sw", "en"], pictures=20)
    tree = json.loads((run / "finetune/category/results.json").read_text())
    tree["metrics"]["text/category/mean/clean/accuracy"] = 0.5
    (run / "finetune/all").mkdir()
    write_json(run / "finetune/all/results.json", tree)
    results = collect(run)
    assert results.metrics["text/category@all/mean/clean/accuracy"] == 0.5
    assert "text/category@category/mean/clean/accuracy" in results.baselines["untrained"].metrics
    (tables,) = (
        of for section, of in measured_sections(results, {}).items() if section.measure == "text"
    )
    assert [one["name"] for one in tables][:2] == ["category@all", "category@category"]


def test_what_cannot_be_reported_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder, it has no config\.yaml"):
        write_report(tmp_path, tmp_path / "page.html")
    run = write_run(tmp_path / "mixed", ["sw", "en"], pictures=20)
    (run / "eval/emoji_scenes/faiss.json").write_text("[]")
    with pytest.raises(UserError, match=r"faiss\.json: has no `recommendations`"):
        write_report(run, tmp_path / "page.html")
    tree = json.loads((run / "finetune/category/results.json").read_text())
    tree["model"]["sha256"] = "0" * 64
    write_json(run / "finetune/category/results.json", tree)
    with pytest.raises(UserError, match="measured on other weights than"):
        collect(run)
    for path in run.rglob("results.json"):
        path.unlink()
    with pytest.raises(UserError, match="nothing was measured on it"):
        collect(run)
