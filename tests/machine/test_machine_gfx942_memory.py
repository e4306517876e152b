"""Loads, stores, atomics and LDS of the gfx942 machine; what it does not know."""

from __future__ import annotations

import numpy as np
import pytest

from tests.machine.building import compiler
from tests.machine.gfx942.decode import UnknownOpcodeError, UnknownSyntaxError, decode
from tests.machine.gfx942_assembly import LANES, binary_of, execute, load, operands, span, tensor

if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)


# --- Memory -----------------------------------------------------------------------------------------------------------

WIDTHS = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
NARROW = {"ubyte": np.uint8, "sbyte": np.int8, "ushort": np.uint16, "sshort": np.int16}
# A buffer that starts at s[4:5] and has s12 bytes.
BUFFER = """
    s_mov_b32 s20, s4
    s_and_b32 s21, s5, 0xffff
    s_mov_b32 s23, 0x27000
"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("how", ["scalar base", "vector address", "buffer"])
def test_numbers_pass_through_memory(folder, width, how):
    size = WIDTHS[width]
    data = np.random.default_rng(size).integers(0, 256, LANES * size).astype(np.uint8)
    out = tensor(np.zeros_like(data))
    held = span(10, size // 4)
    body = f"v_mul_u32_u24_e32 v3, {size}, v0\n"
    if how == "buffer":
        body += f"""
            {BUFFER}s_movk_i32 s22, {LANES * size}
            s_mov_b32 s24, 0
            buffer_load_{width} {held}, v3, s[20:23], s24 offen
            s_waitcnt vmcnt(0)
            s_mov_b32 s20, s6
            s_mov_b32 s21, s7
        """
        body += f"buffer_store_{width} {held}, v3, s[20:23], 0 offen\n"
    elif how == "scalar base":
        body += f"""
            v_add_u32_e32 v3, 8, v3
            global_load_{width} {held}, v3, s[4:5] offset:-8
            s_waitcnt vmcnt(0)
            v_subrev_u32_e32 v3, 8, v3
            global_store_{width} v3, {held}, s[6:7]
        """
    else:
        body += f"""
            v_mov_b32_e32 v5, s5
            v_add_co_u32_e32 v4, vcc, s4, v3
            v_addc_co_u32_e32 v5, vcc, 0, v5, vcc
            global_load_{width} {held}, v[4:5], off
            s_waitcnt vmcnt(0)
            v_mov_b32_e32 v5, s7
            v_add_co_u32_e32 v4, vcc, s6, v3
            v_addc_co_u32_e32 v5, vcc, 0, v5, vcc
        """
        body += f"global_store_{width} v[4:5], {held}, off\n"
    outcome = execute(folder, body, tensor(data), out)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(out.numpy(), data)


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("how", ["global", "buffer"])
def test_narrow_numbers_are_extended_and_cut(folder, kind, how):
    dtype = NARROW[kind]
    data = np.random.default_rng(0).integers(0, 256, LANES * dtype().nbytes).astype(np.uint8)
    words, cut = tensor(np.zeros(LANES, np.uint32)), tensor(np.zeros_like(data))
    suffix = "byte" if dtype().nbytes == 1 else "short"
    body = f"v_mul_u32_u24_e32 v3, {dtype().nbytes}, v0\n"
    if how == "global":
        body += f"""
            global_load_{kind} v10, v3, s[4:5]
            s_waitcnt vmcnt(0)
            global_store_{suffix} v3, v10, s[8:9]
        """
    else:
        body += f"""
                {BUFFER}s_movk_i32 s22, {len(data)}
                buffer_load_{kind} v10, v3, s[20:23], 0 offen
                s_waitcnt vmcnt(0)
            """
        body += f"""
            s_mov_b32 s20, s8
            s_mov_b32 s21, s9
            buffer_store_{suffix} v10, v3, s[20:23], 0 offen
        """
    outcome = execute(folder, f"{body}global_store_dword v1, v10, s[6:7]\n", tensor(data), words, cut)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(
        words.numpy().view(np.int32), data.view(dtype).astype(np.int64).astype(np.uint32).view(np.int32)
    )
    np.testing.assert_array_equal(cut.numpy(), data)


def test_beyond_the_end_of_a_buffer_loads_give_zero_and_stores_nothing(folder):
    data, out = np.arange(1, LANES + 1, dtype=np.uint32), tensor(np.full(LANES, 9, np.uint32))
    body = f"""
        {BUFFER}s_movk_i32 s22, 40
        buffer_load_dword v10, v1, s[20:23], 0 offen
        s_waitcnt vmcnt(0)
        v_add_u32_e32 v10, 100, v10
        s_mov_b32 s20, s6
        s_mov_b32 s21, s7
        s_movk_i32 s22, 0x50
    """
    body += "buffer_store_dword v10, v1, s[20:23], 0 offen offset:16\n"
    outcome = execute(folder, body, tensor(data), out)
    assert not outcome.faults, outcome.message
    loaded = np.where(np.arange(LANES) < 10, data, 0) + 100
    expected = np.full(LANES, 9)
    expected[4:20] = loaded[:16]
    np.testing.assert_array_equal(out.numpy().view(np.uint32), expected)


ATOMICS = {
    "add": ("u32", lambda m, x: (m + x) & 0xFFFFFFFF),
    "smax": ("i32", max),
    "umax": ("u32", max),
    "or": ("u32", lambda m, x: m | x),
    "smin_x2": ("i64", min),
}


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("how", ["global", "buffer"])
def test_atomics_combine_lanes_one_after_the_other(folder, name, how):
    kind, function = ATOMICS[name]
    (given,) = operands([kind])
    given = given[:LANES]
    size = given.itemsize
    memory = tensor(np.array([5, 7], given.dtype))
    before = tensor(np.zeros_like(given))
    held, address = span(10, size // 4), 2 if size == 8 else 1
    body = load(10, kind, 4) + f"s_waitcnt vmcnt(0)\nv_and_b32_e32 v3, 1, v0\nv_mul_u32_u24_e32 v3, {size}, v3\n"
    if how == "global":
        body += f"""
            global_atomic_{name} {span(20, size // 4)}, v3, {held}, s[6:7] sc0
            s_waitcnt vmcnt(0)
        """
    else:
        body += f"""
            s_mov_b32 s20, s6
            s_mov_b32 s21, s7
            s_movk_i32 s22, {2 * size}
            s_mov_b32 s23, 0x27000
            buffer_atomic_{name} {held}, v3, s[20:23], 0 offen sc0
            s_waitcnt vmcnt(0)
        """
        body += "".join(f"v_mov_b32_e32 v{20 + k}, v{10 + k}\n" for k in range(size // 4))
    body += f"global_store_dword{'x2' if size == 8 else ''} v{address}, {span(20, size // 4)}, s[8:9]\n"
    outcome = execute(folder, body, tensor(given), memory, before)
    assert not outcome.faults, outcome.message
    values, seen = [5, 7], []
    for lane in range(LANES):
        seen.append(values[lane % 2])
        values[lane % 2] = function(values[lane % 2], int(given[lane]))
    np.testing.assert_array_equal(memory.numpy().view(given.dtype), np.array(values, given.dtype))
    np.testing.assert_array_equal(before.numpy().view(given.dtype), np.array(seen, given.dtype))


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_scalar_loads(folder, count):
    data, out = np.arange(100, 164, dtype=np.uint32), tensor(np.zeros(16, np.uint32))
    body = f"""
        s_movk_i32 s3, 8
        s_load_dword{f"x{count}" if count > 1 else ""} s[40:{39 + count}], s[4:5], 0x10
        s_load_dword s60, s[4:5], s3
        s_waitcnt lgkmcnt(0)
        s_mov_b64 exec, 1
        v_mov_b32_e32 v3, 0
    """
    body += "".join(
        f"v_mov_b32_e32 v4, s{40 + k}\nglobal_store_dword v3, v4, s[6:7] offset:{4 * k}\n" for k in range(count)
    )
    body += "v_mov_b32_e32 v4, s60\nglobal_store_dword v3, v4, s[6:7] offset:60\n" if count < 16 else ""
    execute(folder, body, tensor(data), out)
    np.testing.assert_array_equal(out.numpy().view(np.uint32)[:count], data[4 : 4 + count])
    assert count == 16 or out.numpy().view(np.uint32)[15] == data[2]


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16])
def test_lds_holds_what_is_written(folder, size):
    data = np.random.default_rng(size).integers(0, 256, (LANES, 16)).astype(np.uint8)
    out = tensor(np.zeros((LANES, 16), np.uint8))
    name = {1: "u8", 2: "u16"}.get(size, f"b{8 * size}")
    held, back = span(10, max(1, size // 4)), span(20, max(1, size // 4))
    body = f"""
        v_lshlrev_b32_e32 v3, 4, v0
        global_load_dwordx4 v[10:13], v3, s[4:5]
        v_sub_u32_e32 v4, 0x3f0, v3
        s_waitcnt vmcnt(0)
        ds_write_b{8 * size} v3, {held} offset:32
        s_waitcnt lgkmcnt(0)
        ds_read_{name} {back}, v4 offset:32
        s_waitcnt lgkmcnt(0)
        global_store_dword{f"x{size // 4}" if size > 4 else ""} v3, {back}, s[6:7]
    """
    outcome = execute(folder, body, tensor(data), out, shared=1024 + 32)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(out.numpy().reshape(LANES, 16)[:, :size], data[::-1, :size])


def test_signed_bytes_of_lds(folder):
    data, out = np.arange(LANES, dtype=np.uint32) * 4, tensor(np.zeros(LANES, np.int32))
    body = """
        global_load_dword v10, v1, s[4:5]
        s_waitcnt vmcnt(0)
        ds_write_b8 v0, v10
        s_waitcnt lgkmcnt(0)
        ds_read_i8 v11, v0
        s_waitcnt lgkmcnt(0)
        global_store_dword v1, v11, s[6:7]
    """
    execute(folder, body, tensor(data), out, shared=64)
    np.testing.assert_array_equal(out.numpy().view(np.int32), data.astype(np.uint8).view(np.int8))


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("stride", ["", "st64"])
def test_two_places_of_lds_at_once(folder, words, stride):
    data = np.random.default_rng(0).integers(0, 1 << 32, (LANES, 4), np.uint64).astype(np.uint32)
    out = tensor(np.zeros((LANES, 4), np.uint32))
    unit = 4 * words * (64 if stride else 1)
    # Places apart by more than all lanes take.
    first, second = (0, 1) if stride else (0, 64)
    body = f"""
        v_lshlrev_b32_e32 v3, 4, v0
        global_load_dwordx4 v[10:13], v3, s[4:5]
        v_mul_u32_u24_e32 v4, {4 * words}, v0
    """
    low, high = span(10, words), span(10 + words, words)
    body += f"""
        s_waitcnt vmcnt(0)
        ds_write2{stride}_b{32 * words} v4, {low}, {high} offset0:{first} offset1:{second}
        s_waitcnt lgkmcnt(0)
        ds_read2{stride}_b{32 * words} {span(20, 2 * words)}, v4 offset0:{second} offset1:{first}
        s_waitcnt lgkmcnt(0)
        global_store_dwordx{2 * words} v3, {span(20, 2 * words)}, s[6:7]
    """
    outcome = execute(folder, body, tensor(data), out, shared=second * unit + 64 * 4 * words)
    assert not outcome.faults, outcome.message
    expected = np.concatenate([data[:, words : 2 * words], data[:, :words]], 1)
    np.testing.assert_array_equal(out.numpy().view(np.uint32).reshape(LANES, 4)[:, : 2 * words], expected)


# --- What is not known ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["v_dot2_f32_f16 v0, v1, v2, v3", "scratch_load_dword v0, off, off", "s_sendmsg 1"])
def test_an_unknown_opcode_raises_with_its_name(line):
    binary = binary_of(line, 1)
    with pytest.raises(UnknownOpcodeError, match=line.split()[0]):
        decode(binary.text, binary.name)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("v_add_f32_e64 v0, v1, v2 wobble:3", "wobble"),
        ("v_max_u32_e64 v0, v1, v2 clamp", "clamp"),
        ("v_add_f32_e64 v0, ttmp3, v2", "ttmp3"),
        ("v_mov_b32_sdwa v0, v1 dst_sel:BYTE_0 dst_unused:UNUSED_SEXT src0_sel:DWORD", "UNUSED_SEXT"),
    ],
)
def test_unknown_syntax_raises(line, named):
    binary = binary_of(line, 1)
    with pytest.raises(UnknownSyntaxError, match=named):
        decode(binary.text, binary.name)
