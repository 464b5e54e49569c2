"""The training section: samples that could not be used are listed, and nothing where there are none."""

import json
from pathlib import Path

from invented_run import LANGUAGES, write_run

from mmalign.data.stream.ledger import UNUSABLE
from mmalign.report.page import write_report
from mmalign.report.training import unusable_samples


def named(key: str, shard: str, reason: str) -> dict[str, str]:
    return {"data": "data/<b>", "shard": shard, "key": key, "reason": reason}


NAMED = [
    named("k1", "00000.tar", "checksum"),
    named("k2", "00007.tar", "cut off"),
    named("k3", "00007.tar", "cut off"),
]
RECORDS = [
    {"step": 1, "data/unusable": 0.5, "data/unusable/checksum": 0.5},
    {
        "step": 2,
        "data/unusable": 0.0125,
        "data/unusable/checksum": 0.0025,
        "data/unusable/cut off": 0.01,
    },
    {"step": 2, "retrieval/x": 1.0},
]


def test_the_last_record_and_the_named_samples_are_put_together() -> None:
    assert unusable_samples(RECORDS, NAMED) == {
        "share": 0.0125,
        "reasons": [("cut off", 0.01), ("checksum", 0.0025)],
        "rows": [("data/<b>/00007.tar", "cut off", 2), ("data/<b>/00000.tar", "checksum", 1)],
        "more": 0,
    }
    many = [named(f"k{n}", f"{n:05d}.tar", "json") for n in range(50)]
    table = unusable_samples(RECORDS, many)
    assert table is not None
    assert (len(table["rows"]), table["more"]) == (20, 30)


def test_a_run_that_used_everything_has_no_table() -> None:
    assert unusable_samples([{"step": 1, "data/unusable": 0.0}], []) is None
    assert unusable_samples([{"step": 1, "loss": 1.0}], []) is None


def test_the_page_shows_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", LANGUAGES[:3])
    write_report(run, tmp_path / "before.html")
    assert UNUSABLE not in (tmp_path / "before.html").read_text(encoding="utf-8")
    lines = (run / "metrics.jsonl").read_text() + json.dumps({**RECORDS[1], "step": 400}) + "\n"
    (run / "metrics.jsonl").write_text(lines)
    (run / UNUSABLE).write_text("".join(json.dumps(one) + "\n" for one in NAMED))
    write_report(run, tmp_path / "after.html")
    page = (tmp_path / "after.html").read_text(encoding="utf-8")
    assert "1.25 % of the requested samples could not be used" in page
    assert "cut off 1.00 %, checksum 0.25 %." in page
    assert "data/&lt;b&gt;/00007.tar</td><td>cut off</td><td>2</td>" in page
