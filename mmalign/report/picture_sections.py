"""What a picture is involved in: retrieval in both directions, and classification by class names.

retrieval/<set>[@<protocol>]/<language or aggregate>/<direction>/recall@<k>  -> bars, tables
zero_shot/<set>/<language or aggregate>/accuracy@<k>                         -> bars, table
"""

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from mmalign.report.bar_chart import Bar, draw_bars
from mmalign.report.headline import DIRECTIONS
from mmalign.report.measurement import Measurement, look_up, mark, protocol_of, row_name
from mmalign.report.tables import (
    Column,
    Table,
    count_column,
    language_rows,
    language_table,
    third_parts,
    untrained_columns,
)
from mmalign.results.metric_names import FAMILY, MEAN, languages, subjects
from mmalign.results.results import Results


@dataclass(frozen=True)
class PictureSection:
    """One set by one protocol.

    Attributes:
        chances: of the means of the bars, those that differ; the chart's dotted lines.
        families: the means over families of languages, None where there are none.
    """

    name: str
    protocol: str | None
    chart: Markup | None
    chances: list[Measurement]
    table: Table
    families: Table | None


def retrievals(results: Results, seen: Mapping[str, int]) -> list[PictureSection]:
    """A section for each set and protocol.

    Args:
        seen: captions in training by language.
    """
    return [_retrieval(results, one, seen) for one in subjects(results.metrics, "retrieval")]


def classifications(results: Results) -> list[PictureSection]:
    """A section for each set whose pictures were sorted into named classes."""
    return [_classification(results, one) for one in subjects(results.metrics, "zero_shot")]


def _retrieval(results: Results, subject: str, seen: Mapping[str, int]) -> PictureSection:
    head = f"retrieval/{subject}"
    ks = sorted({int(n.rpartition("@")[2]) for n in results.metrics if n.startswith(f"{head}/")})
    columns = [
        Column(f"@{k}", ((head, f"{direction}/recall@{k}"),), group=words)
        for direction, words in DIRECTIONS.items()
        for k in ks
    ]
    first = {words: f"{direction}/recall@{ks[0]}" for direction, words in DIRECTIONS.items()}
    untrained = [Column(words.split()[0], ((head, tail),)) for words, tail in first.items()]
    columns += untrained_columns(results, untrained)
    columns.append(count_column([(head, tail) for tail in first.values()]))
    name, protocol = protocol_of(subject)
    parts = third_parts(results, "retrieval", subject)
    families = language_rows(results, columns, [one for one in parts if one.startswith(FAMILY)])
    at_first = {words: f"{direction}/recall@1" for direction, words in DIRECTIONS.items()}
    title = f"recall@1 on {name} by language, {protocol}, both directions"
    chances = _chances(results, head, at_first)
    return PictureSection(
        name,
        protocol,
        _draw(results, "retrieval", subject, at_first, chances, title),
        chances,
        language_table(results, columns, parts, seen),
        Table("family", columns, [], families) if families else None,
    )


def _classification(results: Results, subject: str) -> PictureSection:
    head = f"zero_shot/{subject}"
    tails = sorted({name.rpartition("/")[2] for name in results.metrics if name.startswith(head)})
    values = [Column(tail, ((head, tail),), has_intervals=True) for tail in tails]
    columns = [
        *values,
        *untrained_columns(results, values[:1]),
        Column(f"chance, {tails[0].partition('@')[2]}", values[0].paths, "chance"),
        count_column([path for column in values for path in column.paths]),
    ]
    # Languages have names for different numbers of classes: one line of chance would mislead.
    title = f"accuracy on {subject} by language of the class names"
    return PictureSection(
        subject,
        None,
        _draw(results, "zero_shot", subject, {tail: tail for tail in tails[:2]}, [], title),
        [],
        language_table(results, columns, third_parts(results, "zero_shot", subject)),
        None,
    )


def _chances(results: Results, head: str, tails: Mapping[str, str]) -> list[Measurement]:
    """The chance levels of the means that differ."""
    found = [look_up(results, f"{head}/{MEAN}/{tail}") for tail in tails.values()]
    differing = {one.chance: one for one in reversed(found) if one and one.chance is not None}
    return [differing[chance] for chance in sorted(differing)]


def _draw(
    results: Results,
    measure: str,
    subject: str,
    tails: Mapping[str, str],
    chances: list[Measurement],
    title: str,
) -> Markup | None:
    """Bars of all languages that have every one of these metrics, the best language first."""
    groups: dict[str, dict[str, Bar]] = {}
    for lang in languages(results.metrics, measure, subject):
        bars = {}
        for words, tail in tails.items():
            one = look_up(results, f"{measure}/{subject}/{lang}/{tail}")
            if one:
                said = mark(one, f"{row_name(lang)}, {words}")
                bars[words] = Bar(one.value, one.interval, one.untrained, said)
        if len(bars) == len(tails):
            groups[row_name(lang)] = bars
    if not groups:
        return None
    by_height = sorted(groups, key=lambda name: -sum(bar.value for bar in groups[name].values()))
    lines = [one.chance for one in chances if one.chance is not None]
    name = f"{measure}-{subject}"
    return draw_bars(name, {one: groups[one] for one in by_height}, lines, title)
