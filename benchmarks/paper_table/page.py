"""From results to the page's tables, with intervals over concepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH
from benchmarks.paper_table.measures import (
    BEYOND,
    COSTS,
    DIFFERENCES,
    MEASURES,
    OPINIONS,
    SCHEDULES,
    SCORES,
    SECOND_OPINION,
    WHY,
    Results,
    by_concept,
    family,
)
from benchmarks.paper_table.units import (
    PUBLISHED,
    Unit,
    is_done,
    merit,
    ranked,
    rates,
    result,
    samples,
    searched_on,
    table_units,
)

Name = TypeVar("Name", str, tuple[str, float])
"""A schedule's, or a method with the factor of its rates."""


def gathered(work: Path, best: Mapping[str, float]) -> Results:
    """Every result there is, the best rates of each method before the published ones."""
    found: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for unit in table_units(best):
        if (its := result(work, unit)) is not None:
            found.setdefault((unit.label, unit.factor), {})[unit.concept] = its
    return found


def filled(text: str, name: str, lines: Sequence[str]) -> str:
    """A Markdown page with what stands between the two comments of a name replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no {begin} with an end")
    return "\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"])


def state_lines(work: Path, best: Mapping[str, float]) -> list[str]:
    """How much of the table has been run, if not all; which trainings diverged."""
    todo = table_units(best)
    done = [unit for unit in todo if is_done(work, unit)]
    diverged = Counter(unit.label for unit in done if result(work, unit) is None)
    lines = [] if len(done) == len(todo) else [f"**Not run to the end yet**: {len(done)} of {len(todo)} trainings."]
    counted = {label: "1 training" if count == 1 else f"{count} trainings" for label, count in diverged.items()}
    return lines + [f"{count} of `{label}` diverged, left out below." for label, count in counted.items()]


def made_by_lines(found: Results) -> list[str]:
    """Versions, processor and threads of the results, as far as they say so."""
    said = [its.get("by") for rows in found.values() for its in rows.values()]
    lines = []
    for by in {tuple(its.items()): its for its in said if its}.values():
        versions = ", ".join(f"{name} {its}" for name, its in by.items() if name not in ("threads", "processor"))
        lines.append(f"{versions}; {by['processor']}, {by['threads']} thread a process.")
    if silent := sum(its is None for its in said):
        lines.append(f"({silent} of {len(said)} results, the first that were made, do not say.)")
    hours = sum(its["seconds"] for rows in found.values() for its in rows.values()) / 3600
    return [*lines, f"Training alone took {hours:.1f} hours of one core; pictures and scores, a third of that again."]


def rates_table(work: Path, best: Mapping[str, float]) -> list[str]:
    """With which factor of its published rates each method came out best, and by how much."""
    names = searched_on()
    lines = [
        f"| method | best | merit on {' and '.join(names)} | drift | next best | tried on {names[0]} |",
        "|---" * 6 + "|",
    ]

    def told(method: str, factor: float) -> str:
        found = [result(work, Unit(method, factor, "tuning", name)) for name in names]
        return ", ".join("diverged" if its is None else f"{merit(its):.2f}" for its in found)

    def moved(method: str, factor: float) -> str:
        found = [result(work, Unit(method, factor, "tuning", name)) for name in names]
        return _plain([its["drift"] for its in found if its])

    for method, factor in best.items():
        others = [its for its in ranked(work, method, names) if its != factor][:1]
        next_best = f"{rates(others[0])}: {told(method, others[0])}, drift {moved(method, others[0])}" if others else ""
        tried = ", ".join(f"{its:g}" for its in sorted(ranked(work, method, names[:1])))
        lines.append(
            f"| {method} | {rates(factor)} | {told(method, factor)} | {moved(method, factor)} | {next_best} | {tried} |"
        )
    return lines


def main_table(found: Results, copied: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Identity, text and what they come to; the true pictures above, the untuned model below.

    Args:
        copied: By concept, what its training pictures score as answers to every prompt.
    """
    concepts = by_concept(found)
    true, untuned = ([its[name] for its in concepts] for name in ("truth", "untuned"))
    reached = [[merit({**its, **its[name]}) for its in concepts] for name in ("truth", "untuned")]
    same = [copied[its["concept"]] for its in concepts]
    copies = {
        **_both(same),
        "in scenes": _each(same, "identity"),
        "merit": [merit({**its, **one}) for its, one in zip(concepts, same, strict=True)],
    }
    above = {**_both(true), "in scenes": _each(true, "in scenes"), "merit": reached[0]}
    return [
        *_head(SCORES),
        _line("the true pictures", len(concepts), SCORES, above),
        *_rows(found, SCORES),
        _line("the untuned model", len(concepts), SCORES, {**_both(untuned), "merit": reached[1]}),
        _line("the training pictures", len(concepts), SCORES, copies),
    ]


def beyond_table(found: Results) -> list[str]:
    """The complex prompts, what has become of the base model, and copies of training pictures."""
    concepts = by_concept(found)
    true = [its["truth"]["complex"] for its in concepts]
    untuned = [its["complex"]["untuned"] for its in concepts if "untuned" in its["complex"]]
    above, below = ({f"complex: {name}": its for name, its in _both(rows).items()} for rows in (true, untuned))
    lines = [*_head(BEYOND), _line("the true pictures", len(true), BEYOND, above), *_rows(found, BEYOND)]
    return [*lines, _line("the untuned model", len(untuned), BEYOND, below)] if untuned else lines


def cost_table(found: Results, peaks: Mapping[str, float]) -> list[str]:
    """What a training costs."""
    lines = ["| method | " + " | ".join(COSTS) + " | peak MB |", "|---" * (len(COSTS) + 2) + "|"]
    for label in dict.fromkeys(label for label, _ in found):
        rows = [its for (other, _), concepts in found.items() if other == label for its in concepts.values()]
        cells = [_cell([MEASURES[name](its) for its in rows]) for name in COSTS]
        lines.append(f"| {label} | {' | '.join(cells)} | {f'{peaks[label]:,.0f}' if label in peaks else ''} |")
    return lines


def second_opinion_table(found: Results) -> list[str]:
    """What the independent judges say."""
    concepts = by_concept(found)
    true = {f"second opinion: {name}": [its["truth"]["second opinion"][name] for its in concepts] for name in OPINIONS}
    above = _line("the true pictures", len(concepts), SECOND_OPINION, true)
    return [*_head(OPINIONS), above, *_rows(found, SECOND_OPINION)]


def difference_table(
    found: Results, best: Mapping[str, float], measures: Sequence[str] = DIFFERENCES, ours: str = ATTNDREAMBOOTH.name
) -> list[str]:
    """How much more than our method every other scores, over the same concepts, each at its best rates."""
    lines = _head([name.removeprefix("second opinion: ") for name in measures])
    reference = found.get((ours, best[ours]), {})
    for (label, factor), rows in found.items():
        if label != ours and factor == best[family(label)] and set(reference) & set(rows):
            lines.append(_compared(label, rates(factor), reference, rows, measures))
    return lines


def published_table(found: Results, best: Mapping[str, float]) -> list[str]:
    """How much more each method scores at its best rates than at the published ones, over the same concepts."""
    lines = _head(DIFFERENCES)
    for (label, factor), rows in found.items():
        published = found.get((label, PUBLISHED), {})
        if factor == best[family(label)] != PUBLISHED and set(published) & set(rows):
            lines.append(_compared(label, rates(factor), published, rows, DIFFERENCES))
    return lines


def by_name(work: Path, todo: Sequence[Unit], named: Callable[[Unit], Name]) -> dict[Name, list[dict[str, Any]]]:
    """The results there are, by what their units are called."""
    rows: dict[Name, list[dict[str, Any]]] = {}
    for unit in todo:
        if (found := result(work, unit)) is not None:
            rows.setdefault(named(unit), []).append(found)
    return rows


def schedule(unit: Unit) -> str:
    """What a unit's schedule is called."""
    return unit.variant or "default"


def fast_table(work: Path, todo: Sequence[Unit]) -> list[str]:
    """The second look at fast mode: how many samples each schedule sees, and what it scores, cheapest first."""
    rows = by_name(work, todo, schedule)
    lines = ["| schedule | samples | " + " | ".join(SCHEDULES) + " |", "|---" * (len(SCHEDULES) + 2) + "|"]
    for name, its in sorted(rows.items(), key=lambda item: item[1][0]["samples"]):
        cells = [_cell([MEASURES[column](found) for found in its]) for column in SCHEDULES]
        lines.append(f"| {name} | {its[0]['samples']:,} | " + " | ".join(cells) + " |")
    return lines


def probe_table(work: Path, todo: Sequence[Unit]) -> list[str]:
    """What might explain a claim that did not hold: means over the concepts that have been run, then each of them."""
    lines = _head(WHY)
    for (label, factor), rows in by_name(work, todo, lambda unit: (unit.label, unit.factor)).items():
        values = [_measured(rows, name) for name in WHY]
        cells = [f"{_plain(its)} ({', '.join(_plain([value]) for value in its)})" for its in values]
        lines.append(f"| {label} | {rates(factor)} | {len(rows)} | {' | '.join(cells)} |")
    return lines


def contender_table(work: Path, old: Sequence[Unit], new: Sequence[Unit], which: str) -> list[str]:
    """What two schedules score on the same concepts, which are the ones so called, and the second less the first."""
    pairs = [(result(work, its), result(work, other)) for its, other in zip(old, new, strict=True)]
    done = [(first, second) for first, second in pairs if first is not None and second is not None]
    if not done:
        return []
    lines = [
        f"| {which} ({len(done)}) | samples | " + " | ".join(SCHEDULES) + " |",
        "|---" * (len(SCHEDULES) + 2) + "|",
    ]
    for unit, rows in zip((old[0], new[0]), zip(*done, strict=True), strict=True):
        cells = [_cell([MEASURES[name](its) for its in rows]) for name in SCHEDULES]
        lines.append(f"| {unit.variant} | {samples(unit):,} | " + " | ".join(cells) + " |")
    cells = []
    for name in SCHEDULES:
        theirs, ours = (np.array([MEASURES[name](its) for its in rows]) for rows in zip(*done, strict=True))
        cells.append(_difference(theirs, ours))
    return [*lines, "| difference | | " + " | ".join(cells) + " |"]


def every_training(found: Results) -> list[dict[str, Any]]:
    """The table behind the tables: a row for every training."""
    return [
        {
            "method": label,
            "rates": rates(factor),
            "concept": concept,
            **{name: of(its) for name, of in MEASURES.items()},
        }
        for (label, factor), rows in found.items()
        for concept, its in rows.items()
    ]


def _head(columns: Sequence[str]) -> list[str]:
    return ["| method | rates | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 3) + "|"]


def _line(
    name: str, count: int, columns: Sequence[str], values: Mapping[str, Sequence[float]], rates_: str = ""
) -> str:
    cells = [_cell(values[column]) if column in values else "" for column in columns]
    return f"| {name} | {rates_} | {count} | " + " | ".join(cells) + " |"


def _rows(found: Results, columns: Sequence[str]) -> list[str]:
    return [
        _line(label, len(rows), columns, {name: _measured(rows.values(), name) for name in columns}, rates(factor))
        for (label, factor), rows in found.items()
    ]


def _compared(
    label: str, rates_: str, reference: Mapping[str, Any], rows: Mapping[str, Any], measures: Sequence[str]
) -> str:
    common = sorted(set(reference) & set(rows))
    pairs = (
        [np.array(_measured([of[name] for name in common], column)) for of in (reference, rows)] for column in measures
    )
    return f"| {label} | {rates_} | {len(common)} | " + " | ".join(_difference(*pair) for pair in pairs) + " |"


def _measured(rows: Any, name: str) -> list[float]:
    return [MEASURES[name](its) for its in rows]


def _each(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows]


def _both(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    return {name: _each(rows, name) for name in ("identity", "text")}


def _cell(values: Sequence[float]) -> str:
    mean, interval = float(np.mean(values)), scores.bootstrap(np.array(values))
    digits = 0 if mean > 10 else 3
    differs = interval is not None and round(float(np.ptp(values)), digits) != 0
    low, high = (_rounded(its, digits) for its in (interval.low, interval.high)) if interval else (mean, mean)
    between = f" ({low:,.{digits}f} to {high:,.{digits}f})" if differs else ""
    return f"{_rounded(mean, digits):,.{digits}f}{between}"


def _difference(reference: np.ndarray, its: np.ndarray) -> str:
    """The mean of paired differences; a star marks an interval that is without zero as it is printed."""
    mean, interval = scores.paired_difference(reference, its)
    sure = interval is not None and (round(interval.low, 3) > 0 or round(interval.high, 3) < 0)
    between = f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval else ""
    return f"{_rounded(mean, 3):+.3f}{between}{' *' if sure else ''}"


def _plain(values: Sequence[float]) -> str:
    """Their mean."""
    return f"{_rounded(float(np.mean(values)), 3):.3f}"


def _rounded(value: float, digits: int) -> float:
    """Without the sign of a zero."""
    return round(value, digits) + 0.0
