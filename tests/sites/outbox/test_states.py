"""One bundle that cannot go holds up no other: the real commands, from the outbox to the inbox."""

import json
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from commands import Ended, run
from federation import Federation, Json, flip, forge_manifest, random_images, train

from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE
from ddm_fed.records import now, today
from sites.outbox import stages
from sites.outbox.stages import find_bundles
from sites.workspace import SiteFolder

A = "hospital-a"


@pytest.fixture
def fed(copy_of) -> Federation:
    """hospital-a with one released bundle that is as it should be, and its coordinator."""
    return copy_of("released", A)


@pytest.fixture
def site(fed: Federation) -> SiteFolder:
    return fed.site(A)


def another(site: SiteFolder, sequence: int, **fields: object) -> Path:
    """Puts a bundle of this number and with these fields beside the released ones."""
    copy = Path(shutil.copytree(find_bundles(site.released)[0], site.released / "copy"))

    def edit(predicate: Json) -> None:
        predicate.update(sequence=sequence, **fields)

    digest = forge_manifest(copy, edit, site.newest_key())
    return copy.rename(site.released / digest)


def from_tomorrow() -> dict[str, str]:
    """What a manifest says that was signed while the clock was two days ahead.

    Shortly before midnight, one day ahead is within the minutes that clocks may differ by.
    """
    moment: datetime = today() + timedelta(days=2)
    return {
        "issued_at": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        "expires_at": f"{moment + timedelta(days=90):%Y-%m-%dT%H:%M:%SZ}",
    }


def submit(fed: Federation, *more: str) -> Ended:
    return run(
        "ddm-site",
        "submit",
        "--site",
        fed.path / A,
        "--plan",
        fed.published,
        "--to",
        fed.inbox,
        *more,
    )


def states(fed: Federation) -> list[str]:
    return [item["state"] for item in json.loads(submit(fed, "--json").out)]


def damage(bundle: Path) -> None:
    flip(bundle / EXPERT_FILE, -1)


def cut(bundle: Path) -> None:
    (bundle / ENVELOPE_FILE).write_bytes(b'{"payload"')


def lose(bundle: Path) -> None:
    (bundle / ENVELOPE_FILE).unlink()


def look_in(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


@pytest.mark.parametrize("harm", [damage, cut, lose, look_in])
def test_damaged_older_bundle_does_not_hold_up_the_others(fed: Federation, site: SiteFolder, harm):
    older = find_bundles(site.released)[0]
    newer = another(site, 2)
    harm(older)
    ended = submit(fed)
    assert ended.code == 1
    assert f"{older.name[:16]}… is damaged here and is not sent" in ended.err
    assert f"{newer.name[:16]}… sent" in ended.err
    assert "Traceback" not in ended.err
    assert [path.name for path in fed.home.incoming.iterdir()] == [newer.name]


def test_bundle_from_a_clock_a_day_ahead_does_not_hold_up_the_others(
    fed: Federation, site: SiteFolder
):
    good = find_bundles(site.released)[0]
    ahead = another(site, 2, **from_tomorrow())
    ended = submit(fed)
    assert ended.code == 1
    assert f"{ahead.name[:16]}… was signed while this machine's clock was ahead" in ended.err
    assert "`ddm-site train` again" in ended.err
    assert [path.name for path in fed.home.incoming.iterdir()] == [good.name]


def test_older_bundle_that_cannot_go_is_superseded_once_a_newer_one_is_admitted(
    fed: Federation, site: SiteFolder
):
    older = find_bundles(site.released)[0]
    another(site, 2)
    damage(older)
    assert states(fed) == ["damaged", "sent"]
    assert run("ddm-coord", "admit", "--coordinator", fed.home.path).code == 0
    ended = submit(fed)
    assert ended.code == 0, ended.err
    assert f"{older.name[:16]}… is not sent: a newer one was admitted" in ended.err


@pytest.mark.parametrize("way", ["damaged", "from the future"])
def test_train_signs_anew_what_cannot_go(fed: Federation, site: SiteFolder, way: str):
    bundle = find_bundles(site.released)[0]
    if way == "damaged":
        damage(bundle)
    else:
        another(site, 1, **from_tomorrow())
        shutil.rmtree(bundle)
    draft = train(site, fed.trust, random_images(0))
    assert draft.parent == site.drafts
    stages.review(site, fed.trust)
    newer = stages.release(site, fed.trust)
    assert states(fed)[-1] == "sent"
    assert [path.name for path in fed.home.incoming.iterdir()] == [newer.name]


def test_draft_signed_with_a_clock_ahead_is_signed_anew_and_never_reviewed(copy_of):
    fed = copy_of("drafted", A)
    site = fed.site(A)
    (old,) = find_bundles(site.drafts)
    digest = forge_manifest(old, lambda fields: fields.update(from_tomorrow()), site.newest_key())
    old = old.rename(site.drafts / digest)
    tomorrow = now().timestamp() + 86400
    os.utime(old / ENVELOPE_FILE, (tomorrow, tomorrow))
    new = train(site, fed.trust, random_images(0))
    assert new != old
    assert stages.review(site, fed.trust).bundle.payload_sha256 == new.name
    stages.release(site, fed.trust)
    ended = run("ddm-site", "review", "--site", site.path, "--plan", fed.published)
    assert "there is no draft to review" in ended.err  # and not the old one, which could not go


def test_receipt_that_does_not_hold_does_not_hold_up_the_others(fed: Federation, site: SiteFolder):
    first = find_bundles(site.released)[0]
    second = another(site, 2)
    medium = fed.path / "medium"
    exported = run("ddm-site", "export", medium, "--site", site.path, "--plan", fed.published)
    assert exported.code == 0, exported.err
    assert {path.name for path in (medium / "incoming").iterdir()} == {first.name, second.name}
    imported = run("ddm-coord", "import", medium, "--coordinator", fed.home.path)
    assert imported.code == 0, imported.out + imported.err
    flip(medium / "receipts" / f"{first.name}.dsse.json", 300)
    ended = run("ddm-site", "import", medium, "--site", site.path)
    assert ended.code == 1
    assert f"{second.name[:16]}… admitted" in ended.err
    assert [path.name for path in site.receipts.iterdir()] == [f"{second.name}.dsse.json"]
