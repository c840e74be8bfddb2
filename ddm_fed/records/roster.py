"""The roster: who takes part in a federation, with which keys. Signed by its root key.

Rosters form a chain: each names the digest of the one before it and counts one higher, so an
older roster cannot be passed off as the current one by anyone who holds a newer one.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ddm_fed.records.base import Count, KeyId, Moment, Name, PublicKeyHex, Record, Sha256


class RosterSite(Record):
    """A member, the key its submissions are signed with, and when it asked to join."""

    name: Name
    public_key: PublicKeyHex
    enrolled_at: Moment


class Roster(Record):
    """One link of the chain of rosters of a federation."""

    format: Literal[1] = 1
    federation: Name
    version: Count
    previous_sha256: Sha256 | None
    issued_at: Moment
    expires_at: Moment
    root_key: PublicKeyHex
    coordinator_key: PublicKeyHex
    sites: Annotated[tuple[RosterSite, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _names_and_keys_are_distinct(self) -> Self:
        names = [site.name for site in self.sites]
        keys = [site.public_key for site in self.sites] + [self.root_key, self.coordinator_key]
        if len(set(names)) != len(names):
            raise ValueError("a site is listed twice")
        if len(set(keys)) != len(keys):
            raise ValueError("a key is listed twice")
        if (self.version == 1) != (self.previous_sha256 is None):
            raise ValueError("version 1 has no previous roster, and every later one has")
        return self

    def site(self, name: str) -> RosterSite | None:
        """Returns the member called `name`, or None."""
        return next((site for site in self.sites if site.name == name), None)


class EnrolmentRequest(Record):
    """A site's wish to join, signed with the key it brings: proof that it holds that key."""

    format: Literal[1] = 1
    site: Name
    public_key: PublicKeyHex
    root_keyid: KeyId
    requested_at: Moment
