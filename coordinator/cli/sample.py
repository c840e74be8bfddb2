"""`ddm-coord sample`: images from an ensemble that verifies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed import console
from ddm_fed.commands.options import finite
from ddm_fed.commands.sample import (
    EnsembleOrStudent,
    SampleFlags,
    SamplesOption,
    draw_and_show,
    options_of,
)
from ddm_fed.commands.unfold import unfolds

if TYPE_CHECKING:
    from ddm_fed.ensemble.folder import VerifiedEnsemble


@unfolds(SampleFlags)
def sample(
    ensemble: EnsembleOrStudent,
    out: SamplesOption,
    flags: SampleFlags,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    remote: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=HOST:PORT",
            help="Where a site answers for an expert that stays there (`ddm-site serve-expert`). "
            "Once for each such site. Needs the coordinator's folder, whose certificate connects.",
        ),
    ] = None,
    remote_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds to try for one answer of a site before giving up.", min=1, callback=finite
        ),
    ] = 300.0,
) -> None:
    """Verify an ensemble or a student, then make images. Run it again to continue a killed run.

    A stale one is refused, if the coordinator's folder is at hand to tell.

    Example: ddm-coord sample ensemble --root sha256:3b6a… --count 100 --out samples
    """
    from coordinator.cli.open_ensemble import open_either
    from ddm_fed.ensemble.folder import VerifiedEnsemble
    from ddm_fed.errors import OptionError

    options_of(flags)  # what means nothing is said before a large folder is verified
    if not remote:
        draw_and_show(open_either(ensemble, root, coordinator), out, flags)
        return
    # who asks no site needs none of what speaks to one
    from coordinator.remote_experts import parse_remotes, remote_experts
    from coordinator.workspace import CoordinatorFolder

    targets = parse_remotes(remote)
    verified = open_either(ensemble, root, coordinator)
    if not isinstance(verified, VerifiedEnsemble):
        raise OptionError("--remote: a student asks no site", hint="leave it out")
    home = CoordinatorFolder.open(coordinator)
    _say_what_answers_tell(verified)
    with remote_experts(home, verified, targets, timeout_s=remote_timeout) as found:
        draw_and_show(verified, out, flags, found)
        for site, expert in found.items():
            if expert.left is not None:
                console.say(f"{site}: {expert.left} evaluations are left")


def _say_what_answers_tell(verified: "VerifiedEnsemble") -> None:
    """Says once for every kind of expert that stays what its answers are."""
    from ddm_fed.privacy import describe_held

    held: dict[bool, list[str]] = {}
    for bundle in verified.bundles:
        if bundle.submission.held_expert is not None:
            held.setdefault(bundle.submission.privacy.expert_is_private, []).append(bundle.site)
    for private, sites in held.items():
        console.say(f"{', '.join(sites)}: {describe_held(expert_is_private=private)}")
