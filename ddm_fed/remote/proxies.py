"""Which proxy lies between here and a coordinator, so that errors can name it."""

import os
from ipaddress import ip_address, ip_network

# what gRPC reads, in its order, and in small letters only
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
EVERYBODYS = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


def proxy_to(host: str) -> str | None:
    """Returns the proxy through which gRPC reaches `host`, in words; None if it needs none.

    A name or a password in the proxy's address is left out.
    """
    for name in VARIABLES:
        if os.environ.get(name):
            if _is_excepted(host.strip("[]")):
                return None
            return f"the proxy {_place(os.environ[name])}, which {name} names"
    return None


def proxies_named() -> str:
    """Returns the variables that may send connections through a proxy here, in words, or ""."""
    return ", ".join(name for name in EVERYBODYS if os.environ.get(name))


def _place(url: str) -> str:
    """Returns HOST:PORT of a proxy: neither a name nor a password, nor what stands around them."""
    place = url.rpartition("@")[2]
    return (place.partition("://")[2] or place).partition("/")[0]


def _is_excepted(host: str) -> bool:
    listed = next((os.environ[name] for name in EXCEPTIONS if os.environ.get(name)), "")
    for item in filter(None, (part.strip() for part in listed.split(","))):
        if host.lower().endswith(item.lower()):
            return True
        try:
            if ip_address(host) in ip_network(item, strict=False):
                return True
        except ValueError:  # one of them is a name
            continue
    return False
