"""A headless Chromium by playwright, wherever there is one: playwright's own, or one of the system (`make browser`)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OF_THE_SYSTEM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class NoBrowser(RuntimeError):
    """There is none; the message says how to get one."""


@contextmanager
def open_browser() -> Iterator:
    """A fresh browser process. Raises NoBrowser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise NoBrowser("playwright is not installed; pip install playwright") from None
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        system = next(filter(None, map(shutil.which, OF_THE_SYSTEM)), None)
        if not own.exists() and system is None:
            raise NoBrowser("no Chromium; playwright install chromium, or apt-get install chromium-headless-shell (make browser)")
        # In a container there is no user namespace for Chromium's own sandbox; it opens only pages made here.
        browser = playwright.chromium.launch(executable_path=None if own.exists() else system, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
