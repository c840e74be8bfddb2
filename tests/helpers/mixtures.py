"""Plans whose sites release a mixture, and what a site releases without noise or with it."""

import numpy as np
import torch

from ddm_fed.embedding import dct_basis
from ddm_fed.mixture import (
    SiteRelease,
    message_named,
    messages,
    release_statistics,
    router_events,
    statistics,
)
from ddm_fed.mixture.coefficients import read_images
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml

CENTRE = -0.25
QUIET = 1e-9  # noise multiplier of a release that has no noise


def make_plan(router, *, shape=(1, 4, 4), classes=0, unit="image", f=6, epsilon=2):
    """A plan with `router` among the keys of its mixture router."""
    names = ", ".join(f'"c{number}"' for number in range(classes))
    conditioning = f', conditioning = "class", classes = [{names}]' if classes else ""
    size = "channels = {}, height = {}, width = {}".format(*shape)
    statistics_of = f"epsilon = {epsilon}, frequencies = {f}, centre = {CENTRE}, {router}"
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ {size}{conditioning} }}
        expert = {{ architecture = "DiT-Nano/2" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ kind = "mixture", {statistics_of} }}
        privacy = {{ max_epsilon = 1000, unit = "{unit}" }}
    """)


def width_of(plan):
    """D, the number of coefficients of an image."""
    return plan.data.channels * plan.router.frequencies


def images_of(y, plan):
    """Images with the coefficients `y`, `(N, D)`, and nothing in any other frequency."""
    basis = dct_basis(plan.data.shape, plan.router.frequencies).numpy()
    return torch.from_numpy((CENTRE + y @ basis).reshape(-1, *plan.data.shape)).float()


def quiet_vectors(data, plan):
    """The messages of a site that draws no noise, each about the exact ones before it.

    What the site itself takes for noise is that of the plan: it shrinks means and radii by it.
    """
    found, own = {}, read_images(data, plan)
    for message in messages(plan):
        found[message.name] = statistics._statistic(message.name, plan, found, own)
    return found


def released(images, plan, labels=None):
    """What a site really releases, as the coordinator reads it."""
    found = release_statistics(Private(ImageSet(images, labels)), plan, lambda *_: None)
    return SiteRelease({name: item.value for name, item in found.items()}, multipliers(plan))


def multipliers(plan):
    """The noise multiplier of every message."""
    return {name: float(event.noise_multiplier) for name, event in router_events(plan).items()}


def with_parts(plan, name, **parts):
    """The vector of a message that holds `parts`, in their own units; the others are 0."""
    return np.concatenate(
        [
            np.rint(np.broadcast_to(parts.get(part.name, 0.0), part.size) * part.weight)
            for part in message_named(plan, name).parts
        ]
    ).astype(np.int64)


def with_norms(norms, plan, seed=0):
    """Images whose coefficients are as long as `norms` says."""
    y = np.random.default_rng(seed).normal(size=(len(norms), 6))
    y *= np.asarray(norms)[:, None] / np.linalg.norm(y, axis=1, keepdims=True)
    return ImageSet(images_of(y, plan), None), y
