"""What crosses a network between a site and its coordinator: messages generated from `protos/`.

Transport only. Whatever it carries is verified after it arrived, like anything that came otherwise.
"""

from ddm_fed.exchange.channel import CHUNK_BYTES as CHUNK_BYTES
from ddm_fed.exchange.channel import SERVER_NAME as SERVER_NAME
from ddm_fed.exchange.channel import client_options as client_options
from ddm_fed.exchange.channel import server_options as server_options
from ddm_fed.exchange.v1 import exchange_pb2 as messages
from ddm_fed.exchange.v1 import exchange_pb2_grpc as services

__all__ = [
    "CHUNK_BYTES",
    "SERVER_NAME",
    "client_options",
    "messages",
    "server_options",
    "services",
]
