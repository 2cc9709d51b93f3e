/* spec/indexer.md: CSA's choice of compressed entries. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* qr [T, q_lora_rank] -> iq [T, n_i, d_i]. */
void ref_index_query(const ref_context *c, const dsv4_layer *layer, const double *freq,
                     int64_t position, const double *qr, int64_t T, double *iq)
{
    int64_t n_i = c->config->index_n_heads, d_i = c->config->index_head_dim;
    /* indexer.query.1: iq = indexer.wq_b qr, as n_i heads of d_i; no normalisation follows. */
    ref_linear(c, &layer->attn.indexer.wq_b, qr, T, iq);
    for (int64_t i = 0; i < T * n_i; i++) {
        /* indexer.query.2: The last R values of each head are rotated at the token's position, with
         * the layer's frequencies. */
        ref_rope(c, freq, position + i / n_i, iq + i * d_i, d_i);
        /* indexer.query.3: Each head passes the Hadamard transform. Released: then the QDQ of
         * quant.index.1. */
        ref_hadamard(c, iq + i * d_i, d_i);
        ref_qdq_index(c, iq + i * d_i);
    }
    ref_tap(c, "index_q", position, T, n_i, d_i, iq);
}

/* x [T, D] -> w [T, n_i]. */
void ref_index_weights(const ref_context *c, const dsv4_layer *layer, const double *x, int64_t T,
                       double *w)
{
    int64_t n_i = c->config->index_n_heads;
    /* indexer.weight.1: w = weights_proj u', a linear map (released: rounded to bf16). */
    ref_linear(c, &layer->attn.indexer.weights_proj, x, T, w);
    /* indexer.weight.2: w is multiplied with d_i^(-1/2) n_i^(-1/2). Released: that constant is one
     * binary32 number, and the product is rounded to bf16. */
    double scale = ref_f32(c, 1 / sqrt((double)c->config->index_head_dim * (double)n_i));
    for (int64_t i = 0; i < T * n_i; i++)
        w[i] = ref_bf16(c, w[i] * scale);
}

/* iq [n_i, d_i], w [n_i] of one token; keys [visible, d_i] -> score [visible]. */
void ref_index_scores(const ref_context *c, const double *iq, const double *w, const double *keys,
                      int64_t visible, double *score)
{
    int64_t n_i = c->config->index_n_heads, d_i = c->config->index_head_dim;
    for (int64_t g = 0; g < visible; g++) {
        double sum = 0;
        for (int64_t h = 0; h < n_i; h++) {
            double product = 0;
            for (int64_t i = 0; i < d_i; i++)
                product += iq[h * d_i + i] * keys[g * d_i + i];
            /* indexer.score.1: score(t, g) is the sum over heads of w[h] relu(iq[h] . key_g): the
             * relu comes before the weight. */
            /* indexer.score.2: Released: iq[h] . key_g, each product with w[h], and the sum are
             * rounded to bf16. */
            product = ref_bf16(c, product);
            sum += ref_bf16(c, w[h] * (product < 0 ? 0 : product)); /* a NaN stays */
        }
        score[g] = ref_bf16(c, sum);
    }
}

/* The k best of `count` scores (all, if fewer) -> selected; returns how many. */
int64_t ref_select(const double *score, int64_t count, int64_t k, int64_t *selected)
{
    int64_t kept = 0;
    for (int64_t g = 0; g < count; g++) {
        /* indexer.select.1: The index_topk visible entries of the largest scores are kept; all, if
         * fewer are visible. */
        if (kept == k && !(score[g] > score[selected[k - 1]]))
            continue;
        int64_t at = kept < k ? kept++ : k - 1;
        /* indexer.select.2: They are listed by descending score. Of equal scores any may be taken,
         * in any order; the reference prefers the lower index. */
        for (; at > 0 && score[g] > score[selected[at - 1]]; at--)
            selected[at] = selected[at - 1];
        selected[at] = g;
    }
    return kept;
}
