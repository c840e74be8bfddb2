"""Proxies: what this program says of them is what gRPC does with them."""

import socket
from contextlib import contextmanager

import grpc
import pytest

from ddm_fed.errors import ExchangeError
from ddm_fed.exchange import messages, services
from ddm_fed.remote.failures import Calling
from ddm_fed.remote.proxies import EVERYBODYS, EXCEPTIONS, VARIABLES, proxies_named, proxy_to
from sites.transport.address import Address
from sites.transport.grpc import channel_to, pinned_certificate, retried

HOST = "127.0.0.1"
NAMES = {*VARIABLES, *EXCEPTIONS, *EVERYBODYS, "NO_PROXY", "GRPC_PROXY"}
SECRET = "correct-horse"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@contextmanager
def listening():
    """A port of loopback that takes connections and answers nothing."""
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        server.settimeout(2)
        yield server


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def is_asked_to_connect(server: socket.socket, target: str) -> bool:
    """Whether gRPC goes to `target` through the proxy `server`."""
    with grpc.insecure_channel(target) as channel:
        # a call connects; `subscribe` would leave a thread that fails when the channel closes
        call = channel.unary_unary("/any/Call").future(b"", timeout=5, wait_for_ready=True)
        server.settimeout(1)
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(2)
                return connection.recv(64).startswith(f"CONNECT {target} ".encode())
        except TimeoutError:
            return False
        finally:
            call.cancel()


@pytest.mark.parametrize(
    "settings",
    [
        {"grpc_proxy": "http://{}"},
        {"https_proxy": "http://{}"},
        {"http_proxy": "http://{}"},
        {"HTTPS_PROXY": "http://{}"},
        {"HTTP_PROXY": "http://{}"},
        {"all_proxy": "http://{}"},
        {"https_proxy": "http://{}", "no_proxy": "127.0.0.1"},
        {"https_proxy": "http://{}", "no_proxy": "example.org, 0.0.1"},
        {"https_proxy": "http://{}", "no_proxy": "127.0.0.0/8"},
        {"https_proxy": "http://{}", "no_proxy": "example.org"},
        {"https_proxy": "http://{}", "no_grpc_proxy": "127.0.0.1"},
        {"https_proxy": "http://{}", "NO_PROXY": "127.0.0.1"},
    ],
    ids=" ".join,
)
def test_proxy_that_is_named_is_the_one_that_grpc_uses(monkeypatch, settings):
    with listening() as proxy:
        place = f"{HOST}:{proxy.getsockname()[1]}"
        for name, value in settings.items():
            monkeypatch.setenv(name, value.format(place))
        used = is_asked_to_connect(proxy, f"{HOST}:{closed_port()}")

    said = proxy_to(HOST)
    assert (said is not None) == used
    if used:
        assert said == f"the proxy {place}, which {next(iter(settings))} names"


@pytest.mark.parametrize(
    "url", ["http://{}", "{}", "http://me:{secret}@{}/", "http://me:a/{secret}@b@{}"]
)
def test_proxy_is_named_without_what_is_secret(monkeypatch, url):
    monkeypatch.setenv("http_proxy", url.replace("{secret}", SECRET).format("proxy.example:3128"))
    assert proxy_to("consortium.example") == "the proxy proxy.example:3128, which http_proxy names"


def test_coordinator_out_of_reach_through_a_proxy_is_said_with_it(monkeypatch):
    place = f"{HOST}:{closed_port()}"
    monkeypatch.setenv("https_proxy", f"http://me:{SECRET}@{place}")
    address = Address("consortium.example", 8443)
    request = messages.EnrollRequest(request_envelope=b"{}")
    with channel_to(address, b"", None) as channel:
        service = services.EnrolmentServiceStub(channel)
        with pytest.raises(ExchangeError) as caught:
            retried(lambda: service.Enroll(request, timeout=2), address, timeout_s=0.3)

    assert f"through the proxy {place}, which https_proxy names" in caught.value.message
    assert "no_proxy" in caught.value.hint
    assert SECRET not in str(caught.value)


def test_certificate_that_is_looked_at_directly_says_so_where_a_proxy_is_set(monkeypatch):
    address = Address(HOST, closed_port(), "sha256:" + "0" * 64)
    with pytest.raises(ExchangeError) as caught:
        pinned_certificate(address, timeout_s=0.5)
    assert "proxy" not in str(caught.value)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with pytest.raises(ExchangeError) as caught:
        pinned_certificate(address, timeout_s=0.5)
    assert "looked at directly, not through the proxy" in caught.value.hint


def test_bucket_out_of_reach_names_the_variables_that_may_lead_through_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@proxy.example:3128")
    assert proxies_named() == "HTTPS_PROXY"
    with pytest.raises(ExchangeError) as caught, Calling("the bucket", "s3"):
        raise ConnectionRefusedError("no")
    assert "HTTPS_PROXY may send it through a proxy" in caught.value.hint
    assert SECRET not in str(caught.value)
