"""The folder that `DiffusionPipeline.from_pretrained` loads, around a signed folder as it is.

model_index.json        what diffusers reads first: the one component and its class
pipeline.py             the pipeline: `ddm_fed/export/pipeline.py`
README.md               how to load it, and what is promised
ensemble/               the ensemble or the student, byte for byte: verify it there
experts/SITE/           experts that are diffusers' own UNet2DModel, loadable without ddm-fed
"""

import json
import shutil
from pathlib import Path

import diffusers

from ddm_fed.distillation.folder import VerifiedStudent
from ddm_fed.distillation.opening import Sampled, kind_of, verify_either
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import Mixtures, load_expert
from ddm_fed.errors import StateError
from ddm_fed.models import UNet
from ddm_fed.progress import Advance
from ddm_fed.storage.files import new_folder, write_atomically

SIGNED = "ensemble"
CARD = """\
# {kind} of the federation `{federation}`, for diffusers

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(
    FOLDER, custom_pipeline=f"{{FOLDER}}/pipeline.py", trust_remote_code=True, root=ROOT
)
pipe(16, generator=torch.Generator().manual_seed(0)).images
```

`FOLDER` is this folder, and `ROOT` the fingerprint of the federation, `sha256:…`, which a person
tells you: one that is written beside what it is to prove, proves nothing. It needs `pip install
ddm-fed`. `ensemble/` is what was signed: `ddm-coord verify ensemble --root ROOT` says by whom.

| site | epsilon of its releases | its expert |
| --- | --- | --- |
{rows}
"""


def write_diffusers_folder(
    target: Path, verified: Sampled, *, advance: Advance = lambda _: None
) -> list[str]:
    """Writes a pipeline folder around a verified folder; a kill leaves no `target`.

    What was copied is verified again, so that nothing that was changed meanwhile travels.

    Args:
        target: Must not exist.
        verified: The ensemble, or the student.
        advance: Told the bytes verified.

    Returns:
        The sites whose experts are there as diffusers' own networks as well.

    Raises:
        StateError: `target` exists.
        RefusedError: a file is no longer what was verified.
    """
    if target.exists() or target.is_symlink():
        raise StateError(f"{target} exists; nothing was written there", hint="give a new folder")
    with new_folder(target) as folder:
        shutil.copytree(verified.folder, folder / SIGNED, symlinks=True)
        copied = verify_either(folder / SIGNED, verified.trust.root, advance=advance)
        own = [] if isinstance(copied, VerifiedStudent) else _write_unets(copied, folder)
        index = {
            "_class_name": ["pipeline", "DdmFedPipeline"],
            "_diffusers_version": diffusers.__version__,
            "ensemble": ["ddm_fed.export.component", "SignedEnsemble"],
        }
        write_atomically(folder / "model_index.json", json.dumps(index, indent=2).encode())
        code = Path(__file__).with_name("pipeline.py").read_bytes()
        write_atomically(folder / "pipeline.py", code)
        write_atomically(folder / "README.md", _card(copied).encode())
    return own


def _write_unets(verified: VerifiedEnsemble, folder: Path) -> list[str]:
    """Writes every expert that is diffusers' network and nothing else; returns their sites."""
    found, mixtures = [], Mixtures(verified)
    for place, bundle in enumerate(verified.bundles):
        if not bundle.submission.expert.architecture.startswith("UNet-"):
            continue
        network = load_expert(verified, place, mixtures).network
        if isinstance(network, UNet):
            network.save_pretrained(folder / "experts" / bundle.site)
            found.append(bundle.site)
    return found


def _card(verified: Sampled) -> str:
    if isinstance(verified, VerifiedStudent):
        submissions = verified.submissions
    else:
        submissions = tuple(bundle.submission for bundle in verified.bundles)
    rows = [
        f"| {item.site} | {item.privacy.releases_epsilon} | "
        f"{'private' if item.privacy.expert_is_private else 'not private'} |"
        for item in submissions
    ]
    return CARD.format(
        kind=kind_of(verified).capitalize(),
        federation=verified.record.federation,
        rows="\n".join(rows),
    )
