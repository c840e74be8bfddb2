"""Requests that came over a network: anybody may send one, only people turn it into a roster."""

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from federation import Federation, Json, create_federation, forge, snapshot

import sites.cli.main
from coordinator import journal
from coordinator.cli.main import main
from coordinator.roster import changes, proposals
from coordinator.roster import waiting as requests
from coordinator.roster.waiting import (
    MAX_REQUEST_BYTES,
    MAX_WAITING,
    drop_settled,
    find_request,
    take_request,
    waiting_requests,
)
from coordinator.status.report import site_states
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import (
    CountersignatureError,
    DdmFedError,
    MalformedError,
    PlanMismatchError,
    StateError,
    UnknownSignerError,
)
from ddm_fed.records import canonical_json
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    PLAN_PAYLOAD,
    SigningKey,
    TlsKey,
    add_signature,
    certificate_fingerprint,
    seal,
    write_key,
)
from sites import rotation
from sites.workspace import ENROLMENT_FILE, ROTATION_FILE, SiteFolder, SiteSettings

pytestmark = pytest.mark.slow

A, C = "hospital-a", "hospital-c"
MALLORY = SigningKey.from_seed(bytes([10] * 32))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Federation:
    """A federation of one site. Never changed."""
    return create_federation(tmp_path_factory.mktemp("small"), sites=(A,))


@pytest.fixture
def fed(small: Federation, scratch: Path) -> Federation:
    return small.copy(scratch / "fed", "consortium", A)


@pytest.fixture
def home(fed: Federation) -> CoordinatorFolder:
    return fed.home


def make_site(fed: Federation, name: str = C, folder: str | None = None, **changed: str):
    settings = fed.site(A).settings.model_copy(update={"name": name, **changed})
    return SiteFolder.create(fed.path / (folder or name), settings)


def request_of(site: SiteFolder) -> bytes:
    return (site.path / ENROLMENT_FILE).read_bytes()


def forged(site: SiteFolder, edit: Callable[[Json], None], *keys: SigningKey) -> bytes:
    forge(site.path / ENROLMENT_FILE, edit, *keys, kind=ENROLMENT_PAYLOAD)
    return request_of(site)


def kept(home: CoordinatorFolder) -> list[str]:
    return sorted(file.name for file in home.requests.iterdir())


def members_of(home: CoordinatorFolder) -> list[str]:
    return [site.name for site in home.chain().current.sites]


# Taken, once, and nothing else changes


def test_request_waits_and_changes_no_roster(fed: Federation, home: CoordinatorFolder):
    site = make_site(fed)
    before = snapshot(home.path)
    assert take_request(home, request_of(site)) == "waiting"
    [waiting] = waiting_requests(home)
    after = snapshot(home.path)
    assert after.pop(f"requests/{waiting.file.name}") == request_of(site)
    assert after == before
    tls = site.newest_tls()
    assert tls is not None
    assert (waiting.site, waiting.is_member) == (C, False)
    assert waiting.keyids == (site.newest_key().public.keyid,)
    assert waiting.certificate == tls.fingerprint == certificate_fingerprint(tls.certificate)


def test_same_request_again_is_kept_once(fed: Federation, home: CoordinatorFolder):
    site = make_site(fed)
    for data in (
        request_of(site),
        request_of(site),
        add_signature(request_of(site), ENROLMENT_PAYLOAD, MALLORY, what="x"),
    ):
        assert take_request(home, data) == "waiting"
    assert len(kept(home)) == 1


def test_request_of_a_member_that_is_fulfilled_is_not_kept(
    fed: Federation, home: CoordinatorFolder
):
    assert take_request(home, request_of(fed.site(A))) == "member"
    assert kept(home) == []


def test_request_for_a_certificate_waits_until_it_is_listed(
    fed: Federation, home: CoordinatorFolder
):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    assert take_request(home, file.read_bytes()) == "waiting"
    [waiting] = waiting_requests(home)
    assert (waiting.site, waiting.is_member, waiting.keyids) == (A, True, ())
    assert changes.rotate_site(home, waiting.file).published
    assert waiting_requests(home) == []
    assert take_request(home, file.read_bytes()) == "member"
    drop_settled(home)
    assert kept(home) == []


def test_request_for_new_keys_of_a_member_waits(fed: Federation, home: CoordinatorFolder):
    file = rotation.replace_site_key(fed.site(A), fed.trust, lost=False)
    assert take_request(home, file.read_bytes()) == "waiting"
    assert [item.is_member for item in waiting_requests(home)] == [True]


def test_folder_made_before_there_were_requests_takes_one(fed: Federation, home: CoordinatorFolder):
    home.requests.rmdir()
    assert waiting_requests(home) == []
    assert take_request(home, request_of(make_site(fed))) == "waiting"


# Refused


def test_request_for_another_federation_is_refused(fed: Federation, home: CoordinatorFolder):
    site = make_site(fed, root="sha256:" + "0" * 64)
    with pytest.raises(PlanMismatchError, match="`hospital-c` wants to join the federation of"):
        take_request(home, request_of(site))
    assert kept(home) == []


def tampered(data: bytes) -> bytes:
    envelope = json.loads(data)
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["certificate"] = TlsKey.for_site(C).certificate
    envelope["payload"] = base64.b64encode(canonical_json(payload)).decode()
    return canonical_json(envelope)


def test_request_altered_on_its_way_is_refused(fed: Federation, home: CoordinatorFolder):
    with pytest.raises(DdmFedError, match="the request carries a signature"):
        take_request(home, tampered(request_of(make_site(fed))))
    assert kept(home) == []


@pytest.mark.parametrize("size", [MAX_REQUEST_BYTES + 1, 1 << 24])
def test_request_larger_than_any_honest_one_is_refused_unread(home: CoordinatorFolder, size: int):
    with pytest.raises(MalformedError, match=f"has {size} bytes, at most {MAX_REQUEST_BYTES}"):
        take_request(home, b"[" * size)


@pytest.mark.parametrize("data", [b"", b"{}", b"a letter", b"\xff", b"[" * 60_000])
def test_bytes_that_are_no_request_are_refused(home: CoordinatorFolder, data: bytes):
    with pytest.raises(MalformedError):
        take_request(home, data)


def test_other_document_offered_as_a_request_is_refused(home: CoordinatorFolder):
    plan = (home.published / "plan.dsse.json").read_bytes()
    with pytest.raises(MalformedError, match="is of type"):
        take_request(home, plan)
    with pytest.raises(MalformedError, match="is not a valid EnrolmentRequest"):
        take_request(home, seal(b"{}", ENROLMENT_PAYLOAD, [MALLORY]))
    with pytest.raises(MalformedError, match="is of type"):
        take_request(home, seal(b"{}", PLAN_PAYLOAD, [MALLORY]))


@pytest.mark.parametrize("name", ["../hospital", "hospital/a", "", ".", "a" * 64, "Hospital"])
def test_name_that_would_leave_the_folder_is_refused(
    fed: Federation, home: CoordinatorFolder, name: str
):
    site = make_site(fed)
    data = forged(site, lambda fields: fields.update(site=name), site.newest_key())
    with pytest.raises(MalformedError, match="`site`"):
        take_request(home, data)


def test_request_under_the_name_of_a_member_by_a_stranger_is_refused(
    fed: Federation, home: CoordinatorFolder
):
    impostor = make_site(fed, name=A, folder="impostor")
    with pytest.raises(UnknownSignerError, match="signed by no present key of `hospital-a`"):
        take_request(home, request_of(impostor))


def test_rotation_without_a_present_key_has_to_be_brought_by_people(
    fed: Federation, home: CoordinatorFolder
):
    file = rotation.replace_site_key(fed.site(A), fed.trust, lost=True)
    with pytest.raises(UnknownSignerError, match="signed by no present key"):
        take_request(home, file.read_bytes())


def test_request_of_a_revoked_site_is_refused(fed: Federation, home: CoordinatorFolder):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    changes.revoke(home, A)
    for data in (file.read_bytes(), request_of(fed.site(A))):
        with pytest.raises(DdmFedError):
            take_request(home, data)
    assert kept(home) == []


def test_request_with_a_taken_key_is_refused(fed: Federation, home: CoordinatorFolder):
    data = forged(fed.site(A), lambda fields: fields.update(site=C, certificate=None), fed.key(A))
    with pytest.raises(StateError, match="the site key of `hospital-c` is taken, by `hospital-a`"):
        take_request(home, data)


def test_request_with_the_certificate_of_another_site_is_refused(
    fed: Federation, home: CoordinatorFolder
):
    theirs = home.chain().current.sites[0].certificates[0]
    site = make_site(fed)
    data = forged(site, lambda fields: fields.update(certificate=theirs), site.newest_key())
    with pytest.raises(PlanMismatchError, match="made out to `hospital-a"):
        take_request(home, data)


def test_request_whose_officer_has_not_signed_is_refused(fed: Federation, home: CoordinatorFolder):
    officer = write_key(fed.path / "officer.pem")
    site = make_site(fed, dpo_key=officer.public.hex)
    with pytest.raises(CountersignatureError, match="brings the dpo key"):
        take_request(home, request_of(site))
    complete = add_signature(request_of(site), ENROLMENT_PAYLOAD, officer, what="x")
    assert take_request(home, complete) == "waiting"


def numbered(fed: Federation, count: int) -> list[bytes]:
    """Returns valid requests under as many names, all by one sender."""
    site = make_site(fed)
    payload = json.loads(base64.b64decode(json.loads(request_of(site))["payload"]))
    payload["certificate"] = None
    return [
        seal(
            canonical_json(payload | {"site": f"flood-{index}"}),
            ENROLMENT_PAYLOAD,
            [site.newest_key()],
        )
        for index in range(count)
    ]


def test_flood_of_requests_is_kept_up_to_the_bound(fed: Federation, home: CoordinatorFolder):
    flood = numbered(fed, MAX_WAITING + 1)
    for data in flood[:-1]:
        assert take_request(home, data) == "waiting"
    before = kept(home)
    assert len(before) == MAX_WAITING
    with pytest.raises(StateError, match="100 requests wait already"):
        take_request(home, flood[-1])
    assert take_request(home, flood[0]) == "waiting"
    assert kept(home) == before
    requests.refuse(home, "flood-7")
    assert take_request(home, flood[-1]) == "waiting"
    assert len(kept(home)) == MAX_WAITING


def test_full_folder_makes_room_for_what_is_no_longer_to_be_decided(
    fed: Federation, home: CoordinatorFolder
):
    flood = numbered(fed, MAX_WAITING + 1)
    for data in flood[:-1]:
        take_request(home, data)
    damaged = home.requests / kept(home)[0]
    damaged.write_bytes(b"{}")
    assert take_request(home, flood[-1]) == "waiting"
    assert not damaged.exists()


def test_many_at_once_keep_to_the_bound(fed: Federation, home: CoordinatorFolder):
    def take(data: bytes) -> str:
        try:
            return take_request(home, data)
        except StateError:
            return "full"

    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(take, numbered(fed, MAX_WAITING + 5) * 2))
    assert len(kept(home)) == MAX_WAITING
    assert states.count("full") == 10


# People decide


@pytest.fixture
def coord(capsys, monkeypatch):
    """Runs `ddm-coord` in this process; returns its exit status, stdout and stderr."""
    for name in ("DDM_COORDINATOR", "DDM_FED_PASSPHRASE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(home: CoordinatorFolder, *arguments: str) -> tuple[int, str, str]:
        line = ["ddm-coord", *arguments, "--coordinator", str(home.path)]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


def test_waiting_request_is_shown_accepted_by_name_and_gone(
    fed: Federation, home: CoordinatorFolder, coord
):
    site = make_site(fed)
    take_request(home, request_of(site))
    keyid = site.newest_key().public.keyid
    status, shown, _ = coord(home, "status")
    assert status == 0
    assert keyid[:30] in shown  # a narrow table folds the rest
    assert "Requests that wait for you" in shown
    assert coord(home, "roster", "add", C, "--key", keyid)[0] == 0
    assert members_of(home) == [A, C]
    assert kept(home) == []
    status, shown, _ = coord(home, "roster", "show")
    assert certificate_fingerprint(home.chain().current.sites[1].certificates[0]) in shown
    assert certificate_fingerprint(home.chain().current.server_certificates[0]) in shown


def test_status_lists_what_waits_and_fills_in_no_key(fed: Federation, home: CoordinatorFolder):
    site = make_site(fed)
    take_request(home, request_of(site))
    take_request(home, rotation.add_certificate(fed.site(A), fed.trust).read_bytes())
    member, stranger = site_states(home).as_json()["requests"]
    assert (member["site"], member["member"], member["keyids"]) == (A, True, [])
    assert "`ddm-coord roster rotate hospital-a`" in member["waiting_for"]
    assert (stranger["site"], stranger["member"]) == (C, False)
    keyid = site.newest_key().public.keyid
    assert stranger["keyids"] == [keyid]
    assert stranger["certificate"].startswith("sha256:")
    assert "`ddm-coord roster add hospital-c --key …`" in stranger["waiting_for"]
    assert keyid not in stranger["waiting_for"]


def test_waiting_request_with_another_key_than_read_out_is_refused_and_stays(
    fed: Federation, home: CoordinatorFolder, coord
):
    take_request(home, request_of(make_site(fed)))
    status, _, err = coord(home, "roster", "add", C, "--key", MALLORY.public.keyid)
    assert status == 1
    assert "DDM204" in err
    assert members_of(home) == [A]
    assert len(kept(home)) == 1


def test_two_requests_under_one_name_are_told_apart(
    fed: Federation, home: CoordinatorFolder, coord
):
    honest, impostor = make_site(fed), make_site(fed, folder="impostor")
    for site in (honest, impostor):
        take_request(home, request_of(site))
    status, _, err = coord(home, "roster", "add", C)
    assert status == 1
    assert "2 requests of `hospital-c` wait" in err
    names = {item.keyids[0]: item.name for item in waiting_requests(home)}
    assert all(name in err for name in names.values())
    shown = site_states(home).as_json()["requests"]
    assert all(f"roster add {row['request']} " in row["waiting_for"] for row in shown)
    assert coord(home, "roster", "add", names[honest.newest_key().public.keyid])[0] == 0
    assert members_of(home) == [A, C]
    assert kept(home) == []  # the other one can no longer be accepted


def test_request_of_a_site_whose_name_begins_alike_is_another(
    fed: Federation, home: CoordinatorFolder
):
    for name in ("hospital", "hospital-c", "hospital-c-2"):
        take_request(home, request_of(make_site(fed, name=name)))
    found = {name: find_request(home, name) for name in ("hospital", "hospital-c", "hospital-c-2")}
    assert len(set(found.values())) == 3


def test_refused_request_is_gone_and_recorded(fed: Federation, home: CoordinatorFolder, coord):
    take_request(home, request_of(make_site(fed)))
    assert coord(home, "roster", "refuse", C)[0] == 0
    assert kept(home) == []
    assert members_of(home) == [A]
    assert journal.events(home)[-1]["event"] == "request-refused"
    status, _, err = coord(home, "roster", "refuse", C)
    assert status == 1
    assert "no request of a site called `hospital-c` waits" in err


def test_waiting_rotation_is_accepted_by_name(fed: Federation, home: CoordinatorFolder, coord):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    take_request(home, file.read_bytes())
    assert coord(home, "roster", "rotate", A)[0] == 0
    assert len(home.chain().current.sites[0].certificates) == 2
    assert kept(home) == []


def test_request_accepted_by_too_few_root_keys_waits_for_the_others(scratch: Path, coord):
    holder = write_key(scratch / "root-a.pem")
    home = CoordinatorFolder.create(scratch / "several", "test", [holder.public.hex])
    proposals.complete_genesis(home)
    with pytest.raises(StateError, match="roster 1 still waits"):
        take_request(home, b"{}")
    proposals.sign(home.pending / "roster-0001.json", holder)
    proposals.merge(home, home.pending / "roster-0001.dsse.json")
    settings = SiteSettings(name=C, root=home.settings.root, max_epsilon=Decimal(10))
    data = request_of(SiteFolder.create(scratch / C, settings))
    take_request(home, data)
    assert coord(home, "roster", "add", C)[0] == 0
    assert take_request(home, data) == "waiting"
    assert len(kept(home)) == 1
    [row] = site_states(home).as_json()["requests"]
    assert row["waiting_for"].startswith("signatures of the root keys")
    proposals.sign(home.pending / "roster-0002.json", holder)
    signed = home.pending / "roster-0002.dsse.json"
    assert coord(home, "roster", "merge", str(signed))[0] == 0
    assert kept(home) == []
    assert take_request(home, data) == "member"


def test_certificates_of_server_and_site_are_rotated_and_dropped_by_command(
    home: CoordinatorFolder, coord
):
    assert coord(home, "roster", "rotate", "--server-certificate")[0] == 0
    assert len(home.chain().current.server_certificates) == 2
    assert coord(home, "roster", "revoke", A, "--certificates", "--key", "x")[0] == 2
    assert coord(home, "roster", "revoke", A, "--certificates")[0] == 0
    [site] = home.chain().current.sites
    assert (site.certificates, site.is_active) == ((), True)


def test_site_asks_for_a_certificate_by_command(fed: Federation, capsys, monkeypatch):
    site, published = str(fed.path / A), str(fed.published)
    command = ["ddm-site", "rotate", "--certificate", "--site", site, "--plan", published]
    for more, status in ([], 0), (["--lost"], 2):
        monkeypatch.setattr("sys.argv", [*command, *more])
        with pytest.raises(SystemExit) as ended:
            sites.cli.main.main()
        assert (ended.value.code or 0) == status
    assert "ddm-coord roster rotate rotation.dsse.json" in capsys.readouterr().err
    assert changes.rotate_site(fed.home, fed.path / A / ROTATION_FILE).published
    assert len(fed.home.chain().current.sites[0].certificates) == 2
