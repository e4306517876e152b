/* Loads, stores and atomics: global, buffer, scalar, and LDS. All complete at once; what waits for them is checked. */

#define MOST_BYTES 16

static struct access accessing(const struct wave *w, const struct instruction *in, int lane)
{
    return (struct access){w->id, lane, in->line};
}

/* ``registers`` of a lane to and from memory's order of bytes. */
static void gather(const struct wave *w, int reg, int lane, u32 bytes, u32 *data)
{
    for (u32 k = 0; k < (bytes + 3) / 4; k++)
        data[k] = w->v[reg + (int)k][lane];
}

static void scatter(struct wave *w, int reg, int lane, u32 bytes, int is_signed, const u32 *data)
{
    u32 x = data[0];
    if (bytes == 1)
        w->v[reg][lane] = is_signed ? (u32)(i32)(int8_t)x : x & 0xff;
    else if (bytes == 2)
        w->v[reg][lane] = is_signed ? (u32)(i32)(int16_t)x : x & 0xffff;
    else
        for (u32 k = 0; k < bytes / 4; k++)
            w->v[reg + (int)k][lane] = data[k];
}

/* Two vectors of addresses: where the lane's access goes. Returns 0 where it does not take place. */
typedef int (*place)(struct wave *w, const struct instruction *in, int first, int lane, u32 bytes, u64 *address);

/* Global (section 9.3): a pair of vector registers, or a scalar base plus one vector register; then an offset. */
static int place_global(struct wave *w, const struct instruction *in, int first, int lane, u32 bytes, u64 *address)
{
    (void)bytes;
    const struct operand *vector = &in->operand[first], *base = &in->operand[in->operands - 1];
    *address = base->kind == SCALAR ? read_u64(w, base) + w->v[vector->reg][lane] : vector_pair(w, vector->reg, lane);
    *address += (u64)(i64)in->offset[0];
    return 1;
}

/* Buffer (section 9.1), raw: base and bytes from a descriptor of four scalars; beyond them loads give 0 and stores
 * nothing, by the offset without the scalar one. */
static int place_buffer(struct wave *w, const struct instruction *in, int first, int lane, u32 bytes, u64 *address)
{
    (void)first;
    const struct operand *descriptor = &in->operand[2];
    u64 base = read_u64(w, descriptor) & 0xffffffffffffu;
    u32 records = scalar(w, descriptor->reg + 2);
    u64 offset = (u64)(in->flags & OFFEN ? w->v[in->operand[1].reg][lane] : 0) + (u32)in->offset[0];
    *address = base + offset + read_u32(w, &in->operand[3]);
    return offset + bytes <= records;
}

static void load(struct wave *w, const struct instruction *in, u32 bytes, int is_signed, int first, place where)
{
    u32 data[LANES][MOST_BYTES / 4] = {0};
    u64 address;
    memory_issue(w->memory, w->id, GLOBAL);
    for (int lane = 0; lane < LANES; lane++) /* the destination may be where the addresses are */
        if (is_active(w->exec, lane) && where(w, in, first, lane, bytes, &address))
            memory_load(w->memory, accessing(w, in, lane), GLOBAL, address, bytes, data[lane]);
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(w->exec, lane))
            scatter(w, in->operand[0].reg, lane, bytes, is_signed, data[lane]);
}

static void store(struct wave *w, const struct instruction *in, u32 bytes, int from, int first, place where)
{
    u32 data[MOST_BYTES / 4];
    u64 address;
    memory_issue(w->memory, w->id, GLOBAL);
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(w->exec, lane) && where(w, in, first, lane, bytes, &address)) {
            gather(w, in->operand[from].reg, lane, bytes, data);
            memory_store(w->memory, accessing(w, in, lane), GLOBAL, address, bytes, data);
        }
}

#define OP_LOAD(name, bytes, is_signed)                                                                                \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        load(w, in, bytes, is_signed, 1, OP_PLACE);                                                                    \
    }
#define OP_STORE(name, bytes)                                                                                          \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        store(w, in, bytes, OP_DATA, 0, OP_PLACE);                                                                     \
    }

#define OP_PLACE place_global
#define OP_DATA 1
OP_LOAD(global_load_ubyte, 1, 0)
OP_LOAD(global_load_sbyte, 1, 1)
OP_LOAD(global_load_ushort, 2, 0)
OP_LOAD(global_load_sshort, 2, 1)
OP_LOAD(global_load_dword, 4, 0)
OP_LOAD(global_load_dwordx2, 8, 0)
OP_LOAD(global_load_dwordx3, 12, 0)
OP_LOAD(global_load_dwordx4, 16, 0)
OP_STORE(global_store_byte, 1)
OP_STORE(global_store_short, 2)
OP_STORE(global_store_dword, 4)
OP_STORE(global_store_dwordx2, 8)
OP_STORE(global_store_dwordx3, 12)
OP_STORE(global_store_dwordx4, 16)
#undef OP_PLACE
#undef OP_DATA

#define OP_PLACE place_buffer
#define OP_DATA 0
OP_LOAD(buffer_load_ubyte, 1, 0)
OP_LOAD(buffer_load_sbyte, 1, 1)
OP_LOAD(buffer_load_ushort, 2, 0)
OP_LOAD(buffer_load_sshort, 2, 1)
OP_LOAD(buffer_load_dword, 4, 0)
OP_LOAD(buffer_load_dwordx2, 8, 0)
OP_LOAD(buffer_load_dwordx3, 12, 0)
OP_LOAD(buffer_load_dwordx4, 16, 0)
OP_STORE(buffer_store_byte, 1)
OP_STORE(buffer_store_short, 2)
OP_STORE(buffer_store_dword, 4)
OP_STORE(buffer_store_dwordx2, 8)
OP_STORE(buffer_store_dwordx3, 12)
OP_STORE(buffer_store_dwordx4, 16)
#undef OP_PLACE
#undef OP_DATA

/* ---- atomics: the value before goes to ``to`` if the instruction returns it */

enum combine { ADD, SIGNED_MIN, SIGNED_MAX, UNSIGNED_MIN, UNSIGNED_MAX, OR, AND };

static u64 combined(enum combine how, u64 old, u64 new, u32 bytes)
{
    i64 signed_old = bytes == 8 ? (i64)old : (i32)old, signed_new = bytes == 8 ? (i64)new : (i32)new;
    switch (how) {
    case ADD: return old + new;
    case SIGNED_MIN: return signed_new < signed_old ? new : old;
    case SIGNED_MAX: return signed_new > signed_old ? new : old;
    case UNSIGNED_MIN: return new < old ? new : old;
    case UNSIGNED_MAX: return new > old ? new : old;
    case OR: return old | new;
    default: return old & new;
    }
}

static void atomic(struct wave *w, const struct instruction *in, enum combine how, u32 bytes, int from, int first,
                   place where)
{
    u64 address;
    memory_issue(w->memory, w->id, GLOBAL);
    for (int lane = 0; lane < LANES; lane++) {
        if (!is_active(w->exec, lane) || !where(w, in, first, lane, bytes, &address))
            continue;
        uint8_t *data = memory_atomic(w->memory, accessing(w, in, lane), GLOBAL, address, bytes);
        if (!data)
            continue;
        u64 old = 0, new = 0;
        u32 operand[2] = {0};
        gather(w, in->operand[from].reg, lane, bytes, operand);
        memcpy(&new, operand, bytes);
        memcpy(&old, data, bytes);
        new = combined(how, old, new, bytes);
        memcpy(data, &new, bytes);
        memcpy(operand, &old, bytes);
        if (in->flags & RETURNS)
            scatter(w, in->operand[0].reg, lane, bytes, 0, operand);
    }
}

#define OP_GLOBAL_ATOMIC(name, how, bytes)                                                                             \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        int first = in->flags & RETURNS ? 1 : 0; /* behind the destination */                                          \
        atomic(w, in, how, bytes, first + 1, first, place_global);                                                     \
    }
#define OP_BUFFER_ATOMIC(name, how, bytes)                                                                             \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        atomic(w, in, how, bytes, 0, 0, place_buffer);                                                                 \
    }
OP_GLOBAL_ATOMIC(global_atomic_add, ADD, 4)
OP_GLOBAL_ATOMIC(global_atomic_smin_x2, SIGNED_MIN, 8)
OP_GLOBAL_ATOMIC(global_atomic_smax, SIGNED_MAX, 4)
OP_GLOBAL_ATOMIC(global_atomic_umax, UNSIGNED_MAX, 4)
OP_GLOBAL_ATOMIC(global_atomic_or, OR, 4)
OP_BUFFER_ATOMIC(buffer_atomic_add, ADD, 4)
OP_BUFFER_ATOMIC(buffer_atomic_smin_x2, SIGNED_MIN, 8)
OP_BUFFER_ATOMIC(buffer_atomic_smax, SIGNED_MAX, 4)
OP_BUFFER_ATOMIC(buffer_atomic_umax, UNSIGNED_MAX, 4)
OP_BUFFER_ATOMIC(buffer_atomic_or, OR, 4)

/* ---- scalar loads: one value for the wave (section 8) */

static void load_scalars(struct wave *w, const struct instruction *in, int count)
{
    const struct operand *offset = &in->operand[2];
    u64 address = read_u64(w, &in->operand[1]) + (u64)(i64)in->offset[0];
    address += offset->kind == SCALAR ? scalar(w, offset->reg) : (u64)(i64)(i32)offset->constant;
    u32 data[16];
    memory_issue(w->memory, w->id, SHARED); /* counted with LDS, in lgkmcnt */
    for (int k = 0; k < count; k++)
        memory_load(w->memory, accessing(w, in, -1), GLOBAL, address + 4 * (u64)k, 4, &data[k]);
    for (int k = 0; k < count; k++)
        set_scalar(w, in->operand[0].reg + k, data[k]);
}

#define OP_SCALAR_LOAD(name, count)                                                                                    \
    static void op_##name(struct wave *w, const struct instruction *in) { load_scalars(w, in, count); }
OP_SCALAR_LOAD(s_load_dword, 1)
OP_SCALAR_LOAD(s_load_dwordx2, 2)
OP_SCALAR_LOAD(s_load_dwordx4, 4)
OP_SCALAR_LOAD(s_load_dwordx8, 8)
OP_SCALAR_LOAD(s_load_dwordx16, 16)

/* ---- LDS (section 11): ``pieces`` of ``bytes`` each, one behind an offset each in units of ``unit`` */

static void load_lds(struct wave *w, const struct instruction *in, u32 bytes, int is_signed, int pieces, u32 unit)
{
    u32 data[LANES][MOST_BYTES / 4] = {0};
    memory_issue(w->memory, w->id, SHARED);
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; is_active(w->exec, lane) && k < pieces; k++) {
            u64 address = (u64)w->v[in->operand[1].reg][lane] + (u32)in->offset[k] * unit;
            memory_load(w->memory, accessing(w, in, lane), SHARED, address, bytes, &data[lane][(u32)k * bytes / 4]);
        }
    for (int lane = 0; lane < LANES; lane++)
        if (is_active(w->exec, lane))
            scatter(w, in->operand[0].reg, lane, bytes * (u32)pieces, is_signed, data[lane]);
}

static void store_lds(struct wave *w, const struct instruction *in, u32 bytes, int pieces, u32 unit)
{
    u32 data[MOST_BYTES / 4];
    memory_issue(w->memory, w->id, SHARED);
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; is_active(w->exec, lane) && k < pieces; k++) {
            u64 address = (u64)w->v[in->operand[0].reg][lane] + (u32)in->offset[k] * unit;
            gather(w, in->operand[1 + k].reg, lane, bytes, data);
            memory_store(w->memory, accessing(w, in, lane), SHARED, address, bytes, data);
        }
}

#define OP_LDS_LOAD(name, bytes, is_signed, pieces, unit)                                                              \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        load_lds(w, in, bytes, is_signed, pieces, unit);                                                               \
    }
#define OP_LDS_STORE(name, bytes, pieces, unit)                                                                        \
    static void op_##name(struct wave *w, const struct instruction *in) { store_lds(w, in, bytes, pieces, unit); }
OP_LDS_LOAD(ds_read_u8, 1, 0, 1, 1)
OP_LDS_LOAD(ds_read_i8, 1, 1, 1, 1)
OP_LDS_LOAD(ds_read_u16, 2, 0, 1, 1)
OP_LDS_LOAD(ds_read_b32, 4, 0, 1, 1)
OP_LDS_LOAD(ds_read_b64, 8, 0, 1, 1)
OP_LDS_LOAD(ds_read_b96, 12, 0, 1, 1)
OP_LDS_LOAD(ds_read_b128, 16, 0, 1, 1)
OP_LDS_LOAD(ds_read2_b32, 4, 0, 2, 4)
OP_LDS_LOAD(ds_read2_b64, 8, 0, 2, 8)
OP_LDS_LOAD(ds_read2st64_b32, 4, 0, 2, 256)
OP_LDS_LOAD(ds_read2st64_b64, 8, 0, 2, 512)
OP_LDS_STORE(ds_write_b8, 1, 1, 1)
OP_LDS_STORE(ds_write_b16, 2, 1, 1)
OP_LDS_STORE(ds_write_b32, 4, 1, 1)
OP_LDS_STORE(ds_write_b64, 8, 1, 1)
OP_LDS_STORE(ds_write_b96, 12, 1, 1)
OP_LDS_STORE(ds_write_b128, 16, 1, 1)
OP_LDS_STORE(ds_write2_b32, 4, 2, 4)
OP_LDS_STORE(ds_write2_b64, 8, 2, 8)
OP_LDS_STORE(ds_write2st64_b32, 4, 2, 256)
OP_LDS_STORE(ds_write2st64_b64, 8, 2, 512)
