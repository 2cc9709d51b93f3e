/* spec/core_attn.md: softmax attention over a list of entries, with a sink per head. */
#include "fast/fast.h"

#include <math.h>

enum { BLOCK = FAST_ENTRIES };

/* Entries [first, first + count) of the list, at most BLOCK of them -> e, where each one lies.
 * Those of a cache of codes are unpacked to rows [BLOCK, d], entries that follow each other in the
 * cache at once. */
static void gather(const fast_context *c, const fast_list *list, int64_t first, int64_t count,
                   float *rows, const float **e)
{
    int64_t d = c->config->head_dim, row = 0;
    for (int64_t j = 0, run; j < count; j += run) {
        run = 1;
        if (list->e != NULL && list->e[first + j] != NULL) {
            e[j] = list->e[first + j];
            continue;
        }
        const int64_t *index = list->index + first + j;
        if (list->entries->values != NULL) {
            e[j] = list->entries->values + index[0] * d;
            continue;
        }
        while (j + run < count && (list->e == NULL || list->e[first + j + run] == NULL) &&
               index[run] == index[0] + run)
            run++;
        fast_entries_get(c, list->entries, index[0], run, rows + row * d);
        for (int64_t i = 0; i < run; i++)
            e[j + i] = rows + row++ * d;
    }
}

/* ---- vectors ---- */

static int64_t plain_scratch(int64_t heads, int64_t d)
{
    return 2 * BLOCK * heads + BLOCK * d;
}

/* The end of the block that begins at `at`. A block is what has its slots in the same 64,
 * core_attn.list.2; it may have gaps. */
static int64_t end_of_block(const fast_list *list, int64_t at)
{
    int64_t next = at + 1;
    while (next < list->count && list->slot[next] / BLOCK == list->slot[at] / BLOCK)
        next++;
    return next;
}

static void attend(const fast_context *c, const fast_softmax *s, const fast_list *list,
                   float *scratch)
{
    float *inner = scratch, *rows = inner + 2 * BLOCK * s->heads;
    for (int64_t h = 0; h < s->heads; h++) {
        s->maximum[h] = -INFINITY; /* core_attn.block.1 */
        s->denominator[h] = 0;
    }
    for (int64_t i = 0; i < s->heads * s->d; i++)
        s->out[i] = 0;
    for (int64_t at = 0, next; at < list->count; at = next) {
        const float *e[BLOCK];
        next = end_of_block(list, at);
        gather(c, list, at, next - at, rows, e);
        c->kernels->core_attn->block(s, e, next - at, inner);
    }
}

/* ---- tiles ---- */

const fast_row_kernels *fast_core_attn_tiles(const fast_context *c)
{
    return c->released && !c->deterministic ? c->kernels->core_attn_tiles : NULL;
}

void fast_core_attn_rows(const fast_context *c, const fast_entries *entries, int64_t first,
                         int64_t count, uint16_t *rows)
{
    const fast_row_kernels *tiles = c->kernels->core_attn_tiles;
    int64_t d = entries->head, R = c->config->qk_rope_head_dim, values = d - R;
    for (int64_t g = first; g < first + count; g++, rows += tiles->row_size(d))
        if (entries->values != NULL)
            tiles->row(entries->values + g * d, d, rows);
        else
            tiles->coded_row(entries->codes + g * values, entries->scales + g * (values / 64),
                             entries->rope + g * R, values, R, rows);
}

/* As gather(), but rows for tiles. */
static void gather_rows(const fast_context *c, const fast_list *list, int64_t first, int64_t count,
                        uint16_t *rows, const uint16_t **row)
{
    const fast_row_kernels *tiles = c->kernels->core_attn_tiles;
    int64_t d = c->config->head_dim;
    for (int64_t j = first; j < first + count; j++, rows += tiles->row_size(d)) {
        row[j - first] = rows;
        if (list->row != NULL && list->row[j] != NULL)
            row[j - first] = list->row[j];
        else if (list->e != NULL && list->e[j] != NULL)
            tiles->row(list->e[j], d, rows);
        else
            fast_core_attn_rows(c, list->entries, list->index[j], 1, rows);
    }
}

static int64_t rows_scratch(const fast_row_kernels *tiles, int64_t d)
{
    return (BLOCK * tiles->row_size(d) + 1) / 2;
}

/* refused [heads] */
static void attend_by_tiles(const fast_context *c, const fast_softmax *s, const fast_list *list,
                            float *scratch, bool *refused)
{
    const fast_row_kernels *tiles = c->kernels->core_attn_tiles;
    uint16_t *rows = (uint16_t *)scratch;
    float *inner = scratch + rows_scratch(tiles, s->d);
    tiles->begin(s, inner);
    for (int64_t at = 0, next; at < list->count; at = next) {
        const uint16_t *row[BLOCK];
        next = end_of_block(list, at);
        gather_rows(c, list, at, next - at, rows, row);
        tiles->block(s, row, next - at, inner);
    }
    tiles->end(s, inner, refused);
}

/* ---- both ---- */

int64_t fast_core_attn_scratch(const fast_context *c, int64_t heads)
{
    const fast_row_kernels *tiles = fast_core_attn_tiles(c);
    int64_t d = c->config->head_dim, size = plain_scratch(heads, d);
    if (tiles != NULL) {
        int64_t tiled = rows_scratch(tiles, d) + tiles->scratch_size(heads, d);
        size = tiled > size ? tiled : size;
    }
    return 3 * heads + size;
}

/* Heads [first, end) of these. */
static fast_softmax some_heads(const fast_softmax *s, int64_t first, int64_t end)
{
    fast_softmax some = *s;
    some.q += first * s->d;
    some.out += first * s->d;
    some.maximum += first;
    some.denominator += first;
    some.heads = end - first;
    return some;
}

void fast_core_attn(const fast_context *c, const float *q, const float *sink, const fast_list *list,
                    int64_t first, int64_t heads, float *out, float *scratch)
{
    int64_t d = c->config->head_dim;
    float *maximum = scratch, *denominator = maximum + heads, *inner = denominator + 2 * heads;
    bool *refused = (bool *)(denominator + heads);
    fast_softmax s = {.q = q + first * d, .heads = heads, .d = d,
                      .scale = (float)(1 / sqrt((double)d)), .released = c->released,
                      .maximum = maximum, .denominator = denominator, .out = out + first * d};
    if (fast_core_attn_tiles(c) == NULL) {
        attend(c, &s, list, inner);
    } else {
        attend_by_tiles(c, &s, list, inner, refused);
        for (int64_t h = 0, end; h < heads; h = end) {
            for (end = h + 1; end < heads && refused[end] == refused[h]; end++)
                continue;
            fast_softmax some = some_heads(&s, h, end);
            if (refused[h])
                attend(c, &some, list, inner);
        }
    }
    c->kernels->core_attn->finish(&s, sink + first);
}
