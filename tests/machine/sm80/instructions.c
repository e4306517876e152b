/* Instructions written by hand: control, memory, and those in which lanes work together. Sections: PTX ISA. */
#include "sm80/machine.h"

static uint32_t guarded(const struct warp *w, const struct instruction *i, uint32_t active)
{
    if (i->guard == NO_OPERAND)
        return active;
    const uint32_t *guard = slot(w, i->guard);
    uint32_t on = 0;
    for (int lane = 0; lane < LANES; lane++)
        on |= (uint32_t)(guard[lane] != 0) << lane;
    return active & (i->negated ? ~on : on);
}

static struct access who(const struct warp *w, const struct instruction *i, int lane)
{
    return (struct access){.agent = w->number, .lane = lane, .line = i->line};
}

/* .sync.aligned, and member masks: all lanes that have not left must be here. */
static void require_all(struct machine *m, const struct warp *w, const struct instruction *i, uint32_t active)
{
    if (active != w->live)
        memory_fault(&m->memory, who(w, i, __builtin_ctz(w->live & ~active)), DIVERGENT, SHARED, 0);
}

/* ---- Control ---- */

/* Lanes that part go on where the code is lowest: they meet again at the first common instruction, as Triton's code,
 * whose loops end at their last instruction, always has one. */
static void regroup(struct warp *w)
{
    for (int lane = 0; lane < LANES; lane++)
        if (w->active >> lane & 1)
            w->lane_at[lane] = w->at;
    uint32_t first = UINT32_MAX;
    for (int lane = 0; lane < LANES; lane++)
        if (w->live >> lane & 1 && w->lane_at[lane] < first)
            first = w->lane_at[lane];
    w->at = first;
    w->active = 0;
    w->resume = UINT32_MAX;
    for (int lane = 0; lane < LANES; lane++) {
        if (!(w->live >> lane & 1))
            continue;
        if (w->lane_at[lane] == first)
            w->active |= 1u << lane;
        else if (w->lane_at[lane] < w->resume)
            w->resume = w->lane_at[lane];
    }
}

static void op_branch(OPCODE_ARGUMENTS)
{
    w->moved = 1;
    if (active == w->active) {
        w->at = i->target;
    } else if (active == 0) {
        w->at++;
    } else {
        for (int lane = 0; lane < LANES; lane++)
            if (active >> lane & 1)
                w->lane_at[lane] = i->target;
        w->active &= ~active;
        w->at++;
        regroup(w);
    }
}

static void op_exit(OPCODE_ARGUMENTS)
{
    w->live &= ~active;
    w->active &= ~active;
    w->at++;
    w->moved = 1;
    if (w->live)
        regroup(w);
}

static void op_barrier(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    w->waits = 1;
    w->syncs++;
}

/* bar.warp.sync orders memory accesses among the lanes of the warp. */
static void op_warp_barrier(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    w->syncs++;
}

static void op_nothing(OPCODE_ARGUMENTS)
{
}

/* ---- Moves that are not lane by lane of one width ---- */

static void put(const struct warp *w, int32_t operand, int lane, uint32_t bytes, uint64_t value)
{
    if (operand == NO_OPERAND)
        return;
    if (bytes == 8)
        ((uint64_t *)slot(w, operand))[lane] = value;
    else
        ((uint32_t *)slot(w, operand))[lane] = value;
}

static uint64_t get(const struct warp *w, int32_t operand, int lane, uint32_t bytes)
{
    uint64_t mask = bytes >= 8 ? ~(uint64_t)0 : ((uint64_t)1 << (8 * bytes)) - 1;
    return mask & (bytes == 8 ? ((uint64_t *)slot(w, operand))[lane] : ((uint32_t *)slot(w, operand))[lane]);
}

/* A loaded value for a register that may be wider than it: with its sign repeated above, or zeros. */
static uint64_t extended(uint64_t value, uint32_t bytes, int with_sign)
{
    int unused = 64 - 8 * (int)bytes;
    return with_sign ? (uint64_t)((int64_t)(value << unused) >> unused) : value;
}

/* ld.param: the same value in every lane. */
static void op_parameter(OPCODE_ARGUMENTS)
{
    uint64_t value = 0;
    memcpy(&value, m->parameters + i->offset, i->bytes);
    value = extended(value, i->bytes, i->kind);
    EACH_LANE(put(w, i->operand[0], lane, i->count, value);)
}

/* Mirrors SPECIAL_REGISTERS of program.py. */
enum special { TID_X, LANEID, WARPID, NTID_X, CTAID_X, CTAID_Y, CTAID_Z, NCTAID_X, NCTAID_Y, NCTAID_Z, ZERO };

static uint32_t special_value(const struct machine *m, const struct warp *w, enum special kind, int lane)
{
    switch (kind) {
    case TID_X: return w->number * LANES + lane;
    case LANEID: return lane;
    case WARPID: return w->number;
    case NTID_X: return m->threads;
    case CTAID_X: case CTAID_Y: case CTAID_Z: return m->program[kind - CTAID_X];
    case NCTAID_X: case NCTAID_Y: case NCTAID_Z: return m->grid[kind - NCTAID_X];
    default: return 0;
    }
}

static void op_special(OPCODE_ARGUMENTS)
{
    uint32_t *to = slot(w, i->operand[0]);
    EACH_LANE(to[lane] = special_value(m, w, i->kind, lane);)
}

/* mov.b64 d, {low, high}: ``count`` parts of ``bytes`` each. */
static void op_pack(OPCODE_ARGUMENTS)
{
    EACH_LANE(
        uint64_t value = 0;
        for (int part = 0; part < i->count; part++)
            value |= get(w, i->operand[1 + part], lane, i->bytes) << (8 * i->bytes * part);
        put(w, i->operand[0], lane, i->count * i->bytes, value);)
}

/* mov.b64 {low, high}, a. */
static void op_unpack(OPCODE_ARGUMENTS)
{
    uint64_t mask = ((uint64_t)1 << (8 * i->bytes)) - 1;
    EACH_LANE(
        uint64_t value = get(w, i->operand[i->count], lane, i->count * i->bytes);
        for (int part = 0; part < i->count; part++)
            put(w, i->operand[part], lane, i->bytes, value >> (8 * i->bytes * part) & mask);)
}

/* ---- Memory ---- */

static uint64_t address_of(const struct warp *w, const struct instruction *i, int32_t operand, int lane)
{
    uint32_t bytes = i->space == GLOBAL ? 8 : 4;
    return get(w, operand, lane, bytes) + i->offset;
}

static int in_shared(const struct machine *m, uint64_t address, uint32_t bytes)
{
    return address + bytes <= m->memory.shared.size;
}

/* Shared memory is also looked at for lanes of one warp, and for copies that nobody has waited for. ``new`` is what a
 * write stores, before it does, and NULL for a read. A lane may write what is there already: values that a layout holds
 * in several lanes. */
static void check_lanes(struct machine *m, const struct warp *w, struct access by, uint64_t address, uint32_t bytes,
                        const uint8_t *new)
{
    uint32_t stamp = lane_stamp(w), lane = 1u << by.lane;
    for (uint64_t k = address; k < address + bytes; k++) {
        struct lane_use *written = &m->lane_writes[k], *read = &m->lane_reads[k];
        int changes = new && new[k - address] != m->memory.shared.data[k];
        if (m->in_flight[k])
            memory_fault(&m->memory, by, COPY_IN_FLIGHT, SHARED, k);
        if ((changes || !new) && written->stamp == stamp && written->lanes & ~lane)
            memory_fault(&m->memory, by, LANE_RACE, SHARED, k);
        if (changes && read->stamp == stamp && read->lanes & ~lane)
            memory_fault(&m->memory, by, LANE_RACE, SHARED, k);
        struct lane_use *use = new ? written : read;
        use->lanes = use->stamp == stamp && !changes ? use->lanes | lane : lane;
        use->stamp = stamp;
    }
}

static void load_bytes(struct machine *m, const struct warp *w, struct access by, enum space space, uint64_t address,
                       uint32_t bytes, void *to)
{
    memory_load(&m->memory, by, space, address, bytes, to);
    if (space == SHARED && in_shared(m, address, bytes))
        check_lanes(m, w, by, address, bytes, NULL);
}

static void check_alignment(struct machine *m, struct access by, enum space space, uint64_t address, uint32_t bytes)
{
    if (address % bytes)
        memory_fault(&m->memory, by, MISALIGNED, space, address);
}

/* Loads only the bytes that are used: of a vector of padding and values, padding may not be initialised. */
static void load_used(struct machine *m, const struct warp *w, const struct instruction *i, int lane,
                      uint64_t address, uint8_t *to)
{
    struct access by = who(w, i, lane);
    uint32_t bytes = i->count * i->bytes;
    check_alignment(m, by, i->space, address, bytes);
    if (i->used == UINT32_MAX) {
        load_bytes(m, w, by, i->space, address, bytes, to);
        return;
    }
    memory_region(&m->memory, by, i->space, address, bytes, 0);
    for (uint32_t k = 0; k < bytes; k++)
        if (i->used >> k & 1)
            load_bytes(m, w, by, i->space, address + k, 1, to + k);
}

static void op_load(OPCODE_ARGUMENTS)
{
    for (int lane = 0; lane < LANES; lane++) {
        if (!(active >> lane & 1))
            continue;
        uint32_t garbage[4] = {GARBAGE, GARBAGE, GARBAGE, GARBAGE};
        uint8_t *data = (uint8_t *)garbage;
        load_used(m, w, i, lane, address_of(w, i, i->operand[i->count], lane), data);
        for (int entry = 0; entry < i->count; entry++) {
            uint64_t value = 0;
            memcpy(&value, data + entry * i->bytes, i->bytes);
            put(w, i->operand[entry], lane, i->bytes, extended(value, i->bytes, i->kind));
        }
    }
}

static void op_store(OPCODE_ARGUMENTS)
{
    uint32_t bytes = i->count * i->bytes;
    for (int lane = 0; lane < LANES; lane++) {
        if (!(active >> lane & 1))
            continue;
        uint8_t data[16];
        for (int entry = 0; entry < i->count; entry++) {
            uint64_t value = get(w, i->operand[1 + entry], lane, i->bytes);
            memcpy(data + entry * i->bytes, &value, i->bytes);
        }
        struct access by = who(w, i, lane);
        uint64_t address = address_of(w, i, i->operand[0], lane);
        check_alignment(m, by, i->space, address, bytes);
        if (i->space == SHARED && in_shared(m, address, bytes))
            check_lanes(m, w, by, address, bytes, data);
        memory_store(&m->memory, by, i->space, address, bytes, data);
    }
}

/* Mirrors ATOMIC_KINDS of program.py. */
enum atomic_kind {
    ADD, ADD_F32, ADD_F64,
    MIN_SIGNED, MIN_UNSIGNED, MAX_SIGNED, MAX_UNSIGNED,
    AND, OR, XOR, EXCHANGE, COMPARE,
};

static uint64_t atomic_result(enum atomic_kind kind, uint64_t old, uint64_t a, uint64_t b, uint32_t bytes)
{
    int unused = 64 - 8 * (int)bytes;
    int64_t signed_old = (int64_t)(old << unused) >> unused, signed_a = (int64_t)(a << unused) >> unused;
    double old_f64, a_f64;
    memcpy(&old_f64, &old, 8);
    memcpy(&a_f64, &a, 8);
    switch (kind) {
    case ADD: return old + a;
    case ADD_F32: return bits_of(float_of((uint32_t)old) + float_of((uint32_t)a));
    case ADD_F64:
        old_f64 += a_f64;
        memcpy(&old, &old_f64, 8);
        return old;
    case MIN_SIGNED: return signed_a < signed_old ? a : old;
    case MIN_UNSIGNED: return a < old ? a : old;
    case MAX_SIGNED: return signed_a > signed_old ? a : old;
    case MAX_UNSIGNED: return a > old ? a : old;
    case AND: return old & a;
    case OR: return old | a;
    case XOR: return old ^ a;
    case EXCHANGE: return a;
    case COMPARE: return old == a ? b : old;
    }
    return old;
}

/* atom and red, one lane after the other; operand 0 is where the old value goes. */
static void op_atomic(OPCODE_ARGUMENTS)
{
    for (int lane = 0; lane < LANES; lane++) {
        if (!(active >> lane & 1))
            continue;
        struct access by = who(w, i, lane);
        uint64_t address = address_of(w, i, i->operand[1], lane), old = GARBAGE;
        check_alignment(m, by, i->space, address, i->bytes);
        uint8_t *at = memory_atomic(&m->memory, by, i->space, address, i->bytes);
        if (at) {
            old = 0;
            memcpy(&old, at, i->bytes);
            uint64_t a = get(w, i->operand[2], lane, i->bytes);
            uint64_t b = i->kind == COMPARE ? get(w, i->operand[3], lane, i->bytes) : 0;
            uint64_t new = atomic_result(i->kind, old, a, b, i->bytes);
            memcpy(at, &new, i->bytes);
        }
        put(w, i->operand[0], lane, i->bytes, old);
    }
}

/* ---- cp.async ---- */

static struct copy *new_copy(struct warp *w)
{
    if (w->copy_count == w->copy_room) {
        w->copy_room = w->copy_room ? 2 * w->copy_room : 256;
        w->copies = realloc(w->copies, w->copy_room * sizeof *w->copies);
        if (!w->copies)
            abort();
    }
    return &w->copies[w->copy_count++];
}

/* A copy may land at any time until its group is waited for. It is checked as a write when it is issued and when it
 * lands; in between, nobody may touch the bytes. Here it lands as late as it can, so that a missing wait is seen. */
static void op_copy(OPCODE_ARGUMENTS)
{
    for (int lane = 0; lane < LANES; lane++) {
        if (!(active >> lane & 1))
            continue;
        struct access by = who(w, i, lane);
        uint32_t bytes = i->bytes, given = bytes;
        if (i->operand[2] != NO_OPERAND) /* src-size: the rest becomes zeros */
            given = get(w, i->operand[2], lane, 4);
        uint64_t to = get(w, i->operand[0], lane, 4) + i->offset;
        uint64_t from = get(w, i->operand[1], lane, 8) + i->second_offset;
        check_alignment(m, by, SHARED, to, bytes);
        check_alignment(m, by, GLOBAL, from, bytes);
        struct region *r = memory_region(&m->memory, by, SHARED, to, bytes, 1);
        if (!r)
            continue;
        struct copy *c = new_copy(w);
        *c = (struct copy){.group = w->committed[lane], .lane = lane, .line = i->line, .bytes = bytes, .to = to};
        if (given)
            memory_load(&m->memory, by, GLOBAL, from, given < bytes ? given : bytes, c->data);
        check_lanes(m, w, by, to, bytes, c->data);
        check_write(&m->memory, by, SHARED, r, to, bytes, c->data);
        for (uint32_t k = 0; k < bytes; k++)
            m->in_flight[to + k]++;
    }
}

static void op_commit_copies(OPCODE_ARGUMENTS)
{
    EACH_LANE(w->committed[lane]++;)
}

static void land(struct machine *m, struct warp *w, const struct copy *c)
{
    struct access by = {.agent = w->number, .lane = c->lane, .line = c->line};
    for (uint32_t k = 0; k < c->bytes; k++)
        m->in_flight[c->to + k]--;
    check_lanes(m, w, by, c->to, c->bytes, c->data);
    memory_store(&m->memory, by, SHARED, c->to, c->bytes, c->data);
}

/* cp.async.wait_group N: all but the N groups committed last have landed. */
static void op_wait_for_copies(OPCODE_ARGUMENTS)
{
    int left = 0;
    for (int k = 0; k < w->copy_count; k++) {
        struct copy *c = &w->copies[k];
        int covered = (int64_t)c->group < (int64_t)w->committed[c->lane] - i->kind;
        if (covered && active >> c->lane & 1)
            land(m, w, c);
        else
            w->copies[left++] = *c;
    }
    w->copy_count = left;
}

/* ---- Lanes together ---- */

enum shuffle_kind { UP, DOWN, BUTTERFLY, INDEX };

/* shfl.sync, as the pseudocode of its section. */
static int source_lane(enum shuffle_kind kind, int lane, uint32_t b, uint32_t c)
{
    int segment = c >> 8 & 31, clamp = c & 31, distance = b & 31;
    int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    int from;
    switch (kind) {
    case UP:
        from = lane - distance;
        return from >= most ? from : lane;
    case DOWN: from = lane + distance; break;
    case BUTTERFLY: from = lane ^ distance; break;
    default: from = least | (distance & ~segment); break;
    }
    return from <= most ? from : lane;
}

static void op_shuffle(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    const uint32_t *values = slot(w, i->operand[1]), *b = slot(w, i->operand[2]), *c = slot(w, i->operand[3]);
    uint32_t result[LANES];
    EACH_LANE(result[lane] = values[source_lane(i->kind, lane, b[lane], c[lane])];)
    uint32_t *to = slot(w, i->operand[0]);
    EACH_LANE(to[lane] = result[lane];)
}

static void op_reduce(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    const uint32_t *values = slot(w, i->operand[1]);
    uint64_t result = 0;
    int first = 1;
    EACH_LANE(result = first ? values[lane] : atomic_result(i->kind, result, values[lane], 0, 4); first = 0;)
    uint32_t *to = slot(w, i->operand[0]);
    EACH_LANE(to[lane] = result;)
}

enum vote_kind { ALL, ANY, UNIFORM, BALLOT };

static void op_vote(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    const uint32_t *values = slot(w, i->operand[1]);
    uint32_t yes = 0;
    EACH_LANE(yes |= (uint32_t)(values[lane] != 0) << lane;)
    uint32_t results[] = {yes == active, yes != 0, yes == active || yes == 0, yes};
    uint32_t *to = slot(w, i->operand[0]);
    EACH_LANE(to[lane] = results[i->kind];)
}

/* ldmatrix: lanes 8 k .. 8 k + 7 hold the addresses of the rows of matrix k, 8 entries of 16 bits each; lane t receives
 * entries 2 (t mod 4) and the next of row t / 4, or with .trans of column t / 4. */
static void op_load_matrix(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    uint16_t matrices[4][8][8];
    for (int row = 0; row < 8 * i->count; row++) {
        uint64_t address = get(w, i->operand[i->count], row, 4) + i->offset;
        check_alignment(m, who(w, i, row), SHARED, address, 16);
        load_bytes(m, w, who(w, i, row), SHARED, address, 16, matrices[row / 8][row % 8]);
    }
    for (int k = 0; k < i->count; k++)
        for (int lane = 0; lane < LANES; lane++) {
            int major = lane / 4, minor = 2 * (lane % 4);
            uint32_t low = i->kind ? matrices[k][minor][major] : matrices[k][major][minor];
            uint32_t high = i->kind ? matrices[k][minor + 1][major] : matrices[k][major][minor + 1];
            put(w, i->operand[k], lane, 4, low | high << 16);
        }
}

/* ---- mma.sync ---- */

#define COLUMNS 8

/* Products of 4 entries of a row with 8 columns added to their sums, as A100s were found to work (Fasi et al.,
 * Numerical behavior of NVIDIA tensor cores, PeerJ CS 2021): exact products; the five addends of a sum cut to a common
 * unit, here one bit below the 24 of the largest; their sum cut to float32. The ISA promises no more than float32.
 * Loops run over columns so that the compiler makes vectors of them. */
static void add_products(float *sums, const float *row, const float (*columns)[COLUMNS])
{
    double addends[5][COLUMNS], largest[COLUMNS], plain[COLUMNS], total[COLUMNS], unit[COLUMNS], inverse[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) {
        plain[c] = addends[0][c] = sums[c];
        largest[c] = fabs(addends[0][c]);
        total[c] = 0;
    }
    for (int k = 0; k < 4; k++)
        for (int c = 0; c < COLUMNS; c++) {
            double product = (double)row[k] * columns[k][c];
            addends[k + 1][c] = product;
            plain[c] += product;
            largest[c] = fabs(product) > largest[c] ? fabs(product) : largest[c];
        }
    for (int c = 0; c < COLUMNS; c++) {
        uint64_t bits;
        memcpy(&bits, &largest[c], 8);
        uint64_t exponent = (bits >> 52) - 24; /* the unit: 2^-24 of the largest power of two */
        uint64_t unit_bits = exponent << 52, inverse_bits = (2046 - exponent) << 52;
        memcpy(&unit[c], &unit_bits, 8);
        memcpy(&inverse[c], &inverse_bits, 8);
    }
    for (int k = 0; k < 5; k++)
        for (int c = 0; c < COLUMNS; c++)
            total[c] += trunc(addends[k][c] * inverse[c]);
    for (int c = 0; c < COLUMNS; c++) {
        double exact = total[c] * unit[c];
        float nearest = (float)exact;
        int in_range = largest[c] > 0x1p-120 && largest[c] < 0x1p126 && plain[c] == plain[c];
        float cut = float_of(bits_of(nearest) - (fabs((double)nearest) > fabs(exact)));
        sums[c] = in_range ? cut : (float)plain[c];
    }
}

/* mma.sync.m16n8k8 of tf32: the tensor core reads the upper 19 bits of a register. */
static void op_multiply_tf32(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    const int32_t *d = i->operand, *a = d + 4, *b = a + 4, *c = b + 2;
    float left[16][8], right[8][COLUMNS], result[16][COLUMNS];
    for (int lane = 0; lane < LANES; lane++) {
        int group = lane / 4, within = lane % 4;
        for (int k = 0; k < 4; k++)
            left[group + 8 * (k % 2)][within + 4 * (k / 2)] = float_of(get(w, a[k], lane, 4) & 0xffffe000);
        for (int k = 0; k < 2; k++)
            right[within + 4 * k][group] = float_of(get(w, b[k], lane, 4) & 0xffffe000);
        for (int k = 0; k < 4; k++)
            result[group + 8 * (k / 2)][2 * within + k % 2] = float_of(get(w, c[k], lane, 4));
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 8; k += 4)
            add_products(result[row], left[row] + k, (const float (*)[COLUMNS])(right + k));
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < 4; k++)
            put(w, d[k], lane, 4, bits_of(result[lane / 4 + 8 * (k / 2)][2 * (lane % 4) + k % 2]));
}

/* mma.sync.m8n8k4 of f64: IEEE fused operations, in an order that is not specified. */
static void op_multiply_f64(OPCODE_ARGUMENTS)
{
    require_all(m, w, i, active);
    const int32_t *d = i->operand;
    double left[8][4], right[8][4], result[8][8];
    const double *a = slot(w, d[2]), *b = slot(w, d[3]);
    for (int lane = 0; lane < LANES; lane++) {
        int group = lane / 4, within = lane % 4;
        left[group][within] = a[lane];
        right[group][within] = b[lane]; /* [column][row] */
        for (int k = 0; k < 2; k++)
            result[group][2 * within + k] = ((double *)slot(w, d[4 + k]))[lane];
    }
    for (int row = 0; row < 8; row++)
        for (int column = 0; column < 8; column++)
            for (int k = 0; k < 4; k++)
                result[row][column] = fma(left[row][k], right[column][k], result[row][column]);
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < 2; k++)
            ((double *)slot(w, d[k]))[lane] = result[lane / 4][2 * (lane % 4) + k];
}
