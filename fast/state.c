/* spec/state.md: what one sequence leaves behind for its next tokens. */
#include "fast/fast.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* All arrays of a sequence stand in one mapping, which costs addresses until it is written. */
typedef struct {
    fast_state state; /* first: the address of one is that of the other */
    void *memory;
    size_t size;
} owner;

/* Where the next array goes. A walk without a base only adds up. */
typedef struct {
    unsigned char *base;
    size_t used;
    bool too_large;
} room;

static void *take(room *r, size_t size, int64_t rows, int64_t cols)
{
    size_t count, bytes, end;
    if (__builtin_mul_overflow(rows, cols, &count) || __builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(r->used, bytes, &end) || end > (size_t)PTRDIFF_MAX - 64) {
        r->too_large = true;
        return NULL;
    }
    void *array = r->base != NULL ? r->base + r->used : NULL;
    r->used = (end + 63) / 64 * 64;
    return array;
}

/* state.compressor.2: all entries that `groups` complete groups emit. */
static void place_entries(room *r, fast_entries *e, bool released, int64_t R, int64_t groups)
{
    if (!released) {
        e->values = take(r, sizeof *e->values, groups, e->head);
    } else if (e->index) {
        e->codes = take(r, 1, groups, e->head / 2);
        e->scales = take(r, 1, groups, e->head / 32);
    } else {
        e->codes = take(r, 1, groups, e->head - R);
        e->scales = take(r, 1, groups, (e->head - R) / 64);
        e->rope = take(r, sizeof *e->rope, groups, R);
    }
}

static void place_compressor(room *r, fast_compressor_state *state, const dsv4_config *config,
                             bool released, bool index, int64_t ratio, int64_t max_tokens)
{
    /* state.compressor.1: CSA, of ratio 4, keeps the group before the unfinished one too. */
    int64_t halves = ratio == 4 ? 2 : 1;
    int64_t head = index ? config->index_head_dim : config->head_dim;
    *state = (fast_compressor_state){.ratio = ratio, .halves = halves,
                                     .entries = {.index = index, .head = head}};
    state->a = take(r, sizeof *state->a, halves * ratio, halves * head);
    state->z = take(r, sizeof *state->z, halves * ratio, halves * head);
    place_entries(r, &state->entries, released, config->qk_rope_head_dim, max_tokens / ratio);
}

static void place_layer(room *r, fast_layer_state *state, const dsv4_config *config, bool released,
                        int64_t layer, int64_t max_tokens)
{
    /* state.window.1: no more rows than tokens will come. */
    int64_t W = config->sliding_window, rows = W < max_tokens ? W : max_tokens;
    dsv4_layer_kind kind = dsv4_config_kind(config, layer);
    int64_t ratio = config->compress_ratios[layer];
    state->window = take(r, sizeof *state->window, rows, config->head_dim);
    if (kind != DSV4_SWA)
        place_compressor(r, &state->compressor, config, released, false, ratio, max_tokens);
    if (kind == DSV4_CSA)
        place_compressor(r, &state->index, config, released, true, ratio, max_tokens);
}

/* state.sequence.1, state.mtp.1: one part per layer, the MTP layers' own included. */
static void place_all(room *r, fast_state *state, const dsv4_config *config, bool released)
{
    for (int64_t i = 0; i < state->layers; i++)
        place_layer(r, &state->layer[i], config, released, i, state->max_tokens);
    for (int64_t i = 0; i < state->mtp_layers; i++)
        place_layer(r, &state->mtp[i], config, released, state->layers + i, state->max_tokens);
}

static int map(owner *o, size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *memory = size > 0 ? mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0) : NULL;
    if (memory == MAP_FAILED)
        return -1;
    o->memory = memory;
    o->size = size;
    return 0;
}

fast_state *fast_state_new(const dsv4_config *config, bool released, int64_t mtp_layers,
                           int64_t max_tokens, dsv4_error *err)
{
    if (max_tokens < 1) {
        dsv4_fail(err, "a run of %lld tokens: expected at least 1", (long long)max_tokens);
        return NULL;
    }
    owner *o = dsv4_alloc(1, sizeof *o);
    fast_state *state = &o->state;
    state->max_tokens = max_tokens;
    state->layers = config->num_hidden_layers;
    state->mtp_layers = mtp_layers;
    state->layer = dsv4_alloc((size_t)state->layers, sizeof *state->layer);
    state->mtp = dsv4_alloc((size_t)mtp_layers, sizeof *state->mtp);

    room r = {0};
    place_all(&r, state, config, released);
    if (r.too_large)
        dsv4_fail(err, "a run of %lld tokens needs more memory than there are addresses",
                  (long long)max_tokens);
    else if (map(o, r.used) != 0)
        dsv4_fail(err, "a run of %lld tokens: no room for its state, %.1f GB: %s",
                  (long long)max_tokens, (double)r.used / 1e9, strerror(errno));
    else {
        r = (room){.base = o->memory};
        place_all(&r, state, config, released);
        return state;
    }
    fast_state_free(state);
    return NULL;
}

int64_t fast_state_bytes(const dsv4_config *config, bool released, int64_t mtp_layers,
                         int64_t max_tokens)
{
    fast_state state = {.max_tokens = max_tokens, .layers = config->num_hidden_layers,
                        .mtp_layers = mtp_layers};
    room r = {0};
    state.layer = dsv4_alloc((size_t)state.layers, sizeof *state.layer);
    state.mtp = dsv4_alloc((size_t)mtp_layers, sizeof *state.mtp);
    place_all(&r, &state, config, released);
    free(state.layer);
    free(state.mtp);
    return r.too_large ? -1 : (int64_t)r.used;
}

void fast_state_free(fast_state *state)
{
    owner *o = (owner *)state;
    if (o == NULL)
        return;
    if (o->memory != NULL)
        munmap(o->memory, o->size);
    free(o->state.layer);
    free(o->state.mtp);
    free(o);
}

void fast_entries_push(const fast_context *c, fast_entries *entries, const float *entry)
{
    const fast_quant_kernels *quant = c->kernels->quant;
    int64_t head = entries->head, R = c->config->qk_rope_head_dim, g = entries->count++;
    if (entries->values != NULL)
        memcpy(entries->values + g * head, entry, (size_t)head * sizeof *entry);
    else if (entries->index)
        quant->pack_index(entry, head, entries->codes + g * (head / 2),
                          entries->scales + g * (head / 32));
    else
        quant->pack_kv(entry, head - R, R, entries->codes + g * (head - R),
                       entries->scales + g * ((head - R) / 64), entries->rope + g * R);
}

void fast_entries_get(const fast_context *c, const fast_entries *entries, int64_t first,
                      int64_t count, float *out)
{
    const fast_quant_kernels *quant = c->kernels->quant;
    int64_t head = entries->head, R = c->config->qk_rope_head_dim, values = head - R;
    int64_t blocks = values / 64, end = first + count;
    if (entries->values != NULL)
        memcpy(out, entries->values + first * head, (size_t)(count * head) * sizeof *out);
    else if (entries->index) /* rows of whole bytes and blocks: many are one long one */
        quant->unpack_index(entries->codes + first * (head / 2),
                            entries->scales + first * (head / 32), count * head, out);
    else
        for (int64_t g = first; g < end; g++)
            quant->unpack_kv(entries->codes + g * values, entries->scales + g * blocks,
                             entries->rope + g * R, values, R, out + (g - first) * head);
}

void fast_compressor_push(fast_compressor_state *state, int64_t t, const float *a, const float *z)
{
    int64_t width = state->halves * state->entries.head, slots = state->halves * state->ratio;
    memcpy(state->a + t % slots * width, a, (size_t)width * sizeof *a);
    memcpy(state->z + t % slots * width, z, (size_t)width * sizeof *z);
}
