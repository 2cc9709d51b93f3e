/* spec/core_attn.md: softmax attention over a list of entries, with a sink per head. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* The list of token t: window, then the selected compressed entries. Returns its length. */
int64_t ref_list_entries(const ref_context *c, const ref_layer_state *state, int64_t t,
                         const int64_t *selected, int64_t n_selected, ref_entry *list)
{
    int64_t W = c->config->sliding_window, d = c->config->head_dim, count = 0;
    /* core_attn.list.1: The window of token t is the entries of tokens max(0, t - W + 1) .. t: W of
     * them at most, the token's own included. */
    int64_t oldest = t - W + 1 > 0 ? t - W + 1 : 0;
    /* core_attn.list.2: The window takes the first W slots of the list, oldest token first. Where t
     * + 1 < W the last slots are empty and count for nothing; a block of empty slots only is passed
     * over. */
    for (int64_t s = oldest; s <= t; s++, count++)
        list[count] = (ref_entry){state->window + s % W * d, s - oldest};
    /* core_attn.list.3: The chosen compressed entries follow from slot W on: in CSA by descending
     * index score, in HCA by ascending group. */
    for (int64_t i = 0; i < n_selected; i++, count++)
        list[count] = (ref_entry){state->compressor.entries + selected[i] * d, W + i};
    return count;
}

/* One head: q [d] over the list -> out [d]. The list is in order of slots, and not empty. */
static void head_attention(const ref_context *c, const double *q, double sink,
                           const ref_entry *list, int64_t count, double *out)
{
    int64_t d = c->config->head_dim;
    double logit[64], denominator = 0;
    /* core_attn.block.1: The running maximum starts at minus infinity and never includes the
     * sink. */
    double maximum = -INFINITY;
    for (int64_t i = 0; i < d; i++)
        out[i] = 0;
    for (int64_t first = 0, next; first < count; first = next) {
        double top = maximum;
        for (next = first; next < count && list[next].slot / 64 == list[first].slot / 64; next++) {
            double product = 0;
            for (int64_t i = 0; i < d; i++)
                product += q[i] * list[next].e[i];
            /* core_attn.logit.1: An entry's logit is q . e times d^(-1/2). */
            logit[next - first] = product / sqrt((double)d);
            top = fmax(top, logit[next - first]);
        }
        /* core_attn.block.2: Before the entries of a block of 64 slots are added, the maximum grows
         * to the largest logit of the whole block, if that is larger, and numerator and denominator
         * so far are multiplied with exp(old maximum - new maximum). */
        double shrink = exp(maximum - top);
        denominator *= shrink;
        for (int64_t i = 0; i < d; i++)
            out[i] *= shrink;
        maximum = top;
        for (int64_t j = first; j < next; j++) {
            /* core_attn.block.3: p = exp(logit - maximum), with the maximum after its block. The
             * denominator adds p; the numerator adds p e. Released: p in the numerator is rounded
             * to bf16, p in the denominator is not. */
            double p = exp(logit[j - first] - maximum);
            denominator += p;
            p = ref_bf16(c, p);
            for (int64_t i = 0; i < d; i++)
                out[i] += p * list[j].e[i];
        }
    }
    /* core_attn.sink.1: After the last block exp(attn_sink - maximum) joins the denominator,
     * once. */
    denominator += exp(sink - maximum);
    /* core_attn.out.1: The output is numerator / denominator. Released: rounded to bf16. */
    for (int64_t i = 0; i < d; i++)
        out[i] = ref_bf16(c, out[i] / denominator);
}

/* q [H, d], sink [H] -> out [H, d]. */
void ref_core_attn(const ref_context *c, const double *q, const double *sink, const ref_entry *list,
                   int64_t count, double *out)
{
    int64_t H = c->config->num_attention_heads, d = c->config->head_dim;
    for (int64_t h = 0; h < H; h++)
        head_attention(c, q + h * d, sink[h], list, count, out + h * d);
}
