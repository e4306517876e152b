/* Arithmetic of one lane, for the expressions of opcodes.py. Sections are those of NVIDIA's PTX ISA. */
#ifndef SM80_LANES_H
#define SM80_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Division by zero gives "an unspecified, machine-specific value" (div): here all bits. */
#define DEFINE_UNSIGNED_DIVISION(name, type)                                                                           \
    static inline type divide_##name(type a, type b) { return b ? a / b : (type)-1; }                                  \
    static inline type remainder_##name(type a, type b) { return b ? a % b : (type)-1; }
/* The smallest number divided by -1 wraps. */
#define DEFINE_SIGNED_DIVISION(name, type)                                                                             \
    static inline type divide_##name(type a, type b)                                                                   \
    {                                                                                                                  \
        return b == 0 ? -1 : b == -1 ? (type)(0 - (uint64_t)a) : (type)(a / b);                                        \
    }                                                                                                                  \
    static inline type remainder_##name(type a, type b) { return b == 0 ? -1 : b == -1 ? 0 : (type)(a % b); }
DEFINE_UNSIGNED_DIVISION(u16, uint16_t)
DEFINE_UNSIGNED_DIVISION(u32, uint32_t)
DEFINE_UNSIGNED_DIVISION(u64, uint64_t)
DEFINE_SIGNED_DIVISION(s16, int16_t)
DEFINE_SIGNED_DIVISION(s32, int32_t)
DEFINE_SIGNED_DIVISION(s64, int64_t)

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* min of floats: a NaN loses to a number, and -0 is below +0. */
static inline float minimum_f32(float a, float b)
{
    if (a != a)
        return b;
    return a < b || b != b || (a == b && signbit(a)) ? a : b;
}

static inline double minimum_f64(double a, double b)
{
    if (a != a)
        return b;
    return a < b || b != b || (a == b && signbit(a)) ? a : b;
}

/* .ftz: subnormal numbers are zeros of the same sign. */
static inline float flush(float a)
{
    return fabsf(a) < 0x1p-126f ? copysignf(0, a) : a;
}

/* With ``noise``, a float within ``most`` units in the last place of the exact value; which one, the operands decide.
 *
 * The ISA promises no more than that of approximations, and a GPU's own choice is not known: results that depend on
 * it are not to be relied on. Zeros, infinities and NaN are exact.
 */
static inline float approximate(int noise, double exact, int most, float a, float b)
{
    float nearest = (float)exact;
    if (!noise || nearest != nearest || isinf(nearest) || fabsf(nearest) < 0x1p-125f)
        return nearest;
    float below = nearest > exact ? nextafterf(nearest, -INFINITY) : nearest;
    uint32_t mixed = (bits_of(a) * 2654435761u ^ bits_of(b) * 2246822519u) * 3266489917u;
    int steps = (int)((mixed >> 16) % (2 * (uint32_t)most)) - (most - 1); /* from 1 - most to most */
    int32_t place = (int32_t)bits_of(below);
    return float_of((uint32_t)(place + (place < 0 ? -steps : steps)));
}

/* cvt from floats: values beyond the range of the integer become its ends. */
static inline int32_t saturate_s32(double a)
{
    return a >= 0x1p31 ? INT32_MAX : a <= -0x1p31 ? INT32_MIN : (int32_t)a;
}

static inline uint32_t saturate_u32(double a)
{
    return a >= 0x1p32 ? UINT32_MAX : a <= 0 ? 0 : (uint32_t)a;
}

static inline int64_t saturate_s64(double a)
{
    return a >= 0x1p63 ? INT64_MAX : a <= -0x1p63 ? INT64_MIN : (int64_t)a;
}

static inline uint64_t saturate_u64(double a)
{
    return a >= 0x1p64 ? UINT64_MAX : a <= 0 ? 0 : (uint64_t)a;
}

static inline uint64_t low_ones(uint32_t count)
{
    return count >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << count) - 1;
}

/* bfe: ``length`` bits from ``position``; those beyond the operand are zeros. */
static inline uint64_t extract_unsigned(uint64_t a, uint32_t position, uint32_t length, uint32_t width)
{
    return position >= width ? 0 : (a >> position) & low_ones(length);
}

/* bfe, signed: bits above the field repeat its highest bit, or the operand's sign where the field ends beyond it. */
static inline uint64_t extract_signed(uint64_t a, uint32_t position, uint32_t length, uint32_t width)
{
    if (length == 0)
        return 0;
    uint32_t top = position + length - 1 < width - 1 ? position + length - 1 : width - 1;
    uint64_t field = extract_unsigned(a, position, length, width);
    uint32_t known = position >= width ? 0 : width - position < length ? width - position : length;
    return a >> top & 1 ? field | ~low_ones(known) : field;
}

/* bfi: the low ``length`` bits of a replace those of b from ``position``. */
static inline uint64_t insert(uint64_t a, uint64_t b, uint32_t position, uint32_t length, uint32_t width)
{
    if (position >= width)
        return b;
    uint64_t field = low_ones(length) << position;
    return (b & ~field) | (a << position & field);
}

/* lop3: bit by bit, the entry of an 8-bit truth table; a is the highest bit of its index. */
static inline uint32_t look_up(uint32_t a, uint32_t b, uint32_t c, uint32_t table)
{
    uint32_t result = 0;
    for (int entry = 0; entry < 8; entry++)
        if (table >> entry & 1)
            result |= (entry & 4 ? a : ~a) & (entry & 2 ? b : ~b) & (entry & 1 ? c : ~c);
    return result;
}

/* prmt: each nibble of ``selector`` picks a byte of b:a; its highest bit asks for eight copies of that byte's sign. */
static inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int k = 0; k < 4; k++) {
        uint32_t choice = selector >> (4 * k) & 15;
        uint32_t byte = both >> (8 * (choice & 7)) & 255;
        if (choice & 8)
            byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * k);
    }
    return result;
}

#endif
