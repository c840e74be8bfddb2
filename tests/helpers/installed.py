"""Runs `ddm-site` and `ddm-coord` as if only some extras were installed; see `Installation`.

Every module of a package that those extras do not bring is not there for the import system.
"""

import atexit
import gc
import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from tempfile import TemporaryFile
from tomllib import loads
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
OURS = "ddm-fed"
# what the commands of roles import most, where it is installed
OF_ROLES = (
    "cryptography.x509",
    "opendp.measurements",
    "scipy.stats",
    "sklearn.datasets",
    "torch._dynamo",  # an optimizer imports it: three seconds
)


def requirements_of(name: str, extra: str) -> list[Requirement]:
    """Returns what a package requires, with one of its extras or, for "", without."""
    if name == OURS:  # as the file says: an editable installation remembers an older one
        texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
        return [Requirement(text) for text in texts]
    try:
        found = map(Requirement, distribution(name).requires or ())
    except PackageNotFoundError:  # of another system
        return []
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


def brought_by(extras: list[str]) -> set[str]:
    """Returns the names of all packages that an installation with these extras has."""
    found: set[tuple[str, str]] = set()
    waiting = [(OURS, extra) for extra in ("", *extras)]
    while waiting:
        each = waiting.pop()
        if each in found:
            continue
        found.add(each)
        for needed in requirements_of(*each):
            name = canonicalize_name(needed.name)
            waiting += [(name, extra) for extra in ("", *needed.extras)]
    return {name for name, _ in found}


def left_out(extras: list[str]) -> set[str]:
    """Returns the modules that such an installation does not have."""
    kept = brought_by(extras)
    return {
        module
        for module, packages in packages_distributions().items()
        if not kept & set(map(canonicalize_name, packages))
    }


def hide(modules: set[str]) -> None:
    """Makes these modules unknown to all later imports."""

    class Installed(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, *more: Any) -> ModuleSpec | None:
            known = fullname.partition(".")[0] not in modules
            return super().find_spec(fullname, *more) if known else None

    sys.meta_path[:] = [Installed if each is PathFinder else each for each in sys.meta_path]
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]


class Installation:
    """An interpreter that has only what some extras bring; each command is a fork of it.

    What is installed is looked up, and torch imported, once: two seconds for every command.

    Args:
        extras: A list with commas, or `-` for none.
    """

    def __init__(self, extras: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__, extras],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
        )

    def run(self, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        """Runs a command in the current folder."""
        asked = [program, *map(str, words)]
        self._server.stdin.write(json.dumps([str(Path.cwd()), *asked]) + "\n")
        self._server.stdin.flush()
        return subprocess.CompletedProcess(asked, *json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """Ends the interpreter."""
        with self._server:
            self._server.stdin.close()


def serve(extras: list[str]) -> None:
    """Runs what is asked on stdin, a command a line, each in a fork."""
    hide(left_out(extras))
    for name in ("pydantic", "safetensors.torch", "typer"):  # of the base, and so of all
        import_module(name)
    for name in OF_ROLES if extras in (["site"], ["coordinator"]) else ():
        with suppress(ModuleNotFoundError):  # as each command of the role would find it
            import_module(name)
    gc.freeze()
    for line in sys.stdin:
        folder, *words = json.loads(line)
        with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(folder)
                _end_with(words)
            _, status = os.waitpid(child, 0)
            ended = os.waitstatus_to_exitcode(status)
            for each in (out, err):
                each.seek(0)
            sys.stdout.write(json.dumps([ended, out.read(), err.read()]) + "\n")
            sys.stdout.flush()


def _end_with(words: list[str]) -> None:
    code: object = 1
    try:
        sys.argv = words
        from ddm_fed import programs

        {"ddm-site": programs.site, "ddm-coord": programs.coord}[words[0]]()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # noqa: BLE001  as the end of any Python
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve([] if sys.argv[1] == "-" else sys.argv[1].split(","))
