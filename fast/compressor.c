/* spec/compressor.md: r tokens become one entry; CSA's groups overlap, HCA's do not. */
#include "fast/fast.h"

/* How many entries token `position` may see: compressor.visible.1. */
int64_t fast_visible(int64_t position, int64_t ratio)
{
    return (position + 1) / ratio;
}

/* compressor.entry.1 to 4, by any thread. angles [R], of the group's first token. */
static void finish(const fast_context *c, const float *norm, bool index, int64_t width,
                   const float *angles, float *entry)
{
    const fast_kernels *k = c->kernels;
    int64_t R = c->config->qk_rope_head_dim;
    bool released = c->released;
    if (released)
        k->quant->bf16(entry, width);
    k->rmsnorm->rmsnorm(entry, norm, width, c->config->rms_norm_eps, released, entry);
    k->rope->rotate(angles, false, R, released, entry + width - R);
    if (index)
        k->hadamard->transform(entry, width, released);
    if (index && released)
        k->quant->qdq_index(entry, width);
    if (!index && released) { /* quant.kv.1 */
        k->quant->act_quant(entry, width - R, 64);
        k->quant->bf16(entry, width - R);
    }
}

void fast_compressor_finish(const fast_context *c, const float *norm, bool index, int64_t width,
                            const double *freq, int64_t first_token, float *entry)
{
    fast_place mark = fast_mark(c->memory);
    float *angles = FAST_TAKE(c, float, c->config->qk_rope_head_dim);
    fast_rope_angles(c, freq, &first_token, 1, angles);
    finish(c, norm, index, width, angles, entry);
    fast_release(c->memory, mark);
}

/* ---- one call ---- */

/* A group that the call completes. */
typedef struct {
    int64_t segment;
    int64_t first_token;
} group;

typedef struct {
    const fast_context *c;
    const fast_call *call;
    fast_compressor_state *const *state;
    int64_t ratio, halves, head;
    float *a, *z;         /* [T, c head] */
    const float *ape;     /* [r, c head]; where T < r, [T, c head]: only what the rows need */
    const float *norm;    /* [head] */
    int64_t groups;
    group *group;         /* [groups] */
    float *angles;        /* [groups, R] */
    float *entries;       /* [groups, head] */
    const float **items;  /* [threads, 2, c r] */
} compression;

/* compressor.items.2: ape goes by the absolute position of a token. */
static void decode_ape(compression *k, const dsv4_matrix *ape)
{
    int64_t T = k->call->T, r = k->ratio, rows = T < r ? T : r;
    float *values = FAST_TAKE(k->c, float, rows * ape->cols);
    for (int64_t i = 0; i < rows; i++)
        fast_matrix_row(k->c, ape, T < r ? k->call->position[i] % r : i, values + i * ape->cols);
    k->ape = values;
}

enum { ROWS_PER_ITEM = 8 };

static void add_ape(void *context, int64_t item, int worker)
{
    const compression *k = context;
    int64_t T = k->call->T, r = k->ratio, width = k->halves * k->head;
    int64_t first = item * ROWS_PER_ITEM, end = first + ROWS_PER_ITEM;
    (void)worker;
    for (int64_t t = first; t < end && t < T; t++) {
        const float *ape = k->ape + (T < r ? t : k->call->position[t] % r) * width;
        float *z = k->z + t * width;
        for (int64_t i = 0; i < width; i++)
            z[i] += ape[i];
    }
}

/* compressor.group.1: a group is complete when its last token has come. */
static int64_t complete_before(const compression *k, int64_t position)
{
    return position / k->ratio;
}

static int64_t new_groups(const compression *k, int64_t segment)
{
    const fast_segment *s = &k->call->segment[segment];
    return complete_before(k, s->position + s->rows) - complete_before(k, s->position);
}

static void list_groups(compression *k)
{
    const fast_context *c = k->c;
    for (int64_t i = 0; i < k->call->segments; i++)
        k->groups += new_groups(k, i);
    k->group = FAST_TAKE(c, group, k->groups);
    k->angles = FAST_TAKE(c, float, k->groups * c->config->qk_rope_head_dim);
    k->entries = FAST_TAKE(c, float, k->groups * k->head);
    k->items = FAST_TAKE(c, const float *,
                         fast_pool_threads(c->pool) * 2 * k->halves * k->ratio);
    group *next = k->group;
    for (int64_t i = 0; i < k->call->segments; i++) {
        int64_t before = complete_before(k, k->call->segment[i].position);
        for (int64_t j = 0; j < new_groups(k, i); j++)
            *next++ = (group){i, (before + j) * k->ratio};
    }
}

/* compressor.entry.3: an entry is rotated at the position of its group's first token. */
static void find_angles(compression *k, const double *freq)
{
    int64_t *position = FAST_TAKE(k->c, int64_t, k->groups);
    for (int64_t i = 0; i < k->groups; i++)
        position[i] = k->group[i].first_token;
    fast_rope_angles(k->c, freq, position, k->groups, k->angles);
}

/* The item of token t: a row of this call or, from earlier ones, of the state. */
static void find_item(const compression *k, int64_t segment, int64_t t, int64_t channel,
                      const float **a, const float **z)
{
    const fast_segment *s = &k->call->segment[segment];
    const fast_compressor_state *state = k->state[segment];
    int64_t width = k->halves * k->head;
    bool now = t >= s->position;
    int64_t row = now ? s->first + t - s->position : t % (k->halves * k->ratio);
    *a = (now ? k->a : state->a) + row * width + channel;
    *z = (now ? k->z : state->z) + row * width + channel;
}

static void make_entry(void *context, int64_t item, int worker)
{
    const compression *k = context;
    group g = k->group[item];
    int64_t r = k->ratio, most = k->halves * r, count = 0;
    const float **a = k->items + worker * 2 * most, **z = a + most;
    float *entry = k->entries + item * k->head;
    /* compressor.csa.1, compressor.csa.2: the previous group, if any, with its first channels. */
    for (int64_t t = g.first_token - r; t < g.first_token && k->halves == 2 && t >= 0; t++, count++)
        find_item(k, g.segment, t, 0, a + count, z + count);
    /* compressor.hca.1: its own tokens; in CSA with their last channels. */
    for (int64_t t = g.first_token; t < g.first_token + r; t++, count++)
        find_item(k, g.segment, t, (k->halves - 1) * k->head, a + count, z + count);
    k->c->kernels->compressor->pool(a, z, count, k->head, entry);
    finish(k->c, k->norm, k->state[g.segment]->entries.index, k->head,
           k->angles + item * k->c->config->qk_rope_head_dim, entry);
}

/* state.compressor.2: a segment's new entries [count, head], in order, as the tap leaves them. */
static void append(const compression *k, int64_t segment, float *entries)
{
    const fast_segment *s = &k->call->segment[segment];
    fast_entries *to = &k->state[segment]->entries;
    int64_t count = new_groups(k, segment);
    fast_tap_rows(k->c, s, to->index ? "index_k" : "compressed", complete_before(k, s->position),
                  count, k->head, 0, entries);
    for (int64_t i = 0; i < count; i++)
        fast_entries_push(k->c, to, entries + i * k->head);
}

/* state.compressor.1: the last tokens of a segment, as many as there is room for. */
static void keep_items(const compression *k, int64_t segment)
{
    const fast_segment *s = &k->call->segment[segment];
    int64_t width = k->halves * k->head, slots = k->halves * k->ratio;
    for (int64_t i = s->rows > slots ? s->rows - slots : 0; i < s->rows; i++)
        fast_compressor_push(k->state[segment], s->position + i, k->a + (s->first + i) * width,
                             k->z + (s->first + i) * width);
}

void fast_compress(const fast_context *c, const fast_call *call, const dsv4_compressor *w,
                   fast_compressor_state *const *state, const double *freq, float *a, float *z)
{
    if (call->segments == 0)
        return;
    fast_place mark = fast_mark(c->memory);
    compression k = {.c = c, .call = call, .state = state, .a = a, .z = z,
                     .ratio = state[0]->ratio, .halves = state[0]->halves,
                     .head = state[0]->entries.head};
    decode_ape(&k, &w->ape);
    fast_pool_run(c->pool, (call->T + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, add_ape, &k);
    list_groups(&k);
    if (k.groups > 0) {
        k.norm = fast_vector(c, &w->norm);
        find_angles(&k, freq);
        fast_pool_run(c->pool, k.groups, make_entry, &k);
    }
    float *entries = k.entries;
    for (int64_t i = 0; i < call->segments; i++) {
        append(&k, i, entries);
        entries += new_groups(&k, i) * k.head;
        keep_items(&k, i);
    }
    fast_release(c->memory, mark);
}
