"""`concept/`: the result of training, published as one step and loaded with its hashes checked.

learned_embeds.safetensors   {token: [n, d]} float32, as diffusers' load_textual_inversion reads it
unet/                        a diffusers U-Net folder, after stage `unet`; or, where an adapter is all that was trained
ADAPTER                      of the U-Net, its weights alone, in diffusers' own form for LoRA (`adapters.FILES`)
neti_mapper.safetensors      the network that stands for [V], where there is one; or ViCo's layers and its reference
vico_attention.safetensors   picture (`prompting.KINDS`)
stages/attention.safetensors the cross-attention tensors as stage `attention` left them
concept.json                 model-card data and the hashes of the other files; written last
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from attnbooth_cli import __version__
from attnbooth_cli.engine import adapters, prompting
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.methods import STAGE_NAMES, Stage, StageName
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.engine.tokens import Placeholder, add_placeholder, placeholder, write_rows
from attnbooth_cli.engine.weights import all_finite, read_tensors, write_tensors
from attnbooth_cli.errors import DamagedError, InputError
from attnbooth_cli.project import durable
from attnbooth_cli.project.documents import read_document
from attnbooth_cli.project.manifest import MOST_VECTORS, check_category, check_token
from attnbooth_cli.project.project import Project, is_plain_name
from attnbooth_cli.project.schema import present, up_to_date
from attnbooth_cli.project.shell import command
from attnbooth_cli.project.state import now

CARD = "concept.json"
EMBEDDINGS = "learned_embeds.safetensors"
ATTENTION = "stages/attention.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
MOST_PIXELS = 4096
"""A side of a picture, as in manifests and `--size`."""
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Card:
    """What `concept.json` says that loading needs; the whole document is in `document`.

    Attributes:
        folder: Where the concept's files are.
        step: Steps done of the last of `stages`.
    """

    folder: Path
    placeholder: Placeholder
    stages: tuple[StageName, ...]
    step: int
    smoke: bool
    run: str
    document: dict[str, Any]

    def stage(self, wanted: StageName | None) -> StageName:
        """The stage to generate with: the asked-for one, or the last there is.

        Raises:
            InputError: the concept has no such stage.
        """
        if wanted is None:
            return self.stages[-1]
        if wanted not in self.stages:
            raise InputError(
                f"this concept has no stage {wanted} (it has {', '.join(self.stages)})", "choose another with --stage"
            )
        return wanted

    def steps(self, stage: StageName) -> int:
        """How many steps of a stage this concept has seen."""
        return self.step if stage == self.stages[-1] else _planned_steps(self.document, stage)


@dataclass(frozen=True)
class Result:
    """What a run has learned so far.

    Attributes:
        base: The base model as recorded in the card.
        base_files: The hashes of its files (`preparation.file_hashes`); None where the run does not say.
        stages: The stages that were trained, the last one for `step` steps.
        rows: [n, d], the embedding rows of [V].
        attention: The tensors stage `attention` changed, as it left them; empty if it did not run.
        adapter: The adapter's tensors, where nothing else was trained of the U-Net; empty if it is worked into it.
    """

    run: str
    plan: Plan
    base: dict[str, Any]
    base_files: object
    stages: tuple[StageName, ...]
    step: int
    components: Components
    placeholder: Placeholder
    rows: Tensor
    attention: dict[str, Tensor]
    adapter: dict[str, Tensor]


def publish(place: Path, result: Result) -> None:
    """Replaces the concept in `place` by this result; the old one stays whole until the new one is durable.

    Raises:
        ResourceError: it cannot be written.
    """
    plan, unet = result.plan, result.components.unet
    dtype = torch.float16 if plan.save_precision == "float16" else torch.float32
    with durable.new_directory(place) as folder:
        write_tensors(folder / EMBEDDINGS, {result.placeholder.token: result.rows.detach().float()})
        if result.attention:
            (folder / ATTENTION).parent.mkdir()
            write_tensors(folder / ATTENTION, {name: tensor.to(dtype) for name, tensor in result.attention.items()})
        for file in _prompting_files(plan):
            write_tensors(folder / file, prompting.frozen(result.components.prompting.module))
        if result.adapter:
            adapters.write(folder, _unet_stage(plan), result.adapter, dtype)
        elif "unet" in result.stages:
            unet.save_config(folder / "unet")
            weights = adapters.merged(unet) if adapters.attached(unet) else unet.state_dict()
            write_tensors(folder / UNET, {name: tensor.to(dtype) for name, tensor in weights.items()})
        document = {
            "schema": present("concept"),
            "attnbooth": __version__,
            "created": now(),
            "run": result.run,
            "smoke": plan.smoke,
            "name": plan.concept.name,
            "category": plan.concept.category,
            "token": result.placeholder.token,
            "tokens": list(result.placeholder.tokens),
            "with_category": result.placeholder.with_category,
            "prompt": result.placeholder.prompt("a photo of a {}"),
            "base": result.base,
            "base_files": result.base_files,
            "stages": list(result.stages),
            "step": result.step,
            "plan": {key: value for key, value in dataclasses.asdict(plan).items() if key != "origins"},
            "digest": plan.digest,
        }
        durable.write_json(folder / CARD, {**document, "files": _listed(folder)})


def publish_again(place: Path, card: Card, stage: StageName) -> None:
    """Replaces the concept in `place` by another on disk, as that was after `stage`.

    Raises:
        DamagedError: the other is not whole.
        ResourceError: it cannot be written.
    """
    verify(card, f"restore it from a copy, or delete {card.folder}")
    stages = card.stages[: card.stages.index(stage) + 1]
    with durable.new_directory(place) as folder:
        for name in files_of(card, stage):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(card.folder / name, folder / name)
        document = {**card.document, "stages": list(stages), "step": card.steps(stage), "files": _listed(folder)}
        durable.write_json(folder / CARD, document)


def files_of(card: Card, stage: StageName) -> list[str]:
    """The files that a concept as it was after `stage` is loaded from."""
    always = (EMBEDDINGS, *(kind.file for kind in prompting.KINDS.values()))
    of_stage = {"embedding": always, "attention": (*always, ATTENTION)}
    return [name for name in card.document["files"] if stage == "unet" or name in of_stage[stage]]


def read_card(project: Project) -> Card:
    """Reads the card of a project's concept.

    Raises:
        InputError: nothing was trained yet, or a newer version wrote it.
        DamagedError: it is not a concept's card.
    """
    folder = durable.present(project.concept)
    if not folder.exists():
        raise InputError(f"{project.root} has no trained concept yet", command("train", project.root))
    return open_card(folder, command("train", project.root, "--restart"))


def open_card(folder: Path, remedy: str) -> Card:
    """Reads the card of a concept in any folder.

    Raises:
        InputError: a newer version wrote it.
        DamagedError: it is not a concept's card; `remedy` is what to do then.
    """
    path = folder / CARD
    try:
        document = up_to_date("concept", read_document(path), path)
        stages = tuple(stage for stage in STAGE_NAMES if stage in document["stages"])
        if not stages:
            raise ValueError("no stage")
        step = document["step"] if "step" in document else _planned_steps(document, stages[-1])
        if type(step) is not int:
            raise ValueError("its step is no number")
        with_category = bool(document.get("with_category", True))
        _require_card(document)
        concept = placeholder(document["token"], len(document["tokens"]), document["category"], with_category)
        return Card(folder, concept, stages, step, bool(document["smoke"]), str(document["run"]), document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} cannot be read ({error})", remedy) from None


def _require_card(document: dict[str, Any]) -> None:
    """Refuses a card without what is read from it later.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none of ours.
    """
    check_token(document["token"])
    check_category(document["category"])
    base, resolution = document["base"], document["plan"]["resolution"]
    if not isinstance(base["model"], str) or not isinstance(base["sha256"], str | None):
        raise ValueError("its base model is not named")
    if not isinstance(base["revision"], str | None) or not isinstance(document["digest"], str):
        raise ValueError("a hash or a revision is no text")
    if type(resolution) is not int or resolution % 8 or not 8 <= resolution <= MOST_PIXELS:
        raise ValueError("its resolution cannot be")
    if not is_plain_name(document["run"]):
        raise ValueError("its run is a path")
    if not 1 <= len(document["tokens"]) <= MOST_VECTORS:
        raise ValueError(f"{len(document['tokens'])} tokens")
    for name, expected in document["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"the file {name} is not in this folder")
        if not isinstance(expected["sha256"], str):
            raise ValueError(f"the hash of {name} is missing")


def _planned_steps(document: dict[str, Any], stage: StageName) -> int:
    return int(_planned(document, stage)["steps"])


def _planned(document: dict[str, Any], stage: StageName) -> dict[str, Any]:
    found: list[dict[str, Any]] = [its for its in document["plan"]["stages"] if its["name"] == stage]
    if not found:
        raise ValueError(f"its plan has no stage {stage}")
    return found[0]


def _unet_stage(plan: Plan) -> Stage:
    return next(stage for stage in plan.stages if stage.name == "unet")


def _prompting_files(plan: Plan) -> list[str]:
    """The file of what tells the U-Net of [V], where the plan trains such a thing."""
    adapters_ = {stage.adapter for stage in plan.stages if stage.enabled}
    return [kind.file for name, kind in prompting.KINDS.items() if name in adapters_]


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """The files below a folder with sizes and hashes."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": durable.sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def verify(card: Card, remedy: str) -> None:
    """Checks every file of a concept against its recorded hash.

    Raises:
        DamagedError: one is missing or different; `remedy` is what to do then.
    """
    for name, expected in card.document.get("files", {}).items():
        path = card.folder / name
        if ".." in Path(name).parts or not path.is_file() or durable.sha256(path) != expected["sha256"]:
            raise DamagedError(f"{path} is missing or damaged", remedy)


def apply(project: Project, card: Card, stage: StageName, components: Components) -> None:
    """Turns base components into the concept's, in place, as they were after `stage`.

    Raises:
        DamagedError: files are missing, damaged, replaced meanwhile, or do not fit this base model.
    """
    verify(card, f"restore it from a copy, or make it again: {command('resume', project.root)}")
    (encoder,) = components.text_encoders
    add_placeholder(encoder.tokenizer, encoder.model, card.placeholder)
    stored = list(read_tensors(card.folder / EMBEDDINGS).values())
    if len(stored) != 1 or stored[0].dtype not in _FLOATS or not all_finite({EMBEDDINGS: stored[0]}):
        raise DamagedError(
            f"{card.folder / EMBEDDINGS} does not hold one tensor of finite numbers",
            f"restore it from a copy, or make it again: {command('resume', project.root)}",
        )
    rows = stored[0]
    width = encoder.model.get_input_embeddings().weight.shape[1]
    if rows.shape != (len(card.placeholder.tokens), width):
        raise DamagedError(
            f"the embedding in {card.folder} has shape {list(rows.shape)}, the base model needs width {width}",
            "use the base model the concept was trained on",
        )
    write_rows(encoder.tokenizer, encoder.model, card.placeholder, rows)
    for kind in prompting.KINDS.values():
        if kind.file in card.document.get("files", {}):
            tensors = read_tensors(card.folder / kind.file)
            try:
                components.prompting = kind.restore(components, card.placeholder, tensors)
            except (KeyError, RuntimeError, IndexError) as error:
                raise DamagedError(
                    f"{card.folder / kind.file} does not fit the base model", "use the model it was trained on"
                ) from error
    changed: dict[str, Tensor] = {}
    if stage == "unet" and (card.folder / UNET).exists():
        changed = read_tensors(card.folder / UNET)
    elif stage == "unet":
        trained = TypeAdapter(Stage).validate_python(_planned(card.document, "unet"))
        adapters.apply(components.unet, trained, card.folder)
    elif stage == "attention" and ATTENTION in card.document.get("files", {}):
        changed = read_tensors(card.folder / ATTENTION)
    load_tensors(components.unet, changed, str(card.folder))
    # Another process may have published in between: what was checked is not what was read then.
    if open_card(card.folder, "run the command again").document.get("files") != card.document.get("files"):
        raise DamagedError(f"{card.folder} was replaced while it was read", "run the command again")


def load_tensors(module: Any, tensors: dict[str, Tensor], where: str) -> None:
    """Copies named tensors into a module, converting their dtype.

    Raises:
        DamagedError: a name or a shape does not fit.
    """
    own = module.state_dict()
    misfits = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    if misfits:
        raise DamagedError(f"{where} does not fit the base model ({misfits[0]})", "use the model it was trained on")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
