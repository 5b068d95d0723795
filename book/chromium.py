"""Where the browser is with which pages are checked and printed."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


def find() -> str:
    """The path of a Chromium or Chrome; a SystemExit says what to install where there is none."""
    for name in filter(None, (os.environ.get("CHROMIUM"), *NAMES)):
        if path := shutil.which(name):
            return path
    raise SystemExit(
        "There is no Chromium or Chrome here: install one (Debian: apt install chromium; macOS: brew install --cask "
        "chromium), or name its program with CHROMIUM=PATH."
    )
