"""The folder of a site on disk, and the one process at a time that may change it.

site.toml                 who we are, whom we trust, what we spend, who has to agree
keys/                     site.pem signs, tls.pem connects; site.pub, tls.crt and perhaps dpo.pub
                          are public
enrolment.dsse.json       what the coordinator needs to enrol us
ledger.jsonl              everything ever released, append-only; a copy of it lies in keys/
private/images/           decoded images, by what they were decoded from; may be removed
private/latents/          the same as the autoencoders of plans see them; may be removed
private/directions/       the same as the embedders of plans see them; may be removed
private/PLAN/             checkpoint, expert, release in the making; never leaves
seen/                     the newest rosters and log this site was shown, to notice a second history
outbox/draft/DIGEST/      a signed bundle nobody has reviewed
outbox/reviews/DIGEST/    what a person saw before releasing it, signed; what a DPO countersigns
outbox/released/DIGEST/   what a transport may send: the only place it may read
receipts/DIGEST.dsse.json the coordinator's proof that it was admitted
"""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Self

from ddm_fed.errors import RevokedKeyError, StateError
from ddm_fed.records import (
    EnrolmentRequest,
    Name,
    NonNegative,
    Positive,
    PrivacyUnit,
    PrivatePart,
    PublicKeyHex,
    Record,
    RequestedKey,
    Require,
    Role,
    RootPin,
    RosterSite,
    now,
)
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    SigningKey,
    TlsKey,
    find_tls_key,
    key_files,
    new_key,
    newest_tls_key,
    public_of,
    seal,
    site_dns_name,
)
from ddm_fed.storage.files import write_atomically
from ddm_fed.storage.workspace import Home, read_settings, require_new, write_settings

SETTINGS_HEADING = """\
Written by `ddm-site init`. These are the site's own limits, which no plan can lower:
epsilon over all plans together, the delta it is stated at, what must carry noise, and
what epsilon protects at least. With `dpo_key`, nothing leaves without the
data-protection officer's signature. docs/privacy.md explains each."""
ENROLMENT_FILE = "enrolment.dsse.json"
ROTATION_FILE = "rotation.dsse.json"


class SiteSettings(Record):
    """`site.toml`: the site's own facts and its own limits, whatever plan and roster may allow.

    Attributes:
        name: Of the site.
        root: The pinned federation.
        max_epsilon: Most it spends, over all plans together.
        max_delta: Largest delta at which it lets epsilon be stated.
        must_be_private: What it trains or releases with noise only.
        least_noise_multiplier: Smallest noise of a step of DP-SGD, in clip norms.
        unit: Least that epsilon has to protect: "patient" refuses plans that count images.
        keep_weights: Whether trained weights never leave: the site answers for its expert instead.
        share_audit: Whether an audit's figures on planted canaries may leave with a submission.
        dpo_key: Who has to agree to everything that leaves.
    """

    name: Name
    root: RootPin
    max_epsilon: Positive
    max_delta: Positive = Decimal("0.001")
    must_be_private: tuple[PrivatePart, ...] = ("router",)
    least_noise_multiplier: NonNegative = Decimal(0)
    unit: PrivacyUnit = "image"
    keep_weights: bool = False
    share_audit: bool = False
    dpo_key: PublicKeyHex | None = None

    @property
    def require(self) -> Require:
        """Whose signatures this site asks for before anything leaves."""
        return ("site",) if self.dpo_key is None else ("site", "dpo")


@dataclass(frozen=True)
class SiteFolder(Home):
    """An initialised site.

    Example:
        >>> from decimal import Decimal
        >>> root = "sha256:" + "ab" * 32  # as people read it out
        >>> settings = SiteSettings(name="hospital-a", root=root, max_epsilon=Decimal(3))
        >>> site = SiteFolder.create(folder / "hospital-a", settings)
        >>> (site.path / "site.toml").exists(), (site.path / "enrolment.dsse.json").exists()
        (True, True)
        >>> SiteFolder.open(site.path).settings.require
        ('site',)
    """

    path: Path
    settings: SiteSettings

    @classmethod
    def create(cls, path: Path, settings: SiteSettings) -> Self:
        """Makes the folder, its keys and its enrolment request; changes nothing that exists.

        Raises:
            StateError: `path` is a site already.
        """
        require_new(path, "site.toml")
        for folder in ("keys", "private", "outbox/draft", "outbox/reviews", "outbox/released"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("receipts", "seen"):
            (path / folder).mkdir(exist_ok=True)
        for folder in ("keys", "private"):
            (path / folder).chmod(0o700)
        site = cls(path, settings)
        if not key_files(site.keys, "site"):  # a killed `init` may have left one: keep it
            new_key(site.keys, "site")
        if settings.dpo_key == site.newest_key().public.hex:
            raise StateError(
                "the data-protection officer's key is the site's own",
                hint="the officer makes a key of their own with `ddm-site keygen`",
            )
        tls = site.newest_tls()
        if tls is None or tls.details.name != site_dns_name(settings.name):
            tls = site.new_tls()
        key = site.newest_key()
        write_request(site, path / ENROLMENT_FILE, key, [key], certificate=tls.certificate)
        # last, because its presence says that the folder is complete
        write_site_settings(site)
        return site

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the site in `path`.

        Raises:
            StateError: `path` is not a site, or its settings are not valid.
        """
        hint = "run `ddm-site init` first, or name the folder with --site"
        return cls(path, read_settings(path / "site.toml", SiteSettings, hint=hint))

    def key(self, member: RosterSite) -> SigningKey:
        """Returns the site's signing key that is active in the roster.

        Raises:
            RevokedKeyError: every key of the site was revoked.
            StateError: this folder holds no such key.
        """
        active = {key.public_key for key in member.keys if key.role == "site" and key.is_active}
        for file in reversed(key_files(self.keys, "site")):
            if public_of(file).hex in active:
                key = SigningKey.read(file)
                if key.public.hex in active:  # the .pub beside it may be another's
                    return key
        self._require_not_revoked(member)
        raise StateError(
            f"`{self.settings.name}` is enrolled with another key than those in {self.keys}",
            hint="ask the coordinator for a new published folder; if the key was replaced, send "
            "the request of `ddm-site rotate`",
        )

    def _require_not_revoked(self, member: RosterSite) -> None:
        own = [key for key in member.keys if key.role == "site"]
        if any(key.is_active for key in own):
            return
        ends = [key.revoked_at_log_size for key in own if key.revoked_at_log_size is not None]
        stolen = any(key.compromised_since_log_size is not None for key in own)
        raise RevokedKeyError(
            f"every key of `{self.settings.name}` was revoked, the last at size {max(ends)} of the "
            f"log{' because it may have been stolen' if stolen else ''}: nothing it signs counts",
            hint="ask the coordinator's people why. To take part again: `ddm-site rotate --lost`, "
            "read the new key to them in person, and they run `ddm-coord roster rotate REQUEST "
            "--lost`",
        )

    def newest_key(self) -> SigningKey:
        """Returns the signing key that was made last, enrolled or not."""
        return SigningKey.read(key_files(self.keys, "site")[-1])

    def tls(self, member: RosterSite) -> TlsKey:
        """Returns the key with which to connect: the newest here that the roster lists.

        Raises:
            RevokedKeyError: every key of the site was revoked.
            StateError: there is none.
        """
        key = find_tls_key(self.keys, member.certificates)
        if key is None:
            self._require_not_revoked(member)
            raise StateError(
                f"none of the {len(member.certificates)} certificates that the roster lists for "
                f"`{self.settings.name}` has its key in {self.keys}",
                hint="fetch the newest published folder; if it stays so, send the coordinator the "
                "request of `ddm-site rotate --certificate`",
            )
        return key

    def newest_tls(self) -> TlsKey | None:
        """Returns the TLS key that was made last, in the roster or not; None if there is none."""
        return newest_tls_key(self.keys)

    def new_tls(self) -> TlsKey:
        """Returns a new TLS key, written beside the others."""
        key = TlsKey.for_site(self.settings.name)
        key.write(self.keys)
        return key

    def work(self, plan_sha256: str) -> Path:
        """Returns the private folder of a plan, made if it is not there."""
        folder = self.path / "private" / plan_sha256[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def latents(self) -> Path:
        """Images as the autoencoders of plans see them; as private as the images."""
        return self.path / "private" / "latents"

    @property
    def directions(self) -> Path:
        """Images as the embedders of plans see them; as private as the images."""
        return self.path / "private" / "directions"

    @property
    def keys(self) -> Path:
        """Private keys; they never leave."""
        return self.path / "keys"

    @property
    def seen(self) -> Path:
        """The newest rosters and log this site was shown."""
        return self.path / "seen"

    @property
    def images(self) -> Path:
        """Images that were read one by one, decoded once: private like the images themselves."""
        return self.path / "private" / "images"

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


def write_request(
    site: SiteFolder,
    file: Path,
    key: SigningKey,
    signers: list[SigningKey],
    *,
    replaces: tuple[str, ...] = (),
    known: frozenset[str] = frozenset(),
    certificate: str | None = None,
) -> EnrolmentRequest:
    """Writes the site's wish to be enrolled with `key`, or to have it in place of `replaces`.

    Args:
        site: Who asks.
        file: Where the request goes.
        key: The key it brings, beside its officer's.
        signers: Who signs it here; an officer signs with `ddm-site approve`.
        replaces: Present keys that it retires.
        known: Keys the roster has already; they are not brought again.
        certificate: A certificate it brings.
    """
    brought: list[tuple[Role, str]] = [("site", key.public.hex)]
    if site.settings.dpo_key is not None:
        brought.append(("dpo", site.settings.dpo_key))
    request = EnrolmentRequest(
        site=site.settings.name,
        root=site.settings.root,
        require=site.settings.require,
        keys=tuple(
            RequestedKey(role=role, public_key=public)
            for role, public in brought
            if public not in known
        ),
        replaces=replaces,
        certificate=certificate,
        requested_at=now(),
    )
    write_atomically(file, seal(request.to_json(), ENROLMENT_PAYLOAD, signers))
    return request


def write_site_settings(site: SiteFolder) -> None:
    """Writes `site.toml`; what people wrote into it besides stays."""
    write_settings(site.path / "site.toml", site.settings, heading=SETTINGS_HEADING)
