"""The operators as citizens of torch: custom ops, compilation, export, function transforms."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import (
    analysis,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    synthesis,
)

N = 6
ARRAY = PlanarArray(oracles.rectangular(3, 2), 0.3)
GRID = SearchGrid(np.radians(np.linspace(-40, 35, 5)), np.radians([-12.0, 0.0, 20.0]), np.array([0.7, 3.0]))
POINTS = torch.tensor([[0.1, 0.0, 1.0], [-0.3, 0.2, 4.0], [0.5, -0.1, 0.6]], dtype=torch.float64)
CASES = [("spherical", "dense"), ("spherical", "chebyshev"), ("fresnel", "lag"), ("spherical", "auto")]


def covariance(batch=3, dtype=torch.complex64, seed=0):
    rng = np.random.default_rng(seed)
    R = torch.as_tensor(np.stack([oracles.wishart(rng, N, 12) for _ in range(batch)])).to(dtype)
    return (R + R.mH) / 2


def factor(batch=3, dtype=torch.complex64, seed=1):
    return torch.as_tensor(oracles.complex_normal(np.random.default_rng(seed), batch, N, 2)).to(dtype)


def weights(batch=3, dtype=torch.float32, seed=2):
    return torch.as_tensor(np.random.default_rng(seed).uniform(0.1, 1, (batch, *GRID.shape))).to(dtype)


# name: (what a user writes, its input)
USES = {
    "mvdr_spectrum": (lambda R, **o: mvdr_spectrum(R, ARRAY, GRID, **o).power, covariance),
    "mvdr_spectrum plane": (lambda R, **o: mvdr_spectrum(R, ARRAY, GRID, **o).plane, covariance),
    "mvdr_spectrum volume": (lambda R, **o: mvdr_spectrum(R, ARRAY, GRID, reduce="none", **o), covariance),
    "mvdr_spectrum_lowrank": (lambda F, **o: mvdr_spectrum_lowrank(F, ARRAY, GRID, **o).power, factor),
    "mvdr_spectrum_lowrank volume": (lambda F, **o: mvdr_spectrum_lowrank(F, ARRAY, GRID, reduce="none", **o), factor),
    "music_spectrum": (lambda R, **o: music_spectrum(R, ARRAY, GRID, n_sources=2, **o).power, covariance),
    "bartlett_spectrum": (lambda R, **o: bartlett_spectrum(R, ARRAY, GRID, **o).power, covariance),
    "analysis": (lambda Q, **o: analysis(Q, ARRAY, GRID, **o), covariance),
    "analysis factored": (lambda W, **o: analysis(W, ARRAY, GRID, **o), factor),
    "synthesis": (lambda p, **o: synthesis(p, ARRAY, GRID, **o), weights),
}
# Capon in R and F, analysis and synthesis in theirs.
DIFFERENTIABLE = [name for name in USES if "music" not in name and "bartlett" not in name and "plane" not in name]


def options_of(case):
    return {"wavefront": case[0], "method": case[1]}


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = float(expected.detach().abs().max())
    np.testing.assert_allclose(actual.detach().numpy(), expected.detach().numpy(), atol=tolerance * scale, rtol=0)


def total(result):
    """A real scalar that depends on every entry of a result."""
    return result.abs().square().sum() if result.is_complex() else result.sum()


# ---- custom ops


class Recorder(TorchDispatchMode):
    """Notes every call of a risfast operator, forward and backward, with its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "risfast":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def recorded(name, case, batch=2):
    use, make = USES[name]
    x = make(batch).requires_grad_(name in DIFFERENTIABLE)
    with Recorder() as recorder:
        result = use(x, **options_of(case))
        if name in DIFFERENTIABLE:
            total(result).backward()
    return recorder.calls


@pytest.mark.parametrize("name", USES)
def test_every_operator_is_a_registered_custom_op(name):
    calls = recorded(name, CASES[0])
    assert calls
    for func, _, _ in calls:
        assert hasattr(torch.ops.risfast, func._schema.name.removeprefix("risfast::"))


def test_the_operators_go_by_their_names():
    names = {func._schema.name for name in USES for func, _, _ in recorded(name, CASES[0])}
    assert {"risfast::capon", "risfast::capon_lowrank", "risfast::analysis", "risfast::synthesis"} <= names


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("name", USES)
def test_opcheck_passes_for_every_operator_and_its_backward(name, case):
    for number, (func, args, kwargs) in enumerate(recorded(name, case)):
        fresh = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
        if number == 0 and name in DIFFERENTIABLE:
            fresh[0].requires_grad_()
        torch.library.opcheck(func, tuple(fresh), kwargs)


# ---- torch.compile


@pytest.fixture
def compiler():
    """Compile without a C++ compiler: what matters is that the graph is whole."""
    torch.compiler.reset()
    yield lambda function, **o: torch.compile(function, backend="aot_eager", fullgraph=True, **o)
    torch.compiler.reset()


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("name", USES)
def test_every_operator_compiles_into_one_graph(compiler, name, case):
    use, make = USES[name]

    def function(x):
        return use(2 * x, **options_of(case)) * 3

    close(compiler(function)(make()), function(make()))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_pass_through_a_compiled_graph(compiler, name):
    use, make = USES[name]
    expected, actual = make().requires_grad_(), make().requires_grad_()
    total(use(expected)).backward()
    total(compiler(use)(actual)).backward()
    close(actual.grad, expected.grad)


def test_a_compiled_function_serves_other_batch_sizes_without_compiling_again(compiler):
    compiled = compiler(USES["mvdr_spectrum"][0], dynamic=True)
    compiled(covariance(7))  # a size that no other axis has: equal sizes are taken for the same size
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in (2, 4, 8):
            close(compiled(covariance(batch)), USES["mvdr_spectrum"][0](covariance(batch)))


def test_a_compiled_function_still_refuses_bad_values(compiler):
    compiled = compiler(USES["mvdr_spectrum"][0])
    compiled(covariance())
    bad = covariance()
    bad[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="R must be finite"):
        compiled(bad)
    bad = covariance()
    bad[1, 2, 3] += 1
    with pytest.raises(ValueError, match="Hermitian"):
        compiled(bad)


def test_a_function_over_points_compiles(compiler):
    def function(W, points):
        return analysis(W, ARRAY, points)

    close(compiler(function)(factor(), POINTS), function(factor(), POINTS))


# ---- torch.export


class Use(torch.nn.Module):
    def __init__(self, name, case):
        super().__init__()
        self.name, self.case = name, case

    def forward(self, x):
        return USES[self.name][0](x, **options_of(self.case))


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("name", USES)
def test_every_operator_exports(name, case):
    make = USES[name][1]
    exported = torch.export.export(Use(name, case), (make(),))
    close(exported.module()(make(seed=7)), Use(name, case)(make(seed=7)))
    assert any("risfast" in str(node.target) for node in exported.graph.nodes)


def test_the_batch_of_an_exported_operator_may_change():
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Use("mvdr_spectrum", CASES[1]), (covariance(),), dynamic_shapes=({0: batch},))
    for size in (1, 3, 7):
        close(exported.module()(covariance(size)), Use("mvdr_spectrum", CASES[1])(covariance(size)))


# ---- function transforms


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("name", USES)
def test_vmap_over_scenes_gives_the_batch(name, case):
    use, make = USES[name]
    if name == "synthesis":  # has no form without a batch
        mapped = torch.func.vmap(lambda x: use(x[None], **options_of(case))[0])(make())
    else:
        mapped = torch.func.vmap(lambda x: use(x, **options_of(case)))(make())
    close(mapped, use(make(), **options_of(case)))


@pytest.mark.parametrize("name", ["mvdr_spectrum_lowrank", "analysis", "analysis factored", "mvdr_spectrum"])
def test_vmap_over_an_inner_axis_and_a_batch_inside(name):
    use, make = USES[name]
    stacked = torch.stack([make(seed=s) for s in range(4)], dim=1)  # [batch, 4, ...]
    mapped = torch.func.vmap(use, in_dims=1, out_dims=1)(stacked)
    close(mapped, torch.stack([use(stacked[:, s]) for s in range(4)], dim=1))
