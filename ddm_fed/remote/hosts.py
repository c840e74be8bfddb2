"""SSH servers are believed by the key that this machine's `known_hosts` has of them, or not at all.

fsspec by itself accepts any key; a bundle would go to whoever answers.
"""

from pathlib import Path
from typing import Any

KNOWN_HOSTS = (Path("/etc/ssh/ssh_known_hosts"), Path("~/.ssh/known_hosts"))


class UnknownHostKeyError(OSError):
    """The server has a key that no file of known hosts has."""


def known_hosts_only() -> Any:
    """Returns the policy for paramiko.

    Raises:
        ImportError: paramiko is not installed.
    """
    import paramiko

    class KnownHosts(paramiko.MissingHostKeyPolicy):  # type: ignore[misc] # it has no types
        """Accepts the keys of the files of known hosts."""

        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            """Raises unless a file has exactly this key for this host."""
            del client
            known = paramiko.HostKeys()
            for file in KNOWN_HOSTS:
                if file.expanduser().exists():
                    known.load(str(file.expanduser()))
            if not known.check(hostname, key):
                raise UnknownHostKeyError(
                    f"the key {key.fingerprint} of {hostname} is not in known_hosts: compare it "
                    "with its people, then connect once with ssh"
                )

    return KnownHosts()
