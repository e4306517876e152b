/* Matrix products of a wave, D = A B + C (section 7): every lane takes part, whatever the execution mask says.
 *
 * A is size x depth and B depth x size. Lane l holds row (column) l % size of A (B), and of its columns (rows) those
 * from (l / size) * per_lane on, one a register. C and D are spread over registers in blocks of four rows.
 */

/* xf32 products see 10 bits of the mantissa, rounded to nearest even. */
static f32 rounded_xf32(u32 x)
{
    return as_f32((x + 0xfff + (x >> 13 & 1)) & ~(u32)0x1fff);
}

static u32 matrix_entry(const struct wave *w, const struct operand *o, int reg, int lane)
{
    return o->kind == VECTOR ? w->v[o->reg + reg][lane] : read_u32(w, o);
}

static void matrix_f32(struct wave *w, const struct instruction *in, int size, int depth, int per_lane, int is_xf32)
{
    f32 a[32][8], b[32][8]; /* b by columns */
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < per_lane; k++) {
            u32 x = matrix_entry(w, &in->operand[1], k, lane), y = matrix_entry(w, &in->operand[2], k, lane);
            int at = lane / size * per_lane + k;
            a[lane % size][at] = is_xf32 ? rounded_xf32(x) : as_f32(x);
            b[lane % size][at] = is_xf32 ? rounded_xf32(y) : as_f32(y);
        }
    u32 result[16][LANES]; /* D may be where A, B or C are */
    int registers = size * size / LANES, rows_of_block = 4 * LANES / size;
    for (int reg = 0; reg < registers; reg++)
        for (int lane = 0; lane < LANES; lane++) {
            int row = reg / 4 * rows_of_block + 4 * (lane / size) + reg % 4, column = lane % size;
            f32 sum = as_f32(matrix_entry(w, &in->operand[3], reg, lane));
            for (int k = 0; k < depth; k++)
                sum = fmaf(a[row][k], b[column][k], sum);
            result[reg][lane] = bits_f32(sum);
        }
    memcpy(w->v[in->operand[0].reg], result, (size_t)registers * sizeof result[0]);
}

#define OP_MATRIX(name, size, depth, per_lane, is_xf32)                                                                \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        matrix_f32(w, in, size, depth, per_lane, is_xf32);                                                             \
    }
OP_MATRIX(v_mfma_f32_32x32x2_f32, 32, 2, 1, 0)
OP_MATRIX(v_mfma_f32_16x16x4_f32, 16, 4, 1, 0)
OP_MATRIX(v_mfma_f32_16x16x8_xf32, 16, 8, 2, 1)
OP_MATRIX(v_mfma_f32_32x32x4_xf32, 32, 4, 2, 1)

static f64 matrix_entry_f64(const struct wave *w, const struct operand *o, int pair, int lane)
{
    return as_f64(o->kind == VECTOR ? vector_pair(w, o->reg + 2 * pair, lane) : read_u64(w, o));
}

/* In float64 D has one row of every four in a pair of registers, and A and B can be negated. */
static void op_v_mfma_f64_16x16x4_f64(struct wave *w, const struct instruction *in)
{
    f64 a[16][4], b[16][4], result[4][LANES];
    for (int lane = 0; lane < LANES; lane++) {
        f64 x = matrix_entry_f64(w, &in->operand[1], 0, lane), y = matrix_entry_f64(w, &in->operand[2], 0, lane);
        a[lane % 16][lane / 16] = in->neg_lo & 1 ? -x : x;
        b[lane % 16][lane / 16] = in->neg_lo & 2 ? -y : y;
    }
    for (int pair = 0; pair < 4; pair++)
        for (int lane = 0; lane < LANES; lane++) {
            f64 sum = matrix_entry_f64(w, &in->operand[3], pair, lane);
            for (int k = 0; k < 4; k++)
                sum = fma(a[4 * pair + lane / 16][k], b[lane % 16][k], sum);
            result[pair][lane] = sum;
        }
    for (int pair = 0; pair < 4; pair++)
        for (int lane = 0; lane < LANES; lane++)
            set_vector_pair(w, in->operand[0].reg + 2 * pair, lane, bits_f64(result[pair][lane]));
}
