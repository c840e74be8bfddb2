"""A folder at a URL, through fsspec: a bucket, an SFTP server, memory in tests."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
from fsspec.utils import infer_storage_options

from ddm_fed.errors import OptionError, StateError
from ddm_fed.remote.base import Entry, Kind, RemoteFolder, Source, Target, within_entries
from ddm_fed.remote.failures import Calling, without_secrets
from ddm_fed.storage.files import PART_PREFIX

SSH = ("sftp", "ssh")
BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
# by name, since importing their modules would need their packages
RENAMING = {"SFTPFileSystem", "LocalFileSystem"}
APPENDING = {*RENAMING, "MemoryFileSystem"}
KEEPALIVE_S = 30
READ_AHEAD = 64  # requests of 32 KiB on their way at once, so that distance costs little


class UrlFolder(RemoteFolder):
    """A folder at a URL.

    Args:
        url: The URL; user name and password in it are never shown.
        timeout_s: How long the other side may be silent.

    Raises:
        OptionError: it is no URL.
        StateError: there is no driver for it, or it refused us.
        ExchangeError: it cannot be reached just now.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.name, self._url, self._timeout_s = without_secrets(url), url, timeout_s
        self._protocol = url.partition("://")[0]
        self._secrets: tuple[str, ...] = ()
        try:
            password = infer_storage_options(url).get("password")
            with self._calling():
                fsspec.get_filesystem_class(self._protocol)
        except ValueError:  # no such protocol, or no number where a port should be
            raise OptionError(
                f"{self.name}: fsspec does not know this kind of URL",
                hint="give a path, or a URL such as s3://BUCKET/FOLDER, sftp://HOST/FOLDER or "
                "file:///FOLDER; a coordinator that listens has grpcs://HOST:PORT",
            ) from None
        self._secrets = (password,) if password else ()
        self._connect()

    def _calling(self) -> Calling:
        return Calling(self.name, self._protocol, self._secrets)

    def _connect(self) -> None:
        with self._calling():
            options: dict[str, Any] = {"skip_instance_cache": True}
            if self._protocol in SSH:
                from ddm_fed.remote.hosts import known_hosts_only

                options["host_key_policy"] = known_hosts_only()
                wait = min(self._timeout_s, KEEPALIVE_S)
                options |= {"timeout": wait, "banner_timeout": wait, "auth_timeout": wait}
            if self._protocol in BUCKETS:
                options["use_listings_cache"] = False
            self._files, root = fsspec.url_to_fs(self._url, **options)
            self._root = root.rstrip("/")
            names = {base.__name__ for base in type(self._files).__mro__}
            self.renames, self.appends = bool(names & RENAMING), bool(names & APPENDING)
            if "SFTPFileSystem" in names:  # a link that died must not hold us for ever
                channel = self._files.ftp.get_channel()
                channel.settimeout(self._timeout_s)
                channel.get_transport().set_keepalive(KEEPALIVE_S)

    def require(self) -> None:
        """Refuses a folder that is not there. A bucket has to be there, folders in it come alone.

        Raises:
            StateError: it is not.
        """
        place = self._root.lstrip("/").partition("/")[0] if self._in_bucket else self._root
        with self._calling():
            there = self._protocol == "memory" or self._files.exists(place or "/")
        if not there:
            raise StateError(
                f"there is no {'bucket' if self._in_bucket else 'folder'} at {self.name}",
                hint="check the URL; it has to be there already, and we have to be allowed to see "
                "it",
            )

    @property
    def _in_bucket(self) -> bool:
        return self._protocol in BUCKETS

    def entries(self, folder: str) -> list[Entry]:
        """Returns what is in `folder`, by name; nothing if it is not there."""
        place = self._at(folder)
        with self._calling():
            self._files.invalidate_cache()
            try:
                found = self._files.ls(place or "/", detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        listed = [_entry_of(item) for item in found if item["name"].strip("/") != place.strip("/")]
        return within_entries(listed, f"{self.name}/{folder}")

    def read(self, path: str, limit: int) -> bytes | None:
        """Returns the bytes of a file, at most `limit + 1`; None if it is not there."""
        with self._calling():
            try:
                with self._files.open(self._at(path), "rb") as file:
                    return bytes(file.read(limit + 1))
            except FileNotFoundError:
                return None

    def write(self, path: str, data: bytes) -> None:
        """Writes a short file; in one step, where the other side has one."""
        target = self._at(path)
        with self._calling():
            self._make_parent(target)
            if not self.renames:
                self._files.pipe_file(target, data)
                return
            folder, _, name = target.rpartition("/")
            part = f"{folder}/{PART_PREFIX}{name}"
            self._files.pipe_file(part, data)
            self._files.mv(part, target)

    @contextmanager
    def reading(self, path: str, start: int = 0) -> Iterator[Source]:
        """Yields a file, open for reading from byte `start` on."""
        with self._calling(), self._files.open(self._at(path), "rb") as file:
            file.seek(start)
            if hasattr(file, "prefetch"):
                file.prefetch(max_concurrent_requests=READ_AHEAD)
            yield file

    @contextmanager
    def writing(self, path: str, *, append: bool = False) -> Iterator[Target]:
        """Yields a file, open for writing: anew, or after what is there."""
        target = self._at(path)
        with self._calling():
            self._make_parent(target)
            with self._files.open(target, "ab" if append else "wb") as file:
                if hasattr(file, "set_pipelined"):
                    file.set_pipelined(True)
                yield file

    def rename(self, old: str, new: str) -> None:
        """Gives a folder another name, where `renames`."""
        with self._calling():
            self._files.mv(self._at(old), self._at(new))

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        with self._calling(), suppress(FileNotFoundError):
            self._files.rm_file(self._at(path))

    def _at(self, inner: str) -> str:
        return f"{self._root}/{inner}" if inner else self._root

    def _make_parent(self, target: str) -> None:
        if not self._in_bucket:  # a bucket has no folders, and its driver would make buckets
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)


def _entry_of(item: dict[str, Any]) -> Entry:
    kinds: dict[str, Kind] = {"file": "file", "directory": "folder", "link": "link"}
    kind = "link" if item.get("islink") else kinds.get(item["type"], "other")
    name = item["name"].rstrip("/").rpartition("/")[2]
    return Entry(name, kind, int(item.get("size") or 0))
