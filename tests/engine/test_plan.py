"""One place resolves every setting, in one order, and knows where each value came from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbooth_cli.engine.catalogue import STABLE_DIFFUSION, TINY, Entry
from attnbooth_cli.engine.changes import differences, edited
from attnbooth_cli.engine.layers import build_plan, setting_keys, setting_variable
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH
from attnbooth_cli.engine.plan import Base, PictureFile, Plan, plan_from_json, plan_json, settings_of
from attnbooth_cli.errors import DamagedError, InputError
from attnbooth_cli.project.manifest import Manifest, UserConfig

PICTURES = (PictureFile("one.png", "0" * 64),)
BASE = Base("tiny", None, "0" * 64, "epsilon")
PICTURES = [PictureFile("1.png", "0" * 64)]


def manifest(**train: object) -> Manifest:
    return Manifest.model_validate(
        {
            "schema": 1,
            "concept": {"name": "c", "category": "cat", "token": "<c>"},
            "base": {"model": "tiny"},
            "train": train,
        }
    )


def plan(entry: Entry = STABLE_DIFFUSION, train: dict[str, object] | None = None, **options) -> Plan:
    return build_plan(manifest(**(train or {})), base=BASE, entry=entry, resolution=512, pictures=PICTURES, **options)[
        0
    ]


def test_the_defaults_are_the_papers() -> None:
    """The stage table of the authors' scripts, digit by digit."""
    stages = {s.name: (s.learning_rate, s.steps, s.batch_size, s.mean_weight, s.variance_weight) for s in plan().stages}
    assert stages == {
        "embedding": (1e-3, 60, 8, 0.1, 0.0),
        "attention": (2e-5, 100, 8, 2.0, 5.0),
        "unet": (2e-6, 500, 8, 2.0, 5.0),
    }
    optimizer = ATTNDREAMBOOTH.optimizer
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-8, 1e-2)
    assert plan().seed == 0


def test_fast_mode_changes_the_unet_stage_alone() -> None:
    slow, fast = plan(), plan(fast=True)
    assert fast.stages[:2] == slow.stages[:2]
    unet = fast.stages[2]
    assert (unet.learning_rate, unet.steps, unet.batch_size) == (1e-5, 200, 4)
    assert (unet.mean_weight, unet.variance_weight) == (2.0, 5.0)


def test_a_base_models_recommendation_and_the_way_around_it() -> None:
    recommended, paper = plan(TINY, fast=True), plan(TINY, fast=True, assignments=["train.schedule=paper"])
    assert [s.learning_rate for s in recommended.stages] == pytest.approx([5e-3, 2e-4, 1e-4])
    assert recommended.augmentation == "upright"
    assert paper.stages == plan(fast=True).stages
    assert paper.augmentation == "published"


def test_each_layer_overrides_the_one_before() -> None:
    """Method < preset < user config < manifest < environment < --set, seen on one setting."""
    key = "train.unet.steps"
    layers: list[tuple[dict, int, str]] = [
        ({}, 500, "method attndreambooth"),
        ({"fast": True}, 200, "--fast"),
        ({"user_config": UserConfig.model_validate({"train": {"unet": {"steps": 11}}})}, 11, "user config"),
        ({"train": {"unet": {"steps": 12}}}, 12, "attnbooth.toml"),
        ({"environment": {"ATTNBOOTH_TRAIN_UNET_STEPS": "13"}}, 13, "environment"),
        ({"assignments": [f"{key}=14"]}, 14, "--set"),
    ]
    options: dict = {}
    for more, value, origin in layers:
        options |= more
        assert settings_of(plan(**options))[key] == (value, origin)


def test_a_manifest_that_overrides_the_named_preset_is_said() -> None:
    _, warnings = build_plan(
        manifest(unet={"steps": 300}), base=BASE, entry=STABLE_DIFFUSION, resolution=512, pictures=PICTURES, fast=True
    )
    assert warnings == ("train.unet.steps = 300 (attnbooth.toml) overrides --fast (200)",)


def test_ablations_are_settings() -> None:
    without = plan(assignments=["train.regulariser=false", "train.attention.enabled=false"])
    assert [stage.name for stage in without.stages_until(None)] == ["embedding", "unet"]
    assert not any(stage.regularised for stage in without.stages)
    assert [stage.name for stage in plan().stages_until("attention")] == ["embedding", "attention"]
    with pytest.raises(InputError, match="nothing would be trained"):
        plan(assignments=[f"train.{stage}.enabled=false" for stage in ("embedding", "attention", "unet")])


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("train.unet.stepz=3", "train.unet.steps"),
        ("train.sed=3", "train.seed"),
        ("train.unet.steps", "KEY=VALUE"),
    ],
)
def test_a_misspelt_setting_names_the_nearest(assignment: str, hint: str) -> None:
    with pytest.raises(InputError) as refused:
        plan(assignments=[assignment])
    assert hint in str(refused.value.message) + str(refused.value.hint)


@pytest.mark.parametrize(
    "assignment",
    ["train.unet.steps=0", "train.unet.steps=1.5", "train.unet.steps=many", "train.seed=-1", "train.resolution=65",
     "train.embedding.learning_rate=nan", "train.regulariser=3", "train.precision=half", "train.prompt=a photo",
     "train.unet.batch_size=4097"],
)  # fmt: skip
def test_a_wrong_value_is_refused(assignment: str) -> None:
    with pytest.raises(InputError, match=assignment.split("=")[0].replace(".", r"\.")):
        plan(assignments=[assignment])


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(InputError, match="ATTNBOOTH_TRAIN_UNET_STEP") as refused:
        plan(environment={"ATTNBOOTH_TRAIN_UNET_STEP": "3"})
    assert "ATTNBOOTH_TRAIN_UNET_STEPS" in str(refused.value.hint)


def test_every_setting_has_its_own_variable_and_an_origin() -> None:
    keys = setting_keys()
    assert len({setting_variable(key) for key in keys}) == len(keys)
    assert set(settings_of(plan())) == set(keys)


def test_a_plan_survives_json() -> None:
    original = plan(fast=True, assignments=["train.seed=7"])
    assert plan_from_json(plan_json(original), "plan.json") == original
    with pytest.raises(DamagedError, match=r"plan\.json"):
        plan_from_json(plan_json(original).replace('"seed": 7', '"seed": "x"'), "plan.json")


@given(st.text(max_size=60))
def test_any_text_is_a_plan_or_damage(text: str) -> None:
    with pytest.raises(DamagedError):
        plan_from_json(text, "plan.json")


def test_what_makes_another_experiment() -> None:
    reference = plan()
    for harmless in ("train.device=cpu", "train.checkpoint_every=7", "train.micro_batch_size=2"):
        assert plan(assignments=[harmless]).digest == reference.digest
    for decisive in ("train.seed=1", "train.unet.steps=499", "train.augmentation=upright", "train.regulariser=false"):
        other = plan(assignments=[decisive])
        assert other.digest != reference.digest
        assert differences(reference, other)
    (only,) = differences(reference, plan(assignments=["train.unet.steps=499"]))
    assert only == "stages.unet.steps: 500 -> 499"
    assert differences(reference, plan(train={"method": "lora"})) == ("method: attndreambooth -> lora",)


def test_smoke_is_two_steps_of_two_whatever_else_is_said() -> None:
    small = plan(smoke=True, fast=True, train={"unet": {"steps": 300}})
    assert {(stage.steps, stage.batch_size) for stage in small.stages} == {(2, 2)}
    assert small.smoke


@given(
    st.dictionaries(
        st.sampled_from([key for key in setting_keys() if key.endswith((".steps", ".batch_size"))]),
        st.integers(1, 4096),
        max_size=6,
    )
)
def test_assignments_arrive_and_nothing_else_moves(values: dict[str, int]) -> None:
    before, after = settings_of(plan()), settings_of(plan(assignments=[f"{k}={v}" for k, v in values.items()]))
    assert {key: after[key][0] for key in values} == values
    assert all(after[key] == before[key] for key in before if key not in values)


@pytest.mark.parametrize(
    ("begun", "now", "said"),
    [
        ({}, {}, ()),
        ({}, {"unet": {"steps": 500}}, ()),
        ({}, {"unet": {"steps": 12}}, ("train.unet.steps: 500 -> 12",)),
        ({"train": {"unet": {"steps": 12}}}, {"unet": {"steps": 12}}, ()),
        ({"train": {"unet": {"steps": 12}}}, {}, ("train.unet.steps: 12 -> not said",)),
        ({"train": {"schedule": "paper"}}, {"schedule": "recommended"}, ("train.schedule: paper -> recommended",)),
        ({}, {"checkpoint_every": 7, "device": "cpu", "micro_batch_size": 1}, ()),
        ({"assignments": ["train.unet.steps=14"]}, {"unet": {"steps": 12}}, ()),
        ({"environment": {"ATTNBOOTH_TRAIN_SEED": "4"}}, {"seed": 5}, ()),
        ({}, {"regulariser": False}, ("train.regulariser: True -> False",)),
    ],
)
def test_what_a_manifest_has_come_to_say_since_a_run_was_begun(begun: dict, now: dict, said: tuple[str, ...]) -> None:
    """Named where another concept would come of it, unless something stronger went before it from the start."""
    assert edited(plan(**begun), manifest(**now)) == said


def test_an_edited_concept_is_named() -> None:
    other = manifest()
    other = other.model_copy(update={"concept": other.concept.model_copy(update={"token": "<d>", "name": "else"})})
    assert edited(plan(), other) == ("concept.token: <c> -> <d>",)
