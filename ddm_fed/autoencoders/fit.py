"""A small autoencoder made from public images, where none that exists fits or can be fetched.

The loss is the mean absolute difference of pixels plus, for one with deviations, the divergence of
its latents from a standard normal: per pixel, as in latent diffusion models (Rombach et al. 2022).
All that is drawn follows from seed and step, so that a killed run ends with the same weights.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddm_fed.autoencoders.config import AutoencoderConfig, read_config
from ddm_fed.autoencoders.folder import CONFIG_FILE, write_folder
from ddm_fed.autoencoders.networks import build_network, moments, pictures
from ddm_fed.autoencoders.scale import measure_latents
from ddm_fed.errors import CheckpointError, StateError
from ddm_fed.progress import QUIET, StepReport, Watch
from ddm_fed.records import AutoencoderKind, canonical_json, sha256_hex
from ddm_fed.storage.tensors import read_own_tensors, write_tensors

CHECKPOINT_FILE = ".training.safetensors"
WARMUP_STEPS, LEAST_RATE, CLIP_NORM = 50, 0.05, 1.0
MOST_WIDER, GROUPS = 4, 8


@dataclass(frozen=True)
class FitOptions:
    """Which autoencoder, and how it is trained.

    Attributes:
        kind: "kl" has deviations, "tiny" has none.
        factor: How many pixels of a row become one latent; a power of two.
        channels: Of its latents.
        width: Channels of its first level; a multiple of 8.
        steps: Of training.
        batch_size: Images of a step.
        learning_rate: The largest; it rises at first, and falls to a twentieth.
        kl_weight: Of the divergence, per pixel.
        seed: Decides all that is drawn.
    """

    kind: AutoencoderKind = "kl"
    factor: int = 4
    channels: int = 4
    width: int = 32
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    kl_weight: float = 1e-6
    seed: int = 0


def config_for(options: FitOptions, image_channels: int, pixels: int) -> dict[str, Any]:
    """Returns the `config.json` of a small autoencoder, as diffusers writes it."""
    levels = options.factor.bit_length()
    shared = {
        "in_channels": image_channels,
        "out_channels": image_channels,
        "latent_channels": options.channels,
        "scaling_factor": 1.0,
    }
    if options.kind == "tiny":
        return shared | {
            "_class_name": "AutoencoderTiny",
            "encoder_block_out_channels": [options.width] * levels,
            "decoder_block_out_channels": [options.width] * levels,
            "num_encoder_blocks": [1] + [2] * (levels - 1),
            "num_decoder_blocks": [2] * (levels - 1) + [1],
        }
    return shared | {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [options.width * min(2**i, MOST_WIDER) for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 1,
        "norm_num_groups": GROUPS,
        "mid_block_add_attention": False,
        "sample_size": pixels,
    }


def fit_autoencoder(
    images: Tensor,
    folder: Path,
    options: FitOptions,
    *,
    checkpoint_every_s: float = 30.0,
    watch: Watch = QUIET,
) -> None:
    """Trains an autoencoder on PUBLIC images and writes it to `folder`, as diffusers would.

    A killed run goes on from its last checkpoint in `folder`.

    Args:
        images: `(N, C, H, H)` in [-1, 1].
        folder: New, empty, or of a run like this one.
        options: Which, and how.
        checkpoint_every_s: Seconds between checkpoints.
        watch: Told how it goes.

    Raises:
        StateError: the folder holds an autoencoder already.
        CheckpointError: it holds a run with other options or images.
    """
    if (folder / CONFIG_FILE).exists():
        raise StateError(f"{folder} holds an autoencoder already", hint="choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = config_for(options, images.shape[1], images.shape[2])
    config = read_config(json.dumps(wanted).encode(), CONFIG_FILE)
    run = _Run(config, images, options, folder / CHECKPOINT_FILE)
    began, first, saved = monotonic(), run.step, monotonic()
    while run.step < options.steps:
        loss = run.advance()
        passed = monotonic() - began
        speed = (run.step - first) / max(passed, 1e-9)
        report = StepReport(
            run.step,
            options.steps,
            loss,
            speed * options.batch_size,
            (options.steps - run.step) / speed,
        )
        watch.on_step(report)
        if monotonic() - saved > checkpoint_every_s:
            run.save()
            saved = monotonic()
    found = measure_latents(config, run.network.eval(), images)
    author = {"scaling_factor": float(found.scale), "shift_factor": float(found.shift)}
    write_folder(folder, wanted | author, run.network)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draws the weights of torch's default distribution; diffusers' are of no known seed."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)


class _Run:
    """A training under way."""

    def __init__(
        self, config: AutoencoderConfig, images: Tensor, options: FitOptions, checkpoint: Path
    ) -> None:
        self.step = 0
        self._config, self._images, self._options = config, images, options
        self._checkpoint = checkpoint
        self.network: nn.Module = build_network(config)
        _draw_weights(self.network, torch.Generator().manual_seed(options.seed))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(self._device).train()
        self._named = dict(self.network.named_parameters())
        self._optimizer = torch.optim.Adam(self._named.values(), lr=options.learning_rate)
        made_of = {name: str(value) for name, value in asdict(options).items()}
        made_of["images"] = hashlib.sha256(images.contiguous().numpy().data).hexdigest()
        self._identity = sha256_hex(canonical_json(made_of))
        if checkpoint.exists():
            self._restore()

    def advance(self) -> float:
        """Returns the loss of one step, which is taken."""
        options = self._options
        text = f"{options.seed}/autoencoder/{self.step}".encode()
        generator = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        )
        rows = torch.randint(len(self._images), (options.batch_size,), generator=generator)
        shown = self._images[rows].to(self._device)
        mean, deviation = moments(self._config, self.network, shown)
        latents, divergence = mean, torch.zeros((), device=self._device)
        if options.kind == "kl":
            latents = mean + deviation * torch.randn(mean.shape, generator=generator).to(
                self._device
            )
            variance = deviation.square()
            each = (mean.square() + variance - 1 - variance.log()) / 2
            divergence = each.sum() / shown[:, 0].numel()
        loss = functional.l1_loss(pictures(self.network, latents), shown)
        for group in self._optimizer.param_groups:
            group["lr"] = options.learning_rate * self._rate()
        self._optimizer.zero_grad()
        (loss + options.kl_weight * divergence).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._named.values(), CLIP_NORM)
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _rate(self) -> float:
        part = self.step / self._options.steps
        falling = LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * part)) / 2
        return min(1.0, (self.step + 1) / WARMUP_STEPS) * falling

    def save(self) -> None:
        """Writes the checkpoint, in one step."""
        tensors: dict[str, Tensor] = {
            "step": torch.tensor([self.step]),
            "identity": torch.tensor(list(bytes.fromhex(self._identity))),
        }
        for name, value in self._named.items():
            tensors[f"weight/{name}"] = value.detach().cpu()
            state = self._optimizer.state.get(value, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    tensors[f"{moment}/{name}"] = state[moment].cpu()
        part = self._checkpoint.with_name(f"{self._checkpoint.name}.part")
        write_tensors(part, tensors)
        part.replace(self._checkpoint)

    def _restore(self) -> None:
        tensors = read_own_tensors(self._checkpoint)
        if bytes(tensors["identity"].tolist()).hex() != self._identity:
            raise CheckpointError(
                f"{self._checkpoint.parent} holds a training with other options or images",
                hint="give the options and images it was begun with, or another --out",
            )
        self.step = int(tensors["step"][0])
        get: Callable[[str], Tensor] = lambda name: torch.from_numpy(tensors[name])  # noqa: E731
        with torch.no_grad():
            for name, value in self._named.items():
                value.copy_(get(f"weight/{name}"))
        state = {
            index: {
                "step": torch.tensor(float(self.step)),
                "exp_avg": get(f"exp_avg/{name}"),
                "exp_avg_sq": get(f"exp_avg_sq/{name}"),
            }
            for index, name in enumerate(self._named)
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
