"""The optimiser step, its schedule, and averages of weights."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from risfast.train.config import OptimiserOptions
from risfast.train.optimisation import Optimiser, WeightAverage, learning_rate

OPTIONS = OptimiserOptions(steps=40, warmup=10, lr=0.1, min_lr=0.001, batch_size=2)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def loss_of(module: nn.Module, scale: float = 1.0) -> torch.Tensor:
    x = torch.linspace(-1, 1, 15).reshape(5, 3)
    return scale * (module(x) - 1).square().mean()


def test_the_rate_rises_in_a_line_and_falls_to_its_least() -> None:
    rates = [learning_rate(OPTIONS, step) for step in range(40)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.001)
    assert rates[10] + rates[-1] == pytest.approx(rates[20] + rates[29])  # a cosine is odd about its middle
    assert learning_rate(OPTIONS, 100) == pytest.approx(0.001)


def adamw(weight: torch.Tensor, gradients: list[torch.Tensor], options: OptimiserOptions, decay: float) -> torch.Tensor:
    """Loshchilov and Hutter 2019, algorithm 2, with clipping of the gradient, in float64."""
    w, m, v = weight.double(), torch.zeros_like(weight).double(), torch.zeros_like(weight).double()
    b1, b2 = options.betas
    for t, gradient in enumerate(gradients):
        g, lr = gradient.double(), learning_rate(options, t)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - lr * decay * w
        w = w - lr * (m / (1 - b1 ** (t + 1))) / ((v / (1 - b2 ** (t + 1))).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_steps_are_adamw_on_clipped_gradients_without_decay_of_vectors(scale: float) -> None:
    module = model()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = Optimiser(module, OPTIONS)
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in start}
    for step in range(6):
        loss = loss_of(module, scale)
        true = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in true))
        for (name, _), g in zip(module.named_parameters(), true, strict=True):
            gradients[name].append(g / max(norm, 1.0))
        optimiser.backward(loss)
        reported, taken = optimiser.step(step)
        assert taken
        assert reported == pytest.approx(norm, rel=1e-5)
        assert optimiser.lr == learning_rate(OPTIONS, step + 1)
    for name, parameter in module.named_parameters():
        decay = OPTIONS.weight_decay if parameter.ndim >= 2 else 0.0
        expected = adamw(start[name], gradients[name], OPTIONS, decay)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_schedule(bad: float) -> None:
    module = model()
    optimiser = Optimiser(module, OPTIONS)
    optimiser.backward(loss_of(module))
    optimiser.step(0)
    before, memory = copy.deepcopy(module.state_dict()), copy.deepcopy(optimiser.tensors())
    optimiser.backward(loss_of(module))
    next(module.parameters()).grad[0, 0] = bad
    norm, taken = optimiser.step(1)
    assert not taken
    assert not math.isfinite(norm)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(torch.equal(memory[name], value) for name, value in optimiser.tensors().items())
    assert all(p.grad is None for p in module.parameters())
    assert optimiser.lr == learning_rate(OPTIONS, 2)


def test_a_gradient_of_zero_and_a_loss_that_is_not_finite_are_not_used() -> None:
    module = model()
    optimiser = Optimiser(module, OPTIONS)
    optimiser.backward(loss_of(module, 0.0))
    assert optimiser.step(0) == (0.0, False)
    optimiser.backward(loss_of(module))
    assert optimiser.step(1, usable=False)[1] is False
    assert optimiser.tensors() == {}


def test_an_optimiser_goes_on_from_its_tensors_bit_for_bit() -> None:
    straight = model()
    whole = Optimiser(straight, OPTIONS)
    for step in range(8):
        whole.backward(loss_of(straight))
        whole.step(step)
    broken = model()
    first = Optimiser(broken, OPTIONS)
    for step in range(3):
        first.backward(loss_of(broken))
        first.step(step)
    second = Optimiser(broken, OPTIONS)
    second.load_tensors(copy.deepcopy(first.tensors()))
    second.schedule(3)
    for step in range(3, 8):
        second.backward(loss_of(broken))
        second.step(step)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), broken.parameters(), strict=True))


def test_memory_of_another_architecture_is_refused() -> None:
    optimiser = Optimiser(model(), OPTIONS)
    with pytest.raises(ValueError, match=r"exp_avg/9\.weight"):
        optimiser.load_tensors({"exp_avg/9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="fits no parameter"):
        optimiser.load_tensors({"exp_avg/0.weight": torch.zeros(4, 4)})


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        Optimiser(nn.Tanh(), OPTIONS)


def walk(average: WeightAverage, module: nn.Linear, steps: int) -> list[torch.Tensor]:
    """Weights after each of so many steps of a walk."""
    path = []
    for step in range(steps):
        with torch.no_grad():
            module.weight.add_(torch.tensor([[math.sin(step), math.cos(step)]]))
        path.append(module.weight.detach().clone().double())
        average.update(step)
    return path


def test_the_exponential_average_is_its_recursion() -> None:
    module = nn.Linear(2, 1)
    start = module.weight.detach().clone().double()
    average = WeightAverage(module, OptimiserOptions(averaging="ema", ema_decay=0.9, steps=40, warmup=0))
    path = walk(average, module, 40)
    expected = start
    for t, weight in enumerate(path):
        keep = min(0.9, (1 + t) / (10 + t))
        expected = keep * expected + (1 - keep) * weight
    torch.testing.assert_close(average.tensors()["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_equal_average_is_the_mean_from_its_start_on() -> None:
    module = nn.Linear(2, 1)
    average = WeightAverage(module, OptimiserOptions(averaging="swa", swa_start=0.5, steps=10, warmup=0))
    path = walk(average, module, 4)
    assert torch.equal(average.tensors()["weight"].double(), path[-1])  # before the start: the weights themselves
    average = WeightAverage(module, OptimiserOptions(averaging="swa", swa_start=0.5, steps=10, warmup=0))
    path = walk(average, module, 10)
    expected = torch.stack(path[5:]).mean(0)
    torch.testing.assert_close(average.tensors()["weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_no_average_is_the_latest_weights() -> None:
    module = nn.Linear(2, 1)
    average = WeightAverage(module, OptimiserOptions(averaging="none"))
    path = walk(average, module, 5)
    assert torch.equal(average.tensors()["weight"].double(), path[-1])


def test_the_average_lends_its_weights_and_gives_the_own_back_even_after_an_error() -> None:
    module = nn.Linear(2, 1)
    average = WeightAverage(module, OptimiserOptions(averaging="ema"))
    walk(average, module, 5)
    own = module.weight.detach().clone()
    with average.in_use() as lent:
        assert torch.equal(lent.weight, average.tensors()["weight"])
        assert not torch.equal(lent.weight, own)
    assert torch.equal(module.weight, own)
    with pytest.raises(RuntimeError), average.in_use():
        raise RuntimeError
    assert torch.equal(module.weight, own)


def test_averages_of_another_architecture_are_refused() -> None:
    average = WeightAverage(nn.Linear(2, 1), OPTIONS)
    with pytest.raises(ValueError, match="another architecture"):
        average.load_tensors({"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, 4)


def test_only_what_is_named_moves_and_names_that_no_parameter_has_are_refused() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"head": nn.Linear(3, 2), "body": nn.Linear(3, 3)})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = Optimiser(module, OptimiserOptions(moves=("head",), lr=0.1, warmup=0))
    optimiser.backward(module["head"](module["body"](torch.ones(1, 3))).square().sum())
    _, taken = optimiser.step(0)
    assert taken
    assert set(optimiser.part_norms) == {"head"}
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match="no parameter's name starts with 'tail'; there are head, body"):
        Optimiser(module, OptimiserOptions(moves=("head", "tail")))


def test_the_first_gradient_that_is_not_finite_is_named_and_norms_are_told_by_part() -> None:
    module = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "two": nn.Linear(2, 2, bias=False)})
    optimiser = Optimiser(module, OptimiserOptions())
    module["one"].weight.grad = torch.full((2, 2), 2.0)
    module["two"].weight.grad = torch.tensor([[0.0, math.nan], [0.0, 0.0]])
    _, taken = optimiser.step(0)
    assert not taken
    assert optimiser.not_finite == "two.weight"
    assert optimiser.part_norms["one"] == pytest.approx(4.0)
