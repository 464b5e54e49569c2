"""The report page: complete in itself, safe against strangers' text, and the same for the same run."""

import base64
import hashlib
import json
import re
from itertools import permutations
from pathlib import Path

import pytest
from invented_run import ADVICE, SHA256, write_run

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.report.headline import headline
from mmalign.report.language_sections import alignments
from mmalign.report.page import write_report
from mmalign.report.transfer_section import transfers
from mmalign.results.collect import collect
from mmalign.results.results import Results


def sections(page: str) -> list[str]:
    return re.findall(r'<(?:section|details|h3) id="(\w+)"', page)


def test_every_section_is_there(page: str) -> None:
    assert sections(page) == [
        "headline",
        "training",
        "retrieval",
        "classification",
        "alignment",
        "layers",
        "geometry",
        "words",
        "gallery",
        "transfer",
        "faiss",
        "protocol",
        "record",
        "commands",
        "environment",
        "config",
        "metrics",
    ]
    for target in re.findall(r'href="#([\w-]+)"', page):
        assert f'id="{target}"' in page
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


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_a_hostile_caption_is_shown_as_text(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=https" in page


def test_languages_are_named_and_written_their_own_way(page: str) -> None:
    assert '<q lang="ar" dir="auto">قوس قزح، قطة، دراجة</q>' in page
    assert '<bdi class="own" lang="fa" dir="auto">فارسی</bdi>' in page
    assert 'Persian <span class="code">fa</span>' in page
    assert ">Persian (fa)</text>" in page  # in a chart


def test_protocols_stand_beside_the_numbers(page: str) -> None:
    for protocol in ("all-captions", "first-caption"):
        assert page.count(f"Recall in percent on emoji_scenes, protocol {protocol};") == 1
        assert page.count(f"emoji_scenes, {protocol}, mean of 14 languages") == 2
        assert f'emoji_scenes <span class="pill">{protocol}</span>' in page


def test_secrets_do_not_appear(page: str) -> None:
    assert "hf_abcdefghijklmnop" not in page and "[redacted]" in page


def test_hits_are_marked_in_words(page: str) -> None:
    hits = page.count('<li class="hit">')
    assert hits and hits == page.count("✓") == page.count(", the right picture")


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
    assert "untrained" not in page.partition("<main>")[2]
    assert "Portuguese, Brazil (pt-BR) → Swahili (sw)" in page


def invented(names: dict[str, float], counts: dict[str, int] | None = None) -> Results:
    results = Results(suite="invented", model={"sha256": SHA256})
    for name, value in names.items():
        results.add(name, value, count=(counts or {}).get(name, 30))
    return results


def test_many_languages_are_cut_to_the_forty_with_most_queries() -> None:
    languages = [f"{a}{b}" for a in "abcdef" for b in "nopqrstuv"][:44]
    small = set(languages[:4])
    names = {f"alignment/set/{a}-{b}/bitext@1": 0.5 for a, b in permutations(languages, 2)}
    counts = {name: 3 for name in names if set(name.split("/")[2].split("-")) & small}
    (matrix,) = alignments(invented(names, counts))
    assert matrix.of == 44 and set(matrix.shown) == set(languages) - small
    assert str(matrix.chart).count("data-metric=") == 40 * 39


def test_few_hits_make_recall_at_ten_the_headline() -> None:
    head = "retrieval/set/mean/text_to_image/recall"
    few = headline(invented({f"{head}@1": 0.09, f"{head}@10": 0.4}))
    many = headline(invented({f"{head}@1": 0.1, f"{head}@10": 0.4}))
    assert [tile.metric for tile in (*few, *many)] == ["recall@10", "recall@1"]


def test_two_fine_tunings_of_one_task_stay_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "two", ["sw", "en"], pictures=20)
    tree = json.loads((run / "finetune/category/results.json").read_text())
    tree["metrics"]["text/category/mean/clean/accuracy"] = 0.5
    (run / "finetune/all").mkdir()
    write_json(run / "finetune/all/results.json", tree)
    results = collect(run)
    assert results.metrics["text/category@all/mean/clean/accuracy"] == 0.5
    assert "text/category@category/mean/clean/accuracy" in results.baselines["untrained"].metrics
    assert [one.task for one in transfers(results)] == ["category@all", "category@category"]


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
    with pytest.raises(UserError, match="nothing was measured on this run yet"):
        collect(run)
