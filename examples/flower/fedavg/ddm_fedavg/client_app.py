"""A site of the baseline: it trains the weights it is sent, and sends them back."""

import time
from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ddm_fedavg.task import Settings, images_of_site, train_stretch


def make_app(settings_of: Callable[[Context], Settings]) -> ClientApp:
    """Returns the app; `settings_of` says what is agreed."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        settings = settings_of(context)
        site = int(context.node_config["partition-id"])
        images = images_of_site(
            settings.split, settings.sites, site, data=settings.data, seed=settings.seed
        )
        config, began = message.content["config"], time.process_time()
        weights, loss = train_stretch(
            message.content["arrays"].to_torch_state_dict(),
            images,
            settings.plan(),
            settings.stretch(int(config.get("rounds-before", 0)) + int(config["server-round"])),
            seed=settings.seed_of_site(site),
        )
        took = time.process_time() - began
        metrics = MetricRecord({"num-examples": len(images), "loss": loss, "cpu-s": took})
        content = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def configured(context: Context) -> Settings:
    """Returns what `[tool.flwr.app.config]` says."""
    config = context.run_config
    return Settings(
        split=str(config["split"]),
        sites=int(config["sites"]),
        rounds=int(config["rounds"]),
        steps=int(config["steps"]),
        batch_size=int(config["batch-size"]),
        out=str(config["out"]),
        data=str(config["data"]),
        plan_file=str(config["plan"]),
        seed=int(config["seed"]),
    )


def given(settings: Settings, _: Context) -> Settings:
    """Returns `settings`, whatever is configured: for a simulation that is told them in Python."""
    return settings


app = make_app(configured)
