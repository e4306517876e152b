"""Every shipped kernel configuration compiled for three GPUs, without one: no spills, no stack.

Each target is compiled in a process of its own (this file, run as a script), because the interpreter that the other
kernel tests use cannot be left once Triton is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
# Shared memory that one block can have: 163 KB on sm_80, 227 KB on sm_90, 64 KB on gfx942.
MOST_SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
LAG_POINTERS = {"float32": "*fp32", "float64": "*fp64"}


def lag_cases():
    """(name, module, kernel, types of the pointers, constants, warps) of the lag kernels."""
    for dtype, pointer in LAG_POINTERS.items():
        accumulator = {"ACC": pointer[1:]}
        for matrix, entries in LAG_POINTERS.items():
            types = {"q_ptr": entries, "order_ptr": "*i32"}
            constants = {**accumulator, "BLOCK_H": "_BLOCK_H", "BLOCK_I": "_BLOCK_I", "BLOCK_R": "_BLOCK_R"}
            yield f"coefficients {matrix} {dtype}", "lag", "lag_coefficients_kernel", pointer, types, constants, 4
        constants = {**accumulator, "BLOCK_E": "_BLOCK_E", "BLOCK_M": "_BLOCK_M", "BLOCK_K": "_BLOCK_K"}
        yield f"rows {dtype}", "lag", "lag_rows_kernel", pointer, {}, constants, 4
        for n_h in (1, 12, 16, 32) if dtype == "float64" else (1, 12, 16, 32, 64):
            for form, volume in (("reciprocal", False), ("complement", False), ("linear", True)):
                if n_h != 12 and form != "reciprocal":
                    continue
                constants = {"N_H": n_h, "SCENES": "_MOST_SCENES", "MIRROR_AZ": True, "IMAGES": 2}
                constants |= {"EPILOGUE": form, "VOLUME": volume}
                types = {"plane_ptr": "*i32"}
                name = f"evaluate {n_h} {form} {dtype}"
                yield name, "lag", "lag_evaluate_kernel", pointer, types, constants, ("lag_configuration", n_h, dtype)


def dense_cases():
    """The dense kernel: few columns and many, every wavefront, map and volume."""
    for columns, batch, wavefront, form, volume, triangular in (
        (10, 1, "spherical", "complement", False, False),
        (10, 256, "spherical", "complement", False, False),
        (10, 256, "fresnel", "linear", True, False),
        (16, 256, "planar", "reciprocal", False, False),
        (144, 256, "spherical", "reciprocal", False, True),
        (144, 256, "fresnel", "linear", True, False),
    ):
        constants = {"WAVEFRONT": wavefront, "TRIANGULAR": triangular, "EPILOGUE": form, "VOLUME": volume}
        name = f"dense {columns} columns, batch {batch}, {wavefront} {form}"
        constants["PRECISION"] = "by target"
        types = {"plane_ptr": "*i32"}
        launch = ("dense_configuration", columns, batch)
        yield name, "dense", "dense_analysis_kernel", "*fp32", types, constants, launch


def interpolate_cases():
    """The interpolation kernel with every epilogue, map and volume."""
    for form, volume in (("reciprocal", False), ("complement", False), ("linear", True)):
        constants = {"EPILOGUE": form, "VOLUME": volume, "PRECISION": "by target"}
        launch = ("interpolate_configuration",)
        yield (
            f"interpolate {form}",
            "interpolate",
            "interpolate_kernel",
            "*fp32",
            {"plane_ptr": "*i32"},
            constants,
            launch,
        )


def cases():
    yield from lag_cases()
    yield from dense_cases()
    yield from interpolate_cases()


# --- The script: compile for one target, print what came out ----------------------------------------------------------


def load(name):
    if importlib.util.find_spec("risfast.kernels") is None:
        folder = ROOT / "kernels"
        spec = importlib.util.spec_from_file_location(
            "risfast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules["risfast.kernels"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"risfast.kernels.{name}")


def compiled(module, kernel, pointer, types, constants, launch, target, ones=False):
    """Compile a case; with ``ones`` every size is 1, which Triton makes a constant of another type."""
    import torch
    import triton
    import triton.language as tl

    constants = {k: getattr(module, v) if isinstance(v, str) and v[0] == "_" else v for k, v in constants.items()}
    if "ACC" in constants:
        constants["ACC"] = tl.float64 if constants["ACC"] == "fp64" else tl.float32
    if constants.get("PRECISION") == "by target":
        constants["PRECISION"] = "ieee" if target == "gfx942" else "tf32x3"
    warps = launch
    if isinstance(launch, tuple):
        choose, *arguments = (getattr(torch, x) if x in LAG_POINTERS else x for x in launch)
        chosen = dict(getattr(module, choose)(*arguments))
        warps = chosen.pop("num_warps")
        constants |= chosen
    function = getattr(module, kernel)
    signature, aligned = {}, {}
    for place, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = types.get(name, pointer)
            aligned[(place,)] = [["tt.divisibility", 16]]
        elif ones and types.get(name, "i32") == "i32":
            signature[name] = "constexpr"
            constants[name] = 1
        else:
            signature[name] = types.get(name, "i32")
    source = triton.compiler.ASTSource(function, signature, constants, aligned)
    return triton.compile(
        source, target=triton.backends.compiler.GPUTarget(*TARGETS[target]), options={"num_warps": warps}
    )


def instructions(binary, target):
    """How many matrix, fused and double-precision instructions there are: what the arithmetic runs on."""
    patterns = {
        "matrix": r"\b(?:wgmma\.)?mma(?:_async)?\.sync",
        "fused": r"\bfma\.rn\.f32",
        "double": r"\bfma\.rn\.f64",
    }
    if target == "gfx942":
        patterns = {"matrix": r"\bv_mfma_", "fused": r"\bv_(?:pk_)?(?:fma|fmac)_f32", "double": r"\bv_(?:fma|fmac)_f64"}
    text = binary.asm["amdgcn" if target == "gfx942" else "ptx"]
    return {name: len(re.findall(pattern, text)) for name, pattern in patterns.items()}


def resources(binary, target):
    """Registers, bytes of stack and spills, bytes of shared memory, and the instruction mix."""
    import triton

    shared = binary.metadata.shared
    mix = instructions(binary, target)
    if target == "gfx942":
        text = binary.asm["amdgcn"]
        found = {k: int(re.search(rf"\.{k}:\s*(\d+)", text)[1]) for k in ("vgpr_count", "vgpr_spill_count")}
        stack = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)[1])
        return {"registers": found["vgpr_count"], "stack": stack + found["vgpr_spill_count"], "shared": shared, **mix}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = {k: int(re.search(rf"{k}:(\d+)", done.stdout)[1]) for k in ("REG", "STACK", "LOCAL")}
    return {"registers": found["REG"], "stack": found["STACK"] + found["LOCAL"], "shared": shared, **mix}


def main(target, ones=False):
    results, seen = {}, set()
    for name, module, kernel, *rest in cases():
        if ones and kernel in seen:
            continue
        seen.add(kernel)
        results[name] = resources(compiled(load(module), kernel, *rest, target, ones), target)
    json.dump(results, sys.stdout)


# --- The tests --------------------------------------------------------------------------------------------------------

if __name__ != "__main__":
    import pytest

    pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")

    @functools.lru_cache
    def report(target, *options):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryDirectory() as cache:  # an old cache could hide a kernel that no longer compiles
            environment["TRITON_CACHE_DIR"] = cache
            done = subprocess.run(
                [sys.executable, __file__, target, *options],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
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

    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("case", [case[0] for case in cases()])
    def test_products_run_on_matrix_units_and_sums_on_fused_operations(target, case):
        used = report(target)[case]
        kind, precision = case.split()[0], case.split()[-1]
        if kind in ("dense", "interpolate") or case == "rows float64":
            assert used["matrix"] > 0, f"{case} on {target}: {used}"
        elif case == "rows float32":  # ieee products: matrix units of float32 are AMD's alone
            assert used["matrix" if target == "gfx942" else "fused"] > 0, f"{case} on {target}: {used}"
        else:
            assert used["matrix"] == 0, f"{case} on {target}: {used}"
            if "evaluate 1 " not in case:  # one column has no polynomial
                assert used["double" if precision == "float64" else "fused"] > 0, f"{case} on {target}: {used}"
        if precision != "float64":
            assert used["double"] == 0, f"{case} on {target} computes in float64: {used}"

    def test_compiles_where_every_size_is_one():
        assert len(report("sm_90", "ones")) >= 5

else:
    main(sys.argv[1], "ones" in sys.argv)
