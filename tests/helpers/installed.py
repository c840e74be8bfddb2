"""Runs `ddm-site` or `ddm-coord` as if only some extras were installed: EXTRAS PROGRAM WORDS...

Every module of a package that those extras do not bring is not there for the import system.
EXTRAS is a list with commas, or `-` for none.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from tomllib import loads
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
OURS = "ddm-fed"


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


if __name__ == "__main__":
    asked, program, *words = sys.argv[1:]
    hide(left_out([] if asked == "-" else asked.split(",")))
    sys.argv = [program, *words]
    from ddm_fed import programs

    {"ddm-site": programs.site, "ddm-coord": programs.coord}[program]()
