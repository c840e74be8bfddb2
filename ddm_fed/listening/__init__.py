"""How a server takes connections and calls of those it does not know yet: bounded, and shared."""

from ddm_fed.listening.callers import Buckets as Buckets
from ddm_fed.listening.callers import Caller as Caller
from ddm_fed.listening.callers import Guard as Guard
from ddm_fed.listening.callers import Places as Places
from ddm_fed.listening.calls import Answering as Answering
from ddm_fed.listening.calls import CallContext as CallContext
from ddm_fed.listening.calls import answers as answers
from ddm_fed.listening.calls import streams as streams
from ddm_fed.listening.calls import takes as takes
from ddm_fed.listening.connection_limits import MOST_MEMBERS as MOST_MEMBERS
from ddm_fed.listening.connection_limits import MOST_STRANGERS as MOST_STRANGERS
from ddm_fed.listening.connection_limits import MOST_WAITING as MOST_WAITING
from ddm_fed.listening.connection_limits import seats as seats
from ddm_fed.listening.gate import Gate as Gate
from ddm_fed.listening.listener import Listener as Listener
from ddm_fed.listening.listener import TlsIdentity as TlsIdentity
from ddm_fed.listening.listener import wait_for_end as wait_for_end
from ddm_fed.listening.watchdog import Watchdog as Watchdog
