"""How the training went: facts for the lead sentence and curves, from the run's own records.

RUN/config.yaml, metrics.jsonl -> facts, small curves, means measured on the way
RUN/unusable.jsonl -> samples that could not be used, by shard and reason
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmalign.core.redact import redact_text
from mmalign.report.charts import BLUE, OCHRE, PLUM, Line, draw_curve, draw_shares
from mmalign.report.headline import DIRECTIONS
from mmalign.results.metric_names import MEAN

Records = Sequence[Mapping[str, Any]]
_CURVES = {"loss": "Loss", "temperature": "Temperature", "pairs_per_second": "Pairs per second"}
_MOST_SHARDS = 20  # rows of the table of unusable samples
_DIRECTION_COLORS = dict(zip(DIRECTIONS, (BLUE, OCHRE), strict=True))


def training_facts(config: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """What the lead sentence says."""
    image, text = config["model"]["image"], config["model"]["text"]
    _, speeds = _points(records, "pairs_per_second")
    return {
        "image": f"{image['name']}, {image['image_size']} px",
        "text": text["pretrained"] or text["architecture"]["model_type"],
        "text_pretrained": text["pretrained"] is not None,
        "step": max((record["step"] for record in records), default=None),
        "captions": max((record.get("pairs_seen", 0) for record in records), default=0),
        "languages": len(captions_seen(records)),
        "ends": {key: _ends(records, key) for key in ("loss", "temperature")},
        "speed": statistics.median(speeds) if speeds else None,
    }


def captions_seen(records: Records) -> dict[str, int]:
    """Captions per language that training saw, summed over its records."""
    seen: dict[str, int] = defaultdict(int)
    for record in records:
        for name, value in record.items():
            if name.startswith("captions/"):
                seen[name.removeprefix("captions/")] += int(value)
    return dict(seen)


def unusable_samples(records: Records, named: Records) -> dict[str, Any] | None:
    """What training could not use; None where it used everything.

    Args:
        named: lines of unusable.jsonl, one a sample.

    Returns:
        `share` of the positions in the stream, `reasons` with their parts of it, and `rows` of (shard,
        reason, samples), most first, of which there are `more`.
    """
    last = next((record for record in reversed(records) if "data/unusable" in record), {})
    if not last.get("data/unusable"):
        return None
    prefix = "data/unusable/"
    parts = {name.removeprefix(prefix): last[name] for name in last if name.startswith(prefix)}
    counts = Counter((f"{one['data']}/{one['shard']}", one["reason"]) for one in named)
    most = counts.most_common(_MOST_SHARDS)
    rows = [(redact_text(shard), reason, count) for (shard, reason), count in most]
    return {
        "share": last["data/unusable"],
        "reasons": sorted(parts.items(), key=lambda item: -item[1]),
        "rows": rows,
        "more": len(counts) - len(rows),
    }


def draw_training(records: Records) -> list[Markup]:
    """Small curves of what every step leaves in the records."""
    charts = []
    for key, title in _CURVES.items():
        if any(key in record for record in records):
            # Speed from 0 up: an axis cut to the noise would look like trouble.
            from_zero = key == "pairs_per_second"
            line = Line(*_points(records, key))
            charts.append(draw_curve(f"curve-{key}", title, line, from_zero))
    return charts


def draw_progress(records: Records) -> list[tuple[str, Markup]]:
    """(set or task, chart) of the means measured while training, at the lowest and highest k."""
    names = sorted({name for record in records for name in record if f"/{MEAN}/" in name})
    charts = []
    for subject in sorted({name.split("/")[1] for name in names}):
        ends = {
            name.partition(f"/{MEAN}/")[2]: name for name in names if name.split("/")[1] == subject
        }
        ks = sorted({int(end.rpartition("@")[2]) for end in ends if "recall@" in end})
        between = {f"recall@{k}" for k in ks[1:-1]}
        lines = [
            _line_of_measure(records, name, end)
            for end, name in sorted(ends.items(), key=lambda item: _place_in_legend(item[0]))
            if end.rpartition("/")[2] not in between
        ]
        charts.append((subject, draw_shares(f"progress-{subject}", f"Means on {subject}", lines)))
    return charts


def _ends(records: Records, key: str) -> tuple[float, float] | None:
    """The first and the last value in the records."""
    _, values = _points(records, key)
    return (values[0], values[-1]) if values else None


def _points(records: Records, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that have the key."""
    having = [record for record in records if key in record]
    return [record["step"] for record in having], [record[key] for record in having]


def _place_in_legend(end: str) -> tuple[bool, bool, str]:
    return "text_to_image" not in end, "image_to_text" not in end, end


def _line_of_measure(records: Records, name: str, end: str) -> Line:
    steps, values = _points(records, name)
    direction, _, metric = end.rpartition("/")
    label = f"{DIRECTIONS.get(direction, direction)} {metric}".strip()
    color = _DIRECTION_COLORS.get(direction, PLUM)
    return Line(steps, values, label, color, dashed="recall" in end and not end.endswith("@1"))
