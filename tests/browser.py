"""Pages opened as a person opens them: a file, in a browser, with the network cut."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
WIDTHS = (1280, 390)
"""A desktop's and a telephone's, in pixels."""

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="needs Chromium (Debian: apt install chromium) and playwright",
)


@dataclass
class Opened:
    """A page in the browser, and what went wrong on it.

    Attributes:
        errors: Messages of the console at level error, uncaught exceptions, and requests for anything beyond the file.
    """

    page: Any
    errors: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        """What the first such element says."""
        return str(self.page.inner_text(selector))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


@contextlib.contextmanager
def opened(browser: Any, path: Path, width: int = WIDTHS[0], dark: bool = False) -> Iterator[Opened]:
    """The page at `path`, opened from disk; the block's end checks that nothing went wrong on it."""
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    found = Opened(context.new_page())
    found.page.on("console", lambda said: found.errors.append(said.text) if said.type == "error" else None)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on("request", lambda asked: _noted(found, asked.url, path))
    try:
        found.page.goto(path.as_uri())
        yield found
        assert not found.errors
    finally:
        context.close()


def _noted(found: Opened, url: str, path: Path) -> None:
    if not url.startswith(("data:", "blob:")) and url.partition("#")[0] != path.as_uri():
        found.errors.append(f"asked for {url}")


def check_page(browser: Any, path: Path) -> None:
    """What holds of every page: valid HTML, under 5 MB, nothing from the network, no error, nothing wider than the
    screen, and nothing that a screen reader or a keyboard could not reach (axe-core), in light and dark."""
    import html5lib
    from axe_playwright_python.sync_playwright import Axe

    text = path.read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(text)
    assert len(text.encode()) < 5_000_000
    for width, dark in zip(WIDTHS, (False, True), strict=True):
        with opened(browser, path, width, dark) as found:
            assert found.page.evaluate("document.documentElement.scrollWidth") <= width
            violations = Axe().run(found.page).response["violations"]
            assert not [(its["id"], [node["html"][:200] for node in its["nodes"]]) for its in violations]
