"""Every shipped configuration of the kernels of maxima, suppression and refinement, compiled for three GPUs.

As in test_kernels_compile.py, whose helpers this uses, each target is compiled in a process of its own.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile

from test_kernels_compile import LAG_POINTERS, MOST_SHARED, ROOT, TARGETS, load, resources


def maxima_cases():
    """(name, module, kernel, type of the pointers, other types, constants, options or the name that chooses them)."""
    integers = dict.fromkeys(("place_ptr", "found_ptr", "bad_ptr"), "*i32")
    for dtype, pointer in LAG_POINTERS.items():
        for reach in ((3, 3, 1), (10, 10, 10)):
            constants = dict(zip(("REACH_AZ", "REACH_EL", "REACH_R"), reach, strict=True))
            window = tuple(2 * half + 1 for half in reach)
            types = integers | {"floor_bits": "i64"}
            chosen = ("candidates_configuration",)
            yield f"maxima {window} {dtype}", "peaks", "maxima_candidates_kernel", pointer, types, constants, chosen
        types = integers | {"index_ptr": "*i64", "count_ptr": "*i64"}
        yield f"ranks {dtype}", "peaks", "maxima_rank_kernel", pointer, types, {}, ("rank_configuration",)


def suppression_cases():
    types = {"left_ptr": "*i8", "index_ptr": "*i64", "count_ptr": "*i64", "bad_ptr": "*i32"}
    types |= dict.fromkeys(("azimuth_bits", "elevation_bits", "range_bits"), "i64")
    for dtype, pointer in LAG_POINTERS.items():
        for count, wrap in ((20, False), (20, True), (128, True), (1024, True), (2048, True), (2049, True)):
            name = f"suppression {count} {dtype}" + " wrapped" * wrap
            chosen = ("nms_configuration", count)
            yield name, "nms", "nms_kernel", pointer, types, {"WRAP": wrap, "enable_fp_fusion": False}, chosen


def refinement_cases():
    doubles = ["point_ptr", "position_ptr", "matrix_ptr", "step_ptr", "low_ptr", "high_ptr"]
    doubles += ["stencil_ptr", "fit_ptr", "moved_ptr"]
    for dtype, pointer in LAG_POINTERS.items():
        types = dict.fromkeys(doubles, "*fp64") | {"wavelength_bits": "i64"}
        for wavefront in ("spherical", "fresnel", "planar"):
            for factored in (False, True):
                constants = {"WAVEFRONT": wavefront, "FACTORED": factored, "DTYPE": dtype, "PRECISION": dtype}
                name = f"form {wavefront} {'factored' if factored else 'full'} {dtype}"
                yield name, "forms", "form_kernel", pointer, types, constants, ("form_configuration", dtype)
        types |= {"value_ptr": "*fp64", "scale": "fp32"}
        for kernel in ("newton", "choose"):
            yield f"{kernel} {dtype}", "descent", f"{kernel}_kernel", pointer, types, {}, ("step_configuration",)
    types = {"scale": "fp32"}
    yield "stencil", "descent", "stencil_kernel", "*fp64", types, {}, ("stencil_configuration",)
    for nodes in ((7, 7), (17, 32), (41, 41)):
        chosen = ("grid_minimum_configuration", *nodes)
        constants = {"PRECISION": "float32"}
        name = f"fine grid from {nodes[0]} x {nodes[1]}"
        yield name, "refine", "grid_minimum_kernel", "*fp32", {"key_ptr": "*i64"}, constants, chosen


def cases():
    yield from maxima_cases()
    yield from suppression_cases()
    yield from refinement_cases()


# --- The script: compile for one target, print what came out ----------------------------------------------------------


def compiled(module, kernel, pointer, types, constants, chosen, target):
    import torch
    import triton
    import triton.language as tl

    choose, *arguments = chosen
    arguments = [getattr(torch, x) if x in LAG_POINTERS else x for x in arguments]
    chosen = constants | getattr(module, choose)(*arguments)
    if "DTYPE" in chosen:
        chosen["DTYPE"] = getattr(tl, chosen["DTYPE"])
    if "PRECISION" in chosen:
        chosen["PRECISION"] = "ieee" if target == "gfx942" or chosen["PRECISION"] == "float64" else "tf32x3"
    options = {name: chosen.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in chosen}
    function = getattr(module, kernel)
    signature, aligned = {}, {}
    for place, name in enumerate(function.arg_names):
        if name in chosen:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = types.get(name, pointer)
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = types.get(name, "i32")
    source = triton.compiler.ASTSource(function, signature, chosen, aligned)
    return triton.compile(source, target=triton.backends.compiler.GPUTarget(*TARGETS[target]), options=options)


def has_fused_operations(binary, target):
    """Whether a product and a sum were fused, except in the divisions of gfx942, which are made of such."""
    return "fma.rn" in binary.asm["ptx"] if target != "gfx942" else None


def main(target):
    results = {}
    for name, module, kernel, *rest in cases():
        binary = compiled(load(module), kernel, *rest, target)
        results[name] = resources(binary, target) | {"fused": has_fused_operations(binary, target)}
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

    @pytest.mark.parametrize("target", [target for target in TARGETS if target != "gfx942"])
    @pytest.mark.parametrize("case", [case[0] for case in suppression_cases()])
    def test_suppression_rounds_every_product_as_the_cpu_does(target, case):
        assert not report(target)[case]["fused"]

else:
    main(sys.argv[1])
