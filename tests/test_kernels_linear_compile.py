"""Every shipped configuration of the linear-algebra kernels compiled for three GPUs; see test_kernels_compile.py."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# pytest's importlib mode, and a script elsewhere than its folder, find the sibling only by its folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_kernels_compile import LAG_POINTERS, MOST_SHARED, ROOT, TARGETS, load, resources

INTEGERS = {"info_ptr": "*i32", "plane_ptr": "*i32", "order_ptr": "*i32"}


def inverse_cases():
    """(name, module, kernel, type of the pointers, constants, configuration) of the inverse kernels."""
    for dtype, pointer in LAG_POINTERS.items():
        constants = {"ACC": pointer[1:], "PRECISION": "ieee"}
        for clear in (True, False):
            name = f"{'factor' if clear else 'factor of an inverse'} {dtype}"
            launch = ("inverse_configuration", dtype)
            yield name, "inverse", "inverse_factor_kernel", pointer, constants | {"CLEAR": clear}, launch
        yield f"product {dtype}", "inverse", "gram_kernel", pointer, constants, ("product_configuration",)


def synthesis_cases():
    """Dense synthesis, the sum of its parts and the structured adjoints, of weights and of gradients."""
    given = {"FORM": "given", "WINNER": False}
    through = {"FORM": "reciprocal", "WINNER": True}
    volume = {"FORM": "complement", "WINNER": False}
    precision = {"PRECISION": "by target"}
    launch = ("synthesis_configuration",)
    for wavefront, kind, source in (
        ("spherical", "weights", given),
        ("spherical", "gradient of a map", through),
        ("fresnel", "gradient of a volume", volume),
        ("planar", "weights", given),
    ):
        constants = source | precision | {"WAVEFRONT": wavefront}
        yield f"synthesis, {wavefront}, {kind}", "synthesis", "synthesis_kernel", "*fp32", constants, launch
    yield "sum of parts", "synthesis", "sum_parts_kernel", "*fp32", {}, ("sum_configuration",)
    for kind, source in (("weights", given), ("gradient of a map", through), ("gradient of a volume", volume)):
        launch = ("interpolate_adjoint_configuration",)
        name = f"adjoint interpolation, {kind}"
        yield name, "interpolate_adjoint", "interpolate_adjoint_kernel", "*fp32", source | precision, launch
        for dtype, pointer in LAG_POINTERS.items():
            constants = source | {"ACC": pointer[1:], "MIRROR_AZ": True}
            launch = ("weight_rows_configuration",)
            yield f"weight rows {dtype}, {kind}", "lag_adjoint", "weight_rows_kernel", pointer, constants, launch
    for dtype, pointer in LAG_POINTERS.items():
        constants = {"ACC": pointer[1:]}
        yield f"lags {dtype}", "lag_adjoint", "lags_kernel", pointer, constants, ("lags_configuration",)
        yield f"toeplitz {dtype}", "lag_adjoint", "toeplitz_kernel", pointer, constants, ("toeplitz_configuration",)


def lowrank_cases():
    """The residual kernel: few columns and many, every wavefront and epilogue, map and volume."""
    for columns, wavefront, form, volume in (
        (10, "spherical", "reciprocal", False),
        (16, "fresnel", "complement", False),
        (16, "planar", "linear", True),
        (10, "spherical", "reciprocal", True),
        (32, "spherical", "reciprocal", False),
        (32, "fresnel", "linear", True),
    ):
        constants = {"WAVEFRONT": wavefront, "EPILOGUE": form, "VOLUME": volume}
        constants["PRECISION"] = "ieee" if columns > 16 else "by target"  # as residual_precision says
        name = f"residual {columns} columns, {wavefront} {form} {'volume' if volume else 'map'}"
        yield name, "lowrank", "residual_kernel", "*fp32", constants, ("residual_configuration", columns)


def cases():
    yield from inverse_cases()
    yield from lowrank_cases()
    yield from synthesis_cases()


# --- The script: compile for one target, print what came out ----------------------------------------------------------


def compiled(module, kernel, pointer, constants, launch, target):
    import torch
    import triton
    import triton.language as tl

    choose, *arguments = (getattr(torch, x) if x in LAG_POINTERS else x for x in launch)
    constants = constants | getattr(module, choose)(*arguments)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    if "ACC" in constants:
        constants["ACC"] = tl.float64 if constants["ACC"] == "fp64" else tl.float32
    if constants.get("PRECISION") == "by target":
        constants["PRECISION"] = "ieee" if target == "gfx942" else "tf32x3"
    function = getattr(module, kernel)
    signature, aligned = {}, {}
    for place, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = INTEGERS.get(name, pointer)
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = triton.compiler.ASTSource(function, signature, constants, aligned)
    return triton.compile(source, target=triton.backends.compiler.GPUTarget(*TARGETS[target]), options=options)


def main(target):
    results = {}
    for name, module, kernel, *rest in cases():
        results[name] = resources(compiled(load(module), kernel, *rest, target), target)
    json.dump(results, sys.stdout)


# --- The tests --------------------------------------------------------------------------------------------------------

if __name__ != "__main__":
    import pytest

    pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")

    @functools.lru_cache
    def report(target):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryDirectory() as cache:  # an old cache could hide a kernel that no longer compiles
            environment["TRITON_CACHE_DIR"] = cache
            done = subprocess.run(
                [sys.executable, __file__, target], capture_output=True, text=True, env=environment, check=False
            )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("case", [case[0] for case in cases()])
    def test_compiles_without_spills_or_stack(target, case):
        used = report(target)[case]
        assert used["stack"] == 0, f"{case} on {target}: {used}"
        assert 0 < used["registers"] <= (512 if target == "gfx942" else 255), f"{case} on {target}: {used}"
        assert used["shared"] <= MOST_SHARED[target], f"{case} on {target}: {used}"

else:
    main(sys.argv[1])
