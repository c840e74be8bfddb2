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
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from ddm_fed.errors import MechanismError

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]
Origin = Literal["csprng", "test"]
SECRET_BYTES = 32
MANTISSA = 2.0**-53
AT_ONCE = 1 << 16  # so many stay in the cache
_NOTHING = memoryview(bytes(8 * AT_ONCE))


class Stream:
    """An endless stream of random numbers from one key."""

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
        self._encryptor = cipher.encryptor()

    def uniform(self, count: int) -> Floats:
        """Returns `count` numbers of 53 bits, each in [0, 1)."""
        words, found = self._words(count), np.empty(count)
        for start in range(0, count, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            found[part] = _uniform(words[part])
        return found

    def normal(self, count: int) -> Floats:
        """Returns `count` standard normal numbers in float64; see `normals`."""
        (found,) = self.normals([count])
        return found

    def normals(self, counts: Sequence[int]) -> Iterator[Floats]:
        """Yields so many standard normal numbers each, in float64, by Box and Muller's transform.

        Floating point bounds them by 8.6 in absolute value, which a normal exceeds with a
        probability below 1e-17, and leaves gaps between them; see docs/privacy.md.
        """
        together: list[int] = []
        for index, count in enumerate(counts, start=1):
            together.append(count)
            if sum(together) >= AT_ONCE or index == len(counts):
                yield from self._normals(together)
                together = []

    def _normals(self, counts: Sequence[int]) -> list[Floats]:
        halves = [(count + 1) // 2 for count in counts]
        ends = np.cumsum(halves)
        starts, total = ends - halves, int(ends[-1])
        words = self._words(2 * total)
        # of each array, the first half of the words makes radii and the second makes angles
        radii = np.concatenate([words[2 * s : s + e] for s, e in zip(starts, ends, strict=True)])
        angles = np.concatenate([words[s + e : 2 * e] for s, e in zip(starts, ends, strict=True)])
        cosines, sines = torch.empty((2, total), dtype=torch.float64)
        for start in range(0, total, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            # 1 - u is never 0
            radius = torch.from_numpy(_uniform(radii[part])).neg_().log1p_().mul_(-2).sqrt_()
            angle = torch.from_numpy(_uniform(angles[part])).mul_(2 * math.pi)
            torch.mul(radius, angle.cos(), out=cosines[part])
            torch.mul(radius, angle.sin_(), out=sines[part])
        return [
            np.concatenate([cosines[s:e], sines[s:e]])[:count]
            for s, e, count in zip(starts, ends, counts, strict=True)
        ]

    def _words(self, count: int) -> Words:
        """Returns the next `count` words of 64 bits."""
        found = np.empty(count, dtype="<u8")
        for start in range(0, count, AT_ONCE):
            part = found[start : start + AT_ONCE].view(np.uint8).data
            self._encryptor.update_into(_NOTHING[: len(part)], part)
        return found


def _uniform(words: Words) -> Floats:
    return (words >> np.uint64(11)).astype(np.float64) * MANTISSA


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
