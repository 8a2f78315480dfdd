"""Training pictures: keyed randomness, the published augmentation, and the pool."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attnbooth_cli.engine import data
from attnbooth_cli.engine.augmentation import AUGMENTATIONS, published, unaugmented, upright
from attnbooth_cli.engine.data import beside
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.rng import keyed_generator
from tests.engine.conftest import latent_shape, make_source


def test_generators_are_functions_of_their_key_alone() -> None:
    first = torch.rand(4, generator=keyed_generator(0, "unet", 3, 1, "noise"))
    assert torch.equal(first, torch.rand(4, generator=keyed_generator(0, "unet", 3, 1, "noise")))
    others = [(1, "unet", 3, 1, "noise"), (0, "attention", 3, 1, "noise"), (0, "unet", 31, "noise"), (0, "unet", 3, 11)]
    assert all(not torch.equal(first, torch.rand(4, generator=keyed_generator(*key))) for key in others)


def test_a_batch_of_eight_is_two_of_four_and_eight_of_one(components: Components) -> None:
    source = make_source(components)
    whole = source.batch("unet", 5, range(8), 8)
    for size in (4, 3, 1):
        parts = [source.batch("unet", 5, range(8)[start : start + size], 8) for start in range(0, 8, size)]
        assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
        assert torch.equal(torch.cat([part.timesteps for part in parts]), whole.timesteps)
        torch.testing.assert_close(torch.cat([p.latents for p in parts]), whole.latents, rtol=1e-5, atol=1e-5)


def test_steps_stages_and_seeds_see_different_samples(components: Components) -> None:
    source = make_source(components)
    reference = source.batch("unet", 0, range(4), 4).noise
    assert not torch.equal(source.batch("unet", 1, range(4), 4).noise, reference)
    assert not torch.equal(source.batch("attention", 0, range(4), 4).noise, reference)
    assert not torch.equal(make_source(components, seed=1).batch("unet", 0, range(4), 4).noise, reference)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**62), pictures=st.integers(1, 7), stage=st.sampled_from(["embedding", "unet"]))
def test_an_epoch_shows_every_picture_a_hundred_times(seed: int, pictures: int, stage: str) -> None:
    epoch = range(data.REPEATS * pictures, 2 * data.REPEATS * pictures)
    counts = Counter(data.picture_number(seed, stage, draw, pictures) for draw in epoch)
    assert counts == dict.fromkeys(range(pictures), data.REPEATS)


def test_timesteps_cover_the_schedule_uniformly(components: Components) -> None:
    source = make_source(components, augment=unaugmented)
    timesteps = torch.cat([source.batch("unet", step, range(8), 8).timesteps for step in range(60)])
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000
    assert abs(timesteps.float().mean().item() - 499.5) < 60  # 4.5 standard errors


def test_latents_are_sampled_from_the_posterior(components: Components) -> None:
    """mean + std * noise, times the scaling factor; not the mean itself."""
    source = make_source(components, augment=unaugmented)
    batch = source.batch("unet", 0, [0], 1)
    picture = source.pictures[data.picture_number(0, "unet", 0, len(source.pictures))]
    pixels = torch.from_numpy(np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)).copy())
    with torch.no_grad():
        posterior = components.vae.encode(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1).latent_dist
    noise = torch.randn(latent_shape(components), generator=keyed_generator(0, "unet", 0, 0, "posterior"))
    expected = (posterior.mean[0] + posterior.std[0] * noise) * components.vae.config.scaling_factor
    torch.testing.assert_close(batch.latents[0], expected, rtol=1e-4, atol=1e-5)


def white(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, "white")


def draws(augment: str, picture: Image.Image, count: int) -> list[np.ndarray]:
    make = AUGMENTATIONS[augment]
    return [np.asarray(make(picture, 64, keyed_generator(i))) for i in range(count)]


def test_published_recipe_rotates_three_quarters_with_black_corners() -> None:
    black = [bool((drawn == 0).all(-1).any()) for drawn in draws("published", white((100, 100)), 300)]
    assert 0.62 < np.mean(black) < 0.80  # 0.75 rotate; small angles may lose their corners to the resize


def test_published_turns_by_up_to_45_degrees_and_makes_up_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[tuple[float, Image.Image]] = []
    rotate = Image.Image.rotate

    def watched(self: Image.Image, angle: float, *arguments: object, **options: object) -> Image.Image:
        turned.append((angle, rotate(self, angle, *arguments, **options)))
        return turned[-1][1]

    monkeypatch.setattr(Image.Image, "rotate", watched)
    stripes = Image.fromarray(np.tile(np.uint8([[255], [60]]), (50, 100))).convert("RGB")
    draws("published", stripes, 300)
    angles = np.array([angle for angle, _ in turned])
    assert -45 <= angles.min() < -43
    assert 43 < angles.max() <= 45
    assert abs(np.mean(np.abs(angles) < 22.5) - 0.5) < 0.1
    for _, picture in turned:
        assert set(np.unique(np.asarray(picture))) <= {0, 60, 255}  # to the nearest pixel; the corners are black
        assert min(picture.size) >= 100  # nothing of it is cut off


def test_a_quarter_of_all_draws_is_flipped() -> None:
    half = Image.new("RGB", (64, 64), "white")
    half.paste("red", (0, 0, 32, 64))
    flipped = [bool(drawn[32, 60, 1] < 128) for drawn in draws("upright", half, 400)]
    assert 0.18 < np.mean(flipped) < 0.32


def test_crops_reach_both_ends_of_the_longer_side() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 192, dtype=np.uint8), (64, 1))).convert("RGB")
    starts = [int(drawn[0].min()) for drawn in draws("upright", ramp, 200)]
    assert min(starts) < 12
    assert max(starts) > 160


def test_stretched_and_unaugmented_pictures_are_whole_and_in_the_middle() -> None:
    """Textual Inversion's and ViCo's squares hold all of the picture, unaugmented ones the middle of it."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    square = picture.resize((64, 64), Image.Resampling.BICUBIC)
    both = {square.tobytes(), square.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()}
    assert {its.tobytes() for its in draws("stretched", picture, 30)} == both
    assert {its.tobytes() for its in draws("squeezed", picture, 5)} == {square.tobytes()}
    smaller = picture.resize((144, 64), Image.Resampling.BILINEAR)
    assert {its.tobytes() for its in draws("none", picture, 5)} == {smaller.crop((40, 0, 104, 64)).tobytes()}


def test_a_square_picture_is_cropped_nowhere() -> None:
    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    for drawn in draws("upright", picture, 8):
        reference = np.asarray(picture)
        assert np.array_equal(drawn, reference) or np.array_equal(drawn, reference[:, ::-1])


def test_no_augmentation_is_the_same_every_time() -> None:
    picture = Image.effect_noise((90, 64), 80).convert("RGB")
    first, *others = draws("none", picture, 4)
    assert all(np.array_equal(first, other) for other in others)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(8, 300),
    height=st.integers(8, 300),
    resolution=st.sampled_from([16, 64]),
    key=st.integers(0, 10**6),
    augment=st.sampled_from([published, upright, unaugmented]),
)
def test_every_draw_is_a_square_of_the_resolution(width, height, resolution, key, augment) -> None:
    assert augment(white((width, height)), resolution, keyed_generator(key)).size == (resolution, resolution)


def test_large_pictures_are_reduced_once_without_visible_difference(tmp_path: Path) -> None:
    """The reduction to four times the resolution costs less than two grey levels on average."""
    ramp = np.linspace(0, 6 * np.pi, 1200)
    wave = 127.5 + 60 * np.sin(ramp)[:, None] + 60 * np.cos(ramp * 1.3)[None, :]
    large = Image.fromarray(np.clip(wave, 0, 255).astype(np.uint8)).convert("RGB")
    path = tmp_path / "large.png"
    large.save(path)
    (reduced,) = data.load_pictures([path], 64)
    assert min(reduced.size) == 256
    differences = []
    for key in range(24):
        exact = np.asarray(published(large, 64, keyed_generator(key))).astype(float)
        quick = np.asarray(published(reduced, 64, keyed_generator(key))).astype(float)
        differences.append(np.abs(exact - quick).mean())
    assert np.mean(differences) < 2.0


def test_pictures_up_to_four_times_the_resolution_are_untouched(tmp_path: Path) -> None:
    picture = Image.effect_noise((250, 300), 80).convert("RGB")
    picture.save(tmp_path / "p.png")
    (loaded,) = data.load_pictures([tmp_path / "p.png"], 64)
    assert np.array_equal(np.asarray(loaded), np.asarray(picture))


class Counting:
    """A VAE that counts the pictures it encodes."""

    def __init__(self, vae) -> None:
        self.vae, self.config, self.encoded = vae, vae.config, 0

    def parameters(self):
        return self.vae.parameters()

    def encode(self, pixels):
        self.encoded += len(pixels)
        return self.vae.encode(pixels)


def test_a_pool_is_encoded_once_for_all_stages(components: Components) -> None:
    source = make_source(components, pool=6)
    source.vae = Counting(components.vae)
    for stage in ("embedding", "attention", "unet"):
        noise = [source.batch(stage, step, range(4), 4).noise for step in range(6)]
        assert not torch.equal(noise[0], noise[1])
    assert source.vae.encoded == 6


def test_turned_pictures_are_all_encoded(components: Components) -> None:
    source = make_source(components, augment=always_turned)
    source.vae = Counting(components.vae)
    for step in range(3):
        source.batch("unet", step, range(4), 4)
    assert source.vae.encoded == 12


def always_turned(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    angle = float(torch.rand(1, generator=generator)) * 40 + 1
    return picture.rotate(angle).resize((resolution, resolution))


def test_a_picture_that_comes_up_again_is_not_encoded_again(components: Components) -> None:
    source = make_source(components, augment=AUGMENTATIONS["stretched"])
    source.vae = Counting(components.vae)
    for stage in ("embedding", "unet"):
        for step in range(20):
            source.batch(stage, step, range(4), 4)
    assert source.vae.encoded == 2 * len(source.pictures)  # each as it is and flipped


def test_only_the_latest_pictures_are_remembered(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "REMEMBERED", 2)
    source = make_source(components, augment=unaugmented)
    source.vae = Counting(components.vae)
    for _ in range(2):
        source.others("unet", 0, range(8), 8)
        assert len(source._encoded) == 2
    assert source.vae.encoded > len(source.pictures)


@pytest.mark.parametrize("pool", [0, 7])
def test_latents_do_not_depend_on_what_was_drawn_before(components: Components, pool: int) -> None:
    """Bit for bit, so that a resumed run sees what an uninterrupted one does."""
    uninterrupted = make_source(components, augment=upright, pool=pool)
    for step in range(3):
        uninterrupted.batch("unet", step, range(4), 4)
    expected = uninterrupted.batch("unet", 3, range(4), 4)
    resumed = make_source(components, augment=upright, pool=pool).batch("unet", 3, range(4), 4)
    assert torch.equal(resumed.latents, expected.latents)


def test_a_pool_gives_the_same_samples_in_any_split(components: Components) -> None:
    whole = make_source(components, pool=5).batch("unet", 3, range(8), 8)
    parted = make_source(components, pool=5)
    parts = [parted.batch("unet", 3, [index], 8) for index in range(8)]
    torch.testing.assert_close(torch.cat([p.latents for p in parts]), whole.latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [0, 5])
def test_pictures_augmented_ahead_are_the_same_and_cost_the_steps_nothing(components: Components, pool: int) -> None:
    threads: list[str] = []

    def watched(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
        threads.append(threading.current_thread().name)
        return published(picture, resolution, generator)

    with ThreadPoolExecutor(3, "pictures") as ahead:
        source = make_source(components, augment=watched, pool=pool, ahead=ahead)
        source.look_ahead("unet", 0, range(4), 4)
        for step in range(3):
            source.look_ahead("unet", step + 1, range(4), 4)
            batch = source.batch("unet", step, range(4), 4)
            assert torch.equal(
                batch.latents, make_source(components, pool=pool).batch("unet", step, range(4), 4).latents
            )
            assert len(source._coming) <= 4  # of one step, not of all that were ever announced
    assert all(name.startswith("pictures") for name in threads)
    assert len(threads) == (pool or 16)


def test_a_picture_that_cannot_be_augmented_ahead_fails_its_own_step(components: Components) -> None:
    def broken(*_: object) -> Image.Image:
        raise OSError("no")

    with ThreadPoolExecutor(1) as ahead:
        source = make_source(components, augment=broken, ahead=ahead)
        source.look_ahead("unet", 1, range(2), 2)
        with pytest.raises(OSError, match="no"):
            source.batch("unet", 1, range(2), 2)


def test_only_a_cpu_that_does_not_compute_the_steps_augments_beside_them() -> None:
    assert beside(torch.device("cpu")) is None
    assert beside(torch.device("cuda")) is not None


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations_are_functions_of_their_generator(name: str) -> None:
    picture = Image.effect_noise((120, 90), 80).convert("RGB")
    first, again = (np.asarray(AUGMENTATIONS[name](picture, 64, keyed_generator("k"))) for _ in range(2))
    assert np.array_equal(first, again)
