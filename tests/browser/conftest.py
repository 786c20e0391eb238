"""Headless Chromium and JupyterLab on localhost; `make test-browser` runs these tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

SCREENSHOTS = Path("browser-screenshots")
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
MISSING = (
    "these tests need Chromium: apt-get install chromium (Debian), or name one in HOPSCOPE_CHROMIUM"
)
LAB, NOTEBOOK = "lab/tree", "notebooks"
"""Where a server opens a notebook in JupyterLab, and in Notebook 7."""
PATIENCE = 120_000
"""Milliseconds: a kernel that imports torch on a busy machine takes its time."""
LOCAL = r"(file:|data:|blob:|about:|(https?|wss?)://(localhost|127\.0\.0\.1)[:/])"
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless browser, which reaches nothing but this machine."""
    path = os.environ.get("HOPSCOPE_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail(MISSING, pytrace=False)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield started
        started.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep what the page showed when a test failed."""
    outcome: Any = yield
    page = getattr(item, "funcargs", {}).get("page")
    report = outcome.get_result()
    if report.when == "call" and report.failed and page is not None:
        SCREENSHOTS.mkdir(exist_ok=True)
        name = re.sub(r"[^\w-]+", "-", item.name)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page; an error of the views' scripts, or a request to another machine, fails the test."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(PATIENCE)
    errors, outside = list[str](), list[str]()
    page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}"))
    page.on("request", lambda sent: _is_local(sent.url) or outside.append(sent.url))
    yield page
    # A page is all ours; in JupyterLab the scripts of widgets are modules from blobs.
    ours = [each for each in errors if page.url.startswith("file:") or "blob:" in each]
    page.close()
    assert not outside
    assert not ours, ours


def _is_local(url: str) -> bool:
    return re.match(LOCAL, url) is not None


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab with Notebook 7 beside it: their address, and the folder that they show."""
    root = tmp_path_factory.mktemp("lab")
    home = tmp_path_factory.mktemp("home")
    places = {
        f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += [f"--{app}.expose_app_in_browser=True" for app in ("LabApp", "JupyterNotebookApp")]
    command += [f"--ServerApp.root_dir={root}", "--IdentityProvider.token=hopscope"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **places}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield _address(home / "runtime", server, home / "log"), root
    finally:
        server.terminate()
        server.wait(timeout=30)


def _address(runtime: Path, server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(240):
        for file in runtime.glob("jpserver-*.json"):
            try:
                return str(json.loads(file.read_text())["url"])
            except (ValueError, KeyError):
                pass  # half written
        if server.poll() is not None:
            break
        time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}", pytrace=False)


RunNotebook = Callable[..., Page]


@pytest.fixture
def run_notebook(jupyter: tuple[str, Path], page: Page, request: Any) -> RunNotebook:
    """Write a notebook, open it in JupyterLab or Notebook 7 and run all of its cells."""
    address, root = jupyter

    def run(*cells: str, place: str = LAB) -> Page:
        name = f"{re.sub(r'[^a-z]+', '-', request.node.name.lower())}.ipynb"
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(made, root / name)
        return open_and_run(page, address, name, place)

    return run


def open_and_run(page: Page, address: str, name: str, place: str = LAB) -> Page:
    """Open a notebook at a place and run all of its cells."""
    page.goto(f"{address}{place}/{name}?token=hopscope&reset")
    wait_for_kernel(page)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    return page


def wait_for_kernel(page: Page) -> None:
    """Wait until a notebook is shown and its kernel has nothing to do."""
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
        " === 'idle'"
    )


def save_and_open_again(page: Page, *, end_kernel: bool) -> None:
    """Save the notebook, end its kernel or leave it, and load the page again."""
    page.evaluate(
        """async (endKernel) => {
            await window.jupyterapp.commands.execute('docmanager:save');
            if (endKernel) await window.jupyterapp.shell.currentWidget.sessionContext.shutdown();
        }""",
        end_kernel,
    )
    page.reload()
    wait_for_kernel(page)


def output_of(page: Page, cell: int) -> Locator:
    """The output of a cell, counted from 0."""
    return page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-OutputArea-output")


def run_cell_until(page: Page, cell: int, text: str) -> None:
    """Run one cell again until it prints a text: Jupyter keeps back changes of a busy kernel."""
    for _ in range(20):
        run_cell(page, cell)
        try:
            expect(output_of(page, cell)).to_contain_text(text, timeout=3000)
        except AssertionError:
            continue
        return
    expect(output_of(page, cell)).to_contain_text(text, timeout=1)


def run_cell(page: Page, cell: int) -> None:
    """Run one cell again, counted from 0."""
    page.evaluate(
        """(index) => {
            window.jupyterapp.shell.currentWidget.content.activeCellIndex = index;
            window.jupyterapp.commands.execute('notebook:run-cell');
        }""",
        cell,
    )
