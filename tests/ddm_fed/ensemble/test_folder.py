"""Folders that are taken for ensembles; what is forged in one is in tests/attacks."""

from pathlib import Path

import pytest

from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import StateError


def test_folder_that_is_no_ensemble_is_named_as_such(tmp_path: Path):
    with pytest.raises(StateError, match="is no ensemble") as caught:
        verify_ensemble(tmp_path, "sha256:" + "a" * 64)
    assert "ddm-coord assemble" in (caught.value.hint or "")
