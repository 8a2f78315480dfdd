"""From results to the page: tables with intervals over concepts, a scatter plot, and a sheet of pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH, METHODS
from attnbooth_cli.reports.heatmaps import labelled_strip
from benchmarks.paper_table.units import SHOWN, Unit, concepts, rates, result, samples, strip_of, table_units

Row = tuple[str, float]
"""A method (and its variant) and the factor of its rates."""
Results = Mapping[Row, Mapping[str, dict[str, Any]]]
"""By row and concept."""

COLUMNS: Mapping[str, Callable[[dict[str, Any]], float]] = {
    "identity": lambda found: found["identity"],
    "text": lambda found: found["text"],
    "complex: identity": lambda found: found["complex"]["identity"],
    "complex: text": lambda found: found["complex"]["text"],
    "drift": lambda found: found["drift"],
    "CPU seconds": lambda found: found["seconds"],
    "peak MB": lambda found: found["peak_mb"],
}
COSTS = ("CPU seconds", "peak MB")
SECOND_OPINION = ("identity", "object", "scene", "style")


def gathered(work: Path, best: Mapping[str, float]) -> Results:
    """Every result there is, the best rates of each method before the published ones."""
    found: dict[Row, dict[str, dict[str, Any]]] = {}
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


def rates_table(best: Mapping[str, float]) -> list[str]:
    """With which factor of its published rates each method came out best."""
    rows = [f"| {method} | {rates(factor)} |" for method, factor in best.items()]
    return ["| method | learning rates |", "|---|---|", *rows]


def main_table(found: Results) -> list[str]:
    """Means over concepts with 95 % intervals; the true pictures above, the untuned model below."""
    lines = ["| method | rates | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    everything = [its for by_concept in found.values() for its in by_concept.values()]
    per_concept = {its["concept"]: its for its in everything}.values()
    above = {"identity": "identity", "text": "text"}
    lines.append(_reference("the true pictures", [its["truth"] for its in per_concept], above, complex_too=True))
    for (method, factor), by_concept in found.items():
        cells = [_cell([column(its) for its in by_concept.values()]) for column in COLUMNS.values()]
        lines.append(f"| {method} | {rates(factor)} | " + " | ".join(cells) + " |")
    lines.append(_reference("the untuned model", [its["untuned"] for its in per_concept], above, complex_too=False))
    return lines


def second_opinion_table(found: Results) -> list[str]:
    """What the independent judges say."""
    lines = ["| method | rates | " + " | ".join(SECOND_OPINION) + " |", "|---" * (len(SECOND_OPINION) + 2) + "|"]
    per_concept = {its["concept"]: its for rows in found.values() for its in rows.values()}.values()
    truth = [_cell([its["truth"]["second opinion"][name] for its in per_concept]) for name in SECOND_OPINION]
    lines.append("| the true pictures | | " + " | ".join(truth) + " |")
    for (method, factor), by_concept in found.items():
        cells = [_cell([its["second opinion"][name] for its in by_concept.values()]) for name in SECOND_OPINION]
        lines.append(f"| {method} | {rates(factor)} | " + " | ".join(cells) + " |")
    return lines


def difference_table(found: Results, best: Mapping[str, float], ours: str = ATTNDREAMBOOTH.name) -> list[str]:
    """How much less than our method every other scores, over the same concepts, each at its best rates."""
    names = [name for name in COLUMNS if name not in COSTS]
    lines = ["| method | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    reference = found[(ours, best[ours])]
    for (method, factor), by_concept in found.items():
        if method == ours or factor != best[family(method)]:
            continue
        common = sorted(set(reference) & set(by_concept))
        cells = []
        for name in names:
            theirs, its = (
                np.array([COLUMNS[name](of[concept]) for concept in common]) for of in (reference, by_concept)
            )
            cells.append(_difference(theirs, its))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def family(row: str) -> str:
    """Whose rates a row has: "attndreambooth-without-unet" and "attndreambooth fast" have attndreambooth's."""
    return METHODS[row.partition(" ")[0]].family


def by_variant(work: Path, todo: Sequence[Unit]) -> dict[str, list[dict[str, Any]]]:
    """The results there are, by schedule."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for unit in todo:
        if (found := result(work, unit)) is not None:
            rows.setdefault(unit.variant or "default", []).append(found)
    return rows


def fast_table(work: Path, todo: Sequence[Unit]) -> list[str]:
    """The second look at fast mode: how many samples each schedule sees, and what it scores, cheapest first."""
    columns = [name for name in COLUMNS if name not in COSTS]
    rows = by_variant(work, todo)
    lines = ["| schedule | samples | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, its in sorted(rows.items(), key=lambda item: item[1][0]["samples"]):
        cells = [_cell([COLUMNS[column](found) for found in its]) for column in columns]
        lines.append(f"| {name} | {its[0]['samples']:,} | " + " | ".join(cells) + " |")
    return lines


def contender_table(work: Path, old: Sequence[Unit], new: Sequence[Unit], which: str) -> list[str]:
    """What two schedules score on the same concepts, which are the ones so called, and the second less the first."""
    names = [name for name in COLUMNS if name not in COSTS]
    pairs = [(result(work, its), result(work, other)) for its, other in zip(old, new, strict=True)]
    done = [(first, second) for first, second in pairs if first is not None and second is not None]
    if not done:
        return []
    lines = [f"| {which} ({len(done)}) | samples | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for unit, rows in zip((old[0], new[0]), zip(*done, strict=True), strict=True):
        cells = [_cell([COLUMNS[name](its) for its in rows]) for name in names]
        lines.append(f"| {unit.variant} | {samples(unit):,} | " + " | ".join(cells) + " |")
    cells = []
    for name in names:
        theirs, ours = (np.array([COLUMNS[name](its) for its in rows]) for rows in zip(*done, strict=True))
        cells.append(_difference(theirs, ours))
    return [*lines, "| difference | | " + " | ".join(cells) + " |"]


def fast_curve(work: Path, todo: Sequence[Unit]) -> bytes:
    """Identity and text against the samples seen, each schedule a point, a PNG."""
    from matplotlib.figure import Figure

    rows = by_variant(work, todo)
    figure = Figure((9, 4.5), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), ("identity", "text"), strict=True):
        for name, its in rows.items():
            x, y = its[0]["samples"], float(np.mean([found[measure] for found in its]))
            axes.plot(x, y, "o", markersize=5)
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 3), fontsize=6)
        axes.set_xlabel("samples seen in training")
        axes.set_ylabel(measure)
        axes.grid(alpha=0.2)
    return _png(figure)


def scatter(found: Results, best: Mapping[str, float]) -> bytes:
    """Identity against text of every row, a PNG; hollow at the published rates."""
    from matplotlib.figure import Figure

    figure = Figure((8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for (method, factor), by_concept in found.items():
        x, y = (np.mean([its[name] for its in by_concept.values()]) for name in ("text", "identity"))
        chosen = factor == best[family(method)]
        (dots,) = axes.plot(x, y, "o", fillstyle="full" if chosen else "none", markersize=7)
        axes.annotate(method, (x, y), textcoords="offset points", xytext=(6, 3), fontsize=7, color=dots.get_color())
    per_concept = {its["concept"]: its for rows in found.values() for its in rows.values()}.values()
    for name, marker in (("truth", "*"), ("untuned", "x")):
        x, y = (np.mean([its[name][measure] for its in per_concept]) for measure in ("text", "identity"))
        axes.plot(x, y, marker, color="black", markersize=9)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 3), fontsize=8)
    axes.set_xlabel("text")
    axes.set_ylabel("identity")
    axes.grid(alpha=0.2)
    return _png(figure)


def sheet(work: Path, best: Mapping[str, float], methods: Sequence[str]) -> Image.Image:
    """The first picture of some prompts by each method at its best rates, the true pictures above; never picked."""
    cells: dict[str, Image.Image] = {}
    for method in methods:
        unit = Unit(method, best[family(method)], "test", concepts("test")[0])
        if not strip_of(work, unit).exists():
            continue
        if not cells:
            cells |= {f"true {number}": Image.open(unit.truth / f"{number + 1}.png") for number in SHOWN}
        strip = Image.open(strip_of(work, unit))
        for column, number in enumerate(SHOWN):
            side = strip.height
            cells[f"{method} {number}"] = strip.crop((column * side, 0, (column + 1) * side, side))
    return labelled_strip({name: its.convert("RGB") for name, its in cells.items()}, columns=len(SHOWN))


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _cell(values: Sequence[float]) -> str:
    interval = scores.bootstrap(np.array(values))
    digits = 0 if np.mean(values) > 10 else 3
    between = f" ({interval.low:.{digits}f} to {interval.high:.{digits}f})" if interval else ""
    return f"{np.mean(values):.{digits}f}{between}"


def _difference(reference: np.ndarray, its: np.ndarray) -> str:
    """The mean of paired differences; a star marks an interval without zero."""
    mean, interval = scores.paired_difference(reference, its)
    sure = interval is not None and not interval.low <= 0 <= interval.high
    between = f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval else ""
    return f"{mean:+.3f}{between}{' *' if sure else ''}"


def _reference(name: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, complex_too: bool) -> str:
    cells = {column: _cell([row[key] for row in rows]) for column, key in columns.items()}
    if complex_too:
        cells |= {f"complex: {key}": _cell([row["complex"][key] for row in rows]) for key in columns.values()}
    return f"| {name} | | " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |"
