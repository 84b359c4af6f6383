"""A server, the page on it in a process of its own, and a headless Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.support import ServerProcess, pictures, zipped

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize

DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
_STEP_MS = 120_000


class PageProcess:
    """`pyserve ui` on a free port."""

    def __init__(self, address: str, *options: str) -> None:
        command = [sys.executable, "-m", "pyserve", "ui", "--port", "0", "--address", address, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http://" in line, line
        self.url = line.split()[-1]

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program; required in CI."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        message = "needs Chromium (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return program


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra dev)")
    with playwright.sync_playwright() as run:
        launched = run.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("ui") / "data")
    yield process
    process.terminate()


@pytest.fixture(scope="session")
def site(server: ServerProcess) -> Iterator[str]:
    """URL of the page."""
    process = PageProcess(server.stubs.address)
    yield process.url
    process.stop()


@pytest.fixture(scope="session")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """Whose tabs share a cache, as a person's do."""
    context = browser.new_context(accept_downloads=True, reduced_motion="reduce")
    context.set_default_timeout(_STEP_MS)
    yield context
    context.close()


@pytest.fixture
def new_tab(window: BrowserContext) -> Iterator[Callable[[], Page]]:
    """Opens tabs at a desktop's width; scripts that fail in one fail the test."""
    tabs: list[Page] = []
    errors: list[str] = []

    def opened() -> Page:
        tab = window.new_page()
        tab.set_viewport_size(DESKTOP)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tabs.append(tab)
        return tab

    yield opened
    for tab in tabs:
        tab.close()
    assert errors == []


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(new_tab: Callable[[], Page], request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab, at both widths; nothing may be wider than the window."""
    tab = new_tab()
    tab.set_viewport_size(request.param)
    yield tab
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= request.param["width"], f"{tab.url} is {width} pixels wide"


@pytest.fixture(scope="session")
def archive_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of three classes that are easily told apart."""
    path = tmp_path_factory.mktemp("archives") / "Colours of noise.zip"
    path.write_bytes(zipped(pictures(20)))
    return path


@pytest.fixture(scope="session")
def picture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    path.write_bytes(pictures(1)["red/0.png"])
    return path
