/* spec/compressor.md: r tokens become one entry; CSA's groups overlap, HCA's do not. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* Adds the items of the tokens x [T, D] from `position` on to a and z [T, c d]. */
static void make_items(const ref_context *c, const dsv4_compressor *w, int64_t position,
                       const double *x, int64_t T, double *a, double *z)
{
    int64_t r = w->ape.rows, width = w->ape.cols;
    double *ape = ref_new(width);
    /* compressor.items.1: a_t = wkv u'_t, and z_t starts as wgate u'_t, from the same normed input
     * as the attention. Both have c d channels: c = 2 in CSA (r = 4), 1 in HCA. They are binary32
     * maps (linear.f32.1). */
    ref_linear_f32(c, &w->wkv, x, T, a);
    ref_linear_f32(c, &w->wgate, x, T, z);
    for (int64_t t = 0; t < T; t++) {
        /* compressor.items.2: z_t has row t mod r of ape [r, c d] added, t being the absolute
         * position of the token. */
        ref_matrix_row(c, &w->ape, (position + t) % r, ape);
        for (int64_t channel = 0; channel < width; channel++)
            z[t * width + channel] += ape[channel];
    }
    free(ape);
}

static bool completes_group(int64_t t, int64_t ratio)
{
    /* compressor.group.1: Group g emits its entry when its last token has come, that is when (t +
     * 1) mod r = 0. A group that is not complete emits nothing. */
    return (t + 1) % ratio == 0;
}

/* How many entries token `position` may see. */
int64_t ref_visible(int64_t position, int64_t ratio)
{
    /* compressor.visible.1: Token t sees the entries g < (t + 1) div r: those of complete groups,
     * its own included where t is the last token of it. */
    return (position + 1) / ratio;
}

/* An item of a pool: where its a and z begin in the state. */
static int64_t item(const ref_compressor_state *state, int64_t t, int64_t channel_offset)
{
    int64_t slots = state->halves * state->ratio, width = state->halves * state->head;
    return t % slots * width + channel_offset;
}

/* The items that entry g pools -> items [c r]; returns how many. */
static int64_t list_items(const ref_compressor_state *state, int64_t g, int64_t *items)
{
    int64_t r = state->ratio, d = state->head, first = g * r, count = 0;
    bool csa = state->halves == 2;
    /* compressor.hca.1: HCA: entry g pools the r items of its group. */
    for (int64_t t = first; t < first + r && !csa; t++)
        items[count++] = item(state, t, 0);
    /* compressor.csa.1: CSA: entry g pools 2r items: those of the previous group with their
     * channels 0 .. d-1, and those of its own group with their channels d .. 2d-1. */
    /* compressor.csa.2: CSA: group 0 has no previous group; its entry pools its own r items
     * only. */
    for (int64_t t = first - r; t < first && csa && g > 0; t++)
        items[count++] = item(state, t, 0);
    for (int64_t t = first; t < first + r && csa; t++)
        items[count++] = item(state, t, d);
    return count;
}

/* Pools group g into entry [d]. */
static void pool(const ref_compressor_state *state, int64_t g, double *entry)
{
    int64_t *items = dsv4_alloc((size_t)(state->halves * state->ratio), sizeof *items);
    int64_t count = list_items(state, g, items);
    for (int64_t channel = 0; channel < state->head; channel++) {
        double top = -INFINITY, sum = 0, pooled = 0;
        for (int64_t i = 0; i < count; i++)
            top = fmax(top, state->z[items[i] + channel]);
        for (int64_t i = 0; i < count; i++) {
            /* compressor.softmax.1: Channel by channel, an entry is the sum of p_t a_t over its
             * items, p being the softmax of their z over the items (all 2r of them together in
             * CSA). Released: in binary32. */
            double p = exp(state->z[items[i] + channel] - top);
            sum += p;
            pooled += p * state->a[items[i] + channel];
        }
        entry[channel] = pooled / sum;
    }
    free(items);
}

static void finish(const ref_context *c, const dsv4_compressor *w, bool index, const double *freq,
                   int64_t first_token, double *entry)
{
    int64_t width = w->norm.cols;
    /* compressor.entry.1: Released: the pooled entry is rounded to bf16. */
    ref_bf16_all(c, entry, width);
    /* compressor.entry.2: It is normalised by RMSNorm with the compressor's norm.weight. */
    ref_rmsnorm(c, &w->norm, entry, 1, entry);
    /* compressor.entry.3: It is rotated at the position of its group's first token, g r, with the
     * layer's frequencies. */
    ref_rope(c, freq, first_token, entry, width);
    /* compressor.entry.4: Released: a main entry passes the QDQ of quant.kv.1. An indexer key
     * passes the Hadamard transform (in both contracts), then the QDQ of quant.index.1. */
    if (index) {
        ref_hadamard(c, entry, width);
        ref_qdq_index(c, entry);
    } else {
        ref_qdq_kv(c, entry);
    }
}

/* Takes the tokens x [T, D] from `position` on, and appends the entries of the groups that they
 * complete. `freq` are the layer's rotary frequencies. */
void ref_compress(ref_context *c, const dsv4_compressor *w, ref_compressor_state *state,
                  const double *freq, int64_t position, const double *x, int64_t T)
{
    int64_t r = state->ratio, width = state->halves * state->head, before = state->count;
    double *a = ref_new(T * width), *z = ref_new(T * width);
    make_items(c, w, position, x, T, a, z);
    for (int64_t i = 0; i < T; i++) {
        ref_compressor_push(state, position + i, a + i * width, z + i * width);
        if (!completes_group(position + i, r))
            continue;
        int64_t g = state->count++;
        pool(state, g, state->entries + g * state->head);
        finish(c, w, state->index, freq, g * r, state->entries + g * state->head);
    }
    ref_tap(c, state->index ? "index_k" : "compressed", before, state->count - before, state->head,
            0, state->entries + before * state->head);
    free(a);
    free(z);
}
