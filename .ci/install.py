"""Runs `pip install` and says how far it is, a line a phase: .ci/install.py PYTHON ARGUMENTS...

Warnings of pip, such as of a package index that this machine lists and does not have, stay out of
sight unless the installation fails. Errors are shown at once, and the status is pip's.

With DDM_INSTALL_WITH=uv it is uv that installs, in a sixth of pip's time and from the same places
under the same constraints; should it fail, pip does it after all.
"""

import ast
import itertools
import os
import re
import subprocess
import sys
import threading
import time

LARGE_MB = 20.0
KEPT = 30  # warnings that are shown if it fails
NOISE = re.compile(r"\s*(WARNING|DEPRECATION|\[notice\])\b|\[notice\]")
HARMLESS = re.compile(r"WARNING: Location .* is ignored")
DOWNLOAD = re.compile(r"\s*Downloading (?:\S*/)?(\S+?)-\d\S* \(([\d.]+) (kB|MB|GB)\)")
MEGABYTES = {"kB": 0.001, "MB": 1.0, "GB": 1000.0}


class Phases:
    """Turns what pip says on stdout into a line a phase, and a count in place on a terminal."""

    def __init__(self) -> None:
        self.looked_at, self.in_place = 0, sys.stderr.isatty()

    def take(self, line: str) -> None:
        """Looks at one line of pip."""
        if line.startswith("Collecting "):
            self.looked_at += 1
            self._count(f"  {self.looked_at} packages looked up")
        elif found := DOWNLOAD.match(line):
            size = float(found[2]) * MEGABYTES[found[3]]
            if size >= LARGE_MB:
                self.say(f"  downloading {found[1]}, {size:,.0f} MB")
        elif line.startswith("Installing collected packages: "):
            count = line.count(",") + 1
            self.say(f"  installing {count} package{'s' if count > 1 else ''}")

    def say(self, text: str) -> None:
        """Writes a line that stays."""
        sys.stderr.write(("\r\033[K" if self.in_place else "") + text + "\n")

    def _count(self, text: str) -> None:
        if self.in_place:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()


# what pip is told about where packages are, and how uv is told the same
PLACES = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "trusted-host": "--allow-insecure-host",
}


def settings_of_pip(listed: str) -> dict[str, str]:
    """Returns pip's settings from what `pip config list` says; the environment's come first."""
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: not line.startswith(":env:")):
        name, _, value = line.partition("=")
        found.setdefault(name.rpartition(".")[2], str(ast.literal_eval(value)))
    return found


def options_of_uv(settings: dict[str, str]) -> list[str]:
    """Returns the options that tell uv where pip looks: in all indexes, for the best version."""
    options = ["--index-strategy", "unsafe-best-match"]
    for name, option in PLACES.items():
        for value in settings.get(name, "").split():
            options += [option, value]
    return options


def install_with_uv(python: str, arguments: list[str]) -> bool:
    """Returns whether uv could be installed, and could install."""
    pip = [python, "-m", "pip"]
    constraints = [
        word
        for flag, file in itertools.pairwise(arguments)
        if flag == "--constraint"
        for word in (flag, file)
    ]
    quiet = ("--quiet", "--disable-pip-version-check")
    if subprocess.run([*pip, "install", *quiet, *constraints, "uv"], check=False).returncode:
        return False
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True)
    settings = settings_of_pip(listed.stdout)
    certificates = {"SSL_CERT_FILE": settings["cert"]} if "cert" in settings else {}
    words = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    words += [*options_of_uv(settings), *arguments]
    return not subprocess.run(words, env=os.environ | certificates, check=False).returncode


def main(python: str, arguments: list[str]) -> int:
    """Returns the exit status of pip."""
    started, phases, hidden = time.monotonic(), Phases(), list[str]()
    if os.environ.get("DDM_INSTALL_WITH") == "uv":
        phases.say("installing with uv")
        if install_with_uv(python, arguments):
            phases.say(f"  installed in {time.monotonic() - started:.0f} s")
            return 0
        phases.say("  uv could not install, so pip does")
    phases.say(
        "installing: looking up and downloading packages, which takes minutes the first time"
    )
    options = ("--disable-pip-version-check", "--progress-bar", "off")
    with subprocess.Popen(
        [python, "-m", "pip", "install", *options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as pip:

        def listen() -> None:
            for line in pip.stderr or ():
                if NOISE.match(line):
                    hidden.append(line.rstrip())
                else:
                    phases.say(line.rstrip())

        errors = threading.Thread(target=listen)
        errors.start()
        for line in pip.stdout or ():
            phases.take(line)
        errors.join()
    if pip.returncode:
        for line in [line for line in hidden if not HARMLESS.match(line)][-KEPT:]:
            phases.say(line)
        phases.say(f"pip ended with status {pip.returncode}; run the same command again to go on")
    else:
        phases.say(f"  installed in {time.monotonic() - started:.0f} s")
    return pip.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
