"""`--memory`: what each preset changes, AdamW in 8 bits, LoRA after two other stages, and frozen models put aside."""

from __future__ import annotations

import importlib.machinery
import json
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from attnbooth_cli.engine import adapters, concept, footprint, offload, optimizers, requirements
from attnbooth_cli.engine.base_models import bundled_folder, resolve
from attnbooth_cli.engine.catalogue import STABLE_DIFFUSION, TINY
from attnbooth_cli.engine.changes import continued, differences
from attnbooth_cli.engine.families import ComponentPool, load_components
from attnbooth_cli.engine.generation import generate
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.layers import build_plan
from attnbooth_cli.engine.methods import METHODS, AdamW, StageName
from attnbooth_cli.engine.plan import plan_from_json, plan_json, settings_of
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.snapshots import take
from attnbooth_cli.engine.training import resume, train
from attnbooth_cli.errors import InputError, ResourceError, StoppedError
from attnbooth_cli.events import Event, Stepped
from attnbooth_cli.project.project import Project
from tests.conftest import Cli
from tests.engine.conftest import EXAMPLE
from tests.engine.test_plan import BASE, manifest, plan

SHORT = (
    "train.embedding.steps=2",
    "train.attention.steps=3",
    "train.unet.steps=4",
    "train.embedding.batch_size=3",
    *(f"train.{stage}.batch_size=2" for stage in ("attention", "unet")),
    "train.augmentation_pool=4",  # which makes five, as there are five pictures
    "train.checkpoint_every=2",
    "train.snapshot_every=2",
)
LORA = TrainOptions(memory="8gb", save_precision="float32", settings=(*SHORT, "train.optimizer=adamw"))


@pytest.fixture(scope="module")
def pool() -> ComponentPool:
    return ComponentPool(keep=True)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("memory") / "pristine"
    init(root, images=[EXAMPLE], category="cat", model="tiny", token="<it>")
    return root


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "project"))


@pytest.fixture(scope="module")
def trained_once(pristine: Path, pool: ComponentPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages, the last with LoRA, never interrupted. Read only."""
    root = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("lora") / "project"))
    train(root, options=LORA, pool=pool, report=False)
    return root


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "checkpointing", "micro", "optimizer", "adapter"),
    [
        ("auto", False, 0, "adamw", None),
        ("high", False, 0, "adamw", None),
        ("24gb", True, 0, "adamw", None),
        ("16gb", True, 1, "adamw8bit", None),
        ("8gb", True, 1, "paged_adamw8bit", "lora"),
    ],
)
def test_what_a_preset_changes(name: str, checkpointing: bool, micro: int, optimizer: str, adapter: str | None) -> None:
    made, plain = plan(flags={"train.memory": name}), plan()
    assert (made.gradient_checkpointing, made.micro_batch_size, made.optimizer) == (checkpointing, micro, optimizer)
    assert made.stages[:2] == plain.stages[:2]
    if adapter is None:
        assert made.stages == plain.stages
    else:
        assert made.stages[2] == replace(plain.stages[2], adapter="lora", adapter_size=16, learning_rate=1e-4)
    assert (made.digest == plain.digest) == (name in ("auto", "high", "24gb"))  # else the concept is another
    assert plan_from_json(plan_json(made), "plan.json") == made


def test_a_preset_is_below_what_a_person_says_and_above_fast_mode() -> None:
    made, warnings = build_plan(
        manifest(memory="8gb", micro_batch_size=2), base=BASE, entry=TINY, resolution=64, pictures=[], fast=True
    )
    settings = settings_of(made)
    assert settings["train.memory"] == ("8gb", "attnbooth.toml")
    assert settings["train.micro_batch_size"] == (2, "attnbooth.toml")
    assert settings["train.unet.steps"] == (200, "--fast, rates for tiny")
    assert settings["train.unet.adapter"] == ("lora", "--memory 8gb")
    assert settings["train.unet.learning_rate"] == (1e-3, "--memory 8gb")  # ten times, as all rates of that stage
    assert warnings == ("train.micro_batch_size = 2 (attnbooth.toml) overrides --memory 8gb (1)",)


def test_without_lora_its_rate_is_not_taken_either() -> None:
    made, warnings = build_plan(
        manifest(unet={"adapter": "none"}),
        base=BASE,
        entry=STABLE_DIFFUSION,
        resolution=512,
        pictures=[],
        flags={"train.memory": "8gb"},
    )
    assert made.stages == plan().stages
    assert warnings == ("train.unet.adapter = none (attnbooth.toml) overrides --memory 8gb (lora)",)


@pytest.mark.parametrize("name", METHODS)
def test_lora_takes_the_place_of_a_whole_unet_only(name: str) -> None:
    small = plan(flags={"train.method": name, "train.memory": "8gb"}).stages
    whole = METHODS[name].stages[2].enabled and METHODS[name].stages[2].adapter is None
    assert (small[2] != plan(flags={"train.method": name}).stages[2]) == whole
    assert small[2].adapter == ("lora" if whole else METHODS[name].stages[2].adapter)


def test_a_run_goes_on_with_less_memory_where_the_result_is_the_same() -> None:
    recorded = plan()
    more = continued(recorded, plan(flags={"train.memory": "24gb"}))
    assert (more.micro_batch_size, more.gradient_checkpointing, more.memory) == (0, True, "24gb")
    written_down = continued(recorded, plan(train={"memory": "24gb"}))
    assert written_down == recorded
    assert differences(recorded, plan(flags={"train.memory": "16gb"})) == ("optimizer: adamw -> adamw8bit",)


def test_plans_of_before_there_were_presets_are_still_the_same() -> None:
    document = json.loads(plan_json(plan()))
    for key in ("memory", "optimizer"):
        del document[key]
    del document["origins"]["train.unet.adapter"]
    old = plan_from_json(json.dumps(document), "plan.json")
    assert old.digest == plan().digest
    assert settings_of(old)["train.unet.adapter"] == ("none", "method attndreambooth")


# --- AdamW in 8 bits --------------------------------------------------------------------------------------------------


class Rounding(torch.optim.Optimizer):
    """AdamW with moments of 256 levels, and a state of the shape bitsandbytes 0.50 gives it."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.levels = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in (its for its in group["params"] if its.grad is not None):
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    for number, levels in enumerate(self.levels, 1):
                        state[f"state{number}"] = torch.zeros_like(weight, dtype=torch.uint8)
                        state[f"qmap{number}"] = levels
                        state[f"absmax{number}"] = torch.zeros(-(-weight.numel() // 256))
                state["step"] += 1
                assert isinstance(state["step"], int)
                scale = 1.0
                for number, power in ((1, 1), (2, 2)):
                    beta = group["betas"][number - 1]
                    before = state[f"qmap{number}"][state[f"state{number}"].long()] * state[f"absmax{number}"][0]
                    moment = beta * before + (1 - beta) * weight.grad**power
                    largest = moment.abs().max().clamp(min=1e-30)
                    state[f"absmax{number}"] = torch.full_like(state[f"absmax{number}"], float(largest))
                    place = torch.bucketize(moment / largest, state[f"qmap{number}"])
                    state[f"state{number}"] = place.clamp(max=254).to(torch.uint8)
                    unbiased = moment / (1 - beta ** state["step"])
                    scale = unbiased if number == 1 else scale / (unbiased.sqrt() + group["eps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * scale)

    def state_dict(self) -> dict[str, Any]:
        document = super().state_dict()
        document["state"] = {
            index: {"step": its["step"], "__wrapped__": {key: its[key] for key in its if key != "step"}}
            for index, its in document["state"].items()
        }
        return document

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self.state.clear()
        self.state.update({weights[index]: dict(its) for index, its in state_dict["state"].items()})


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = types.ModuleType("bitsandbytes")
    library.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)
    library.optim = types.SimpleNamespace(AdamW8bit=Rounding, PagedAdamW8bit=Rounding)
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)


EIGHT = TrainOptions(
    memory="16gb",
    save_precision="float32",
    settings=(*SHORT, "train.embedding.enabled=false", "train.unet.enabled=false"),
)


def test_a_stopped_run_in_8_bits_ends_with_the_same_bits(
    project: Path, pool: ComponentPool, bitsandbytes: None, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(project, tmp_path / "other"))
    train(project, options=EIGHT, pool=pool, report=False)
    asked = iter(range(100))
    with pytest.raises(StoppedError):  # asked twice before the first step, and after each: here the second
        train(other, options=EIGHT, pool=pool, report=False, should_stop=lambda: 15 * (next(asked) == 3))
    (saved,) = (other / "runs").glob("*/checkpoints/attention-000002")
    state = load_file(saved / "optimizer.safetensors")
    kinds = {name.partition("/")[0] for name in state}
    assert kinds == {"step", *(f"{kind}{number}" for kind in ("state", "qmap", "absmax") for number in (1, 2))}
    assert {its.dtype for name, its in state.items() if name.startswith("state")} == {torch.uint8}
    resume(other, pool=pool, report=False)
    assert_same(tensors(other / "concept"), tensors(project / "concept"))


def test_it_is_another_optimizer_for_every_stage_and_the_same_steps_but_for_rounding(bitsandbytes: None) -> None:
    moved = {}
    for name in footprint.MOMENT_BYTES:
        weight = nn.Parameter(torch.linspace(-1, 1, 101))
        device = torch.device("cpu") if name != "paged_adamw8bit" else torch.device("cuda")
        optimizer = optimizers.make(name, [{"params": [weight]}], 1e-2, AdamW(weight_decay=0.0), device)
        for _ in range(5):
            weight.grad = weight.detach().clone()
            optimizer.step()
        moved[name] = weight.detach()
    assert torch.equal(moved["adamw8bit"], moved["paged_adamw8bit"])
    assert not torch.equal(moved["adamw"], moved["adamw8bit"])
    assert torch.allclose(moved["adamw"], moved["adamw8bit"], atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--memory", "16gb"], "needs the library bitsandbytes", "pip install 'attnbooth[bitsandbytes]'"),
        (["--memory", "8gb"], "paged_adamw8bit does not run on cpu", "--set train.optimizer=adamw or adamw8bit"),
        (["--set", "train.optimizer=sgd"], "train.optimizer", ""),
        (["--memory", "12gb"], "12gb", ""),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_begun(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, hint: str
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    done = cli("train", project, "--device", "cpu", *arguments)
    assert done.code == 2
    assert message in done.err
    assert hint in done.err
    assert not (project / "runs").exists()


def test_a_lora_that_cannot_be_made_is_refused_before_the_stages_in_front_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="lora needs the library peft"):
        train(project, options=LORA)
    assert not (project / "runs").exists()


@pytest.mark.parametrize("device", ["mps", "cpu"])
def test_devices_without_pages_are_said(device: str, bitsandbytes: None) -> None:
    with pytest.raises(InputError, match=f"does not run on {device}"):
        optimizers.require("paged_adamw8bit", torch.device(device))
    optimizers.require("paged_adamw8bit", torch.device("cuda"))
    optimizers.require("adamw", torch.device(device))


def test_less_memory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 bytes a weight in place of 8, or of 12 where gradients are needed together; 4 if the moments may be elsewhere;
    and nothing for LoRA's stage."""
    unet = nn.Linear(1000, 1000, bias=False)
    made = replace(plan(), stages=plan().stages[2:])
    monkeypatch.setattr(requirements, "free_memory", lambda device: 5_999_999)
    for optimizer in ("adamw", "adamw8bit"):
        with pytest.raises(ResourceError, match=r"alone needs? 0\.01 GB"):
            requirements.require_memory(replace(made, optimizer=optimizer), unet, torch.device("cpu"))
    requirements.require_memory(replace(made, optimizer="paged_adamw8bit"), unet, torch.device("cpu"))
    monkeypatch.setattr(requirements, "free_memory", lambda device: 8_000_000)
    requirements.require_memory(made, unet, torch.device("cpu"))
    with pytest.raises(ResourceError, match="the gradients and optimizer state"):
        requirements.require_memory(replace(made, micro_batch_size=1), unet, torch.device("cpu"))
    monkeypatch.setattr(requirements, "free_memory", lambda device: 5_999_999)
    small = replace(made, stages=plan(flags={"train.memory": "8gb"}).stages[2:], optimizer="adamw")
    requirements.require_memory(small, unet, torch.device("cpu"))


# --- LoRA after stages 1 and 2 ----------------------------------------------------------------------------------------


def applied(root: Path, stage: StageName) -> dict[str, torch.Tensor]:
    """The U-Net that `generate`, `eval` and `inspect-attn` use."""
    components, project = load_components(resolve("tiny")), Project(root)
    concept.apply(project, concept.read_card(project), stage, components)
    return dict(components.unet.state_dict())


def test_the_concept_holds_what_stage_2_changed_and_the_lora_above_it(trained_once: Path) -> None:
    base = load_components(resolve("tiny")).unet.state_dict()
    attention, whole = applied(trained_once, "attention"), applied(trained_once, "unet")
    assert base.keys() == attention.keys() == whole.keys()  # no trace of an adapter
    changed = {name for name in base if not torch.equal(base[name], attention[name])}
    assert changed
    assert all(".attn2." in name for name in changed)
    above = {name for name in base if not torch.equal(attention[name], whole[name])}
    adapted = {name for name in base if name.endswith(tuple(f"{its}.weight" for its in adapters.TARGETS))}
    assert above == adapted
    for name in adapted:
        difference = whole[name].double() - attention[name].double()
        singular = torch.linalg.svdvals(difference)
        assert (singular[16:] < 1e-3 * singular[0]).all()  # of rank 16
    assert not (trained_once / "concept" / adapters.FILES["lora"]).exists()


def test_plain_diffusers_makes_the_same_picture(trained_once: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

    (made,) = generate(trained_once, ["a photo of a {} on the beach"], steps=3, seed=5, device="cpu").pictures
    pipeline = StableDiffusionPipeline.from_pretrained(bundled_folder(), safety_checker=None, torch_dtype=torch.float32)
    pipeline.load_textual_inversion(str(trained_once / "concept" / "learned_embeds.safetensors"))
    pipeline.unet = UNet2DConditionModel.from_pretrained(trained_once / "concept" / "unet")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++"
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a photo of a <it> cat on the beach",
        num_inference_steps=3,
        guidance_scale=TINY.guidance,
        width=64,
        height=64,
        generator=[torch.Generator().manual_seed(5)],
    ).images[0]
    ours = Image.open(made.path).convert("RGB")
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


class Killed(BaseException):
    """As good as SIGKILL: nothing of ours catches it."""


@pytest.fixture
def stopped(project: Path) -> Path:
    """A run that died in its last stage, one step after a checkpoint."""

    def die(event: Event) -> None:
        if isinstance(event, Stepped) and (event.stage, event.step) == ("unet", 3):
            raise Killed

    with pytest.raises(Killed):
        train(project, options=LORA, report=False, emit=die)
    return project


def test_a_killed_run_goes_on_to_the_same_bits(stopped: Path, trained_once: Path) -> None:
    (saved,) = (stopped / "runs").glob("*/checkpoints/unet-000002")
    names = set(load_file(saved / "weights.safetensors"))
    assert names
    assert all("lora_" in name for name in names)
    resume(stopped, report=False)
    assert_same(tensors(stopped / "concept"), tensors(trained_once / "concept"))


def test_a_snapshot_holds_both_too_and_can_be_taken(
    project: Path, trained_once: Path, pool: ComponentPool, tmp_path: Path
) -> None:
    """The moment after step 2 of 4 is what a run of 2 steps ends with; making it disturbs nothing (see above)."""
    train(project, options=replace(LORA, settings=(*LORA.settings, "train.unet.steps=2")), pool=pool, report=False)
    root = Path(shutil.copytree(trained_once, tmp_path / "taken"))
    after = tensors(root / "concept")
    take(root, "unet-2")
    assert_same(tensors(root / "concept"), tensors(project / "concept"))
    assert_same(applied(root, "attention"), applied(trained_once, "attention"))
    take(root, "unet-4")
    assert_same(tensors(root / "concept"), after)


def test_it_is_scored_and_inspected_like_any(cli: Cli, few_steps: None, trained_once: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained_once, tmp_path / "scored"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {}\n")
    done = cli("inspect-attn", root, "a photo of a {}", "--steps", "1", "--json")
    assert done.code == 0, done.err
    done = cli("eval", root, "--prompts", prompts, "-n", "1", "--json")
    assert done.code == 0, done.err


# --- frozen models put aside ------------------------------------------------------------------------------------------


class Devices:
    """Stands for a GPU: knows where each model is, moves none, and objects when one that is away is used."""

    def __init__(self) -> None:
        self.away: dict[int, str] = {}
        self.moves: list[tuple[str, str]] = []
        self.used: list[tuple[str, tuple[str, ...]]] = []

    def name(self, model: Any) -> str:
        return {"AutoencoderKL": "vae", "CLIPTextModel": "text"}[type(model).__name__]

    def place(self, model: Any) -> torch.device:
        return offload.HOST if id(model) in self.away else torch.device("meta")

    def move(self, model: Any, device: torch.device) -> None:
        away = device == offload.HOST and id(model) not in self.away
        self.moves.append((self.name(model), "aside" if away else "back"))
        if away:
            self.away[id(model)] = self.name(model)
        else:
            del self.away[id(model)]

    def watch(self, components: Any) -> Iterator[Any]:
        def at_hand(module: Any, *_: Any) -> None:
            assert id(module) not in self.away, f"the {self.name(module)} is used where it is not"

        def unet(*_: Any) -> None:
            self.used.append(tuple(sorted(self.away.values())))  # type: ignore[arg-type]

        (encoder,) = components.text_encoders
        yield encoder.model.register_forward_pre_hook(at_hand)
        for module in (components.vae.encoder, components.vae.decoder):
            yield module.register_forward_pre_hook(lambda *_: at_hand(components.vae))
        yield components.unet.register_forward_pre_hook(unet)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    made = Devices()
    monkeypatch.setattr(offload, "pays", lambda device: True)
    monkeypatch.setattr(offload, "place", made.place)
    monkeypatch.setattr(offload, "move", made.move)
    return made


def test_frozen_models_are_away_when_their_output_is_kept_and_back_for_pictures(
    project: Path, trained_once: Path, pool: ComponentPool, devices: Devices
) -> None:
    """Through a whole run: what is used is there, what is not needed is not, and the result has the same bits."""
    components = pool.take(resolve("tiny"))
    hooks = list(devices.watch(components))
    during: dict[tuple[str, int], tuple[str, ...]] = {}

    def note(event: Event) -> None:
        if isinstance(event, Stepped):
            during[event.stage, event.step] = devices.used[-1]  # type: ignore[assignment]

    try:
        train(project, options=LORA, pool=pool, report=False, emit=note)
    finally:
        for hook in hooks:
            hook.remove()
    # The pool's five pictures are encoded after stage 1's two steps of three; each sample brings both models back.
    assert during["embedding", 1] == ()
    assert during["attention", 1] == during["attention", 3] == ("text", "vae")
    assert during["unet", 1] == during["unet", 4] == ("text", "vae")
    assert set(devices.away.values()) == {"text", "vae"}
    assert len(devices.moves) < 40
    assert_same(tensors(project / "concept"), tensors(trained_once / "concept"))


def test_on_the_cpu_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    def move(model: Any, device: torch.device) -> None:
        raise AssertionError("moved")

    monkeypatch.setattr(offload, "move", move)
    model, device = nn.Linear(1, 1), torch.device("cpu")
    offload.put_aside(model, device)
    offload.bring_back(model, device)
    with offload.at_hand(device, model):
        pass


def test_what_was_away_is_away_again_also_after_a_failure(devices: Devices) -> None:
    class AutoencoderKL(nn.Linear):
        pass

    model, device = AutoencoderKL(1, 1), torch.device("cuda")
    offload.put_aside(model, device)
    offload.put_aside(model, device)

    @offload.at_hand(device, model)
    def fail() -> None:
        assert devices.place(model) != offload.HOST
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert devices.place(model) == offload.HOST
    offload.bring_back(model, device)
    with offload.at_hand(device, model):
        pass
    assert devices.moves == [("vae", its) for its in ("aside", "back", "aside", "back")]
