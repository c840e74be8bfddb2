"""`ddm-coord web`: the status as a read-only web page."""

import signal
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console

DEFAULT_PORT = 8470


def web(
    coordinator: CoordinatorOption = Path(),
    host: Annotated[
        str, typer.Option(help="Address to listen on. By default only this machine can connect.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on. 0 takes a free one.", min=0, max=65535)
    ] = DEFAULT_PORT,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Show the grid.png of this folder, or the newest one in folders within it.",
            file_okay=False,
        ),
    ] = None,
    web_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Another host name under which the page is requested, for example that "
            "of a reverse proxy. May be given several times."
        ),
    ] = None,
) -> None:
    """Serve the status as a read-only web page, with /status.json and /metrics, until Ctrl-C.

    It only reads, and takes no lock. Anyone who reaches the port can read who takes part. If other
    machines can reach it, put a reverse proxy with TLS and a login in front of it.

    Example: ddm-coord web --samples samples
    """
    from coordinator.server.web import LOCAL_NAMES, start_web
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        start_web(home, host, port, samples=samples, names=web_name or ()) as server,
    ):
        typer.echo(server.url)
        if host not in (*LOCAL_NAMES, "::1"):
            console.say("no login and no TLS: anyone who reaches this port can read who takes part")
        Event().wait()
