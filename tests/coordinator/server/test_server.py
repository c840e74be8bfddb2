"""A coordinator on a network: what members get, what strangers do not, what breaks on the way."""

import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import grpc
import pytest
from federation import SITES, Federation, forge_manifest, sign_files, snapshot, tensor_bytes
from proxy import BadLink

import coordinator.server.service
from coordinator.ensembles.assemble import assemble
from coordinator.inbox.upload import Limits
from coordinator.roster import changes
from coordinator.roster.waiting import take_request, waiting_requests
from coordinator.server.server import Listening, ServerOptions, serving
from coordinator.server.service import ExchangeService
from coordinator.status.metrics import ServerMetrics
from coordinator.status.report import site_states
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import (
    ExchangeError,
    ExpiredError,
    OffsetError,
    OptionError,
    QuotaError,
    RevokedKeyError,
    StateError,
    ValuesError,
)
from ddm_fed.exchange import client_options, failure_of, messages, services
from ddm_fed.signing import TlsKey, server_certificates_pem
from ddm_fed.trust.receipts import read_receipt
from sites.outbox.released import Released, read_released
from sites.outbox.stages import find_bundles
from sites.transport import grpc as network
from sites.transport import submit
from sites.transport.address import Address
from sites.transport.fetch import PUBLISHED, _path_in, fetch_ensemble, fetch_published
from sites.transport.grpc import GrpcTransport, channel_to, enroll
from sites.workspace import SiteFolder, SiteSettings

A, B, C = SITES
NOT_LET_IN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}
CALLS = {
    call.name: (call.input_type.name, call.client_streaming, call.server_streaming)
    for call in messages.DESCRIPTOR.services_by_name["ExchangeService"].methods
}


@pytest.fixture
def fed(copy_of) -> Federation:
    """Three sites with released bundles, and a coordinator that has none of them."""
    return copy_of("released", *SITES)


@contextmanager
def listening(fed: Federation, **options):
    chosen = {"listen": "127.0.0.1:0", "timeout_s": 5.0, **options}
    home = fed.home

    def take(data: bytes) -> bool:
        return take_request(home, data) == "member"

    with serving(home, ServerOptions(**chosen), ServerMetrics(), take) as found:
        yield found


@pytest.fixture
def server(fed: Federation):
    with listening(fed) as found:
        yield found


def released(fed: Federation, name: str = A) -> Released:
    (folder,) = find_bundles(fed.site(name).released)
    return read_released(folder)


def address(port: int, pin: str | None = None) -> Address:
    return Address("127.0.0.1", port, pin)


def identity(fed: Federation, name: str) -> tuple[bytes, bytes]:
    key = fed.site(name).tls(fed.trust.roster.site(name))
    return key.private_pem, key.certificate_pem


@contextmanager
def channel(fed: Federation, port: int, client: tuple[bytes, bytes] | None):
    pem = server_certificates_pem(fed.trust.roster)
    with channel_to(address(port), pem, client) as found:
        yield found


@contextmanager
def as_member(fed: Federation, port: int, name: str = A):
    with channel(fed, port, identity(fed, name)) as found:
        yield services.ExchangeServiceStub(found)


def send(fed: Federation, port: int, name: str = A, *, timeout_s: float = 20.0):
    site = fed.site(name)
    transport = GrpcTransport(address(port), site, fed.trust, timeout_s=timeout_s)
    return submit.submit(site, fed.trust, transport)


def begin(stub, bundle: Released):
    return stub.BeginUpload(
        messages.BeginUploadRequest(submission_envelope=bundle.envelope), timeout=10
    )


def parts(bundle: Released, start: int = 0, step: int = 250_000):
    with bundle.reading() as reader:
        while data := reader.read(start, step):
            yield messages.WriteUploadRequest(
                submission_sha256=bundle.digest, offset=start, data=data
            )
            start += len(data)


def ask(stub, name: str):
    """Makes the call `name` with an empty request and waits for its end."""
    kind, streams_in, streams_out = CALLS[name]
    request = getattr(messages, kind)()
    answer = getattr(stub, name)(iter([request]) if streams_in else request, timeout=10)
    return list(answer) if streams_out else answer


# What members get


def test_bundle_over_the_network_is_admitted_and_the_receipt_verified(fed, server):
    (found,) = send(fed, server.port)
    bundle = released(fed)
    assert (found.digest, found.state) == (bundle.digest, "admitted")
    data = (fed.site(A).receipts / f"{bundle.digest}.dsse.json").read_bytes()
    entry = read_receipt(data, bundle.digest, fed.trust.chain, what="the receipt")
    assert entry.receipt.site == A
    stored = fed.stored(A)
    assert stored.payload_sha256 == bundle.digest
    for name, digest in stored.sha256.items():
        kept = fed.home.blobs.path(digest).read_bytes()
        assert kept == (bundle.folder / name).read_bytes()


def test_sending_twice_gives_the_same_receipt_and_one_leaf(fed, server):
    send(fed, server.port)
    kept = snapshot(fed.site(A).receipts)
    for file in fed.site(A).receipts.iterdir():
        file.unlink()  # as if the site had lost it
    assert [item.state for item in send(fed, server.port)] == ["admitted"]
    assert snapshot(fed.site(A).receipts) == kept
    assert fed.log.size == 1


def test_fetched_documents_are_those_published(fed, server):
    send(fed, server.port)
    site = fed.site(B)
    pinned = address(server.port, server.fingerprint)
    found = fetch_published(site, pinned, None, timeout_s=5)
    assert found.log.size == 1
    fetched = snapshot(site.path / PUBLISHED)
    assert fetched == {n: d for n, d in snapshot(fed.published).items() if n in fetched}
    again = fetch_published(site, address(server.port), found.trust, timeout_s=5)
    assert again.trust == found.trust


def test_ensemble_is_fetched_and_verified_and_a_cut_resumes(fed):
    with listening(fed, share_ensemble=True) as server:
        for name in SITES:
            send(fed, server.port, name)
        made = assemble(fed.home, fed.path / "made", router=None, without=())
        with BadLink(server.port) as link:
            threading.Timer(0.05, link.drop).start()
            got = fetch_ensemble(
                fed.site(A), address(link.port), fed.trust, fed.path / "got", timeout_s=10
            )
        assert got.sha256 == made.sha256
        assert snapshot(fed.path / "got") == snapshot(fed.path / "made")


def test_ensemble_is_handed_out_only_if_the_coordinator_says_so(fed, server):
    with pytest.raises(StateError, match="hands out no ensembles"):
        fetch_ensemble(fed.site(A), address(server.port), fed.trust, fed.path / "got", timeout_s=5)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "a/../../b", ".hidden", "a\\b", ""])
def test_ensemble_file_with_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    with pytest.raises(ExchangeError, match="a file called"):
        _path_in(tmp_path, name)


def test_status_of_a_member_is_about_itself(fed, server):
    with as_member(fed, server.port) as stub:
        found = stub.GetStatus(messages.GetStatusRequest(), timeout=10)
    assert (found.site, found.state, found.roster_version) == (A, "in the roster", 2)


# What strangers get


def strangers(fed: Federation):
    """Everybody who is not in the roster, by what they have."""
    foreign = SiteSettings(name="stranger", root=fed.root, max_epsilon=Decimal(1))
    key = SiteFolder.create(fed.path / "stranger", foreign).newest_tls()
    named = TlsKey.for_site(A)  # the right name, another key
    server_key = CoordinatorFolder.open(fed.home.path).tls(fed.trust.chain)
    return {
        "no certificate": None,
        "not enrolled": (key.private_pem, key.certificate_pem),
        "another key in a member's name": (named.private_pem, named.certificate_pem),
        "a member's certificate without its key": (key.private_pem, identity(fed, A)[1]),
        "the coordinator's own": (server_key.private_pem, server_key.certificate_pem),
    }


@pytest.mark.parametrize("call", CALLS)
def test_call_of_a_stranger_gets_nothing_but_a_refusal(fed, server, call):
    for who, client in strangers(fed).items():
        with channel(fed, server.port, client) as found:
            stub = services.ExchangeServiceStub(found)
            with pytest.raises(grpc.RpcError) as caught:
                ask(stub, call)
        failure = failure_of(caught.value)
        assert failure.status in NOT_LET_IN, who
        assert failure.error is None, who
        assert fed.root not in failure.details, who


@pytest.mark.parametrize("call", CALLS)
def test_call_of_a_member_that_was_revoked_on_an_open_connection_is_refused(fed, server, call):
    with as_member(fed, server.port) as stub:
        stub.GetPlan(messages.GetPlanRequest(), timeout=10)
        changes.revoke(fed.home, A)
        with pytest.raises(grpc.RpcError) as caught:
            ask(stub, call)
    assert failure_of(caught.value).status in NOT_LET_IN


def test_every_call_is_guarded():
    """A new call of the .proto cannot be forgotten: it has to be in the service, and wrapped."""
    for name in CALLS:
        assert hasattr(ExchangeService.__dict__[name], "__wrapped__")


def test_client_without_tls_gets_nothing(fed, server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as found:
        stub = services.ExchangeServiceStub(found)
        with pytest.raises(grpc.RpcError):
            stub.GetPlan(messages.GetPlanRequest(), timeout=5)


def test_impostor_with_another_certificate_is_not_spoken_to(fed, server):
    impostor = TlsKey.for_coordinator()
    pem = impostor.certificate_pem
    with channel_to(address(server.port), pem, identity(fed, A)) as found:
        stub = services.ExchangeServiceStub(found)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetPlan(messages.GetPlanRequest(), timeout=5)
    assert failure_of(caught.value).status == grpc.StatusCode.UNAVAILABLE


def test_first_fetch_from_another_certificate_than_the_address_says_is_refused(fed, server):
    wrong = address(server.port, "sha256:" + "0" * 64)
    with pytest.raises(ExchangeError, match="shows the certificate"):
        fetch_published(fed.site(A), wrong, None, timeout_s=2)


def test_bundle_of_another_member_is_refused(fed, server):
    with as_member(fed, server.port, B) as stub, pytest.raises(grpc.RpcError) as caught:
        begin(stub, released(fed, A))
    assert failure_of(caught.value).error.code == "DDM204"
    assert list(fed.home.partial.iterdir()) == []


def test_member_cannot_write_into_anothers_upload(fed, server):
    with as_member(fed, server.port, A) as mine, as_member(fed, server.port, B) as other:
        bundle = released(fed, A)
        begin(mine, bundle)
        for call in (
            lambda: other.WriteUpload(parts(bundle), timeout=10),
            lambda: other.CommitUpload(
                messages.CommitUploadRequest(submission_sha256=bundle.digest), timeout=10
            ),
            lambda: other.QueryWriteStatus(
                messages.QueryWriteStatusRequest(submission_sha256=bundle.digest), timeout=10
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert failure_of(caught.value).error.code == "DDM204"
        assert begin(mine, bundle).committed_bytes == 0


# Enrolment


def newcomer(fed: Federation) -> SiteFolder:
    settings = SiteSettings(name="newcomer", root=fed.root, max_epsilon=Decimal(1))
    return SiteFolder.create(fed.path / "newcomer", settings)


def test_request_over_the_network_waits_for_people_and_changes_no_roster(fed):
    data = (newcomer(fed).path / "enrolment.dsse.json").read_bytes()
    with listening(fed, enroll="127.0.0.1:0") as server:
        enrolment = address(server.enroll_port, server.fingerprint)
        before = fed.trust.roster
        assert enroll(enrolment, data, timeout_s=5) is False
        assert enroll(enrolment, data, timeout_s=5) is False
        assert fed.trust.roster == before
        (waiting,) = waiting_requests(fed.home)
        assert waiting.site == "newcomer"
        changes.add(fed.home, [waiting.file])
        assert enroll(enrolment, data, timeout_s=5) is True


def test_newcomer_is_a_member_soon_after_the_roster_says_so(fed, server):
    site = newcomer(fed)
    pinned = address(server.port, server.fingerprint)
    with pytest.raises(ExchangeError):
        fetch_published(site, pinned, None, timeout_s=1)
    changes.add(fed.home, [site.path / "enrolment.dsse.json"])
    assert fetch_published(site, pinned, None, timeout_s=5).trust.roster.site("newcomer")


def test_door_for_strangers_answers_nothing_else(fed):
    with listening(fed, enroll="127.0.0.1:0") as server:
        for call in CALLS:
            with (
                channel(fed, server.enroll_port, None) as found,
                pytest.raises(grpc.RpcError) as caught,
            ):
                ask(services.ExchangeServiceStub(found), call)
            assert failure_of(caught.value).status == grpc.StatusCode.UNIMPLEMENTED


def test_request_that_does_not_hold_is_refused_with_the_reason(fed):
    with listening(fed, enroll="127.0.0.1:0") as server:
        enrolment = address(server.enroll_port, server.fingerprint)
        with pytest.raises(Exception, match="not a valid"):
            enroll(enrolment, b"{}", timeout_s=2)
        assert waiting_requests(fed.home) == []


# Limits


def test_message_larger_than_a_chunk_may_be_is_refused(fed, server):
    with as_member(fed, server.port) as stub:
        bundle = released(fed)
        begin(stub, bundle)
        large = messages.WriteUploadRequest(submission_sha256=bundle.digest, data=bytes(1 << 21))
        with pytest.raises(grpc.RpcError) as caught:
            stub.WriteUpload(iter([large]), timeout=10)
    assert failure_of(caught.value).status == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_byte_more_than_was_signed_is_refused_and_the_bundle_stays_whole(fed, server):
    bundle = released(fed)
    with as_member(fed, server.port) as stub:
        begin(stub, bundle)
        stub.WriteUpload(parts(bundle), timeout=30)
        more = messages.WriteUploadRequest(
            submission_sha256=bundle.digest, offset=bundle.body.size_bytes, data=b"x"
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.WriteUpload(iter([more]), timeout=10)
        assert failure_of(caught.value).error.code == "DDM219"
    assert send(fed, server.port)[0].state == "admitted"


@pytest.mark.parametrize("offset", [1, 10**12])
def test_wrong_offset_is_refused_with_the_right_one(fed, server, offset):
    bundle = released(fed)
    with as_member(fed, server.port) as stub:
        begin(stub, bundle)
        wrong = messages.WriteUploadRequest(
            submission_sha256=bundle.digest, offset=offset, data=b"x"
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.WriteUpload(iter([wrong]), timeout=10)
    found = failure_of(caught.value)
    assert (found.status, type(found.error)) == (grpc.StatusCode.OUT_OF_RANGE, OffsetError)
    assert "stands at byte 0" in found.error.message


def test_write_without_an_offer_is_refused(fed, server):
    with as_member(fed, server.port) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.WriteUpload(parts(released(fed)), timeout=10)
    assert "has not begun" in failure_of(caught.value).error.message


def test_site_that_asks_too_often_is_slowed_down_and_others_are_not(fed, server):
    with as_member(fed, server.port, A) as loud, as_member(fed, server.port, B) as calm:
        calls = [loud.GetPlan.future(messages.GetPlanRequest(), timeout=10) for _ in range(250)]
        errors = [failure_of(call.exception()).error for call in calls if call.exception()]
        assert len(errors) > 50
        assert {type(error) for error in errors} <= {QuotaError, type(None)}
        calm.GetPlan(messages.GetPlanRequest(), timeout=10)


def test_full_disk_ends_in_a_clear_refusal_and_then_goes_on(fed):
    with (
        listening(fed, limits=Limits(reserve_bytes=1 << 60)) as server,
        pytest.raises(QuotaError, match="bytes free"),
    ):
        send(fed, server.port, timeout_s=1)
    with listening(fed) as server:
        assert send(fed, server.port)[0].state == "admitted"


def test_stream_that_stalls_is_ended_and_what_it_sent_is_kept(fed):
    bundle = released(fed)
    with listening(fed, timeout_s=1.0) as server, as_member(fed, server.port) as stub:
        begin(stub, bundle)
        released_again = threading.Event()

        def slowly():
            yield next(parts(bundle))
            released_again.wait(20)

        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            stub.WriteUpload(slowly(), timeout=30)
        assert time.monotonic() - began < 10
        assert failure_of(caught.value).status == grpc.StatusCode.CANCELLED
        released_again.set()
        assert begin(stub, bundle).committed_bytes == 250_000


def test_connections_that_never_say_anything_keep_nobody_out(fed, server):
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        assert send(fed, server.port)[0].state == "admitted"
    finally:
        for item in silent:
            item.close()


def test_roster_that_changes_in_mid_upload_cuts_nobody_off_for_good(fed, server):
    with BadLink(server.port, bytes_per_s=4e5) as link:
        joined = threading.Timer(
            1.0, changes.add, [fed.home, [newcomer(fed).path / "enrolment.dsse.json"]]
        )
        joined.start()
        assert send(fed, link.port, timeout_s=30)[0].state == "admitted"
        joined.join()
    assert fetch_published(
        fed.site(B), address(server.port, server.fingerprint), None, timeout_s=10
    ).trust.roster.site("newcomer")


def test_unforeseen_error_tells_the_other_side_a_number_only(fed, server, monkeypatch, capfd):
    def broken(*_):
        raise ZeroDivisionError("secret words")

    monkeypatch.setattr(coordinator.server.service, "site_row", broken)
    with as_member(fed, server.port) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.GetStatus(messages.GetStatusRequest(), timeout=10)
    found = failure_of(caught.value)
    assert found.status == grpc.StatusCode.INTERNAL
    assert "secret" not in found.details
    assert "secret words" in capfd.readouterr().err


# What breaks on the way


def test_two_machines_of_one_site_end_with_one_bundle(fed, server):
    twin = fed.copy(fed.path.with_name("twin"), A, "consortium")
    results = {}

    def run(place: Federation) -> None:
        results[place.path.name] = send(place, server.port, timeout_s=30)[0].state

    threads = [threading.Thread(target=run, args=[place]) for place in (fed, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {fed.path.name: "admitted", "twin": "admitted"}
    assert fed.log.size == 1


def test_newer_stream_takes_the_place_of_one_whose_connection_died(fed, server):
    bundle, stop = released(fed), threading.Event()
    with as_member(fed, server.port) as old, as_member(fed, server.port) as new:
        begin(old, bundle)

        def hanging():
            yield next(parts(bundle))
            stop.wait(20)
            yield messages.WriteUploadRequest(offset=250_000, data=b"x")

        first = old.WriteUpload.future(hanging(), timeout=30)
        while begin(new, bundle).committed_bytes < 250_000:
            time.sleep(0.01)
        new.WriteUpload(parts(bundle, 250_000), timeout=30)
        stop.set()
        with pytest.raises(grpc.RpcError) as caught:
            first.result()
        assert "another connection" in failure_of(caught.value).error.message
    assert send(fed, server.port)[0].state == "admitted"


def test_site_revoked_in_mid_stream_is_stopped(fed, server, monkeypatch):
    monkeypatch.setattr(coordinator.server.service, "SYNC_BYTES", 100_000)
    bundle = released(fed)
    with as_member(fed, server.port) as stub:
        begin(stub, bundle)

        def sending():
            for number, part in enumerate(parts(bundle, step=50_000)):
                if number == 6:
                    changes.revoke(fed.home, A)
                yield part

        with pytest.raises(grpc.RpcError) as caught:
            stub.WriteUpload(sending(), timeout=30)
    assert failure_of(caught.value).status in {*NOT_LET_IN, grpc.StatusCode.CANCELLED}
    assert list(fed.home.incoming.iterdir()) == []
    with pytest.raises(RevokedKeyError):
        send(fed, server.port, timeout_s=1)


def test_link_that_freezes_for_a_while_only_delays(fed, server):
    with BadLink(server.port, bytes_per_s=2e6) as link:
        threading.Timer(0.2, link.frozen.set).start()
        threading.Timer(2.0, link.frozen.clear).start()
        assert send(fed, link.port, timeout_s=30)[0].state == "admitted"


def test_port_that_refuses_for_a_while_only_delays(fed, server):
    with BadLink(server.port) as link:
        link.refusing = True
        threading.Timer(2.0, lambda: setattr(link, "refusing", False)).start()
        assert send(fed, link.port, timeout_s=30)[0].state == "admitted"


def test_coordinator_that_is_not_there_is_given_up_after_the_timeout(fed):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ExchangeError, match="nothing has moved") as caught:
        send(fed, port, timeout_s=2)
    assert 2 <= time.monotonic() - began < 10
    assert "serve" in caught.value.hint
    assert find_bundles(fed.site(A).released)


def test_lost_answer_to_the_commit_gives_the_same_receipt_again(fed, server):
    bundle = released(fed)
    end = messages.CommitUploadRequest(submission_sha256=bundle.digest)
    with as_member(fed, server.port) as stub:
        begin(stub, bundle)
        stub.WriteUpload(parts(bundle), timeout=30)
        first, second = (stub.CommitUpload(end, timeout=60) for _ in range(2))
    assert first == second
    assert first.state == messages.BUNDLE_STATE_ADMITTED
    assert fed.log.size == 1


def test_damaged_bytes_are_sent_again(fed, server, monkeypatch):
    bundle, damaged = released(fed), []
    real = network.BodyReader.read

    def once_wrong(self, offset, length):
        data = real(self, offset, length)
        if offset == 0 and not damaged:
            damaged.append(True)
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    monkeypatch.setattr(network.BodyReader, "read", once_wrong)
    assert send(fed, server.port)[0].state == "admitted"
    assert damaged
    assert fed.stored(A).payload_sha256 == bundle.digest


# What is refused after it arrived


def release_forged(fed: Federation, **contents: bytes) -> Released:
    (folder,) = find_bundles(fed.site(A).released)
    digest = sign_files(folder, fed.key(A), **contents)
    return read_released(folder.rename(folder.with_name(digest)))


def test_bundle_that_is_refused_says_why_to_its_site_and_to_nobody_else(fed, server, monkeypatch):
    (folder,) = find_bundles(fed.site(A).released)
    data = bytearray((folder / "expert.safetensors").read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    bundle = release_forged(fed, expert=bytes(data))
    end = messages.CommitUploadRequest(submission_sha256=bundle.digest)
    with as_member(fed, server.port) as stub, as_member(fed, server.port, B) as other:
        begin(stub, bundle)
        stub.WriteUpload(parts(bundle), timeout=30)
        first, second = (stub.CommitUpload(end, timeout=60) for _ in range(2))
        assert first == second
        assert first.refusal.code == ValuesError.code
        with pytest.raises(grpc.RpcError) as caught:
            other.CommitUpload(end, timeout=10)
        assert "has not begun" in failure_of(caught.value).error.message
    row = next(row for row in site_states(fed.home).as_json()["sites"] if row["site"] == A)
    assert row["state"] == "refused"
    assert fed.log.size == 0


def test_manifest_from_the_future_is_refused_before_a_byte(fed, server):
    (folder,) = find_bundles(fed.site(A).released)
    later = datetime.now(UTC).replace(hour=0, minute=0, second=0) + timedelta(days=2)

    def edit(fields):
        fields["issued_at"] = f"{later:%Y-%m-%dT%H:%M:%SZ}"
        fields["expires_at"] = f"{later + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"

    digest = forge_manifest(folder, edit, fed.key(A))
    bundle = read_released(folder.rename(folder.with_name(digest)))
    with as_member(fed, server.port) as stub, pytest.raises(grpc.RpcError) as caught:
        begin(stub, bundle)
    error = failure_of(caught.value).error
    assert isinstance(error, ExpiredError)
    assert "clocks" in error.hint
    assert list(fed.home.partial.iterdir()) == []


def test_header_bomb_is_refused_like_any_other_way(fed, server):
    bundle = release_forged(fed, router=tensor_bytes({}, b""))
    with as_member(fed, server.port) as stub:
        begin(stub, bundle)
        stub.WriteUpload(parts(bundle), timeout=30)
        end = messages.CommitUploadRequest(submission_sha256=bundle.digest)
        assert stub.CommitUpload(end, timeout=60).refusal.code == "DDM207"
    assert (fed.home.refused).is_dir()


# Server and client come and go


def test_server_that_ends_in_mid_stream_lets_the_next_one_go_on(fed):
    bundle, stop = released(fed), threading.Event()
    with listening(fed) as first, as_member(fed, first.port) as stub:
        begin(stub, bundle)

        def hanging():
            yield from list(parts(bundle))[:3]
            stop.wait(20)

        stream = stub.WriteUpload.future(hanging(), timeout=60)
        while begin(stub, bundle).committed_bytes < 750_000:
            time.sleep(0.01)
        stop.set()
        stream.cancel()
    with listening(fed) as second, as_member(fed, second.port) as stub:
        assert begin(stub, bundle).committed_bytes == 750_000
        assert send(fed, second.port)[0].state == "admitted"


def test_second_server_on_the_port_is_refused(fed, server: Listening):
    with pytest.raises(Exception, match="cannot listen on"):  # noqa: SIM117
        with listening(fed, listen=f"127.0.0.1:{server.port}"):
            pass


def test_options_of_both_sides_bound_every_message():
    found = dict(client_options())
    assert 0 < found["grpc.max_receive_message_length"] <= 1 << 21
    assert found["grpc.enable_retries"] == 0


@pytest.mark.parametrize(
    "text",
    ["grpcs://", "grpcs://host", "grpcs://host:0", "grpcs://host:99999", "grpc://host:1",
     "grpcs://host:1#sha256:xyz", "grpcs://user@host:1", "grpcs://ho st:1"],
)  # fmt: skip
def test_address_that_is_none_is_refused(text):
    with pytest.raises(OptionError, match="not the address"):
        Address.parse(text)


def test_address_is_read_as_it_is_printed():
    pin = "sha256:" + "a" * 64
    assert Address.parse(f"grpcs://h.example:8443#{pin}") == Address("h.example", 8443, pin)
    assert Address.parse("grpcs://[::1]:1").target == "[::1]:1"


def test_path_of_a_folder_is_still_a_folder(fed):
    from sites.transport.base import FolderTransport
    from sites.transport.opening import transport_to

    found = transport_to(str(fed.inbox), fed.site(A), fed.trust, timeout_s=1)
    assert isinstance(found, FolderTransport)
