"""The server of the baseline: it averages what the sites send, round after round."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from safetensors.torch import save_file

from ddm_fedavg.client_app import configured
from ddm_fedavg.task import Settings, new_weights


def make_app(settings_of: Callable[[Context], Settings]) -> ServerApp:
    """Returns the app; it writes the last weights to `out`, and their average beside it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        settings = settings_of(context)
        plan, began, cpu_s = settings.plan(), time.monotonic(), []
        weights = new_weights(plan, settings.seed)
        average = {name: value.clone() for name, value in weights.items()}
        half_life = plan.training.ema_half_lives[0]
        decay = 2 ** (-(plan.training.steps / settings.rounds) / half_life)

        def follow(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            kept = min(decay, (1 + server_round) / (10 + server_round)) if server_round else 0.0
            for name, value in arrays.to_torch_state_dict().items():
                average[name].lerp_(value, 1 - kept)
            return MetricRecord({"round": server_round})

        def metrics_of(replies: list[RecordDict], weight: str) -> MetricRecord:
            if len(replies) < settings.sites:  # Flower goes on with those that answered
                raise RuntimeError(f"{len(replies)} of {settings.sites} sites answered")
            cpu_s.append(sum(float(reply["metrics"]["cpu-s"]) for reply in replies))
            return aggregate_metricrecords(replies, weight)

        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=settings.sites,
            min_available_nodes=settings.sites,
            train_metrics_aggr_fn=metrics_of,
        )
        result = strategy.start(
            grid, ArrayRecord(weights), num_rounds=settings.rounds, evaluate_fn=follow
        )
        out = Path(settings.out)
        save_file(_plain(result.arrays.to_torch_state_dict()), out)
        save_file(_plain(average), out.with_suffix(".average.safetensors"))
        losses = {n: dict(m)["loss"] for n, m in result.train_metrics_clientapp.items()}
        size = sum(value.numel() * value.element_size() for value in weights.values())
        facts = {
            "losses": losses,
            "bytes": 2 * settings.rounds * settings.sites * size,
            "messages_per_site": settings.rounds,
            "cpu_s": sum(cpu_s),
            "wall_s": time.monotonic() - began,
        }
        out.with_suffix(".json").write_text(json.dumps(facts))

    return app


def _plain(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous().clone() for name, value in weights.items()}


app = make_app(configured)
