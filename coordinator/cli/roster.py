"""`ddm-coord roster`: who takes part, with which keys. Every change is a new signed roster."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import CoordinatorOption, keys_read_out, require_enough_keys
from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.errors import OptionError

if TYPE_CHECKING:
    from coordinator.roster.proposals import Proposal
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.records import Roster

app = typer.Typer(
    name="roster",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Who takes part, with which keys.

Every change is a new roster, signed by the root keys. If several people hold them, it waits
until enough of them have signed it with `sign`.""",
)
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        help="A key of the site, as its people read it out. It is compared with the request.",
        callback=keys_read_out,
    ),
]
CompromisedOption = Annotated[
    int | None,
    typer.Option(
        "--compromised-since",
        help="Size of the log from which the old keys may have been stolen. What "
        "they signed after that does not count.",
        min=0,
    ),
]


@app.command()
def add(
    requests: Annotated[
        list[str],
        typer.Argument(
            help="Enrolment requests: files, or names of sites whose request is waiting here."
        ),
    ],
    coordinator: CoordinatorOption = Path(),
    key: KeyOption = None,
) -> None:
    """Add sites to the roster, from the requests they sent.

    Examples: ddm-coord roster add hospital-a.dsse.json --key ed25519:77ab… · ddm-coord roster add
    hospital-a --key ed25519:77ab…
    """
    from coordinator.roster import changes
    from coordinator.roster.waiting import drop_settled
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        files = [_request_file(home, name) for name in requests]
        proposal = changes.add(home, files, expected_keyids=key or ())
        drop_settled(home)
    if proposal is None:
        console.say("they are members already; nothing changed")
        return
    _report(proposal, coordinator)
    _show_keys(proposal.roster)
    if key is None:
        console.say("compare these keys with the sites' people before you publish a plan")
    console.next_step(
        console.typed("ddm-coord", "publish", "--coordinator", coordinator, "PLAN.toml")
    )


@app.command()
def refuse(
    request: Annotated[str, typer.Argument(help="The site whose request is waiting here.")],
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Drop a request that came over a network. Nothing else changes.

    Example: ddm-coord roster refuse hospital-x
    """
    from coordinator.roster import waiting
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        site = waiting.refuse(home, request)
    console.say(f"the request of `{site}` was dropped")


@app.command()
def rotate(
    request: Annotated[
        str | None,
        typer.Argument(
            help="The request of `ddm-site rotate`: a file, or the name of a site whose "
            "request is waiting here."
        ),
    ] = None,
    coordinator: CoordinatorOption = Path(),
    coordinator_key: Annotated[
        bool, typer.Option("--coordinator-key", help="Replace the coordinator's own key.")
    ] = False,
    server_certificate: Annotated[
        bool,
        typer.Option(
            "--server-certificate",
            help="Add the next certificate of the server to the roster; end the one "
            "before the last.",
        ),
    ] = False,
    root_key: Annotated[
        list[Path] | None,
        typer.Option(help="Public key file of a new holder of a root key. Give one for each."),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(help="How many of the new root keys have to sign.", min=1)
    ] = None,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost", help="The site's people said that they have no present key left to sign with."
        ),
    ] = False,
    compromised_since: CompromisedOption = None,
    key: KeyOption = None,
) -> None:
    """Replace keys or certificates: a site's, the coordinator's, or the root keys.

    Examples: ddm-coord roster rotate rotation.dsse.json · ddm-coord roster rotate --coordinator-key
    · ddm-coord roster rotate --root-key a.pub --root-key b.pub --root-key c.pub --threshold 2
    """
    from coordinator.roster import changes
    from coordinator.roster.waiting import drop_settled
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.signing import read_public

    chosen = [request is not None, coordinator_key, server_certificate, bool(root_key)]
    if sum(chosen) != 1:
        raise OptionError(
            f"{sum(chosen)} of REQUEST, --coordinator-key, --server-certificate and --root-key are "
            "given, which say what to replace",
            hint="give exactly one of them",
        )
    if bool(root_key) != (threshold is not None):
        raise OptionError("--root-key and --threshold need each other", hint="give both")
    require_enough_keys(threshold or 0, len(root_key or ()))
    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        if request is not None:
            proposal = changes.rotate_site(
                home,
                _request_file(home, request),
                lost=lost,
                compromised_since=compromised_since,
                expected_keyids=key or (),
            )
            drop_settled(home)
        elif root_key and threshold is not None:
            proposal = changes.rotate_root(home, [read_public(f) for f in root_key], threshold)
        elif server_certificate:
            proposal = changes.rotate_server_certificate(home)
        else:
            proposal = changes.rotate_coordinator(home, compromised_since=compromised_since)
    _report(proposal, coordinator)


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    coordinator: CoordinatorOption = Path(),
    key: Annotated[
        str | None,
        typer.Option(help="End only this key, ed25519:…; by default all keys of the site."),
    ] = None,
    certificates: Annotated[
        bool,
        typer.Option(
            "--certificates", help="End only its certificates, so that it cannot connect any more."
        ),
    ] = False,
    compromised_since: CompromisedOption = None,
) -> None:
    """Revoke keys of a site, from now on, or from an earlier size of the log.

    If all its keys are revoked, its certificates end too. Example: ddm-coord roster revoke
    hospital-a --compromised-since 12
    """
    from coordinator.roster import changes
    from coordinator.workspace import CoordinatorFolder

    if certificates and (key is not None or compromised_since is not None):
        raise OptionError(
            "--certificates ends no key, so --key and --compromised-since mean nothing with it",
            hint="leave them out, or leave --certificates out",
        )
    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        if certificates:
            proposal = changes.revoke_certificates(home, site)
        else:
            proposal = changes.revoke(home, site, keyid=key, compromised_since=compromised_since)
    _report(proposal, coordinator)
    for line in changes.meaning_of_revoking(home, site, proposal):
        console.say(line)
    if compromised_since is not None:
        console.say(
            "ensembles with what was signed from there on are stale: assemble again, and tell "
            "whoever has them to run `ddm-coord verify ENSEMBLE --published PUBLISHED`"
        )


@app.command()
def renew(coordinator: CoordinatorOption = Path()) -> None:
    """Issue the present roster again, for another year.

    Example: ddm-coord roster renew
    """
    from coordinator.roster import changes
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        proposal = changes.renew(home)
    _report(proposal, coordinator)


@app.command()
def sign(
    file: Annotated[
        Path,
        typer.Argument(
            help="roster-NNNN.json, or the .dsse.json that others have signed.",
            exists=True,
            dir_okay=False,
        ),
    ],
    key: Annotated[Path, typer.Option(help="Your root key, a .pem file.", dir_okay=False)],
) -> None:
    """Sign a roster that waits for signatures, on any machine. It shows what the roster says.

    Example: ddm-coord roster sign roster-0002.json --key root-b.pem
    """
    from coordinator.roster import proposals
    from ddm_fed.signing import SigningKey

    roster = proposals.sign(file, SigningKey.read(key))
    _show(roster)
    signed = file.with_name(file.name.split(".")[0] + ".dsse.json")
    console.say(f"signed; send {signed} to the coordinator")


@app.command()
def merge(
    file: Annotated[
        Path,
        typer.Argument(
            help="The .dsse.json that somebody has signed.", exists=True, dir_okay=False
        ),
    ],
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Add signatures that others made; publish the roster once there are enough.

    Example: ddm-coord roster merge roster-0002.dsse.json
    """
    from coordinator.roster import proposals
    from coordinator.roster.waiting import drop_settled
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        proposal = proposals.merge(home, file)
        if proposal.published:
            drop_settled(home)
    _report(proposal, coordinator)


@app.command()
def discard(coordinator: CoordinatorOption = Path()) -> None:
    """Drop the roster that waits for signatures. The present one stays.

    Example: ddm-coord roster discard
    """
    from coordinator.roster import proposals
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        roster = proposals.discard(home)
    console.say(f"roster {roster.version} was dropped")


@app.command()
def show(coordinator: CoordinatorOption = Path(), as_json: JsonOption = False) -> None:
    """Show the present roster, and the one that waits for signatures.

    Example: ddm-coord roster show
    """
    from coordinator.roster import proposals
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.trust.published import roster_files

    home = CoordinatorFolder.open(coordinator)
    current = home.chain().current if roster_files(home.published) else None
    pending = proposals.pending_roster(home)
    if as_json:
        found = {"current": current, "pending": pending}
        console.show_json(
            {"root": home.settings.root}
            | {name: item and item.model_dump(mode="json") for name, item in found.items()}
        )
        return
    console.say(f"everybody pins {home.settings.root}")
    if current is not None:
        _show(current)
    if pending is not None:
        console.say(f"\nwaits for signatures of root keys: {home.pending}")
        _show(pending)


def _request_file(home: "CoordinatorFolder", name: str) -> Path:
    """Returns the file called `name`, or the request of that site which waits here."""
    from coordinator.roster.waiting import find_request

    file = Path(name)
    if file.is_file():
        return file
    if re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) is None:
        raise OptionError(
            f"REQUEST {name} is neither a file nor the name of a site",
            hint="`ddm-coord status` lists the requests that wait here",
        )
    return find_request(home, name)


def _report(proposal: "Proposal", coordinator: Path) -> None:
    if proposal.published:
        console.say(f"published roster {proposal.roster.version}")
        return
    console.say(f"roster {proposal.roster.version} waits for {' and '.join(proposal.missing)}")
    console.next_step(
        f"send {proposal.file} to the holders; each runs ddm-coord roster sign FILE --key KEY.pem",
        console.typed("ddm-coord", "roster", "merge", "--coordinator", coordinator, "SIGNED_FILE"),
    )


def _show(roster: "Roster") -> None:
    holders = f"{roster.root.threshold} of {len(roster.root.keys)} root keys"
    console.say(
        f"roster {roster.version} of {roster.federation}, signed by {holders}, "
        f"valid until {roster.expires_at:%Y-%m-%d}"
    )
    _show_keys(roster)
    _show_certificates(roster)


def _show_certificates(roster: "Roster") -> None:
    from ddm_fed.signing import certificate_fingerprint

    owners = [("coordinator", text) for text in roster.server_certificates]
    owners += [(site.name, text) for site in roster.sites for text in site.certificates]
    if owners:
        console.show_table(
            f"Certificates of roster {roster.version}, for connections",
            ["who", "certificate"],
            [[owner, certificate_fingerprint(text)] for owner, text in owners],
        )


def _show_keys(roster: "Roster") -> None:
    from ddm_fed.signing import VerifyKey

    owners = [("coordinator", "coordinator", "", key) for key in roster.coordinator]
    owners += [
        (site.name, key.role, " + ".join(site.require_at(None)), key)
        for site in roster.sites
        for key in site.keys
    ]
    console.show_table(
        f"Keys of roster {roster.version}, and where in the log they may sign",
        ["who", "role", "asks for", "from", "until", "key"],
        [
            [
                owner,
                role,
                require,
                str(key.from_log_size),
                _until(key.revoked_at_log_size, key.compromised_since_log_size),
                VerifyKey.from_hex(key.public_key).keyid,
            ]
            for owner, role, require, key in owners
        ],
    )


def _until(revoked: int | None, compromised: int | None) -> str:
    if revoked is None:
        return "active"
    return f"{revoked}" if compromised is None else f"{revoked}, compromised since {compromised}"
