"""A page as a PDF, by the print of a browser that is installed: the one program ever started here.

The browser is started without a shell, on one file of ours, with a profile that is thrown away. The
page it prints may run and load nothing (`ddm_fed.report.page`), and the browser is told to reach no
network by itself. A PDF holds the time at which it was printed; pages do not.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ddm_fed.errors import MachineError

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
OPTIONS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--no-pdf-header-footer"),
    # whatever it would still ask for by itself, it finds no host and no proxy
    *("--disable-features=NetworkTimeServiceQuerying", "--host-resolver-rules=MAP * ~NOTFOUND"),
    "--no-proxy-server",
)
TIMEOUT_S = 120


def find_browser() -> str:
    """Returns a browser that can print.

    Raises:
        MachineError: none is installed.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise MachineError(
            "a PDF is printed by Chromium or Chrome, and neither is installed",
            hint="install one (Debian and Ubuntu: `apt-get install chromium`), or open the page in "
            "any browser and print it to a PDF there",
        )
    return found


def printed(page: bytes, browser: str) -> bytes:
    """Returns a page as a PDF.

    Args:
        page: HTML that needs nothing beside itself.
        browser: From `find_browser`.

    Raises:
        MachineError: the browser did not print.
    """
    # only its owner may read the folder: a page may hold private images
    with tempfile.TemporaryDirectory(prefix="ddm-report-") as made:
        folder = Path(made).resolve()
        file, pdf = folder / "report.html", folder / "report.pdf"
        file.write_bytes(page)
        # its sandbox refuses to run as root
        alone = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [browser, *OPTIONS, *alone, f"--user-data-dir={folder / 'profile'}"]
        command += [f"--print-to-pdf={pdf}", file.as_uri()]
        try:
            ended = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _not_printed(browser, str(error)) from None
        if ended.returncode or not pdf.is_file():
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            raise _not_printed(browser, said[-1] if said else f"exit status {ended.returncode}")
        return pdf.read_bytes()


def _not_printed(browser: str, reason: str) -> MachineError:
    return MachineError(
        f"{browser} did not print the page: {reason}",
        hint="open the page in any browser and print it to a PDF there",
    )
