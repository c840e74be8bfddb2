"""The roster: who takes part in a federation, with which keys. Signed by its root keys.

Rosters form a chain under the rules TUF has for its root role: each names the digest of the one
before it, counts one higher, and is signed by enough root keys of both. The digest of the first is
what everybody pins.

A key never leaves the roster. When it may no longer sign, the roster says from which size of the
transparency log on: positions in the log decide, because clocks can be set back.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from ddm_fed.records.base import Count, LogSize, Moment, Name, PublicKeyHex, Record, RootPin, Sha256

Role = Literal["site", "dpo"]
Require = tuple[Literal["site"]] | tuple[Literal["site"], Literal["dpo"]]
ExportKeyHex = Annotated[str, StringConstraints(pattern=r"^04[0-9a-f]{128}$")]
MAX_ROOT_KEYS = 12
MAX_CERTIFICATES = 4  # two are enough for a rotation
MAX_CERTIFICATE_CHARACTERS = 1368  # of base64: 1 KiB of DER, twice what an honest one has


def _one_spelling(text: str) -> str:
    try:
        same = base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except binascii.Error:
        same = False
    if not same:
        raise ValueError("it is not canonical base64")
    return text


# Base64 of a DER certificate. What it says is checked where it enters a roster.
Certificate = Annotated[
    str,
    StringConstraints(min_length=4, max_length=MAX_CERTIFICATE_CHARACTERS),
    AfterValidator(_one_spelling),
]
Certificates = Annotated[tuple[Certificate, ...], Field(max_length=MAX_CERTIFICATES)]


class RangedKey(Record):
    """A key, and the part of the log in which it may sign.

    It signs at positions from `from_log_size` to before `revoked_at_log_size`. What it signed from
    `compromised_since_log_size` on was perhaps not signed by its owner, and counts no longer.
    """

    public_key: PublicKeyHex
    from_log_size: LogSize
    revoked_at_log_size: LogSize | None = None
    compromised_since_log_size: LogSize | None = None

    @model_validator(mode="after")
    def _range_has_an_order(self) -> Self:
        if self.revoked_at_log_size is None:
            if self.compromised_since_log_size is not None:
                raise ValueError("a compromised key has to be revoked too")
        elif self.revoked_at_log_size < self.from_log_size:
            raise ValueError("a key is revoked before it begins")
        return self

    @property
    def is_active(self) -> bool:
        """Whether the key may sign what comes next."""
        return self.revoked_at_log_size is None

    def may_sign_at(self, position: int | None) -> bool:
        """Returns whether a signature at `position` of the log counts; None means the present."""
        if position is None:
            return self.is_active
        return self.was_active_at(position) and not self.is_compromised_at(position)

    def is_compromised_at(self, position: int) -> bool:
        """Returns whether a signature at `position` may be a thief's."""
        since = self.compromised_since_log_size
        return since is not None and position >= since

    def is_revoked_at(self, position: int) -> bool:
        """Returns whether the key's range ends exactly at `position`."""
        return self.revoked_at_log_size == position

    def was_active_at(self, position: int) -> bool:
        """Returns whether `position` lies in its range, compromised or not."""
        end = self.revoked_at_log_size
        return position >= self.from_log_size and (end is None or position < end)


class SiteKey(RangedKey):
    """A key of a site: its own, or its data-protection officer's."""

    role: Role


class SitePolicy(Record):
    """Whose signatures a submission of the site needs, from this size of the log on."""

    require: Require
    from_log_size: LogSize


class RosterSite(Record):
    """A member: its keys, present and past, and whose signatures it asks for.

    `certificates` are those it connects with now. They say who is connected, not who signed, so
    unlike keys they come and go.
    """

    name: Name
    enrolled_at: Moment
    policies: Annotated[tuple[SitePolicy, ...], Field(min_length=1, max_length=16)]
    keys: Annotated[tuple[SiteKey, ...], Field(min_length=1, max_length=64)]
    certificates: Certificates = ()

    @model_validator(mode="after")
    def _policies_rise(self) -> Self:
        sizes = [policy.from_log_size for policy in self.policies]
        if sizes != sorted(sizes):  # of two at one size the later counts
            raise ValueError("policies are not in the order of the log")
        roles = {key.role for key in self.keys}
        if any(not roles.issuperset(policy.require) for policy in self.policies):
            raise ValueError("a policy asks for a key the site does not have")
        return self

    def require_at(self, position: int | None) -> Require:
        """Returns the roles that have to sign at `position` of the log; None is the present."""
        held = [
            policy
            for policy in self.policies
            if position is None or policy.from_log_size <= position
        ]
        return (held or self.policies)[-1 if held else 0].require

    @property
    def is_active(self) -> bool:
        """Whether every key that a submission needs now can sign."""
        active = {key.role for key in self.keys if key.is_active}
        return active.issuperset(self.require_at(None))


class RootRole(Record):
    """The keys that sign rosters, and how many of them it takes."""

    keys: Annotated[tuple[PublicKeyHex, ...], Field(min_length=1, max_length=MAX_ROOT_KEYS)]
    threshold: Annotated[int, Field(ge=1, le=MAX_ROOT_KEYS)]

    @model_validator(mode="after")
    def _threshold_can_be_met(self) -> Self:
        if len(set(self.keys)) != len(self.keys):
            raise ValueError("a root key is listed twice")
        if self.threshold > len(self.keys):
            raise ValueError(f"{self.threshold} of {len(self.keys)} root keys can never sign")
        return self


class Roster(Record):
    """One link of the chain of rosters of a federation.

    `server_certificates` are those the coordinator serves with.
    """

    format: Literal[1] = 1
    federation: Name
    version: Count
    previous_sha256: Sha256 | None
    issued_at: Moment
    expires_at: Moment
    root: RootRole
    coordinator: Annotated[tuple[RangedKey, ...], Field(min_length=1, max_length=64)]
    export_key: ExportKeyHex | None = None
    server_certificates: Certificates = ()
    sites: Annotated[tuple[RosterSite, ...], Field(max_length=1000)]

    @model_validator(mode="after")
    def _names_and_keys_are_distinct(self) -> Self:
        names = [site.name for site in self.sites]
        keys = [*self.root.keys, *(key.public_key for key in self.ranged_keys())]
        if len(set(names)) != len(names):
            raise ValueError("a site is listed twice")
        if len(set(keys)) != len(keys):
            raise ValueError("a key is listed twice")
        certificates = list(self.certificates())
        if len(set(certificates)) != len(certificates):
            raise ValueError("a certificate is listed twice")
        if sum(key.is_active for key in self.coordinator) != 1:
            raise ValueError("exactly one coordinator key is active at a time")
        if (self.version == 1) != (self.previous_sha256 is None):
            raise ValueError("version 1 has no previous roster, and every later one has")
        if self.expires_at <= self.issued_at:
            raise ValueError("it expires before it is issued")
        return self

    def ranged_keys(self) -> Iterator[RangedKey]:
        """Yields every key with a range: the coordinator's, then those of the sites."""
        yield from self.coordinator
        for site in self.sites:
            yield from site.keys

    def certificates(self) -> Iterator[str]:
        """Yields every certificate: the coordinator's, then those of the sites."""
        yield from self.server_certificates
        for site in self.sites:
            yield from site.certificates

    def site(self, name: str) -> RosterSite | None:
        """Returns the member called `name`, or None."""
        return next((site for site in self.sites if site.name == name), None)

    @property
    def coordinator_key(self) -> str:
        """The active coordinator key."""
        return next(key.public_key for key in self.coordinator if key.is_active)


class RequestedKey(Record):
    """A key a site brings, for one of its roles."""

    role: Role
    public_key: PublicKeyHex


class EnrolmentRequest(Record):
    """A site's wish to join, or to change its keys. Signed with every key it brings.

    `replaces` names the present keys it retires; one of the site's present keys signs as well, or
    the coordinator has to be told by people that they are lost. A request that brings no key only
    adds a certificate, and the site's present key signs it.
    """

    format: Literal[1] = 1
    site: Name
    root: RootPin
    require: Require
    keys: Annotated[tuple[RequestedKey, ...], Field(max_length=8)]
    replaces: Annotated[tuple[PublicKeyHex, ...], Field(max_length=8)] = ()
    certificate: Certificate | None = None
    requested_at: Moment

    @model_validator(mode="after")
    def _keys_are_distinct(self) -> Self:
        keys = [key.public_key for key in self.keys]
        if len({*keys, *self.replaces}) != len(keys) + len(self.replaces):
            raise ValueError("a key is named twice")
        if not self.keys and (self.certificate is None or self.replaces):
            raise ValueError("it brings no key, so it can only add a certificate")
        return self
