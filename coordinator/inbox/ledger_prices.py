"""The price of a ledger, before any lock is held: remembered, and out of its site's own allowance.

To compose the events of a ledger takes a second or less (`ddm_fed.privacy.accountant` bounds it),
and whoever can sign a manifest can ask for it as often as they like. So every site has so many
seconds, which come back slowly; what was priced once is not priced again.
"""

import time
from collections import OrderedDict
from threading import Lock

from coordinator.inbox.admission import quarantine
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.policy import check_privacy
from ddm_fed.bundle.submission import read_submission
from ddm_fed.errors import PolicyError, QuotaError, RefusedError
from ddm_fed.records import Submission
from ddm_fed.trust import Trust
from ddm_fed.trust.log import read_log

ALLOWANCE_S, BACK_PER_S = 20.0, 1 / 60
MOST_REMEMBERED = 1000


class Prices:
    """Judges what submissions say they cost. Threads may share it."""

    def __init__(self, allowance_s: float = ALLOWANCE_S) -> None:
        self._allowance_s = allowance_s
        self._accounts: dict[str, _Account] = {}
        self._verdicts: OrderedDict[tuple[str, str], PolicyError | None] = OrderedDict()
        self._lock = Lock()

    def require(self, submission: Submission, digest: str, trust: Trust, *, what: str) -> None:
        """Refuses a submission whose ledger does not add up, or cost more than the plan allows.

        Args:
            submission: Its site has signed it.
            digest: Of its manifest.
            trust: The published plan.
            what: Its name, for messages.

        Raises:
            PolicyError: see `check_privacy`.
            QuotaError: its site has used up its allowance.
        """
        key = (digest, trust.plan_sha256)
        with self._lock:
            account = self._accounts.setdefault(submission.site, _Account(self._allowance_s))
        with account.lock:  # one at a time of each site
            if key not in self._verdicts:
                account.require(submission.site)
                started, verdict = time.thread_time(), None
                try:
                    check_privacy(submission, trust, what=what)
                except PolicyError as error:
                    verdict = error
                account.spend(time.thread_time() - started)
                self._remember(key, verdict)
            verdict = self._verdicts.get(key)
        if verdict is not None:
            raise PolicyError(verdict.message, hint=verdict.hint)

    def _remember(self, key: tuple[str, str], verdict: PolicyError | None) -> None:
        with self._lock:
            self._verdicts[key] = verdict
            if len(self._verdicts) > MOST_REMEMBERED:
                self._verdicts.popitem(last=False)


class _Account:
    """Seconds of computing that a site has left."""

    def __init__(self, allowance_s: float) -> None:
        self.lock = Lock()
        self._most = self._left = allowance_s
        self._at = time.monotonic()

    def require(self, site: str) -> None:
        moment = time.monotonic()
        self._left = min(self._most, self._left + (moment - self._at) * BACK_PER_S)
        self._at = moment
        if self._left <= 0:
            raise QuotaError(
                f"the ledgers that `{site}` sent took {self._most:.0f} seconds to price, which is "
                "what a site has",
                hint="send the bundle again in some minutes; if no program of yours sends many, "
                "its key is stolen",
            )

    def spend(self, seconds: float) -> None:
        self._left -= seconds


def price_arrivals(home: CoordinatorFolder, trust: Trust, prices: Prices) -> dict[str, QuotaError]:
    """Prices the ledgers of what waits in the inbox: without the lock, so that nobody waits for it.

    Returns:
        Why an arrival has to wait, by its name: its site has used up its allowance.
    """
    waiting, log = {}, read_log(home.published, trust.chain)
    for arrival in sorted(home.incoming.iterdir()):
        try:
            held = quarantine(arrival)
            statement, digest = read_submission(
                held.envelope, trust.chain, log.size, what=held.what
            )
            if log.find(digest) is None:
                prices.require(statement.predicate, digest, trust, what=held.what)
        except QuotaError as error:
            waiting[arrival.name] = error
        except RefusedError:  # it is refused in its turn, with its first reason
            continue
    return waiting
