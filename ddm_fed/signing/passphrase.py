"""The passphrase of private key files: from the environment, else from the desktop's keyring.

The keyring is asked only where its package is installed (`pip install 'ddm-fed[keyring]'`); people
store the passphrase with `keyring set ddm-fed keys`.
"""

import os

from ddm_fed.errors import KeyFileError

PASSPHRASE_VARIABLE = "DDM_FED_PASSPHRASE"  # noqa: S105 - the name of a variable, not a secret
KEYRING_SERVICE, KEYRING_USER = "ddm-fed", "keys"


def find_passphrase() -> bytes | None:
    """Returns the passphrase to make and to open key files with, or None if there is none.

    An empty variable says that there is none, whatever the keyring holds.

    Raises:
        KeyFileError: the keyring is locked or failed, so nobody can say whether it holds one.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is not None:
        return given.encode() or None
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
