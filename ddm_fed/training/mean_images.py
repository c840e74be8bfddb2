"""What an expert learns before DP-SGD: noisy mean images of its site, class by class.

Once their noise is added they are private no longer, so all that is done with them is free: what
the noise explains is taken out of them, and the expert is trained on them without further noise.
They are made from the secret of the run, so that a run that was killed makes the very same ones.
"""

import hmac
import math

import torch
from torch import Tensor

from ddm_fed.flows import tensors_of
from ddm_fed.models import ExpertNetwork
from ddm_fed.privacy import (
    SUM,
    Claim,
    Finding,
    ImageSet,
    MeanImages,
    PrivateStep,
    Randomness,
    UnitMeans,
    UpdateRule,
    Weights,
    chosen_steps,
    examine,
    noisy_mean_again,
    require_proved,
)
from ddm_fed.records import ExpertDesign, Plan, SampledGaussianEvent
from ddm_fed.training.batches import Batches, seeded
from ddm_fed.training.gradients import row_loss
from ddm_fed.training.loop import BETAS, set_learning_rate
from ddm_fed.training.private_options import CentralImages
from ddm_fed.training.trainable import TrainedPart

BATCH_SIZE = 64
TEST_UNITS = 4
CENTRAL_KEY = b"derived/central images"  # of their secret, out of the run's
# sums of means reach no optimizer
MEANS_RULE = UpdateRule(lambda _: 0.0, lambda _: 0.0)
KEPT = 3.0  # of the noise's deviation: a frequency below it is taken for noise


def central_step(central: CentralImages, randomness: Randomness) -> PrivateStep:
    """Returns the step that makes noisy sums; `expected_units` is left to `draw_central`."""
    return PrivateStep(
        MeanImages(),
        randomness.derived("central images"),
        sampling_rate=central.sampling_rate,
        noise_multiplier=central.noise_multiplier,
        expected_units=1.0,
    )


def empty_sums(plan: Plan) -> dict[str, Tensor]:
    """Returns the sums over nobody: `(J, C, H, W)`, one place per class."""
    classes = max(1, len(plan.data.classes))
    return {SUM: torch.zeros((classes, *plan.data.shape), dtype=torch.float64)}


def made_up_means(plan: Plan, central: CentralImages) -> list[Tensor]:
    """Returns vectors as units bring them, some shorter than the radius and some longer."""
    shape = empty_sums(plan)[SUM].shape
    drawn = torch.randn((TEST_UNITS, 1, *shape), generator=seeded(0, "made up means", 0))
    lengths = central.radius * torch.linspace(0.5, 2.0, TEST_UNITS)
    return [drawn * (lengths / drawn.flatten(1).norm(dim=1)).view(-1, 1, 1, 1, 1, 1)]


def examine_central(
    plan: Plan, central: CentralImages, randomness: Randomness | None = None
) -> list[Finding]:
    """Returns what the tests of a private step find of the one that makes central images."""
    step = central_step(central, randomness or Randomness.from_system())
    return examine(step, empty_sums(plan), made_up_means(plan, central), central.radius)


def draw_central(
    images: ImageSet,
    plan: Plan,
    central: CentralImages,
    randomness: Randomness,
    *,
    paid: SampledGaussianEvent,
) -> ImageSet:
    """Returns the central images of a site and their classes; no longer private.

    The ledger entry of `central` is durable before this is called, and `paid` is what it says: some
    of the sums are computed again from it, by another way.

    Raises:
        MechanismError: a sum is not what the ledger says.

    Guarantees:
        As the event of `central` is priced, up to floating point: tests compare neighbours.
    """
    nothing = empty_sums(plan)
    classes = len(nothing[SUM])
    means = UnitMeans(images, classes, central.centre)
    step, found, labels = central_step(central, randomness), list[Tensor](), list[int]()
    secret = hmac.digest(bytes.fromhex(randomness.hex), CENTRAL_KEY, "sha256")

    def slow(_: Weights, turn: int, unit: int) -> dict[str, Tensor]:
        lone = UnitMeans(images.of_unit(unit), classes, central.centre)
        ((vector,),) = lone.blocks(turn, torch.tensor([0]))
        return {SUM: vector[0, 0]}

    proved = chosen_steps(0, central.images)
    for turn in range(central.images):
        noisy, _ = step.noisy_mean(nothing, means, turn, central.radius)
        if turn in proved:
            again, allowed = noisy_mean_again(
                Claim(paid, 1.0, MEANS_RULE),
                secret,
                turn,
                units=len(means),
                clip_norm=central.radius,
                weights=nothing,
                slow=slow,
            )
            require_proved(noisy, again, allowed, f"the sum of central images {turn}")
        for kind, expected in enumerate(central.expected_units):
            if expected > 0:
                noise = central.noise_multiplier * central.radius / expected
                found.append(_denoised(noisy[SUM][kind] / expected, noise) + central.centre)
                labels.append(kind)
    if not found:
        return ImageSet(torch.zeros((0, *plan.data.shape)), torch.zeros(0, dtype=torch.long))
    bound = float(plan.data.bound)
    return ImageSet(torch.stack(found).clamp(-bound, bound), torch.tensor(labels))


def _denoised(image: Tensor, noise: float) -> Tensor:
    """Returns `image (C, H, W)` without the frequencies that its noise explains.

    White noise has the same deviation in every coefficient of an orthonormal basis.
    """
    rows, columns = (_cosines(side) for side in image.shape[1:])
    frequencies = rows @ image @ columns.T
    return rows.T @ torch.where(frequencies.abs() > KEPT * noise, frequencies, 0.0) @ columns


def _cosines(side: int) -> Tensor:
    """Returns the orthonormal cosine transform (DCT-II) of `side` values, `(side, side)`."""
    order = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(math.pi / side * (order + 0.5) * order[:, None]) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis.float()


def learn_central(
    part: TrainedPart,
    network: ExpertNetwork,
    plan: Plan,
    design: ExpertDesign,
    central: ImageSet,
    steps: int,
    seed: int,
) -> None:
    """Trains `part` of `network` on central images: as the plan says, for `steps` steps."""
    if len(central) == 0:
        return
    # under a plan of captions they are of no class and have no caption: they teach what an image
    # is before anything is said of it
    from torch.func import functional_call  # takes long to load, and most commands need none of it

    # a short training of its own, which ends: its rate falls to zero whatever the plan's does
    warm_up = {
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "warmup_steps": steps // 10,
        "schedule": "cosine",
    }
    spec, loss = plan.training.model_copy(update=warm_up), row_loss(plan, design)
    batches = Batches(central, spec, conditional=bool(plan.data.classes), seed=seed)
    trained = part.trained
    device = next(iter(trained.values())).device
    optimizer = torch.optim.AdamW(
        trained.values(), betas=BETAS, weight_decay=float(spec.weight_decay), fused=True
    )

    def call(*arguments: object) -> Tensor:
        answer: Tensor = functional_call(network, part.full(trained), arguments)
        return answer

    for step in range(steps):
        batch = batches.draw(step, slice(0, BATCH_SIZE)).to(device)
        set_learning_rate(optimizer, spec, step)
        optimizer.zero_grad()
        mean = loss(call, batch.x_0, batch.eps, batch.t, *tensors_of(batch.condition)).mean()
        mean.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.values(), float(spec.clip_norm))
        optimizer.step()
    optimizer.zero_grad()
