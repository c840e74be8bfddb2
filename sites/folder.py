"""The folder of a site on disk, and the one process at a time that may change it.

site.toml                 who we are, whom we trust, what we are willing to spend
keys/site.pem             the signing key; never leaves
enrolment.dsse.json       what the coordinator needs to enrol us
ledger.jsonl              everything ever released, append-only
private/PLAN/             checkpoint, expert, release in the making; never leaves
outbox/draft/DIGEST/      a signed bundle nobody has reviewed
outbox/reviews/DIGEST.json  what a person saw before releasing it
outbox/released/DIGEST/   what a mover may send: the only place it may read
receipts/DIGEST.dsse.json the coordinator's proof that it was admitted
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ddm_fed.files import write_atomically
from ddm_fed.home import Home, read_settings, require_new
from ddm_fed.records import (
    EnrolmentRequest,
    KeyId,
    Name,
    Positive,
    Record,
    now,
)
from ddm_fed.signing import ENROLMENT_PAYLOAD, SigningKey, seal


class SiteSettings(Record):
    """`site.toml`: the site's own facts and its own limit, whatever a plan may allow."""

    name: Name
    root_keyid: KeyId
    max_epsilon: Positive


@dataclass(frozen=True)
class SiteFolder(Home):
    """An initialised site."""

    path: Path
    settings: SiteSettings

    @classmethod
    def create(cls, path: Path, settings: SiteSettings) -> Self:
        """Makes the folder, its key and its enrolment request; changes nothing that exists.

        Raises:
            StateError: `path` is a site already.
        """
        require_new(path, "site.toml")
        for folder in ("keys", "private", "outbox/draft", "outbox/reviews", "outbox/released"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        (path / "receipts").mkdir(exist_ok=True)
        for folder in ("keys", "private"):
            (path / folder).chmod(0o700)
        site = cls(path, settings)
        key_file = path / "keys" / "site.pem"
        if not key_file.exists():  # a killed `init` may have left one: keep it
            SigningKey.generate().write(key_file)
        request = EnrolmentRequest(
            site=settings.name,
            public_key=site.key().public.hex,
            root_keyid=settings.root_keyid,
            requested_at=now(),
        )
        write_atomically(
            path / "enrolment.dsse.json", seal(request.to_json(), ENROLMENT_PAYLOAD, [site.key()])
        )
        # last, because its presence says that the folder is complete
        write_atomically(path / "site.toml", _toml(settings).encode())
        return site

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the site in `path`.

        Raises:
            StateError: `path` is not a site, or its settings are not valid.
        """
        hint = "run `ddm-site init` first, or name the folder with --site"
        return cls(path, read_settings(path / "site.toml", SiteSettings, hint=hint))

    def key(self) -> SigningKey:
        """Returns the site's signing key."""
        return SigningKey.read(self.path / "keys" / "site.pem")

    def work(self, plan_sha256: str) -> Path:
        """Returns the private folder of a plan, made if it is not there."""
        folder = self.path / "private" / plan_sha256[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def drafts(self) -> Path:
        """Signed bundles nobody has reviewed."""
        return self.path / "outbox" / "draft"

    @property
    def reviews(self) -> Path:
        """What a person saw before releasing a bundle."""
        return self.path / "outbox" / "reviews"

    @property
    def released(self) -> Path:
        """Bundles that may leave."""
        return self.path / "outbox" / "released"

    @property
    def receipts(self) -> Path:
        """The coordinator's receipts."""
        return self.path / "receipts"


def _toml(settings: SiteSettings) -> str:
    return (
        "# Written by `ddm-site init`. `max_epsilon` is this site's own limit: it holds over all\n"
        "# plans together, whatever a plan allows.\n"
        f'name = "{settings.name}"\n'
        f'root_keyid = "{settings.root_keyid}"\n'
        f'max_epsilon = "{settings.max_epsilon}"\n'
    )
