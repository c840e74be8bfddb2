"""`ddm-coord plan base`: a checkpoint of diffusers becomes what experts start from."""

import json
import math
import tomllib

import pytest
import torch
from safetensors.torch import load_file

from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.errors import CheckpointError, DataError, ValuesError
from ddm_fed.export import base_dit
from ddm_fed.export.base_file import Learned, write_base
from ddm_fed.flows import ClassCondition, path_named, velocity
from ddm_fed.models import build_network, network_named
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import Watch
from ddm_fed.records import DataSpec, ExpertDesign, parse_architecture, read_plan_toml, unet_name
from ddm_fed.storage.tensors import Bounds
from ddm_fed.training import RunOptions, train_expert

LEARNED = Learned("linear", "velocity")
DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear"}
COSINE = DDPM | {"beta_schedule": "squaredcos_cap_v2"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
# as google/ddpm-cifar10-32 has it, with narrower levels
PUBLISHED = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def images_of(channels=3, classes=()):
    return DataSpec(
        channels=channels,
        height=8,
        width=8,
        conditioning="class" if classes else "none",
        classes=classes,
    )


@pytest.fixture
def saved(tmp_path):
    """Writes a UNet2DModel of drawn weights as diffusers does, as a pipeline with a scheduler."""
    import_torchvision()
    from diffusers.models.unets.unet_2d import UNet2DModel

    def save(scheduler=DDPM, **config):
        network = UNet2DModel(**PUBLISHED | config).eval()
        for index, weight in enumerate(network.parameters()):
            drawn = torch.Generator().manual_seed(index)
            weight.data.copy_(torch.randn(weight.shape, generator=drawn) * 0.1)
        network.save_pretrained(tmp_path / "pipeline" / "unet")
        if scheduler:
            (tmp_path / "pipeline" / "scheduler").mkdir()
            file = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
            file.write_text(json.dumps(scheduler))
        return network, tmp_path / "pipeline"

    return save


def expert_of(written, target, data):
    network = build_network(data, ExpertDesign(architecture=written.architecture))
    network.load_state_dict(load_file(target))
    return network.eval()


def asked(data):
    drawn = torch.Generator().manual_seed(0)
    return torch.randn((3, *data.shape), generator=drawn), torch.tensor([0.1, 0.5, 0.9])


@pytest.mark.slow
@torch.no_grad()
def test_network_that_diffusers_saved_answers_the_same_as_an_expert(saved, tmp_path):
    theirs, folder = saved()
    data = images_of()
    written = write_base(folder, tmp_path / "base", data)
    assert written.architecture == "UNet-32a-64/1-ddpm"
    assert (written.learned, written.notes) == (Learned("vp", "noise"), ())
    x, t = asked(data)
    assert torch.equal(
        expert_of(written, tmp_path / "base", data)(x, t), theirs(x, 1000 * t).sample
    )


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("classes", [(), ("a", "b")])
def test_exported_expert_comes_back_to_the_bit(tmp_path, classes):
    data = images_of(1, classes)
    ours = network_named("UNet-Nano", data.shape, len(classes)).eval()
    ours.reset_parameters(torch.Generator().manual_seed(1))
    torch.nn.init.ones_(ours.net.get_submodule("conv_out").weight)
    ours.save_pretrained(tmp_path / "out")
    written = write_base(tmp_path / "out", tmp_path / "base", data, LEARNED)
    assert (written.architecture, written.notes) == ("UNet-Nano", ())
    x, t = asked(data)
    condition = ClassCondition(torch.tensor([0, 1, -1])) if classes else None
    back = expert_of(written, tmp_path / "base", data)
    assert torch.equal(back(x, t, condition), ours(x, t, condition))


@pytest.mark.parametrize(
    ("scheduler", "learned", "noted"),
    [
        (DDPM | {"prediction_type": "sample"}, Learned("vp", "image"), None),
        (COSINE, Learned("cosine", "noise"), None),
        (FLOW, LEARNED, None),
        (DDPM | {"prediction_type": "v_prediction"}, None, "v_prediction"),
        (DDPM | {"beta_schedule": "scaled_linear"}, None, "scaled_linear"),
        (DDPM | {"beta_end": 0.012}, None, "0.012"),
        (DDPM | {"num_train_timesteps": 4000}, None, "4000"),
        (DDPM | {"rescale_betas_zero_snr": True}, None, "betas of its own"),
        (None, None, "--prediction"),
    ],
)
def test_scheduler_says_what_was_learned_or_the_last_layer_is_zero(
    saved, tmp_path, scheduler, learned, noted
):
    _, folder = saved(scheduler)
    written = write_base(folder, tmp_path / "base", images_of())
    assert written.learned == learned
    last = load_file(tmp_path / "base")["net.conv_out.weight"]
    assert bool(last.any()) == (learned is not None)
    assert noted is None or noted in written.notes[0]
    told = tomllib.loads(written.toml())["expert"]
    assert told["architecture"] == written.architecture
    assert told["base"]["sha256"] == written.sha256


@pytest.mark.slow
@torch.no_grad()
def test_v_prediction_becomes_the_velocity_of_the_cosine_path(saved, tmp_path):
    theirs, folder = saved(COSINE | {"prediction_type": "v_prediction"})
    data = images_of()
    written = write_base(folder, tmp_path / "base", data)
    assert written.learned == Learned("cosine", "velocity")
    x, t = asked(data)
    said = expert_of(written, tmp_path / "base", data)(x, t)
    assert torch.allclose(said, math.pi / 2 * theirs(x, 1000 * t).sample, atol=1e-6)
    # diffusers' v is alpha eps - sigma x_0 (DDPMScheduler.get_velocity)
    eps, angle = torch.flip(x, [0]), t.reshape(-1, 1, 1, 1) * math.pi / 2
    v = angle.cos() * eps - angle.sin() * x
    assert torch.allclose(velocity(x, eps, t, path_named("cosine")), math.pi / 2 * v, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("count", [None, 5])
@pytest.mark.parametrize("classes", [(), ("a", "b")])
def test_other_classes_start_as_the_mean_of_those_of_the_checkpoint(
    saved, tmp_path, count, classes
):
    theirs, folder = saved(num_class_embeds=count)
    data = images_of(classes=classes)
    written = write_base(folder, tmp_path / "base", data)
    x, t = asked(data)
    if count:
        table = theirs.class_embedding.weight
        table.copy_(table.mean(0).expand_as(table))
    labels = torch.zeros(3, dtype=torch.long) if count else None
    expected = theirs(x, 1000 * t, class_labels=labels).sample
    condition = ClassCondition(torch.tensor([0, 1, -1])) if classes else None
    said = expert_of(written, tmp_path / "base", data)(x, t, condition)
    assert torch.allclose(said, expected, atol=1e-5)
    assert bool(written.notes) == (bool(count) or bool(classes))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"act_fn": "gelu"}, "`act_fn` is 'gelu', expected 'silu'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "`resnet_time_scale_shift`"),
        ({"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}, "`up_block_types`"),
        ({"freq_shift": 0}, "`downsample_padding`"),
        ({"block_out_channels": (32, 96), "norm_num_groups": 32, "attention_head_dim": 5}, "heads"),
        ({"in_channels": 1, "out_channels": 1}, "`in_channels`"),
        ({"out_channels": 6}, "`in_channels` and `out_channels` are 3 and 6"),
        ({"_class_name": "UNet2DConditionModel"}, "captions"),
        ({"num_class_embeds": -1}, "`num_class_embeds`"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"block_out_channels": "wide"}, "no plan can name its levels"),
        ({"layers_per_block": 10**9}, "no plan can name its levels"),
    ],
)
def test_folder_that_is_no_network_of_the_plan_is_refused_with_the_key(
    saved, tmp_path, config, named
):
    _, folder = saved()
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(DataError) as caught:
        write_base(folder, tmp_path / "base", images_of())
    assert named in str(caught.value)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("unet/config.json", '{"down_block_types": null}'),
        ("unet/config.json", '{"layers_per_block": "1"}'),
        ("unet/config.json", '{"norm_num_groups": "32"}'),
        ("unet/config.json", '{"attention_head_dim": "8"}'),
        ("unet/config.json", "[" * 100_000),
        ("scheduler/scheduler_config.json", "[]"),
    ],
)
def test_files_that_hold_other_kinds_of_values_are_refused(saved, tmp_path, file, text):
    _, folder = saved()
    if text.startswith("{"):
        text = json.dumps(json.loads((folder / file).read_text()) | json.loads(text))
    (folder / file).write_text(text)
    with pytest.raises(DataError):
        write_base(folder, tmp_path / "base", images_of())
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("predicted", [["epsilon"], {}])
def test_prediction_of_another_kind_is_none_of_a_plan(saved, tmp_path, predicted):
    _, folder = saved(DDPM | {"prediction_type": predicted})
    assert write_base(folder, tmp_path / "base", images_of()).learned is None


def test_base_that_every_site_would_refuse_is_not_written(saved, tmp_path):
    _, folder = saved()
    with pytest.raises(ValuesError):
        write_base(folder, tmp_path / "base", images_of(), bounds=Bounds(1e-3, 1e9))
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_weights_of_another_network_or_in_pickle_are_refused(saved, tmp_path):
    _, folder = saved()
    file = folder / "unet" / "config.json"
    kept = file.read_text()
    file.write_text(json.dumps(json.loads(kept) | {"layers_per_block": 2}))
    with pytest.raises(DataError, match=r"resnets.1"):
        write_base(folder, tmp_path / "base", images_of())
    file.write_text(kept)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match="without pickle"):
        write_base(folder, tmp_path / "base", images_of())


@pytest.fixture
def saved_dit(tmp_path):
    """Writes a DiTTransformer2DModel of drawn weights, whose blocks share their embeddings."""
    import_torchvision()
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    def save(*, share=True, **config):
        shape = {"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 16}
        images = {"in_channels": 3, "sample_size": 8, "num_embeds_ada_norm": 2}
        network = DiTTransformer2DModel(**shape | images | config).eval()
        for index, weight in enumerate(network.parameters()):
            drawn = torch.Generator().manual_seed(index)
            weight.data.copy_(torch.randn(weight.shape, generator=drawn) * 0.1)
        first = network.transformer_blocks[0].norm1.emb.state_dict()
        for block in network.transformer_blocks[1:] if share else ():
            block.norm1.emb.load_state_dict(first)
        network.save_pretrained(tmp_path / "pipeline" / "transformer")
        (tmp_path / "pipeline" / "scheduler").mkdir()
        file = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(DDPM))
        return network, tmp_path / "pipeline"

    return save


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("out", [3, 6])
def test_transformer_that_diffusers_saved_answers_the_same_as_an_expert(saved_dit, tmp_path, out):
    theirs, folder = saved_dit(out_channels=out)
    data = images_of(classes=("a", "b"))
    written = write_base(folder, tmp_path / "base", data)
    assert written.architecture == "DiT-Nano/2-learned-times128"
    assert written.learned == Learned("vp", "noise")
    assert any("variance" in note for note in written.notes) == (out == 6)
    x, t = asked(data)
    expected = theirs(x, 1000 * t, class_labels=torch.tensor([0, 1, 2])).sample[:, :3]
    condition = ClassCondition(torch.tensor([0, 1, -1]))
    said = expert_of(written, tmp_path / "base", data)(x, t, condition)
    assert torch.allclose(said, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("config", "classes", "named"),
    [
        ({"share": False}, ("a", "b"), "differs from that of the first block"),
        ({"num_layers": 2}, ("a", "b"), "2 layers, 4 heads of 16"),
        ({"sample_size": 9}, ("a", "b"), "`sample_size` 9"),
        ({"in_channels": 4}, ("a", "b"), "`in_channels`"),
        ({"activation_fn": "gelu"}, ("a", "b"), "`activation_fn`"),
    ],
)
def test_transformer_that_is_no_network_of_the_plan_is_refused(
    saved_dit, tmp_path, config, classes, named
):
    _, folder = saved_dit(**config)
    with pytest.raises(DataError) as caught:
        write_base(folder, tmp_path / "base", images_of(classes=classes))
    assert named in str(caught.value)


@pytest.mark.parametrize("side", [10**9, 514, "8", None, 2.5])
def test_transformer_of_a_size_that_no_grid_has_is_refused_before_it_is_made(
    saved_dit, tmp_path, monkeypatch, side
):
    _, folder = saved_dit()
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": side}))
    monkeypatch.setattr(base_dit, "load_network", lambda *_: pytest.fail("it is made"))
    with pytest.raises(DataError, match="`sample_size`"):
        write_base(folder, tmp_path / "base", images_of(classes=("a", "b")))


@torch.no_grad()
def test_transformer_of_other_images_is_stretched_over_those_of_the_plan(saved_dit, tmp_path):
    theirs, folder = saved_dit(sample_size=16)
    data = images_of(classes=("a", "b"))
    written = write_base(folder, tmp_path / "base", data)
    assert written.architecture == "DiT-Nano/2-learned-times128-grid8x8"
    assert any("stretched from 16 x 16" in note for note in written.notes)
    table = load_file(tmp_path / "base")["position.table"]
    assert torch.equal(table, theirs.pos_embed.pos_embed[0])
    x, t = asked(data)
    said = expert_of(written, tmp_path / "base", data)(x, t, ClassCondition(torch.tensor([0] * 3)))
    assert said.shape == x.shape
    assert torch.isfinite(said).all()


PLAN = """
federation = "warm"
expires_at = 2036-01-01
[data]
channels = 3
height = 8
width = 8
[training]
steps = 1
batch_size = 4
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
{expert}
"""


@pytest.mark.slow
def test_expert_of_the_pasted_lines_starts_as_the_checkpoint(run, saved, tmp_path):
    theirs, folder = saved()
    (tmp_path / "plan.toml").write_text(PLAN.format(expert='[expert]\narchitecture = "UNet-S"'))
    words = ("plan", "base", folder, "--plan", tmp_path / "plan.toml", "--out", tmp_path / "base")
    done = run("ddm-coord", *words)
    assert done.code == 0, done.err
    plan = read_plan_toml(PLAN.format(expert=done.out))

    def stop(_):
        raise KeyboardInterrupt

    images = Private(ImageSet(torch.zeros(4, 3, 8, 8), None))
    options = RunOptions(seed=0, precision="float32", base=tmp_path / "base")
    with pytest.raises(CheckpointError):
        train_expert(images, plan, "0" * 64, tmp_path / "run", options=options, watch=Watch(stop))
    start = load_file(tmp_path / "run")
    for name, value in theirs.state_dict().items():
        assert torch.equal(start[f"model.net.{name}"], value), name
    assert run("ddm-coord", *words).code == 2  # the file exists
    assert run("ddm-coord", *words[:-1], tmp_path / "other", "--path", "vp").code == 2


@pytest.mark.parametrize("size", ["Nano", "S", "M", "L"])
def test_names_of_sizes_and_what_they_stand_for_are_one(size):
    assert unet_name(parse_architecture(f"UNet-{size}").size) == f"UNet-{size}"
    for name in ("UNet-32/1", "UNet-128-256a-256-256/2-ddpm", "UNet-48a/3-head16-groups12"):
        assert unet_name(parse_architecture(name).size) == name
    for name in ("UNet-48/1", "UNet-0/1", "UNet-32/9", "UNet-32a/1-head5", "UNet-32"):
        with pytest.raises(ValueError, match=name):
            parse_architecture(name)
