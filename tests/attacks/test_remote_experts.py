"""What somebody could try on a site that answers for its expert: real bytes on its real port."""

import shutil
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from federation import Federation, Json, forge, manifest
from held import (
    AT_ONCE,
    EVALUATIONS,
    A,
    B,
    Ensembles,
    Served,
    build_ensembles,
    charged,
    served_lines,
    serving,
)

from coordinator.inbox.admission import admit_arrivals
from coordinator.remote_experts import RemoteExpert
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE
from ddm_fed.errors import (
    BudgetError,
    DigestError,
    PlanMismatchError,
    QuotaError,
    ReplayError,
    SizeError,
    ValuesError,
)
from ddm_fed.exchange import client_options, failure_of, messages, services
from ddm_fed.exchange.questions import most_bytes, read_answer, write_question
from ddm_fed.signing import TlsKey, certificate_pem_of, site_dns_name
from sites.outbox.stages import find_bundles
from sites.serving.allowance import Allowance

pytestmark = [pytest.mark.slow, pytest.mark.processes]
NOT_LET_IN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}
SOON_S = 30.0  # on a machine that does much else
EVALUATE = "/ddm_fed.exchange.v1.ExpertService/Evaluate"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Ensembles:
    return build_ensembles(tmp_path_factory.mktemp("held"))


@pytest.fixture
def fed(built: Ensembles, scratch: Path) -> Federation:
    shutil.copytree(built.fed.path, scratch / "copy", symlinks=True)
    return Federation(scratch / "copy")


@pytest.fixture
def served(fed: Federation):
    with serving(fed, A) as found:
        yield found


@contextmanager
def connected(fed: Federation, served: Served, key: TlsKey | None = None):
    """Yields a channel with the coordinator's certificate, or with another one."""
    key = key or fed.home.tls(fed.home.chain())
    pem = b"".join(map(certificate_pem_of, fed.trust.roster.site(A).certificates))
    credentials = grpc.ssl_channel_credentials(pem, key.private_pem, key.certificate_pem)
    options = client_options(site_dns_name(A), message_bytes=most_bytes(fed.trust.plan))
    with grpc.secure_channel(f"127.0.0.1:{served.port}", credentials, options) as channel:
        yield channel


def states(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def question(served: Served, count: int = 2, seed: int = 0, **replaced):
    fields = {
        "expert_sha256": served.expert_sha256,
        "states": states(count, seed).numpy(),
        "times": np.full(count, 0.5, np.float32),
        "classes": None,
    }
    return write_question(**fields | replaced)


def ask(fed: Federation, served: Served, request, key: TlsKey | None = None):
    """Returns the answer, or the error that the site or the connection gave."""
    with connected(fed, served, key) as channel:
        try:
            return services.ExpertServiceStub(channel).Evaluate(request, timeout=20)
        except grpc.RpcError as raised:
            failure = failure_of(raised)
            return failure.error or failure.status


def expert(fed: Federation, served: Served, channel, sha256: str | None = None) -> RemoteExpert:
    return RemoteExpert(
        A,
        f"127.0.0.1:{served.port}",
        sha256 or served.expert_sha256,
        fed.trust.plan.data,
        services.ExpertServiceStub(channel),
        timeout_s=60,
    )


def test_whoever_is_not_the_coordinator_is_not_let_in(fed: Federation, served: Served):
    member = fed.site(B).tls(fed.trust.roster.site(B))
    itself = fed.site(A).tls(fed.trust.roster.site(A))
    for key in (member, itself, TlsKey.for_coordinator()):
        assert ask(fed, served, question(served), key) in NOT_LET_IN
    assert not isinstance(ask(fed, served, question(served)), grpc.StatusCode)
    assert charged(fed, A) == 2


LARGE = np.full((2, 1, 8, 8), 5, np.float32)
REFUSED = {
    "too-many": ({"count": AT_ONCE + 1}, SizeError),
    "none": ({"count": 0}, SizeError),
    "states-cut": ({"states": states(1).numpy()}, SizeError),
    "classes-cut": ({"classes": np.zeros(1, np.int64)}, SizeError),
    "nan": ({"states": LARGE * np.nan}, ValuesError),
    "infinite": ({"states": LARGE * np.inf}, ValuesError),
    "far-from-every-image": ({"states": LARGE}, ValuesError),
    "so-far-that-squares-overflow": ({"states": LARGE * 1e30}, ValuesError),
    "time-zero": ({"times": np.zeros(2, np.float32)}, ValuesError),
    "time-beyond-noise": ({"times": np.full(2, 1.5, np.float32)}, ValuesError),
    "time-nan": ({"times": np.full(2, np.nan, np.float32)}, ValuesError),
    "unknown-class": ({"classes": np.full(2, 2, np.int64)}, ValuesError),
    "negative-class": ({"classes": np.full(2, -2, np.int64)}, ValuesError),
    "another-expert": ({"expert_sha256": "ab" * 32}, PlanMismatchError),
    "no-expert": ({"expert_sha256": ""}, PlanMismatchError),
}


def test_what_a_sampler_never_asks_is_refused_and_not_charged(fed: Federation, served: Served):
    for name, (changed, kind) in REFUSED.items():
        found = ask(fed, served, question(served, **changed))
        assert isinstance(found, kind), (name, found)
    huge = messages.EvaluateRequest(states=b"\0" * (2 * most_bytes(fed.trust.plan)))
    assert ask(fed, served, huge) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served_lines(fed, A) == []
    assert ask(fed, served, question(served)).evaluations_left == EVALUATIONS - 2


def test_question_asked_again_is_answered_the_same_and_charged_once_also_after_a_kill(
    fed: Federation,
):
    with serving(fed, A) as served:
        first = ask(fed, served, question(served))
        assert ask(fed, served, question(served)) == first
        served.process.kill()
    with serving(fed, A) as again:
        assert again.left == EVALUATIONS - 2
        assert ask(fed, again, question(again)) == first
        other = ask(fed, again, question(again, seed=1))
        assert other.velocities != first.velocities
        assert other.evaluations_left == EVALUATIONS - 4


def test_allowance_is_not_exceeded_by_calls_at_once_or_by_a_restart(fed: Federation):
    with serving(fed, A) as served, connected(fed, served) as channel:
        asked = expert(fed, served, channel)
        for seed in range(EVALUATIONS // AT_ONCE - 1):
            asked(states(AT_ONCE, seed), torch.full((AT_ONCE,), 0.5))
        found: list[object] = []

        def one_more(seed: int) -> None:
            try:
                found.append(asked(states(AT_ONCE, seed), torch.full((AT_ONCE,), 0.5)).shape)
            except BudgetError as error:
                found.append(error.code)

        threads = [threading.Thread(target=one_more, args=(1000 + n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(str, found)) == ["DDM301"] * 3 + [f"torch.Size([{AT_ONCE}, 1, 8, 8])"]
    with serving(fed, A) as served:
        assert served.left == 0
        assert isinstance(ask(fed, served, question(served, count=1, seed=7)), BudgetError)
        assert ask(fed, served, question(served, count=AT_ONCE)).evaluations_left == 0  # paid for
    assert charged(fed, A) == EVALUATIONS


def test_kill_between_charge_and_answer_gives_nothing_back_and_asks_nothing_twice(tmp_path: Path):
    file = tmp_path / "served.jsonl"
    assert not Allowance(file, 10).charge("q", 6)
    after = Allowance(file, 10)
    assert after.left == 4
    with pytest.raises(BudgetError):
        after.charge("other", 5)
    assert after.charge("q", 6)
    after.answered("q", "answer")
    file.write_bytes(file.read_bytes() + b'{"torn')
    last = Allowance(file, 10)
    assert last.left == 4
    with pytest.raises(Exception, match="in two ways"):
        last.answered("q", "another answer")


@pytest.mark.parametrize("edit", ["cut", "lowered"])
def test_log_that_was_edited_is_not_gone_on_with(tmp_path: Path, edit: str):
    file = tmp_path / "served.jsonl"
    allowance = Allowance(file, 10)
    for name in ("p", "q"):
        allowance.charge(name, 3)
    first, second = file.read_bytes().splitlines(keepends=True)
    edited = {
        "cut": second,
        "lowered": first + second.replace(b'"evaluations":3', b'"evaluations":1'),
    }
    file.write_bytes(edited[edit])
    with pytest.raises(Exception, match="does not follow"):
        Allowance(file, 10)


def test_clients_that_say_nothing_or_half_a_handshake_do_not_keep_the_coordinator_out(
    fed: Federation, served: Served
):
    with ExitStack() as stack:
        for half in (b"", b"\x16\x03\x01\x02\x00\x01"):
            for _ in range(150):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
                client.sendall(half)
        began = time.monotonic()
        honest = stack.enter_context(connected(fed, served))
        answer = expert(fed, served, honest)(states(), torch.full((2,), 0.5))
        assert answer.shape == (2, 1, 8, 8)
        assert time.monotonic() - began < SOON_S


def test_calls_whose_question_never_comes_hold_their_places_for_seconds_only(
    fed: Federation, served: Served
):
    never = threading.Event()

    def nothing():
        never.wait(120)
        yield from ()

    with connected(fed, served) as channel, ExitStack() as stack:
        stack.callback(never.set)
        service = services.ExpertServiceStub(channel)
        service.Evaluate(question(served), timeout=20)
        began = time.monotonic()
        calls = [channel.stream_unary(EVALUATE).future(nothing()) for _ in range(4)]
        found = None
        while not isinstance(found, QuotaError):
            assert time.monotonic() - began < 8, "they held no place"
            try:
                service.Evaluate(question(served), timeout=20)
            except grpc.RpcError as raised:
                # of this very call: another one may come after a place is free again
                found = failure_of(raised).error
        answer = expert(fed, served, channel)(states(), torch.full((2,), 0.5))
        assert answer.shape == (2, 1, 8, 8)
        assert time.monotonic() - began < SOON_S
        assert all(call.done() for call in calls)


def test_site_that_answers_with_another_expert_or_with_nonsense_is_found_out(
    fed: Federation, served: Served
):
    data = fed.trust.plan.data
    answer = ask(fed, served, question(served))
    assert answer.expert_sha256 == served.expert_sha256
    assert read_answer(answer, served.expert_sha256, data, 2).shape == (2, 1, 8, 8)
    with pytest.raises(DigestError):
        read_answer(answer, "ab" * 32, data, 2)
    with pytest.raises(SizeError):
        read_answer(answer, served.expert_sha256, data, 3)
    answer.velocities = (np.frombuffer(answer.velocities, "<f4") * np.nan).tobytes()
    with pytest.raises(ValuesError):
        read_answer(answer, served.expert_sha256, data, 2)
    with connected(fed, served) as channel, pytest.raises(PlanMismatchError):
        expert(fed, served, channel, "ab" * 32)(states(), torch.full((2,), 0.5))


def test_site_that_commits_to_the_expert_of_another_is_refused_with_its_name(
    fed: Federation, scratch: Path
):
    kept = next(
        found
        for bundle in find_bundles(fed.site(A).released)
        if (found := manifest(bundle)["predicate"].get("held_expert"))
    )
    (own,) = find_bundles(fed.site(B).released)
    bundle = Path(shutil.copytree(own, scratch / "borrowed"))
    (bundle / EXPERT_FILE).unlink()

    def edit(statement: Json) -> None:
        statement["subject"] = [i for i in statement["subject"] if i["name"] != EXPERT_FILE]
        fields = statement["predicate"]
        fields["files"] = [i for i in fields["files"] if i["name"] != EXPERT_FILE]
        fields.update(
            sequence=2,
            held_expert=kept,
            seen_checkpoint=fed.log.head.model_dump(),
            supersedes=fed.log.newest(B).submission_sha256,
        )

    forge(bundle / ENVELOPE_FILE, edit, fed.key(B))
    shutil.copytree(bundle, fed.home.incoming / ("0" * 64))
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert isinstance(verdict.error, ReplayError), verdict
    assert A in verdict.error.message
