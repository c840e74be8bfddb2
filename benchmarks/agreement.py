"""Does the ensemble draw what one model of everybody's images would draw from the same noise?

    make demo
    python benchmarks/agreement.py demo-run/ensemble "$(cat demo-run/fingerprint.txt)"

Trains a monolith on all digits, pooled, under the plan of the ensemble, and another with another
seed. Both and the ensemble start from the same noise. The correlation of their images, pixel by
pixel about the mean image, stands beside that of images whose noise was shuffled, and beside that
of the two monoliths, which is as much as one can ask for. McAllister et al. 2025, arXiv:2501.05450,
figure 5, shows the same as pictures. Last answer: see results/agreement_cpu_20261123.md.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_ensemble
from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.flows import Expert
from ddm_fed.models import build_network
from ddm_fed.records import Plan
from ddm_fed.router import PriorRouter
from ddm_fed.training import RunOptions, train_expert
from sites.data import load_images

SAMPLES, STEPS = 500, 25
STRATEGIES = ("full", "threshold-0.05", "top-1", "sticky-then-routed", "sticky")


def monolith(plan: Plan, folder: Path, seed: int) -> Ensemble:
    """Returns one expert of the plan, trained on the digits of all sites."""
    images, _ = load_images("digits", plan.data, unit=plan.privacy.unit)
    trained = train_expert(
        images, plan, "0" * 64, folder / f"{seed}.safetensors", options=RunOptions(seed=seed)
    )
    network = build_network(plan.data, plan.expert.default)
    network.load_state_dict(trained.state)
    expert = Expert(network.eval().requires_grad_(False))
    return Ensemble([expert], PriorRouter(torch.ones(1, 1)))


def drawn(ensemble: Ensemble, plan: Plan, strategy: str) -> Tensor:
    options = SamplingOptions(Strategy.parse(strategy), steps=STEPS, solver="heun", seed=0)
    return sample(ensemble, plan.data.shape, SAMPLES, options).images.flatten(1).double()


def correlation(first: Tensor, second: Tensor) -> float:
    """Returns the mean over images of the correlation of their pixels, about the mean image."""
    a, b = first - first.mean(0), second - second.mean(0)
    return torch.nn.functional.cosine_similarity(a, b).mean().item()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ensemble", type=Path, help="folder of the ensemble")
    parser.add_argument("fingerprint", help="of the federation's root")
    arguments = parser.parse_args()
    verified = verify_ensemble(arguments.ensemble, arguments.fingerprint.strip())
    plan = verified.trust.plan
    ensemble = load_ensemble(verified)
    with tempfile.TemporaryDirectory() as folder:
        one, other = (monolith(plan, Path(folder), seed) for seed in (1, 2))
    pooled = drawn(one, plan, "sticky")
    shuffle = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    print(f"{SAMPLES} samples, {STEPS} Heun steps, torch {torch.__version__}\n")
    print("| against the monolith | same noise | shuffled noise |")
    print("| --- | --- | --- |")
    rows = {f"ensemble, {name}": drawn(ensemble, plan, name) for name in STRATEGIES}
    rows["another monolith"] = drawn(other, plan, "sticky")
    for name, images in rows.items():
        same, shuffled = correlation(images, pooled), correlation(images[shuffle], pooled)
        print(f"| {name} | {same:.3f} | {shuffled:.3f} |", flush=True)


if __name__ == "__main__":
    main()
