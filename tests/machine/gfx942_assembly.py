"""Short assembly texts executed on the gfx942 machine: what the tests of opcodes and checks are written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.machine.capture import Launch
from tests.machine.compiling import Binary
from tests.machine.gfx942.machine import Machine
from tests.machine.outcome import FORWARD, Order, Outcome

# The address of every operand goes to a pair of scalars from s4 on; v0 is the number of the lane in its program, v1
# four times and v2 eight times that.
PROLOGUE = "v_lshlrev_b32_e32 v1, 2, v0\nv_lshlrev_b32_e32 v2, 3, v0\n"
LANES = 64


def binary_of(body: str, operands: int, *, waves: int = 1, shared: int = 0) -> Binary:
    """A kernel of this body, which takes ``operands`` addresses."""
    loads = "".join(f"s_load_dwordx2 s[{4 + 2 * k}:{5 + 2 * k}], s[0:1], {8 * k}\n" for k in range(operands))
    descriptor = f".amdhsa_kernarg_size {8 * operands}\n.amdhsa_user_sgpr_count 2\n"
    descriptor += ".amdhsa_system_sgpr_workgroup_id_x 1\n"
    text = f"kernel:\n{loads}s_waitcnt lgkmcnt(0)\n{PROLOGUE}{body}\ns_endpgm\n.Lfunc_end0:\n{descriptor}"
    signature = {f"operand_{k}": "*fp32" for k in range(operands)}
    return Binary("gfx942", text, "kernel", text, b"", signature, waves, shared)


def execute(
    folder: Path,
    body: str,
    *operands: torch.Tensor,
    waves: int = 1,
    shared: int = 0,
    programs: int = 1,
    order: Order = FORWARD,
) -> Outcome:
    """Run a body on operands; their addresses are in s[4:5], s[6:7] and so on, the program's number in s2."""
    arguments: dict[str, Any] = {f"operand_{k}": operand for k, operand in enumerate(operands)}
    launch = Launch("tests", "kernel", "", arguments, {}, (programs, 1, 1))
    binary = binary_of(body, len(operands), waves=waves, shared=shared)
    return Machine(folder).run(binary, launch, order)
