"""What serves CUDA tensors never waits for the host: the same functions on tensors without values, without a GPU.

The device is "meta", whose tensors have shapes and strides only: whatever needs a value raises, and launches do nothing
but check where their arguments are. Tensors on the CPU are real, as plans need them. The first call may copy tables to
the device; every later one is held to what a CUDA graph can capture.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")

if importlib.util.find_spec("risfast.kernels") is None:
    folder = Path(__file__).resolve().parents[2] / "kernels"
    spec = importlib.util.spec_from_file_location(
        "risfast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["risfast.kernels"] = importlib.util.module_from_spec(spec)

import risfast.ops.cuda as gpu  # noqa: E402
from risfast.detect import DetectionOptions, detect_fixed  # noqa: E402
from risfast.geometry import PlanarArray, SearchGrid  # noqa: E402
from risfast.ops import (  # noqa: E402
    analysis,
    bartlett_spectrum,
    clear_plans,
    form,
    lag,
    local_maxima_3d,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    nms_3d,
    register,
    spectra,
    synthesis,
)

SURFACE = PlanarArray.rectangular(4, 3)
GRID = SearchGrid(
    torch.linspace(-1, 1, 31, dtype=torch.float64), torch.linspace(-0.5, 0.5, 9, dtype=torch.float64), [0.6, 1.5, 6.0]
)
LOPSIDED = SearchGrid(
    torch.linspace(-0.3, 1, 21, dtype=torch.float64), torch.linspace(-0.4, 0.5, 8, dtype=torch.float64), [0.6, 1.5]
)
CASES = [("spherical", "dense"), ("spherical", "chebyshev"), ("fresnel", "lag")]
IMPLEMENTATIONS = {
    "risfast::capon": gpu.capon_cuda,
    "risfast::capon_lowrank": gpu.capon_lowrank_cuda,
    "risfast::loaded_inverse": gpu.loaded_inverse,
    "risfast::eigenbasis": register.eigenbasis_torch,
    "risfast::analysis": gpu.analysis_cuda,
    "risfast::synthesis": gpu.synthesis_cuda,
    "risfast::local_maxima_3d": gpu.local_maxima_3d_cuda,
    "risfast::nms_3d": gpu.nms_3d_cuda,
    "risfast::refine": gpu.refine_cuda,
    "risfast::walk": gpu.walk_cuda,
}
# Below autograd composite operators are seen by their own names.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "argwhere"}
WAITS |= {"masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"}
EIGENVECTORS = {"_linalg_eigh", "linalg_eigh"}
WAITS |= {f"{prefix}linalg_{name}" for prefix in ("", "_") for name in ("eigh", "eigvalsh", "svd")}
WAITS |= {"linalg_cholesky", "linalg_inv", "linalg_solve", "cholesky", "inverse", "linalg_lstsq"}


class WaitedError(AssertionError):
    """The host would have waited for the device."""


def tensors_in(values):
    return [t for t in torch.utils._pytree.tree_leaves(values) if isinstance(t, torch.Tensor)]


def on_device(tensor):
    return tensor.device.type == "meta"


class Device(TorchDispatchMode):
    """Stands in for a GPU: runs the CUDA implementation of every operator, and refuses what would wait."""

    def __init__(self, strict):
        super().__init__()
        self.strict = strict
        self.served = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        name = func._schema.name
        if name.startswith("risfast::"):
            assert any(map(on_device, given)), f"{name} was called on the host"
            self.served.append(name)
            expected = func(*args, **kwargs)  # the registered fake
            with self:
                result = IMPLEMENTATIONS[name](*args, **kwargs)
            assert_like(result, expected, name)
            return result
        result = func(*args, **kwargs)
        if self.strict and any(map(on_device, (*given, *tensors_in(result)))):
            if name.removeprefix("aten::") in WAITS:
                raise WaitedError(f"{name} waits for the device")
            crossing = [tuple(t.shape) for t in given if not on_device(t) and t.ndim]
            if crossing:
                raise WaitedError(f"{name} copies {crossing} to the device")
        return result


def assert_like(result, expected, name):
    """Shape, dtype, strides and device as the registered fake says."""
    several = isinstance(result, tuple | list)
    for actual, wanted in zip(result if several else [result], expected if several else [expected], strict=True):
        assert (actual.shape, actual.dtype, actual.device) == (wanted.shape, wanted.dtype, wanted.device), name
        assert actual.stride() == wanted.stride() or actual.numel() == 0, (
            f"{name}: {actual.stride()}, {wanted.stride()}"
        )


@pytest.fixture
def launched():
    """Names of the kernels that the last call launched."""
    return []


@pytest.fixture
def gpu_without_values(monkeypatch, launched):
    """Run a call twice on a device that is not there, the second time strictly; the operators that it used."""
    launches = launched

    def launch(self, *args, **kwargs):
        placed = {t.device.type for t in tensors_in((args, kwargs))}
        assert placed == {"meta"}, f"a launch with tensors on {placed}"
        launches.append(self.fn.__name__)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", launch)
    monkeypatch.setattr(importlib.import_module("triton.runtime.interpreter").InterpretedFunction, "run", launch)
    for module in (form, register, spectra):
        monkeypatch.setattr(module, "serves_kernels", on_device)

    def run(call):
        clear_plans()
        try:
            with torch.no_grad():
                with Device(strict=False):
                    call()
                launches.clear()
                with Device(strict=True) as device:
                    call()
        finally:
            clear_plans()
        assert launches, "no kernel ran"
        return device.served

    return run


def fake(*shape, dtype=torch.complex64):
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("reduce", ["max", "none"])
@pytest.mark.parametrize(("wavefront", "method"), CASES)
@pytest.mark.parametrize("operator", [mvdr_spectrum, mvdr_spectrum_lowrank, bartlett_spectrum])
def test_a_spectrum_does_not_wait(gpu_without_values, operator, wavefront, method, reduce):
    columns = 3 if operator is mvdr_spectrum_lowrank else 12
    options = {"wavefront": wavefront, "method": method, "reduce": reduce}
    assert gpu_without_values(lambda: operator(fake(2, 12, columns), SURFACE, GRID, **options))


def test_complex128_and_small_loadings_do_not_wait(gpu_without_values):
    options = {"wavefront": "fresnel", "method": "lag"}
    gpu_without_values(lambda: mvdr_spectrum(fake(2, 12, 12, dtype=torch.complex128), SURFACE, GRID, **options))
    gpu_without_values(lambda: mvdr_spectrum(fake(2, 12, 12), SURFACE, GRID, loading=1e-4, **options))


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize(("wavefront", "method"), CASES)
def test_the_linear_pair_does_not_wait(gpu_without_values, wavefront, method, factored):
    options = {"wavefront": wavefront, "method": method}
    matrix = (2, 12, 3 if factored else 12)
    gpu_without_values(lambda: analysis(fake(*matrix), SURFACE, GRID, factored=factored, **options))
    gpu_without_values(lambda: synthesis(fake(2, *GRID.shape, dtype=torch.float32), SURFACE, GRID, **options))


@pytest.mark.parametrize("reduce", ["max", "none"])
@pytest.mark.parametrize(("wavefront", "method"), CASES)
@pytest.mark.parametrize("operator", [mvdr_spectrum, mvdr_spectrum_lowrank])
def test_gradients_do_not_wait(gpu_without_values, operator, wavefront, method, reduce):
    def call():
        matrix = fake(2, 12, 12 if operator is mvdr_spectrum else 3).requires_grad_()
        with torch.enable_grad():
            found = operator(matrix, SURFACE, GRID, wavefront=wavefront, method=method, reduce=reduce)
            power = found if reduce == "none" else found.power
            power.sum().backward()
        assert matrix.grad.shape == matrix.shape

    assert "risfast::synthesis" in gpu_without_values(call)


def test_music_waits_for_its_eigenvectors_and_for_nothing_else(gpu_without_values, monkeypatch):
    with pytest.raises(WaitedError, match="linalg_eigh"):
        gpu_without_values(lambda: music_spectrum(fake(2, 12, 12), SURFACE, GRID, n_sources=2))
    monkeypatch.setattr(sys.modules[__name__], "WAITS", WAITS - EIGENVECTORS)
    for wavefront, method in CASES:
        options = {"n_sources": 2, "wavefront": wavefront, "method": method}
        gpu_without_values(lambda options=options: music_spectrum(fake(2, 12, 12), SURFACE, GRID, **options))


def test_peaks_do_not_wait(gpu_without_values):
    gpu_without_values(lambda: local_maxima_3d(fake(2, 31, 9, 3, dtype=torch.float32), k=8))
    position, score = (2, 8, 3), (2, 8)
    gpu_without_values(
        lambda: nms_3d(
            fake(*position, dtype=torch.float64), fake(*score, dtype=torch.float64), separation=(0.1, 0.1, 0.5), k=4
        )
    )


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize(("wavefront", "method"), CASES)
def test_detection_does_not_wait_from_the_covariance_to_its_fixed_outputs(
    gpu_without_values, wavefront, method, factored
):
    def call():
        matrix = fake(3, 12, 3 if factored else 12)
        options = DetectionOptions(candidates=6, refine_points=(9, 9, 9))
        how = {"wavefront": wavefront, "method": method, "options": options}
        found = detect_fixed(matrix, SURFACE, GRID, factored=factored, **how)
        assert found.position.shape == (3, 6, 3)
        assert found.keep.dtype == torch.bool
        assert found.number.shape == (3,)

    served = gpu_without_values(call)
    form = ["risfast::capon_lowrank"] if factored else ["risfast::loaded_inverse", "risfast::capon"]
    rest = ["risfast::local_maxima_3d", "risfast::walk", "risfast::refine", "risfast::nms_3d"]
    assert served == form + rest


def test_the_harness_sees_a_wait(gpu_without_values):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        gpu_without_values(lambda: bool(fake(3).real.sum() > 0))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        gpu_without_values(fake(3).real.nonzero)
    with pytest.raises(WaitedError, match="copies"):
        gpu_without_values(lambda: fake(3) + torch.ones(3).to("meta"))


PLAIN = {
    "risfast::capon": register.capon_torch,
    "risfast::capon_lowrank": register.capon_lowrank_torch,
    "risfast::loaded_inverse": register.loaded_inverse_torch,
    "risfast::eigenbasis": register.eigenbasis_torch,
    "risfast::analysis": register.analysis_torch,
    "risfast::synthesis": register.synthesis_torch,
    "risfast::walk": register.walk_torch,
}


class PlainTorch(TorchDispatchMode):
    """Runs the plain torch implementation of every operator as it is run on a GPU without the kernels."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if not name.startswith("risfast::"):
            crossing = [t for t in tensors_in(args) if not on_device(t) and t.ndim]
            mixed = crossing and any(map(on_device, tensors_in(args)))
            assert not mixed, f"{name} mixes host and device"
            return func(*args, **(kwargs or {}))
        with self, torch.device("meta"):
            return PLAIN[name](*args, **(kwargs or {}))


@pytest.mark.parametrize(("wavefront", "method"), CASES)
def test_without_the_kernels_plain_torch_stays_on_the_device(monkeypatch, wavefront, method):
    monkeypatch.setattr(spectra, "_refuse_indefinite", lambda *args: None)
    # What is asked of positions and axes when tables are made has an answer on the host only.
    monkeypatch.setattr(lag, "find_lattice", lambda positions: SURFACE.lattice)
    monkeypatch.setattr(lag, "antisymmetric", lambda axis: False)
    options = {"wavefront": wavefront, "method": method}
    clear_plans()
    try:
        with PlainTorch(), torch.no_grad():
            for operator, columns in ((mvdr_spectrum, 12), (mvdr_spectrum_lowrank, 3), (bartlett_spectrum, 12)):
                found = operator(fake(2, 12, columns), SURFACE, LOPSIDED, **options)
                assert (found.power.device.type, found.power.shape) == ("meta", (2, 21, 8))
            assert (
                music_spectrum(fake(2, 12, 12), SURFACE, LOPSIDED, n_sources=2, **options).plane.device.type == "meta"
            )
            assert analysis(fake(2, 12, 3), SURFACE, LOPSIDED, **options).device.type == "meta"
            p = fake(2, *LOPSIDED.shape, dtype=torch.float32)
            assert synthesis(p, SURFACE, LOPSIDED, **options).device.type == "meta"
            matrix = fake(2, 12, 12).requires_grad_()
            with torch.enable_grad():
                mvdr_spectrum(matrix, SURFACE, LOPSIDED, **options).power.sum().backward()
            assert matrix.grad.device.type == "meta"
    finally:
        clear_plans()
