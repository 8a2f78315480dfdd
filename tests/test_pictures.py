"""The training pictures: what is taken, what is refused, and that training sees what the owner sees."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attnbooth_cli.errors import InputError, ResourceError
from attnbooth_cli.project import pictures
from attnbooth_cli.project.pictures import copy_in, load, survey, warnings_about

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 30)


def quadrants(width: int = 48, height: int = 32) -> Image.Image:
    """Red, green / blue, yellow: every turn and flip of it is different."""
    image = Image.new("RGB", (width, height), YELLOW)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def saved(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or quadrants()).save(path, **options)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def only(path: Path) -> pictures.Picture:
    (picture,) = survey([path]).pictures
    return picture


def refusal(*sources: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        survey(sources)
    assert caught.value.hint
    return caught.value


# Finding


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for number, name in enumerate(["b.PNG", "a.jpg", "c.webp", "d.JPEG"]):
        saved(tmp_path / name, quadrants(48 + number))
    found = survey([tmp_path])
    assert [picture.path.name for picture in found.pictures] == ["a.jpg", "b.PNG", "c.webp", "d.JPEG"]
    assert (found.pictures[0].width, found.pictures[0].height, found.pictures[0].notes) == (49, 32, ())
    assert found.skipped == ()


def test_files_and_folders_can_be_mixed(tmp_path: Path) -> None:
    inside = saved(tmp_path / "folder" / "a.png")
    beside = saved(tmp_path / "z.png", quadrants(60))
    assert [picture.path for picture in survey([beside, tmp_path / "folder"]).pictures] == [beside, inside]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".DS_Store", "hidden"),
        ("._cat.jpg", "hidden"),
        (".cat.png", "hidden"),
        ("Thumbs.db", "system"),
        ("desktop.ini", "system"),
        ("notes.txt", "not a picture"),
        ("cat.gif", "not a picture"),
    ],
)
def test_what_is_no_picture_is_skipped_with_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    saved(tmp_path / "cat.png")
    (tmp_path / name).write_bytes(b"whatever")
    (skipped,) = survey([tmp_path]).skipped
    assert skipped.path == tmp_path / name
    assert reason in skipped.reason


def test_a_folder_inside_is_skipped(tmp_path: Path) -> None:
    saved(tmp_path / "cat.png")
    saved(tmp_path / "more.png" / "other.png", quadrants(60))
    found = survey([tmp_path])
    assert len(found.pictures) == 1
    assert "one level" in found.skipped[0].reason


def test_a_duplicate_is_skipped_and_names_the_first(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(first.read_bytes())
    found = survey([tmp_path])
    assert [picture.path for picture in found.pictures] == [first]
    assert str(first) in found.skipped[0].reason


def test_the_same_file_given_twice_counts_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    found = survey([path, tmp_path, path])
    assert (len(found.pictures), len(found.skipped)) == (1, 2)


def test_a_link_in_a_folder_is_followed(tmp_path: Path) -> None:
    target = saved(tmp_path / "elsewhere" / "cat.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.png").symlink_to(target)
    assert len(survey([tmp_path / "mine"]).pictures) == 1


def test_a_broken_link_called_a_picture_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "notes").symlink_to(tmp_path / "gone.txt")
    assert "b.png does not exist" in refusal(tmp_path).message
    (tmp_path / "b.png").unlink()
    assert survey([tmp_path]).skipped[0].reason == "a broken link"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert "pipe" in survey([tmp_path]).skipped[0].reason
    with pytest.raises(InputError, match="not a file"):
        load(tmp_path / "b.png")


@pytest.mark.parametrize("name", ["кошка.jpg", "猫.jpg", "café.jpg", "my cat 🐈 (1).jpg"])
def test_unicode_names(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name)
    assert only(tmp_path).path.name == path.name
    assert copy_in(survey([tmp_path]), tmp_path / "images")[0].name == name


# Refusing


@pytest.mark.parametrize("name", ["gone", "gone.png", "nul\0.png", "x" * 300 + ".png"])
def test_a_source_that_cannot_exist(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).exit_code == 2


def test_no_picture_at_all_says_what_was_skipped(tmp_path: Path) -> None:
    assert "no picture found" in refusal(tmp_path).message
    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    message = refusal(tmp_path).message
    assert "0.txt (not a picture)" in message
    assert "and 4 more" in message
    assert "no picture found in nothing" in refusal().message


def test_a_named_file_needs_a_picture_extension_unless_it_is_junk(tmp_path: Path) -> None:
    cat = saved(tmp_path / "cat.png")
    saved(tmp_path / "cat.gif")
    (tmp_path / ".DS_Store").touch()
    assert "cat.gif" in refusal(cat, tmp_path / "cat.gif").message
    assert len(survey([cat, tmp_path / ".DS_Store"]).skipped) == 1


BAD = {
    "empty": b"",
    "text": b"this is a letter, not a picture\n" * 50,
    "gif": encoded(quadrants(), "GIF"),
    "bmp": encoded(quadrants(), "BMP"),
    "tiff": encoded(quadrants(), "TIFF"),
    "truncated jpeg": encoded(quadrants(), "JPEG")[:-40],
    "jpeg without its end": encoded(quadrants(), "JPEG")[:-2],
    "truncated progressive jpeg": encoded(quadrants(), "JPEG", progressive=True)[:-40],
    "truncated png": encoded(quadrants(), "PNG")[:-30],
    "png without its end": encoded(quadrants(), "PNG")[:-12],
    "truncated webp": encoded(quadrants(), "WEBP")[:-20],
    "header only": encoded(quadrants(), "PNG")[:33],
    "no width": raw_png(0, 5, 8, 2, b""),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_bad_file_is_refused_by_name(tmp_path: Path, data: bytes, extension: str) -> None:
    saved(tmp_path / "a.png")
    path = tmp_path / f"bad.{extension}"
    path.write_bytes(data)
    assert str(path) in refusal(tmp_path).message
    with pytest.raises(InputError):
        load(path)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    data = bytearray(encoded(quadrants(), "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    assert "damaged" in refusal(tmp_path).message


def test_the_content_counts_and_not_the_extension(tmp_path: Path) -> None:
    (tmp_path / "really-webp.jpg").write_bytes(encoded(quadrants(), "WEBP"))
    assert only(tmp_path).width == 48


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(tmp_path: Path, kind: str) -> None:
    frames = [quadrants().rotate(90 * turn) for turn in range(3)]
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    error = refusal(path)
    assert "animated" in error.message
    assert "one frame" in (error.hint or "")


def test_a_phones_jpeg_with_a_second_picture_inside_is_no_animation(tmp_path: Path) -> None:
    data = encoded(quadrants(), "MPO", save_all=True, append_images=[quadrants(24, 16)])
    (tmp_path / "a.jpg").write_bytes(data)
    assert (only(tmp_path).width, load(tmp_path / "a.jpg").size) == (48, (48, 32))


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_from_its_header(
    tmp_path: Path, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(raw_png(width, height, 8, 2, b"\0" * 100))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    message = refusal(tmp_path).message
    assert "a.png" in message
    assert "megapixels" in message


def test_pillows_own_limit_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(raw_png(50_000, 50_000, 8, 2, b""))
    assert "50000x50000" in refusal(tmp_path).message


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(pictures.MAX_BYTES + 1)
    assert "100 MB" in refusal(tmp_path).message


def test_a_permission_error_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a.png")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        assert "a.png: permission denied" in refusal(tmp_path).message
    monkeypatch.setattr(Path, "iterdir", denied)
    assert "permission denied" in refusal(tmp_path).message


def test_too_little_memory_is_no_fault_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.jpg")

    def exhausted(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", lambda image, *_: exhausted(image))
    with pytest.raises(ResourceError, match=r"a\.jpg"):
        load(path)


def test_heic_without_its_extra_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("a.heic", "b.jpg"):
        path = tmp_path / name
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)
        assert 'pip install "attnbooth[heic]"' in (refusal(path).hint or "")


def test_heic_with_its_extra(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(quadrants(64, 48)).save(tmp_path / "a.heic")
    assert (only(tmp_path).width, load(tmp_path / "a.heic").mode) == (64, "RGB")


def test_a_name_cannot_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\n.png"
    path.write_bytes(b"text")
    assert "\x1b" not in refusal(path).message
    assert "\n" not in refusal(path).message


@settings(max_examples=150, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.tuples(
            st.sampled_from([encoded(quadrants(), kind) for kind in ("PNG", "JPEG", "WEBP")]),
            st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
            st.integers(0, 200),
        ).map(lambda drawn: damaged(*drawn)),
    )
)
def test_any_bytes_import_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "x.png"
    path.write_bytes(data)
    try:
        picture = only(path)
    except InputError:
        return
    assert load(path).size == (picture.width, picture.height)


def damaged(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed[: len(changed) - cut])


# Loading


TURNS: dict[int, Callable[[Image.Image], Image.Image]] = {  # from upright to how the camera stores it
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, extension: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{extension}", TURNS[orientation](quadrants()), exif=exif, quality=95)
    picture, image = only(path), load(path)
    assert (picture.width, picture.height) == image.size == (48, 32)
    assert np.abs(np.asarray(image, int) - np.asarray(quadrants(), int)).mean() < 6
    assert picture.notes == (() if orientation == 1 else (f"turned upright (EXIF orientation {orientation})",))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_unreadable_exif_is_no_reason_to_refuse(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path / "a.jpg", exif=exif)
    assert only(path).notes == ()


def test_an_impossible_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert only(saved(tmp_path / "a.jpg", exif=exif)).notes == ()


def test_cmyk(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", quadrants().convert("CMYK"), quality=95)
    assert only(path).notes == ("converted from CMYK",)
    assert np.abs(np.asarray(load(path), int) - np.asarray(quadrants(), int)).mean() < 6


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    path = saved(tmp_path / "a.png", Image.fromarray(ramp))
    assert only(path).notes == ("16 bits per channel reduced to 8", "greyscale")
    assert np.array_equal(np.asarray(load(path))[..., 1], (ramp.astype(int) + 128) // 257)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_every_wide_grey_mode_is_scaled(mode: str) -> None:
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    values = np.array([[0, 257, 128 * 257, 65535]])
    image = Image.frombytes(mode, (4, 1), values.astype(kind).tobytes())
    rgb, _ = pictures._upright_rgb(image, sixteen_bit=False)
    assert np.asarray(rgb)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_colour_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(raw_png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 32896, 65535, 65535, 0, 257)))
    assert only(tmp_path).notes == ("16 bits per channel reduced to 8",)
    assert np.asarray(load(tmp_path / "a.png"))[0].tolist() == [[0, 128, 255], [255, 0, 1]]


@pytest.mark.parametrize(
    ("image", "options", "expected", "notes"),
    [
        (Image.new("L", (9, 9), 77), {}, (77, 77, 77), ("greyscale",)),
        (Image.new("1", (9, 9), 1), {}, (255, 255, 255), ("greyscale",)),
        (Image.new("LA", (9, 9), (0, 255)), {}, (0, 0, 0), ("greyscale",)),
        (Image.new("LA", (9, 9), (0, 0)), {}, (255, 255, 255), ("greyscale", "transparent parts filled with white")),
        (Image.new("RGBA", (9, 9), (*RED, 255)), {}, RED, ()),
        (Image.new("RGBA", (9, 9), (0, 0, 0, 0)), {}, (255, 255, 255), ("transparent parts filled with white",)),
        (Image.new("RGBA", (9, 9), (0, 0, 0, 51)), {}, (204, 204, 204), ("transparent parts filled with white",)),
        (Image.new("RGB", (9, 9), RED).quantize(4), {}, RED, ()),
        (
            Image.new("RGB", (9, 9), RED).quantize(4),
            {"transparency": 0},
            (255, 255, 255),
            ("transparent parts filled with white",),
        ),
        (
            Image.new("RGB", (9, 9), RED),
            {"transparency": RED},
            (255, 255, 255),
            ("transparent parts filled with white",),
        ),
    ],
)
def test_modes(
    tmp_path: Path, image: Image.Image, options: dict[str, Any], expected: tuple[int, ...], notes: tuple[str, ...]
) -> None:
    path = saved(tmp_path / "a.png", image, **options)
    assert only(path).notes == notes
    loaded = load(path)
    assert loaded.mode == "RGB"
    assert np.abs(np.asarray(loaded, int) - np.array(expected)).max() <= 1


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a file"):
        load(tmp_path)


# Copying in


def test_bytes_are_copied_untouched_and_only_once(tmp_path: Path) -> None:
    originals = [saved(tmp_path / "mine" / name, quadrants(50 + len(name))) for name in ("a.jpg", "longer.png")]
    found = survey([tmp_path / "mine"])
    first = copy_in(found, tmp_path / "images")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in originals]
    before = [path.stat().st_ino for path in first]
    originals[0].rename(tmp_path / "mine" / "renamed.jpg")
    assert set(copy_in(survey([tmp_path / "mine"]), tmp_path / "images")) == set(first)
    assert [path.stat().st_ino for path in first] == before
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["a.jpg", "longer.png"]


def test_another_file_of_that_name_is_never_overwritten(tmp_path: Path) -> None:
    images = tmp_path / "images"
    kept = saved(images / "Cat.png", quadrants(90)).read_bytes()
    (images / "CAT-2.PNG").mkdir()
    first, second = saved(tmp_path / "1" / "cat.png", quadrants(70)), saved(tmp_path / "2" / "cat.png", quadrants(80))
    places = copy_in(survey([first, second]), images)
    assert [place.name for place in places] == ["cat-3.png", "cat-4.png"]
    assert (images / "Cat.png").read_bytes() == kept
    assert places[1].read_bytes() == second.read_bytes()


def test_composed_and_decomposed_names_collide(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "1" / "caf\u00e9.png"), saved(tmp_path / "2" / "cafe\u0301.png", quadrants(80))
    assert [p.stem[-2:] for p in copy_in(survey([one, two]), tmp_path / "images")][1] == "-2"


def test_a_link_in_the_project_is_not_taken_for_the_picture(tmp_path: Path) -> None:
    original = saved(tmp_path / "mine" / "a.png")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").symlink_to(original)
    (place,) = copy_in(survey([original]), images)
    assert place.name == "a-2.png"
    assert not place.is_symlink()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("cat.png", "cat.png"),
        ("my cat (1).PNG", "my cat (1).PNG"),
        ('a<b>c:d"e|f?g*h\\i.png', "a_b_c_d_e_f_g_h_i.png"),
        ("new\nline\x1b.png", "new_line_.png"),
        ("not\udcfftext.png", "not_text.png"),
        ("con.png", "con_.png"),
        ("LPT1.holiday.jpg", "LPT1_.holiday.jpg"),
        ("constance.png", "constance.png"),
        ("é" * 120 + ".jpeg", "é" * 100 + ".jpeg"),
    ],
)
def test_names_every_operating_system_takes(name: str, safe: str) -> None:
    assert pictures._safe_name(name) == safe


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    with pytest.raises(InputError, match="where a folder should be"):
        copy_in(survey([path]), path)
    with pytest.raises(ResourceError):
        copy_in(survey([path]), path / "images")


def test_a_picture_that_vanished_before_the_copy(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    found = survey([path])
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        copy_in(found, tmp_path / "images")


# Warning


def found_with(count: int, size: int = 600, notes: tuple[str, ...] = ()) -> pictures.Survey:
    return pictures.Survey(tuple(pictures.Picture(Path(f"{n}.png"), size + 100, size, notes) for n in range(count)), ())


@pytest.mark.parametrize("count", [3, 6, 20])
def test_nothing_to_warn_about(count: int) -> None:
    assert warnings_about(found_with(count), 512) == ()


@pytest.mark.parametrize(("count", "start"), [(1, "Only 1 picture:"), (2, "Only 2 pictures:"), (21, "21 pictures:")])
def test_an_unusual_count_is_mentioned(count: int, start: str) -> None:
    (sentence,) = warnings_about(found_with(count), 512)
    assert sentence.startswith(start)
    assert "3 to 6" in sentence


def test_small_pictures_are_mentioned() -> None:
    (sentence,) = warnings_about(found_with(4, size=511), 512)
    assert "0.png (611x511)" in sentence
    assert "enlarged to 512" in sentence


def test_turned_pictures_are_counted() -> None:
    (sentence,) = warnings_about(found_with(4, notes=("turned upright (EXIF orientation 6)",)), 512)
    assert sentence.startswith("4 pictures were turned upright")
