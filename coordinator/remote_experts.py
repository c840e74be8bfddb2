"""Asks the sites whose experts stay there: over mutual TLS, with certificates that the roster pins.

A question that got no answer is asked again, word for word: it is the same question then, so the
site charges it once and answers it the same.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import grpc
import torch
from torch import Tensor

from coordinator.workspace import CoordinatorFolder
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import held_experts
from ddm_fed.errors import (
    BusyError,
    DdmFedError,
    ExchangeError,
    OptionError,
    QuotaError,
    StateError,
)
from ddm_fed.exchange import client_options, failure_of, messages, services
from ddm_fed.exchange.questions import most_bytes, read_answer, write_question
from ddm_fed.exchange.retries import Retries
from ddm_fed.flows import ClassCondition, Condition
from ddm_fed.records import DataSpec, RosterSite
from ddm_fed.signing import (
    TlsKey,
    certificate_pem_of,
    check_certificate,
    find_tls_key,
    site_dns_name,
)

HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Za-z:.%]+\]")
STRANGER = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
# asked again, these cannot end otherwise
FINAL = STRANGER | {
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
}


class RemoteExpert:
    """An expert at its site, as a velocity. Several threads may ask it at once.

    Args:
        site: Whose it is.
        target: HOST:PORT.
        expert_sha256: Of its weights, as the signed manifest says.
        data: What images are.
        service: The connection.
        timeout_s: How long to try for one answer.

    Attributes:
        left: How many evaluations the site goes on to answer, as it said last; None before.
    """

    def __init__(
        self,
        site: str,
        target: str,
        expert_sha256: str,
        data: DataSpec,
        service: services.ExpertServiceStub,
        *,
        timeout_s: float,
    ) -> None:
        self._site, self._target, self._sha256 = site, target, expert_sha256
        self._data, self._service, self._timeout_s = data, service, timeout_s
        self.left: int | None = None

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the velocity, `(B, C, H, W)`; arguments on the processor, as for `Expert`.

        Raises:
            DdmFedError: the site refused, nothing came for the timeout, or what came is no answer.
        """
        classes = condition.labels.numpy() if isinstance(condition, ClassCondition) else None
        request = write_question(self._sha256, x_t.numpy(), t.numpy(), classes)
        retries = Retries(grpc.RpcError, self._timeout_s, judge=self._judge, told=self._told)
        response: messages.EvaluateResponse = retries.run(
            lambda: self._service.Evaluate(request, timeout=self._timeout_s)
        )
        velocity = read_answer(response, self._sha256, self._data, len(x_t))
        self.left = response.evaluations_left
        return torch.tensor(velocity)

    def _judge(self, error: grpc.RpcError) -> None:
        failure = failure_of(error)
        if failure.error is not None:
            if not isinstance(failure.error, QuotaError | BusyError):
                raise failure.error
        elif failure.status in FINAL:
            raise self._told(error)

    def _told(self, error: grpc.RpcError) -> DdmFedError:
        failure = failure_of(error)
        if failure.error is not None:
            return failure.error
        if failure.status in STRANGER:
            return ExchangeError(
                f"`{self._site}` at {self._target} does not know this coordinator's certificate",
                hint="the site starts `ddm-site serve-expert` again with the newest published "
                "folder",
            )
        return ExchangeError(
            f"`{self._site}` did not answer at {self._target}: "
            f"{failure.details[:300] or failure.status.name}",
            hint="check the address, and that the site runs `ddm-site serve-expert` and shows a "
            "certificate of the roster in force. Then run the same command again: it continues",
        )


def parse_remotes(texts: list[str] | None) -> dict[str, str]:
    """Returns the HOST:PORT of every site in `SITE=HOST:PORT`.

    Raises:
        OptionError: one has another form, or names a site twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        site, equals, target = text.partition("=")
        host, _, port = target.rpartition(":")
        usable = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 1 << 16
        if site in found:
            raise OptionError(
                f"--remote {text}: `{site}` is named twice", hint="give one address of each site"
            )
        if not (site and equals and HOST.fullmatch(host) and usable):
            raise OptionError(
                f"--remote {text}: not SITE=HOST:PORT",
                hint="give for example --remote hospital-a=10.0.0.7:8445 once for every site that "
                "keeps its expert",
            )
        found[site] = target
    return found


@contextmanager
def remote_experts(
    home: CoordinatorFolder,
    verified: VerifiedEnsemble,
    targets: Mapping[str, str],
    *,
    timeout_s: float,
) -> Iterator[dict[str, RemoteExpert]]:
    """Yields what answers for the experts of an ensemble that stay at their sites, by site.

    Args:
        home: Whose key connects, and whose newest roster says which certificates count.
        verified: The ensemble.
        targets: HOST:PORT of each of these sites.
        timeout_s: How long to try for one answer.

    Raises:
        OptionError: a site is named whose expert is in the ensemble.
        StateError: a certificate is missing, or of an earlier version.
    """
    held, chain = held_experts(verified), home.chain()
    if unknown := sorted(targets.keys() - held.keys()):
        raise OptionError(
            f"--remote {unknown[0]}: the ensemble has no expert that stays at `{unknown[0]}`",
            hint=f"those that do are of {', '.join(sorted(held)) or 'no site'}",
        )
    key = _own_key(home, chain.current.server_certificates)
    plan, found = verified.trust.plan, dict[str, RemoteExpert]()
    with ExitStack() as stack:
        for site, target in targets.items():
            pem = _certificates_of(site, chain.current.site(site))
            credentials = grpc.ssl_channel_credentials(pem, key.private_pem, key.certificate_pem)
            options = client_options(site_dns_name(site), message_bytes=most_bytes(plan))
            channel = stack.enter_context(grpc.secure_channel(target, credentials, options))
            service = services.ExpertServiceStub(channel)
            found[site] = RemoteExpert(
                site, target, held[site], plan.data, service, timeout_s=timeout_s
            )
        yield found


def _own_key(home: CoordinatorFolder, listed: tuple[str, ...]) -> TlsKey:
    key = find_tls_key(home.keys, listed)
    if key is None or not key.details.both_ways:
        raise StateError(
            "this coordinator has no certificate in the roster with which it could connect to a "
            "site",
            hint="those of earlier versions only serve: make another with `ddm-coord roster rotate "
            "--server-certificate`, and publish the roster",
        )
    return key


def _certificates_of(site: str, member: RosterSite | None) -> bytes:
    """Returns the certificates with which a site may serve, as PEM."""
    listed = member.certificates if member is not None and member.is_active else ()
    usable = [
        text
        for text in listed
        if check_certificate(text, what=f"the certificate of `{site}`").both_ways
    ]
    if not usable:
        raise StateError(
            f"the roster lists no certificate with which `{site}` could serve",
            hint="the site makes one with `ddm-site rotate --certificate`, and the coordinator "
            "takes its request with `ddm-coord roster rotate`",
        )
    return b"".join(map(certificate_pem_of, usable))
