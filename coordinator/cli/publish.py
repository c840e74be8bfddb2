"""`ddm-coord publish`: the plan, checked, signed and put where everybody finds it."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console
from ddm_fed.errors import OptionError


def publish(
    plan: Annotated[Path, typer.Argument(help="The plan.toml that people wrote.", dir_okay=False)],
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Check and sign the plan, and put it into the published folder.

    Example: ddm-coord publish plan.toml
    """
    from coordinator.inbox.admission import current_members, recover
    from coordinator.roster import proposals
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.records import (
        ExpertDesign,
        PackageArchitecture,
        network_of,
        parse_architecture,
        read_plan_file,
    )
    from ddm_fed.trust.published import PLAN_FILE

    home = CoordinatorFolder.open(coordinator)
    try:
        written = read_plan_file(plan)
    except OSError as error:
        raise OptionError(
            f"PLAN {plan} cannot be read: {error.strerror}", hint="give the path of a plan.toml"
        ) from None
    for name in map(network_of, written.expert.architecture):
        if name is not None and isinstance(parse_architecture(name), PackageArchitecture):
            from ddm_fed.models import expert_tensors

            # what is admitted later is bounded by these; found out now, where somebody looks
            expert_tensors(written.data, ExpertDesign(architecture=name))
    sgd = written.privacy.sgd
    part = written.training.trainable if sgd is None else sgd.trainable
    if part != "all":
        from ddm_fed.training import trained_weights

        for name in written.expert.architecture:
            if network_of(name) is not None:  # every site would find out at its training
                trained_weights(written.data, written.expert.design(name), part)
    with home.changing():
        before = home.trust().plan_sha256 if (home.published / PLAN_FILE).exists() else None
        plan_sha256 = proposals.publish_plan(home, written)
        trust = home.trust()
        log = recover(home, trust)
        earlier = sum(1 for _ in log.receipts()) - len(current_members(home, trust, log))
    console.say(
        f"published plan {plan_sha256[:16]}… under roster {trust.roster.version}: "
        f"{', '.join(site.name for site in trust.roster.sites if site.is_active)}"
    )
    if before not in (None, plan_sha256):
        console.say(
            f"it replaces the plan {before[:16]}…: what sites made under that plan and have not "
            "sent is not taken any more, and the epsilon they spent on it stays spent"
        )
    if earlier:
        console.say(
            f"{earlier} admitted submissions are of an earlier plan, removed, or replaced by newer "
            "ones; a site takes part in this plan once it has trained under it"
        )
    console.next_step(f"send {home.published} to every site; it holds nothing secret")
