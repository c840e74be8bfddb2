"""`ddm-coord reference`: what sites train their heads against."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console


def reference(
    coordinator: CoordinatorOption = Path(),
    without: Annotated[
        list[str] | None,
        typer.Option(help="Do not wait for this site. May be given several times."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Replace the present one. Every site then has to train its head again.",
        ),
    ] = False,
) -> None:
    """Publish the signed pool of all releases, which every site trains its router head against.

    For plans with router.kind = "heads", once every site's first bundle is admitted. It is made of
    what the sites released and of nothing else. Example: ddm-coord reference
    """
    from coordinator.ensembles.reference import publish_reference
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        made = publish_reference(home, without=without or [], replace=replace)
    names = ", ".join(member.site for member in made.record.members)
    console.say(f"published the reference {made.sha256[:16]}… of what {names} released")
    console.next_step(
        f"send {home.published} to every site; each runs ddm-site head --plan PUBLISHED --data …, "
        "then review, release and submit"
    )
