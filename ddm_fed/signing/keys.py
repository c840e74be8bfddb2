"""Ed25519 keys: made, kept, named, and refused where a signature would prove nothing.

`cryptography` accepts public keys of small order, under which one signature verifies for many
messages. `VerifyKey` refuses them once, when the key is first read (Chalkias et al. 2020,
arXiv:2012.10404; RFC 8032 section 5.1.3 for decoding).
"""

import errno
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from ddm_fed.errors import KeyFileError, WeakKeyError, names_its_path
from ddm_fed.signing.passphrase import (
    KEYRING_SERVICE,
    KEYRING_USER,
    PASSPHRASE_VARIABLE,
    find_passphrase,
)
from ddm_fed.storage.files import PART_PREFIX, sync_folder

# what file systems of removable media and some shares say where a file cannot have two names
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493  # order of the base point
_D = -121665 * pow(121666, -1, _P) % _P


def fingerprint(raw: bytes) -> str:
    """Returns the key id of 32 public key bytes, whether or not they are a good key."""
    return f"ed25519:{hashlib.sha256(raw).hexdigest()}"


@dataclass(frozen=True)
class VerifyKey:
    """A public key that passed the point check. Equal keys are equal and hash equally."""

    raw: bytes

    def __post_init__(self) -> None:
        _refuse_weak_point(self.raw)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Returns the key written as 64 hex digits."""
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        """The 32 bytes of the key as hex, as rosters hold it."""
        return self.raw.hex()

    @property
    def keyid(self) -> str:
        """`ed25519:` and the SHA-256 of the key: the fingerprint people compare by telephone."""
        return fingerprint(self.raw)

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Returns whether `signature` is this key's over `message` (pure Ed25519, RFC 8032)."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key. It signs, names its public half, and never shows itself."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = VerifyKey(private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey({self.public.keyid[:20]}…)"

    @classmethod
    def generate(cls) -> Self:
        """Returns a new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Returns the key of a 32-byte seed; for published test vectors."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, message: bytes) -> bytes:
        """Returns the 64-byte signature of `message`."""
        return self._private.sign(message)

    def write(self, path: Path) -> None:
        """Writes PKCS#8 PEM with mode 0600, encrypted if there is a passphrase.

        Raises:
            KeyFileError: `path` exists; a key is never overwritten.
        """
        write_private_pem(path, self._private)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Returns the key in the PEM file `path`.

        Raises:
            KeyFileError: the file is missing, others can read it, or it cannot be decrypted.
        """
        private = read_private_pem(path)
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(
                f"the key file {path} does not hold an Ed25519 key", hint="make one with `init`"
            )
        return cls(private)


@names_its_path
def write_private_pem(path: Path, private: Ed25519PrivateKey | EllipticCurvePrivateKey) -> None:
    """Writes PKCS#8 PEM with mode 0600, encrypted if there is a passphrase.

    Raises:
        KeyFileError: `path` exists; a key is never overwritten.
    """
    passphrase = find_passphrase()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    if os.path.lexists(path):
        raise _exists(path)
    if not path.parent.is_dir():
        raise KeyFileError(
            f"there is no folder {path.parent} for the key file {path.name}",
            hint="make the folder first, or choose another path",
        )
    _write_once(path, pem)


def _write_once(path: Path, data: bytes) -> None:
    """Writes `data` to `path` whole or not at all, and never over something else.

    A disk that is full, or a kill, leaves no file of that name: the next attempt starts afresh.
    """
    # the name is random, the mode 0600, and no link is followed
    descriptor, name = tempfile.mkstemp(prefix=PART_PREFIX, dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _name_once(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def _name_once(part: Path, path: Path) -> None:
    try:
        try:
            os.link(part, path)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            # the bytes are on disk already, so no room is missing between these two
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            part.replace(path)
    except FileExistsError:
        raise _exists(path) from None


def _exists(path: Path) -> KeyFileError:
    if path.is_dir():
        return KeyFileError(
            f"{path} is a folder, and a key is a file",
            hint=f"give a file in it, for example {path / 'dpo.pem'}",
        )
    return KeyFileError(
        f"the key file {path} exists already",
        hint="a key is never overwritten; move it away first if you really want a new one",
    )


def read_private_pem(path: Path) -> PrivateKeyTypes:
    """Returns the key, of whatever kind, in the PEM file `path`.

    Raises:
        KeyFileError: the file is missing, others can read it, or it cannot be decrypted.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        pem = path.read_bytes()
    except FileNotFoundError:
        raise KeyFileError(
            f"there is no key file {path}",
            hint="give the path of a key that `init` or `keygen` made, or restore it from backup",
        ) from None
    if mode & 0o077:
        raise KeyFileError(
            f"the key file {path} has mode {mode:04o}, so others on this machine can read it",
            hint=f"chmod 600 {path}",
        )
    if not pem:
        raise KeyFileError(
            f"the key file {path} is empty: no key was ever in it, because the disk was full or "
            "the machine stopped while it was made",
            hint=f"make room, delete {path}, and run the same command again: it makes the key",
        )
    encrypted = b"ENCRYPTED" in pem
    try:
        return serialization.load_pem_private_key(pem, find_passphrase() if encrypted else None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        hint = (
            f"set {PASSPHRASE_VARIABLE} to its passphrase, or store it with "
            f"`keyring set {KEYRING_SERVICE} {KEYRING_USER}`"
            if encrypted
            else "it is damaged, or no key file; no passphrase helps: restore it from backup"
        )
        raise KeyFileError(f"the key file {path} cannot be opened: {error}", hint=hint) from None


def is_encrypted(path: Path) -> bool:
    """Returns whether the private key file `path` needs a passphrase."""
    return b"ENCRYPTED" in path.read_bytes()


def _refuse_weak_point(raw: bytes) -> None:
    """Refuses encodings that are not a point of the prime-order group, in its one spelling."""
    reason = _weakness(bytes(raw))
    if reason is not None:
        raise WeakKeyError(
            f"the public key {raw.hex()[:16]}… is refused: {reason}",
            hint="make a new key with `ddm-site init`; an honest Ed25519 key never looks like this",
        )


@lru_cache(maxsize=1024)  # 4 ms of arithmetic, and each document names the same few keys again
def _weakness(raw: bytes) -> str | None:
    if len(raw) != 32:
        return f"it has {len(raw)} bytes, not 32"
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    point = _decode(y, sign) if y < _P else None
    if point is None:
        return "it is not the canonical encoding of a curve point"
    if _is_identity(_multiply(8, point)):
        return "its point has small order, so one signature would fit many messages"
    if not _is_identity(_multiply(_L, point)):
        return "its point has a small-order part, so verifiers could disagree about it"
    return None


_Point = tuple[int, int, int, int]  # extended coordinates (X, Y, Z, T), x = X/Z, y = Y/Z


def _decode(y: int, sign: int) -> _Point | None:
    numerator, denominator = (y * y - 1) % _P, (_D * y * y + 1) % _P
    square = numerator * pow(denominator, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return (x, y, 1, x * y % _P)


def _add(p: _Point, q: _Point) -> _Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _multiply(scalar: int, point: _Point) -> _Point:
    result: _Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _is_identity(point: _Point) -> bool:
    return point[0] % _P == 0 and (point[1] - point[2]) % _P == 0
