"""How the training went: facts for the lead sentence and curves, from the run's own records.

RUN/config.yaml, metrics.jsonl -> facts, small curves, means measured while training
RUN/unusable.jsonl             -> samples that could not be used, by shard and reason
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmalign.core.redact import redact_text
from mmalign.report.charts import Line, draw_lines
from mmalign.results.metric_names import MEAN, MetricName

Records = Sequence[Mapping[str, Any]]
_CURVES = {"loss": "Loss", "temperature": "Temperature", "images_per_second": "Images per second"}
_MOST_SHARDS = 20  # rows of the table of unusable samples


def training_facts(records: Records) -> dict[str, Any]:
    """What the lead sentence and the training section say in words."""
    speeds = _line(records, "images_per_second").y
    ends = {key: _line(records, key).y for key in ("loss", "temperature")}
    return {
        "step": max((record["step"] for record in records), default=None),
        "captions": max((record.get("captions_seen", 0) for record in records), default=0),
        "ends": {key: (y[0], y[-1]) if y else None for key, y in ends.items()},
        "speed": statistics.median(speeds) if speeds else None,
    }


def captions_seen(records: Records) -> dict[str, int]:
    """Captions per language that training saw, summed over its records."""
    seen = Counter[str]()
    for record in records:
        seen.update({name: int(count) for name, count in _below(record, "captions/").items()})
    return dict(seen)


def unusable_samples(records: Records, named: Records) -> dict[str, Any] | None:
    """What training could not use; None where it used everything.

    Args:
        named: lines of unusable.jsonl, one per sample.

    Returns:
        `share` of the positions in the stream, `reasons` with their parts of it, and `rows` of (shard,
        reason, samples), most first, of which there are `more`.
    """
    last = next((record for record in reversed(records) if "data/unusable" in record), {})
    if not last.get("data/unusable"):
        return None
    counts = Counter((f"{one['data']}/{one['shard']}", one["reason"]) for one in named)
    most = counts.most_common(_MOST_SHARDS)
    return {
        "share": last["data/unusable"],
        "reasons": sorted(_below(last, "data/unusable/").items(), key=lambda item: -item[1]),
        # A path may be a URL with a token.
        "rows": [(redact_text(shard), reason, count) for (shard, reason), count in most],
        "more": len(counts) - len(most),
    }


def draw_training(records: Records) -> list[Markup]:
    """Small curves of what every step leaves in the records."""
    charts = []
    for key, title in _CURVES.items():
        if (line := _line(records, key)).x:
            name, words = f"curve-{key}", f"{title} over training steps"
            # Speed from 0 up; loss and temperature never come near 0.
            is_speed = key == "images_per_second"
            charts.append(draw_lines(name, words, {title: [line]}, 3.4, 2.4, from_zero=is_speed))
    return charts


def draw_progress(records: Records) -> list[tuple[str, Markup]]:
    """(set or task, chart) of the means over languages that were measured while training."""
    lines: dict[str, list[Line]] = {}
    names = {key: None for record in records for key in record if f"/{MEAN}/" in key}
    for key in names:
        name = MetricName.parse(key)
        label = " ".join((*name.setting, name.metric)).replace("_", " ")
        lines.setdefault(name.subject, []).append(_line(records, key, label))
    return [
        (subject, draw_lines(f"progress-{subject}", f"Means on {subject}", {"": of}))
        for subject, of in sorted(lines.items())
    ]


def _below(record: Mapping[str, Any], head: str) -> dict[str, Any]:
    """The fields whose names begin with `head`, without it."""
    return {n.removeprefix(head): value for n, value in record.items() if n.startswith(head)}


def _line(records: Records, key: str, label: str | None = None) -> Line:
    """Steps and values of the records that have the key."""
    having = [record for record in records if key in record]
    return Line(label, [record["step"] for record in having], [record[key] for record in having])
