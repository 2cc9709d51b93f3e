/* spec/core_attn.md: softmax attention over a list of entries, with a sink per head. */
#include "fast/fast.h"

#include <math.h>

enum { BLOCK = 64 };

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

int64_t fast_core_attn_scratch(const fast_context *c, int64_t heads)
{
    return 2 * heads + 2 * BLOCK * heads + BLOCK * c->config->head_dim;
}

void fast_core_attn(const fast_context *c, const float *q, const float *sink, const fast_list *list,
                    int64_t first, int64_t heads, float *out, float *scratch)
{
    int64_t d = c->config->head_dim;
    float *maximum = scratch, *denominator = maximum + heads, *inner = denominator + heads;
    float *rows = inner + 2 * BLOCK * heads;
    fast_softmax s = {.q = q + first * d, .heads = heads, .d = d,
                      .scale = (float)(1 / sqrt((double)d)), .released = c->released,
                      .maximum = maximum, .denominator = denominator, .out = out + first * d};
    for (int64_t h = 0; h < heads; h++) {
        maximum[h] = -INFINITY; /* core_attn.block.1 */
        denominator[h] = 0;
    }
    for (int64_t i = 0; i < heads * d; i++)
        s.out[i] = 0;
    /* A block is what has its slots in the same 64, core_attn.list.2; it may have gaps. */
    for (int64_t at = 0, next; at < list->count; at = next) {
        const float *e[BLOCK];
        for (next = at + 1; next < list->count; next++)
            if (list->slot[next] / BLOCK != list->slot[at] / BLOCK)
                break;
        gather(c, list, at, next - at, rows, e);
        c->kernels->core_attn->block(&s, e, next - at, inner);
    }
    c->kernels->core_attn->finish(&s, sink + first);
}
