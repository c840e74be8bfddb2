"""`ddm-coord export diffusers`: what `DiffusionPipeline.from_pretrained` makes of the folder."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from federation import a_plan, create_federation, flip, random_images, snapshot, train

import ddm_fed
from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.errors import RefusedError, StateError
from sites.outbox import stages as outbox
from sites.transport import submit
from sites.transport.base import FolderTransport

# the second line is for machines whose torchvision was built for another torch, as ours may be
LOAD = """
import sys, torch, numpy as np
from ddm_fed.embedding.public_weights import import_torchvision; import_torchvision()
from diffusers import DiffusionPipeline
folder, root, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(
    folder, custom_pipeline=f"{folder}/pipeline.py", trust_remote_code=True, root=root
)
found = pipe(5, generator=torch.Generator().manual_seed(3), num_inference_steps=2)
np.save(out, np.stack([np.asarray(image) for image in found.images]))
"""


@pytest.fixture
def exported(run, stages, scratch):
    """The pipeline folder of the federation's ensemble."""
    root, out = stages.admitted.root, scratch / "pipeline"
    done = run("ddm-coord", "export", "diffusers", stages.ensemble, "--root", root, "--out", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture
def from_pretrained(monkeypatch, scratch):
    """Loads a pipeline folder in this process, with a cache of its own."""
    import_torchvision()
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(scratch / "modules"))

    def load(folder, **options):
        code = f"{folder}/pipeline.py"
        return DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=code, trust_remote_code=True, **options
        )

    return load


def test_folder_loaded_in_another_process_gives_the_very_images_of_the_command(
    run, stages, exported, scratch
):
    root = stages.admitted.root
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    kept |= {"HF_HOME": str(scratch / "hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", LOAD, exported, root, scratch / "images.npy"],
        env=kept,
        cwd=scratch,
        check=True,
        timeout=200,
    )
    few = ("--count", 5, "--steps", 2, "--seed", 3, "--no-png", "--device", "cpu")
    words = ("sample", stages.ensemble, "--root", root, "--out", scratch / "out", *few)
    assert run("ddm-coord", *words).code == 0
    with np.load(scratch / "out" / "samples.npz") as told:
        assert np.array_equal(np.load(scratch / "images.npy"), told["images"][:, 0])


def test_signed_folder_in_it_is_the_one_that_was_signed(run, stages, exported):
    assert snapshot(exported / "ensemble") == snapshot(stages.ensemble)
    root = stages.admitted.root
    assert run("ddm-coord", "verify", exported / "ensemble", "--root", root).code == 0
    weights = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert weights & {".bin", ".pt", ".pth", ".ckpt", ".pkl"} == set()


def test_folder_that_was_altered_or_is_of_another_root_is_refused(
    exported, stages, from_pretrained
):
    with pytest.raises(RefusedError):
        from_pretrained(exported, root="sha256:" + "b" * 64)
    flip(exported / "ensemble" / "sites" / "hospital-c" / "expert.safetensors", -1)
    with pytest.raises(RefusedError, match="hospital-c"):
        from_pretrained(exported, root=stages.admitted.root)
    with pytest.warns(UserWarning, match="nothing says whose"), pytest.raises(RefusedError):
        from_pretrained(exported)


def test_without_a_root_the_pipeline_says_what_it_does_not_know(exported, from_pretrained):
    with pytest.warns(UserWarning, match="nothing says whose"):
        pipe = from_pretrained(exported)
    found = pipe(3, num_inference_steps=1, output_type="np").images
    assert found.shape == (3, 8, 8, 1)
    with pytest.raises(StateError, match="not saved again"):
        pipe.ensemble.save_pretrained("anywhere")


def test_pipeline_takes_the_options_of_the_command(exported, stages, from_pretrained):
    pipe = from_pretrained(exported, root=stages.admitted.root)
    loaded = ddm_fed.load(stages.ensemble, stages.admitted.root, device="cpu", progress=False)
    expected = loaded.sample(4, strategy="full", solver="euler", steps=3).images
    how = {"strategy": "full", "solver": "euler", "num_inference_steps": 3}
    found = pipe(4, output_type="pt", **how).images
    assert torch.equal((found * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="output_type"):
        pipe(1, num_inference_steps=1, output_type="gif")


def test_other_precision_opens_the_folder_again(exported, stages, from_pretrained):
    pipe = from_pretrained(exported, root=stages.admitted.root, dtype=torch.bfloat16)
    loaded = ddm_fed.load(
        stages.ensemble, stages.admitted.root, device="cpu", precision="bfloat16", progress=False
    )
    expected = loaded.sample(2, steps=2).images
    found = np.stack([np.asarray(image) for image in pipe(2, num_inference_steps=2).images])
    assert np.array_equal(found, expected[:, :, :, 0])
    pipe.to(torch.float32)
    assert pipe.dtype == torch.float32
    again = np.stack([np.asarray(image) for image in pipe(2, num_inference_steps=2).images])
    plain = ddm_fed.load(stages.ensemble, stages.admitted.root, device="cpu", progress=False)
    assert np.array_equal(again, plain.sample(2, steps=2).images[:, :, :, 0])


def test_export_writes_over_nothing(run, stages, exported):
    before = snapshot(exported)
    root = stages.admitted.root
    words = ("export", "diffusers", stages.ensemble, "--root", root, "--out", exported)
    done = run("ddm-coord", *words)
    assert done.code == 1
    assert "exists" in done.err
    assert snapshot(exported) == before


def test_export_of_a_folder_that_does_not_verify_writes_nothing(run, stages, ensemble, scratch):
    flip(ensemble / "sites" / "hospital-a" / "router.safetensors", -1)
    root, out = stages.admitted.root, scratch / "pipeline"
    done = run("ddm-coord", "export", "diffusers", ensemble, "--root", root, "--out", out)
    assert done.code == 1
    assert [path.name for path in scratch.iterdir()] == ["ensemble"]


def test_student_is_exported_the_same_way(run, copy_of, ensemble, scratch, from_pretrained):
    fed = copy_of("admitted")
    at = ("--coordinator", fed.home.path)
    few = ("--samples", 20, "--solver-steps", 2, "--steps", 2)
    assert run("ddm-coord", "distill", ensemble, *at, "--out", scratch / "made", *few).code == 0
    done = run("ddm-coord", "export", "diffusers", scratch / "made", *at, "--out", scratch / "out")
    assert done.code == 0, done.err
    pipe = from_pretrained(scratch / "out", root=fed.root)
    found = np.stack([np.asarray(image) for image in pipe(3, num_inference_steps=2).images])
    loaded = ddm_fed.load(scratch / "made", fed.root, device="cpu", progress=False)
    assert np.array_equal(found, loaded.sample(3, steps=2).images[:, :, :, 0])
    assert "Student of the federation `test`" in (scratch / "out" / "README.md").read_text()


@pytest.mark.slow
def test_expert_that_is_diffusers_network_is_loaded_by_diffusers_alone(run, scratch):
    import_torchvision()
    from diffusers import UNet2DModel

    fed = create_federation(
        scratch / "fed", a_plan(architecture='architecture = "UNet-Nano"'), sites=("hospital-a",)
    )
    site = fed.site("hospital-a")
    train(site, fed.trust, random_images(0))
    outbox.review(site, fed.trust)
    outbox.release(site, fed.trust)
    submit.submit(site, fed.trust, FolderTransport(fed.inbox))
    admit_arrivals(fed.home, fed.trust)
    assemble(fed.home, scratch / "ensemble", router=None, without=())
    out, at = scratch / "out", ("--coordinator", fed.home.path)
    done = run("ddm-coord", "export", "diffusers", scratch / "ensemble", *at, "--out", out)
    assert done.code == 0, done.err
    assert "hospital-a" in done.err
    network = UNet2DModel.from_pretrained(out / "experts" / "hospital-a").eval()
    loaded = ddm_fed.load(scratch / "ensemble", fed.root, device="cpu", progress=False)
    x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = network(x, 1000 * torch.full((2,), 0.4)).sample
    expected = loaded.velocity(x, 0.4, site="hospital-a")
    assert expected.abs().max() > 0
    assert torch.equal(found, expected)
