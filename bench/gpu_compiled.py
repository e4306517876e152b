"""What the compilers make of every shipped kernel, without a GPU: ``python -m bench.gpu_compiled``.

Every case of :mod:`bench.gpu_cases` is compiled for sm_80, sm_90 and gfx942, each target in a process of its own
without Triton's interpreter, and its registers, stack, shared memory and instructions are read from what came out.
Prints the tables of ``kernels/README.md``; ``--write`` puts them there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # run by its path, a script has only its own folder

from bench.gpu_cases import CASES, Case  # noqa: E402
from bench.gpu_floors import floor_table  # noqa: E402
from bench.gpu_launch import TARGETS, Operand, compile_for, compile_launch  # noqa: E402

README = ROOT / "kernels/README.md"
# Sizes of one change what Triton's front end sees, not the GPU: each of the two compilers behind it does once.
ONES_TARGETS = ("sm_90", "gfx942")
# Shared memory that one block can have: 163 KB on sm_80, 227 KB on sm_90, 64 KB on gfx942.
MOST_SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
_POINTED = {"*fp32": "float32", "*fp64": "float64", "*i8": "int8", "*i32": "int32", "*i64": "int64"}
_NUMBERS: dict[str, float] = {"i32": 7, "i64": (1 << 40) + 1, "fp32": 0.5}  # sizes that 16 does not divide
_PATTERNS = {
    "cuda": {
        "matrix": r"\b(?:wgmma\.)?mma(?:_async)?\.sync",
        "fused": r"\bfma\.rn\.f32",
        "double": r"\bfma\.rn\.f64",
    },
    "hip": {"matrix": r"\bv_mfma_", "fused": r"\bv_(?:pk_)?(?:fma|fmac)_f32", "double": r"\bv_(?:fma|fmac)_f64"},
}


def kernel_module(name: str) -> Any:
    """risfast.kernels.<name>, from the folder kernels/ where the package is not installed."""
    if importlib.util.find_spec("risfast.kernels") is None:
        folder = ROOT / "kernels"
        spec = importlib.util.spec_from_file_location(
            "risfast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["risfast.kernels"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"risfast.kernels.{name}")


def _tile(case: Case) -> dict[str, int]:
    import torch

    choose, *arguments = (getattr(torch, x) if x in ("float32", "float64") else x for x in case.chosen)
    return dict(getattr(kernel_module(case.module), choose)(*arguments))


def compiled(case: Case, target: str, ones: bool = False) -> Any:
    """Compile a case as its launch on small operands would be; with ``ones`` every size is 1, which is a constant."""
    import triton.language as tl

    module = kernel_module(case.module)
    chosen = case.constants | _tile(case)
    options = {name: chosen.pop(name) for name in _OPTIONS if name in chosen}
    meanings = {"float32": tl.float32, "float64": tl.float64, "products": "ieee" if target == "gfx942" else "tf32x3"}
    constants = {}
    for name, value in chosen.items():
        is_name = isinstance(value, str)
        constants[name] = getattr(module, value) if is_name and value[0] == "_" else meanings.get(value, value)
    function = getattr(module, case.kernel)
    arguments: dict[str, Any] = {}
    for name in function.arg_names:
        kind = case.types.get(name, case.pointer if name.endswith("_ptr") else "i32")
        if name in constants:
            arguments[name] = constants[name]
        elif kind in _POINTED:
            arguments[name] = Operand(_POINTED[kind], address=0, storage_bytes=1 << 20)
        else:
            arguments[name] = 1 if ones and kind == "i32" else _NUMBERS[kind]
    compile_for(target)
    return compile_launch(function, arguments, options)


def _resources(binary: Any, target: str) -> dict[str, int]:
    """Registers, bytes of stack and spills, bytes of shared memory, and how many instructions of each kind."""
    import triton

    backend = TARGETS[target][0]
    text = binary.asm["ptx" if backend == "cuda" else "amdgcn"]
    found = {name: len(re.findall(pattern, text)) for name, pattern in _PATTERNS[backend].items()}
    found["shared"] = binary.metadata.shared
    if backend == "hip":
        used = {k: int(_first(rf"\.{k}:\s*(\d+)", text)) for k in ("vgpr_count", "vgpr_spill_count")}
        stack = int(_first(r"\.private_segment_fixed_size:\s*(\d+)", text))
        return found | {"registers": used["vgpr_count"], "stack": stack + used["vgpr_spill_count"]}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = {k: int(_first(rf"{k}:(\d+)", done.stdout)) for k in ("REG", "STACK", "LOCAL")}
    return found | {"registers": used["REG"], "stack": used["STACK"] + used["LOCAL"]}


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"the compiler's output holds no {pattern}"
    return found[1]


def _compile_all(target: str, ones: bool) -> dict[str, dict[str, int]]:
    """Resources of every case, or with ``ones`` of the first case of every kernel."""
    results: dict[str, dict[str, int]] = {}
    seen: set[str] = set()
    for case in CASES:
        if ones and case.kernel in seen:
            continue
        seen.add(case.kernel)
        results[case.name] = _resources(compiled(case, target, ones), target)
    return results


def _compiled_apart(target: str, *options: str) -> dict[str, dict[str, int]]:
    """Resources of every case on a target, compiled in a fresh process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as cache:  # an old cache could hide a kernel that no longer compiles
        environment["TRITON_CACHE_DIR"] = cache
        command = [sys.executable, __file__, "--target", target, *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"compiling for {target} failed:\n{done.stderr[-4000:]}")
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


@lru_cache(maxsize=1)
def _processes() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


@lru_cache(maxsize=8)
def started(target: str, *options: str) -> Future[dict[str, dict[str, int]]]:
    """The report in the making, beside others: one process a processor."""
    return _processes().submit(_compiled_apart, target, *options)


def report(target: str, *options: str) -> dict[str, dict[str, int]]:
    """Resources of every case on a target, compiled once."""
    return started(target, *options).result()


def _tile_text(case: Case) -> str:
    tile = _tile(case)
    warps = tile.pop("num_warps")
    stages = tile.pop("num_stages", None)
    sizes = [f"{name.removeprefix('BLOCK_').removeprefix('BLOCK') or 'block'} {size}" for name, size in tile.items()]
    text = ", ".join(sizes) + f"; {warps} warp{'s' * (warps > 1)}"
    return text if stages is None else f"{text}, {stages} stage{'s' * (stages > 1)}"


def _cell(used: dict[str, int]) -> str:
    figures = f"{used['registers']} / {used['stack']} / {round(used['shared'] / 1024, 2):.3g}"
    return f"{figures}; {used['matrix']} / {used['fused']} / {used['double']}"


def compiled_table() -> list[str]:
    """The table of ``kernels/README.md``: a line for every case."""
    for target in TARGETS:
        started(target)
    lines = [f"| case | tile | {' | '.join(TARGETS)} |", "| --- | --- |" + " --- |" * len(TARGETS)]
    for case in CASES:
        cells = " | ".join(_cell(report(target)[case.name]) for target in TARGETS)
        lines.append(f"| {case.name} | {_tile_text(case)} | {cells} |")
    return lines


def section(text: str, name: str) -> list[str]:
    """The lines between the two marks of a part of the README that is generated."""
    _, found, rest = text.partition(f"<!-- {name} -->\n")
    body, ended, _ = rest.partition(f"<!-- end of {name} -->\n")
    assert found, f"kernels/README.md has no mark {name}"
    assert ended, f"kernels/README.md has no mark end of {name}"
    return body.strip("\n").splitlines()


def replaced(text: str, name: str, lines: list[str]) -> str:
    """The text with other lines between the two marks of a part."""
    before, mark, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    body = "\n".join(lines)
    return f"{before}{mark}\n{body}\n\n{end}{after}"


def generated() -> dict[str, list[str]]:
    """What ``--write`` puts into the README, by the name of the mark."""
    import triton

    return {"compiled": [f"Triton {triton.__version__}.", "", *compiled_table()], "floors": floor_table()}


def main(given: list[str] | None = None) -> int:
    """Print the tables, write them, or compile for one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into kernels/README.md")
    parser.add_argument("--target", choices=list(TARGETS), help="compile for one target in this process; prints JSON")
    parser.add_argument("--ones", action="store_true", help="with --target: one case a kernel, every size 1")
    arguments = parser.parse_args(given)
    if arguments.target:
        json.dump(_compile_all(arguments.target, arguments.ones), sys.stdout)
        return 0
    parts = generated()
    print("\n\n".join("\n".join(lines) for lines in parts.values()))
    if arguments.write:
        text = README.read_text(encoding="utf-8")
        for name, lines in parts.items():
            text = replaced(text, name, lines)
        README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
