"""The attention explorer, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser import check_page, needs_chromium, opened
from tests.conftest import Cli

HOSTILE = 'a photo of a {} "on" <script>alert(1)</script> the \N{CAT FACE} beach'


@pytest.fixture
def page(cli: Cli, trained: Path) -> Path:
    done = cli("inspect-attn", trained, HOSTILE, "--stages", "--steps", 3, "--report", "--json")
    return Path(done.document["page"])


@needs_chromium
def test_every_control_of_the_explorer(page: Path, browser: Any) -> None:
    check_page(browser, page)
    with opened(browser, page) as found:
        at = found.page
        pixels = "document.getElementById('canvas').toDataURL()"
        at.wait_for_function("document.getElementById('canvas').width > 300")
        seen = [at.evaluate(pixels)]
        assert found.text("#share").startswith("<toadstool>: ")

        def act(change: Any) -> None:
            change()
            seen.append(at.evaluate(pixels))
            assert seen[-1] != seen[-2]

        words = at.locator("#words button")
        act(lambda: words.get_by_text("beach", exact=True).click())
        assert found.text("#share").startswith("<toadstool> + beach: ")
        act(lambda: (at.locator("#frame").focus(), at.keyboard.press("ArrowRight")))
        assert found.text("#frame-name") == "step 1"
        act(lambda: (at.locator("#strength").focus(), at.keyboard.press("ArrowLeft")))
        act(lambda: at.locator("#own-scale").check())
        assert "--stage unet" in found.text("#made-by code")
        act(lambda: at.locator("#views button").get_by_text("after stage attention").click())
        assert "--stage attention" in found.text("#made-by code")
        act(lambda: at.locator("#views button").get_by_text("base model").click())
        assert not at.locator("#made-by").is_visible()
        assert "<toadstool>" not in found.text("#words")
        assert found.text("#share").startswith("beach: ")
        act(lambda: (words.get_by_text("mushroom", exact=True).focus(), at.keyboard.press("Enter")))
        at.locator("summary").first.click()
        row = at.locator("tbody tr").first
        before = row.inner_text()
        at.locator("th button").nth(2).click()
        assert row.inner_text() != before
        at.locator(".picture").first.click()
        assert at.locator("#viewer").is_visible()
        at.keyboard.press("Escape")
        at.click("#theme")
        assert at.evaluate("document.documentElement.dataset.theme") == "dark"
        assert "<script>alert(1)</script>" in found.text("h1")


def test_the_page_holds_the_numbers(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "The regulariser&#39;s two terms" in text or "The regulariser's two terms" in text
