"""A real browser for pages, where there is one."""

import shutil
import subprocess

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="needs a browser: apt-get install chromium"
)


def drawn(url, folder):
    """The page at ``url`` as a browser has it after its scripts have run."""
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu"),
        *(f"--user-data-dir={folder}/browser", "--virtual-time-budget=3000", "--dump-dom"),
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout.partition("</main>")[0]
