"""`ddm-coord serve`: the coordinator on a network."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption, finite, listening_address

GIB = 1 << 30


def serve(
    coordinator: CoordinatorOption = Path(),
    listen: Annotated[
        str,
        typer.Option(
            help="HOST:PORT to listen on for members. Port 0 takes a free one.",
            callback=listening_address,
        ),
    ] = "127.0.0.1:8443",
    enroll: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT to listen on for requests to be enrolled, from anybody. By "
            "default none are taken.",
            callback=listening_address,
        ),
    ] = None,
    web: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT to serve the read-only page and the metrics on. By default "
            "they are not served.",
            callback=listening_address,
        ),
    ] = None,
    web_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Another host name under which the page is requested, for example that "
            "of a reverse proxy. May be given several times."
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Folder that `sample` wrote, to show its grid.png.", file_okay=False),
    ] = None,
    share_ensemble: Annotated[
        bool,
        typer.Option("--share-ensemble", help="Let members fetch the newest ensemble."),
    ] = False,
    reserve: Annotated[
        float,
        typer.Option(
            help="GiB of disk space to keep free, whatever arrives.", min=0, callback=finite
        ),
    ] = 1.0,
    uploads: Annotated[
        int, typer.Option(help="The most unfinished bundles of one site at a time.", min=1)
    ] = 2,
    timeout: Annotated[
        float,
        typer.Option(
            help="End a stream that brings less than 64 KiB in this many seconds.",
            min=1,
            callback=finite,
        ),
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Listen for sites: hand out what is published, take bundles in, admit them at once.

    Only members of the roster are answered, over mutual TLS. Ctrl-C or SIGTERM ends it, once work
    in progress has reached a safe point.

    Example: ddm-coord serve --listen 0.0.0.0:8443 --enroll 0.0.0.0:8444 --web 127.0.0.1:8080
    """
    import os
    from contextlib import ExitStack

    # gRPC writes a line for a handshake it does not like: a stranger could fill the log with them
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from coordinator.inbox.upload import Limits
    from coordinator.roster.waiting import take_request
    from coordinator.server.server import ServerOptions, serving
    from coordinator.server.web import start_web
    from coordinator.status.metrics import ServerMetrics
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.listening import wait_for_end

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
            names = web_name or ()
            server = start_web(home, host, port, metrics=metrics, samples=samples, names=names)
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
        console.say("ending, once work in progress has reached a safe point")


def _say(facts: dict[str, str | None]) -> None:
    console.say(f"members connect to {facts['listen']}")
    if facts["enroll"] is not None:
        console.say(f"requests to be enrolled go to {facts['enroll']}")
    if facts["web"] is not None:
        console.say(f"the page is at {facts['web']}")
    console.say(
        "the part after # is the fingerprint of the certificate; from outside, the host may have "
        "another name"
    )


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
