"""Settings both ends of a connection have to agree on, and the reasons for them."""

# 256 KiB were fastest of 64 KiB to 4 MiB over loopback with TLS, and keep memory small.
CHUNK_BYTES = 256 * 1024
# A chunk and what surrounds it, or a signed document of 1 MiB.
MAX_MESSAGE_BYTES = 3 * 512 * 1024
MAX_METADATA_BYTES = 16 * 1024
# The name in the coordinator's certificate. Certificates are pinned, so hosts are not in them.
SERVER_NAME = "coordinator.ddm-fed"
DATE = "date"  # trailing metadata of an answer: the coordinator's clock, as HTTP writes it
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, LEAST_PING_MS = 60_000, 20_000, 30_000
CONNECTION_AGE_MS, CONNECTION_GRACE_MS = 30 * 60_000, 5 * 60_000
CONNECTION_IDLE_MS, SETTINGS_MS = 5 * 60_000, 20_000
HANDSHAKE_MS = 10_000

Options = list[tuple[str, int | str]]


def client_options(
    server_name: str = SERVER_NAME, *, message_bytes: int = MAX_MESSAGE_BYTES
) -> Options:
    """Returns the channel options of whoever connects.

    Args:
        server_name: The name in the other side's certificate.
        message_bytes: The longest message that is taken.
    """
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.enable_retries", 0),  # every retry asks first where the upload stands
    ]


def server_options(*, calls_at_once: int, message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Returns the options of a server.

    Args:
        calls_at_once: Of one connection; a client that keeps to it lets further ones wait.
        message_bytes: The longest message that is taken.
    """
    return [
        ("grpc.max_concurrent_streams", calls_at_once),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", LEAST_PING_MS),
        # a connection outlives a change of the roster no longer than this; a cut stream resumes
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
        ("grpc.max_connection_idle_ms", CONNECTION_IDLE_MS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        # until it acknowledges what we ask for, a client is not bound by it
        ("grpc.http2.settings_timeout", SETTINGS_MS),
    ]
