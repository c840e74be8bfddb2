"""The server of the baseline: it averages what the sites send, round after round."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import save_file

from ddm_fedavg.client_app import configured
from ddm_fedavg.task import Settings, new_weights


def make_app(settings_of: Callable[[Context], Settings]) -> ServerApp:
    """Returns the app; it writes the last weights to `out`, and their average beside it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        settings = settings_of(context)
        weights = new_weights(settings.plan())
        average = {name: value.clone() for name, value in weights.items()}
        decay = 2 ** (-(settings.steps / settings.rounds) / settings.half_life)

        def follow(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            kept = min(decay, (1 + server_round) / (10 + server_round)) if server_round else 0.0
            for name, value in arrays.to_torch_state_dict().items():
                average[name].lerp_(value, 1 - kept)
            return MetricRecord({"round": server_round})

        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=settings.sites,
            min_available_nodes=settings.sites,
        )
        result = strategy.start(
            grid, ArrayRecord(weights), num_rounds=settings.rounds, evaluate_fn=follow
        )
        out = Path(settings.out)
        save_file(_plain(result.arrays.to_torch_state_dict()), out)
        save_file(_plain(average), out.with_suffix(".average.safetensors"))
        losses = {n: dict(m)["loss"] for n, m in result.train_metrics_clientapp.items()}
        size = sum(value.numel() * value.element_size() for value in weights.values())
        facts = {"losses": losses, "bytes": 2 * settings.rounds * settings.sites * size}
        out.with_suffix(".json").write_text(json.dumps(facts))

    return app


def _plain(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous().clone() for name, value in weights.items()}


app = make_app(configured)
