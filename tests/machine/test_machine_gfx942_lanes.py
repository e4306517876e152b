"""Packed and matrix opcodes of the gfx942 machine, and those that move numbers between lanes, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.machine.building import compiler
from tests.machine.gfx942.decode import UnknownSyntaxError, swizzle_pattern
from tests.machine.gfx942_assembly import COUNT, LANES, WAVES, assert_same, execute, operands, run, tensor
from tests.machine.test_machine_gfx942_vector import fused

if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)


# --- Packed operations, matrices --------------------------------------------------------------------------------------


def halves(values):
    return values.view(np.float32).reshape(COUNT, 2)


@pytest.mark.parametrize("name", ["v_pk_add_f32", "v_pk_mul_f32", "v_pk_fma_f32"])
@pytest.mark.parametrize(
    ("modifiers", "low", "high", "signs"),
    [
        ("", (0, 0, 0), (1, 1, 1), ((1, 1, 1), (1, 1, 1))),
        ("op_sel:[1,0,1] op_sel_hi:[0,1,0]", (1, 0, 1), (0, 1, 0), ((1, 1, 1), (1, 1, 1))),
        ("neg_lo:[1,0,1] neg_hi:[0,1,0]", (0, 0, 0), (1, 1, 1), ((-1, 1, -1), (1, -1, 1))),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_packed_floats(folder, name, modifiers, low, high, signs):
    count = 3 if name == "v_pk_fma_f32" else 2
    given = [np.stack(operands(["f32", "f32"], seed), 1).view(np.uint64).ravel() for seed in range(count)]
    places = ", ".join(f"v[{10 + 2 * k}:{11 + 2 * k}]" for k in range(count))
    modifiers = modifiers.replace(",1]", "]").replace(",0]", "]") if count == 2 else modifiers
    (actual,) = run(folder, f"{name} v[20:21], {places} {modifiers}", ["u64"] * count, ["u64"], given)
    function = {"v_pk_add_f32": np.add, "v_pk_mul_f32": np.multiply, "v_pk_fma_f32": fused}[name]
    for half, chosen in enumerate((low, high)):
        sources = [np.float32(signs[half][k]) * halves(given[k])[:, chosen[k]] for k in range(count)]
        assert_same(halves(actual)[:, half].copy(), function(*sources))


@pytest.mark.parametrize(("select", "low", "high"), [("", 0, 0), ("op_sel:[1,0]", 1, 0), ("op_sel:[0,1]", 0, 1)])
def test_packed_move(folder, select, low, high):
    given = operands(["u64", "u64"])
    (actual,) = run(folder, f"v_pk_mov_b32 v[20:21], v[10:11], v[12:13] {select}", ["u64", "u64"], ["u64"], given)
    words = [values.view(np.uint32).reshape(COUNT, 2) for values in given]
    assert_same(actual, np.stack([words[0][:, low], words[1][:, high]], 1).copy().view(np.uint64).ravel())


MATRICES = {
    "v_mfma_f32_32x32x2_f32": (32, 2, 1),
    "v_mfma_f32_16x16x4_f32": (16, 4, 1),
    "v_mfma_f32_16x16x8_xf32": (16, 8, 2),
    "v_mfma_f32_32x32x4_xf32": (32, 4, 2),
    "v_mfma_f64_16x16x4_f64": (16, 4, 1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrix_products_of_integers_are_exact(folder, name):
    size, depth, per_lane = MATRICES[name]
    dtype, words = (np.float64, 2) if "f64" in name[:10] else (np.float32, 1)
    rng = np.random.default_rng(0)
    A, B, C = (rng.integers(-30, 31, shape).astype(dtype) for shape in ((size, depth), (depth, size), (size, size)))
    lane, number = np.arange(LANES), size * size // LANES
    held = lane[:, None] // size * per_lane + np.arange(per_lane)  # of the depth, by each lane
    entry = np.arange(number)
    # The manual's layout of C and D: blocks of four rows by lanes, in float64 every fourth row.
    row = (
        lane[:, None] // size + 4 * entry
        if words == 2
        else entry // 4 * 4 * (LANES // size) + 4 * (lane[:, None] // size) + entry % 4
    )
    column = np.broadcast_to(lane[:, None] % size, row.shape)
    given = [A[lane[:, None] % size, held], B[held, lane[:, None] % size], C[row, column]]
    out = tensor(np.zeros((LANES, number), dtype))
    counts, firsts = [per_lane * words, per_lane * words, number * words], [10, 14, 32]
    body = ""
    for k, (count, first) in enumerate(zip(counts, firsts, strict=True)):
        body += f"v_mul_u32_u24_e32 v3, {4 * count}, v0\n"
        body += "".join(
            f"global_load_dword v{first + j}, v3, s[{4 + 2 * k}:{5 + 2 * k}] offset:{4 * j}\n" for j in range(count)
        )
    spans = [
        f"v[{first}:{first + count - 1}]" if count > 1 else f"v{first}"
        for first, count in zip(firsts, counts, strict=True)
    ]
    body += f"""
            s_waitcnt vmcnt(0)
            s_mov_b64 exec, 1
            {name} a[0:{counts[2] - 1}], {", ".join(spans)}
            s_mov_b64 exec, -1
        """
    body += "".join(
        f"v_accvgpr_read_b32 v5, a{j}\nglobal_store_dword v3, v5, s[10:11] offset:{4 * j}\n" for j in range(counts[2])
    )
    outcome = execute(folder, body, *map(tensor, given), out)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(out.numpy().view(dtype).reshape(LANES, number), (A @ B + C)[row, column])


def test_negated_matrices_of_float64(folder):
    rng = np.random.default_rng(1)
    A, B = rng.integers(-9, 10, (16, 4)).astype(float), rng.integers(-9, 10, (4, 16)).astype(float)
    lane = np.arange(LANES)
    given = [A[lane % 16, lane // 16], B[lane // 16, lane % 16]]
    out = tensor(np.zeros((LANES, 4)))
    body = """
        global_load_dwordx2 v[10:11], v2, s[4:5]
        global_load_dwordx2 v[12:13], v2, s[6:7]
        s_waitcnt vmcnt(0)
        v_mfma_f64_16x16x4_f64 v[20:27], v[10:11], v[12:13], 0 neg:[1,0,0]
        v_lshlrev_b32_e32 v3, 5, v0
        global_store_dwordx4 v3, v[20:23], s[8:9]
        global_store_dwordx4 v3, v[24:27], s[8:9] offset:16
    """
    execute(folder, body, *map(tensor, given), out)
    row = lane[:, None] // 16 + 4 * np.arange(4)
    np.testing.assert_array_equal(out.numpy().view(np.float64).reshape(LANES, 4), -(A @ B)[row, lane[:, None] % 16])


def test_xf32_products_see_ten_bits_of_the_mantissa(folder):
    x = np.full(LANES, 1 + 2.0**-10 + 2.0**-11 + 2.0**-20, np.float32)  # rounds up to 1 + 2^-9
    one = np.ones(LANES, np.float32)
    out = tensor(np.zeros((LANES, 4), np.float32))
    body = """
        global_load_dword v10, v1, s[4:5]
        global_load_dword v12, v1, s[6:7]
        v_mov_b32_e32 v11, 0
        v_mov_b32_e32 v13, 0
        s_waitcnt vmcnt(0)
        v_mfma_f32_16x16x8_xf32 v[20:23], v[10:11], v[12:13], 0
        v_lshlrev_b32_e32 v3, 4, v0
    """
    body += "global_store_dwordx4 v3, v[20:23], s[8:9]\n"
    execute(folder, body, tensor(x), tensor(one), out)
    assert (out.numpy().view(np.float32) == 4 * (1 + 2.0**-9)).all()


# --- Between lanes ----------------------------------------------------------------------------------------------------

LANE = np.arange(LANES)
ROW, PLACE = LANE & ~15, LANE & 15
DPP = {
    "quad_perm:[1,3,0,2]": (LANE & ~3) | np.array([1, 3, 0, 2])[LANE & 3],
    "row_shl:3": np.where(PLACE + 3 < 16, LANE + 3, -1),
    "row_shr:5": np.where(PLACE >= 5, LANE - 5, -1),
    "row_ror:7": ROW | (PLACE - 7) % 16,
    "row_mirror": ROW | 15 - PLACE,
    "row_half_mirror": (LANE & ~7) | 7 - (LANE & 7),
    "row_bcast:15": np.where(LANE >= 16, ROW - 1, -1),
    "row_bcast:31": np.where(LANE >= 32, 31, -1),
    "row_newbcast:6": ROW | 6,
    "wave_shl:1": np.where(LANE < 63, LANE + 1, -1),
    "wave_shr:1": LANE - 1,
    "wave_rol:1": (LANE + 1) % 64,
    "wave_ror:1": (LANE - 1) % 64,
}


def in_waves(lanes):
    """The same lanes in every wave."""
    return np.concatenate([np.where(lanes < 0, -1, lanes + wave * LANES) for wave in range(WAVES)])


@pytest.mark.parametrize("control", DPP)
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("active", [0xFFFFFFFFFFFFFFFF, 0xF0F0FF0F5555AAAA])
def test_dpp_moves_lanes(folder, control, bound, active):
    a, old = operands(["u32", "u32"])
    is_active = np.array([active >> int(lane) & 1 for lane in LANE], bool)
    text = f"""
        v_mov_b32_e32 v20, v12
        s_mov_b32 s30, {active & 0xFFFFFFFF:#x}
        s_mov_b32 s31, {active >> 32:#x}
        s_mov_b64 exec, s[30:31]
        v_mov_b32_dpp v20, v10 {control} row_mask:0xf bank_mask:0xf {"bound_ctrl:1" if bound else ""}
        s_mov_b64 exec, -1
    """
    (actual,) = run(folder, text, ["u32", "u32"], ["u32"], [a, old])
    source = DPP[control]
    has_source = in_waves(np.where((source >= 0) & is_active[source], source, -1))
    moved = np.where(has_source >= 0, a[has_source], 0 if bound else old)
    assert_same(actual, np.where(np.tile(is_active, WAVES), moved, old))


def test_dpp_masks_rows_and_banks_and_sources_alone(folder):
    a, b = operands(["u32", "u32"])
    text = """
        v_mov_b32_e32 v20, v12
        v_add_u32_dpp v20, v10, v12 row_shr:1 row_mask:0x5 bank_mask:0xa bound_ctrl:1
    """
    (actual,) = run(folder, text, ["u32", "u32"], ["u32"], [a, b])
    source = in_waves(np.where(PLACE >= 1, LANE - 1, -1))
    written = np.tile((5 >> LANE // 16 & 1 & 10 >> LANE % 16 // 4 & 1).astype(bool), WAVES)
    assert_same(actual, np.where(written, np.where(source >= 0, a[source], 0) + b, b))


def test_lanes_are_fetched_from_and_sent_to_addresses(folder):
    (data,) = operands(["u32"])
    rng = np.random.default_rng(2)
    order = np.concatenate([rng.permutation(LANES) for _ in range(WAVES)])
    text = """
        v_lshlrev_b32_e32 v12, 2, v12
        ds_bpermute_b32 v20, v12, v10
        ds_permute_b32 v22, v12, v10
        s_waitcnt lgkmcnt(0)
    """
    fetched, sent = run(folder, text, ["u32", "u32"], ["u32", "u32"], [data, order.astype(np.uint32)])
    wave = np.arange(COUNT) // LANES * LANES
    assert_same(fetched, data[wave + order])
    expected = np.zeros_like(data)
    expected[wave + order] = data
    assert_same(sent, expected)


SWIZZLES = {
    "swizzle(SWAP,16)": LANE ^ 16,
    "swizzle(REVERSE,8)": LANE ^ 7,
    "swizzle(BROADCAST,4,2)": (LANE & ~3) | 2,
    "swizzle(QUAD_PERM,2,3,0,1)": LANE ^ 2,
    'swizzle(BITMASK_PERM,"01pip")': (LANE & 32) | (LANE & 0b00111 | 0b01000) ^ 0b00010,
}


@pytest.mark.parametrize("pattern", SWIZZLES)
def test_swizzles(folder, pattern):
    (data,) = operands(["u32"])
    (actual,) = run(folder, f"ds_swizzle_b32 v20, v10 offset:{pattern}", ["u32"], ["u32"], [data])
    assert_same(actual, data[in_waves(SWIZZLES[pattern])])


def test_unknown_swizzles_raise():
    with pytest.raises(UnknownSyntaxError, match="FFT"):
        swizzle_pattern("swizzle(FFT,3)")


def test_lanes_and_scalars(folder):
    (a,) = operands(["u32"])
    text = """
        s_mov_b64 exec, 0xf0
        v_readfirstlane_b32 s30, v10
        s_mov_b64 exec, -1
        v_readlane_b32 s31, v10, 63
        v_mov_b32_e32 v20, s30
        v_mov_b32_e32 v22, s31
        v_mov_b32_e32 v24, v10
        v_writelane_b32 v24, s31, 5
    """
    first, last, written = run(folder, text, ["u32"], ["u32"] * 3, [a])
    waves = a.reshape(WAVES, LANES)
    assert_same(first, np.repeat(waves[:, 4], LANES))
    assert_same(last, np.repeat(waves[:, 63], LANES))
    expected = waves.copy()
    expected[:, 5] = waves[:, 63]
    assert_same(written, expected.ravel())


def test_lanes_are_counted_below_each(folder):
    (a,) = operands(["u32"])
    text = """
        v_mbcnt_lo_u32_b32 v20, v10, 5
        v_mbcnt_hi_u32_b32 v22, v10, 5
    """
    low, high = run(folder, text, ["u32"], ["u32", "u32"], [a])
    below = np.tile(LANE, WAVES).astype(np.uint64)
    lower = (np.uint64(1) << np.minimum(below, 32)) - np.uint64(1)
    upper = (np.uint64(1) << np.maximum(below, 32) - np.uint64(32)) - np.uint64(1)
    assert_same(low, np.bitwise_count(a & lower) + 5)
    assert_same(high, np.bitwise_count(a & upper) + 5)
