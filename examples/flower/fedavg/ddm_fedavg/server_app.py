"""The server of the baseline: it averages what the sites send, round after round."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from safetensors.torch import save_file

from ddm_fedavg.client_app import configured
from ddm_fedavg.rounds import Rounds, plain
from ddm_fedavg.task import Settings


def make_app(settings_of: Callable[[Context], Settings]) -> ServerApp:
    """Returns the app; it writes the last weights to `out`, and their average beside it.

    A run that was killed goes on with the round that was not finished.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        settings = settings_of(context)
        plan = settings.plan()
        rounds, began = Rounds.start(settings, plan), time.monotonic()
        facts, before, wall_s = rounds.facts, rounds.done, rounds.facts["wall_s"]
        half_life = plan.training.ema_half_lives[0]
        decay = 2 ** (-(plan.training.steps / settings.rounds) / half_life)

        def follow(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            rounds.done = before + server_round
            if server_round:
                rounds.weights = arrays.to_torch_state_dict()
                kept = min(decay, (1 + rounds.done) / (10 + rounds.done))
                for name, value in rounds.weights.items():
                    rounds.average[name].lerp_(value, 1 - kept)
                facts["wall_s"] = wall_s + time.monotonic() - began
                rounds.save()
            return MetricRecord({"round": rounds.done})

        def metrics_of(replies: list[RecordDict], weight: str) -> MetricRecord:
            if len(replies) < settings.sites:  # Flower would go on with those that answered
                raise RuntimeError(f"{len(replies)} of {settings.sites} sites answered")
            found = aggregate_metricrecords(replies, weight)
            facts["losses"][str(rounds.done + 1)] = found["loss"]
            facts["cpu_s"] += sum(float(reply["metrics"]["cpu-s"]) for reply in replies)
            return found

        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=settings.sites,
            min_available_nodes=settings.sites,
            train_metrics_aggr_fn=metrics_of,
        )
        strategy.start(
            grid,
            ArrayRecord(rounds.weights),
            num_rounds=settings.rounds - before,
            train_config=ConfigRecord({"rounds-before": before}),
            evaluate_fn=follow,
        )
        out = Path(settings.out)
        save_file(plain(rounds.weights), out)
        save_file(plain(rounds.average), out.with_suffix(".average.safetensors"))
        size = sum(value.numel() * value.element_size() for value in rounds.weights.values())
        moved = {
            "bytes": 2 * settings.rounds * settings.sites * size,
            "messages_per_site": settings.rounds,
        }
        out.with_suffix(".json").write_text(json.dumps(facts | moved))
        rounds.file.unlink()

    return app


app = make_app(configured)
