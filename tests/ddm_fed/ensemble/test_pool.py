"""A pool of experts: never more in memory than allowed, the one asked longest ago goes first."""

import gc
import weakref

import pytest
import torch
from torch import nn

from ddm_fed.ensemble.devices import chosen_devices
from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.errors import OptionError
from ddm_fed.flows import Expert


class Shelf:
    """Loads networks and knows how many of them are alive."""

    def __init__(self):
        self.alive, self.most = weakref.WeakSet(), 0

    def loader(self, site):
        def load():
            network = Times(site)
            self.alive.add(network)
            self.most = max(self.most, len(self.alive))
            return Expert(network)

        return load


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)), requires_grad=False)

    def forward(self, x, t, condition):
        return self.factor * x


X, T = torch.ones(3, 1, 1, 2), torch.full((3,), 0.5)


def pool_of(count, **options):
    shelf = Shelf()
    return ExpertPool([shelf.loader(site) for site in range(count)], **options), shelf


def ask(pool, sites):
    return [float(pool.ask(site, X, T, None)[0, 0, 0, 0]) for site in sites]


def test_pool_loads_nothing_before_it_is_asked():
    pool, shelf = pool_of(4)
    assert (pool.loads, len(shelf.alive), pool.resident) == ([0, 0, 0, 0], 0, ())


def test_answers_come_from_the_expert_that_was_asked():
    pool, _ = pool_of(4, resident=2)
    assert ask(pool, [3, 0, 2, 3, 1, 0]) == [3, 0, 2, 3, 1, 0]


@pytest.mark.parametrize("resident", [1, 2, 3])
def test_pool_never_holds_more_than_may_be_resident_not_even_while_it_loads(resident):
    pool, shelf = pool_of(5, resident=resident)
    gc.disable()  # what is let go of goes at once, not when the collector comes by
    try:
        ask(pool, [0, 1, 2, 3, 4, 0, 2, 4, 1, 1, 3])
    finally:
        gc.enable()
    assert shelf.most == resident == len(pool.resident)


def test_expert_asked_longest_ago_is_let_go_of_first():
    pool, _ = pool_of(4, resident=2)
    ask(pool, [0, 1, 0, 2])
    assert pool.resident == (0, 2)
    ask(pool, [3])
    assert pool.resident == (2, 3)
    assert pool.loads == [1, 1, 1, 1]
    ask(pool, [1])
    assert pool.loads == [1, 2, 1, 1]


def test_pool_without_a_limit_loads_each_expert_once():
    pool, _ = pool_of(3)
    ask(pool, [0, 1, 2, 0, 1, 2, 2])
    assert pool.loads == [1, 1, 1]


def test_offloaded_expert_is_not_loaded_again():
    pool, shelf = pool_of(3, resident=1, offload=True)
    assert ask(pool, [0, 1, 2, 0, 1, 2]) == [0, 1, 2, 0, 1, 2]
    assert pool.loads == [1, 1, 1]
    assert pool.resident == (2,)
    assert len(shelf.alive) == 3


def test_calls_count_the_images_of_every_expert():
    pool, _ = pool_of(3)
    ask(pool, [0, 2, 2])
    assert pool.calls == [3, 0, 6]


@pytest.mark.parametrize("resident", [None, 2])
def test_loading_all_loads_as_many_as_may_be_resident(resident):
    pool, _ = pool_of(3, resident=resident)
    pool.load_all()
    assert sum(pool.loads) == (resident or 3)


def test_experts_take_turns_on_the_devices_and_answer_on_the_first():
    pool, _ = pool_of(5, devices=["cpu", "cpu:0", "cpu"])
    places = ["cpu", "cpu:0", "cpu", "cpu", "cpu:0"]
    assert [str(pool.device_of(site)) for site in range(5)] == places
    assert ask(pool, range(5)) == [0, 1, 2, 3, 4]
    assert pool.ask(1, X, T, None).device == X.device


def test_every_device_holds_as_many_experts_as_may_be_resident():
    pool, shelf = pool_of(6, resident=1, devices=["cpu", "cpu:0"])
    gc.disable()
    try:
        ask(pool, [0, 1, 2, 0, 3])
        assert pool.resident == (0, 3)  # 0 and 2 share a device, so do 1 and 3
        assert pool.loads == [2, 1, 1, 1, 0, 0]
        pool.load_all()
    finally:
        gc.enable()
    assert shelf.most == 2


def test_rows_move_to_the_device_of_the_expert_and_back():
    moved = []

    class Recorder(torch.Tensor):
        def to(self, *arguments, **options):
            moved.append(arguments[0])
            return super().to(*arguments, **options)

    pool, _ = pool_of(2, devices=["cpu", "cpu:0"])
    pool.ask(1, X.as_subclass(Recorder), T, None)
    assert moved[0] == torch.device("cpu:0")
    assert moved[-1] == X.device


def test_pool_without_a_device_is_refused():
    with pytest.raises(ValueError, match="need a device"):
        pool_of(2, devices=[])


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", "cpu:1", "meta"])
def test_device_that_is_not_there_is_refused(name):
    with pytest.raises(OptionError, match=r"unknown device|this machine has \d of"):
        chosen_devices(["cpu", name])


def test_device_that_is_there_is_taken():
    assert chosen_devices(["cpu"]) == ("cpu",)
    assert chosen_devices(None) == (("cuda",) if torch.cuda.is_available() else ("cpu",))


@pytest.mark.parametrize("resident", [0, -1])
def test_pool_that_may_hold_no_expert_is_refused(resident):
    with pytest.raises(ValueError, match="at least one"):
        pool_of(2, resident=resident)


def test_pool_of_experts_starts_where_all_of_them_may_be_asked():
    late = Expert(Times(1), "vp", "noise")
    assert ExpertPool.of([Expert(Times(1)), late, lambda x, t, c: x]).largest_time < 1
    assert ExpertPool.of([Expert(Times(1))]).largest_time == 1.0


def test_bfloat16_multiplies_in_it_and_answers_in_the_dtype_of_the_state():
    seen = []

    def network(x, t, condition):
        product = x.flatten(1) @ torch.eye(2)
        seen.append(product.dtype)
        return product.reshape(x.shape)

    pool = ExpertPool([lambda: Expert(network)], precision="bfloat16")
    assert pool.ask(0, X, T, None).dtype == torch.float32
    assert seen == [torch.bfloat16]
