"""The training pictures on disk: find them, check them, copy them in, load them.

A picture that training would trip over, or would silently see differently from how its owner sees it, is refused or
explained here, before anything expensive starts. As in the reference's dataset class, EXIF orientation is applied
first and everything becomes RGB. Nothing here knows about the training resolution's crops, and torch is never imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from attnbooth_cli.errors import BoothError, InputError, ResourceError
from attnbooth_cli.project.durable import explained_write, write_bytes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif")
MAX_BYTES = 100_000_000
MAX_PIXELS = 100_000_000

FEWEST_WANTED, MOST_WANTED, MANY = 3, 6, 20  # the paper trains on 3 to 6 pictures; the upper bound is our choice

_FORMATS = ("JPEG", "PNG", "WEBP")
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_HEIF_HINT = 'pip install "attnbooth[heic]", or save the picture as JPEG'
_CONVERT_HINT = "save it again as JPEG or PNG, or leave it out"
_TURNED = "turned upright"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded completely; width and height are those after its EXIF orientation."""

    path: Path
    width: int
    height: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Survey:
    """What was found, in the order of the sources and, inside a folder, of the names."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]


def survey(sources: Sequence[Path]) -> Survey:
    """Finds and decodes every picture in `sources`, which are files or folders (read one level deep).

    Raises:
        InputError: a source is missing, unreadable or not a picture; a file with a picture's extension is damaged,
            animated or too large; nothing was found.
    """
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    seen: dict[bytes, Path] = {}
    for path, given in _candidates(sources):
        reason = _reason_to_skip(path, given)
        if reason is None:
            data = _read(path)
            digest = hashlib.sha256(data).digest()
            if digest not in seen:
                seen[digest] = path
                pictures.append(_picture(path, data))
                continue
            reason = f"the same picture as {_shown(seen[digest])}"
        skipped.append(Skipped(path, reason))
    if not pictures:
        raise InputError(_nothing_found(sources, skipped), "name a folder with 3 to 6 JPEG, PNG or WEBP pictures")
    return Survey(tuple(pictures), tuple(skipped))


def copy_in(survey: Survey, folder: Path) -> tuple[Path, ...]:
    """Copies the pictures' bytes, untouched and durably, into `folder`, which is made when missing.

    A picture whose bytes are in the folder already keeps that file. A new one keeps its name, cleaned for every
    operating system and numbered when another file has that name. Nothing is ever overwritten.

    Returns:
        The file in `folder` of each picture, in the survey's order.

    Raises:
        InputError: a picture can no longer be read.
        ResourceError: disk full, quota, read-only or permission denied.
    """
    with explained_write(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{_shown(folder)} is a file where a folder should be", "move it away")
        folder.mkdir(parents=True, exist_ok=True)
        entries = sorted(folder.iterdir())
    taken = {_collision_key(entry.name) for entry in entries}
    present = [entry for entry in entries if _is_own_picture(entry)]
    places: list[Path] = []
    for picture in survey.pictures:
        data = _read(picture.path)
        place = _with_bytes(present, data)
        if place is None:
            place = folder / _free_name(picture.path.name, taken)
            write_bytes(place, data)
            taken.add(_collision_key(place.name))
            present.append(place)
        places.append(place)
    return tuple(places)


def load(path: Path) -> Image.Image:
    """The picture as training sees it: RGB, 8 bits per channel, upright, transparency over white.

    Raises:
        InputError: the file is missing, unreadable, damaged, animated, too large or no picture.
        ResourceError: there is not enough memory to decode it.
    """
    with _explained_read(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{_shown(path)} is not a file", "name a picture file")
    image, _ = _decode(path, _read(path))
    return image


def warnings_about(survey: Survey, resolution: int) -> tuple[str, ...]:
    """Sentences about what will work but may not be wanted: counts, small pictures, pictures that were turned."""
    pictures = survey.pictures
    count = len(pictures)
    wanted = f"the method is made for {FEWEST_WANTED} to {MOST_WANTED}"
    sentences: list[str] = []
    if count < FEWEST_WANTED:
        sentences.append(f"Only {_counted(count)}: {wanted}, showing the same thing in different places.")
    if count > MANY:
        sentences.append(f"{_counted(count)}: {wanted}; the more there are, the less often each is seen.")
    small = [picture for picture in pictures if min(picture.width, picture.height) < resolution]
    if small:
        listed = _shortened(f"{_shown(p.path)} ({p.width}x{p.height})" for p in small)
        sentences.append(f"{_counted(len(small))} will be enlarged to {resolution} pixels and look soft: {listed}.")
    turned = sum(any(note.startswith(_TURNED) for note in picture.notes) for picture in pictures)
    if turned:
        verb = "was" if turned == 1 else "were"
        sentences.append(f"{_counted(turned)} {verb} turned upright, as the camera's EXIF orientation says.")
    return tuple(sentences)


# Finding


def _candidates(sources: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yields (file, whether the user named it) for each source, folders opened one level deep."""
    for source in sources:
        with _explained_read(source):
            is_folder = stat.S_ISDIR(source.stat().st_mode)
            entries = sorted(source.iterdir(), key=lambda entry: entry.name) if is_folder else [source]
        for entry in entries:
            yield entry, not is_folder


def _reason_to_skip(path: Path, given: bool) -> str | None:
    """Why a file is left out without a look at its contents, or None.

    Raises:
        InputError: the file cannot be examined, or the user named it and it has no picture's extension.
    """
    if path.name.lower() in _SYSTEM_FILES:
        return "a system file"
    if path.name.startswith("."):
        return "a hidden file"
    named_as_picture = path.suffix.lower() in EXTENSIONS
    with _explained_read(path):
        if not named_as_picture and not path.exists():
            return "a broken link"
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a folder inside the folder; only one level is read"
    if not stat.S_ISREG(mode):
        return "a pipe, socket or device"  # opening one could wait for ever
    if named_as_picture:
        return None
    if given:
        raise InputError(f"{_shown(path)} has no picture's extension ({', '.join(EXTENSIONS)})", _CONVERT_HINT)
    return "not a picture"


def _nothing_found(sources: Sequence[Path], skipped: Sequence[Skipped]) -> str:
    places = _shortened(_shown(source) for source in sources) or "nothing"
    message = f"no picture found in {places}"
    if skipped:
        message += "; skipped " + _shortened(f"{_shown(Path(item.path.name))} ({item.reason})" for item in skipped)
    return message


# Reading


@contextlib.contextmanager
def _explained_read(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to read `path` into an `InputError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{_shown(path)} does not exist", "check the path; quote it when it has spaces") from error
    except PermissionError as error:
        raise InputError(f"cannot read {_shown(path)}: permission denied", "make it readable for yourself") from error
    except OSError as error:
        raise InputError(f"cannot read {_shown(path)}: {error.strerror or error}", "check the path") from error
    except ValueError as error:  # a NUL in the name never reaches the operating system
        raise InputError(f"{_shown(path)} is not a possible file name", "check the path") from error


def _read(path: Path) -> bytes:
    """The whole file, which is refused when empty or over `MAX_BYTES`."""
    with _explained_read(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(MAX_BYTES + 1) if size <= MAX_BYTES else b""
    if max(size, len(data)) > MAX_BYTES:
        megabytes = max(size, len(data)) / 1e6
        raise InputError(f"{_shown(path)} has {megabytes:.0f} MB; the limit is {MAX_BYTES // 1_000_000} MB", _smaller())
    if not data:
        raise InputError(f"{_shown(path)} is empty", "copy it from the camera or phone again, or leave it out")
    return data


def _picture(path: Path, data: bytes) -> Picture:
    image, notes = _decode(path, data)
    return Picture(path, image.width, image.height, notes)


def _decode(path: Path, data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """Checks the header, then decodes completely: the upright RGB picture and what was done to it.

    Raises:
        InputError: not a picture we read, damaged, animated or too large.
        ResourceError: there is not enough memory to decode it.
    """
    formats = _formats_for(path, data)
    try:
        # Pillow's own warnings (bombs, odd metadata) would name neither the file nor what to do about it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=formats)
            _check_header(path, image)
            if image.format == "PNG":
                _verify(data)
            image.load()
            return _upright_rgb(image, sixteen_bit=image.format == "PNG" and data[24] == 16)
    except BoothError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{_shown(path)} has over {MAX_PIXELS // 1_000_000} megapixels", _smaller()) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{_shown(path)} is not a JPEG, PNG or WEBP picture", _CONVERT_HINT) from error
    except MemoryError as error:
        raise ResourceError(f"not enough memory to decode {_shown(path)}", _smaller()) from error
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise InputError(f"{_shown(path)} is damaged or cut off: {error}", _CONVERT_HINT) from error


def _formats_for(path: Path, data: bytes) -> tuple[str, ...]:
    """The formats Pillow may try, HEIF among them only for a HEIF file.

    Raises:
        InputError: the file is HEIF and pillow-heif is not installed.
    """
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
        return _FORMATS
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(f"{_shown(path)} is a HEIC picture, and pillow-heif is not installed", _HEIF_HINT) from error
    pillow_heif.register_heif_opener()
    return (*_FORMATS, "HEIF")


def _check_header(path: Path, image: Image.Image) -> None:
    """Refuses, before a pixel is decoded, what is too large or moves."""
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height} pixels"
        raise InputError(f"{_shown(path)} has {size}; the limit is {MAX_PIXELS // 1_000_000} megapixels", _smaller())
    # Phones store previews and depth beside a JPEG or HEIC picture: several frames there are not an animation.
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{_shown(path)} is animated", "save one frame as a picture of its own")


def _verify(data: bytes) -> None:
    """Checks a PNG's checksums and end mark, which decoding ignores. Raises what Pillow raises."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


# Converting


def _upright_rgb(image: Image.Image, sixteen_bit: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """The decoded `image` as upright 8-bit RGB, and a note for each step that changed something."""
    notes: list[str] = []
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        notes.append(f"{_TURNED} (EXIF orientation {orientation})")
    if image.mode == "CMYK":
        notes.append("converted from CMYK")
    if sixteen_bit or image.mode.startswith("I"):
        notes.append("16 bits per channel reduced to 8")
    if image.mode.startswith("I") or image.mode in ("1", "L", "LA", "La"):
        notes.append("greyscale")
    if sixteen_bit:  # one transparent colour among 2^48: Pillow would compare it with the reduced ones and hit others
        image.info.pop("transparency", None)
    rgb, filled = _over_white(_eight_bit(image))
    if filled:
        notes.append("transparent parts filled with white")
    return (rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb), tuple(notes)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) when there is none. Ask only after decoding: PNG may store it last."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # unreadable metadata is no reason to refuse a picture every viewer shows
        return 1
    return orientation if isinstance(orientation, int) else 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, rounded; Pillow's own conversion would clip it."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")


def _over_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image as RGB over white, and whether any of it was transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB"), False
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB"), True


# Naming


def _is_own_picture(path: Path) -> bool:
    """Whether a folder's entry is a plain picture file; a link's target may change under us, so it is not."""
    with _explained_read(path):
        regular = stat.S_ISREG(path.lstat().st_mode)
    return regular and not path.name.startswith(".") and path.suffix.lower() in EXTENSIONS


def _with_bytes(paths: Iterable[Path], data: bytes) -> Path | None:
    """The first of `paths` that holds exactly `data`."""
    for path in paths:
        with _explained_read(path):
            if path.stat().st_size == len(data) and path.read_bytes() == data:
                return path
    return None


def _collision_key(name: str) -> str:
    """Equal for names that some file system takes for the same: case and Unicode composition are ignored."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _free_name(name: str, taken: set[str]) -> str:
    """`name` made safe, with the first number that makes it unlike every name in `taken`."""
    safe = Path(_safe_name(name))
    candidate, number = safe.name, 1
    while _collision_key(candidate) in taken:
        number += 1
        candidate = f"{safe.stem}-{number}{safe.suffix}"
    return candidate


def _safe_name(name: str) -> str:
    """`name` with what some operating system refuses replaced, and short enough for a number to be added."""
    path = Path("".join("_" if not char.isprintable() or char in '<>:"/\\|?*' else char for char in name))
    stem = path.stem.encode()[:200].decode(errors="ignore")
    first, dot, rest = stem.partition(".")
    if first.strip().casefold() in _DEVICES:  # Windows looks only at what stands before the first dot
        first += "_"
    return f"{first}{dot}{rest}{path.suffix}"


# Wording


def _shown(path: Path) -> str:
    """A path for a message; a name may hold line breaks, terminal codes or bytes that are no text."""
    return "".join(char if char.isprintable() else "?" for char in str(path))


def _smaller() -> str:
    return "save it smaller: training sees 512 to 1024 pixels, so 4000 are plenty"


def _counted(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _shortened(items: Iterable[str], most: int = 5) -> str:
    """The first few items, and how many more there are."""
    every = list(items)
    rest = [f"and {len(every) - most} more"] if len(every) > most else []
    return ", ".join(every[:most] + rest)
