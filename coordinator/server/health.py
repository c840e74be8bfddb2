"""Says to members whether the coordinator takes bundles, in the words of gRPC's health protocol.

gRPC's own servicer is not used: it answers whoever is connected, before anybody was asked who that
is, and keeps `Watch` open for ever. `Check` is what monitors use; `Watch` is not served.
"""

from grpc_health.v1 import health_pb2

from ddm_fed.listening import Answering, CallContext, answers

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_STATES = health_pb2.HealthCheckResponse


class HealthService:
    """Answers members.

    Args:
        call_context: What every call needs.
        service: The name it tells the state of; "" stands for it too.
    """

    def __init__(self, call_context: CallContext, service: str) -> None:
        self.call_context, self._names = call_context, ("", service)
        self.serving = True

    @answers
    def Check(
        self, call: Answering, request: health_pb2.HealthCheckRequest
    ) -> health_pb2.HealthCheckResponse:
        """Returns the state."""
        del call
        if request.service not in self._names:
            return _STATES(status=_STATES.SERVICE_UNKNOWN)
        return _STATES(status=_STATES.SERVING if self.serving else _STATES.NOT_SERVING)
