"""`attnbooth eval`: scores, gates, kept pictures, protocols, comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SHORT, Cli, Outcome

PROMPT = "a photo of a {} on the beach"


pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a photo of a {} on the beach\nan oil painting of a {} in the forest\n", encoding="utf-8")
    return file


def test_scores_and_what_makes_them_comparable(cli: Cli, trained: Path, prompts: Path) -> None:
    gates = ("--min-identity", -1, "--min-text", -1, "--max-drift", 2)
    done = cli("eval", trained, "--prompts", prompts, "-n", 2, *gates, "--json")
    assert done.code == 0
    document = done.document
    assert [document[key] for key in ("schema", "event", "project", "run")] == [
        1, "eval", str(trained), "001-attndreambooth",
    ]  # fmt: skip
    assert (document["stage"], document["exit_code"], document["smoke"]) == ("unet", 0, False)
    rows = document["per_prompt"]
    assert [row["prompt"] for row in rows] == prompts.read_text().splitlines()
    assert rows[0]["scored_as"] == "a photo of a mushroom on the beach"
    for score in ("identity", "text"):
        assert all(-1 <= row[score] <= 1 for row in rows)
        assert document[score] == pytest.approx(sum(row[score] for row in rows) / 2)
    protocol = document["protocol"]
    assert (protocol["judge"]["ref"], protocol["references"], protocol["prompts"]) == ("tiny", 5, 2)
    assert (protocol["name"], protocol["deviations"]) == ("attnbooth", {"prompts": "own", "pictures_per_prompt": 2})
    assert (protocol["pictures_per_prompt"], protocol["seeds"]) == (2, [0, 1])
    assert len(document["pictures"]) == 4
    assert document["made"] == 4 + 2 * 8 * 2  # and, for drift, eight prompts by the base model and by this one
    overall = document["overall"]
    assert overall["drift"]["low"] <= overall["drift"]["mean"] <= overall["drift"]["high"]
    for name in ("identity", "text", "survival", "diversity"):
        assert (overall[name]["prompts"], overall[name]["low"]) == (2, None), name  # too few for an interval
    assert overall["copies"]["of"] == 4
    (report,) = (trained / "eval").glob("*/scores.json")
    written = json.loads(report.read_text(encoding="utf-8"))
    assert (written["identity"], written["per_prompt"]) == (document["identity"], rows)
    with report.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == document["pictures"]
    assert [(row["prompt"], int(row["seed"])) for row in table] == [(its["prompt"], n) for its in rows for n in (0, 1)]
    assert sum(float(row["identity"]) for row in table) / 4 == pytest.approx(document["identity"])


def test_the_training_pictures_look_most_like_themselves(
    cli: Cli, trained: Path, prompts: Path, tmp_path: Path
) -> None:
    """The judge really looks: the same pictures score higher against themselves than against another concept's."""
    from attnbooth_cli.engine import scores
    from attnbooth_cli.engine.base_models import resolve_judge
    from attnbooth_cli.engine.devices import resolve_device
    from attnbooth_cli.engine.judges import load_clip
    from attnbooth_cli.project.pictures import load
    from tests.conftest import EXAMPLE

    judge = load_clip("tiny", resolve_judge("tiny"), resolve_device("cpu"))
    cats, mushrooms = (
        judge.features([load(path) for path in sorted((EXAMPLE / name).iterdir())]).numpy()
        for name in ("cat", "mushroom")
    )
    assert scores.identity(cats, cats).mean() > scores.identity(cats, mushrooms).mean() + 0.1


def test_gates(cli: Cli, trained: Path, prompts: Path) -> None:
    prompts.write_text(PROMPT)
    flags = ("--prompts", prompts, "-n", 1, "--no-drift")
    both = cli("eval", trained, *flags, "--min-identity", 0.999, "--min-text", 0.999, "--json")
    assert both.code == 3
    scores = both.document
    assert scores["exit_code"] == scores["error"]["exit_code"] == 3
    assert "identity is" in scores["error"]["message"]
    assert "text is" in scores["error"]["message"]
    passed, missed = ("--min-text", scores["text"] - 0.01), ("--min-identity", scores["identity"] + 0.05)
    done = cli("eval", trained, *flags, *passed, *missed)
    assert done.code == 3
    assert "0.05 below the gate" in done.err
    assert "text is" not in done.err
    assert f"identity            {scores['identity']:.4f} " in done.out  # shown all the same
    assert len(list((trained / "eval").glob("*/scores.json"))) == 2  # nothing is overwritten


def test_pictures_are_made_once(cli: Cli, trained: Path, prompts: Path) -> None:
    """Another evaluation makes only what is missing, whatever was interrupted, and scores the same."""
    flags = ("--prompts", prompts, "--json")
    first = cli("eval", trained, *flags, "-n", 1).document
    shelves = sorted((trained / "eval" / "pictures").rglob("*.png"))
    assert len(shelves) == first["made"] == 2 + 2 * 8
    again = cli("eval", trained, *flags, "-n", 1).document
    assert again["made"] == 0
    assert (again["identity"], again["text"], again["overall"]) == (first["identity"], first["text"], first["overall"])
    lost = [path for path in shelves if path == trained / first["pictures"][0]] + shelves[-1:]
    for path in lost:
        path.unlink()
    after = cli("eval", trained, *flags, "-n", 1).document
    assert after["made"] == len(set(lost))
    for name in ("identity", "text", "drift"):
        assert after["overall"][name]["mean"] == pytest.approx(first["overall"][name]["mean"], abs=1e-3)
    more = cli("eval", trained, *flags, "-n", 2, "--no-drift").document
    assert more["made"] == 2
    for row, earlier in zip(more["per_prompt"], first["per_prompt"], strict=True):
        assert row["pictures"][0]["identity"] == pytest.approx(earlier["pictures"][0]["identity"], abs=1e-3)


def test_drift_is_nothing_before_anything_but_the_embedding_was_trained(cli: Cli, trained: Path, prompts: Path) -> None:
    prompts.write_text(PROMPT)
    flags = ("--prompts", prompts, "-n", 1, "--json")
    assert cli("eval", trained, *flags, "--stage", "embedding").document["overall"]["drift"]["mean"] == pytest.approx(
        0, abs=1e-6
    )
    done = cli("eval", trained, *flags, "--max-drift", -0.01)
    assert done.code == 3
    assert "above the gate of -0.01" in done.document["error"]["message"]


def test_a_judge_that_is_not_there(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for judge in (tmp_path / "absent", "some-body/some-judge"):
        done = cli("eval", trained, "-n", 1, "--clip", judge)
        assert done.code == 7, judge
        assert "--clip" in done.err
    assert not (trained / "eval").exists()


def test_several_projects_in_one_document(cli: Cli, trained: Path, tmp_path: Path, prompts: Path) -> None:
    absent = tmp_path / "absent"
    prompts.write_text(PROMPT)
    done = cli("eval", absent, trained, "--prompts", prompts, "-n", 1, "--json")
    assert done.code == 2
    first, second = done.document["results"]
    assert (first["project"], first["error"]["exit_code"]) == (str(absent), 2)
    assert second["project"] == str(trained)
    assert -1 <= second["identity"] <= 1


def test_a_prompt_without_the_concept_cannot_be_scored(cli: Cli, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a beach\n")
    done = cli("eval", trained, "--prompts", file)
    assert done.code == 2
    assert "does not name the concept" in done.err


def test_identity_and_text_from_raw_features(cli: Cli, trained: Path, prompts: Path) -> None:
    """Parity with transformers' own CLIP model and processor, read from the pictures `eval` kept."""
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from attnbooth_cli.engine.base_models import bundled_folder

    done = cli("eval", trained, "--prompts", prompts, "-n", 2, "--no-drift", "--json").document
    folder = bundled_folder()
    model = CLIPModel(CLIPConfig.from_pretrained(folder / "clip")).float().eval()
    text_tower = load_file(folder / "text_encoder" / "model.safetensors")
    weights = {f"text_model.{name}": tensor for name, tensor in text_tower.items()}
    model.load_state_dict(load_file(folder / "clip" / "model.safetensors") | weights)
    processor = CLIPImageProcessorPil.from_pretrained(folder / "clip")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")

    def seen(paths: list[Path]) -> np.ndarray:
        pixels = processor(images=[Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
        with torch.no_grad():
            return unit(model.get_image_features(**pixels).pooler_output)

    def unit(rows: torch.Tensor) -> np.ndarray:
        return (rows / rows.norm(dim=-1, keepdim=True)).double().numpy()

    tokens = tokenizer([row["scored_as"] for row in done["per_prompt"]], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        said = unit(model.get_text_features(input_ids=tokens.input_ids).pooler_output)
    own, made = seen(sorted((trained / "images").iterdir())), seen([trained / path for path in done["pictures"]])
    assert done["identity"] == pytest.approx((made @ own.T).mean(), abs=1e-6)
    assert done["text"] == pytest.approx(np.mean([made[k] @ said[k // 2] for k in range(4)]), abs=1e-6)
    wrong = np.mean([made[k] @ said[1 - k // 2] for k in range(4)])
    assert wrong < done["text"]  # shuffled prompts score lower


def test_textual_inversions_protocol(cli: Cli, trained: Path, prompts: Path) -> None:
    """Identity on its own prompt, text on the others; what was set otherwise is on record."""
    flags = ("--protocol", "textual-inversion", "--clip", "tiny", "--prompts", prompts, "-n", 1, "--no-drift")
    document = cli("eval", trained, *flags, "--json").document
    rows = document["per_prompt"]
    assert [(row["prompt"], row["counts_for"]) for row in rows] == [
        ("a photo of a {}", ["identity"]),
        (PROMPT, ["text"]),
        ("an oil painting of a {} in the forest", ["text"]),
    ]
    assert document["identity"] == pytest.approx(rows[0]["identity"])
    assert document["text"] == pytest.approx((rows[1]["text"] + rows[2]["text"]) / 2)
    protocol = document["protocol"]
    assert (protocol["scheduler"], protocol["steps"], protocol["guidance"]) == ("ddim", 50, 5.0)
    assert protocol["judge"]["preprocessing"] == "textual-inversion"
    assert protocol["deviations"] == {"prompts": "own", "pictures_per_prompt": 1, "judge": "tiny"}
    five = cli("eval", trained, *flags[:-3], "-n", 5, "--no-drift", "--json").document["overall"]["identity"]
    assert (five["prompts"], five["over"]) == (1, "pictures")
    assert five["low"] < five["mean"] < five["high"]


def test_dreambooths_protocol(cli: Cli, trained: Path, prompts: Path) -> None:
    flags = ("--protocol", "dreambooth", "--clip", "tiny", "--prompts", "live", "-n", 1, "--no-drift", "--json")
    absent = cli("eval", trained, *flags)
    assert absent.code == 7  # its second judge is on the hub
    assert "--dino" in absent.document["hint"]
    document = cli("eval", trained, *flags, "--dino", "none").document
    assert len(document["per_prompt"]) == 25
    deviations = {"pictures_per_prompt": 1, "judge": "tiny", "dino": "none"}
    assert document["protocol"]["deviations"] == deviations  # but not its other set of prompts
    assert "dino identity" not in document["overall"]


def test_the_untuned_model_as_a_floor(cli: Cli, trained: Path, prompts: Path) -> None:
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--baseline", "--json")
    document = cli("eval", trained, *flags).document
    assert document["made"] == 4
    untuned = document["untuned"]
    # Two steps a stage change next to nothing; what differs is the concept's token in the prompt.
    assert untuned["identity"]["mean"] == pytest.approx(document["identity"], abs=0.2)
    assert 0 < untuned["text"]["mean"] < 1
    assert cli("eval", trained, *flags).document["made"] == 0
    assert document["references"]["count"] == 5
    assert document["overall"]["identity"]["mean"] < document["references"]["identity"]


def test_the_base_models_pictures_are_shared(cli: Cli, trained: Path, tmp_path: Path, prompts: Path) -> None:
    import shutil

    other, shared = Path(shutil.copytree(trained, tmp_path / "other")), tmp_path / "untuned"
    flags = ("--prompts", prompts, "-n", 1, "--baseline", "--untuned-pictures", shared, "--json")
    first = cli("eval", trained, *flags).document
    assert len(list(shared.rglob("*.png"))) == 2 + 8
    second = cli("eval", other, *flags).document
    assert second["made"] == first["made"] - 10
    assert second["overall"]["drift"] == first["overall"]["drift"]


def test_pictures_held_out_are_scored_beside(cli: Cli, trained: Path, prompts: Path) -> None:
    held_out = trained / "held-out"
    held_out.mkdir()
    for path in sorted((trained / "images").iterdir()):
        (held_out / path.name).write_bytes(path.read_bytes())
    prompts.write_text(PROMPT)
    document = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift", "--json").document
    assert document["overall"]["held-out identity"]["mean"] == pytest.approx(document["identity"])
    next(iter(sorted(held_out.iterdir()))).unlink()
    for path in held_out.iterdir():
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    said = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift").err
    assert "copy of a training picture" in said  # in another form, but the same picture
    again = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift", "--json").document
    assert again["overall"]["held-out identity"]["mean"] != pytest.approx(document["identity"], abs=1e-9)
    assert again["identity"] == document["identity"]


def test_a_folder_for_pictures_held_out_may_be_empty(cli: Cli, trained: Path, prompts: Path) -> None:
    (trained / "held-out").mkdir()
    (trained / "held-out" / "README.txt").write_text("pictures of the mushroom that training does not see")
    document = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift", "--json").document
    assert "held-out identity" not in document["overall"]


def test_pictures_of_another_base_model_are_not_taken_for_these(
    cli: Cli, trained: Path, prompts: Path, tmp_path: Path
) -> None:
    """Its noise schedule alone differs: the weights are the same."""
    import shutil

    from attnbooth_cli.engine.base_models import bundled_folder

    shared, model = tmp_path / "untuned", Path(shutil.copytree(bundled_folder(), tmp_path / "model"))
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--baseline", "--clip", "tiny", "--untuned-pictures", shared)
    other = tmp_path / "other"
    assert cli("init", other, "--images", trained / "images", "--category", "mushroom", "--model", model).code == 0
    assert cli("train", other, *SHORT, "-q").code == 0
    made = []
    for end in (0.012, 0.02):
        scheduler = model / "scheduler" / "scheduler_config.json"
        scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "beta_end": end}))
        made.append(cli("eval", other, *flags, "--json").document["made"])
    assert made == [4, 4]


def test_words_that_the_base_model_does_not_know_are_named(cli: Cli, trained: Path, prompts: Path) -> None:
    prompts.write_text("a photo of a {} on a cobblestone street\n")
    assert "'cobblestone'" in cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift").err


def test_pictures_that_are_all_black_are_counted(
    cli: Cli, trained: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbooth_cli.engine import evaluation

    monkeypatch.setattr(evaluation, "is_black", lambda picture: True)
    assert "2 of the pictures are all black" in cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift").err


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    """A DINO model with random weights, as transformers saves one."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "dino")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_dino_as_a_second_judge(cli: Cli, trained: Path, prompts: Path, dino: Path) -> None:
    prompts.write_text(PROMPT)
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--json")
    document = cli("eval", trained, *flags, "--dino", dino).document
    found = document["overall"]["dino identity"]
    assert -1 <= found["mean"] <= 1
    assert found["mean"] != pytest.approx(document["identity"])
    assert (found["judge"]["kind"], found["judge"]["ref"]) == ("dino", str(dino))
    assert cli("eval", trained, *flags, "--dino", dino).document["made"] == 0  # another judge makes nothing again
    for wrong in ("tiny", trained):
        refused = cli("eval", trained, *flags, "--dino", wrong)
        assert refused.code == 2, wrong
    swapped = cli("eval", trained, *flags, "--clip", dino)
    assert swapped.code == 2
    assert "must be a CLIP model" in swapped.document["message"]


def test_a_comparison_is_paired(cli: Cli, trained: Path, tmp_path: Path, prompts: Path) -> None:
    import shutil

    other = Path(shutil.copytree(trained, tmp_path / "other"))
    flags = ("--prompts", prompts, "-n", 1, "--no-drift")
    first = cli("eval", trained, *flags, "--json").document
    done = cli("eval", trained, other, *flags, "--json").document
    one, two = done["comparison"]
    assert (one["name"], two["name"]) == (str(trained), str(other))
    assert one["differences"] == {}
    assert two["differences"]["identity"] == {"mean": 0, "interval": None, "prompts": 2}

    shown = cli("eval", other, *flags, "--stage", "embedding", "--against", first["report"])
    lines = shown.out.splitlines()
    assert [line.strip() for line in lines[-4:-1:2]] == [first["report"], str(other)]
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)


def test_scores_of_different_protocols_are_not_compared(cli: Cli, trained: Path, prompts: Path) -> None:
    first = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift", "--json").document
    done = cli("eval", trained, "--prompts", prompts, "-n", 2, "--no-drift", "--against", first["report"], "--json")
    assert done.document["comparison"] is None
    assert "not scored alike" in done.document["not_compared"]
    assert "no comparison" in done.err
    broken = trained / "broken.json"
    broken.write_text("{}")
    refused: Outcome = cli("eval", trained, "--against", broken)
    assert refused.code == 2
    assert "not a report" in refused.err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--protocol", "mine"], "no protocol 'mine'"),
        (["--prompts", "mine.txt"], "no file mine.txt"),
        (["--max-drift", "0.1", "--no-drift"], "--no-drift"),
        (["--min-text", "nan"], "nan"),
        (["--checkpoints", "--stage", "unet"], "--stage"),
    ],
)
def test_questions_that_cannot_be_asked(cli: Cli, trained: Path, flags: list[str], why: str) -> None:
    done = cli("eval", trained, *flags)
    assert done.code == 2
    assert why in done.err
    assert not (trained / "eval").exists()


def test_the_bundled_models_prompts_are_in_its_words(engine_loaded: None) -> None:
    """Nothing unknown to its tokenizer, nothing cut off, and as many as the sets for real models have."""
    from attnbooth_cli.engine.base_models import resolve
    from attnbooth_cli.engine.families import load_tokenizer
    from attnbooth_cli.engine.prompts import COMPLEX, DRIFT, EVALUATION

    tokenizer = load_tokenizer(resolve("tiny"))
    for sets in (EVALUATION, COMPLEX):
        assert {name: len(its) for name, its in sets["tiny"].items()} == {
            name: len(its) for name, its in sets["general"].items()
        }
    assert [len(its) for its in EVALUATION["tiny"].values()] == [6, 6, 6, 6]
    assert [len(its) for its in COMPLEX["tiny"].values()] == [12]
    texts = [text for sets in (EVALUATION, COMPLEX) for its in sets["tiny"].values() for text in its]
    texts += [text.format(category="{}") for text in DRIFT["tiny"]]
    for text in texts:
        ids: list[int] = tokenizer(text.replace("{}", "cat")).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1], text
        assert len(ids) < tokenizer.model_max_length, text


def test_an_interrupted_evaluation_goes_on(cli: Cli, trained: Path, prompts: Path, monkeypatch: Any) -> None:
    """What was made before the interruption is not made again."""
    from attnbooth_cli.engine import gallery

    original, saved = gallery._save, []

    def stop_after_three(*arguments: Any) -> None:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(arguments[0])
        original(*arguments)

    flags = ("--prompts", prompts, "-n", 2, "--no-drift", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(gallery, "_save", stop_after_three)
        assert cli("eval", trained, *flags).code == 130
    assert len(list((trained / "eval" / "pictures").rglob("*.png"))) == 3
    assert cli("eval", trained, *flags).document["made"] == 1
    report = json.loads(next((trained / "eval").glob("*/scores.json")).read_text(encoding="utf-8"))
    assert len(report["pictures"]) == 4


@pytest.mark.parametrize(
    ("prompt", "full", "rest"),
    [
        ("a photo of a red {} on the beach", "a photo of a red cat on the beach", "a photo, red, on the beach"),
        ("A Photo Of A {}", "A Photo Of A cat", "A Photo"),
        ("pixel art of a {} in the city", "pixel art of a cat in the city", "pixel art, in the city"),
        ("a small {} next to a tree, oil", "a small cat next to a tree, oil", "small, next to a tree, oil"),
        ("a photo of <it> cat on the beach", "a photo of cat on the beach", "a photo, on the beach"),
        ("a photo of a <it> on the beach", "a photo of a cat on the beach", "a photo, on the beach"),
        ("a photo of a {} and a {} on the beach", "a photo of a cat and a cat on the beach", "a photo, on the beach"),
        ("two {} on a beach", "two cat on a beach", "two, on a beach"),
        ("a {}'s house", "a cat's house", "house"),
        ("a {}", "a cat", None),
        ("{}", "cat", None),
    ],
)  # fmt: skip
def test_how_a_prompt_is_scored(engine_loaded: None, prompt: str, full: str, rest: str | None) -> None:
    from attnbooth_cli.engine.question import without_concept, without_placeholder
    from attnbooth_cli.engine.tokens import placeholder

    concept = placeholder("<it>", 1, "cat")
    assert without_placeholder(prompt, concept) == full
    assert without_concept(prompt, concept) == rest


def test_one_prompt_in_three_spellings_counts_once(cli: Cli, trained: Path, prompts: Path) -> None:
    prompts.write_text(f"{PROMPT}\na photo of a <toadstool> mushroom on the beach\n{PROMPT}\n")
    document = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift", "--json").document
    assert [row["prompt"] for row in document["per_prompt"]] == [PROMPT]


def test_training_pictures_that_changed_are_not_scored_against(cli: Cli, trained: Path, prompts: Path) -> None:
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--json")
    before = cli("eval", trained, *flags).document
    first, second, *_ = sorted((trained / "images").iterdir())
    (trained / "images" / "another.png").write_bytes(second.read_bytes()[:-20] + second.read_bytes()[-20:])
    assert cli("eval", trained, *flags).document["identity"] == before["identity"]  # what was added does not count
    first.write_bytes(second.read_bytes())
    refused = cli("eval", trained, *flags)
    assert refused.code == 2
    assert f"{first} is missing or changed" in refused.document["message"]


def test_another_base_model_in_its_place_is_refused(cli: Cli, project: Path, prompts: Path, tmp_path: Path) -> None:
    import shutil

    from attnbooth_cli.engine.base_models import bundled_folder
    from tests.conftest import SHORT, flip_byte

    base = Path(shutil.copytree(bundled_folder(), tmp_path / "base"))
    manifest = project / "attnbooth.toml"
    manifest.write_text(manifest.read_text().replace('model = "tiny"', f'model = "{base}"'))
    assert cli("train", project, *SHORT, "--until", "embedding", "-q").code == 0
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--clip", "tiny", "--json")
    first = cli("eval", project, *flags).document
    vae = base / "vae" / "diffusion_pytorch_model.safetensors"
    flip_byte(vae)
    assert cli("eval", project, *flags).document["made"] == first["made"]  # other weights, other pictures
    flip_byte(base / "unet" / "diffusion_pytorch_model.safetensors")
    refused = cli("eval", project, *flags)
    assert refused.code == 7
    assert "other weights" in refused.document["message"]


def test_damaged_caches_are_made_anew(cli: Cli, trained: Path, prompts: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    flags = ("--prompts", prompts, "-n", 2, "--no-drift", "--json")
    first = cli("eval", trained, *flags).document
    cut, empty, folder, _ = (trained / name for name in first["pictures"])
    cut.write_bytes(cut.read_bytes()[:100])
    empty.write_bytes(b"")
    folder.unlink()
    folder.mkdir()
    again = cli("eval", trained, *flags).document
    assert again["made"] == 3
    assert again["identity"] == pytest.approx(first["identity"], abs=1e-3)
    (features,) = (trained / "eval" / "features").iterdir()
    kept = load_file(features)
    for damage in (lambda row: row * float("nan"), lambda row: row[:5]):
        save_file({key: damage(row).clone() for key, row in kept.items()}, features)
        assert cli("eval", trained, *flags).document["identity"] == again["identity"]
    some = dict(list(kept.items())[:3])
    save_file({key: row[:5].clone() for key, row in some.items()}, features)
    assert cli("eval", trained, *flags).document["identity"] == again["identity"]
    shutil.rmtree(trained / "eval" / "pictures")
    assert cli("eval", trained, *flags).document["made"] == 4


def test_nothing_passes_a_gate_by_being_no_number() -> None:
    from attnbooth_cli.engine.gates import Gates
    from attnbooth_cli.errors import GateError

    nan = float("nan")
    Gates().check(nan, nan, nan)
    for gates in (Gates(min_identity=-1), Gates(min_text=-1), Gates(max_drift=2)):
        with pytest.raises(GateError):
            gates.check(nan, nan, nan)


def test_a_snapshot_meets_no_gate() -> None:
    """What there is no concept of must not pass for one."""
    from attnbooth_cli.engine.gates import Gates
    from attnbooth_cli.errors import GateError

    Gates().check(0.5, 0.5, 0.5, of_concept=False)
    with pytest.raises(GateError, match="no concept/"):
        Gates(min_identity=0.1).check(0.5, 0.5, 0.5, of_concept=False)


def test_a_judge_is_known_by_all_its_weights(cli: Cli, trained: Path, prompts: Path, tmp_path: Path) -> None:
    """The same weights elsewhere are the same judge; another text tower is another one."""
    import shutil

    from attnbooth_cli.engine.base_models import bundled_folder
    from tests.conftest import flip_byte

    judge = Path(shutil.copytree(bundled_folder(), tmp_path / "judge"))
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--json")
    first = cli("eval", trained, *flags).document
    assert cli("eval", trained, *flags, "--clip", judge, "--against", first["report"]).document["comparison"]
    flip_byte(judge / "text_encoder" / "model.safetensors")
    other = cli("eval", trained, *flags, "--clip", judge, "--against", first["report"]).document
    assert "judge is" in other["not_compared"]


def test_a_judge_is_known_by_its_configuration_too(cli: Cli, trained: Path, prompts: Path, tmp_path: Path) -> None:
    """Another activation gives other features of the same weights, of pictures and of texts."""
    import shutil

    from attnbooth_cli.engine.base_models import bundled_folder

    judge = Path(shutil.copytree(bundled_folder(), tmp_path / "judge"))
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--json", "--clip", judge)
    first = cli("eval", trained, *flags).document
    config = judge / "clip" / "config.json"
    document = json.loads(config.read_text())
    document["vision_config"]["hidden_act"] = "relu"
    config.write_text(json.dumps(document))
    second = cli("eval", trained, *flags, "--against", first["report"]).document
    assert second["made"] == 0
    assert second["identity"] != first["identity"]
    assert "configured otherwise" in second["not_compared"]


def test_pictures_there_from_a_smaller_question_are_not_made_again(
    cli: Cli, trained: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbooth_cli.engine import gallery

    asked: list[int] = []
    sample = gallery.sample_missing

    def counted(components: Any, requests: Any, settings: Any, missing: Any, batch_size: int) -> Any:
        batches = [range(start, start + batch_size) for start in range(0, len(requests), batch_size)]
        asked.append(sum(len(requests[its.start : its.stop]) for its in batches if set(its) & set(missing)))
        return sample(components, requests, settings, missing, batch_size)

    monkeypatch.setattr(gallery, "sample_missing", counted)
    prompts.write_text("".join(f"a photo of a {{}} on the {place}\n" for place in ("beach", "road", "grass", "snow")))
    flags = ("--prompts", prompts, "--no-drift", "--json")
    assert cli("eval", trained, *flags, "-n", 3).document["made"] == 12
    assert cli("eval", trained, *flags, "-n", 4).document["made"] == 4
    assert asked == [12, 4]


def test_taking_back_and_forth_makes_no_picture_again(cli: Cli, trained: Path, prompts: Path) -> None:
    """A stage's pictures depend on what it is loaded from, and not on the other files beside it."""
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--json")
    first = cli("eval", trained, *flags, "--stage", "attention").document
    assert first["made"] == 2
    assert cli("take", trained, "attention-000008").code == 0
    second = cli("eval", trained, *flags).document
    assert (second["stage"], second["made"], second["identity"]) == ("attention", 0, first["identity"])


def test_deviations_from_a_protocol_and_a_smoke_test_are_said(cli: Cli, trained: Path, prompts: Path) -> None:
    done = cli("eval", trained, "--protocol", "textual-inversion", "--clip", "tiny", "--prompts", prompts, "-n", 1)
    assert "not as that protocol has it: prompts own, pictures per prompt 1, judge tiny" in " ".join(done.out.split())
    card = trained / "concept" / "concept.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"smoke": True}))
    for _ in range(2):  # also where no picture is made
        done = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift")
        assert "this concept comes from a smoke test" in " ".join(done.err.split())
        assert "of stage unet, a smoke test" in " ".join(done.out.split())


def test_drift_of_black_pictures_is_none_and_meets_no_gate(
    cli: Cli, trained: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = ("--prompts", prompts, "-n", 1, "--untuned-pictures", tmp_path / "base")
    assert cli("eval", trained, *flags).code == 0
    for path in (tmp_path / "base").rglob("*.png"):
        Image.new("RGB", (64, 64)).save(path)
    done = cli("eval", trained, *flags, "--max-drift", 2)
    assert done.code == 3
    said = " ".join(done.err.split())
    assert "8 of the base model's pictures are all black" in said
    assert "drift could not be measured" in said
    assert "drift " not in done.out


def test_projects_are_told_apart_where_messages_are_quiet(
    cli: Cli, trained: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "-q")
    done = cli("eval", trained, tmp_path / "absent", *flags, "--min-identity", 1)
    assert str(trained) in done.out.splitlines()
    assert [line for line in done.err.splitlines() if line.startswith("== ")] == [
        f"== {trained}", f"== {tmp_path / 'absent'}",
    ]  # fmt: skip
    assert "absent was not scored" in " ".join(done.out.split())


def test_a_base_model_that_moved_is_found_where_the_manifest_says(
    cli: Cli, project: Path, prompts: Path, tmp_path: Path
) -> None:
    import shutil

    from attnbooth_cli.engine.base_models import bundled_folder

    base = Path(shutil.copytree(bundled_folder(), tmp_path / "base"))
    manifest = project / "attnbooth.toml"
    manifest.write_text(manifest.read_text().replace('"tiny"', f'"{base.as_posix()}"'))
    assert cli("train", project, *SHORT).code == 0
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--clip", "tiny")
    shutil.move(base, tmp_path / "elsewhere")
    assert cli("eval", project, *flags).code != 0
    text = manifest.read_text().replace(base.as_posix(), (tmp_path / "elsewhere").as_posix())
    manifest.write_text(text)
    assert cli("eval", project, *flags).code == 0
    assert cli("generate", project, PROMPT).code == 0


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 2, "per_prompt": []}',
        '{"schema": 3, "per_prompt": []}',
        '{"schema": 3, "per_prompt": 3}',
        '{"schema": 3, "identity": NaN, "text": 0.1, "per_prompt": []}',
        '{"schema": 3, "identity": "0.5", "text": 0.1, WHOLE, "protocol": {"judge": {}}}',
        '{"schema": 3, "identity": 0.5, "text": 0.1, WHOLE, "protocol": {"judge": null}}',
        '{"schema": 3, "identity": 0.5, "text": 0.1, WHOLE, "protocol": {}}',
        "[]",
    ],
)
def test_reports_that_are_none(cli: Cli, trained: Path, tmp_path: Path, text: str) -> None:
    row = '{"prompt": "a {}", "counts_for": ["identity", "text"], "identity": 0.5, "text": 0.1, "pictures": []}'
    whole = f'"per_prompt": [{row}], "overall": {{}}, "references": {{"sha256": [], "category": "cat"}}'
    file = tmp_path / "report.json"
    file.write_text(text.replace("WHOLE", whole))
    refused = cli("eval", trained, "--against", file)
    assert refused.code == 2
    assert "not a report" in refused.err
    assert not (trained / "eval").exists()
