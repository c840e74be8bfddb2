"""Randomness that privacy rests on: ChaCha20 under a key of the operating system's.

Inclusion and noise of step s come from a stream of their own, a function of the run's secret and s,
so that a resumed run draws what the killed one drew, bit for bit, and no step is ever noised in two
ways. Who knows the secret can subtract the noise: it lives in the private checkpoint while the run
lasts, and is erased with its end.
"""

import hashlib
import hmac
import math
import os
from typing import Literal, Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from ddm_fed.errors import MechanismError

Floats = NDArray[np.float64]
Origin = Literal["csprng", "test"]
SECRET_BYTES = 32
MANTISSA = 2.0**-53
PAIRS_AT_ONCE = 1 << 16


class Stream:
    """An endless stream of random numbers from one key."""

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
        self._encryptor = cipher.encryptor()

    def uniform(self, count: int) -> Floats:
        """Returns `count` numbers of 53 bits, each in [0, 1)."""
        words = np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")
        return (words >> np.uint64(11)).astype(np.float64) * MANTISSA

    def normal(self, count: int) -> Floats:
        """Returns `count` standard normal numbers in float64, by Box and Muller's transform.

        Floating point bounds them by 8.6 in absolute value, which a normal exceeds with a
        probability below 1e-17, and leaves gaps between them; see docs/privacy.md.
        """
        half = (count + 1) // 2
        uniform = torch.from_numpy(self.uniform(2 * half))
        found = torch.empty(2 * half, dtype=torch.float64)
        for start in range(0, half, PAIRS_AT_ONCE):  # stay in the cache
            pairs = slice(start, min(start + PAIRS_AT_ONCE, half))
            others = slice(half + start, half + pairs.stop)
            radius = torch.log1p(-uniform[pairs]).mul_(-2).sqrt_()  # 1 - u is never 0
            angle = uniform[others] * (2 * math.pi)
            torch.mul(radius, angle.cos(), out=found[pairs])
            torch.mul(radius, angle.sin(), out=found[others])
        normal: Floats = found[:count].numpy()
        return normal


class Randomness:
    """The secret of a run, and the streams that follow from it.

    Attributes:
        origin: "test" if somebody knows the secret: nothing made with it may be released.
    """

    __slots__ = ("_secret", "origin")

    def __init__(self, secret: bytes, origin: Origin) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, this one {len(secret)}")
        self._secret = secret
        self.origin: Origin = origin

    @classmethod
    def from_system(cls) -> Self:
        """Returns randomness nobody knows."""
        return cls(os.urandom(SECRET_BYTES), "csprng")

    @classmethod
    def for_tests(cls, seed: int) -> Self:
        """Returns randomness anybody can repeat. A coordinator refuses what was made with it."""
        return cls(hashlib.sha256(f"ddm-fed test {seed}".encode()).digest(), "test")

    @classmethod
    def from_hex(cls, text: str, origin: Origin) -> Self:
        """Returns what `hex` described."""
        return cls(bytes.fromhex(text), origin)

    @property
    def hex(self) -> str:
        """The secret, for the private checkpoint and for nothing else."""
        return self._secret.hex()

    def derived(self, purpose: str) -> "Randomness":
        """Returns randomness of its own for `purpose`: always the same, and as well known."""
        key = hmac.digest(self._secret, f"derived/{purpose}".encode(), "sha256")
        return Randomness(key, self.origin)

    def seed(self, purpose: str) -> int:
        """Returns a number of 62 bits for what needs no secrecy; the secret stays unknown."""
        return self._short(purpose, 0, 0) >> 1

    def rewind(self, generator: torch.Generator, purpose: str, step: int, unit: int) -> None:
        """Sets `generator` to where the draws of `unit` in `step` begin: always the same place.

        For what a unit shows, which is clipped whatever it is; never for inclusion or noise. Each
        unit has draws of its own, so that no other unit's presence changes them.
        """
        generator.manual_seed(self._short(purpose, step, unit))

    def _short(self, purpose: str, step: int, unit: int) -> int:
        key = hmac.digest(self._secret, f"{purpose}/{step}/{unit}".encode(), "sha256")
        return int.from_bytes(key[:8], "little") >> 1

    def stream(self, purpose: str, step: int) -> Stream:
        """Returns the stream of `purpose` in `step`: always the same one."""
        key = hmac.digest(self._secret, f"{purpose}/{step}".encode(), "sha256")
        return Stream(key)

    def __repr__(self) -> str:
        return f"Randomness(…, {self.origin})"


def fresh_secret() -> Randomness:
    """Returns a secret that nobody knows, for one training.

    Raises:
        MechanismError: the operating system's secrets repeat.
    """
    first, second = Randomness.from_system(), Randomness.from_system()
    if first.hex == second.hex or first.origin != "csprng":
        raise MechanismError(
            "the operating system gave the same random bytes twice",
            hint="noise that can be foreseen protects nobody: train on another machine",
        )
    return first
