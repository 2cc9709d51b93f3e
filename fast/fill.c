/* A state as large as that of a long sequence, whose contents are random numbers. Not a chapter. */
#include "fast/fast.h"

/* splitmix64: uniform in [-sqrt 3, sqrt 3), so that the mean square is 1, as after a norm. */
static float next(uint64_t *seed)
{
    uint64_t x = *seed += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    x ^= x >> 31;
    return ((float)(x >> 40) * 0x1p-23f - 1) * 1.7320508f;
}

static void draw(uint64_t *seed, int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = next(seed);
}

/* Entries of the groups that `position` tokens complete, as the compressor would leave them. */
static void fill_entries(const fast_context *c, fast_entries *entries, int64_t count,
                         uint64_t *seed)
{
    enum { AT_ONCE = 256 };
    float *entry = FAST_TAKE(c, float, AT_ONCE * entries->head);
    for (entries->count = 0; entries->count < count;) {
        int64_t rest = count - entries->count, some = rest < AT_ONCE ? rest : AT_ONCE;
        draw(seed, some * entries->head, entry);
        fast_bf16(c, entry, some * entries->head);
        if (entries->index)
            fast_qdq_index(c, entry, some);
        else
            fast_qdq_kv(c, entry, some);
        for (int64_t i = 0; i < some; i++)
            fast_entries_push(c, entries, entry + i * entries->head);
    }
}

static void fill_compressor(const fast_context *c, fast_compressor_state *state, int64_t position,
                            uint64_t *seed)
{
    if (state->entries.head == 0)
        return;
    int64_t items = state->halves * state->ratio * state->halves * state->entries.head;
    draw(seed, items, state->a);
    draw(seed, items, state->z);
    fill_entries(c, &state->entries, position / state->ratio, seed);
}

void fast_state_fill(const fast_context *c, fast_state *state, int64_t position, uint64_t seed)
{
    int64_t W = c->config->sliding_window, d = c->config->head_dim;
    int64_t rows = W < position ? W : position;
    for (int64_t i = 0; i < state->layers; i++) {
        fast_place mark = fast_mark(c->memory);
        fast_layer_state *layer = &state->layer[i];
        draw(&seed, rows * d, layer->window);
        fast_bf16(c, layer->window, rows * d);
        fast_qdq_kv(c, layer->window, rows);
        fill_compressor(c, &layer->compressor, position, &seed);
        fill_compressor(c, &layer->index, position, &seed);
        fast_release(c->memory, mark);
    }
    state->position = position;
}
