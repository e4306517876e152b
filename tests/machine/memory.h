/* Memory of a launch with a shadow for every byte: bounds, initialisation, and races.
 *
 * A program (work-group, CTA) has up to 64 agents (waves, warps), which run one at a time in some order, so that races
 * are seen by what is known of each byte, not by chance:
 *
 * - Barriers cut the run of a program into epochs. In one epoch, a byte that one agent writes may not be read or
 *   written by another. Writes of equal values are counted as benign, not reported.
 * - A write is complete once its agent has waited for it. A later reader needs the writer's wait before the barrier
 *   between them, if the machine says that waits matter (``needs_waits``: gfx942; PTX's bar.sync waits by itself).
 * - A byte that one program writes, no other program may read or write (but atomically).
 *
 * Included by the C text of each machine; all functions are static.
 */
#ifndef MACHINE_MEMORY_H
#define MACHINE_MEMORY_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_AGENTS 64
#define MOST_REGIONS 64
#define MESSAGE_BYTES 4096
#define MESSAGES_A_FAULT 4
#define GARBAGE 0x7fc0dead /* what a load out of bounds returns: a NaN, and no likely index */

enum fault {
    READ_OUT_OF_BOUNDS,
    WRITE_OUT_OF_BOUNDS,
    UNINITIALISED_READ,
    READ_WRITE_RACE,      /* one agent reads what another writes, with no barrier between */
    WRITE_WRITE_RACE,     /* two agents write different values, with no barrier between */
    READ_BEFORE_COMPLETE, /* a barrier lies between, but the writer did not wait for its write */
    PROGRAMS_SHARE,       /* two programs touch one byte, and at least one writes it */
    MISALIGNED,           /* an address that the instruction cannot take */
    LANE_RACE,            /* lanes of one warp exchange a byte of shared memory without a barrier (sm_80) */
    COPY_IN_FLIGHT,       /* shared memory touched before a copy into it was waited for (sm_80) */
    DIVERGENT,            /* not all lanes are at an instruction that needs all (sm_80) */
    BENIGN_WRITES,        /* equal values: counted, no error */
    FAULTS
};

static const char *const fault_names[FAULTS] = {
    "read out of bounds", "write out of bounds",  "uninitialised read", "read/write race", "write/write race",
    "read before write is complete", "programs share a byte", "misaligned", "race of lanes",
    "copy not waited for", "divergent lanes", "benign writes",
};

enum space { GLOBAL, SHARED, SPACES };

struct last_write {
    uint32_t program; /* its number plus one; 0: never written */
    uint32_t epoch;
    uint32_t issue; /* the agent's count of memory instructions in this space */
    uint32_t agent;
};

struct last_reads {
    uint32_t program; /* as above */
    uint32_t epoch;
    uint64_t agents; /* a bit for each that read it in this epoch; all bits: several programs did */
};

#define SEVERAL_PROGRAMS (~(uint64_t)0)

/* Memory that a launch may touch, as the caller names it. */
struct extent {
    uint64_t base, size;
    int32_t shadow; /* 0: bounds alone */
};

struct region {
    uint64_t base, size;
    uint8_t *data; /* where address ``base`` is here */
    struct last_write *writes; /* NULL: bounds alone are checked */
    struct last_reads *reads;
    uint8_t *initialised; /* NULL: all of it is */
};

struct agent {
    uint32_t issued[SPACES];
    uint32_t complete[SPACES];            /* instructions that it has waited for */
    uint32_t complete_at_barrier[SPACES]; /* the same when the last barrier was passed */
};

struct memory {
    struct region global[MOST_REGIONS];
    int regions;
    struct region shared;
    int needs_waits;
    uint32_t program, epoch;
    struct agent agents[MOST_AGENTS];
    uint32_t faults[FAULTS];
    char message[MESSAGE_BYTES];
    int message_length;
};

/* Who accesses: for the shadow, and for messages. */
struct access {
    uint32_t agent;
    int32_t lane;
    int32_t line; /* of the assembly text */
};

static void memory_fault(struct memory *m, struct access who, enum fault fault, enum space space, uint64_t address)
{
    if (m->faults[fault]++ >= MESSAGES_A_FAULT || m->message_length > MESSAGE_BYTES - 256)
        return;
    m->message_length += snprintf(
        m->message + m->message_length, 256, "%s: %s memory, line %d, program %u, wave %u, lane %d, address 0x%llx\n",
        fault_names[fault], space == SHARED ? "shared" : "global", who.line, m->program, who.agent, who.lane,
        (unsigned long long)address);
}

static void *memory_allocate(size_t bytes)
{
    void *new = calloc(bytes ? bytes : 1, 1);
    if (!new) {
        fputs("no memory for the shadow\n", stderr);
        abort();
    }
    return new;
}

/* Add an operand at its real address. Without ``shadow`` its bounds alone are checked. */
static void memory_add_global(struct memory *m, uint64_t base, uint64_t size, int shadow)
{
    struct region *r = &m->global[m->regions++];
    *r = (struct region){.base = base, .size = size, .data = (uint8_t *)(uintptr_t)base};
    if (shadow) {
        r->writes = memory_allocate(size * sizeof *r->writes);
        r->reads = memory_allocate(size * sizeof *r->reads);
    }
}

/* Shared memory starts at address 0. */
static void memory_set_shared(struct memory *m, uint64_t size)
{
    struct region *r = &m->shared;
    *r = (struct region){.size = size, .data = memory_allocate(size)};
    r->writes = memory_allocate(size * sizeof *r->writes);
    r->reads = memory_allocate(size * sizeof *r->reads);
    r->initialised = memory_allocate(size);
}

static void memory_free(struct memory *m)
{
    for (int k = 0; k < m->regions; k++) {
        free(m->global[k].writes);
        free(m->global[k].reads);
    }
    free(m->shared.data);
    free(m->shared.writes);
    free(m->shared.reads);
    free(m->shared.initialised);
}

/* A program begins: shared memory holds garbage that depends on ``poison``. */
static void memory_begin_program(struct memory *m, uint32_t program, uint32_t poison)
{
    struct region *r = &m->shared;
    m->program = program;
    m->epoch = 0;
    memset(m->agents, 0, sizeof m->agents);
    memset(r->writes, 0, r->size * sizeof *r->writes);
    memset(r->reads, 0, r->size * sizeof *r->reads);
    memset(r->initialised, 0, r->size);
    for (uint64_t k = 0; k + 4 <= r->size; k += 4) {
        uint32_t garbage = poison + 7 * (uint32_t)k / 4;
        memcpy(r->data + k, &garbage, 4);
    }
}

/* All agents of the program have arrived. */
static void memory_barrier(struct memory *m)
{
    m->epoch++;
    for (int k = 0; k < MOST_AGENTS; k++)
        memcpy(m->agents[k].complete_at_barrier, m->agents[k].complete, sizeof m->agents[k].complete);
}

/* An agent issues a memory instruction. */
static inline void memory_issue(struct memory *m, uint32_t agent, enum space space)
{
    m->agents[agent].issued[space]++;
}

/* An agent waits until at most ``pending`` of its memory instructions are not complete. */
static inline void memory_wait(struct memory *m, uint32_t agent, enum space space, uint32_t pending)
{
    struct agent *a = &m->agents[agent];
    uint32_t complete = a->issued[space] > pending ? a->issued[space] - pending : 0;
    if (complete > a->complete[space])
        a->complete[space] = complete;
}

static void check_read(struct memory *m, struct access who, enum space space, struct region *r, uint64_t at,
                       uint32_t bytes)
{
    uint32_t program = m->program + 1;
    uint64_t bit = (uint64_t)1 << who.agent;
    for (uint64_t k = at; k < at + bytes; k++) {
        struct last_write *w = &r->writes[k];
        if (w->program && w->program != program)
            memory_fault(m, who, PROGRAMS_SHARE, space, r->base + k);
        else if (w->program && w->agent != who.agent) {
            if (w->epoch == m->epoch)
                memory_fault(m, who, READ_WRITE_RACE, space, r->base + k);
            else if (m->needs_waits && m->agents[w->agent].complete_at_barrier[space] < w->issue)
                memory_fault(m, who, READ_BEFORE_COMPLETE, space, r->base + k);
        }
        struct last_reads *reads = &r->reads[k];
        if (reads->program && reads->program != program)
            reads->agents = SEVERAL_PROGRAMS;
        else if (reads->agents != SEVERAL_PROGRAMS)
            reads->agents = reads->epoch == m->epoch ? reads->agents | bit : bit;
        reads->program = program;
        reads->epoch = m->epoch;
    }
}

static void check_write(struct memory *m, struct access who, enum space space, struct region *r, uint64_t at,
                        uint32_t bytes, const uint8_t *new)
{
    uint32_t program = m->program + 1;
    uint64_t bit = (uint64_t)1 << who.agent;
    for (uint64_t k = at; k < at + bytes; k++) {
        int changes = r->data[k] != *new++;
        struct last_reads *reads = &r->reads[k];
        if (reads->program && (reads->program != program || reads->agents == SEVERAL_PROGRAMS))
            memory_fault(m, who, PROGRAMS_SHARE, space, r->base + k);
        else if (reads->program && reads->epoch == m->epoch && (reads->agents & ~bit))
            memory_fault(m, who, changes ? READ_WRITE_RACE : BENIGN_WRITES, space, r->base + k);
        struct last_write *w = &r->writes[k];
        if (w->program && w->program != program)
            memory_fault(m, who, changes ? PROGRAMS_SHARE : BENIGN_WRITES, space, r->base + k);
        else if (w->program && w->agent != who.agent && w->epoch == m->epoch)
            memory_fault(m, who, changes ? WRITE_WRITE_RACE : BENIGN_WRITES, space, r->base + k);
        *w = (struct last_write){program, m->epoch, m->agents[who.agent].issued[space], who.agent};
    }
}

/* The region that holds all the bytes, or NULL after a report. */
static struct region *memory_region(struct memory *m, struct access who, enum space space, uint64_t address,
                                    uint32_t bytes, int writes)
{
    if (space == SHARED) {
        if (address + bytes <= m->shared.size)
            return &m->shared;
    } else {
        for (int k = 0; k < m->regions; k++) {
            struct region *r = &m->global[k];
            if (address >= r->base && address + bytes <= r->base + r->size)
                return r;
        }
    }
    memory_fault(m, who, writes ? WRITE_OUT_OF_BOUNDS : READ_OUT_OF_BOUNDS, space, address);
    return NULL;
}

/* Load bytes (at most 16) with all checks; out of bounds, garbage. */
static void memory_load(struct memory *m, struct access who, enum space space, uint64_t address, uint32_t bytes,
                        void *to)
{
    struct region *r = memory_region(m, who, space, address, bytes, 0);
    if (!r) {
        const uint32_t garbage[4] = {GARBAGE, GARBAGE, GARBAGE, GARBAGE};
        memcpy(to, garbage, bytes);
        return;
    }
    uint64_t at = address - r->base;
    if (r->initialised && memchr(r->initialised + at, 0, bytes))
        memory_fault(m, who, UNINITIALISED_READ, space, address);
    if (r->writes)
        check_read(m, who, space, r, at, bytes);
    memcpy(to, r->data + at, bytes);
}

/* Store bytes with all checks; out of bounds, nowhere. */
static void memory_store(struct memory *m, struct access who, enum space space, uint64_t address, uint32_t bytes,
                         const void *from)
{
    struct region *r = memory_region(m, who, space, address, bytes, 1);
    if (!r)
        return;
    uint64_t at = address - r->base;
    if (r->writes)
        check_write(m, who, space, r, at, bytes, from);
    if (r->initialised)
        memset(r->initialised + at, 1, bytes);
    memcpy(r->data + at, from, bytes);
}

/* Where an atomic operation works, or NULL after a report. Atomics race with nothing. */
static uint8_t *memory_atomic(struct memory *m, struct access who, enum space space, uint64_t address, uint32_t bytes)
{
    struct region *r = memory_region(m, who, space, address, bytes, 1);
    return r ? r->data + (address - r->base) : NULL;
}

#endif
