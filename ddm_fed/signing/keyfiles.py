"""Keys in a folder: `site.pem` beside `site.pub`, and after a rotation `site-2.pem` and so on.

The `.pub` file is one line of text, `ed25519 HEX`. It holds nothing secret; it is what people send.
"""

import re
from pathlib import Path

from ddm_fed.errors import KeyFileError
from ddm_fed.signing.keys import SigningKey, VerifyKey
from ddm_fed.storage.files import write_atomically

_PUBLIC = re.compile(rb"ed25519 ([0-9a-f]{64})\n?")


def new_key(folder: Path, name: str) -> SigningKey:
    """Returns a new key, written to the next of `NAME.pem`, `NAME-2.pem`, ... in `folder`."""
    return write_key(next_file(folder, name))


def next_file(folder: Path, name: str) -> Path:
    """Returns where the next key of this name goes: behind the last, also where one is missing."""
    files = key_files(folder, name)
    if not files:
        return folder / f"{name}.pem"
    number = files[-1].stem.removeprefix(name).removeprefix("-")
    return folder / f"{name}-{int(number or 1) + 1}.pem"


def write_key(file: Path) -> SigningKey:
    """Returns a new key, written to `file` and, its public half, to the `.pub` beside it.

    Raises:
        KeyFileError: `file` exists.
    """
    key = SigningKey.generate()
    key.write(file)
    # without it the key itself is asked
    write_atomically(file.with_suffix(".pub"), f"ed25519 {key.public.hex}\n".encode())
    return key


def read_public(file: Path) -> VerifyKey:
    """Returns the public key in the `.pub` file.

    Raises:
        KeyFileError: there is none, or it is something else.
        WeakKeyError: with that key a signature would prove nothing.
    """
    try:
        with file.open("rb") as source:
            found = _PUBLIC.fullmatch(source.read(200))
    except OSError as error:
        raise KeyFileError(
            f"the public key file {file} cannot be read: {error.strerror}",
            hint="give the .pub file that `keygen` wrote beside the key",
        ) from None
    if found is None:
        raise KeyFileError(
            f"{file} is not a public key file",
            hint="give the .pub file that `keygen` wrote beside the key: one line, `ed25519 HEX`",
        )
    return VerifyKey.from_hex(found[1].decode())


def key_files(folder: Path, name: str) -> list[Path]:
    """Returns the private key files of this name in `folder`, oldest first."""
    numbered = re.compile(rf"{re.escape(name)}(?:-(\d+))?\.pem")
    found = [(numbered.fullmatch(file.name), file) for file in folder.glob("*.pem")]
    return [
        file for _, file in sorted((int(m[1] or 1), file) for m, file in found if m is not None)
    ]


def public_of(file: Path) -> VerifyKey:
    """Returns the public half of the private key file `file`, from its `.pub` if there is one."""
    public = file.with_suffix(".pub")
    return read_public(public) if public.exists() else SigningKey.read(file).public


def find_key(folder: Path, name: str, public_hex: str) -> SigningKey:
    """Returns the private key for `public_hex` among the keys of this name in `folder`.

    Raises:
        KeyFileError: none of them is it.
    """
    for file in key_files(folder, name):
        if public_of(file).hex != public_hex:
            continue
        key = SigningKey.read(file)
        if key.public.hex == public_hex:  # a .pub can be wrong; the key itself cannot
            return key
    raise KeyFileError(
        f"no {name} key in {folder} is the one the roster names, {public_hex[:16]}…",
        hint="restore it from backup; if it is lost, rotate to a new key",
    )
