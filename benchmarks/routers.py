"""Which router, under which strategy?"""

import argparse
from pathlib import Path

import torch
from ladder import load_federation, train_experts

FULL = """
steps = 1100
batch_size = 64
learning_rate = 0.001
warmup_steps = 100
ema_half_lives = [120]
"""
QUICK = """
steps = 1500
batch_size = 64
learning_rate = 0.002
warmup_steps = 100
ema_half_lives = [150]
"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="label-skew")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    federation = load_federation(None if arguments.quick else arguments.data, arguments.split)
    print(
        federation.name,
        federation.counts.tolist(),
        federation.shares.tolist(),
        len(federation.test),
    )
    small = federation.train.images.shape[-1] <= 8
    plan = federation.plan(
        QUICK if small else FULL,
        "DiT-Nano/2" if small else "DiT-Micro/4",
        'kind = "prior"\nepsilon = 1',
    )
    train_experts(federation, plan, arguments.work)


if __name__ == "__main__":
    main()
