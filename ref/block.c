/* spec/block.md: one layer: attention and mixture of experts, each between the mHC mixes. */
#include "ref.h"

#include <stdlib.h>

/* h [T, n, D], the streams, in place; ids [T]. */
void ref_block(ref_context *c, const dsv4_layer *layer, ref_layer_state *state, const int64_t *ids,
               int64_t position, double *h, int64_t T)
{
    int64_t n = c->config->hc_mult, D = c->config->hidden_size;
    double *pre = ref_new(n), *post = ref_new(T * n), *comb = ref_new(T * n * n);
    double *u = ref_new(T * D), *x = ref_new(T * D), *y = ref_new(T * D);
    c->layer = layer->index;

    /* block.attention.1: mHC with hc_attn around attention: mix and collapse the streams, RMSNorm
     * with attn_norm, attention, spread. */
    for (int64_t t = 0; t < T; t++) {
        ref_mhc_mix(c, &layer->hc_attn, h + t * n * D, pre, post + t * n, comb + t * n * n);
        ref_mhc_pre(c, pre, h + t * n * D, u + t * D);
    }
    ref_tap(c, "attn_in", position, T, D, 0, u);
    ref_rmsnorm(c, &layer->attn_norm, u, T, x);
    ref_attention(c, layer, state, position, x, T, y);
    for (int64_t t = 0; t < T; t++)
        ref_mhc_post(c, post + t * n, comb + t * n * n, y + t * D, h + t * n * D);
    ref_tap(c, "mid", position, T, n, D, h);

    /* block.moe.1: Then mHC with hc_ffn around the mixture of experts: mix and collapse the new
     * streams, RMSNorm with ffn_norm, mixture, spread. */
    for (int64_t t = 0; t < T; t++) {
        ref_mhc_mix(c, &layer->hc_ffn, h + t * n * D, pre, post + t * n, comb + t * n * n);
        ref_mhc_pre(c, pre, h + t * n * D, u + t * D);
    }
    ref_tap(c, "ffn_in", position, T, D, 0, u);
    ref_rmsnorm(c, &layer->ffn_norm, u, T, x);
    ref_moe(c, layer, ids, position, x, T, y);
    for (int64_t t = 0; t < T; t++)
        ref_mhc_post(c, post + t * n, comb + t * n * n, y + t * D, h + t * n * D);
    ref_tap(c, "out", position, T, n, D, h);

    free(pre);
    free(post);
    free(comb);
    free(u);
    free(x);
    free(y);
}
