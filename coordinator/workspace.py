"""The folder of a coordinator on disk, and the one process at a time that may change it.

coordinator.toml          the federation's name, and the digest everybody pins
keys/                     root*.pem sign rosters; coordinator*.pem the rest; export.pem for others;
                          tls*.pem serve, each with its certificate tls*.crt
enrolled/                 the requests that were accepted, as evidence
requests/                 requests that came over a network and wait for people
pending/                  a roster that waits for signatures of root keys
published/                plan, rosters and log, for everybody; made again from the rest if lost
inbox/incoming/           where transports put bundles; nothing here is trusted
inbox/partial/            bundles on their way over a network; see `coordinator.inbox.upload`
inbox/receipts/           signed receipts, for the sites to fetch
store/blobs/SHA256        admitted weights, by digest; private, read-only
store/manifests/SHA256    admitted manifests, by the digest of their payload
log/                      the transparency log: what is admitted is what has a leaf here
audit.jsonl               what was done, admitted and refused; append-only, chained by digest
refused/                  bundles that were refused
evidence/                 manifests that prove that a site told two stories
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from ddm_fed.errors import StateError
from ddm_fed.records import (
    Name,
    RangedKey,
    Record,
    RootPin,
    RootRole,
    Roster,
    now,
)
from ddm_fed.signing import (
    ExportKey,
    SigningKey,
    TlsKey,
    find_key,
    find_tls_key,
    new_key,
    newest_tls_key,
)
from ddm_fed.storage.blob_store import BlobStore
from ddm_fed.storage.files import write_atomically
from ddm_fed.storage.workspace import Home, read_settings, require_new, write_settings
from ddm_fed.trust import RosterChain, Trust, pin_of
from ddm_fed.trust.published import PLAN_FILE, read_chain, read_published, roster_files

ROSTER_DAYS = 365
EXPORT_KEY = "export.pem"


class CoordinatorSettings(Record):
    """`coordinator.toml`."""

    federation: Name
    root: RootPin


@dataclass(frozen=True)
class CoordinatorFolder(Home):
    """An initialised coordinator.

    Example:
        >>> home = CoordinatorFolder.create(folder / "consortium", "digits")
        >>> home.settings.federation, home.settings.root[:7]
        ('digits', 'sha256:')
        >>> CoordinatorFolder.create(folder / "consortium", "digits")
        Traceback (most recent call last):
        ddm_fed.errors.StateError: ...
    """

    path: Path
    settings: CoordinatorSettings

    @classmethod
    def create(
        cls, path: Path, federation: str, root_keys: Sequence[str] = (), threshold: int = 1
    ) -> Self:
        """Makes the folder, its keys and the first roster; changes nothing that exists.

        Args:
            path: The folder to make.
            federation: Its name.
            root_keys: Public keys of the institutions that sign rosters; without any, this folder
                holds the only root key.
            threshold: How many root keys it takes.

        Raises:
            StateError: `path` is a coordinator already.
        """
        require_new(path, "coordinator.toml")
        # before anything is made: a bad name or threshold leaves no folder behind
        CoordinatorSettings(federation=federation, root=pin_of(b""))
        RootRole(keys=tuple(root_keys) or ("0" * 64,), threshold=threshold)
        for folder in (
            *("keys", "enrolled", "requests", "pending", "published", "refused", "evidence", "log"),
            *("store/blobs", "store/manifests", "inbox/incoming", "inbox/receipts"),
        ):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("keys", "store", "log"):
            (path / folder).chmod(0o700)
        keys = path / "keys"
        if not root_keys:
            root_keys = [_keep_or_make(keys, "root").public.hex]
        export = keys / EXPORT_KEY
        if not export.exists():  # a killed `init` may have left it, or the others
            ExportKey.generate().write(export)
        tls = newest_tls_key(keys)
        if tls is None:
            tls = TlsKey.for_coordinator()
            tls.write(keys)
        issued_at = now()
        roster = Roster(
            federation=federation,
            version=1,
            previous_sha256=None,
            issued_at=issued_at,
            expires_at=issued_at + timedelta(days=ROSTER_DAYS),
            root=RootRole(keys=tuple(root_keys), threshold=threshold),
            coordinator=(
                RangedKey(
                    public_key=_keep_or_make(keys, "coordinator").public.hex, from_log_size=0
                ),
            ),
            export_key=ExportKey.read(export).public_hex,
            server_certificates=(tls.certificate,),
            sites=(),
        )
        write_atomically(path / "pending" / "roster-0001.json", roster.to_json())
        settings = CoordinatorSettings(federation=federation, root=pin_of(roster.to_json()))
        # last, because its presence says that the folder is complete
        heading = "Written by `ddm-coord init`. `root` is the digest of the first roster."
        write_settings(path / "coordinator.toml", settings, heading=heading)
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the coordinator in `path`.

        Raises:
            StateError: `path` is not a coordinator, or its settings are not valid.
        """
        hint = "run `ddm-coord init` first, or name the folder with --coordinator"
        return cls(path, read_settings(path / "coordinator.toml", CoordinatorSettings, hint=hint))

    def chain(self) -> RosterChain:
        """Returns the published rosters, verified like anyone would.

        Raises:
            StateError: not even the first roster has the signatures it needs.
        """
        if not roster_files(self.published):
            raise StateError(
                "roster 1 still waits for signatures of the root keys",
                hint="`ddm-coord roster show` says whose; they sign it with `ddm-coord roster "
                "sign`, and `ddm-coord roster merge` takes their signatures",
            )
        return read_chain(self.published, self.settings.root)

    def trust(self) -> Trust:
        """Returns the published plan and rosters, verified like anyone would.

        Raises:
            StateError: nothing is published yet.
        """
        if roster_files(self.published) and (self.published / PLAN_FILE).exists():
            return read_published(self.published, self.settings.root)
        self.chain()  # what is wrong with the rosters is said first
        raise StateError("no plan is published yet", hint="run `ddm-coord publish PLAN.toml`")

    def key(self, chain: RosterChain) -> SigningKey:
        """Returns the active key that signs plans, receipts, checkpoints and ensembles.

        Raises:
            KeyFileError: this folder does not hold it.
        """
        return find_key(self.keys, "coordinator", chain.current.coordinator_key)

    def tls(self, chain: RosterChain) -> TlsKey:
        """Returns the key with which to serve: the oldest here that the current roster lists.

        A site knows the certificates of the newest roster it has seen. Served with a new one at
        once, it could not connect to fetch the roster that lists it.

        Raises:
            StateError: there is none.
        """
        listed = chain.current.server_certificates
        key = find_tls_key(self.keys, listed, newest=False)
        if key is None:
            raise StateError(
                f"none of the {len(listed)} server certificates of roster "
                f"{chain.current.version} has its key in {self.keys}",
                hint="make one with `ddm-coord roster rotate --server-certificate`, or restore "
                "tls.pem and tls.crt from backup",
            )
        return key

    @property
    def keys(self) -> Path:
        """Private keys."""
        return self.path / "keys"

    @property
    def enrolled(self) -> Path:
        """Accepted enrolment requests."""
        return self.path / "enrolled"

    @property
    def requests(self) -> Path:
        """Requests that came over a network and wait for people."""
        return self.path / "requests"

    @property
    def pending(self) -> Path:
        """A roster that waits for signatures."""
        return self.path / "pending"

    @property
    def published(self) -> Path:
        """Plan, rosters and log, for everybody."""
        return self.path / "published"

    @property
    def incoming(self) -> Path:
        """Where transports put bundles."""
        return self.path / "inbox" / "incoming"

    @property
    def partial(self) -> Path:
        """Bundles on their way; made if it is not there."""
        folder = self.path / "inbox" / "partial"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    @property
    def receipts(self) -> Path:
        """Receipts, for the sites to fetch."""
        return self.path / "inbox" / "receipts"

    @property
    def blobs(self) -> BlobStore:
        """Admitted weights."""
        return BlobStore(self.path / "store" / "blobs")

    @property
    def manifests(self) -> Path:
        """Admitted manifests."""
        return self.path / "store" / "manifests"

    def manifest(self, payload_sha256: str) -> Path:
        """Returns where the manifest of this payload lies, or would lie."""
        return self.manifests / f"{payload_sha256}.dsse.json"

    @property
    def log(self) -> Path:
        """The transparency log."""
        return self.path / "log"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.path / "audit.jsonl"

    @property
    def refused(self) -> Path:
        """Refused bundles."""
        return self.path / "refused"

    @property
    def evidence(self) -> Path:
        """Proofs that a site told two stories."""
        return self.path / "evidence"


def _keep_or_make(keys: Path, name: str) -> SigningKey:
    file = keys / f"{name}.pem"
    return SigningKey.read(file) if file.exists() else new_key(keys, name)
