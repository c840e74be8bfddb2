"""`ddm-coord`: what a consortium runs. Heavy libraries are imported inside commands only."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything can import flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import re
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from ddm_fed import __version__, console
from ddm_fed.errors import StateError
from ddm_fed.files import size_below

app = typer.Typer(
    name="ddm-coord",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Bring the experts of several sites together, and prove what came from whom.

Everything that arrives is refused unless every signature, digest and policy holds.
[bold]verify[/bold] and [bold]sample[/bold] work for outsiders too: they need the ensemble's folder
and the root key's fingerprint, nothing else.""",
    epilog="""Example: ddm-coord init consortium --federation digits, then enroll, publish, verify,
assemble, sample""",
)
SETUP, WORK, USE = "Set up", "Admit and assemble", "Use an ensemble"

CoordinatorOption = Annotated[
    Path,
    typer.Option(
        "--coordinator", help="The coordinator's folder.", envvar="DDM_COORDINATOR", file_okay=False
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", help="Fingerprint of the root key, ed25519:…, learnt from a person."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
RouterName = Literal["prior", "mixture"]


def main() -> None:
    """Runs `ddm-coord`; errors end with exit status 1, wrong usage with 2."""
    console.run(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ddm-coord {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=SETUP)
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    federation: Annotated[str, typer.Option(help="Name of the federation, for example digits.")],
) -> None:
    """Make a coordinator: its folder, its root key and its working key.

    Example: ddm-coord init consortium --federation digits
    """
    from pydantic import ValidationError

    from coordinator.folder import CoordinatorFolder, CoordinatorSettings
    from ddm_fed.records import explain

    try:
        settings = CoordinatorSettings(federation=federation)
    except ValidationError as error:
        raise typer.BadParameter(explain(error, CoordinatorSettings)) from None
    home = CoordinatorFolder.create(folder, settings)
    console.say("Root key fingerprint; tell it to every site by telephone or on paper:")
    typer.echo(home.root_key().public.keyid)
    console.next_step(f"ddm-coord enroll --coordinator {folder} ENROLMENT_FILE, once for each site")


@app.command(rich_help_panel=SETUP)
def enroll(
    request: Annotated[
        Path, typer.Argument(help="The site's enrolment.dsse.json.", dir_okay=False)
    ],
    coordinator: CoordinatorOption = Path(),
    key: Annotated[
        str | None, typer.Option(help="The site's key as its people read it out; compared.")
    ] = None,
) -> None:
    """Accept a site's request to take part; it takes effect with the next publish.

    Example: ddm-coord enroll hospital-a.dsse.json --key ed25519:77ab…
    """
    from coordinator import members
    from coordinator.folder import CoordinatorFolder
    from ddm_fed.signing import VerifyKey

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        accepted = members.enroll(home, request, expected_keyid=key)
    console.say(
        f"enrolled `{accepted.site}` with the key {VerifyKey.from_hex(accepted.public_key).keyid}"
    )
    if key is None:
        console.say("compare that key with the site's people before you publish")
    console.next_step(f"ddm-coord publish --coordinator {coordinator} PLAN.toml")


@app.command(rich_help_panel=SETUP)
def publish(
    plan: Annotated[Path, typer.Argument(help="The plan people wrote, plan.toml.", dir_okay=False)],
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Check and sign the plan and the roster, and put both into the published folder.

    Example: ddm-coord publish plan.toml
    """
    from coordinator import members
    from coordinator.admission import admitted_bundles, current_members
    from coordinator.folder import CoordinatorFolder
    from ddm_fed.records import read_plan_toml

    home = CoordinatorFolder.open(coordinator)
    try:
        text = plan.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{plan} cannot be read: {error}") from None
    with home.changing():
        published = members.publish(home, read_plan_toml(text, name=plan.name))
    state = "new" if published.roster_is_new else "unchanged"
    console.say(
        f"published plan {published.plan_sha256[:16]}… and roster {published.roster.version} "
        f"({state}): {', '.join(site.name for site in published.roster.sites)}"
    )
    trust = home.trust()
    earlier = len(admitted_bundles(home, trust)) - len(current_members(home, trust))
    if earlier:
        console.say(
            f"{earlier} admitted submissions are of an earlier plan or replaced by newer ones; a "
            "site takes part in this plan once it has trained under it"
        )
    console.next_step(f"send {home.published} to every site; it holds nothing secret")


@app.command(rich_help_panel=WORK)
def status(coordinator: CoordinatorOption = Path(), as_json: JsonOption = False) -> None:
    """Show who is enrolled, what arrived, what was admitted or refused, and what comes next.

    Example: ddm-coord status
    """
    from coordinator.folder import CoordinatorFolder
    from coordinator.status import site_states

    home = CoordinatorFolder.open(coordinator)
    report = site_states(home)
    if as_json:
        console.show_json(report)
        return
    console.show_table(
        f"{home.settings.federation}: sites",
        ["site", "state", "sequence", "router epsilon", "waiting for"],
        [
            [str(row[name]) for name in ("site", "state", "sequence", "epsilon", "waiting_for")]
            for row in report["sites"]
        ],
    )
    if report["refused"]:
        console.show_table(
            "Refused",
            ["when", "arrival", "code", "reason"],
            [
                [row["at"], row["arrival"][:16], row["code"], row["message"]]
                for row in report["refused"]
            ],
        )


@app.command(rich_help_panel=WORK)
def verify(
    target: Annotated[
        Path | None,
        typer.Argument(
            help="An ensemble, or one bundle. Without it, everything in the inbox is verified and "
            "admitted, or refused and set aside."
        ),
    ] = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    published: Annotated[
        Path | None, typer.Option(help="Published folder, to verify one bundle offline.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify and admit what arrived; or verify an ensemble or a bundle, offline, as anyone can.

    Examples: ddm-coord verify · ddm-coord verify ensemble --root ed25519:3b6a… ·
    ddm-coord verify bundle --root ed25519:3b6a… --published published
    """
    if target is None:
        _verify_inbox(coordinator, as_json)
        return
    from ddm_fed.assembly import STATEMENT_FILE, verify_ensemble
    from ddm_fed.bundle import verify_bundle
    from ddm_fed.published import read_published
    from ddm_fed.records import now

    root_keyid = _pinned_root(root, coordinator)
    size = size_below(target)
    with console.moving_bytes(f"verifying {target.name}", size) as advance:
        if (target / STATEMENT_FILE).exists():
            verified = verify_ensemble(target, root_keyid, advance=advance)
            bundles, kind = verified.bundles, f"ensemble of {verified.record.federation}"
        elif published is None and not (coordinator / "coordinator.toml").exists():
            raise StateError(
                f"{target} is not an ensemble, and a bundle needs its plan and roster",
                hint="add --published FOLDER to verify a single bundle",
            )
        else:
            trust = read_published(published or coordinator / "published", root_keyid)
            bundles, kind = (verify_bundle(target, trust, now(), advance=advance),), "bundle"
    if as_json:
        console.show_json(
            {
                "verified": kind,
                "root": root_keyid,
                "members": [
                    {
                        "site": bundle.site,
                        "submission_sha256": bundle.payload_sha256,
                        "router_epsilon": bundle.submission.privacy.releases_epsilon,
                        "expert_is_private": bundle.submission.privacy.expert_is_private,
                        "files": bundle.sha256,
                    }
                    for bundle in bundles
                ],
            }
        )
        return
    console.show_table(
        f"Verified: {kind}, down from root key {root_keyid[:24]}…",
        ["site", "submission", "expert SHA-256", "router epsilon", "expert"],
        [
            [
                bundle.site,
                bundle.payload_sha256[:16] + "…",
                bundle.sha256["expert.safetensors"][:16] + "…",
                bundle.submission.privacy.releases_epsilon,
                "private" if bundle.submission.privacy.expert_is_private else "not private",
            ]
            for bundle in bundles
        ],
    )


def _verify_inbox(coordinator: Path, as_json: bool) -> None:
    from coordinator.admission import admit_arrivals
    from coordinator.folder import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    bar = console.moving_bytes("verifying the inbox", size_below(home.incoming))
    with home.changing(), bar as advance:
        verdicts = admit_arrivals(home, home.trust(), advance=advance)
    refused = [verdict for verdict in verdicts if verdict.error is not None]
    if as_json:
        console.show_json(
            [
                {
                    "arrival": verdict.name,
                    "site": verdict.admitted.submission.site if verdict.admitted else None,
                    "admitted": verdict.admitted is not None,
                    "code": verdict.error.code if verdict.error else None,
                    "reason": verdict.error.message if verdict.error else None,
                }
                for verdict in verdicts
            ]
        )
    elif verdicts:
        console.show_table(
            "Arrivals",
            ["arrival", "site", "verdict"],
            [
                [
                    verdict.name[:16] + "…",
                    verdict.admitted.submission.site if verdict.admitted else "unknown",
                    "admitted" if verdict.error is None else f"refused: {verdict.error.code}",
                ]
                for verdict in verdicts
            ],
        )
    else:
        console.say(f"nothing new in {home.incoming}")
    for verdict in refused:
        if verdict.error is not None:
            console.show_error(verdict.error)
    if refused:
        console.say(f"refused bundles are kept in {home.refused}")
        raise typer.Exit(1)
    console.next_step(f"ddm-coord assemble --coordinator {coordinator} ENSEMBLE_FOLDER")


@app.command(rich_help_panel=WORK)
def assemble(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    coordinator: CoordinatorOption = Path(),
    router: Annotated[
        str | None, typer.Option(help="prior or mixture; by default what the plan says.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this site out. May be given several times.")
    ] = None,
) -> None:
    """Put the admitted experts together as a signed folder anyone can verify and sample.

    Example: ddm-coord assemble ensemble
    """
    from coordinator import assemble as assembling
    from coordinator.folder import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    kind = _router(router)
    with home.changing():
        members = assembling.choose_members(home, without or ())
        total = 2 * sum(size_below(item.bundle) for item in members.values())
        with console.moving_bytes("assembling", total) as advance:
            assembling.assemble(home, target, router=kind, without=without or (), advance=advance)
    console.say(f"{target} is a signed ensemble of {', '.join(sorted(members))}")
    root = home.root_key().public.keyid
    console.next_step(
        f"ddm-coord verify {target} --root {root}",
        f"ddm-coord sample {target} --root {root} --out samples",
    )


@app.command(rich_help_panel=USE)
def sample(
    ensemble: Annotated[Path, typer.Argument(help="The ensemble's folder.", file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for samples.npz, grid.png, samples.json.")],
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    count: Annotated[int, typer.Option(help="Number of samples.", min=1)] = 64,
    strategy: Annotated[
        str, typer.Option(help="sticky (exact shares, one expert a call), full, or top-K.")
    ] = "sticky",
    router: Annotated[
        str | None, typer.Option(help="prior or mixture; by default what it was assembled with.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Solver steps.", min=1)] = 50,
    solver: Annotated[str, typer.Option(help="euler, midpoint or heun.")] = "heun",
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0,
    label: Annotated[
        str | None, typer.Option("--class", help="Class name, for a plan with classes.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.", min=1)] = 256,
) -> None:
    """Verify an ensemble, then draw images from it.

    Example: ddm-coord sample ensemble --root ed25519:3b6a… --count 100 --out samples
    """
    from coordinator.drawing import DrawOptions, draw
    from ddm_fed.ensemble import Strategy
    from ddm_fed.flows import Solver

    try:
        chosen = Strategy.parse(strategy)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if solver not in get_args(Solver):
        raise typer.BadParameter(f"--solver is one of {', '.join(get_args(Solver))}")
    options = DrawOptions(
        count=count,
        strategy=chosen,
        router=_router(router),
        steps=steps,
        solver=cast(Solver, solver),
        seed=seed,
        label=label,
        batch_size=batch_size,
    )
    with console.counting(f"sampling {strategy}", count, "samples") as update:
        summary = draw(ensemble, _pinned_root(root, coordinator), out, options, update=update)
    console.say(f"{count} samples in {out}, for example {out / 'grid.png'}")
    if summary["site_counts"] is not None:
        console.say(f"drawn from {summary['site_counts']}")


def _router(name: str | None) -> RouterName | None:
    if name is None or name in get_args(RouterName):
        return cast(RouterName | None, name)
    raise typer.BadParameter(f"--router is one of {', '.join(get_args(RouterName))}")


def _pinned_root(root: str | None, coordinator: Path) -> str:
    """Returns the fingerprint to trust: the one given, or that of our own coordinator folder."""
    if root is not None:
        if re.fullmatch(r"ed25519:[0-9a-f]{64}", root) is None:
            raise typer.BadParameter("--root is ed25519: and 64 lower-case hex digits")
        return root
    if not (coordinator / "coordinator.toml").exists():
        raise StateError(
            "no root key is pinned, so nothing can be verified",
            hint="add --root ed25519:… as the coordinator's people told you, or --coordinator if "
            "you are the coordinator",
        )
    from coordinator.folder import CoordinatorFolder

    return CoordinatorFolder.open(coordinator).root_key().public.keyid
