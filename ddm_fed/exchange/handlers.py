"""How a server takes calls: as streams, so that it sees them before their message has come."""

from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass


def handlers(service: ServiceDescriptor, answers: object) -> grpc.GenericRpcHandler:
    """Returns the handlers of `service`, for `Server.add_generic_rpc_handlers`.

    Every method takes an iterator of messages, also where the client sends exactly one: gRPC calls
    it when the head of the call has arrived.

    Args:
        service: As the .proto describes it.
        answers: Has a method for each call that is served: an iterator and a context in; a message
            out, or an iterator of messages if the call streams them.
    """
    found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for call in service.methods:
        method = getattr(answers, call.name, None)
        if method is None:
            continue
        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if call.server_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        found[call.name] = make(
            method,
            request_deserializer=GetMessageClass(call.input_type).FromString,
            response_serializer=GetMessageClass(call.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, found)
