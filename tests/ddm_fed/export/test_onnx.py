"""`ddm-coord export onnx`: one expert's velocity, as another runtime computes it."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from federation import flip

import ddm_fed
from ddm_fed.errors import MachineError, StateError
from ddm_fed.export import onnx_file
from ddm_fed.export.onnx_file import write_onnx
from ddm_fed.flows import ClassCondition, Expert
from ddm_fed.mixture import MixtureVelocity
from ddm_fed.models import build_network
from ddm_fed.records import DataSpec, ExpertDesign


def answer(file, **given):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in given.items()})[0]


@pytest.mark.slow
def test_command_writes_what_the_site_s_expert_says_for_any_number_of_images(run, stages, scratch):
    root, out = stages.admitted.root, scratch / "expert.onnx"
    words = ("export", "onnx", stages.ensemble, "--root", root, "--out", out)
    done = run("ddm-coord", *words, "--site", "hospital-b")
    assert done.code == 0, done.err
    loaded = ddm_fed.load(stages.ensemble, root, device="cpu", progress=False)
    for count in (1, 7):
        x = torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(count))
        t = torch.linspace(0, 1, count)
        expected = loaded.velocity(x, t, site="hospital-b").numpy()
        other = loaded.velocity(x, t, site="hospital-a").numpy()
        found = answer(out, x=x, t=t)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert np.abs(found - other).max() > 1e-3
    told = {item.key: item.value for item in onnx.load(out).metadata_props}
    report = loaded.report()
    assert (told["site"], told["ensemble_sha256"]) == ("hospital-b", report["ensemble_sha256"])
    again = run("ddm-coord", *words, "--site", "hospital-b")
    assert (again.code, "exists" in again.err) == (1, True)


def test_command_refuses_what_does_not_verify_and_no_site(run, stages, ensemble, scratch):
    root, out = stages.admitted.root, scratch / "expert.onnx"
    for words in ((), ("--site", "hospital-z")):
        done = run(*("ddm-coord", "export", "onnx", ensemble, "--root", root, "--out", out, *words))
        assert (done.code, "--site" in done.err) == (2, True)
    flip(ensemble / "sites" / "hospital-a" / "expert.safetensors", -1)
    words = ("export", "onnx", ensemble, "--root", root, "--out", out, "--site", "hospital-a")
    assert run("ddm-coord", *words).code == 1
    assert not out.exists()


CLASSES = DataSpec(channels=1, height=8, width=8, conditioning="class", classes=("cat", "dog"))


def drawn(design):
    network = build_network(CLASSES, design)
    generator = torch.Generator().manual_seed(0)
    network.reset_parameters(generator)
    for value in network.parameters():
        value.data += 0.02 * torch.randn(value.shape, generator=generator)
    return Expert(network.eval().requires_grad_(False), design.path, design.prediction)


@pytest.mark.slow
def test_classes_paths_and_predictions_are_in_the_file(tmp_path, monkeypatch):
    expert = drawn(ExpertDesign(architecture="Conv-Nano/2", path="cosine", prediction="image"))
    assert write_onnx(tmp_path / "a.onnx", expert, CLASSES, {}) < 1e-4
    x, t = torch.randn((3, 1, 8, 8)), torch.tensor([0.2, 0.5, 0.9])
    labels = torch.tensor([0, 1, -1])
    found = answer(tmp_path / "a.onnx", x=x, t=t, labels=labels)
    expected = expert(x, t, ClassCondition(labels)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(found - expert(x, t, ClassCondition(1 - labels.clamp(0))).numpy()).max() > 1e-3
    # what computes something else gets no name
    other = drawn(ExpertDesign(architecture="Conv-Nano/2", path="linear", prediction="velocity"))
    written = (tmp_path / "a.onnx").read_bytes()
    monkeypatch.setattr(onnx_file, "_onnx_of", lambda *_: written)
    with pytest.raises(MachineError, match="something else than torch"):
        write_onnx(tmp_path / "b.onnx", other, CLASSES, {})
    assert not (tmp_path / "b.onnx").exists()


def test_mixtures_have_no_onnx_form(tmp_path):
    mixture = MixtureVelocity.__new__(MixtureVelocity)
    torch.nn.Module.__init__(mixture)
    with pytest.raises(StateError, match="mixture"):
        write_onnx(tmp_path / "a.onnx", Expert(mixture), CLASSES, {})
