/* Branches, the end, the barrier, and waits. */

#define OP_BRANCH(name, condition)                                                                                     \
    static void op_##name(struct wave *w, const struct instruction *in)                                                \
    {                                                                                                                  \
        if (condition)                                                                                                 \
            w->next = in->target;                                                                                      \
    }
OP_BRANCH(s_branch, 1)
OP_BRANCH(s_cbranch_scc0, !w->scc)
OP_BRANCH(s_cbranch_scc1, w->scc)
OP_BRANCH(s_cbranch_vccz, !scalar_pair(w, VCC))
OP_BRANCH(s_cbranch_vccnz, scalar_pair(w, VCC))
OP_BRANCH(s_cbranch_execz, !w->exec)
OP_BRANCH(s_cbranch_execnz, w->exec)

static void op_s_endpgm(struct wave *w, const struct instruction *in) { (void)in; w->done = 1; }
static void op_s_barrier(struct wave *w, const struct instruction *in) { (void)in; w->at_barrier = 1; }
static void op_s_nop(struct wave *w, const struct instruction *in) { (void)w; (void)in; }

/* offset[0] is vmcnt, global memory; offset[1] is lgkmcnt, LDS and scalar loads; negative where nothing is waited for */
static void op_s_waitcnt(struct wave *w, const struct instruction *in)
{
    if (in->offset[0] >= 0)
        memory_wait(w->memory, w->id, GLOBAL, (u32)in->offset[0]);
    if (in->offset[1] >= 0)
        memory_wait(w->memory, w->id, SHARED, (u32)in->offset[1]);
}
