/* State of a wave, operands of an instruction, and the arithmetic that C has no operator for.
 *
 * Section numbers are those of AMD's "CDNA3 Instruction Set Architecture" reference guide. The structures here are
 * mirrored in decode.py and machine.py.
 */
#include <math.h>

#include "memory.h"

typedef float f32;
typedef double f64;
typedef uint32_t u32;
typedef int32_t i32;
typedef uint64_t u64;
typedef int64_t i64;

#define LANES 64
#define REGISTERS 512 /* v0..v255, then a0..a255 */
#define VCC 106
#define M0 124
#define EXEC 126
#define MOST_OPERANDS 6
#define EVERY_LANE (~(u64)0)

enum kind { NONE, VECTOR, SCALAR, CONSTANT };
enum { NEGATE = 1, ABSOLUTE = 2 };
/* Parts of a register that SDWA selects, as decode.py numbers them. */
enum selection { WHOLE, BYTE_0, BYTE_1, BYTE_2, BYTE_3, WORD_0, WORD_1 };

struct operand {
    i32 kind, reg;
    i32 modifiers;
    i32 selection, sign_extend; /* SDWA */
    u64 constant;
};

enum flag { CLAMP = 1, OFFEN = 2, RETURNS = 4, BOUND_CTRL = 8, DPP = 16, SDWA = 32, PRESERVE = 64 };
enum dpp {
    QUAD_PERM, ROW_SHL, ROW_SHR, ROW_ROR, ROW_MIRROR, ROW_HALF_MIRROR, ROW_BCAST_15, ROW_BCAST_31, ROW_NEWBCAST,
    WAVE_SHL, WAVE_SHR, WAVE_ROL, WAVE_ROR
};

struct instruction {
    i32 opcode, operands, line, target;
    i32 offset[2];
    i32 flags;
    i32 multiply; /* output modifier: 0, or 1 (times 2), 2 (times 4), 3 (divided by 2) */
    i32 dpp, dpp_argument, row_mask, bank_mask;
    i32 destination_selection;
    i32 op_sel, op_sel_hi, neg_lo, neg_hi; /* bits by source: packed operations, neg of float64 matrices */
    struct operand operand[MOST_OPERANDS];
};

struct wave {
    u32 v[REGISTERS][LANES];
    u32 s[128];
    u64 exec;
    u32 scc, m0;
    i32 pc, next;
    int done, at_barrier;
    u32 id;
    struct memory *memory;
    u64 *noise; /* NULL: reciprocals, roots and exponentials are correctly rounded; else the state of a generator */
};

/* ---- bits and values */

static inline f32 as_f32(u32 x) { f32 y; memcpy(&y, &x, 4); return y; }
static inline u32 bits_f32(f32 x) { u32 y; memcpy(&y, &x, 4); return y; }
static inline f64 as_f64(u64 x) { f64 y; memcpy(&y, &x, 8); return y; }
static inline u64 bits_f64(f64 x) { u64 y; memcpy(&y, &x, 8); return y; }

static inline int exponent_f32(f32 x) { return bits_f32(x) >> 23 & 255; }
static inline int exponent_f64(f64 x) { return bits_f64(x) >> 52 & 2047; }

static inline u32 reverse_bits(u32 x)
{
    u32 result = 0;
    for (int k = 0; k < 32; k++)
        result |= (x >> k & 1) << (31 - k);
    return result;
}

static inline i32 sign_extend_24(u32 x) { return (i32)(x << 8) >> 8; }

static inline u32 extract_unsigned(u32 x, u32 offset, u32 width)
{
    return x >> (offset & 31) & (width < 32 ? ((u32)1 << width) - 1 : ~(u32)0);
}

static inline i32 extract_signed(i32 x, u32 offset, u32 width)
{
    if (width == 0)
        return 0;
    if (width >= 32)
        return x >> offset;
    u32 field = extract_unsigned((u32)x, offset, width);
    return (i32)(field << (32 - width)) >> (32 - width);
}

/* Leading bits equal to the sign; -1 if all are. */
static inline u32 leading_sign_bits(i32 x)
{
    return x == 0 || x == -1 ? ~(u32)0 : (u32)__builtin_clz((u32)(x < 0 ? ~x : x));
}

/* V_PERM_B32: each byte of ``selector`` chooses one of the eight bytes of {high, low}, or a constant. */
static inline u32 permute_bytes(u32 high, u32 low, u32 selector)
{
    u64 bytes = (u64)high << 32 | low;
    u32 result = 0;
    for (int k = 0; k < 4; k++) {
        u32 s = selector >> (8 * k) & 255, byte;
        if (s < 8)
            byte = (u32)(bytes >> (8 * s)) & 255;
        else if (s < 12) /* the sign of one of four words */
            byte = bytes >> (16 * (s - 8) + 15) & 1 ? 255 : 0;
        else
            byte = s == 12 ? 0 : 255;
        result |= byte << (8 * k);
    }
    return result;
}

/* ---- floating point: a NaN loses against a number, and -0 is below +0 */

#define DEFINE_EXTREMES(type, bits)                                                                                    \
    static inline type min_##type(type a, type b)                                                                     \
    {                                                                                                                  \
        if (a != a) return b;                                                                                          \
        if (b != b) return a;                                                                                          \
        return a < b || (a == b && signbit(a)) ? a : b;                                                                \
    }                                                                                                                  \
    static inline type max_##type(type a, type b)                                                                     \
    {                                                                                                                  \
        if (a != a) return b;                                                                                          \
        if (b != b) return a;                                                                                          \
        return a > b || (a == b && signbit(b)) ? a : b;                                                                \
    }
DEFINE_EXTREMES(f32, bits_f32)
DEFINE_EXTREMES(f64, bits_f64)

static inline f32 median_f32(f32 a, f32 b, f32 c)
{
    if (a != a || b != b || c != c)
        return min_f32(min_f32(a, b), c);
    return max_f32(min_f32(a, b), min_f32(max_f32(a, b), c));
}

static inline i32 median_i32(i32 a, i32 b, i32 c) { return a > b ? (b > c ? b : a < c ? a : c) : (a > c ? a : b < c ? b : c); }
static inline u32 median_u32(u32 a, u32 b, u32 c) { return a > b ? (b > c ? b : a < c ? a : c) : (a > c ? a : b < c ? b : c); }

/* The part above the floor, kept below 1. */
static inline f32 fraction_f32(f32 x) { f32 y = x - floorf(x); return y >= 1 ? 0x1.fffffep-1f : y; }
static inline f64 fraction_f64(f64 x) { f64 y = x - floor(x); return y >= 1 ? 0x1.fffffffffffffp-1 : y; }

static inline f64 mantissa_f64(f64 x) { int e; return isfinite(x) ? frexp(x, &e) : x; }
static inline i32 binary_exponent_f64(f64 x) { int e = 0; if (isfinite(x) && x != 0) frexp(x, &e); return e; }

/* Conversions saturate, and a NaN becomes 0. */
static inline i32 saturated_i32(f64 x)
{
    if (x != x) return 0;
    if (x >= 2147483647.0) return INT32_MAX;
    if (x <= -2147483648.0) return INT32_MIN;
    return (i32)x;
}

static inline u32 saturated_u32(f64 x)
{
    if (!(x > 0)) return 0;
    return x >= 4294967295.0 ? UINT32_MAX : (u32)x;
}

/* V_CMP_CLASS: signalling NaN, quiet NaN, then -inf, -normal, -denormal, -0, +0, +denormal, +normal, +inf. */
static inline u32 class_of(int is_nan, int is_quiet, int is_infinite, int is_zero, int is_denormal, int is_negative)
{
    if (is_nan) return is_quiet ? 2 : 1;
    if (is_infinite) return is_negative ? 4 : 512;
    if (is_zero) return is_negative ? 32 : 64;
    if (is_denormal) return is_negative ? 16 : 128;
    return is_negative ? 8 : 256;
}

static inline u32 class_f32(f32 x)
{
    return class_of(x != x, bits_f32(x) >> 22 & 1, isinf(x), x == 0, fabsf(x) < 0x1p-126f, signbit(x) != 0);
}

static inline u32 class_f64(f64 x)
{
    return class_of(x != x, bits_f64(x) >> 51 & 1, isinf(x), x == 0, fabs(x) < 0x1p-1022, signbit(x) != 0);
}

/* A transcendental result in float32: the nearest, or, where a launch asks for noise, either neighbour of the exact
 * value, which is what one unit in the last place allows the GPU. */
static inline f32 within_one_ulp(struct wave *w, f64 exact)
{
    f32 nearest = (f32)exact;
    if (!w->noise || !isfinite(nearest) || nearest == 0 || (f64)nearest == exact)
        return nearest;
    *w->noise = *w->noise * 6364136223846793005u + 1442695040888963407u;
    return *w->noise >> 40 & 1 ? nextafterf(nearest, exact > (f64)nearest ? INFINITY : -INFINITY) : nearest;
}

/* V_RCP_F64, V_RSQ_F64 and V_SQRT_F64 are starting values of an iteration: good to 2^-25 alone. */
static inline f64 starting_value(f64 x)
{
    return isfinite(x) && x != 0 ? as_f64(bits_f64(x) & ~(((u64)1 << 27) - 1)) : x;
}

/* V_DIV_FIXUP: the quotient of a division made of V_DIV_SCALE, V_RCP, fused steps and V_DIV_FMAS, or what the special
 * cases of its operands give. */
#define DEFINE_DIV_FIXUP(type, exponent_of, absolute, greatest, infinite_exponent, tiny, smallest, default_nan)        \
    static inline type div_fixup_##type(type quotient, type denominator, type numerator)                              \
    {                                                                                                                  \
        int negative = (signbit(denominator) != 0) ^ (signbit(numerator) != 0);                                        \
        type size;                                                                                                     \
        if (numerator != numerator) return numerator;                                                                  \
        if (denominator != denominator) return denominator;                                                            \
        if ((denominator == 0 && numerator == 0) || (isinf(denominator) && isinf(numerator))) return default_nan;      \
        if (denominator == 0 || isinf(numerator)) size = INFINITY;                                                     \
        else if (isinf(denominator) || numerator == 0) size = 0;                                                       \
        else if (exponent_of(numerator) - exponent_of(denominator) < tiny) size = smallest;                            \
        else if (exponent_of(denominator) == infinite_exponent) size = greatest;                                       \
        else size = absolute(quotient);                                                                                \
        return negative ? -size : size;                                                                                \
    }
DEFINE_DIV_FIXUP(f32, exponent_f32, fabsf, 0x1.fffffep127f, 255, -150, as_f32(1), as_f32(0xffc00000u))
DEFINE_DIV_FIXUP(f64, exponent_f64, fabs, 0x1.fffffffffffffp1023, 2047, -1075, as_f64(1), as_f64(0xfff8000000000000u))

/* Output modifiers: a power of two, then the clamp to 0..1, to which a NaN becomes 0. */
static inline f32 output_f32(f32 x, const struct instruction *in)
{
    static const f32 factors[] = {1, 2, 4, 0.5f};
    x *= factors[in->multiply];
    if (in->flags & CLAMP)
        x = x > 0 ? (x < 1 ? x : 1) : 0;
    return x;
}

static inline f64 output_f64(f64 x, const struct instruction *in)
{
    static const f64 factors[] = {1, 2, 4, 0.5};
    x *= factors[in->multiply];
    if (in->flags & CLAMP)
        x = x > 0 ? (x < 1 ? x : 1) : 0;
    return x;
}

/* ---- scalar registers */

static inline u32 scalar(const struct wave *w, int reg)
{
    if (reg == M0) return w->m0;
    if (reg == EXEC) return (u32)w->exec;
    if (reg == EXEC + 1) return (u32)(w->exec >> 32);
    return w->s[reg];
}

static inline void set_scalar(struct wave *w, int reg, u32 x)
{
    if (reg == M0) w->m0 = x;
    else if (reg == EXEC) w->exec = (w->exec & ~(u64)UINT32_MAX) | x;
    else if (reg == EXEC + 1) w->exec = (w->exec & UINT32_MAX) | (u64)x << 32;
    else w->s[reg] = x;
}

static inline u64 scalar_pair(const struct wave *w, int reg) { return scalar(w, reg) | (u64)scalar(w, reg + 1) << 32; }

static inline void set_scalar_pair(struct wave *w, int reg, u64 x)
{
    set_scalar(w, reg, (u32)x);
    set_scalar(w, reg + 1, (u32)(x >> 32));
}

/* An operand that is one value for the wave. */
static inline u32 read_u32(const struct wave *w, const struct operand *o)
{
    return o->kind == CONSTANT ? (u32)o->constant : scalar(w, o->reg);
}

static inline u64 read_u64(const struct wave *w, const struct operand *o)
{
    return o->kind == CONSTANT ? o->constant : scalar_pair(w, o->reg);
}

static inline void write_u32(struct wave *w, const struct operand *o, u32 x) { set_scalar(w, o->reg, x); }
static inline void write_u64(struct wave *w, const struct operand *o, u64 x) { set_scalar_pair(w, o->reg, x); }

/* ---- vector operands */

static inline int is_active(u64 mask, int lane) { return mask >> lane & 1; }

/* Lane that DPP reads for ``lane``, or -1 (section 6.6: rows are 16 lanes, banks 4). */
static int dpp_source(const struct instruction *in, int lane)
{
    int argument = in->dpp_argument, row = lane & ~15, place = lane & 15;
    switch (in->dpp) {
    case QUAD_PERM: return (lane & ~3) | (argument >> (2 * (lane & 3)) & 3);
    case ROW_SHL: return place + argument < 16 ? lane + argument : -1;
    case ROW_SHR: return place >= argument ? lane - argument : -1;
    case ROW_ROR: return row | ((place - argument) & 15);
    case ROW_MIRROR: return row | (15 - place);
    case ROW_HALF_MIRROR: return (lane & ~7) | (7 - (lane & 7));
    case ROW_BCAST_15: return row - 1;
    case ROW_BCAST_31: return lane >= 32 ? 31 : -1;
    case ROW_NEWBCAST: return row | argument;
    case WAVE_SHL: return lane + 1 < LANES ? lane + 1 : -1;
    case WAVE_SHR: return lane - 1;
    case WAVE_ROL: return (lane + 1) & (LANES - 1);
    default: return (lane - 1) & (LANES - 1);
    }
}

static inline int dpp_has_source(const struct wave *w, const struct instruction *in, int lane)
{
    int from = dpp_source(in, lane);
    return from >= 0 && is_active(w->exec, from);
}

/* Lanes that an instruction writes: DPP leaves lanes alone that its masks exclude, or that have no source, unless
 * BOUND_CTRL makes their source 0. */
static u64 written_lanes(const struct wave *w, const struct instruction *in)
{
    if (!(in->flags & DPP))
        return w->exec;
    u64 mask = 0;
    for (int lane = 0; lane < LANES; lane++) {
        int allowed = (in->row_mask >> (lane / 16) & 1) && (in->bank_mask >> (lane % 16 / 4) & 1);
        if (is_active(w->exec, lane) && allowed && ((in->flags & BOUND_CTRL) || dpp_has_source(w, in, lane)))
            mask |= (u64)1 << lane;
    }
    return mask;
}

static u32 selected(u32 x, const struct operand *o)
{
    if (o->selection >= WORD_0) {
        x = x >> (16 * (o->selection - WORD_0)) & 0xffff;
        return o->sign_extend ? (u32)(i32)(int16_t)x : x;
    }
    x = x >> (8 * (o->selection - BYTE_0)) & 0xff;
    return o->sign_extend ? (u32)(i32)(int8_t)x : x;
}

/* The values of a source in all lanes, where they are or copied to ``copy`` and modified there. */
static inline const u32 *source_32(const struct wave *w, const struct instruction *in, int index, u32 *copy)
{
    const struct operand *o = &in->operand[index];
    const u32 *values = w->v[o->reg];
    if (o->kind != VECTOR) {
        u32 x = read_u32(w, o);
        for (int lane = 0; lane < LANES; lane++)
            copy[lane] = x;
        values = copy;
    }
    if ((in->flags & DPP) && index == 1) { /* the first source alone */
        u32 moved[LANES];
        for (int lane = 0; lane < LANES; lane++)
            moved[lane] = dpp_has_source(w, in, lane) ? values[dpp_source(in, lane)] : 0;
        memcpy(copy, moved, sizeof moved);
        values = copy;
    }
    if (o->selection) {
        for (int lane = 0; lane < LANES; lane++)
            copy[lane] = selected(values[lane], o);
        values = copy;
    }
    if (o->modifiers) {
        u32 keep = o->modifiers & ABSOLUTE ? 0x7fffffffu : ~(u32)0, flip = o->modifiers & NEGATE ? 0x80000000u : 0;
        for (int lane = 0; lane < LANES; lane++)
            copy[lane] = (values[lane] & keep) ^ flip;
        values = copy;
    }
    return values;
}

static inline const u64 *source_64(const struct wave *w, const struct instruction *in, int index, u64 *copy)
{
    const struct operand *o = &in->operand[index];
    if (o->kind == VECTOR) {
        const u32 *low = w->v[o->reg], *high = w->v[o->reg + 1];
        for (int lane = 0; lane < LANES; lane++)
            copy[lane] = low[lane] | (u64)high[lane] << 32;
    } else {
        u64 x = read_u64(w, o);
        for (int lane = 0; lane < LANES; lane++)
            copy[lane] = x;
    }
    if (o->modifiers) {
        u64 sign = (u64)1 << 63, keep = o->modifiers & ABSOLUTE ? ~sign : ~(u64)0;
        u64 flip = o->modifiers & NEGATE ? sign : 0;
        for (int lane = 0; lane < LANES; lane++)
            copy[lane] = (copy[lane] & keep) ^ flip;
    }
    return copy;
}

static inline u64 vector_pair(const struct wave *w, int reg, int lane)
{
    return w->v[reg][lane] | (u64)w->v[reg + 1][lane] << 32;
}

static inline void set_vector_pair(struct wave *w, int reg, int lane, u64 x)
{
    w->v[reg][lane] = (u32)x;
    w->v[reg + 1][lane] = (u32)(x >> 32);
}
