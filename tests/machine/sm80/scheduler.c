/* Programs one after the other, the warps of each in some order. */

enum order { FIRST_TO_LAST, LAST_TO_FIRST, EVERY_INSTRUCTION, RANDOM_SLICES };
enum status { FINISHED, LEFT_THE_CODE, TOO_LONG };

#define LONGEST_SLICE 40
#define MOST_INSTRUCTIONS 400000000u /* of a program: more is a loop without end */


/* Mirrored by machine.py. */
struct job {
    const struct instruction *code;
    uint32_t length;
    const struct extent *extents;
    uint32_t extent_count;
    const uint8_t *registers; /* constants, and the garbage that a warp begins with */
    uint32_t register_bytes;
    const uint8_t *parameters;
    uint32_t grid[3], warps, shared_bytes;
    uint32_t order, programs_reversed;
    uint32_t seed, poison; /* of random slices; of what shared memory holds at first */
    int32_t noise;
    uint32_t first, step;  /* programs that run: from ``first`` on, every ``step``-th */
    /* results */
    int32_t status;
    uint64_t instructions;
    uint32_t faults[FAULTS];
    char message[MESSAGE_BYTES];
};

static void step_warp(struct machine *m, struct warp *w, const struct instruction *code)
{
    const struct instruction *i = &code[w->at];
    uint32_t active = guarded(w, i, w->active);
    w->moved = 0;
    if (active || i->guard == NO_OPERAND || functions[i->function] == op_branch)
        functions[i->function](m, w, i, active);
    if (!w->moved)
        w->at++;
    if (w->live && w->at >= w->resume)
        regroup(w);
    m->executed++;
}

static uint32_t random_below(uint64_t *state, uint32_t limit)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((*state >> 33) % limit);
}

static int ready(const struct warp *w)
{
    return w->live && !w->waits;
}

/* The number of a warp that can run, and for how many instructions; -1 if none can. */
static int chosen_warp(const struct job *job, const struct warp *warps, uint32_t last, uint64_t *state, uint32_t *slice)
{
    uint32_t count = job->warps, start = 0;
    *slice = UINT32_MAX;
    if (job->order == EVERY_INSTRUCTION) {
        start = last + 1;
        *slice = 1;
    } else if (job->order == RANDOM_SLICES) {
        start = random_below(state, count);
        *slice = 1 + random_below(state, LONGEST_SLICE);
    }
    for (uint32_t k = 0; k < count; k++) {
        uint32_t warp = (job->order == LAST_TO_FIRST ? count - 1 - k : start + k) % count;
        if (ready(&warps[warp]))
            return (int)warp;
    }
    return -1;
}

/* All warps that have not left are at the barrier. Returns whether any was. */
static int release_barrier(struct machine *m, struct warp *warps)
{
    int waiting = 0;
    for (uint32_t k = 0; k < m->warps; k++) {
        waiting |= warps[k].waits;
        warps[k].waits = 0;
    }
    memory_barrier(&m->memory);
    return waiting;
}

static void begin_program(struct machine *m, struct warp *warps, const struct job *job, uint32_t program)
{
    m->program[0] = program % job->grid[0];
    m->program[1] = program / job->grid[0] % job->grid[1];
    m->program[2] = program / job->grid[0] / job->grid[1];
    memory_begin_program(&m->memory, program, job->poison);
    memset(m->in_flight, 0, job->shared_bytes);
    memset(m->lane_writes, 0, job->shared_bytes * sizeof *m->lane_writes);
    memset(m->lane_reads, 0, job->shared_bytes * sizeof *m->lane_reads);
    for (uint32_t k = 0; k < job->warps; k++) {
        struct warp *w = &warps[k];
        uint8_t *registers = w->registers;
        struct copy *copies = w->copies;
        int room = w->copy_room;
        *w = (struct warp){.registers = registers, .copies = copies, .copy_room = room, .number = k};
        memcpy(registers, job->registers, job->register_bytes);
        w->active = w->live = ALL_LANES;
        w->resume = UINT32_MAX;
    }
}

static enum status run_program(struct machine *m, struct warp *warps, const struct job *job, uint64_t *state)
{
    uint32_t last = job->warps - 1, slice;
    for (uint64_t limit = m->executed + MOST_INSTRUCTIONS; m->executed < limit;) {
        int chosen = chosen_warp(job, warps, last, state, &slice);
        if (chosen < 0) {
            if (!release_barrier(m, warps))
                return FINISHED; /* all have left */
            continue;
        }
        struct warp *w = &warps[chosen];
        while (slice-- && ready(w) && m->executed < limit) {
            if (w->at >= job->length)
                return LEFT_THE_CODE;
            step_warp(m, w, job->code);
        }
        last = (uint32_t)chosen;
    }
    return TOO_LONG;
}

static struct machine *new_machine(const struct job *job)
{
    struct machine *m = memory_allocate(sizeof *m);
    *m = (struct machine){.parameters = job->parameters, .warps = job->warps, .noise = job->noise};
    m->threads = job->warps * LANES;
    memcpy(m->grid, job->grid, sizeof m->grid);
    for (uint32_t k = 0; k < job->extent_count; k++)
        memory_add_global(&m->memory, job->extents[k].base, job->extents[k].size, job->extents[k].shadow);
    memory_set_shared(&m->memory, job->shared_bytes);
    m->in_flight = memory_allocate(job->shared_bytes);
    m->lane_writes = memory_allocate(job->shared_bytes * sizeof *m->lane_writes);
    m->lane_reads = memory_allocate(job->shared_bytes * sizeof *m->lane_reads);
    return m;
}

static void free_machine(struct machine *m)
{
    free(m->in_flight);
    free(m->lane_writes);
    free(m->lane_reads);
    memory_free(&m->memory);
    free(m);
}

static struct warp *new_warps(const struct job *job)
{
    struct warp *warps = memory_allocate(job->warps * sizeof *warps);
    for (uint32_t k = 0; k < job->warps; k++)
        warps[k].registers = memory_allocate(job->register_bytes);
    return warps;
}

static void free_warps(struct warp *warps, uint32_t count)
{
    for (uint32_t k = 0; k < count; k++) {
        free(warps[k].registers);
        free(warps[k].copies);
    }
    free(warps);
}

void run(struct job *job)
{
    struct machine *m = new_machine(job);
    struct warp *warps = new_warps(job);
    uint64_t state = job->seed;
    uint32_t programs = job->grid[0] * job->grid[1] * job->grid[2];
    for (uint32_t k = job->first; k < programs && job->status == FINISHED; k += job->step) {
        begin_program(m, warps, job, job->programs_reversed ? programs - 1 - k + job->first : k);
        job->status = run_program(m, warps, job, &state);
    }
    memcpy(job->faults, m->memory.faults, sizeof job->faults);
    memcpy(job->message, m->memory.message, sizeof job->message);
    job->instructions = m->executed;
    free_warps(warps, job->warps);
    free_machine(m);
}
