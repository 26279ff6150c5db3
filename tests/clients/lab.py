"""One page of JupyterLab in headless Chromium: what a user clicks and reads there. The server behind it: server.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import FloatRect, Locator, Page, ViewportSize, expect, sync_playwright

from tests.clients.server import JupyterServer

CHROMIUM = "/usr/bin/chromium"
# Headless, and calls nobody but the server.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE: ViewportSize = {"width": 1280, "height": 800}
ANSWERED = re.compile(r"\| (?!Initializing)\w")
CONNECTED = re.compile(r"\| (?!Initializing|Disconnected|Restarting)\w")
NUMBERED = re.compile(r"\[\d+\]:")
PROJECT = Path(__file__).parents[2]
FAILED = PROJECT / "build" / "failed"  # Screenshots of tests that failed; git ignores it.
IMAGES = PROJECT / "docs" / "images"


class LabPage:
    """A page with one notebook. What does not come within `seconds` fails the test and says what is seen instead."""

    def __init__(self, page: Page, server: JupyterServer) -> None:
        self.page = page
        self.server = server
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.toolbar = self.panel.locator(".jp-NotebookPanel-toolbar")
        self.sidebar = page.locator(".jp-DebuggerSidebar")
        self.variables = self.sidebar.locator(".jp-DebuggerVariables-body:not(.lm-mod-hidden)")
        self.callstack = self.sidebar.locator(".jp-DebuggerCallstackFrame")
        self.breakpoints = self.sidebar.locator(".jp-DebuggerBreakpoint")
        self.dialog = page.locator(".jp-Dialog")
        # The line at which the debugger stands.
        self.stopped_line = self.panel.locator(".cm-line.jp-DebuggerEditor-highlight")

    def open(self, *, seconds: float = 60) -> None:
        """Load Lab with the server's token; the launcher is shown."""
        self.page.goto(f"{self.server.url}lab?token={self.server.token}", timeout=seconds * 1000)
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0, timeout=seconds * 1000)
        expect(self.page.locator(".jp-LauncherCard").first).to_be_visible(timeout=seconds * 1000)

    def card(self, display_name: str) -> Locator:
        """The launcher's notebook card of one kernel."""
        return self.page.locator(f'.jp-LauncherCard[data-category="Notebook"][title={json.dumps(display_name)}]')

    def choose_kernel(self, display_name: str, *, seconds: float = 30) -> None:
        """Click the kernel's card in the launcher; a notebook with it is open."""
        self.card(display_name).click()
        expect(self.editor(0)).to_be_visible(timeout=seconds * 1000)
        self.expect_kernel_name(display_name, seconds=seconds)
        # Until the server has answered, Lab says Initializing and drops every cell that is run, without a word.
        self.expect_status(ANSWERED, seconds=seconds)

    def cell(self, index: int) -> Locator:
        return self.panel.locator(".jp-Notebook .jp-Cell").nth(index)

    def editor(self, index: int) -> Locator:
        return self.cell(index).locator(".cm-content")

    def output(self, index: int) -> Locator:
        """All that stands under one cell."""
        return self.cell(index).locator(".jp-OutputArea.jp-Cell-outputArea")

    def prompt(self, index: int) -> Locator:
        return self.cell(index).locator(".jp-InputArea-prompt")

    def write(self, index: int, code: str) -> None:
        """Make the cell's text `code`; a cell after the last one is added first."""
        while index >= self.panel.locator(".jp-Notebook .jp-Cell").count():
            self.toolbar.locator('[data-command="notebook:insert-cell-below"]').click()
        self.editor(index).click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(code)  # Typed keys would be indented and completed by the editor.
        expect(self.editor(index)).to_have_text(code.replace("\n", ""), timeout=5000)

    def press_run(self, index: int) -> None:
        """Run one cell where it stands (Ctrl+Enter). One that no kernel runs fails at once, and has no number then."""
        self.editor(index).click()
        self.page.keyboard.press("Control+Enter")

    def run(self, index: int) -> None:
        """Run one cell where it stands; what comes of it is not waited for."""
        self.press_run(index)
        # The prompt tells that Lab took it: [*], or a number where the cell was quick.
        expect(self.prompt(index)).not_to_have_text("[ ]:", timeout=10_000)

    def expect_output(self, index: int, text: str, *, seconds: float = 30) -> None:
        expect(self.output(index)).to_contain_text(text, timeout=seconds * 1000)

    def expect_done(self, index: int, *, seconds: float = 30) -> None:
        """The cell has run: its prompt is a number."""
        expect(self.prompt(index)).to_have_text(NUMBERED, timeout=seconds * 1000)

    def expect_kernel_name(self, words: str, *, seconds: float = 30) -> None:
        """The toolbar shows this kernel, or `No Kernel`."""
        expect(self.toolbar.locator(".jp-KernelName")).to_contain_text(words, timeout=seconds * 1000)

    def expect_status(self, words: str | re.Pattern[str], *, seconds: float = 30) -> None:
        """The status bar's kernel item says so, such as `Idle` or `Busy`."""
        status = self.page.locator(".jp-StatusBar-Item", has_text="|").first
        expect(status).to_contain_text(words, timeout=seconds * 1000)

    def press(self, command: str) -> None:
        """Click the toolbar button of a command of Lab, the notebook's or the debugger's."""
        self.page.locator(f'[data-command="{command}"]:visible').first.click()

    def interrupt(self) -> None:
        self.toolbar.locator('[data-command="notebook:interrupt-kernel"]').click()

    def restart(self, *, seconds: float = 30) -> None:
        """Restart by the toolbar, and confirm in the dialog; breakpoints, if any, have moved to the new kernel."""
        paths = [self.breakpoint_path(n) for n in range(self.breakpoints.count())]
        self.toolbar.locator('[data-command="notebook:restart-kernel"]').click()
        expect(self.dialog).to_contain_text("Restart Kernel?", timeout=10_000)
        self.dialog.locator("button.jp-mod-accept").click()
        expect(self.dialog).to_have_count(0, timeout=10_000)
        # Lab moves breakpoints only if the new kernel's cells have other file names; a user needs longer than that.
        for n, path in enumerate(paths):
            expect(self.breakpoints.nth(n)).not_to_have_attribute("title", path, timeout=seconds * 1000)

    def breakpoint_path(self, n: int) -> str:
        """The file, in the kernel, of the n-th breakpoint in the sidebar."""
        return self.breakpoints.nth(n).get_attribute("title") or ""

    def debugger(self, *, seconds: float = 30) -> None:
        """Turn the debugger on by the bug button; its sidebar is shown."""
        bug = self.toolbar.locator(".jp-DebuggerBugButton")
        expect(bug).to_have_attribute("aria-disabled", "false", timeout=seconds * 1000)
        bug.click()
        expect(bug).to_have_attribute("aria-pressed", "true", timeout=seconds * 1000)
        expect(self.sidebar).to_be_visible(timeout=seconds * 1000)
        # The gutter in which breakpoints are set is there once the kernel has answered `attach`.
        expect(self.panel.locator(".cm-gutter.cm-breakpoint-gutter").first).to_be_attached(timeout=seconds * 1000)

    def set_breakpoint(self, index: int, line: int) -> None:
        """Click the gutter beside a line (from 1) of one cell."""
        before = self.breakpoints.count()
        gutter = self.cell(index).locator(".cm-gutter.cm-breakpoint-gutter > .cm-gutterElement")
        gutter.nth(line).click()  # Element 0 is the editor's invisible spacer.
        expect(self.breakpoints).to_have_count(before + 1, timeout=10_000)
        expect(self.breakpoints.last.locator(".jp-DebuggerBreakpoint-line")).to_have_text(str(line), timeout=10_000)

    def expect_stopped(self, code: str, *, seconds: float = 30) -> None:
        """The debugger stands at the line with this code."""
        expect(self.stopped_line).to_have_text(code, timeout=seconds * 1000)
        expect(self.callstack.first).to_be_visible(timeout=seconds * 1000)

    def expect_variable(self, name: str, value: str, *, seconds: float = 15) -> None:
        """The sidebar shows a variable of this name with this value."""
        tree_item = self.variables.locator(".jp-TreeItem").filter(
            has=self.page.locator(f'.jp-DebuggerVariables-name:text-is("{name}")')
        )
        detail = tree_item.locator(".jp-DebuggerVariables-detail").first
        expect(detail).to_have_text(value, timeout=seconds * 1000)

    def expect_running(self, *, seconds: float = 15) -> None:
        """No line is marked: the debugger has let go."""
        expect(self.stopped_line).to_have_count(0, timeout=seconds * 1000)

    def shut_down_kernel(self, *, seconds: float = 30) -> None:
        """Kernel menu, Shut Down Kernel; the notebook stays open without one."""
        self.page.locator("#jp-MainMenu .lm-MenuBar-item", has_text="Kernel").click()
        self.page.locator('.lm-Menu-item[data-command="kernelmenu:shutdown"]').click()
        self.expect_kernel_name("No Kernel", seconds=seconds)

    def shut_down_in_panel(self, *, seconds: float = 30) -> None:
        """The running panel's Shut Down button of the one kernel there is."""
        self.page.locator('.lm-TabBar-tab[title^="Running Terminals and Kernels"]').click()
        kernel = self.page.locator("#jp-running-sessions .jp-RunningSessions-item.jp-mod-kernel")
        kernel.hover()
        kernel.locator('.jp-RunningSessions-itemShutdown[title="Shut Down"]').first.click()
        expect(kernel).to_have_count(0, timeout=seconds * 1000)

    def hide_files(self) -> None:
        """Close the left sidebar, for a picture of the notebook alone."""
        self.page.keyboard.press("Control+b")
        expect(self.page.locator("#filebrowser")).to_be_hidden(timeout=5000)

    def picture(self, name: str, *, height: int = SIZE["height"]) -> None:
        """Keep two pictures for the docs, in light and dark: the page's upper part."""
        IMAGES.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(SIZE["width"] / 2, SIZE["height"] * 0.75)  # No button looks hovered.
        schemes: tuple[Literal["light", "dark"], ...] = ("dark", "light")
        for scheme in schemes:
            self.page.emulate_media(color_scheme=scheme)
            is_light = "true" if scheme == "light" else "false"
            expect(self.page.locator("body")).to_have_attribute("data-jp-theme-light", is_light, timeout=20_000)
            # Lab covers the page while it changes.
            expect(self.page.locator("#jupyterlab-splash")).to_have_count(0, timeout=20_000)
            clip: FloatRect = {"x": 0, "y": 0, "width": SIZE["width"], "height": height}
            self.page.screenshot(path=IMAGES / f"{name}-{scheme}.png", clip=clip)

    def save_failure(self, test_name: str) -> Path:
        """A picture of what was on the screen when a test failed."""
        FAILED.mkdir(parents=True, exist_ok=True)
        path = FAILED / f"{test_name}.png"
        self.page.screenshot(path=path)
        return path

    def __repr__(self) -> str:
        return f"<LabPage {self.page.url}>"


@contextmanager
def lab_page(server: JupyterServer, test_name: str) -> Iterator[LabPage]:
    """A browser with Lab open at its launcher. A failing block leaves a picture and the console's last lines."""
    if not Path(CHROMIUM).exists():
        raise AssertionError(f"{CHROMIUM} is missing: apt-get install chromium")
    console: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport=SIZE)
            page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
            lab = LabPage(page, server)
            try:
                lab.open()
                yield lab
            except BaseException:
                print(f"-- picture: {lab.save_failure(test_name)}", *console[-15:], sep="\n")
                raise
        finally:
            browser.close()
