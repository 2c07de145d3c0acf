"""A headless Chromium and a page of fabricated results in it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.report import page as report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def fabricated() -> Any:
    """The module that makes views up; it lies with the tests of the report."""
    path = Path(__file__).parents[1] / "report" / "fabricated.py"
    spec = importlib.util.spec_from_file_location("fabricated", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("fabricated", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium; skipped, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        yield running
        running.close()


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory, fabricated: Any) -> Path:
    """A whole page: 3 seeds, 6 levels, 4 branches."""
    path = tmp_path_factory.mktemp("page") / "lottery.html"
    return report.write(fabricated.view(seeds=3, levels=6), path)


class Opened:
    """An open page, what it said to the console and what it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []

    def text(self, selector: str) -> str:
        return str(self.page.text_content(selector))


@pytest.fixture
def show(browser: Any, file: Path) -> Iterator[Callable[..., Opened]]:
    """`show(width=1200, scheme="light", script=True)` opens the page and waits for its figures."""
    contexts = []

    def open_page(
        width: int = 1200, scheme: str = "light", script: bool = True, path: Path = file
    ) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=script,
        )
        contexts.append(context)
        page = context.new_page()
        opened = Opened(page)
        page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))

        def route(request: Any) -> None:
            opened.asked.append(request.request.url)
            request.continue_()

        page.route("**/*", route)
        page.goto(path.as_uri())
        if script:
            page.wait_for_selector("html.ready", timeout=30_000)
        return opened

    yield open_page
    for context in contexts:
        context.close()
