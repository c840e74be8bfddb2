"""What crosses a network between a site and its coordinator: messages generated from `protos/`.

Transport only. Whatever it carries is verified after it arrived, like anything that came otherwise.
"""

from ddm_fed.exchange.channel import CHUNK_BYTES as CHUNK_BYTES
from ddm_fed.exchange.channel import DATE as DATE
from ddm_fed.exchange.channel import MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES
from ddm_fed.exchange.channel import SERVER_NAME as SERVER_NAME
from ddm_fed.exchange.channel import client_options as client_options
from ddm_fed.exchange.channel import server_options as server_options
from ddm_fed.exchange.error_details import Failure as Failure
from ddm_fed.exchange.error_details import details_of as details_of
from ddm_fed.exchange.error_details import failure_of as failure_of
from ddm_fed.exchange.error_details import rebuilt as rebuilt
from ddm_fed.exchange.error_details import status_of as status_of
from ddm_fed.exchange.handlers import handlers as handlers
from ddm_fed.exchange.v1 import exchange_pb2 as messages
from ddm_fed.exchange.v1 import exchange_pb2_grpc as services

__all__ = [
    "CHUNK_BYTES",
    "DATE",
    "MAX_MESSAGE_BYTES",
    "SERVER_NAME",
    "Failure",
    "client_options",
    "details_of",
    "failure_of",
    "handlers",
    "messages",
    "rebuilt",
    "server_options",
    "services",
    "status_of",
]
