"""The passphrase of private key files: from the environment, a file, or the desktop's keyring.

The file is for services: whatever starts them (systemd, compose, Kubernetes) hands a secret over as
a file that only they can read, while other processes and logs may show an environment.
The keyring is asked only where its package is installed (`pip install 'ddm-fed[keyring]'`); people
store the passphrase with `keyring set ddm-fed keys`.
"""

import os
from pathlib import Path

from ddm_fed.errors import KeyFileError

PASSPHRASE_VARIABLE = "DDM_FED_PASSPHRASE"  # noqa: S105 - the name of a variable, not a secret
FILE_VARIABLE = "DDM_FED_PASSPHRASE_FILE"
MOST_BYTES = 4096
KEYRING_SERVICE, KEYRING_USER = "ddm-fed", "keys"


def find_passphrase() -> bytes | None:
    """Returns the passphrase to make and to open key files with, or None if there is none.

    An empty DDM_FED_PASSPHRASE says that there is none, whatever a file or the keyring holds.

    Raises:
        KeyFileError: the file or the keyring cannot be read, so nobody can say what it holds.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is not None:
        return given.encode() or None
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return _passphrase_in(Path(named))
    try:
        import keyring
        from keyring.errors import KeyringError, NoKeyringError
    except ModuleNotFoundError:
        return None
    try:
        found = keyring.get_password(KEYRING_SERVICE, KEYRING_USER)
    except NoKeyringError:  # installed on a machine that has no keyring to ask
        return None
    except KeyringError as error:
        raise KeyFileError(
            f"the keyring of this machine did not answer: {str(error) or type(error).__name__}",
            hint=f"unlock it, or set {PASSPHRASE_VARIABLE} instead",
        ) from None
    return found.encode() if found else None


def _passphrase_in(path: Path) -> bytes:
    """Returns the first line of the file, which is not to be empty."""
    try:
        with path.open("rb") as file:  # Kubernetes mounts a link to it
            found = file.read(MOST_BYTES).partition(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be read: {error.strerror}",
            hint=f"{FILE_VARIABLE} names it: write the passphrase there, or unset the variable",
        ) from None
    if not found:
        raise KeyFileError(
            f"the first line of {path} is empty",
            hint=f"{FILE_VARIABLE} names it: write the passphrase there, or unset the variable",
        )
    return found
