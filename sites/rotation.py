"""New keys in place of old ones: the request that a coordinator turns into a roster."""

from dataclasses import replace
from pathlib import Path

from ddm_fed.errors import StateError
from ddm_fed.records import RosterSite
from ddm_fed.signing import VerifyKey, new_key
from ddm_fed.trust import Trust
from sites.outbox.stages import member_of
from sites.workspace import ROTATION_FILE, SiteFolder, write_request, write_site_settings


def replace_site_key(site: SiteFolder, trust: Trust, *, lost: bool) -> Path:
    """Makes a new signing key and writes the request; the old key works until the next roster.

    With a lost key the certificate is made anew as well: it lay in the same folder.

    Args:
        site: The site.
        trust: Its federation.
        lost: Do not sign with the present key: it is gone.
    """
    member = member_of(site, trust)
    active = [key for key in member.keys if key.is_active]
    present = [] if lost else [site.key(member)]
    newest = site.newest_key()
    listed = {key.public_key for key in member.keys}
    # asked again before the roster came: the new key is there already
    key = newest if newest.public.hex not in listed else new_key(site.keys, "site")
    file = site.path / ROTATION_FILE
    write_request(
        site,
        file,
        key,
        [key, *present],
        replaces=tuple(k.public_key for k in active if k.role == "site"),
        known=frozenset(k.public_key for k in active),
        certificate=_new_certificate(site, trust) if lost else None,
    )
    return file


def add_certificate(site: SiteFolder, trust: Trust) -> Path:
    """Makes a new certificate and writes the request; the present one works beside it."""
    member = member_of(site, trust)
    key = site.key(member)
    # nothing but the certificate, whatever else of the site's settings the roster does not say yet
    settings = site.settings.model_copy(update={"dpo_key": _officer_of(member)})
    file = site.path / ROTATION_FILE
    write_request(
        replace(site, settings=settings),
        file,
        key,
        [key],
        known=frozenset(k.public_key for k in member.keys),
        certificate=_new_certificate(site, trust),
    )
    return file


def _officer_of(member: RosterSite) -> str | None:
    if "dpo" not in member.require_at(None):
        return None
    return next(k.public_key for k in member.keys if k.is_active and k.role == "dpo")


def _new_certificate(site: SiteFolder, trust: Trust) -> str:
    newest = site.newest_tls()
    # asked again before the roster came: the new one is there already
    if newest is None or newest.certificate in trust.chain.all_certificates():
        newest = site.new_tls()
    return newest.certificate


def replace_officer(site: SiteFolder, trust: Trust, officer: VerifyKey) -> Path:
    """Names a new data-protection officer, in `site.toml` and in a request, signed by the site.

    From now on nothing leaves without the new officer's signature; until the next roster the old
    one has to sign too.

    Raises:
        StateError: that is the officer already.
    """
    member = member_of(site, trust)
    active = [key for key in member.keys if key.is_active]
    if officer.hex in {key.public_key for key in active}:
        raise StateError(
            f"{officer.keyid} is in the roster already", hint="make a new key with `keygen`"
        )
    renamed = replace(site, settings=site.settings.model_copy(update={"dpo_key": officer.hex}))
    file = site.path / ROTATION_FILE
    key = site.key(member)
    write_request(
        renamed,
        file,
        key,
        [key],
        replaces=tuple(k.public_key for k in active if k.role == "dpo"),
        known=frozenset(k.public_key for k in active),
    )
    write_site_settings(renamed)
    return file
