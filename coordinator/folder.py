"""The folder of a coordinator on disk, and the one process at a time that may change it.

coordinator.toml          the federation's name
keys/root.pem             signs rosters; its fingerprint is what everybody pins
keys/coordinator.pem      signs plans, receipts and ensembles
enrolled/SITE.dsse.json   the enrolment requests that were accepted
published/                plan and rosters, for everybody
inbox/incoming/           where movers put bundles; nothing here is trusted
inbox/receipts/           signed receipts, for the sites to fetch
store/DIGEST/             admitted bundles and their receipts; private, read-only
refused/                  bundles that were refused, and refusals.jsonl
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ddm_fed.errors import StateError
from ddm_fed.files import write_atomically
from ddm_fed.home import Home, read_settings, require_new
from ddm_fed.published import PLAN_FILE, read_published
from ddm_fed.records import Name, Record
from ddm_fed.signing import SigningKey, Trust


class CoordinatorSettings(Record):
    """`coordinator.toml`."""

    federation: Name


@dataclass(frozen=True)
class CoordinatorFolder(Home):
    """An initialised coordinator."""

    path: Path
    settings: CoordinatorSettings

    @classmethod
    def create(cls, path: Path, settings: CoordinatorSettings) -> Self:
        """Makes the folder and its two keys; changes nothing that exists.

        Raises:
            StateError: `path` is a coordinator already.
        """
        require_new(path, "coordinator.toml")
        for folder in ("keys", "enrolled", "published", "store", "refused"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("incoming", "receipts"):
            (path / "inbox" / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("keys", "store"):
            (path / folder).chmod(0o700)
        for key in ("root", "coordinator"):
            if not (path / "keys" / f"{key}.pem").exists():  # a killed `init` may have left one
                SigningKey.generate().write(path / "keys" / f"{key}.pem")
        # last, because its presence says that the folder is complete
        text = f'# Written by `ddm-coord init`.\nfederation = "{settings.federation}"\n'
        write_atomically(path / "coordinator.toml", text.encode())
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the coordinator in `path`.

        Raises:
            StateError: `path` is not a coordinator, or its settings are not valid.
        """
        hint = "run `ddm-coord init` first, or name the folder with --coordinator"
        return cls(path, read_settings(path / "coordinator.toml", CoordinatorSettings, hint=hint))

    def root_key(self) -> SigningKey:
        """Returns the key that signs rosters."""
        return SigningKey.read(self.path / "keys" / "root.pem")

    def key(self) -> SigningKey:
        """Returns the key that signs plans, receipts and ensembles."""
        return SigningKey.read(self.path / "keys" / "coordinator.pem")

    def trust(self) -> Trust:
        """Returns the published plan and rosters, verified like anyone would.

        Raises:
            StateError: nothing is published yet.
        """
        if not (self.published / PLAN_FILE).exists():
            raise StateError("no plan is published yet", hint="run `ddm-coord publish PLAN.toml`")
        return read_published(self.published, self.root_key().public.keyid)

    @property
    def enrolled(self) -> Path:
        """Accepted enrolment requests."""
        return self.path / "enrolled"

    @property
    def published(self) -> Path:
        """Plan and rosters, for everybody."""
        return self.path / "published"

    @property
    def incoming(self) -> Path:
        """Where movers put bundles."""
        return self.path / "inbox" / "incoming"

    @property
    def receipts(self) -> Path:
        """Receipts, for the sites to fetch."""
        return self.path / "inbox" / "receipts"

    @property
    def store(self) -> Path:
        """Admitted bundles."""
        return self.path / "store"

    @property
    def refused(self) -> Path:
        """Refused bundles."""
        return self.path / "refused"
