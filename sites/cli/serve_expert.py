"""`ddm-site serve-expert`: answer for an expert whose weights stay."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption, listening_address
from sites.cli.options import PlanOption, SiteOption, open_published


def serve_expert(
    plan: PlanOption,
    site: SiteOption = Path(),
    listen: Annotated[
        str,
        typer.Option(
            help="HOST:PORT to listen on for the coordinator. Port 0 takes a free one.",
            callback=listening_address,
        ),
    ] = "127.0.0.1:8445",
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or cuda:1. By default the GPU, if there is one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer the coordinator's sampler for an expert that stays here, as much as the plan allows.

    Nobody else is let in. Every question is counted on disk before it is answered; a restart gives
    nothing back. Ctrl-C or SIGTERM ends it.

    Example: ddm-site serve-expert --site hospital-a --plan published --listen 0.0.0.0:8445
    """
    import os

    # gRPC writes a line for a handshake it does not like: a stranger could fill the log with them
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from ddm_fed.ensemble.devices import chosen_devices
    from ddm_fed.listening import wait_for_end
    from ddm_fed.privacy import describe_held
    from sites.serving.server import serving_expert

    (chosen,) = chosen_devices(None if device is None else [device])
    home, published = open_published(site, plan)
    with serving_expert(home, published.trust, listen, chosen) as found:
        address = f"{listen.rpartition(':')[0]}:{found.port}"
        if as_json:
            console.show_json_line(
                {
                    "listen": address,
                    "certificate": found.fingerprint,
                    "expert_sha256": found.held.sha256,
                    "evaluations_left": found.allowance.left,
                    "expert_is_private": found.held.is_private,
                }
            )
        else:
            console.say(f"the expert {found.held.sha256[:16]}… answers at {address}")
            console.say(
                f"{found.allowance.left} of {found.held.remote.evaluations} evaluations are left, "
                f"at most {found.held.remote.batch_size} a request"
            )
            console.say(describe_held(expert_is_private=found.held.is_private))
        wait_for_end()
        console.say("ending, once what is asked is answered")
