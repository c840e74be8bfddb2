"""`ddm-coord`: what a consortium runs. Heavy libraries are imported inside commands only."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything can import flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import typer.core

from coordinator.cli import (
    evaluate,
    reference,
    removable_medium,
    roster,
    sample,
    serve,
    status,
    verify,
    web,
)
from coordinator.cli import (
    plan as cli_plan,
)
from coordinator.cli import (
    router as cli_router,
)
from coordinator.cli.options import CoordinatorOption, RouterName, router_name
from ddm_fed import __version__, console
from ddm_fed.storage.files import size_below

if TYPE_CHECKING:
    from coordinator.inbox.admission import Known
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.ensemble.folder import BuiltRouterFile

app = typer.Typer(
    name="ddm-coord",
    no_args_is_help=True,
    rich_markup_mode="rich",
    suggest_commands=False,  # click does, since 8.5
    pretty_exceptions_enable=False,
    help="""Bring the experts of several sites together, and prove what came from whom.

Everything that arrives is refused unless every signature, digest and policy holds.
verify, audit and sample work for outsiders too: they need
the ensemble's folder and the federation's fingerprint, nothing else.""",
    epilog="""Example: ddm-coord init consortium --federation digits, then roster add, publish,
verify, assemble, sample""",
)
SETUP, WORK, USE = "Set up", "Admit and assemble", "Use an ensemble"

app.add_typer(roster.app, rich_help_panel=SETUP)
app.add_typer(cli_plan.app, rich_help_panel=SETUP)
app.add_typer(cli_router.app, rich_help_panel=WORK)
app.command(rich_help_panel=WORK)(verify.verify)
app.command("import", rich_help_panel=WORK)(removable_medium.import_)
app.command(rich_help_panel=WORK)(reference.reference)
app.command(rich_help_panel=WORK)(status.status)
app.command(rich_help_panel=WORK)(web.web)
app.command(rich_help_panel=WORK)(serve.serve)
app.command(rich_help_panel=USE)(verify.audit)
app.command(rich_help_panel=USE)(sample.sample)
app.command(rich_help_panel=USE)(evaluate.evaluate)


def main() -> None:
    """Runs `ddm-coord`; errors end with exit status 1, wrong usage with 2."""
    typer.core.HAS_RICH = console.has_room_for_tables()
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
    root_key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key file of an institution that is to sign rosters; give all of them. "
            "Without any, this folder holds the one root key."
        ),
    ] = None,
    threshold: Annotated[int, typer.Option(help="How many root keys it takes.", min=1)] = 1,
) -> None:
    """Make a coordinator: its folder, its keys, and the first roster, whose digest everybody pins.

    Examples: ddm-coord init consortium --federation digits · ddm-coord init consortium
    --federation digits --root-key a.pub --root-key b.pub --root-key c.pub --threshold 2
    """
    from pydantic import ValidationError

    from coordinator.roster import proposals
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.records import Roster, explain
    from ddm_fed.signing import PASSPHRASE_VARIABLE, is_encrypted, key_files, read_public

    holders = [read_public(file).hex for file in root_key or ()]
    try:
        home = CoordinatorFolder.create(folder, federation, holders, threshold)
    except ValidationError as error:
        raise typer.BadParameter(explain(error, Roster)) from None
    with home.changing():
        proposal = proposals.complete_genesis(home)
    console.say("Fingerprint of the federation; tell it to every site by telephone or on paper:")
    typer.echo(home.settings.root)
    if not is_encrypted(key_files(home.keys, "coordinator")[0]):
        console.say(f"the key files are not encrypted: set {PASSPHRASE_VARIABLE} before `init`")
    if proposal.published:
        words = ("ddm-coord", "roster", "add", "--coordinator", folder, "ENROLMENT_FILES")
        console.next_step(console.typed(*words))
        return
    console.say(f"roster 1 waits for {' and '.join(proposal.missing)}")
    merge = console.typed("ddm-coord", "roster", "merge", "--coordinator", folder, "SIGNED_FILE")
    console.next_step(
        f"send {proposal.file} to the holders; each runs ddm-coord roster sign FILE --key KEY.pem",
        f"{merge}, for each",
    )


@app.command(rich_help_panel=SETUP)
def keygen(
    file: Annotated[Path, typer.Argument(help="Key file to make, for example root-a.pem.")],
) -> None:
    """Make a root key of your own, to sign rosters for your institution.

    Example: ddm-coord keygen root-a.pem
    """
    from ddm_fed.signing import PASSPHRASE_VARIABLE, is_encrypted, write_key

    key = write_key(file)
    typer.echo(key.public.keyid)
    console.say(f"{file} is your key, and stays with you; send {file.with_suffix('.pub')}")
    if not is_encrypted(file):
        console.say(f"it is not encrypted: set {PASSPHRASE_VARIABLE} before you make a key")


@app.command(rich_help_panel=SETUP)
def publish(
    plan: Annotated[Path, typer.Argument(help="The plan people wrote, plan.toml.", dir_okay=False)],
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Check and sign the plan, and put it into the published folder.

    Example: ddm-coord publish plan.toml
    """
    from coordinator.inbox.admission import current_members, recover
    from coordinator.roster import proposals
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.records import read_plan_file
    from ddm_fed.trust.published import PLAN_FILE

    home = CoordinatorFolder.open(coordinator)
    try:
        written = read_plan_file(plan)
    except OSError as error:
        raise typer.BadParameter(f"{plan} cannot be read: {error.strerror}") from None
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
            f"it takes the place of the plan {before[:16]}…: what sites made under that and have "
            "not sent is not taken any more, and the epsilon they spent on it stays spent"
        )
    if earlier:
        console.say(
            f"{earlier} admitted submissions are of an earlier plan, removed, or replaced by newer "
            "ones; a site takes part in this plan once it has trained under it"
        )
    console.next_step(f"send {home.published} to every site; it holds nothing secret")


@app.command(rich_help_panel=WORK)
def assemble(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    coordinator: CoordinatorOption = Path(),
    router: Annotated[
        str | None,
        typer.Option(
            help="prior, mixture or heads, or a folder that `router build` made; by default what "
            "the plan says."
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this site out. May be given several times.")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(help="Take this site's count, though it jumped against its earlier bundle."),
    ] = None,
) -> None:
    """Put the admitted experts together as a signed folder anyone can verify and sample.

    Example: ddm-coord assemble ensemble
    """
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        _assemble(home, target, _chosen_router(router), without or [], accept or [])


def _chosen_router(router: str | None) -> "RouterName | BuiltRouterFile | None":
    if router is not None and Path(router).is_dir():
        from ddm_fed.ensemble.router_folder import read_built

        return read_built(Path(router))
    kind = router_name(router)
    if kind in ("replay", "hybrid"):
        raise typer.BadParameter(
            f"a {kind} router is made of samples: give the folder that `ddm-coord router build "
            f"--kind {kind}` made"
        )
    return kind


def _assemble(
    home: "CoordinatorFolder",
    target: Path,
    router: "RouterName | BuiltRouterFile | None",
    without: list[str],
    accept: list[str],
    known: "Known | None" = None,
) -> None:
    from coordinator.ensembles import assemble as assembling
    from coordinator.ensembles.image_counts import sentence
    from coordinator.inbox.admission import begin

    assembling.require_free(target)
    chosen = assembling.choose(home, known or begin(home), without)
    for item in chosen.counted:
        if item.jumped or item.weighs < item.share - 1e-9:
            console.say(f"WARNING: {sentence(item)}")
    total = 2 * sum(
        size_below(home.blobs.path(digest))
        for item in chosen.members.values()
        for digest in item.sha256.values()
    )
    with console.moving_bytes("assembling", total) as advance:
        verified = assembling.write_chosen(
            home, chosen, target, router=router, accept=accept, advance=advance
        )
    names = ", ".join(member.site for member in verified.record.members)
    console.say(f"{target} is a signed ensemble of {names}")
    root = home.settings.root
    console.next_step(
        console.typed("ddm-coord", "verify", target, "--root", root),
        console.typed("ddm-coord", "sample", target, "--root", root, "--out", "samples"),
    )


@app.command(rich_help_panel=WORK)
def remove(
    site: Annotated[str, typer.Argument(help="The site that leaves.")],
    out: Annotated[Path, typer.Option(help="Folder to make: the ensemble without the site.")],
    reason: Annotated[str, typer.Option(help="Why, for everybody who reads the log.")],
    coordinator: CoordinatorOption = Path(),
    delete_weights: Annotated[
        bool,
        typer.Option("--delete-weights", help="Delete its weights here too. This is final."),
    ] = False,
) -> None:
    """End the use of a site's expert: a signed removal in the log, and an ensemble without it.

    Experts are trained in isolation and the routers hold one row for each site, so the new ensemble
    is, bit for bit, the one that would have been assembled without the site.

    Example: ddm-coord remove hospital-b --reason "consent withdrawn" --out ensemble-2
    """
    from coordinator.ensembles import assemble as assembling
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        removed = assembling.remove(home, site, reason=reason, delete_weights=delete_weights)
        console.say(
            f"`{site}` is removed: entry {removed.removal.log_index} of the log says so, signed"
        )
        for digest, folder in removed.stale.items():
            console.say(f"STALE: ensemble {digest[:16]}…, assembled in {folder}")
        if removed.stale:
            console.say(
                "whatever was made from these is stale as well: samples, students distilled from "
                "them, routers trained on their samples. Make it again from the new ensemble; "
                "`ddm-coord verify ENSEMBLE --published PUBLISHED` finds copies elsewhere"
            )
        _assemble(home, out, None, [], [], removed.known)


@app.command(rich_help_panel=USE)
def export(
    ensemble: Annotated[Path, typer.Argument(help="The ensemble's folder.", file_okay=False)],
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Add model.sig, in OpenSSF Model Signing v1.0 format, so that other tools verify the folder.

    The ensemble is verified first; a stale one is refused. The key is P-256 and named in the
    roster; its public half is written beside the ensemble. Example: ddm-coord export ensemble
    """
    from coordinator.cli.open_ensemble import open_current
    from coordinator.workspace import EXPORT_KEY, CoordinatorFolder
    from ddm_fed.ensemble.model_signing import SIGNATURE_FILE, sign_folder, verify_folder
    from ddm_fed.signing import ExportKey
    from ddm_fed.storage.files import write_atomically

    home = CoordinatorFolder.open(coordinator)
    with console.moving_bytes(f"signing {ensemble.name}", 3 * size_below(ensemble)) as advance:
        open_current(ensemble, home.settings.root, coordinator, advance=advance)
        key = ExportKey.read(home.keys / EXPORT_KEY)
        sign_folder(ensemble, key, advance=advance)
        verify_folder(ensemble, key.public_pem, advance=advance)
    public = ensemble.with_name(f"{ensemble.name}-export-key.pem")
    write_atomically(public, key.public_pem)
    console.say(f"wrote {ensemble / SIGNATURE_FILE} and the public key {public}")
    words = ("python", "-m", "model_signing", "verify", "key", ensemble)
    keys = ("--signature", ensemble / SIGNATURE_FILE, "--public_key", public)
    console.next_step(console.typed(*words, *keys))
