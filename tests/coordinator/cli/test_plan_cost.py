"""`ddm-coord plan cost`: counted by hand, beside the paper's own figures, and wrong uses."""

import json

import pytest
from typer.testing import CliRunner

from coordinator.cli.main import app
from ddm_fed.errors import OptionError
from ddm_fed.models import network_cost
from ddm_fed.models.machines import island_cost
from ddm_fed.records import read_plan_toml
from ddm_fed.training import training_cost

PLAN = """
federation = "cost"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 3
height = 32
width = 32
[expert]
architecture = ["DiT-S/2", "DiT-Nano/4", "mixture"]
[training]
steps = 10000
batch_size = 64
ema_half_lives = [100, 1000]
[router]
kind = "mixture"
epsilon = 8
frequencies = 4
components = 1
[privacy]
max_epsilon = 8
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path / "plan.toml"


def run(*words):
    return CliRunner().invoke(app, ["plan", "cost", *map(str, words)])


def facts(*words):
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_figures_are_those_that_a_person_would_count(plan):
    found = facts(
        *(plan, "--gpus", 4, "--kind", "a100", "--utilisation", 0.5),
        *("--islands", 8, "--images", 1000),
    )
    network = network_cost("DiT-S/2", (3, 32, 32))
    flops = 3 * network.flops_per_image * 64
    assert found["step_flops"] == flops
    assert found["step_s"] == pytest.approx(flops / (4 * 312e12 * 0.5))
    assert found["days"] == pytest.approx(10_000 * found["step_s"] / 86_400)
    assert found["gpu_days"] == pytest.approx(4 * found["days"])
    # weights, gradients, two moments, two averages; 16 images of each in bfloat16
    assert found["memory_bytes"] == pytest.approx(
        6 * 4 * network.parameters + 16 * network.activation_bytes / 2
    )
    assert (found["fits"], found["micro_batch"]) == (True, 16)
    assert found["checkpoint_bytes"] == 5 * 4 * network.parameters
    assert found["bundle_bytes"] == 4 * network.parameters
    assert found["ensemble_bytes"] == 8 * found["bundle_bytes"]
    assert found["store_bytes"] == 1000 * 3 * 32 * 32
    assert found["traffic_bytes"] == pytest.approx(2 * 3 / 4 * 2 * network.parameters)
    together = 10_000 * 2 * 31 / 32 * 2 * network.parameters
    assert found["monolith_traffic_bytes"] == pytest.approx(together)


def small_plan(part: str) -> str:
    """Returns a plan that trains a part of a base."""
    base = f'"DiT-Nano/4"\nbase = {{ sha256 = "{"0" * 64}", prediction = "velocity" }}'
    text = PLAN.replace('["DiT-S/2", "DiT-Nano/4", "mixture"]', base)
    return text.replace("steps = 10000", f'steps = 10000\ntrainable = "{part}"')


def test_part_of_a_base_takes_memory_and_traffic_of_that_part_alone(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(small_plan("last-2"))
    found = facts(path, "--gpus", 4, "--kind", "a100")
    network = network_cost("DiT-Nano/4", (3, 32, 32))
    trained = training_cost(read_plan_toml(path.read_text()), "DiT-Nano/4").trained
    assert 0 < trained < 0.7 * network.parameters
    # all weights; of what is trained gradients, two moments, two averages
    assert found["memory_bytes"] == pytest.approx(
        4 * (network.parameters + 5 * trained) + 16 * network.activation_bytes / 2
    )
    assert found["checkpoint_bytes"] == 4 * (network.parameters + 4 * trained)
    assert found["bundle_bytes"] == 4 * network.parameters
    assert found["traffic_bytes"] == pytest.approx(2 * 3 / 4 * 2 * trained)
    refused = run(path, "--shard").exception
    assert isinstance(refused, OptionError)
    assert "nothing is divided where a part is trained" in refused.message


@pytest.mark.parametrize("part", ["last-2", "lora-8"])
def test_plan_show_counts_memory_of_the_part_that_the_plan_trains(tmp_path, part):
    path = tmp_path / "plan.toml"
    path.write_text(small_plan(part))
    cost = training_cost(read_plan_toml(path.read_text()), "DiT-Nano/4")
    shown = CliRunner().invoke(app, ["plan", "show", str(path), "--json"])
    (row,) = json.loads(shown.stdout)["networks"]
    assert row["trained_parameters"] == cost.trained < row["parameters"]
    assert row["training_bytes"] == cost.training_bytes(2) < 0.75 * 6 * row["weights_bytes"]
    assert row["batch_bytes"] == 64 * cost.activation_bytes + 4 * cost.merged
    assert (cost.merged > 0) == part.startswith("lora")
    assert row["bundle_bytes"] > row["weights_bytes"] == 4 * row["parameters"]
    said = CliRunner().invoke(app, ["plan", "show", str(path)]).output
    assert "of these alone" in " ".join(said.split())


def test_an_island_of_one_accelerator_sends_nothing_while_it_trains(plan):
    assert facts(plan, "--gpus", 1)["traffic_bytes"] == 0


def test_experts_of_the_paper_take_its_days_if_its_step_takes_its_time():
    """0.28 s on 16 accelerators and 6.5 days on 8 for a million steps are one figure.

    At a batch of 128 that is .34 of the peak of 16 A100; the paper names neither of the two.
    """
    network = network_cost("MMDiT-3B/2", (4, 32, 32), 1000)
    common = {"steps": 1_000_000, "batch_size": 128, "averages": 1, "kind": "a100"}
    sixteen = island_cost(network, gpus=16, utilisation=0.343, shard=True, **common)
    eight = island_cost(network, gpus=8, utilisation=0.343, shard=True, **common)
    assert sixteen.step_s == pytest.approx(0.28, rel=0.01)
    assert eight.days == pytest.approx(6.5, rel=0.01)
    assert eight.fits


def test_network_that_does_not_fit_is_said_to_until_it_is_sharded(tmp_path):
    large = PLAN.replace('["DiT-S/2", "DiT-Nano/4", "mixture"]', '"MMDiT-3B/2"')
    (tmp_path / "plan.toml").write_text(large)
    words = (tmp_path / "plan.toml", "--gpus", 8, "--kind", "a40")
    assert not facts(*words)["fits"]
    assert "not even one image fits" in run(*words).output
    assert facts(*words, "--shard")["fits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "tpu"), "--kind tpu is not known"),
        (("--architecture", "DiT-B/2"), "--architecture DiT-B/2 is not in the plan"),
        (("--architecture", "mixture"), "--architecture mixture: it trains nothing"),
    ],
)
def test_options_that_mean_nothing_are_refused(plan, words, message):
    done = run(plan, *words)
    assert isinstance(done.exception, OptionError)
    assert message in done.exception.message
