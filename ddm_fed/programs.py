"""Where `ddm-site` and `ddm-coord` start, whatever other packages are called as theirs are.

`sites` and `coordinator` are common names: a folder on `PYTHONPATH` may hold another package of
that name, which Python would find first. So each program takes its package from beside this
library, where both were installed, and all its imports follow from there. Only processes that start
here do so: a program of somebody else that imports `ddm_fed` keeps its own `sites`.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

INSTALLED = Path(__file__).parents[1]
NEEDS_UNIX = (
    "DDM-Fed does not run on Windows: its locks, permissions and folders that survive a kill are "
    "those of Linux and macOS.\n\nhint: run it in WSL 2, or in a virtual machine with Linux"
)


def site() -> None:
    """Runs `ddm-site`."""
    _main("sites")()


def coord() -> None:
    """Runs `ddm-coord`."""
    _main("coordinator")()


def _main(package: str) -> Callable[[], None]:
    """Returns what starts a program, once its package is the one that was installed with us.

    Raises:
        ModuleNotFoundError: it was not installed.
    """
    if os.name == "nt":
        sys.stderr.write(f"error: {NEEDS_UNIX}\n")
        sys.exit(1)
    folder = str(INSTALLED / package)
    loaded = sys.modules.get(package)
    if loaded is None or folder not in getattr(loaded, "__path__", ()):
        # another one may be there already, if Python loaded it at its start (sitecustomize)
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        spec = PathFinder.find_spec(package, [str(INSTALLED)])
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"{folder} is missing: install ddm-fed anew", name=package)
        sys.modules[package] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    main: Callable[[], None] = import_module(f"{package}.cli.main").main
    return main
