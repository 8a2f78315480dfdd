"""Every method in the registry: what it trains and what stays, that it resumes, and its loss on a known input."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from attnbooth_cli.engine import adapters, concept, neti, vico
from attnbooth_cli.engine.augmentation import unaugmented
from attnbooth_cli.engine.base_models import bundled_folder, resolve
from attnbooth_cli.engine.catalogue import TINY
from attnbooth_cli.engine.conditioning import CLASS_PROMPT, Subject, conditioning_of
from attnbooth_cli.engine.families import FAMILIES, ComponentPool, Components, load_components
from attnbooth_cli.engine.generation import generate
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.loop import run_stage
from attnbooth_cli.engine.methods import (
    DREAMBOOTH,
    LORA,
    METHODS,
    OFT,
    TEMPLATES,
    TEXTUAL_INVERSION,
    VICO,
    AdamW,
    Method,
)
from attnbooth_cli.engine.objective import accumulate_gradients, objective
from attnbooth_cli.engine.preparation import TrainOptions, prepare
from attnbooth_cli.engine.prompting import KINDS
from attnbooth_cli.engine.runs import RunFolder
from attnbooth_cli.engine.subjects import prior_of, subject_of
from attnbooth_cli.engine.training import resume, train
from attnbooth_cli.errors import StoppedError
from attnbooth_cli.events import Event, ignore
from attnbooth_cli.project.project import Project, open_project
from tests.engine.conftest import EXAMPLE, make_source, make_subject
from tools.tiny.captions import vocabulary

SHORT = (
    *(f"train.{stage}.{key}" for stage in ("embedding", "attention", "unet") for key in ("steps=3", "batch_size=1")),
    "train.prior_pictures=3",
    "train.save_precision=float32",
)
TRAINS = {
    "attndreambooth": {"embedding", "attention", "unet"},
    "attndreambooth-without-embedding": {"attention", "unet"},
    "attndreambooth-without-attention": {"embedding", "unet"},
    "attndreambooth-without-unet": {"embedding", "attention"},
    "attndreambooth-without-regulariser": {"embedding", "attention", "unet"},
    "textual-inversion": {"embedding"},
    "dreambooth": {"unet"},
    "ti-db": {"embedding", "unet"},
    "lora": {"unet"},
    "oft": {"unet"},
    "neti": {"embedding"},
    "vico": {"attention"},
    "attndreambooth-with-core": {"embedding", "attention", "unet"},
    "attndreambooth-with-prior": {"embedding", "attention", "unet"},
}


def new_project(root: Path) -> Path:
    init(root, images=[EXAMPLE], category="cat", model="tiny", token="<it>")
    return root


def options(method: str, *more: str) -> TrainOptions:
    return TrainOptions(method=method, settings=(*SHORT, *more))


def weights(project: Path) -> dict[str, bytes]:
    return {str(path.relative_to(project)): path.read_bytes() for path in (project / "concept").rglob("*.safetensors")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    """Every method, trained once."""
    root = tmp_path_factory.mktemp("methods")
    pool = ComponentPool(keep=True)
    return {name: train(new_project(root / name), options=options(name), pool=pool) for name in METHODS}


def test_the_table_above_has_every_method() -> None:
    assert set(TRAINS) == set(METHODS)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_entry_is_whole(method: Method) -> None:
    assert [stage.name for stage in method.stages] == ["embedding", "attention", "unet"]
    assert {stage.name for stage in method.stages if stage.enabled} == TRAINS[method.name]
    assert method.source
    assert all(prompt.count("{}") == 1 for prompt in method.prompts)
    regularised = {stage.name for stage in method.stages if stage.regularised and stage.enabled}
    ours = method.name.startswith("attndreambooth") and "regulariser" not in method.name
    assert regularised == (TRAINS[method.name] if ours else set())


def tensors(subject: Subject) -> dict[str, Tensor]:
    """A copy of every tensor there is: of the model, of what stands for [V], and of [V]'s rows."""
    components = subject.components
    (encoder,) = components.text_encoders
    modules = {"unet": components.unet, "vae": components.vae, "text": encoder.model}
    if components.prompting is not None:
        modules["prompting"] = components.prompting.module
    states = {f"{name}.{key}": its for name, module in modules.items() for key, its in module.state_dict().items()}
    return {key: its.detach().clone() for key, its in {**states, "rows": subject.rows}.items()}


@pytest.mark.parametrize("name", ["lora", "oft", "dreambooth", "neti", "vico"])
def test_training_moves_what_it_is_for_and_not_another_bit(
    components: Components, accelerator: Accelerator, name: str
) -> None:
    """Seen in the model that was trained: the text encoder and the VAE too, of which no file would tell."""
    subject = replace(make_subject(components), prior=make_source(components, seed=7))
    source = make_source(components)
    (stage,) = [replace(its, steps=2, batch_size=2) for its in METHODS[name].stages if its.enabled]
    if stage.adapts_unet:
        adapters.attach(components.unet, stage, source.seed)
    elif stage.adapter:
        components.prompting = KINDS[stage.adapter].begin(components, subject.placeholder, source)
    before = tensors(subject)
    run_stage(stage, subject, source, accelerator, AdamW())
    after = tensors(subject)
    assert before.keys() == after.keys()
    own = (
        {f"prompting.{key}" for key, _ in components.prompting.module.named_parameters()}
        if components.prompting
        else set()
    )
    adapter = {f"unet.{key}" for key in adapters.parameters(components.unet)}
    unet = {key for key in before if key.startswith("unet.")}
    expected = {"lora": adapter, "oft": adapter, "dreambooth": unet, "neti": own, "vico": {*own, "rows"}}[name]
    assert expected
    assert {key for key in before if not torch.equal(before[key], after[key])} == expected


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_changes(trained: dict[str, Project], name: str) -> None:
    """[V]'s row only where the embedding trains; of the U-Net, cross-attention only, all of it, or nothing."""
    project = trained[name]
    card = concept.read_card(project)
    assert set(card.stages) == TRAINS[name]
    base, tuned = load_components(resolve("tiny")), load_components(resolve("tiny"))
    concept.apply(project, card, card.stages[-1], tuned)
    before, after = base.unet.state_dict(), tuned.unet.state_dict()
    assert before.keys() == after.keys()  # no trace of an adapter
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    attention = {key for key in before if ".attn1." in key or ".attn2." in key}
    if METHODS[name].stages[2].adapter:
        assert changed
        assert changed <= {key for key in attention if key.endswith("weight") and "norm" not in key}
        assert any(".attn1." in key for key in changed)
    elif "unet" in TRAINS[name]:
        assert changed == set(before)
    elif "attention" in TRAINS[name] and not METHODS[name].stages[1].adapter:
        assert changed
        assert changed <= {key for key in before if ".attn2." in key}
    else:
        assert not changed
    (row,) = load_file(project.concept / "learned_embeds.safetensors").values()
    (encoder,) = base.text_encoders
    word = TINY.rare_token if METHODS[name].rare_token else "cat"
    first, *_ = encoder.tokenizer(word, add_special_tokens=False).input_ids
    start = encoder.model.get_input_embeddings().weight[first]
    assert torch.equal(row[0], start) == (name == "neti" or ("embedding" not in TRAINS[name] and name != "vico"))


@pytest.mark.parametrize(
    "name",
    [
        *("textual-inversion", "dreambooth", "lora", "oft", "neti", "vico"),
        *("attndreambooth-with-core", "attndreambooth-with-prior"),
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(trained: dict[str, Project], name: str, tmp_path: Path) -> None:
    """Templates, class pictures and adapters included."""
    root, asked = new_project(tmp_path / name), iter(range(100))
    of_class = (
        1 + 3 if name in ("dreambooth", "oft", "attndreambooth-with-prior") else 0
    )  # before and after each picture
    second = of_class + 2 + 2  # asked twice before the first step, then after each
    with pytest.raises(StoppedError):
        train(root, options=options(name), should_stop=lambda: 15 if next(asked) == second - 1 else 0)
    assert list((root / "runs").glob("*/checkpoints/*-000002"))
    resume(root)
    assert weights(root) == weights(trained[name].root)


def test_class_pictures_can_be_stopped_and_those_that_are_made_stay(
    trained: dict[str, Project], tmp_path: Path
) -> None:
    root, asked = new_project(tmp_path / "p"), iter(range(100))
    with pytest.raises(StoppedError):
        train(root, options=options("dreambooth"), should_stop=lambda: 2 if next(asked) == 2 else 0)
    made = list(root.glob("runs/*/class/*/*.png"))
    assert len(made) == 2  # of three: it is asked before the first and after each
    times = {path: path.stat().st_mtime_ns for path in made}
    resume(root)
    assert {path: path.stat().st_mtime_ns for path in made} == times
    assert weights(root) == weights(trained["dreambooth"].root)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_generates(trained: dict[str, Project], name: str) -> None:
    (picture,) = generate(trained[name].root, ["a photo of a {} on the beach"], steps=2).pictures
    assert picture.path.is_file()


def test_dreambooth_of_the_same_seed_twice_is_the_same_and_other_class_pictures_are_not(
    trained: dict[str, Project], tmp_path: Path
) -> None:
    again = train(new_project(tmp_path / "again"), options=options("dreambooth"))
    assert weights(again.root) == weights(trained["dreambooth"].root)
    fewer = train(new_project(tmp_path / "fewer"), options=options("dreambooth", "train.prior_pictures=1"))
    assert weights(fewer.root) != weights(trained["dreambooth"].root)


def test_lora_weights_load_into_plain_diffusers(trained: dict[str, Project]) -> None:
    root = trained["lora"].root
    made = generate(root, ["a photo of {} on the beach"], steps=4, seed=3)
    pipeline = StableDiffusionPipeline.from_pretrained(bundled_folder()).to(torch.float32)
    pipeline.load_textual_inversion(root / "concept" / "learned_embeds.safetensors")
    pipeline.load_lora_weights(root / "concept", weight_name="pytorch_lora_weights.safetensors")
    from diffusers import DPMSolverMultistepScheduler
    from PIL import Image

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a photo of <it> cat on the beach", num_inference_steps=4, guidance_scale=made.settings.guidance, height=64,
        width=64, generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    ours = Image.open(made.pictures[0].path)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


# --- Textual Inversion ------------------------------------------------------------------------------------------------


def test_templates_are_drawn_evenly_and_by_key() -> None:
    assert len(TEMPLATES) == 81
    assert Counter(TEMPLATES)["a close-up photo of a {}"] == 3
    source = make_source(load_components(resolve("tiny")))
    drawn = [source.prompt_number("embedding", step, index, 4) for step in range(500) for index in range(2)]
    assert drawn[:2] == [source.prompt_number("embedding", 0, index, 4) for index in range(2)]
    counts = Counter(drawn)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_each_sample_is_told_its_own_prompt(components: Components, accelerator: Accelerator) -> None:
    """The loss of two samples with two prompts is the mean of the two losses, each worked out with one prompt alone."""
    both = make_subject(components)
    both = replace(both, prompts=("a photo of <it>", "a drawing of <it> in the forest", "the <it>"))
    stage = replace(TEXTUAL_INVERSION.stages[0], batch_size=2)
    source = make_source(components)
    numbers = [source.prompt_number("embedding", 5, index, 3) for index in range(2)]
    assert numbers[0] != numbers[1]
    together = accumulate(stage, 5, both, source, accelerator)
    apart = []
    for index, number in enumerate(numbers):
        alone = replace(both, prompts=(both.prompts[number],))
        batch = source.batch("embedding", 5, [index], 2)
        conditioning = conditioning_of(stage, alone, source, accelerator).of(5, [index])
        apart.append(float(objective(stage, components, batch, conditioning, None).diffusion))
    assert together == pytest.approx(np.mean(apart), rel=1e-5)


def accumulate(stage, step: int, subject: Subject, source, accelerator: Accelerator) -> float:
    subject.rows.requires_grad_(True)
    conditioning = conditioning_of(stage, subject, source, accelerator)
    losses = accumulate_gradients(stage, step, subject, source, accelerator, conditioning, None, 0)
    subject.rows.requires_grad_(False)
    return losses.diffusion


def test_text_of_a_method_without_category_is_scored_with_it(trained: dict[str, Project]) -> None:
    from attnbooth_cli.engine.question import without_concept, without_placeholder

    card = concept.read_card(trained["textual-inversion"])
    assert card.placeholder.prompt("a photo of a {} on the beach") == "a photo of a <it> on the beach"
    assert without_placeholder("a photo of a {} on the beach", card.placeholder) == "a photo of a cat on the beach"
    assert without_concept("a photo of a {} on the beach", card.placeholder) == "a photo, on the beach"


# --- DreamBooth -------------------------------------------------------------------------------------------------------


def test_the_rare_token_tells_the_unet_something_that_no_caption_taught_it(components: Components) -> None:
    """One piece of the vocabulary, as visible beside a noun as a colour; "the" shows what is not."""
    (encoder,) = components.text_encoders
    assert len(encoder.tokenizer(TINY.rare_token, add_special_tokens=False).input_ids) == 1
    assert TINY.rare_token not in {word for phrase in vocabulary() for word in phrase.split()}
    config = components.unet.config
    size = (2, config.in_channels, config.sample_size, config.sample_size)
    noisy, times = torch.randn(size, generator=torch.Generator().manual_seed(0)), torch.tensor([900, 700])

    def change(word: str, noun: str) -> float:
        with torch.no_grad():
            texts = (f"a photo of a {word} {noun}", f"a photo of a {noun}")
            encode = FAMILIES[components.family].encode
            told, plain = (components.unet(noisy, times, **encode(components, [text] * 2)).sample for text in texts)
        return float((told - plain).norm() / plain.norm())

    for noun in ("clock", "frog", "pig"):
        assert change(TINY.rare_token, noun) > change("red", noun) > 5 * change("the", noun)


def test_templates_with_words_that_the_base_model_does_not_know_are_left_out(
    components: Components, tmp_path: Path
) -> None:
    plan = prepare(new_project(tmp_path / "p"), TrainOptions(method="textual-inversion")).plan
    said: list[Event] = []
    prompts = subject_of(components, make_source(components), plan, said.append).prompts
    (warning,) = said
    assert "30 of 81 training prompts" in warning.message
    assert len(prompts) == 51
    assert not [prompt for prompt in prompts if "illustration" in prompt or "depiction" in prompt]


def test_class_pictures_are_seen_as_they_are(components: Components, accelerator: Accelerator, tmp_path: Path) -> None:
    """Neither turned nor mirrored, whatever happens to the concept's."""
    project = new_project(tmp_path / "p")
    chosen = options("attndreambooth-with-prior", "train.augmentation=published", "train.prior_pictures=1")
    plan = prepare(project, chosen).plan
    folder = RunFolder(open_project(project)[0], "001")
    source = prior_of(folder, plan, resolve("tiny"), components, accelerator, ignore, lambda: 0, 0)
    (picture,) = source.pictures
    (file,) = (folder.root / "class").rglob("*.png")
    assert file.name.startswith("a-photo-of-a-cat-")
    for seed in range(8):
        seen = source.augment(picture, plan.resolution, torch.Generator().manual_seed(seed))
        assert seen.tobytes() == picture.tobytes()


def test_the_prior_term_is_the_class_pictures_loss(components: Components, accelerator: Accelerator) -> None:
    """Its weight times the mean squared error, from the U-Net's own call; in micro-batches and with min-SNR too."""
    prior = make_source(components, seed=7)
    subject = replace(make_subject(components), prior=prior)
    stage = replace(DREAMBOOTH.stages[2], batch_size=4, prior_weight=0.5, snr_gamma=5.0)
    batch = prior.batch("unet prior", 2, range(4), 4)
    (encoder,) = components.text_encoders
    ids = encoder.tokenizer(
        CLASS_PROMPT.format("cat"), padding="max_length", max_length=encoder.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids  # fmt: skip
    with torch.no_grad():
        hidden = encoder.model(ids[:, : encoder.model.config.max_position_embeddings]).last_hidden_state
        noisy = components.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = components.unet(noisy, batch.timesteps, hidden.expand(4, -1, -1)).sample
        by_hand = 0.5 * (predicted - batch.noise).square().mean()
    for micro_batch_size in (0, 1, 3):
        components.unet.requires_grad_(True)
        source = make_source(components)
        conditioning = conditioning_of(stage, subject, source, accelerator)
        losses = accumulate_gradients(stage, 2, subject, source, accelerator, conditioning, None, micro_batch_size)
        components.unet.requires_grad_(False)
        assert losses.prior == pytest.approx(float(by_hand), rel=1e-5)


def test_gradients_are_scaled_down_to_their_largest_norm(components: Components, accelerator: Accelerator) -> None:
    """With plain AdamW a step's size hardly depends on the gradient; its first moment tells what came in."""
    norms = {}
    for limit in (None, 1e-3):
        subject = make_subject(load_components(resolve("tiny")))
        seen = []
        stage = replace(DREAMBOOTH.stages[2], steps=1, batch_size=2, prior_weight=0.0)
        source = make_source(subject.components)
        run_stage(stage, subject, source, accelerator, AdamW(max_gradient_norm=limit), after_step=seen.append)
        state = seen[0].optimizer.state_dict()["state"]
        squares = sum(float((value["exp_avg"] / 0.1).square().sum()) for value in state.values())
        norms[limit] = squares**0.5
    assert norms[None] > 1e-2
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


# --- adapters ---------------------------------------------------------------------------------------------------------


def output(components: Components) -> Tensor:
    config = components.unet.config
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    hidden = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return components.unet(latents, 500, hidden).sample


@pytest.mark.parametrize("method", [LORA, OFT], ids=["lora", "oft"])
def test_an_adapter_begins_as_nothing_and_ends_in_the_weights(components: Components, method: Method) -> None:
    stage = method.stages[2]
    before = output(components)
    adapters.attach(components.unet, stage, 3)
    assert torch.allclose(output(components), before, atol=1e-5)
    names = adapters.parameters(components.unet)
    assert len(names) == (2 if stage.adapter == "lora" else 1) * 4 * 2 * len(cross_attention(components))
    with torch.no_grad():
        for number, parameter in enumerate(names.values()):
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    attached = output(components)
    assert not torch.allclose(attached, before, atol=1e-4)
    adapters.merge(components.unet)
    assert not adapters.attached(components.unet)
    assert torch.allclose(output(components), attached, atol=1e-4)


def cross_attention(components: Components) -> list[str]:
    return [name for name, _ in components.unet.named_modules() if name.endswith(".attn2")]


def test_loras_random_half_is_keyed_and_leaves_the_global_generator_alone(components: Components) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    factors = []
    for seed in (3, 3, 4):
        fresh = load_components(resolve("tiny"))
        torch.manual_seed(11)
        adapters.attach(fresh.unet, LORA.stages[2], seed)
        assert torch.equal(torch.rand(1), expected)
        factors.append(next(iter(adapters.parameters(fresh.unet).values())).clone())
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


def test_oft_only_turns_in_four_blocks(components: Components) -> None:
    """The angles between neurons stay, W' W'^T = W W^T, within each of the blocks of inputs (OFT, section 3)."""
    name = cross_attention(components)[0]
    before = components.unet.get_submodule(name).to_q.weight.clone()  # [out, in]
    adapters.attach(components.unet, OFT.stages[2], 0)
    with torch.no_grad():
        for parameter in adapters.parameters(components.unet).values():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    adapters.merge(components.unet)
    after = components.unet.get_submodule(name).to_q.weight
    for block, turned in zip(before.chunk(4, dim=1), after.chunk(4, dim=1), strict=True):
        assert torch.allclose(block @ block.T, turned @ turned.T, atol=1e-4)
        half, half_turned = (its[:, : its.shape[1] // 2] for its in (block, turned))
        assert not torch.allclose(half @ half.T, half_turned @ half_turned.T, atol=1e-3)
    assert not torch.allclose(before, after, atol=1e-5)
    assert torch.allclose(before @ before.T, after @ after.T, atol=1e-4)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from attnbooth_cli.errors import InputError

    with pytest.raises(InputError, match="7 blocks do not fit") as caught:
        train(new_project(tmp_path / "p"), options=options("oft", "train.unet.adapter_size=7"))
    assert "adapter_size" in str(caught.value.hint)


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbooth_cli.errors import InputError

    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the library peft") as caught:
        train(new_project(tmp_path / "p"), options=options("lora"))
    assert "attnbooth[peft]" in str(caught.value.hint)


def test_the_plan_says_where_a_methods_settings_are_from(tmp_path: Path) -> None:
    from attnbooth_cli.engine.plan import settings_of
    from attnbooth_cli.engine.preparation import prepare

    plan = prepare(new_project(tmp_path / "p"), TrainOptions(method="dreambooth")).plan
    settings = settings_of(plan)
    assert settings["train.augmentation"] == ("cropped", "method dreambooth")  # before the base model's
    assert settings["train.unet.prior_weight"] == (1.0, "method dreambooth")
    assert (plan.initial, plan.prompts) == (TINY.rare_token, ("a photo of a {}",))
    assert json.loads(json.dumps(plan.identity))["initial"] == TINY.rare_token


# --- NeTI -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(components: Components) -> tuple[Components, Subject]:
    """The bundled model with [V] as a network."""
    subject = make_subject(components)
    components.prompting = neti.begin(components, subject.placeholder, make_source(components))
    return components, subject


def test_every_layer_and_time_has_its_own_encoding_of_the_concept_alone(mapped: tuple[Components, Subject]) -> None:
    components, _ = mapped
    prompt = components.prompting
    (encoder,) = components.text_encoders
    prompt.texts = ["a photo of a <it>", "a photo of a cat"]
    with torch.no_grad():
        keys, values = prompt.encode(encoder.tokenizer, encoder.model, torch.tensor([100, 900]))
        plain = encoder.model(
            encoder.tokenizer(
                prompt.texts, padding="max_length", max_length=keys.shape[2], return_tensors="pt"
            ).input_ids
        ).last_hidden_state
    assert len(keys) == len(cross_attention(components))
    place = 5  # start, a, photo, of, a, [V]
    assert len({tuple(layer[0, place].tolist()) for layer in keys}) == len(keys)
    assert torch.allclose(keys[:, :, :place], plain[:, :place].expand(len(keys), -1, -1, -1), atol=1e-5)  # causal
    assert torch.allclose(keys[:, 1], plain[1].expand(len(keys), -1, -1), atol=1e-5)  # a prompt without it
    differs = (keys - values).abs().amax(-1) > 1e-6  # [l, b, t]
    assert differs.nonzero()[:, 1:].unique(dim=0).tolist() == [[0, place]]  # the bypass is at [V] and nowhere else


def test_layers_are_told_apart_whatever_their_processor(mapped: tuple[Components, Subject]) -> None:
    """A layer's own encoding decides its output: worked out from its projections, the fused kernel left aside."""
    components, _ = mapped
    (encoder,) = components.text_encoders
    components.prompting.texts = ["a photo of a <it>"]
    name = neti.execution_order(dict.fromkeys(cross_attention(components)))[3]
    layer = components.unet.get_submodule(name)
    seen: dict[str, Tensor] = {}

    def before(_module, arguments, kwargs):
        seen["hidden"] = arguments[0]

    def after(_module, _arguments, output):
        seen["output"] = output

    config = components.unet.config
    latents = torch.randn(1, config.in_channels, config.sample_size, config.sample_size)
    ignored = torch.zeros(1, 5, config.cross_attention_dim)
    with (
        torch.no_grad(),
        components.prompting.at_work(components),
    ):
        handles = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
        components.unet(latents, 300, ignored)
        for handle in handles:
            handle.remove()
        keys, values = components.prompting.encode(encoder.tokenizer, encoder.model, torch.tensor([300]))
        q, k, v = (
            layer.to_q(seen["hidden"]).unflatten(-1, (layer.heads, -1)).transpose(1, 2),
            layer.to_k(keys[3]).unflatten(-1, (layer.heads, -1)).transpose(1, 2),
            torch.nn.functional.linear(values[3], layer.to_v.weight).unflatten(-1, (layer.heads, -1)).transpose(1, 2),
        )
        by_hand = layer.to_out[0](((q @ k.transpose(-1, -2) * layer.scale).softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(seen["output"], by_hand, atol=1e-4)
    assert not components.unet._forward_pre_hooks  # nothing stays


def test_a_mapper_is_the_norm_of_its_category_and_restores(mapped: tuple[Components, Subject]) -> None:
    components, subject = mapped
    mapper = components.prompting.module
    times, layers = torch.tensor([0, 500, 999]), torch.tensor([0, 1, 2])
    restored = neti.restore(components, subject.placeholder, mapper.state_dict())
    with torch.no_grad():
        both = torch.cat(mapper(times, layers), 1)
        again = torch.cat(restored.module(times, layers), 1)
        fewer = torch.cat(mapper(times, layers, torch.tensor([128, 128, 3])), 1)
    (encoder,) = components.text_encoders
    category, *_ = encoder.tokenizer("cat", add_special_tokens=False).input_ids
    norm = encoder.model.get_input_embeddings().weight[category].norm()
    assert torch.allclose(both.norm(dim=1), norm.expand(3), atol=1e-5)
    assert torch.equal(both, again)
    assert torch.equal(both[:2], fewer[:2])
    assert not torch.allclose(both[2], fewer[2])


@torch.no_grad()
def test_a_mapper_and_its_bypass_are_the_papers_arithmetic(mapped: tuple[Components, Subject]) -> None:
    """From the mapper's tensors in float64, and from the text encoder's states before its final norm; the figures are
    those of NeTI's code (models/neti_mapper.py, neti_clip_text_encoder.py, positional_encoding.py)."""
    components, _ = mapped
    (encoder,) = components.text_encoders
    prompting = components.prompting
    its = {name: tensor.double() for name, tensor in prompting.module.state_dict().items()}
    assert its["frequencies"].std(dim=0).tolist() == pytest.approx([0.03, 2.0], rel=0.1)

    def features(time: float, layer: float) -> Tensor:
        angles = its["frequencies"][:, 0] * time + its["frequencies"][:, 1] * layer
        both = torch.cat([angles.sin(), angles.cos()])
        return both / both.norm()

    count = len(cross_attention(components))
    anchors = torch.stack([features(time, layer) for time in range(0, 1000, 100) for layer in range(count)])
    torch.testing.assert_close(its["anchors.weight"], anchors, atol=1e-4, rtol=0)
    time, layer = 300, 2
    hidden = its["anchors.weight"] @ features(time, layer) + its["anchors.bias"]
    for linear, norm in (("net.0", "net.1"), ("net.3", "net.4")):
        hidden = its[f"{linear}.weight"] @ hidden + its[f"{linear}.bias"]
        hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
        hidden = its[f"{norm}.weight"] * hidden + its[f"{norm}.bias"]
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    output = its["output.weight"] @ hidden + its["output.bias"]
    embedding, bypass = (output / output.norm() * its["norm"]).chunk(2)

    table = encoder.model.get_input_embeddings().weight
    table[encoder.tokenizer.convert_tokens_to_ids("<it>")] = embedding.to(table)
    ids = encoder.tokenizer("a photo of a <it>", return_tensors="pt").input_ids
    states = encoder.model(ids, output_hidden_states=True).hidden_states[-1][0].double()
    state, place = states[5], 5  # start, a, photo, of, a, [V]
    moved = state + 0.2 * bypass / bypass.norm() * state.norm()
    weight, bias = (getattr(encoder.model.final_layer_norm, name).double() for name in ("weight", "bias"))
    by_hand = [(at - at.mean()) / (at.var(correction=0) + 1e-5).sqrt() * weight + bias for at in (state, moved)]
    prompting.texts = ["a photo of a <it>"]
    found = prompting.encode(encoder.tokenizer, encoder.model, torch.tensor([time]))
    for mine, expected in zip(found, by_hand, strict=True):
        torch.testing.assert_close(mine[layer, 0, place].double(), expected, atol=2e-4, rtol=1e-3)


def test_nested_dropout_is_keyed_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = neti.nested_dropout(0, "embedding", 7, range(8), 9)
    parts = torch.cat([neti.nested_dropout(0, "embedding", 7, [index], 9) for index in range(8)])
    assert torch.equal(whole, parts)
    assert 0.3 < float((whole == neti.HIDDEN).float().mean()) < 0.7
    assert int(whole.min()) >= 0


def test_an_ablation_has_the_rates_of_its_method_and_other_methods_have_their_own(tmp_path: Path) -> None:
    from attnbooth_cli.engine.preparation import prepare

    root = new_project(tmp_path / "p")
    rates = {name: prepare(root, TrainOptions(method=name)).plan.stages[2].learning_rate for name in METHODS}
    assert rates["attndreambooth-without-regulariser"] == rates["attndreambooth"]
    assert rates["dreambooth"] == DREAMBOOTH.stages[2].learning_rate
    assert rates["lora"] == LORA.stages[2].learning_rate


# --- ViCo -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(components: Components) -> Components:
    """The bundled model with untrained image attention."""
    subject = make_subject(components)
    components.prompting = vico.begin(components, subject.placeholder, make_source(components))
    return components


def call(components: Components, texts: list[str], seed: int = 0, times: tuple[int, ...] = (300, 700)) -> Tensor:
    config = components.unet.config
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(texts), config.in_channels, config.sample_size, config.sample_size, generator=generator)
    hidden = FAMILIES[components.family].encode(components, texts)["encoder_hidden_states"]
    return components.unet(latents, torch.tensor(times[: len(texts)]), hidden, return_dict=False)[0]


@torch.no_grad()
def test_new_blocks_stand_after_every_other_one_of_the_up_blocks(shown: Components) -> None:
    order = [name.removesuffix(".attn2") for name in neti.execution_order(dict.fromkeys(cross_attention(shown)))]
    expected = [name for number, name in enumerate(order) if number % 2 == 0 and name.startswith("up_blocks")]
    assert vico.places(shown.unet) == expected
    assert expected
    assert len(shown.prompting.module.blocks) == len(expected)


@torch.no_grad()
def test_every_sample_sees_its_own_reference_and_nobody_elses(shown: Components) -> None:
    """A batch of two is two batches of one; another reference is another output; the U-Net is as before afterwards."""
    texts = ["a photo of a <it> on the beach", "a photo of a cat"]
    before = call(shown, texts)
    prompting = shown.prompting
    with prompting.at_work(shown):
        prompting.tell(shown, texts)
        prompting.references = torch.randn(2, *prompting.module.reference.shape[1:])
        both, own = call(shown, texts), prompting.references
        assert not torch.allclose(both, before, atol=1e-3)
        (latents,) = (torch.cat([both]),)
        prompting.references = own.flip(0)
        assert not torch.allclose(call(shown, texts), latents, atol=1e-4)
        config = shown.unet.config
        noise = torch.randn(
            2, config.in_channels, config.sample_size, config.sample_size, generator=torch.Generator().manual_seed(0)
        )
        for index, text in enumerate(texts):
            prompting.tell(shown, [text])
            prompting.references = own[[index]]
            hidden = FAMILIES[shown.family].encode(shown, [text])["encoder_hidden_states"]
            alone = shown.unet(noise[[index]], torch.tensor([(300, 700)[index]]), hidden, return_dict=False)[0]
            assert torch.allclose(alone, both[[index]], atol=1e-4)
    assert torch.equal(call(shown, texts), before)


@torch.no_grad()
def test_what_a_block_attends_to_is_where_the_token_looks(shown: Components) -> None:
    """Changing the reference's features where the mask hides them changes nothing; where it shows them, something."""
    name = vico.places(shown.unet)[-1]
    block = shown.prompting.module.blocks[name.replace(".", "|")]
    width = block.norm1.normalized_shape[0]
    samples, references = torch.randn(1, 16, width), torch.randn(1, 16, width)
    maps = torch.rand(1, 2, 16)
    seen = vico.otsu(maps[:, 0])[0]
    assert 0 < int(seen.sum()) < 16

    def output(reference: Tensor) -> Tensor:
        shown.prompting._maps[name] = maps
        return vico._attend(shown.prompting, name)(None, None, torch.cat([samples, reference]))[:1]

    hidden, visible = references.clone(), references.clone()
    hidden[:, ~seen] += 5.0
    visible[:, seen] += 5.0
    assert torch.allclose(output(hidden), output(references), atol=1e-5)
    assert not torch.allclose(output(visible), output(references), atol=1e-3)


def test_otsu_is_the_threshold_of_the_largest_variance_between_classes() -> None:
    """Every tenth tried, with NumPy, on maps of their own; a flat map is kept whole."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = np.concatenate([generator.normal(0.2, 0.05, 40), generator.normal(0.7, 0.1, 24)])
        scaled = (values - values.min()) / (values.max() - values.min())
        between = []
        for tenth in range(1, 10):
            low, high = scaled[scaled < tenth / 10], scaled[scaled >= tenth / 10]
            between.append(len(low) * len(high) * (low.mean() - high.mean()) ** 2)
        expected = scaled >= (1 + int(np.argmax(between))) / 10
        assert vico.otsu(torch.tensor(values)[None])[0].tolist() == expected.tolist()
    assert vico.otsu(torch.ones(1, 5)).all()


def test_vicos_regularisation_is_the_gap_of_the_two_maps(shown: Components) -> None:
    """Worked out from the layers' own projections; summed over samples, so that batches split."""
    texts = ["a photo of a <it>", "a <it> in the snow"]
    prompting = shown.prompting
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        shown.unet.get_submodule(name).attn2.register_forward_pre_hook(
            lambda _m, arguments, kwargs, name=name: inputs.update(
                {name: (arguments[0], kwargs["encoder_hidden_states"])}
            ),
            with_kwargs=True,
        )
        for name in vico.places(shown.unet)
    ]
    with torch.no_grad(), prompting.at_work(shown):
        prompting.tell(shown, texts)
        call(shown, texts)
        found = float(prompting.regularisation)
    for handle in handles:
        handle.remove()
    (encoder,) = shown.text_encoders
    by_hand = 0.0
    for name, (hidden, context) in inputs.items():
        attn = shown.unet.get_submodule(name).attn2
        for sample, text in enumerate(texts):
            ids = encoder.tokenizer(text).input_ids
            here, end = ids.index(encoder.tokenizer.convert_tokens_to_ids("<it>")), len(ids) - 1
            q, k = (
                its.detach().unflatten(-1, (attn.heads, -1)).transpose(0, 1).double()
                for its in (attn.to_q(hidden[2 + sample]), attn.to_k(context[2 + sample]))
            )
            maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1).mean(0)
            gap = maps[:, here] / maps[:, here].max() - maps[:, end] / maps[:, end].max()
            by_hand += 5e-4 * float(gap.square().mean())
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert found > 0


def test_both_halves_of_guidance_look_where_the_prompts_token_stands(shown: Components) -> None:
    texts = ["a photo of a <it>", "a <it> in the snow"]
    prompting = shown.prompting
    prompting.tell(shown, texts)
    alone = prompting.positions
    prompting.tell(shown, ["", "", *texts], guided=True)
    assert torch.equal(prompting.positions, torch.cat([alone, alone]))


def test_the_embedding_beside_the_new_layers_has_its_own_rate(components: Components, accelerator: Accelerator) -> None:
    """AdamW's first step is as long as the rate, whatever the gradient."""
    subject = make_subject(components)
    source = make_source(components)
    components.prompting = vico.begin(components, subject.placeholder, source)
    before = subject.rows.detach().clone()
    weight = next(components.prompting.module.parameters()).detach().clone()
    stage = replace(VICO.stages[1], steps=1)
    run_stage(stage, subject, source, accelerator, AdamW(weight_decay=0.0))
    assert float((subject.rows - before).abs().median()) == pytest.approx(5e-3, rel=0.05)
    moved = (next(components.prompting.module.parameters()) - weight).abs()
    assert float(moved.max()) == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("attndreambooth", "train.unet.embedding_rate=0.1", "does not train the embedding beside"),
        ("vico", "train.unet.enabled=true", "vico trains nothing but its own layers"),
        ("neti", "train.attention.enabled=true", "neti trains nothing but its own layers"),
        ("vico", "train.attention.mean_weight=1.0", "regulariser is not for vico"),
        ("neti", "train.embedding.context_weight=1.0", "embedding of neti has no context regularisation"),
        ("attndreambooth", "train.unet.context_weight=0.1", "unet of attndreambooth has no context regularisation"),
    ],
)
def test_what_a_stage_would_ignore_or_get_wrong_is_refused(
    tmp_path: Path, method: str, setting: str, message: str
) -> None:
    from attnbooth_cli.engine.preparation import prepare
    from attnbooth_cli.errors import InputError

    settings = (setting, "train.prompt=a photo of a {}")
    with pytest.raises(InputError, match=message):
        prepare(new_project(tmp_path / "p"), TrainOptions(method=method, settings=settings))


def test_neti_refuses_several_vectors(tmp_path: Path) -> None:
    from attnbooth_cli.errors import InputError

    project = new_project(tmp_path / "p")
    text = (project / "attnbooth.toml").read_text()
    (project / "attnbooth.toml").write_text(text.replace("[concept]", "[concept]\nvectors = 3"))
    with pytest.raises(InputError, match=r"neti makes one vector for \[V\], and this concept has 3"):
        prepare(project, TrainOptions(method="neti"))


def test_references_are_other_pictures_and_keyed(components: Components) -> None:
    """Told by the nearest of the pictures' own latents; each of the others comes up."""
    source = make_source(components, augment=unaugmented)
    plain = torch.cat([replace(source, pictures=[picture]).first() for picture in source.pictures])

    def which(latents: Tensor) -> list[int]:
        return (latents[:, None] - plain[None]).square().flatten(2).mean(2).argmin(1).tolist()

    whole = source.others("attention", 3, range(20), 20)
    parts = torch.cat([source.others("attention", 3, [index], 20) for index in range(20)])
    assert torch.allclose(whole, parts, atol=1e-5)
    own = which(source.batch("attention", 3, range(20), 20).latents)
    pairs = set(zip(own, which(whole), strict=True))
    assert all(mine != other for mine, other in pairs)
    assert {other for _, other in pairs} == set(range(len(source.pictures)))
    alone = replace(source, pictures=source.pictures[:1])
    assert which(alone.others("attention", 3, [0], 1)) == [0]
