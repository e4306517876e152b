/* Vector opcodes that carry, scale, pack, or cross lanes. */

/* The mask in an operand, or VCC where the encoding implies it. */
static u64 mask_operand(const struct wave *w, const struct instruction *in, int index)
{
    return in->operands > index ? read_u64(w, &in->operand[index]) : scalar_pair(w, VCC);
}

static void op_v_cndmask_b32(struct wave *w, const struct instruction *in)
{
    u32 copy_a[LANES], copy_b[LANES];
    const u32 *a = source_32(w, in, 1, copy_a), *b = source_32(w, in, 2, copy_b);
    u64 chooses_b = mask_operand(w, in, 3), written = written_lanes(w, in);
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(written, lane))
            w->v[in->operand[0].reg][lane] = is_active(chooses_b, lane) ? b[lane] : a[lane];
}

/* a + b + carry, or a - b - carry; the carry out of each lane goes to the second operand. */
static void add_with_carry(struct wave *w, const struct instruction *in, int subtracts, int reversed, int carries)
{
    u32 copy_a[LANES], copy_b[LANES];
    const u32 *a = source_32(w, in, 2, copy_a), *b = source_32(w, in, 3, copy_b);
    u64 carry_in = carries ? mask_operand(w, in, 4) : 0, carry_out = 0;
    for (int lane = 0; lane < LANES; lane++) {
        if (!is_active(w->exec, lane))
            continue;
        u64 x = reversed ? b[lane] : a[lane], y = reversed ? a[lane] : b[lane], carry = is_active(carry_in, lane);
        u64 result = subtracts ? x - y - carry : x + y + carry;
        w->v[in->operand[0].reg][lane] = (u32)result;
        carry_out |= (u64)(result >> 32 != 0) << lane;
    }
    write_u64(w, &in->operand[1], carry_out);
}

#define OP_CARRY(name, subtracts, reversed, carries)                                                                   \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        add_with_carry(w, in, subtracts, reversed, carries);                                                           \
    }
OP_CARRY(v_add_co_u32, 0, 0, 0)
OP_CARRY(v_sub_co_u32, 1, 0, 0)
OP_CARRY(v_subrev_co_u32, 1, 1, 0)
OP_CARRY(v_addc_co_u32, 0, 0, 1)
OP_CARRY(v_subb_co_u32, 1, 0, 1)
OP_CARRY(v_subbrev_co_u32, 1, 1, 1)

static void op_v_mad_u64_u32(struct wave *w, const struct instruction *in)
{
    u32 copy_a[LANES], copy_b[LANES];
    u64 copy_c[LANES], overflow = 0;
    const u32 *a = source_32(w, in, 2, copy_a), *b = source_32(w, in, 3, copy_b);
    const u64 *c = source_64(w, in, 4, copy_c);
    for (int lane = 0; lane < LANES; lane++) {
        if (!is_active(w->exec, lane))
            continue;
        u64 product = (u64)a[lane] * b[lane], sum = product + c[lane];
        overflow |= (u64)(sum < product) << lane;
        set_vector_pair(w, in->operand[0].reg, lane, sum);
    }
    write_u64(w, &in->operand[1], overflow);
}

static void op_v_mad_i64_i32(struct wave *w, const struct instruction *in)
{
    u32 copy_a[LANES], copy_b[LANES];
    u64 copy_c[LANES], overflow = 0;
    const u32 *a = source_32(w, in, 2, copy_a), *b = source_32(w, in, 3, copy_b);
    const u64 *c = source_64(w, in, 4, copy_c);
    for (int lane = 0; lane < LANES; lane++) {
        if (!is_active(w->exec, lane))
            continue;
        i64 sum;
        overflow |= (u64)__builtin_add_overflow((i64)(i32)a[lane] * (i32)b[lane], (i64)c[lane], &sum) << lane;
        set_vector_pair(w, in->operand[0].reg, lane, (u64)sum);
    }
    write_u64(w, &in->operand[1], overflow);
}

/* V_DIV_SCALE: a is the numerator c or the denominator b of a division, scaled so that the fused steps that follow
 * neither overflow nor lose digits; the mask (VCC) tells V_DIV_FMAS to scale back. Written out in section 12.12. */
#define OP_DIV_SCALE(name, type, word, source, load, bits, exponent_of, absolute, smallest, far, small, power, store)  \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        word copy_a[LANES], copy_b[LANES], copy_c[LANES];                                                              \
        const word *from_a = source(w, in, 2, copy_a), *from_b = source(w, in, 3, copy_b);                             \
        const word *from_c = source(w, in, 4, copy_c);                                                                 \
        u64 mask = 0;                                                                                                  \
        for (int lane = 0; lane < LANES; lane++) {                                                                     \
            if (!is_active(w->exec, lane))                                                                             \
                continue;                                                                                              \
            type a = load(from_a[lane]), b = load(from_b[lane]), c = load(from_c[lane]), r = a;                        \
            int is_b = from_a[lane] == from_b[lane], is_c = from_a[lane] == from_c[lane], scales_back = 0;             \
            int b_denormal = b != 0 && absolute(b) < smallest;                                                         \
            int inverse_denormal = isfinite(b) && fabs(1 / (f64)b) < smallest;                                         \
            int quotient_denormal = c != 0 && fabs((f64)c / (f64)b) < smallest;                                        \
            if (c == 0 || b == 0) {                                                                                    \
                r = NAN;                                                                                               \
            } else if (exponent_of(c) - exponent_of(b) >= far) {                                                       \
                scales_back = 1;                                                                                       \
                if (is_b) r = (type)ldexp(a, power);                                                                   \
            } else if (b_denormal) {                                                                                   \
                r = (type)ldexp(a, power);                                                                             \
            } else if (inverse_denormal && quotient_denormal) {                                                        \
                scales_back = 1;                                                                                       \
                if (is_b) r = (type)ldexp(a, power);                                                                   \
            } else if (inverse_denormal) {                                                                             \
                r = (type)ldexp(a, -power);                                                                            \
            } else if (quotient_denormal) {                                                                            \
                scales_back = 1;                                                                                       \
                if (is_c) r = (type)ldexp(a, power);                                                                   \
            } else if (exponent_of(c) <= small) {                                                                      \
                r = (type)ldexp(a, power);                                                                             \
            }                                                                                                          \
            mask |= (u64)scales_back << lane;                                                                          \
            store(w, in->operand[0].reg, lane, bits(r));                                                               \
        }                                                                                                              \
        write_u64(w, &in->operand[1], mask);                                                                           \
    }

static inline void set_vector(struct wave *w, int reg, int lane, u32 x) { w->v[reg][lane] = x; }

OP_DIV_SCALE(v_div_scale_f32, f32, u32, source_32, as_f32, bits_f32, exponent_f32, fabsf, 0x1p-126f, 96, 23, 64, set_vector)
OP_DIV_SCALE(v_div_scale_f64, f64, u64, source_64, as_f64, bits_f64, exponent_f64, fabs, 0x1p-1022, 768, 53, 128, set_vector_pair)

/* V_DIV_FMAS: a fused step of a division, scaled back where VCC says so. */
static void op_v_div_fmas_f32(struct wave *w, const struct instruction *in)
{
    u32 copy_a[LANES], copy_b[LANES], copy_c[LANES];
    const u32 *a = source_32(w, in, 1, copy_a), *b = source_32(w, in, 2, copy_b), *c = source_32(w, in, 3, copy_c);
    u64 scales = scalar_pair(w, VCC);
    for (int lane = 0; lane < LANES; lane++) {
        if (!is_active(w->exec, lane))
            continue;
        f32 r = fmaf(as_f32(a[lane]), as_f32(b[lane]), as_f32(c[lane]));
        if (is_active(scales, lane))
            r = ldexpf(r, exponent_f32(as_f32(c[lane])) > 127 ? 64 : -64);
        w->v[in->operand[0].reg][lane] = bits_f32(r);
    }
}

static void op_v_div_fmas_f64(struct wave *w, const struct instruction *in)
{
    u64 copy_a[LANES], copy_b[LANES], copy_c[LANES];
    const u64 *a = source_64(w, in, 1, copy_a), *b = source_64(w, in, 2, copy_b), *c = source_64(w, in, 3, copy_c);
    u64 scales = scalar_pair(w, VCC);
    for (int lane = 0; lane < LANES; lane++) {
        if (!is_active(w->exec, lane))
            continue;
        f64 r = fma(as_f64(a[lane]), as_f64(b[lane]), as_f64(c[lane]));
        if (is_active(scales, lane))
            r = ldexp(r, exponent_f64(as_f64(c[lane])) > 1023 ? 128 : -128);
        set_vector_pair(w, in->operand[0].reg, lane, bits_f64(r));
    }
}

/* ---- packed operations: two halves of a pair of registers; OP_SEL says which half each source gives (section 6.7) */

/* Register ``half`` of a source that is a pair of registers, in every lane. */
static void packed_source(const struct wave *w, const struct operand *o, int half, u32 *values)
{
    u32 x = o->kind == CONSTANT ? (u32)o->constant : o->kind == SCALAR ? scalar(w, o->reg + half) : 0;
    for (int lane = 0; lane < LANES; lane++)
        values[lane] = o->kind == VECTOR ? w->v[o->reg + half][lane] : x;
}

static void packed_f32(struct wave *w, const struct instruction *in, int sources, f32 (*operation)(f32, f32, f32))
{
    u32 values[2][3][LANES] = {0};
    for (int half = 0; half < 2; half++)
        for (int k = 0; k < sources; k++) {
            int from = (half ? in->op_sel_hi : in->op_sel) >> k & 1, negates = (half ? in->neg_hi : in->neg_lo) >> k & 1;
            packed_source(w, &in->operand[k + 1], from, values[half][k]);
            for (int lane = 0; negates && lane < LANES; lane++)
                values[half][k][lane] ^= 0x80000000u;
        }
    for (int half = 0; half < 2; half++)
        for (int lane = 0; lane < LANES; lane++) {
            if (!is_active(w->exec, lane))
                continue;
            u32(*of)[LANES] = values[half];
            f32 r = operation(as_f32(of[0][lane]), as_f32(of[1][lane]), as_f32(of[2][lane]));
            w->v[in->operand[0].reg + half][lane] = bits_f32(output_f32(r, in));
        }
}

static f32 packed_add(f32 a, f32 b, f32 c) { (void)c; return a + b; }
static f32 packed_multiply(f32 a, f32 b, f32 c) { (void)c; return a * b; }

static void op_v_pk_add_f32(struct wave *w, const struct instruction *in) { packed_f32(w, in, 2, packed_add); }
static void op_v_pk_mul_f32(struct wave *w, const struct instruction *in) { packed_f32(w, in, 2, packed_multiply); }
static void op_v_pk_fma_f32(struct wave *w, const struct instruction *in) { packed_f32(w, in, 3, fmaf); }

/* The low half from the first source, the high half from the second. */
static void op_v_pk_mov_b32(struct wave *w, const struct instruction *in)
{
    u32 low[LANES], high[LANES];
    packed_source(w, &in->operand[1], in->op_sel & 1, low);
    packed_source(w, &in->operand[2], in->op_sel >> 1 & 1, high);
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(w->exec, lane))
            set_vector_pair(w, in->operand[0].reg, lane, low[lane] | (u64)high[lane] << 32);
}

/* ---- between lanes and scalars */

static void op_v_readfirstlane_b32(struct wave *w, const struct instruction *in)
{
    const struct operand *o = &in->operand[1];
    int first = w->exec ? __builtin_ctzll(w->exec) : 0;
    write_u32(w, &in->operand[0], o->kind == VECTOR ? w->v[o->reg][first] : read_u32(w, o));
}

static void op_v_readlane_b32(struct wave *w, const struct instruction *in)
{
    write_u32(w, &in->operand[0], w->v[in->operand[1].reg][read_u32(w, &in->operand[2]) & 63]);
}

static void op_v_writelane_b32(struct wave *w, const struct instruction *in)
{
    w->v[in->operand[0].reg][read_u32(w, &in->operand[2]) & 63] = read_u32(w, &in->operand[1]);
}

static void op_v_nop(struct wave *w, const struct instruction *in) { (void)w; (void)in; }

/* ---- between lanes, by the LDS hardware but not through its memory (section 12.13); inactive sources give 0 */

static void move_lanes(struct wave *w, const struct instruction *in, const u32 *moved)
{
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(w->exec, lane))
            w->v[in->operand[0].reg][lane] = moved[lane];
}

/* Each lane fetches from the lane that its address names. */
static void op_ds_bpermute_b32(struct wave *w, const struct instruction *in)
{
    const u32 *address = w->v[in->operand[1].reg], *data = w->v[in->operand[2].reg];
    u32 moved[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        int from = (address[lane] + (u32)in->offset[0]) / 4 % LANES;
        moved[lane] = is_active(w->exec, from) ? data[from] : 0;
    }
    memory_issue(w->memory, w->id, SHARED);
    move_lanes(w, in, moved);
}

/* Each lane sends to the lane that its address names. */
static void op_ds_permute_b32(struct wave *w, const struct instruction *in)
{
    const u32 *address = w->v[in->operand[1].reg], *data = w->v[in->operand[2].reg];
    u32 moved[LANES] = {0};
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(w->exec, lane))
            moved[(address[lane] + (u32)in->offset[0]) / 4 % LANES] = data[lane];
    memory_issue(w->memory, w->id, SHARED);
    move_lanes(w, in, moved);
}

/* A fixed pattern: of four lanes, or and/or/xor of the lane's number within 32. */
static void op_ds_swizzle_b32(struct wave *w, const struct instruction *in)
{
    const u32 *data = w->v[in->operand[1].reg];
    int pattern = in->offset[0];
    u32 moved[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        int from;
        if (pattern & 0x8000)
            from = (lane & ~3) | (pattern >> (2 * (lane & 3)) & 3);
        else
            from = (lane & 32) | ((((lane & pattern) | pattern >> 5) ^ pattern >> 10) & 31);
        moved[lane] = is_active(w->exec, from) ? data[from] : 0;
    }
    memory_issue(w->memory, w->id, SHARED);
    move_lanes(w, in, moved);
}
