"""`ddm-coord serve`: the coordinator on a network."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption, listening_address
from ddm_fed import console
from ddm_fed.commands.options import JsonOption, finite

GIB = 1 << 30


def serve(
    coordinator: CoordinatorOption = Path(),
    listen: Annotated[
        str,
        typer.Option(
            help="HOST:PORT for members; port 0 takes a free one.", callback=listening_address
        ),
    ] = "127.0.0.1:8443",
    enroll: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT for requests to be enrolled, from anybody; by default none.",
            callback=listening_address,
        ),
    ] = None,
    web: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the read-only page and the metrics; by default none.",
            callback=listening_address,
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="What `ddm-coord sample` made, to show its grid.", file_okay=False),
    ] = None,
    share_ensemble: Annotated[
        bool,
        typer.Option("--share-ensemble", help="Let members fetch the newest ensemble."),
    ] = False,
    reserve: Annotated[
        float,
        typer.Option(help="GiB of disk to leave free whatever arrives.", min=0, callback=finite),
    ] = 1.0,
    uploads: Annotated[
        int, typer.Option(help="Unfinished bundles of one site at a time.", min=1)
    ] = 2,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds a stream may bring less than 64 KiB before it is ended.",
            min=1,
            callback=finite,
        ),
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Listen for sites: hand out what is published, take bundles in, admit them at once.

    Only members of the roster are answered, over mutual TLS. Ends with Ctrl-C or SIGTERM, after
    what is under way has come to a safe point.

    Example: ddm-coord serve --listen 0.0.0.0:8443 --enroll 0.0.0.0:8444 --web 127.0.0.1:8080
    """
    import os
    from contextlib import ExitStack

    # gRPC writes a line for a handshake it does not like: a stranger could fill the log with them
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from coordinator.inbox.upload import Limits
    from coordinator.roster.waiting import take_request
    from coordinator.server.server import ServerOptions, serving, wait_for_end
    from coordinator.server.web import start_web
    from coordinator.status.metrics import ServerMetrics
    from coordinator.workspace import CoordinatorFolder

    home, metrics = CoordinatorFolder.open(coordinator), ServerMetrics()
    options = ServerOptions(
        listen=listen,
        enroll=enroll,
        limits=Limits(reserve_bytes=int(reserve * GIB), open_uploads=uploads),
        timeout_s=timeout,
        share_ensemble=share_ensemble,
    )
    with ExitStack() as stack:
        found = stack.enter_context(
            serving(home, options, metrics, lambda data: take_request(home, data) == "member")
        )
        page = None
        if web is not None:
            host, port = _host_and_port(web)
            server = start_web(home, host, port, metrics=metrics, samples=samples)
            page = stack.enter_context(server)
        host = _host_and_port(listen)[0]
        facts = {
            "listen": f"grpcs://{host}:{found.port}#{found.fingerprint}",
            "enroll": None
            if found.enroll_port is None or enroll is None
            else f"grpcs://{_host_and_port(enroll)[0]}:{found.enroll_port}#{found.fingerprint}",
            "web": None if page is None else page.url,
        }
        if as_json:
            console.show_json_line(facts)
        else:
            _say(facts)
        wait_for_end()
        console.say("ending: what is under way comes to a safe point")


def _say(facts: dict[str, str | None]) -> None:
    console.say(f"members connect to {facts['listen']}")
    if facts["enroll"] is not None:
        console.say(f"requests to be enrolled are taken at {facts['enroll']}")
    if facts["web"] is not None:
        console.say(f"the page is at {facts['web']}")
    console.say("the part behind # names the certificate; a host may be called otherwise outside")


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
