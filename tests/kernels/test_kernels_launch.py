"""What every launcher refuses: CPU tensors without the interpreter, several devices, a GPU that is too old.

See test_kernels_interpreter.py for how these tests run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from test_kernels_interpreter import DEVICE, domain, epilogue, kernel_module, on, triton

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from bench.gpu_cases import CASES  # noqa: E402

launch = kernel_module("launch")
MODULES = {name: kernel_module(name) for name in {case.module for case in CASES} | {"lag_tables", "weights"}}


def calls():
    """Every launcher by its name: the operands that it is called with, and the call itself."""
    of = SimpleNamespace(**MODULES)
    scene = domain(oracles.rectangular(3, 2), [0.1, 0.2], [0.3], [0.6, 1.7, 8.0], "fresnel")
    tables = of.lag_tables.LagTables.build(scene, torch.float32, DEVICE)
    points = of.dense.DensePoints.build(scene, DEVICE)
    geometry = of.forms.FormGeometry.build(torch.as_tensor(oracles.rectangular(3, 2)), 20.9, "fresnel", DEVICE)
    plan = of.refine.RefinePlan.build(
        torch.as_tensor(oracles.rectangular(3, 2)), 20.9, "fresnel", (3, 3, 3), (0.1, 0.1, 0.1), DEVICE
    )
    one = epilogue("linear", 1)
    Q, F = on(np.eye(6)[None]), on(np.ones((1, 6, 2)))
    delta = torch.ones(1, dtype=torch.float64).to(DEVICE)
    p = on(np.zeros((1, 2, 1, 3)), torch.float32)
    eye = [torch.eye(2, device=DEVICE), torch.eye(1, device=DEVICE)]
    nodes = on(np.ones((1, 3, 2, 1)), torch.float32)
    boxes = on(np.ones((1, 2, 3)), torch.float64)
    corner = on(np.ones(3), torch.float64)
    given = of.weights.PointWeights
    rows = on(np.zeros((2, 1, 1, 3, 3)), torch.float32)
    coefficients = on(np.zeros((1, 3, 3, 3)))
    best = launch.best_and_plane((1, 1, 2), torch.float32, Q.device)
    steps = {"iterations": 1, "shrink": 1.0}
    return {
        "lag.lag_coefficients": (Q, lambda q: of.lag.lag_coefficients(q, tables)),
        "lag.lag_rows": (coefficients, lambda c: of.lag.lag_rows(c, tables)),
        "lag.lag_power": (Q, lambda q: of.lag.lag_power(q, tables, one)),
        "lag_evaluate.lag_evaluate": (rows, lambda r: of.lag_evaluate.lag_evaluate(r, tables, one, (*best, None))),
        "dense.dense_power": (F, lambda f: of.dense.dense_power(f, points, one)),
        "interpolate.interpolated_power": (nodes, lambda q: of.interpolate.interpolated_power(q, *eye, one)),
        "inverse.inverse_factor": (Q, lambda q: of.inverse.inverse_factor(q, delta)),
        "inverse.hermitian_inverse": (Q, lambda q: of.inverse.hermitian_inverse(q, delta)),
        "inverse.inverse_from_factor": (Q, of.inverse.inverse_from_factor),
        "lowrank.residual_factors": (F, lambda f: of.lowrank.residual_factors(f, delta)),
        "lowrank.residual_power": (F, lambda f: of.lowrank.residual_power(f, on(np.ones((1, 6, 2))), points, one)),
        "synthesis.dense_synthesis": (p, lambda w: of.synthesis.dense_synthesis(given(w), points)),
        "interpolate_adjoint.interpolate_adjoint": (
            p,
            lambda w: of.interpolate_adjoint.interpolate_adjoint(given(w), *eye, 3),
        ),
        "lag_adjoint.lag_synthesis": (p, lambda w: of.lag_adjoint.lag_synthesis(given(w), tables)),
        "peaks.local_maxima": (p, lambda v: of.peaks.local_maxima(v, (3, 3, 3), 2)),
        "nms.nms": (boxes, lambda x: of.nms.nms(x, torch.ones(1, 2).to(DEVICE), (1.0, 1.0, 1.0), 2)),
        "forms.forms": (boxes, lambda x: of.forms.forms(x, Q, False, geometry, torch.float32)),
        "descent.descend": (
            boxes,
            lambda x: of.descent.descend(x, boxes, boxes, boxes, Q, False, geometry, torch.float32, **steps),
        ),
        "refine.refine": (Q, lambda q: of.refine.refine(q, False, boxes, boxes, plan)),
        "refine.walk": (Q, lambda q: of.refine.walk(q, False, boxes, corner, corner, [0.1] * 3, geometry)),
    }


ALONE = {"peaks.local_maxima", "inverse.inverse_from_factor"}  # one operand cannot be on several devices


def test_every_module_with_a_kernel_has_a_launcher_here():
    assert {name.split(".")[0] for name in calls()} == {case.module for case in CASES}


@pytest.mark.skipif(DEVICE != "cpu", reason="needs CPU tensors that the interpreter would take")
@pytest.mark.parametrize("name", calls())
def test_cpu_tensors_are_refused_where_the_kernel_is_compiled(name, monkeypatch):
    operand, call = calls()[name]
    monkeypatch.setattr(triton.runtime.jit, "JITFunction", object)  # what an interpreted kernel is not
    with pytest.raises(RuntimeError, match=r"given CPU tensors; move them to a GPU, use risfast\.ops"):
        call(operand)


@pytest.mark.parametrize("name", sorted(set(calls()) - ALONE))
def test_operands_on_several_devices_are_refused(name):
    operand, call = calls()[name]
    with pytest.raises(ValueError, match="all tensors must be on one device, got"):
        call(operand.to("meta"))


def on_a_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    return launch.check_operands(None, operand=SimpleNamespace(device=torch.device("cuda", 1)))


@pytest.mark.parametrize("capability", [(5, 2), (7, 0), (7, 5)])
def test_a_gpu_older_than_every_compiled_configuration_is_refused_and_the_way_out_named(monkeypatch, capability):
    version = f"{capability[0]}.{capability[1]}"
    with pytest.raises(RuntimeError, match=rf"Old GPU has compute capability {version}; .* 8\.0 .*RISFAST_TRITON=0"):
        on_a_gpu(monkeypatch, capability)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_newer_gpus_are_served(monkeypatch, capability):
    assert on_a_gpu(monkeypatch, capability) == torch.device("cuda", 1)


FRESH = """
import sys, torch, risfast, risfast.ops
print([name for name in sys.modules if name.startswith("triton")])
from bench.gpu_compiled import kernel_module
interpolate, launch = kernel_module("interpolate"), kernel_module("launch")
one = torch.ones(1, 1, 1, 1)
interpolate.interpolated_power(one, one[0, 0], one[0, 0], launch.Epilogue("linear", torch.ones(1)))
"""


@pytest.fixture(scope="module")
def fresh_process():
    """Output of a process that imports risfast, then a kernel, and calls it, without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, env=environment, check=False)


def test_importing_risfast_leaves_triton_alone(fresh_process):
    assert fresh_process.stdout.strip() == "[]", fresh_process.stderr


def test_cpu_tensors_without_the_interpreter_are_refused(fresh_process):
    assert fresh_process.returncode == 1
    assert "RuntimeError: a Triton kernel was given CPU tensors" in fresh_process.stderr
