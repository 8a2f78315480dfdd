"""The comparison in miniature: one concept, short trainings, a few prompts, judges with random weights; its numbers."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.scores import Interval
from attnbooth_cli.errors import DivergedError
from benchmarks import memory
from benchmarks.judges import Classifier, InstanceEncoder
from benchmarks.paper_table import __main__ as command
from benchmarks.paper_table import page, peaks, plots, run, units
from benchmarks.paper_table.claims import claim_lines, verdict
from benchmarks.paper_table.units import PUBLISHED, Unit
from benchmarks.paper_table.variants import VARIANTS, changes_of
from tests.conftest import EXAMPLE, scored_in
from tools.tiny.dataset import ATTRIBUTES

METHODS = ("attndreambooth", "textual-inversion", "attndreambooth-without-regulariser")
SHORT = tuple(
    f"train.{stage}.{setting}"
    for stage in ("embedding", "attention", "unet")
    for setting in ("steps=1", "batch_size=1")
)


OPTIONS_OF = run.options_of
"""As it is, before `small` shortens what it says."""


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A work folder; the concepts are the examples, their true pictures stand-ins."""
    from attnbooth_cli.engine import prompts, session

    simple = {name: its[:1] for name, its in prompts.EVALUATION["tiny"].items()}
    complex_ = prompts.COMPLEX["tiny"]["complex"][:2]
    root = tmp_path_factory.mktemp("table")
    for split, names in {"tuning": ("cat", "mushroom"), "test": ("mushroom",)}.items():
        for name in names:
            folder = root / "concepts" / split / name
            shutil.copytree(EXAMPLE / name, folder / "images")
            (folder / "truth").mkdir()
            pictures = sorted((folder / "images").iterdir())
            for number in range(len(simple) + len(complex_)):
                shutil.copy(pictures[number % len(pictures)], folder / "truth" / f"{number + 1}.png")
    torch.manual_seed(0)
    of = session.sampling_settings
    options = run.options_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "CONCEPTS", root / "concepts")
        patch.setattr(units, "FACTORS", (3.0,))
        patch.setattr(units, "LADDER", (3.0,))
        patch.setattr(units, "FINALISTS", 1)
        patch.setattr(units, "searched", lambda: list(METHODS[:2]))
        for listed in (units.table_units, units.of_each_method):
            patch.setattr(listed, "__defaults__", (METHODS,))
        patch.setattr(units, "SUGGESTED", {"upright": METHODS[:1]})
        patch.setattr(units, "PROBED", {"4-vectors": METHODS[1:2]})
        patch.setattr(run, "PICTURES", 1)
        patch.setitem(prompts.EVALUATION, "tiny", simple)
        patch.setitem(prompts.COMPLEX, "tiny", {"complex": complex_})
        patch.setitem(prompts.DRIFT, "tiny", prompts.DRIFT["tiny"][2:4])
        patch.setattr(run, "PROMPTS", [prompt for its in simple.values() for prompt in its])
        patch.setattr(run, "COMPLEX_PROMPTS", complex_)
        patch.setattr(plots, "PROMPTS", run.PROMPTS)
        for module in (run, plots):
            patch.setattr(module, "SHOWN", (0, 2, 3))
        patch.setattr(
            run, "options_of", lambda unit: replace(options(unit), settings=(*options(unit).settings, *SHORT))
        )
        patch.setattr(run, "load_classifier", lambda: Classifier(ATTRIBUTES).eval().requires_grad_(False))
        patch.setattr(run, "load_instance_encoder", lambda: InstanceEncoder().eval().requires_grad_(False))
        patch.setattr(session, "sampling_settings", lambda *a: replace(of(*a), steps=1))
        scored_in(1, patch)
        yield root / "work"


def test_the_whole_comparison(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, ever = run.Desk(ComponentPool(keep=True)), math.inf
    with pytest.raises(SystemExit, match="the end of attndreambooth"):
        units.best_factors(small)
    assert not command.work_through(units.rate_units(), small, desk, until=0)
    assert command.work_through(units.rate_units(), small, desk, ever)
    with pytest.raises(SystemExit, match="the end of attndreambooth"):  # on both concepts
        units.best_factors(small)
    finalists = units.finalist_units(small)
    assert [(unit.method, unit.concept) for unit in finalists] == [(method, "mushroom") for method in METHODS[:2]]
    assert command.work_through(finalists, small, desk, ever)
    best = units.best_factors(small)
    assert best == {"attndreambooth": 3.0, "textual-inversion": 3.0}
    table = units.table_units(best)
    assert [(unit.label, unit.factor) for unit in table] == [
        ("attndreambooth", best["attndreambooth"]),
        ("textual-inversion", best["textual-inversion"]),
        ("attndreambooth-without-regulariser", best["attndreambooth"]),
        ("attndreambooth fast", best["attndreambooth"]),
        ("attndreambooth upright", best["attndreambooth"]),
        ("attndreambooth", PUBLISHED),
        ("textual-inversion", PUBLISHED),
    ]
    assert command.work_through(table, small, desk, ever)
    assert command.work_through(units.probe_units(best), small, desk, ever)
    before = {path: path.read_bytes() for path in (small / "results").rglob("*.json")}
    assert command.work_through(table, small, desk, ever)  # nothing is done twice
    assert {path: path.read_bytes() for path in (small / "results").rglob("*.json")} == before

    shutil.copy(command.PAGE, tmp_path / "page.md")
    monkeypatch.setattr(command, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(command, "PICTURES", tmp_path)
    command.write_page(small)
    written = (tmp_path / "page.md").read_text("utf-8")
    before_it, _, after_it = command.PAGE.read_text("utf-8").partition("<!-- scores: begin -->")
    assert written.startswith(before_it[:200])
    assert written.endswith(after_it[-200:])

    def part(name: str) -> list[str]:
        return written.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0].strip().splitlines()

    lines = part("scores")
    assert lines[2].startswith("| the true pictures |")
    assert lines[-2].startswith("| the untuned model |")
    assert lines[-1].startswith("| the training pictures |")
    rows = len({(unit.label, unit.factor) for unit in table})
    assert [len(part(name)) for name in ("scores", "beyond")] == [2 + 3 + rows, 2 + 2 + rows]
    assert len(part("second differences")) == 2 + 4
    assert len(part("second opinion")) == 2 + 1 + rows
    assert len(part("differences")) == 2 + 4
    assert len(part("published")) == 2 + 2
    assert len(part("costs")) == 2 + 5
    assert part("state") == []  # all of it was run
    assert len(part("made by")) == 2
    assert part("rates")[2].startswith("| attndreambooth | x 3 |")
    assert (small / "table.csv").read_text().count("\n") == 1 + len(table)
    assert len(part("claims")) == 4  # of which both rows were run
    assert len(part("why")) == 2 + 3
    assert part("contenders") == []  # nobody ran them
    for name in ("scores", "rates", "sheet", "fast"):
        assert (tmp_path / f"comparison-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_claim_holds_where_the_whole_interval_says_so() -> None:
    assert verdict(Interval(0.01, 0.2)) == "held"
    assert verdict(Interval(-0.01, 0.2)) == "not shown"
    assert verdict(Interval(-0.2, -0.1)) == "the contrary held"
    assert verdict(None) == "too few concepts"
    assert verdict(Interval(-0.02, 0.01), close=0.03) == "held"
    assert verdict(Interval(-0.02, 0.2), close=0.03) == "not shown"
    assert verdict(Interval(0.1, 0.2), close=0.03) == "did not hold"


def result_of(identity: float, text: float = 0.4) -> dict[str, object]:
    """As much of a training's result as the tables read."""
    return {
        "identity": identity,
        "text": text,
        "groups": {name: {"identity": identity} for name in ("background", "environment")},
        "complex": {"identity": identity, "text": text},
        "drift": 0.1,
        "drift of": {"category": 0.1, "others": 0.1},
        "copies": 0,
        "untuned": {"identity": 0.0, "text": 0.6},
        "truth": {"identity": 1.0, "text": 0.5},
    }


def test_a_claim_of_two_measures_is_told_of_each() -> None:
    def found(identity: float, text: float) -> dict[str, dict[str, object]]:
        return {str(k): result_of(identity + 0.1 * k, text + 0.001 * k) for k in range(8)}

    best = {"attndreambooth": 3.0, "ti-db": 1.0}
    rows = {("attndreambooth", 3.0): found(0.6, 0.2), ("ti-db", 1.0): found(0.5, 0.3)}
    (line,) = claim_lines(rows, best)
    assert "identity +0.100 (+0.100 to +0.100), **held**; text -0.100" in line
    assert "text -0.100 (-0.100 to -0.100), **the contrary held**; in scenes +0.100" in line
    assert "text up to the true pictures' -0.100 (-0.100 to -0.100); merit -0.1" in line
    assert "8 concepts" in line


def test_a_unit_is_anyones_whose_owner_has_gone(tmp_path: Path) -> None:
    unit = Unit("attndreambooth", PUBLISHED, "test", "cat")
    with units.claimed(tmp_path, unit) as mine:
        assert mine
        with units.claimed(tmp_path, unit) as again:
            assert not again
    holds = (
        "from pathlib import Path; from benchmarks.paper_table import units\n"
        f"with units.claimed(Path({str(tmp_path)!r}), units.Unit('attndreambooth', 1.0, 'test', 'cat')) as mine:\n"
        "    print(mine, flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"True\n"
    with units.claimed(tmp_path, unit) as mine:
        assert not mine
    other.kill()
    other.communicate()
    with units.claimed(tmp_path, unit) as mine:
        assert mine
    units.write_result(tmp_path, unit, {"identity": 1})
    with units.claimed(tmp_path, unit) as mine:
        assert not mine


def test_rates_are_the_published_ones_times_the_factor() -> None:
    settings = OPTIONS_OF(Unit("ti-db", 10.0, "test", "cat")).settings
    assert "train.schedule=paper" in settings
    assert "train.embedding.learning_rate=0.01" in settings
    assert "train.unet.learning_rate=2e-05" in settings
    assert not any("attention.learning_rate" in setting for setting in settings)
    assert not any("augmentation" in setting for setting in settings)
    assert "train.augmentation=upright" in OPTIONS_OF(Unit("ti-db", 10.0, "test", "cat", "upright")).settings
    assert "train.attention.embedding_rate=0.05" in OPTIONS_OF(Unit("vico", 10.0, "test", "cat")).settings


def test_a_variant_changes_the_schedule_and_how_many_samples_are_seen(tmp_path: Path) -> None:
    from attnbooth_cli.engine.initialisation import init
    from attnbooth_cli.engine.preparation import prepare

    init(tmp_path / "p", images=[EXAMPLE / "cat"], category="cat", model="tiny")
    for variant in VARIANTS:
        unit = Unit("attndreambooth", 10.0, "tuning", "cat", variant)
        plan = prepare(tmp_path / "p", OPTIONS_OF(unit)).plan
        assert sum(stage.steps * stage.batch_size for stage in plan.stages) == units.samples(unit)
    fast, halved = (
        {stage.name: stage for stage in prepare(tmp_path / "p", OPTIONS_OF(unit)).plan.stages}
        for unit in (Unit("attndreambooth", 10.0, "tuning", "cat", its) for its in ("fast", "fast-half-3"))
    )
    upright = prepare(tmp_path / "p", OPTIONS_OF(Unit("attndreambooth", 1.0, "tuning", "cat", "fast-upright"))).plan
    assert upright.augmentation == "upright"
    assert (fast["unet"].steps, fast["unet"].learning_rate, fast["unet"].batch_size) == (200, 1e-4, 4)
    assert (halved["unet"].steps, halved["unet"].learning_rate) == (100, 2e-4)
    assert fast["attention"] == halved["attention"]


def test_a_probe_has_the_rates_it_says_beside_the_method_as_it_is(tmp_path: Path) -> None:
    from attnbooth_cli.engine.initialisation import init
    from attnbooth_cli.engine.preparation import prepare

    best = {"attndreambooth": 10.0, "textual-inversion": 300.0, "ti-db": 300.0, "lora": 30.0}
    todo = units.probe_units(best)
    assert {unit.concept for unit in todo} == set(units.searched_on())
    assert len(set(todo)) == len(todo)
    plans, way = {}, {}
    for unit in todo:
        root = tmp_path / unit.name
        init(root, images=[EXAMPLE / "cat"], category="cat", model="tiny")
        run.write_concept(root, changes_of(unit.variant).get("concept", {}))
        plan = prepare(root, OPTIONS_OF(unit)).plan
        plans[unit.label] = (plan.concept.vectors, {its.name: its.learning_rate for its in plan.stages if its.enabled})
        way[unit.label] = [its.learning_rate * its.steps for its in plan.stages if its.name == "unet"]
    ours, rival = plans["attndreambooth"][1], plans["ti-db"][1]
    assert plans["textual-inversion 4-vectors"] == (4, plans["textual-inversion"][1])
    assert plans["attndreambooth strong-unet"] == (1, {**ours, "unet": rival["unet"]})
    assert plans["ti-db weak-embedding"] == (1, {**rival, "embedding": ours["embedding"]})
    weak = {**ours, "unet": 2e-6}
    for left_out in ("embedding", "attention"):
        its = plans[f"attndreambooth-without-{left_out} weak-unet"]
        assert its == (1, {name: rate for name, rate in weak.items() if name != left_out})
    assert plans["attndreambooth-without-regulariser weak-unet"] == (1, weak)
    assert way["attndreambooth fast"] == pytest.approx([2 * its for its in way["attndreambooth"]])
    assert way["attndreambooth fast-same-way"] == pytest.approx(way["attndreambooth"])

    assert page.probe_table(tmp_path, todo)[2:] == []
    for number, unit in enumerate(todo):
        units.write_result(tmp_path, unit, {"diverged": "at step 3"} if number == 2 else result_of(0.5))
    lines = page.probe_table(tmp_path, todo)
    assert lines[3].startswith("| textual-inversion | x 300 | 1 | 0.500 (0.500) |")
    assert lines[-1].startswith("| attndreambooth fast-same-way | x 10 | 2 | 0.500 (0.500, 0.500) |")


def test_the_best_factor_is_that_of_most_merit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "searched", lambda: ["lora"])
    names = units.concepts("tuning")[:2]

    def score(factor: float, *identities: float) -> None:
        for name, identity in zip(names, identities, strict=False):
            units.write_result(tmp_path, Unit("lora", factor, "tuning", name), result_of(identity))

    score(1.0, 0.5, 0.5)
    score(3.0, 0.6)
    score(10.0, 0.99)
    with pytest.raises(SystemExit, match="the end of lora"):  # not all four were tried
        units.best_factors(tmp_path)
    score(30.0, 0.2)
    score(3.0, 0.6, 0.8)
    assert {unit.factor for unit in units.finalist_units(tmp_path)} == {10.0, 3.0}
    with pytest.raises(SystemExit, match="the end of lora"):  # one of them was not tried on the second concept
        units.best_factors(tmp_path)
    score(10.0, 0.99, 0.1)
    assert units.best_factors(tmp_path) == {"lora": 3.0}
    units.write_result(tmp_path, Unit("lora", 3.0, "tuning", names[1]), {"diverged": "at step 3"})
    assert units.best_factors(tmp_path) == {"lora": 10.0}


def test_the_search_goes_on_where_the_best_factor_is_the_lowest_or_the_highest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "searched", lambda: ["lora", "oft", "vico"])
    first = units.concepts("tuning")[0]

    def score(method: str, factor: float, identity: float) -> None:
        units.write_result(tmp_path, Unit(method, factor, "tuning", first), result_of(identity))

    def tried() -> list[tuple[str, float]]:
        return [(unit.method, unit.factor) for unit in units.wider_units(tmp_path)]

    for number, factor in enumerate(units.FACTORS):
        score("lora", factor, 0.1 * number)
        score("oft", factor, -0.1 * number)
        score("vico", factor, 0.1 * (factor == 3.0))
    assert tried() == [("lora", 100.0), ("oft", 0.3)]
    score("lora", 100.0, 0.0)
    score("oft", 0.3, 0.5)
    assert tried() == [("oft", 0.1)]
    score("oft", 0.1, 0.4)
    assert tried() == []


def test_it_goes_on_with_both_concepts_where_the_best_by_both_is_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "searched", lambda: ["lora"])
    names = units.concepts("tuning")[:2]

    def score(factor: float, *identities: float) -> None:
        for name, identity in zip(names, identities, strict=False):
            units.write_result(tmp_path, Unit("lora", factor, "tuning", name), result_of(identity))

    score(1.0, 0.1)
    score(3.0, 0.2)
    score(10.0, 0.6, 0.3)
    score(30.0, 0.5, 0.7)
    assert units.wider_units(tmp_path) == []  # on the first, 10 is between others
    assert units.last_units(tmp_path) == [Unit("lora", 100.0, "tuning", name) for name in names]
    for name in names:
        units.write_result(tmp_path, Unit("lora", 100.0, "tuning", name), {"diverged": "at step 3"})
    assert units.last_units(tmp_path) == []


def test_a_method_that_diverges_is_done_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object) -> None:
        raise DivergedError("the loss is not finite")

    monkeypatch.setattr(command, "do", diverge)
    unit = Unit("lora", 3000.0, "test", "cat")
    assert command.work_through([unit], tmp_path, run.Desk(ComponentPool()), math.inf)
    assert units.is_done(tmp_path, unit)
    assert units.result(tmp_path, unit) is None
    unfinished, diverged = page.state_lines(tmp_path, dict.fromkeys(units.searched(), 3000.0))
    assert unfinished.startswith("**Not run to the end yet**: 1 of ")
    assert diverged.startswith("1 training of `lora` diverged")


def test_neither_copying_nor_obeying_alone_has_the_merit_of_both() -> None:
    truth, untuned = {"identity": 0.9, "text": 0.5}, {"identity": 0.3, "text": 0.6}
    scored = {"truth": truth, "untuned": untuned}  # what a method scored is beside them
    copies = units.merit({"identity": 1.0, "text": 0.1, **scored})  # more like the concept than the truth is
    obeys = units.merit({"identity": 0.3, "text": 0.6, **scored})
    assert units.merit({**truth, **scored}) == pytest.approx(2)
    both = units.merit({"identity": 0.8, "text": 0.5, **scored})
    assert copies == pytest.approx(1.2)
    assert obeys == pytest.approx(1)
    assert both > 1.5


def test_differences_are_paired_over_concepts() -> None:
    ours = {str(k): result_of(0.5 + 0.1 * k) for k in range(6)}
    theirs = {str(k): result_of(0.4 + 0.1 * k) for k in range(6)}
    best = {"attndreambooth": 3.0, "lora": 10.0}
    found_ = {("attndreambooth", 3.0): ours, ("lora", 10.0): theirs, ("lora", PUBLISHED): ours}
    lines = page.difference_table(found_, best)
    assert len(lines) == 3
    assert "-0.100 (-0.100 to -0.100) *" in lines[2]
    assert "+0.000 (+0.000 to +0.000) |" in lines[2]


def test_contenders_are_compared_where_both_were_run(tmp_path: Path) -> None:
    (old, others), (new, its_others) = (
        units.contender_units({"attndreambooth": 10.0}, its) for its in ("fast", "fast-upright")
    )
    assert [unit.concept for unit in (*old, *others)] == units.concepts("tuning")
    for number, unit in enumerate(old):
        for its, more in ((unit, 0.0), (new[number], 0.1)):
            units.write_result(tmp_path, its, result_of(0.1 * number + more))
    units.write_result(tmp_path, its_others[-1], {"identity": 9.0})
    lines = page.contender_table(tmp_path, old, new, "chosen")
    assert lines[0].startswith("| chosen (3) | samples | identity |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| fast", "| fast-upright", "| difference"]
    assert "| +0.100 | +0.000 |" in lines[-1]  # three concepts are too few for an interval
    assert page.contender_table(tmp_path, others, its_others, "others") == []  # of each, one of the two is missing


def test_the_judges_are_asked_for_what_the_prompts_ask_for() -> None:
    assert run.asked_for("a photo of a red {} on green grass") == {"scene": "grass", "style": "photo", "colour": "red"}
    assert run.asked_for("a cartoon of a {} in the mountains")["style"] == "drawing"


def test_drift_of_the_category_is_told_apart() -> None:
    pairs = [
        {"prompt": "a photo of a teddy bear", "drift": 0.6},
        {"prompt": "a photo of a teddy bear on the road", "drift": 0.8},
        {"prompt": "a photo of an owl in the forest", "drift": 0.1},
    ]
    assert run.drift_of(pairs, "teddy bear") == {"category": pytest.approx(0.7), "others": pytest.approx(0.1)}


def test_peaks_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    peaks.measure([Unit("vico", PUBLISHED, "test", "cat")], tmp_path)
    assert 300 < peaks.measured(tmp_path)["vico"] < 3000


def test_the_peak_of_memory_is_that_since_it_was_forgotten() -> None:
    memory.forget_peak()
    before = memory.peak_bytes()
    held = torch.ones(50_000_000)
    assert memory.peak_bytes() > before + 190e6
    del held
    memory.forget_peak()
    assert memory.peak_bytes() < before + 100e6
