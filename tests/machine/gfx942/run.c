/* A launch: its programs one after the other, the waves of each in an order that the caller chooses. */

enum order { FIRST_TO_LAST, LAST_TO_FIRST, EVERY_INSTRUCTION, RANDOM_SLICES };
enum status { FINISHED, PC_OUT_OF_CODE, TOO_LONG };

#define MOST_INSTRUCTIONS 400000000u /* of a program: more is a loop without end */
#define LONGEST_SLICE 40


/* Mirrored by machine.py. */
struct job {
    const struct instruction *code;
    i32 length;
    const struct extent *extents;
    i32 extent_count;
    u32 grid[3];
    i32 waves;
    u32 shared_bytes;
    const u32 *user; /* first scalar registers: address of the arguments, and arguments loaded ahead */
    i32 user_count;
    i32 group_id[3]; /* scalar registers of the program's number along each axis, or -1 */
    i32 order, programs_reversed;
    u32 seed, poison; /* of random slices; of what registers and LDS hold at first */
    i32 noise;
    u32 first, step; /* programs that run: from ``first`` on, every ``step``-th */
    /* results */
    i32 status, line;
    u64 instructions;
    u32 faults[FAULTS];
    char message[MESSAGE_BYTES];
};

struct scheduler {
    struct job *job;
    struct memory *memory;
    struct wave *waves;
    u64 random, noise;
    int current;
};

static u32 next_random(struct scheduler *s)
{
    s->random = s->random * 6364136223846793005u + 1442695040888963407u;
    return (u32)(s->random >> 33);
}

static void begin_wave(struct scheduler *s, struct wave *w, u32 id, u32 program)
{
    const struct job *job = s->job;
    u32 poison = job->poison;
    w->memory = s->memory;
    w->noise = job->noise ? &s->noise : NULL;
    w->id = id;
    w->pc = w->done = w->at_barrier = 0;
    w->exec = EVERY_LANE;
    w->scc = poison & 1;
    w->m0 = poison;
    for (u32 reg = 0; reg < REGISTERS; reg++)
        for (u32 lane = 0; lane < LANES; lane++)
            w->v[reg][lane] = poison + reg * LANES + lane;
    for (u32 reg = 0; reg < 128; reg++)
        w->s[reg] = poison + reg;
    memcpy(w->s, job->user, (size_t)job->user_count * 4);
    u32 place[3] = {program % job->grid[0], program / job->grid[0] % job->grid[1], program / job->grid[0] / job->grid[1]};
    for (int axis = 0; axis < 3; axis++)
        if (job->group_id[axis] >= 0)
            w->s[job->group_id[axis]] = place[axis];
    for (u32 lane = 0; lane < LANES; lane++)
        w->v[0][lane] = id * LANES + lane; /* number of the work-item */
}

static int is_ready(const struct wave *w) { return !w->done && !w->at_barrier; }

/* The wave that runs next and for how many instructions, or -1 when all have ended or wait. */
static int choose(struct scheduler *s, u32 *slice)
{
    int count = s->job->waves, ready = 0;
    for (int k = 0; k < count; k++)
        ready += is_ready(&s->waves[k]);
    if (!ready)
        return -1;
    *slice = UINT32_MAX;
    int k = 0, step = 1;
    switch (s->job->order) {
    case LAST_TO_FIRST:
        k = count - 1;
        step = -1;
        break;
    case EVERY_INSTRUCTION:
        k = (s->current + 1) % count;
        *slice = 1;
        break;
    case RANDOM_SLICES:
        k = (int)(next_random(s) % (u32)count);
        *slice = 1 + next_random(s) % LONGEST_SLICE;
        break;
    }
    while (!is_ready(&s->waves[k]))
        k = (k + step + count) % count;
    return s->current = k;
}

/* SDWA: the part of the destination that is written, the rest 0 or as it was. */
static void merge_selection(struct wave *w, const struct instruction *in, const u32 *before)
{
    int selection = in->destination_selection;
    u32 width = selection >= WORD_0 ? 16 : 8, mask = ((u32)1 << width) - 1;
    u32 shift = selection >= WORD_0 ? 16 * (u32)(selection - WORD_0) : 8 * (u32)(selection - BYTE_0);
    u32 *destination = w->v[in->operand[0].reg];
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(w->exec, lane)) {
            u32 kept = in->flags & PRESERVE ? before[lane] & ~(mask << shift) : 0;
            destination[lane] = kept | (destination[lane] & mask) << shift;
        }
}

static enum status run_slice(struct scheduler *s, struct wave *w, u32 slice, u64 *executed)
{
    struct job *job = s->job;
    u32 before[LANES];
    for (; slice > 0 && is_ready(w); slice--) {
        if (w->pc < 0 || w->pc >= job->length)
            return PC_OUT_OF_CODE;
        const struct instruction *in = &job->code[w->pc];
        int merges = in->flags & SDWA && in->destination_selection != WHOLE;
        if (merges)
            memcpy(before, w->v[in->operand[0].reg], sizeof before);
        w->next = w->pc + 1;
        operations[in->opcode](w, in);
        if (merges)
            merge_selection(w, in, before);
        w->pc = w->next;
        job->line = in->line;
        if (++*executed > MOST_INSTRUCTIONS)
            return TOO_LONG;
    }
    return FINISHED;
}

static enum status run_program(struct scheduler *s, u32 program)
{
    struct job *job = s->job;
    u64 executed = 0;
    enum status status = FINISHED;
    memory_begin_program(s->memory, program, job->poison);
    for (int k = 0; k < job->waves; k++)
        begin_wave(s, &s->waves[k], (u32)k, program);
    s->current = -1;
    while (status == FINISHED) {
        u32 slice;
        int k = choose(s, &slice);
        if (k >= 0) {
            status = run_slice(s, &s->waves[k], slice, &executed);
            continue;
        }
        int waiting = 0;
        for (k = 0; k < job->waves; k++) {
            waiting += s->waves[k].at_barrier;
            s->waves[k].at_barrier = 0;
        }
        if (!waiting)
            break; /* all have ended */
        memory_barrier(s->memory);
    }
    job->instructions += executed;
    return status;
}

void run(struct job *job)
{
    struct memory *memory = memory_allocate(sizeof *memory);
    struct scheduler s = {.job = job, .memory = memory, .random = job->seed, .noise = job->seed};
    u32 programs = job->grid[0] * job->grid[1] * job->grid[2];
    s.waves = memory_allocate((size_t)job->waves * sizeof *s.waves);
    memory->needs_waits = 1;
    for (int k = 0; k < job->extent_count; k++)
        memory_add_global(memory, job->extents[k].base, job->extents[k].size, job->extents[k].shadow);
    memory_set_shared(memory, job->shared_bytes);
    for (u32 k = job->first; k < programs && job->status == FINISHED; k += job->step)
        job->status = run_program(&s, job->programs_reversed ? programs - 1 - k + job->first : k);
    memcpy(job->faults, memory->faults, sizeof job->faults);
    memcpy(job->message, memory->message, sizeof job->message);
    memory_free(memory);
    free(memory);
    free(s.waves);
}
