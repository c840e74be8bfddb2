"""The plan that a command speaks of: a file people write, or what was signed and published."""

from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.cli.options import pinned_root

if TYPE_CHECKING:
    from ddm_fed.records import Plan


def open_plan(plan: Path, coordinator: Path, root: str | None) -> "Plan":
    """Returns the plan of a plan.toml, or the signed one of a folder."""
    if plan.is_file() and plan.suffix == ".toml":
        from ddm_fed.records import read_plan_file

        return read_plan_file(plan)
    from ddm_fed.trust.published import published_folder, read_published

    return read_published(published_folder(plan), pinned_root(root, coordinator)).plan
