"""Training whose numbers are no longer finite: it stops, and spends nothing more."""

import math

import pytest
from federation import SITES, a_plan, create_federation, random_images
from safetensors import safe_open
from safetensors.torch import save_file

from coordinator.roster import proposals
from ddm_fed.errors import DivergedError, ValuesError
from ddm_fed.progress import Watch
from ddm_fed.training import RunOptions, read_trained, train_expert
from ddm_fed.trust.log import read_log
from sites.privacy.ledger import open_ledger
from sites.train.expert import TrainingOptions
from sites.train.pipeline import run_plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learning_rate", "error", "reason"),
    [
        ("1e19", DivergedError, "the loss of step"),
        ("1e12", ValuesError, "the trained expert: tensor"),
    ],
)
def test_training_that_diverges_is_stopped_and_nothing_is_released(
    learning_rate, error, reason, tmp_path
):
    fed = create_federation(tmp_path / "fed", sites=(SITES[0],))
    rate = f"steps = 40\nwarmup_steps = 0\nlearning_rate = {learning_rate}"
    proposals.publish_plan(fed.home, a_plan(steps=rate))
    fed.look(SITES[0])
    site, seen = fed.site(SITES[0]), []
    watch = Watch(on_step=lambda report: seen.append(report.loss))
    log = read_log(site.seen, fed.trust.chain)
    options = TrainingOptions(RunOptions(seed=0, precision="float32", checkpoint_every_s=0))
    with pytest.raises(error, match=reason):
        run_plan(site, fed.trust, log, random_images(0), options, watch)
    assert (len(seen) < 40) == (error is DivergedError)
    assert all(math.isfinite(loss) for loss in seen)
    assert open_ledger(site).entries() == ()


def test_weights_that_are_not_finite_are_no_expert(tmp_path):
    plan, path = a_plan(), tmp_path / "checkpoint"
    train_expert(random_images(0), plan, "ab" * 32, path, options=RunOptions(seed=0))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if name.startswith("ema"))
    tensors[name].view(-1)[0] = math.inf
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DivergedError, match="1 tensors of the expert are not finite"):
        read_trained(path, plan)
