"""A medium that carries bundles out of a place without a network, and receipts back to it.

    incoming/DIGEST/            bundles, as in a coordinator's inbox
    DIGEST.sha256               what `sha256sum -c` compares them with
    README.txt                  for whoever finds the medium
    receipts/, published/       written by `ddm-coord import`

Bundles of several sites may travel on one medium.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddm_fed.errors import FileSetError, RefusedError, RollbackError, StateError
from ddm_fed.progress import Advance
from ddm_fed.records import MAX_DOCUMENT_BYTES, BundleState
from ddm_fed.remote import RemoteFolder, open_folder
from ddm_fed.storage.files import write_atomically
from ddm_fed.storage.output_folder import require_ours
from ddm_fed.trust import Trust
from ddm_fed.trust.published import PLAN_FILE, published_files, read_published
from sites.outbox.stages import find_bundles
from sites.published import look
from sites.transport.base import INBOX_MARKS
from sites.transport.remote_folder import RemoteFolderTransport
from sites.transport.submit import Submitted, keep_receipt, signed_statement, submit
from sites.workspace import SiteFolder

README_FILE = "README.txt"
README = """\
This folder carries bundles of DDM-Fed from sites without a network to their coordinator.
Each is signed: a change on the way is found, and refused. None holds an image.

incoming/       one folder for each bundle, as its site released it
*.sha256        digests of its files, beside it: sha256sum -c *.sha256
receipts/       the coordinator's signed receipts, once it has taken the bundles in
published/      what the coordinator published last: plan, rosters and log

1. At the site:         ddm-site export FOLDER --plan PUBLISHED
2. At the coordinator:  ddm-coord import FOLDER
3. At the site again:   ddm-site import FOLDER

Unmount the medium before you pull it out. A copy that is not complete is recognised and named;
run the same command again, and it continues from there. Please leave names and files as they are.
"""


@dataclass(frozen=True)
class Returned:
    """What a removable medium brought back.

    Attributes:
        admitted: Digests of bundles whose receipts it brought.
        waiting: Digests of released bundles that have none yet.
        published: Where the newest published folder lies now, if it brought one.
        older: Whether what it brought is older than what the site saw before, and was left alone.
        wrong: Receipts that do not hold, by the digest they were brought for; none of them is kept.
    """

    admitted: tuple[str, ...]
    waiting: tuple[str, ...]
    published: Path | None
    older: bool
    wrong: Mapping[str, RefusedError] = field(default_factory=dict)


def export(
    site: SiteFolder, trust: Trust, folder: Path, *, advance: Advance = lambda _: None
) -> list[Submitted]:
    """Writes released bundles to `folder`, which is made if it is not there.

    It goes on from where an earlier attempt came to. Needs the site's lock.

    Raises:
        StateError: nothing is released, or `folder` holds other things.
        MachineError: the medium is full, or may not be written.
        DigestError: a released file was damaged.
    """
    if not find_bundles(site.released):
        raise StateError("nothing is released", hint="run `ddm-site release` first")
    require_ours(
        folder,
        INBOX_MARKS,
        hint="name a folder of its own on the medium, which is made if it is not there",
    )
    (folder / "incoming").mkdir(parents=True, exist_ok=True)
    medium = open_folder(str(folder))
    medium.write(README_FILE, README.encode())
    found = submit(site, trust, RemoteFolderTransport(str(folder)), advance=advance)
    for item in found:
        if item.state in (BundleState.SENT, BundleState.WAITING):
            medium.write(f"{item.digest}.sha256", _sums(site, trust, item.digest))
    return found


def _sums(site: SiteFolder, trust: Trust, digest: str) -> bytes:
    statement = signed_statement(site.released / digest, trust)
    lines = [f"{item.digest.sha256}  incoming/{digest}/{item.name}\n" for item in statement.subject]
    return "".join(lines).encode()


def bring_back(site: SiteFolder, folder: Path) -> Returned:
    """Takes receipts and a newer published folder from a removable medium. Needs the site's lock.

    Nothing is kept that does not hold; one receipt that does not holds up no other.

    Raises:
        StateError: there is no such folder, it is none of ours, or this site has seen no plan yet.
        RefusedError: a published document does not hold.
    """
    medium = open_folder(str(folder))
    expected = ("published", "receipts", "incoming")
    if all(medium.kind_of(name) is None for name in expected):
        raise StateError(
            f"{folder} has none of the folders {', '.join(expected)}",
            hint="name the folder that `ddm-site export` and `ddm-coord import` wrote, not the "
            "medium it lies on",
        )
    published, older = None, False
    if medium.kind_of(f"published/{PLAN_FILE}") is not None:
        try:
            published = _take_published(site, medium, folder)
        except RollbackError:
            older = True
    trust = read_published(site.seen, site.settings.root)
    admitted: list[str] = []
    waiting: list[str] = []
    wrong: dict[str, RefusedError] = {}
    for bundle in find_bundles(site.released):
        digest = bundle.name
        kept = site.receipts / f"{digest}.dsse.json"
        try:
            receipt = medium.read(f"receipts/{digest}.dsse.json", MAX_DOCUMENT_BYTES)
            if receipt is not None:
                keep_receipt(site, trust, digest, receipt)
        except RefusedError as error:
            wrong[digest] = error
            continue
        (admitted if receipt is not None or kept.exists() else waiting).append(digest)
    return Returned(tuple(admitted), tuple(waiting), published, older, wrong)


def _take_published(site: SiteFolder, medium: RemoteFolder, folder: Path) -> Path:
    """Returns the site's own copy of the newest published folder."""
    if medium.kind_of("published") != "folder":
        raise FileSetError(
            f"`published` in {folder} is not a folder",
            hint="a link could lead anywhere: copy the folder that `ddm-coord import` wrote",
        )
    look(site, folder / "published")
    target = site.path / "published"
    target.mkdir(exist_ok=True)
    for name in published_files(site.seen):  # what was verified, not what lies on the medium
        with (site.seen / name).open("rb") as file:
            write_atomically(target / name, file.read())
    return target
