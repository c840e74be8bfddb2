"""`ddm-site approve`: the data-protection officer's signature."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.errors import StateError
from sites.cli.review import show_review

if TYPE_CHECKING:
    from ddm_fed.signing import SigningKey


def approve(
    target: Annotated[
        Path,
        typer.Argument(
            help="The folder of a review (outbox/reviews/DIGEST), or a request to be enrolled.",
            exists=True,
        ),
    ],
    key: Annotated[Path, typer.Option(help="Your key, a .pem file.", dir_okay=False)],
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Agree without being asked, for use without a terminal."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a site wants to send, or its request to be enrolled; then ask, and countersign it.

    Works on any machine. It only adds your signature, and only if the site names your key as its
    officer's. Example: ddm-site approve outbox/reviews/3f2a… --key dpo.pem
    """
    from ddm_fed.signing import SigningKey

    signing = SigningKey.read(key)
    if target.is_dir():
        _approve_review(target, signing, yes=yes, as_json=as_json)
    else:
        _approve_request(target, signing, yes=yes, as_json=as_json)


def _approve_review(folder: Path, key: "SigningKey", *, yes: bool, as_json: bool) -> None:
    from ddm_fed.privacy import describe_privacy
    from sites.outbox.review import approve_review, open_for_approval
    from sites.outbox.review_page import PAGE_FILE

    found = open_for_approval(folder, key.public)
    if not as_json:
        show_review(found.egress, found.privacy)
    if not found.page_is_ours:
        console.say(
            f"WARNING: {PAGE_FILE} in {folder} is not what this version writes for this manifest. "
            "Believe what is shown here, and ask the site which version wrote the page."
        )
    _require_agreement(f"May this leave `{found.egress.site}`?", yes=yes)
    approve_review(folder, key, found.egress)
    if as_json:
        told = {"privacy": describe_privacy(found.privacy), "approved_with": key.public.keyid}
        console.show_json(found.egress.model_dump(mode="json") | told)
        return
    console.say(f"approved with {key.public.keyid}; bring {folder} back to the site")
    console.next_step("ddm-site release --site SITE --plan PUBLISHED")


def _approve_request(file: Path, key: "SigningKey", *, yes: bool, as_json: bool) -> None:
    from ddm_fed.signing import VerifyKey
    from sites.outbox.review import approve_request, open_request

    request = open_request(file, key.public)
    if not as_json:
        console.show_table(
            f"`{request.site}` asks to be enrolled in the federation {request.root}",
            ["key of", "key"],
            [[item.role, VerifyKey.from_hex(item.public_key).keyid] for item in request.keys],
        )
        console.say(
            f"from then on its submissions need the signatures of {' and '.join(request.require)}"
        )
        for replaced in request.replaces:
            console.say(f"it retires the key {VerifyKey.from_hex(replaced).keyid}")
    _require_agreement(f"Sign the request of `{request.site}`?", yes=yes)
    approve_request(file, key, request)
    if as_json:
        console.show_json(request.model_dump(mode="json"))
        return
    console.say(
        f"signed the request of `{request.site}`, whose submissions need "
        f"{' and '.join(request.require)}; send it to the coordinator"
    )


def _require_agreement(question: str, *, yes: bool) -> None:
    """Asks a person.

    Raises:
        StateError: nobody can be asked, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise StateError(
            "nothing was signed: there is no terminal here to ask at",
            hint="read what is shown above; to agree to it, run the same command with --yes",
        )
    if not typer.confirm(question, err=True):
        raise StateError(
            "nothing was signed: the answer was no",
            hint="tell the site what must not leave; it can train or release something else",
        )
