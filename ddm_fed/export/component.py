"""A signed folder as a component of a diffusers pipeline: verified when it is opened.

It holds experts, router and sampler together, so that a pipeline has one component and no sampler
of its own.
"""

from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from diffusers import ModelMixin

from ddm_fed.api import LoadedEnsemble, load
from ddm_fed.errors import OptionError, StateError
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust import claimed_pin
from ddm_fed.trust.published import roster_file

PRECISIONS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class SignedEnsemble(ModelMixin):
    """The signed folder of an ensemble or a student; see `open`.

    Args:
        folder: What `ddm-coord assemble` or `distill` wrote, byte for byte.
        dtype: Of the arithmetic, float32 or bfloat16.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._folder, self._root = folder, ""
        self._device, self._dtype = torch.device("cpu"), dtype or torch.float32
        self._parts: dict[str, Any] = {}
        self._loaded: LoadedEnsemble | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> Self:
        """Returns what is in `folder`, not yet opened: diffusers calls it, then the pipeline."""
        return cls(Path(folder), dtype or torch_dtype)

    def open(self, root: str | None, **parts: Any) -> None:
        """Verifies the folder and takes it into memory.

        Args:
            root: The fingerprint, `sha256:…`. None believes the folder's own, so that it proves
                only that the folder is whole and of one hand.
            parts: `autoencoder` and the like, as for `ddm_fed.load`.

        Raises:
            RefusedError: it does not verify.
        """
        if root is None:
            first = read_bounded(self._folder / roster_file(1), MAX_DOCUMENT_BYTES)
            root = claimed_pin(first, what="roster 1")
        self._root, self._parts = root, parts
        self._open()

    def _open(self) -> None:
        if self._dtype not in PRECISIONS:
            raise OptionError(
                f"--precision {self._dtype}: experts compute in float32 or bfloat16",
                hint="give dtype=torch.bfloat16, or leave it out",
            )
        precision = PRECISIONS[self._dtype]
        device = str(self._device)
        self._loaded = load(
            self._folder,
            self._root,
            device=device,
            precision=precision,  # type: ignore[arg-type]  # a value of the table
            progress=False,
            **self._parts,
        )

    @property
    def ensemble(self) -> LoadedEnsemble:
        """What `ddm_fed.load` gives.

        Raises:
            StateError: it was never opened.
        """
        if self._loaded is None:
            raise StateError("this component was not opened", hint="load the pipeline around it")
        return self._loaded

    @property
    def device(self) -> torch.device:
        """Where experts run."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """What experts compute in."""
        return self._dtype

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Opens the folder again on another device or in another precision; returns itself."""
        wanted = (torch.device(device or self._device), dtype or self._dtype)
        if wanted != (self._device, self._dtype):
            self._device, self._dtype = wanted
            if self._loaded is not None:
                self._open()
        return self

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses: what is signed is copied, not written anew.

        Raises:
            StateError: always.
        """
        raise StateError(
            "a signed folder is not saved again: no signature would cover it",
            hint=f"copy the folder around {self._folder}, whole",
        )
