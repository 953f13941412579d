"""One headless Chromium per event loop and set of switches, shared by all sessions and relaunched when it dies.

The browser is a child of Playwright's driver, which is a child of this process and exits with it, also when this
process is killed. Not covered: a driver that is itself stopped (SIGSTOP) while its parent dies.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

from playwright.async_api import Browser, Playwright, async_playwright
from playwright.async_api import Error as PlaywrightError

from treewright.envs.errors import EnvFault, TreewrightError

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "FLAGS_VARIABLE",
    "close_browser",
    "find_chromium",
    "require_chromium",
    "shared_browser",
]

ENVIRONMENT_VARIABLE = "TREEWRIGHT_CHROMIUM"
FLAGS_VARIABLE = "TREEWRIGHT_CHROMIUM_FLAGS"
"""More flags for Chromium, separated by blanks: `--site-per-process` keeps sites in processes apart."""
_COMMANDS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_PLAYWRIGHT_FOLDERS = ("~/.cache/ms-playwright", "~/Library/Caches/ms-playwright")
_PLAYWRIGHT_BINARIES = ("chromium*/chrome-*/*headless?shell", "chromium*/chrome-*/chrome", "chromium*/*/*/*/Chromium")

# Nothing here may talk to anyone but the pages: no updates, no reports, no prefetch, no UDP past the proxy.
_FLAGS: tuple[str, ...] = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-quic",
    "--dns-prefetch-disable",
    "--no-first-run",
    "--no-pings",
    "--metrics-recording-only",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    # Less work for each page, since nobody watches them being drawn. Threaded compositing stays: without it a mouse
    # that moves waits seconds for a frame.
    "--in-process-gpu",
)
# With RenderDocument every page of a site gets a new view with a compositor of its own, though its process stays: a
# fifth of what a page costs. No boundary stands on it: sites are kept apart, or not, as they are with it.
_FEATURES_OFF = ("RenderDocument",)
# Of several --disable-features Chromium takes the last alone, and Playwright gives one: here they become one.
_MERGE = """#!/bin/sh
off=
for given do
  shift
  case $given in
    --disable-features=*) off=$off,${given#*=} ;;
    *) set -- "$@" "$given" ;;
  esac
done
exec %s "$@" "--disable-features=${off#,}"
"""


def find_chromium() -> Path | None:
    """The Chromium to use: $TREEWRIGHT_CHROMIUM, one on the PATH, then Playwright's own; None if there is none.

    Raises TreewrightError if the variable names something that is not an executable file.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise TreewrightError(f"{ENVIRONMENT_VARIABLE}={named!r} is not an executable file; unset it or correct it")
        return Path(named)
    for command in _COMMANDS:
        if found := shutil.which(command):
            return Path(found)
    folders = [os.environ.get("PLAYWRIGHT_BROWSERS_PATH", ""), *_PLAYWRIGHT_FOLDERS]
    for folder in (Path(name).expanduser() for name in folders if name):
        for pattern in _PLAYWRIGHT_BINARIES:
            if hits := sorted(path for path in folder.glob(pattern) if os.access(path, os.X_OK)):
                return hits[-1]
    return None


def require_chromium() -> Path:
    """Like find_chromium(), but raises TreewrightError that says what to install."""
    found = find_chromium()
    if found is None:
        raise TreewrightError(
            "no Chromium found; type: apt-get install chromium-headless-shell (Debian), or "
            f"playwright install chromium-headless-shell, or set {ENVIRONMENT_VARIABLE} to the path of one"
        )
    return found


class _Host:
    """The driver and the browser that belong to one event loop and to sessions that ask for the same switches."""

    def __init__(self, switches: tuple[str, ...]) -> None:
        self.switches = switches
        self.lock = asyncio.Lock()
        self.driver: Playwright | None = None
        self.browser: Browser | None = None

    async def get(self) -> Browser:
        async with self.lock:
            if self.browser is not None and self.browser.is_connected():
                return self.browser
            await self._stop()
            executable = require_chromium()
            try:
                self.driver = await async_playwright().start()
                self.browser = await _launch(self.driver, executable, self.switches)
            except PlaywrightError as error:
                await self._stop()
                why = error.message.strip().partition("\n")[0]  # its log follows, which the cause holds
                raise EnvFault(f"Chromium {executable} did not start: {why}") from error
            return self.browser

    async def close(self) -> None:
        async with self.lock:
            await self._stop()

    async def _stop(self) -> None:
        browser, driver, self.browser, self.driver = self.browser, self.driver, None, None
        try:
            if browser is not None and browser.is_connected():
                await browser.close()
        except PlaywrightError:
            pass  # it went away first, which is what was wanted
        finally:
            if driver is not None:
                await driver.stop()


async def _launch(driver: Playwright, executable: Path, switches: Sequence[str]) -> Browser:
    """Chromium with its own sandbox where that works; root and many containers cannot have it.

    It does not listen to Ctrl-C, so that sessions can be closed in order.
    """
    with tempfile.TemporaryDirectory(prefix="treewright-chromium-") as folder:
        script = _merging(executable, Path(folder))
        off = [f"--disable-features={','.join(_FEATURES_OFF)}"] if script else []
        launch = partial(driver.chromium.launch, executable_path=script or executable, handle_sigint=False)
        sandbox = os.geteuid() != 0
        flags = [*_FLAGS, *switches, *off, *shlex.split(os.environ.get(FLAGS_VARIABLE, ""))]
        arguments = flags if sandbox else [*flags, "--no-sandbox"]
        for last in (False, True):  # a crash as it starts, which happens, must not cost the sandbox or the session
            try:
                return await launch(args=arguments, chromium_sandbox=sandbox)
            except PlaywrightError:
                if last and not sandbox:
                    raise
        browser = await launch(args=[*arguments, "--no-sandbox"], chromium_sandbox=False)
        warnings.warn("Chromium starts here only without its sandbox: open trusted pages only", stacklevel=2)
        return browser


def _merging(executable: Path, folder: Path) -> Path | None:
    """A script that starts Chromium with all its --disable-features as one; None where the folder runs no programs."""
    script = folder / "chromium"
    script.write_text(_MERGE % shlex.quote(str(executable)))
    script.chmod(0o700)
    return script if os.access(script, os.X_OK) else None


_hosts: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], _Host]] = WeakKeyDictionary()


async def shared_browser(switches: Sequence[str] = ()) -> Browser:
    """The running event loop's browser with these switches besides those that all have, launched if there is none or
    the last one is gone."""
    hosts = _hosts.setdefault(asyncio.get_running_loop(), {})
    return await hosts.setdefault(tuple(switches), _Host(tuple(switches))).get()


async def close_browser() -> None:
    """Ends the running event loop's browsers and drivers; does nothing when there are none."""
    for host in _hosts.pop(asyncio.get_running_loop(), {}).values():
        await host.close()
