"""The compiler: a process without Triton's interpreter that compiles launches as a GPU's process would.

``Compiler`` is its front: it starts ``python -m tests.machine.compiling TARGET`` and exchanges pickles with it. Both
ends are of this file, one starts the other, so that nothing foreign is unpickled.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from bench.gpu_compiled import kernel_module
from bench.gpu_launch import Operand, TypeName, compile_for, compile_launch

if TYPE_CHECKING:
    from tests.machine.capture import Launch

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {"gfx942": "amdgcn", "sm_80": "ptx", "sm_90": "ptx"}
CODES = {"gfx942": "hsaco", "sm_80": "cubin", "sm_90": "cubin"}


class KernelCompilationError(Exception):
    """Triton refused a launch; the message is the compiler's."""


@dataclass(frozen=True, eq=False)
class Binary:
    """A compiled kernel.

    Attributes
    ----------
    text : str
        Assembly of gfx942, PTX of sm_80 and sm_90.
    code : bytes
        The code object (hsaco, cubin).
    signature : dict
        Triton's type of every parameter, such as ``*fp32`` or ``i32``; ``constexpr`` where nothing is passed.
    warps, shared : int
        Waves of a program, and bytes of shared memory.
    """

    target: str
    hash: str
    name: str
    text: str
    code: bytes
    signature: dict[str, str]
    warps: int
    shared: int


@lru_cache(maxsize=4096)
def resources(binary: Binary) -> dict[str, int]:
    """Registers, and bytes or registers that were spilled, by the compiler's own account."""
    if binary.target == "gfx942":
        keys = {"registers": r"\.vgpr_count:", "spills": r"\.vgpr_spill_count:"}
        account = binary.text
    else:
        import triton

        keys = {"registers": "REG:", "spills": "LOCAL:"}
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary.code)
            file.flush()
            command = [tool, "-res-usage", file.name]
            account = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: re.search(rf"{key}\s*(\d+)", account) for name, key in keys.items()}
    return {name: int(match[1]) for name, match in found.items() if match is not None}


@dataclass(frozen=True)
class Edit:
    """A fault to plant: the first (or last) ``old`` in a function of the kernel's module becomes ``new``."""

    function: str
    old: str
    new: str
    last: bool = False


@dataclass(frozen=True)
class Request:
    """What the process is asked for."""

    module: str
    kernel: str
    file: str
    arguments: dict[str, Any]
    options: dict[str, Any]
    edits: tuple[Edit, ...] = ()


class Compiler:
    """Compiles launches for one target, each distinct one once; a context manager that ends its process."""

    def __init__(self, target: str, cache: Path) -> None:
        self.target = target
        self._binaries: dict[str, Binary] = {}
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.machine.compiling", target]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT
        )

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def compile(self, launch: Launch, *faults: Edit) -> Binary:
        """The binary that this launch would run, with faults in its source if any; raises KernelCompilationError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        arguments = {name: _sent(value) for name, value in launch.arguments.items()}
        request = Request(launch.module, launch.kernel, launch.file, arguments, launch.options, faults)
        _write(self._process.stdin, request)
        answer = _read(self._process.stdout)
        if answer is None:
            raise RuntimeError(f"the compiler's process ended with {self._process.wait()}")
        if isinstance(answer, KernelCompilationError):
            raise answer
        if isinstance(answer, Binary):
            self._binaries[answer.hash] = answer
            return answer
        return self._binaries[answer]


def _sent(value: Any) -> Any:
    """An argument as the compiler's process takes it: what it is, without its numbers."""
    import torch

    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return Operand(dtype, value.data_ptr() % 16, value.untyped_storage().nbytes())
    # Triton is not imported to look: its interpreter can be asked for only before.
    if "triton" in sys.modules and isinstance(value, sys.modules["triton"].language.dtype):
        return TypeName(str(value).replace("fp", "float"))
    return value


def _write(stream: Any, value: object) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _read(stream: Any) -> Any:
    head = stream.read(8)
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0])) if len(head) == 8 else None


def _loaded(request: Request) -> Any:
    """The module of a kernel: of the package, or a file of the tests by its path."""
    if request.module.startswith("risfast.kernels."):
        return kernel_module(request.module.rsplit(".", 1)[1])
    if request.module not in sys.modules:
        spec = importlib.util.spec_from_file_location(request.module, request.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[request.module] = module
        spec.loader.exec_module(module)
    return sys.modules[request.module]


@contextmanager
def _planted(module: Any, kernel: Any, edits: tuple[Edit, ...]) -> Iterator[None]:
    """Functions of a module with other sources, as long as this lasts."""
    functions = [getattr(module, edit.function) for edit in edits]
    sources = [function.src for function in functions]
    try:
        for edit, function in zip(edits, functions, strict=True):
            if edit.old not in function.src:
                raise KernelCompilationError(f"{edit.function} has no {edit.old!r}")
            before, _, after = function.src.rpartition(edit.old) if edit.last else function.src.partition(edit.old)
            function._unsafe_update_src(before + edit.new + after)
        if edits:
            _forget(kernel)
        yield
    finally:
        for function, source in zip(functions, sources, strict=True):
            function._unsafe_update_src(source)
        if edits:
            _forget(kernel)


def _forget(kernel: Any) -> None:
    """Compile anew: the hash is of the sources of all that the kernel calls, and the caches do not know sources."""
    kernel.hash = None
    kernel.device_caches.clear()


def _compiled(request: Request, target: str) -> Binary:
    module = _loaded(request)
    kernel = getattr(module, request.kernel)
    with _planted(module, kernel, request.edits):
        made = compile_launch(kernel, request.arguments, request.options)
    return Binary(
        target,
        made.hash,
        made.metadata.name,
        made.asm[TEXTS[target]],
        bytes(made.asm[CODES[target]]),
        dict(made.src.signature),
        made.metadata.num_warps,
        made.metadata.shared,
    )


def _serve(target: str, requests: BinaryIO, answers: BinaryIO) -> None:
    compile_for(target)
    sent: set[str] = set()
    while (request := _read(requests)) is not None:
        try:
            made = _compiled(request, target)
        except KernelCompilationError as error:
            _write(answers, error)
        except Exception as error:  # whatever the compiler raises belongs to the process that asked
            _write(answers, KernelCompilationError(f"{error!r}, cause {error.__cause__!r}"))
        else:
            _write(answers, made.hash if made.hash in sent else made)
            sent.add(made.hash)


if __name__ == "__main__":
    # What the compiler prints goes to the error output: the output belongs to the answers.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Pickles name classes by module, and this one runs as __main__.
    from tests.machine import compiling

    compiling._serve(sys.argv[1], sys.stdin.buffer, output)
