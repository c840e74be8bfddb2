"""Headless Chromium, with a new profile each time."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-features=NetworkTimeServiceQuerying", "--hide-scrollbars"),
)


def run_chromium(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Returns what Chromium printed, and what it logged on stderr."""
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)


def chromium(tmp_path: Path, *options: str) -> str:
    """Returns what Chromium prints."""
    return run_chromium(tmp_path, *options).stdout


def screenshot(tmp_path: Path, url: str, size: str, *options: str) -> np.ndarray:
    """Returns the pixels of a page, `(H, W, 3)`."""
    file = tmp_path / "page.png"
    chromium(tmp_path, f"--window-size={size}", f"--screenshot={file}", *options, url)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def share_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Returns the share of pixels of about this colour."""
    return float((np.abs(pixels - colour).max(-1) < 8).mean())
