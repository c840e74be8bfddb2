"""The baseline of examples/flower/fedavg: it differs from the experts in what is averaged only."""

import importlib

import pytest
import torch
from flower_deployment import APP
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.supercore.task_identity import TaskIdentity

FEDAVG = APP.parent / "fedavg"


@pytest.fixture
def app(monkeypatch):
    """The modules of the app, which is not installed: Flower puts its folder on the path."""
    monkeypatch.syspath_prepend(str(FEDAVG))
    names = ("task", "client_app", "server_app")
    threads = torch.get_num_threads()
    yield {name: importlib.import_module(f"ddm_fedavg.{name}") for name in names}
    torch.set_num_threads(threads)


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
