/* Warps, their registers, and instructions as decode.py and program.py hand them over. */
#ifndef SM80_MACHINE_H
#define SM80_MACHINE_H

#include "memory.h"
#include "sm80/lanes.h"

#define LANES 32
#define ALL_LANES 0xffffffffu
#define MOST_OPERANDS 16
#define NO_OPERAND (-1)

/* Mirrors ``EncodedInstruction`` of program.py. */
struct instruction {
    int32_t function;   /* its number in ``functions`` */
    int32_t guard;      /* slot of the predicate, or NO_OPERAND */
    int32_t negated;    /* runs where the guard is 0 */
    int32_t target;     /* of a branch: number of an instruction */
    int32_t line;       /* of the PTX text */
    int32_t count;      /* entries of a vector, registers of a matrix load, bytes of the register of a parameter */
    int32_t bytes;      /* of one entry */
    int32_t space;      /* enum space */
    int32_t kind;       /* what else distinguishes instructions of one function; of loads: sign-extended */
    uint32_t used;      /* bytes of a load that anything reads (pragma used_bytes_mask) */
    int64_t offset, second_offset; /* added to addresses */
    int32_t operand[MOST_OPERANDS]; /* slots: where a register begins in a warp's registers */
};

/* cp.async: bytes on their way from global to shared memory. */
struct copy {
    uint32_t group; /* the lane's count of committed groups when it was issued */
    uint32_t lane, line, bytes;
    uint64_t to;
    uint8_t data[16];
};

struct warp {
    uint8_t *registers; /* slots of 32 lanes each */
    uint32_t number;
    uint32_t at;        /* number of the next instruction of the active lanes */
    uint32_t active;    /* lanes that run at ``at`` */
    uint32_t live;      /* lanes that have not left */
    uint32_t resume;    /* where the first of the lanes that are not active waits */
    uint32_t lane_at[LANES]; /* where each of those waits */
    int waits;          /* at a barrier */
    int moved;          /* the instruction itself said what is next */
    uint32_t syncs;     /* barriers of the warp or the program it has passed */
    uint32_t committed[LANES]; /* groups of copies */
    struct copy *copies;
    int copy_count, copy_room;
};

/* Who touched a byte of shared memory last, to see lanes of one warp that exchange it without a barrier. */
struct lane_use {
    uint32_t stamp; /* of lane_stamp() */
    uint32_t lanes;
};

struct machine {
    struct memory memory;
    const uint8_t *parameters;
    uint32_t grid[3], program[3];
    uint32_t warps, threads;
    int noise; /* approximations differ from the exact value */
    uint8_t *in_flight;            /* copies that will write each byte of shared memory */
    struct lane_use *lane_writes, *lane_reads;
    uint64_t executed;
};

#define UNUSED __attribute__((unused))
#define OPCODE_ARGUMENTS                                                                                               \
    UNUSED struct machine *m, UNUSED struct warp *w, UNUSED const struct instruction *i, UNUSED uint32_t active
typedef void (*opcode_function)(OPCODE_ARGUMENTS);

/* The warp, and between which of its barriers: what lanes must not have in common where they exchange a byte. */
static inline uint32_t lane_stamp(const struct warp *w)
{
    return (w->number + 1) << 26 | (w->syncs & 0x3ffffff);
}

static inline void *slot(const struct warp *w, int32_t operand)
{
    return w->registers + operand;
}

/* A statement for every active lane; the compiler makes vectors of the first form. */
#define EACH_LANE(...)                                                                                                 \
    if (active == ALL_LANES) {                                                                                         \
        _Pragma("GCC ivdep") for (int lane = 0; lane < LANES; lane++)                                                  \
        {                                                                                                              \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } else {                                                                                                           \
        for (int lane = 0; lane < LANES; lane++)                                                                       \
            if (active >> lane & 1) {                                                                                  \
                __VA_ARGS__                                                                                            \
            }                                                                                                          \
    }

#endif
