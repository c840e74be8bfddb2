"""A small classifier, for images that no public network fits, such as grey ones of 28 x 28 pixels.

Trained on real images, its features measure samples. Trained on samples, its accuracy on real
images measures how useful they are (train on synthetic, test on real: TSTR).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 64
ROWS_AT_ONCE = 1024
HELD_OUT = 0.1


class Classifier(nn.Module):
    """Two convolutions that halve the image, then two layers; `(B, C, H, W) -> (B, classes)`."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * -(-height // 4) * -(-width // 4), FEATURES),
            nn.GELU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits of images in [-1, 1]."""
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Returns features of images, `(N, F)` float32."""
        return torch.cat([self.body(block) for block in torch.split(images, ROWS_AT_ONCE)])

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Returns how often the most probable class is the true one."""
        found = torch.cat([self(block).argmax(1) for block in torch.split(images, ROWS_AT_ONCE)])
        return float((found == labels).float().mean())


class TrainedClassifier(NamedTuple):
    """A classifier, and its accuracy on the part of its images that only chose the epoch."""

    network: Classifier
    held_out_accuracy: float


def train_classifier_on(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    epochs: int,
    generator: torch.Generator,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
) -> TrainedClassifier:
    """Returns a classifier of `images`; the best epoch on a held-out tenth of them is kept.

    No other images are seen: whoever measures on a test set has not selected on it.

    Args:
        images: `(N, C, H, W)` in [-1, 1].
        labels: `(N,)`.
        classes: Number of classes.
        epochs: Passes over the images.
        generator: Decides weights, split and order.
        batch_size: Images per step.
        learning_rate: Of AdamW, falling to zero as a cosine.

    Raises:
        ValueError: fewer than 20 images.
    """
    if len(images) < 20:
        raise ValueError(f"a classifier takes at least 20 images, got {len(images)}")
    _, channels, height, width = images.shape
    with torch.device("meta"):  # the weights come from `generator`, not from torch's own
        network = Classifier((channels, height, width), classes)
    network = network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    order = torch.randperm(len(images), generator=generator)
    held, own = order[: round(HELD_OUT * len(images))], order[round(HELD_OUT * len(images)) :]
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    steps = epochs * -(-len(own) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = -1.0, {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(epochs):
        shuffled = own[torch.randperm(len(own), generator=generator)]
        for rows in torch.split(shuffled, batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        accuracy = network.accuracy(images[held], labels[held])
        if accuracy > best:
            best = accuracy
            kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return TrainedClassifier(network.eval().requires_grad_(False), best)
