"""The baseline of examples/flower/fedavg: it differs from the experts in what is averaged only."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flower_deployment import APP
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file

from ddm_fed.privacy import Private
from ddm_fed.training import RunOptions, train_expert

FEDAVG = APP.parent / "fedavg"


@pytest.fixture
def app(monkeypatch):
    """The modules of the app, which is not installed: Flower puts its folder on the path."""
    monkeypatch.syspath_prepend(str(FEDAVG))
    names = ("task", "client_app", "server_app")
    threads = torch.get_num_threads()
    yield {name: importlib.import_module(f"ddm_fedavg.{name}") for name in names}
    torch.set_num_threads(threads)


@pytest.fixture
def data_settings(app, tmp_path):
    """Settings of four rounds with a data file of four classes, and a plan with classes."""
    generator = np.random.default_rng(4)
    arrays = {
        "train_images": generator.integers(0, 256, (80, 8, 8), np.uint8),
        "train_labels": np.arange(80, dtype=np.uint8) % 4,
    }
    np.savez(tmp_path / "data.npz", **arrays)
    classes = 'width = 8\nconditioning = "class"\nclasses = ["a", "b", "c", "d"]'
    plan = app["task"].PLAN.format(steps=8, batch_size=4, half_life=2)
    (tmp_path / "plan.toml").write_text(plan.replace("width = 8", classes))
    return app["task"].Settings(
        split="disjoint",
        sites=2,
        rounds=4,
        out=str(tmp_path / "fedavg.safetensors"),
        data=str(tmp_path / "data.npz"),
        plan_file=str(tmp_path / "plan.toml"),
        seed=3,
    )


@pytest.mark.parametrize("split", ["label-skew", "iid"])
def test_sites_of_a_split_have_every_training_image_once(app, split):
    task = app["task"]
    parts = [task.images_of_site(split, 5, site) for site in range(5)]
    train, test = task.all_images()

    assert sum(len(part) for part in parts) == len(train)
    found = torch.cat([part.images for part in parts]).flatten(1)
    assert torch.equal(found.unique(dim=0), train.images.flatten(1).unique(dim=0))
    assert len(train) + len(test) == 1797


def test_label_skew_gives_every_site_digits_of_its_own(app):
    parts = [app["task"].images_of_site("label-skew", 5, site) for site in range(5)]

    assert [part.labels.unique().tolist() for part in parts] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
        [8, 9],
    ]


@pytest.mark.parametrize("split", ["disjoint", "dirichlet-0.3"])
def test_drawn_split_gives_every_image_to_one_site_and_another_seed_divides_otherwise(app, split):
    labels = torch.arange(1000) % 10
    owners = [app["task"].owners(split, labels, 5, seed) for seed in (0, 0, 1)]

    assert owners[0].bincount(minlength=5).min() >= 20
    assert len(owners[0]) == 1000
    assert torch.equal(owners[0], owners[1])
    assert not torch.equal(owners[0], owners[2])


def test_disjoint_split_gives_every_class_to_one_site(app):
    labels = torch.arange(1000) % 10
    owners = app["task"].owners("disjoint", labels, 5, seed=3)

    assert [len(owners[labels == kind].unique()) for kind in range(10)] == [1] * 10
    assert [len(labels[owners == site].unique()) for site in range(5)] == [2] * 5


def test_dirichlet_split_is_the_more_uneven_the_smaller_its_number(app):
    labels = torch.arange(10_000) % 10
    largest = []
    for alpha in (100, 1, 0.1):
        owners = app["task"].owners(f"dirichlet-{alpha}", labels, 5)
        counts = (owners * 10 + labels).bincount(minlength=50).reshape(5, 10)
        largest.append(float((counts.max(0).values / counts.sum(0)).mean()))

    assert largest == sorted(largest)
    assert largest[0] < 0.3
    assert largest[2] > 0.7


@pytest.mark.parametrize("split", ["even", "dirichlet", "label-skew", "disjoint"])
def test_split_of_no_known_name_or_with_an_empty_site_is_refused(app, split):
    with pytest.raises(ValueError, match=split):
        app["task"].owners(split, torch.tensor([0, 1, 0, 1]), 3)


def test_dirichlet_split_that_never_gives_every_site_enough_is_refused(app):
    with pytest.raises(ValueError, match=r"dirichlet-0\.5"):
        app["task"].owners("dirichlet-0.5", torch.tensor([0, 1]), 60)


def test_stretches_of_a_training_go_through_its_batches_and_learn(app):
    task = app["task"]
    settings = task.Settings(rounds=2, steps=40, batch_size=16)
    plan, images = settings.plan(), task.images_of_site("iid", 5, 0)
    weights = task.new_weights(plan)
    first, early = task.train_stretch(weights, images, plan, range(20), 3)
    second, late = task.train_stretch(first, images, plan, range(20, 40), 3)
    again, _ = task.train_stretch(first, images, plan, range(20), 3)

    assert late < early
    assert any(not torch.equal(second[name], again[name]) for name in second)


def test_site_answers_with_trained_weights_and_its_number_of_images(app):
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    task = app["task"]
    settings = task.Settings(rounds=2, steps=4, batch_size=8)
    client = app["client_app"].make_app(lambda _: settings)
    weights = task.new_weights(settings.plan())
    content = RecordDict(
        {"arrays": ArrayRecord(weights), "config": ConfigRecord({"server-round": 1})}
    )
    message = Message(content, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "one"
    node = UserConfig({"partition-id": 2, "num-partitions": 5})

    reply = client(message, Context(1, 1, node, RecordDict(), UserConfig())).content

    images = task.images_of_site("label-skew", 5, 2)
    assert reply["metrics"]["num-examples"] == len(images)
    expected, loss = task.train_stretch(weights, images, settings.plan(), range(2), 2)
    found = reply["arrays"].to_torch_state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert reply["metrics"]["loss"] == loss


@pytest.mark.slow
def test_whole_training_of_one_site_is_that_of_an_expert_with_classes(app, data_settings, tmp_path):
    task, (plan, settings) = app["task"], (data_settings.plan(), data_settings)
    images = task.images_of_site("disjoint", 2, 1, data=settings.data, seed=settings.seed)
    seed, checkpoint = settings.seed_of_site(1), tmp_path / "checkpoint"
    options = RunOptions(seed=seed, precision="float32")
    torch.set_num_threads(1)
    train_expert(Private(images), plan, "0" * 64, checkpoint, options=options)

    weights, _ = task.train_stretch(
        task.new_weights(plan, seed), images, plan, range(plan.training.steps), seed
    )

    kept = load_file(checkpoint)
    assert plan.data.conditional
    assert all(torch.equal(kept[f"model.{name}"], value) for name, value in weights.items())


def test_images_of_a_data_file_are_scaled_and_each_is_at_one_site(app, data_settings):
    settings = data_settings
    parts = [
        app["task"].images_of_site("disjoint", 2, site, data=settings.data, seed=settings.seed)
        for site in range(2)
    ]
    file = np.load(settings.data)

    assert sum(len(part) for part in parts) == len(file["train_images"])
    for part in parts:
        pixels = ((part.images[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        kinds = part.labels.unique().numpy()
        own = np.isin(file["train_labels"], kinds)
        assert np.array_equal(pixels, file["train_images"][own])
        assert np.array_equal(part.labels.numpy(), file["train_labels"][own])


@pytest.mark.parametrize(("steps", "rounds"), [(6, 3), (7, 3), (3, 2)])
def test_rounds_together_are_all_steps_once(app, steps, rounds):
    settings = app["task"].Settings(steps=steps, rounds=rounds)
    taken = [step for done in range(rounds) for step in settings.stretch(done + 1)]

    assert taken == list(range(steps))


class InProcess(Grid):
    """Hands every message to the app of its site in this process, and can fail to."""

    def __init__(self, client, sites, stops_in_round=0, silent=()):
        self.client, self.sites = client, sites
        self.stops_in_round, self.silent, self.rounds = stops_in_round, silent, 0

    def get_node_ids(self):
        return range(1, self.sites + 1)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)  # none, where Flower asks nobody to evaluate
        self.rounds += bool(messages)
        if self.rounds == self.stops_in_round:
            raise KeyboardInterrupt
        return [self.answer(message) for message in messages]

    def answer(self, message):
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = f"to {node}"
        if node in self.silent:
            return Message(Error(code=1, reason="asleep"), reply_to=message)
        config = UserConfig({"partition-id": node - 1, "num-partitions": self.sites})
        return self.client(message, Context(1, node, config, RecordDict(), UserConfig()))

    set_run = run = create_message = push_messages = pull_messages = None


@pytest.fixture
def serve(app):
    """Runs the server's app with sites in this process, and returns what carried the messages."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def run(settings, **faults):
        grid = InProcess(app["client_app"].make_app(lambda _: settings), settings.sites, **faults)
        server = app["server_app"].make_app(lambda _: settings)
        try:
            server(grid, Context(1, 0, UserConfig(), RecordDict(), UserConfig()))
        except KeyboardInterrupt:
            grid.stopped = True
        return grid

    return run


@pytest.mark.slow
def test_server_that_was_killed_goes_on_with_the_round_that_was_not_finished(
    serve, data_settings, tmp_path
):
    whole, halves = (replace(data_settings, out=str(tmp_path / name)) for name in ("a.s", "b.s"))
    serve(whole)
    assert serve(halves, stops_in_round=3).stopped
    assert not (tmp_path / "b.json").exists()

    assert serve(halves).rounds == halves.rounds - 2

    for suffix in ("s", "average.safetensors"):
        first, second = (load_file(tmp_path / f"{name}.{suffix}") for name in "ab")
        for name, value in first.items():  # sums of sites in another order round otherwise
            torch.testing.assert_close(second[name], value)
    facts, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert again["losses"] == pytest.approx(facts["losses"])
    assert again["bytes"] == facts["bytes"]
    assert again["messages_per_site"] == data_settings.rounds
    assert not list(tmp_path.glob("*.rounds.*"))


@pytest.mark.slow
def test_rounds_of_another_training_are_not_continued(serve, data_settings, tmp_path):
    settings = replace(data_settings, out=str(tmp_path / "a.s"))
    serve(settings, stops_in_round=3)

    assert serve(replace(settings, seed=5)).rounds == settings.rounds


@pytest.mark.slow
def test_round_that_a_site_did_not_answer_ends_the_run(serve, data_settings):
    with pytest.raises(RuntimeError, match="1 of 2 sites answered"):
        serve(data_settings, silent=(2,))
    assert not Path(data_settings.out).exists()
