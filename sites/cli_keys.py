"""Keys of a site and of its data-protection officer: made, approved with, replaced."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from sites.options import JsonOption, PlanOption, SiteOption, open_published

if TYPE_CHECKING:
    from ddm_fed.records import EgressRecord


def keygen(
    file: Annotated[Path, typer.Argument(help="Key file to make, for example dpo.pem.")],
) -> None:
    """Make a key of your own, for example as data-protection officer. Encrypt it: see the hint.

    Example: ddm-site keygen dpo.pem
    """
    from ddm_fed.signing import PASSPHRASE_VARIABLE, is_encrypted, write_key

    key = write_key(file)
    typer.echo(key.public.keyid)
    console.say(f"{file} is your key, and stays with you; {file.with_suffix('.pub')} is public")
    if not is_encrypted(file):
        console.say(f"it is not encrypted: set {PASSPHRASE_VARIABLE} before you make a key")


def approve(
    target: Annotated[
        Path,
        typer.Argument(
            help="The folder of a review (outbox/reviews/DIGEST), or a request to be enrolled.",
            exists=True,
        ),
    ],
    key: Annotated[Path, typer.Option(help="Your key, a .pem file.", dir_okay=False)],
    as_json: JsonOption = False,
) -> None:
    """Countersign what a site wants to send, or its request to be enrolled, on any machine.

    What is signed stays as it is; only your signature is added. Example: ddm-site approve
    outbox/reviews/3f2a… --key dpo.pem
    """
    from ddm_fed.signing import SigningKey
    from sites.review import approve_request, approve_review

    signing = SigningKey.read(key)
    if target.is_dir():
        egress = approve_review(target, signing)
        if as_json:
            console.show_json(egress.model_dump(mode="json"))
            return
        show_egress(egress)
        console.say(f"approved with {signing.public.keyid}; bring {target} back to the site")
        console.next_step("ddm-site release --site SITE --plan PUBLISHED")
        return
    request = approve_request(target, signing)
    if as_json:
        console.show_json(request.model_dump(mode="json"))
        return
    console.say(
        f"signed the request of `{request.site}`, whose submissions need "
        f"{' and '.join(request.require)}; send it to the coordinator"
    )


def show_egress(egress: "EgressRecord") -> None:
    """Prints what would leave, and what it costs."""
    console.show_table(
        f"Would leave {egress.site} (submission {egress.submission_sha256[:16]}…)",
        ["file", "bytes", "SHA-256"],
        [[file.name, f"{file.size_bytes:,}", file.sha256[:16] + "…"] for file in egress.files],
    )
    console.say(
        f"all that was ever released with noise: epsilon {egress.releases_epsilon} at delta "
        f"{egress.delta}, {egress.ledger_entries} ledger entries; needs the signatures of "
        f"{' and '.join(egress.require)}"
    )


def rotate(
    plan: PlanOption,
    site: SiteOption = Path(),
    dpo: Annotated[
        Path | None,
        typer.Option(help="Public key file of a new data-protection officer.", dir_okay=False),
    ] = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="The present key is lost: do not sign with it.")
    ] = False,
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate", help="Only a new certificate to connect with; the keys stay."
        ),
    ] = False,
) -> None:
    """Make a new key or certificate, or name a new officer, and write the request for it.

    Examples: ddm-site rotate --site hospital-a --plan published · ddm-site rotate --certificate
    --site hospital-a --plan published
    """
    from ddm_fed.signing import read_public
    from sites import rotation

    if certificate and (lost or dpo is not None):
        raise typer.BadParameter("--certificate changes no key: give neither --lost nor --dpo")
    home, published = open_published(site, plan)
    with home.changing():
        if certificate:
            file = rotation.add_certificate(home, published.trust)
        elif dpo is None:
            file = rotation.replace_site_key(home, published.trust, lost=lost)
        else:
            file = rotation.replace_officer(home, published.trust, read_public(dpo))
    console.say(f"wrote {file}")
    if dpo is not None:
        console.say("the new officer signs it with `ddm-site approve` first")
    words = ("ddm-coord", "roster", "rotate", file.name, *(("--lost",) if lost else ()))
    console.next_step(f"the coordinator runs {console.typed(*words)}")
