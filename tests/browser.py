"""Which Chromium the browser tests use. `python -m tests.browser` finds one, or installs Playwright's own or the system's.

Exit 1 only where STUDIO_REQUIRE_BROWSER=1 and there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find() -> str | None:
    """Path of a Chromium: STUDIO_BROWSER, one on PATH, or the one that Playwright has installed."""
    named = os.environ.get("STUDIO_BROWSER")
    if named:
        return named
    return next((path for path in map(shutil.which, NAMES) if path), None) or _playwrights_own()


def _playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if path and Path(path).exists() else None


def _install_playwrights() -> None:
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _install_debians() -> None:
    """In a container, where we are root and may."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    print("Installing Chromium with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
        subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


INSTALLERS = (_install_playwrights, _install_debians)


def main() -> int:
    path = find()
    for install in INSTALLERS:
        if path is None:
            install()
            path = find()
    if path:
        print(f"Browser tests use {path}")
        return 0
    required = os.environ.get("STUDIO_REQUIRE_BROWSER") == "1"
    print("NO BROWSER: the browser tests are left out. Install chromium (Debian: apt-get install chromium) to run them.")
    return 1 if required else 0


if __name__ == "__main__":
    sys.exit(main())
