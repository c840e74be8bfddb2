"""Ledgers that are as dear to price as the limits allow, from a member with a true key."""

import json
import shutil
import time
from decimal import Decimal

import pytest
from commands import run
from federation import SITES, Federation
from member import Member, at_work, bundles_of, honest_wait, hostile_ledger, served

from coordinator.inbox.ledger_prices import Prices
from ddm_fed.bundle.submission import read_submission
from ddm_fed.errors import PolicyError, QuotaError
from ddm_fed.privacy import epsilon
from ddm_fed.records import SampledGaussianEvent
from sites.outbox.released import read_released

pytestmark = pytest.mark.slow

A, B, C = SITES
DEAREST = 8  # times what an honest ledger of three kinds costs on the same machine; found: 4
# (sampling rate, noise, steps): kinds that differ by a little each
LEDGERS = {
    "wide losses": ("0.0001", "0.5", 3),
    "many steps of wide losses": ("0.000001", "0.3", 20_000),
    "many steps of narrow losses": ("0.000001", "1", 10**6),
    "all at the limit": ("0.0001", "0.7", 200_000),
    "every unit in every step": ("1", "2000", 10**6),
}


def events(rate: str, noise: str, steps: int, kinds: int = 50) -> list[SampledGaussianEvent]:
    return [
        SampledGaussianEvent(
            sampling_rate=Decimal(rate),
            noise_multiplier=Decimal(noise) * (1000 + kind) / 1000,
            steps=steps,
        )
        for kind in range(kinds)
    ]


def seconds_to_price(priced: list[SampledGaussianEvent]) -> float:
    """Returns the CPU seconds it takes, so that other work on the machine does not count."""
    started = time.process_time()
    assert epsilon(priced, 1e-5) > 0
    return time.process_time() - started


@pytest.fixture(scope="module")
def honest() -> float:
    return seconds_to_price(events("0.01", "1.01", 1000, kinds=3))


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("released", *SITES)


@pytest.mark.parametrize("ledger", LEDGERS.values(), ids=LEDGERS)
def test_ledger_as_dear_as_the_limits_allow_costs_little_more_than_an_honest_one(ledger, honest):
    assert seconds_to_price(events(*ledger)) < DEAREST * honest


@pytest.mark.parametrize("ledger", [("0.01", "1", 100), ("0.001", "0.8", 50)], ids=str)
def test_price_of_many_kinds_is_an_upper_bound_and_not_far_above(ledger):
    noise = ledger[1]
    least = {"noise_multiplier": Decimal(noise)}
    alike = [event.model_copy(update=least) for event in events(*ledger)]
    together = epsilon(events(*ledger), 1e-5)
    dearest = epsilon(alike, 1e-5)  # all with the least noise: one kind, priced finely
    cheapest = [
        event.model_copy(update={"noise_multiplier": Decimal(noise) * Decimal("1.05")})
        for event in alike
    ]
    assert epsilon(cheapest, 1e-5) < together <= 1.01 * dearest


def test_honest_bundle_is_admitted_soon_while_hostile_ledgers_come(fed, scratch):
    with served(fed) as port:
        attacker = Member(fed, port, A)
        bundles = bundles_of(attacker, scratch / "hostile", 4, hostile_ledger)
        with at_work([lambda item=item: attacker.bring(item) for item in bundles]) as answers:
            time.sleep(0.5)
            waited = honest_wait(fed, port, B)
    assert waited < 15  # 60 and more where they were priced under the lock
    assert {answer.code for answer in answers} == {"DDM210"}
    assert not list(fed.home.refused.iterdir())  # no byte of them was taken


def offered(fed: Federation, number: int):
    member = Member(fed, 0, A)
    folder = member.forged(
        fed.path / f"hostile-{number}", lambda fields: hostile_ledger(fields, number)
    )
    return submission_in(fed, folder)


def submission_in(fed: Federation, folder):
    envelope = read_released(folder).envelope
    statement, digest = read_submission(envelope, fed.trust.chain, what="it")
    return statement.predicate, digest


def test_price_is_remembered_by_the_digest_of_the_manifest(fed):
    prices = Prices()
    submission, digest = offered(fed, 1)
    for _ in range(2):
        started = time.process_time()
        with pytest.raises(PolicyError, match="states epsilon"):
            prices.require(submission, digest, fed.trust, what="it")
    assert time.process_time() - started < 0.05


def test_site_that_used_up_its_allowance_waits_and_others_do_not(fed):
    prices = Prices(allowance_s=0.01)
    with pytest.raises(PolicyError):
        prices.require(*offered(fed, 71), fed.trust, what="it")
    with pytest.raises(QuotaError, match=f"`{A}`"):
        prices.require(*offered(fed, 72), fed.trust, what="it")
    prices.require(*submission_in(fed, Member(fed, 0, B).original), fed.trust, what="it")


def test_hostile_ledgers_in_a_folder_are_refused_by_the_command_and_honest_ones_admitted(
    fed, scratch
):
    attacker = Member(fed, 0, A)
    hostile = bundles_of(attacker, scratch / "hostile", 2, hostile_ledger)
    for bundle in (*hostile, read_released(Member(fed, 0, B).original)):
        shutil.copytree(bundle.folder, fed.home.incoming / bundle.digest)
    ended = run("ddm-coord", "admit", "--json", "--coordinator", fed.home.path)
    found = [(item["admitted"], item["code"]) for item in json.loads(ended.out)]
    assert sorted(found, key=str) == [(False, "DDM210"), (False, "DDM210"), (True, None)]
    assert [entry.receipt.site for entry in fed.log.receipts()] == [B]
