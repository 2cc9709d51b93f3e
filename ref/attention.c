/* spec/attention.md: the attention sublayer of SWA, CSA and HCA layers. */
#include "ref.h"

#include <stdlib.h>

/* x [T, D] -> qr [T, q_lora_rank], q [T, H, d]. */
static void make_queries(const ref_context *c, const dsv4_layer *layer, const double *freq,
                         int64_t position, const double *x, int64_t T, double *qr, double *q)
{
    int64_t H = c->config->num_attention_heads, d = c->config->head_dim;
    /* attention.query.1: qr = RMSNorm(wq_a u', q_norm), q_lora_rank values. */
    ref_linear(c, &layer->attn.wq_a, x, T, qr);
    ref_rmsnorm(c, &layer->attn.q_norm, qr, T, qr);
    /* attention.query.2: q = wq_b qr, as H heads of d, each normalised by itself
     * (rmsnorm.head.1). */
    ref_linear(c, &layer->attn.wq_b, qr, T, q);
    ref_rmsnorm_head(c, q, T * H);
    /* attention.query.3: The last R values of every head are rotated at the token's position. */
    for (int64_t i = 0; i < T * H; i++)
        ref_rope(c, freq, position + i / H, q + i * d, d);
    ref_tap(c, "q", position, T, H, d, q);
}

/* x [T, D] -> kv [T, d]. */
static void make_keys(const ref_context *c, const dsv4_layer *layer, const double *freq,
                      int64_t position, const double *x, int64_t T, double *kv)
{
    int64_t d = c->config->head_dim;
    /* attention.kv.1: kv = RMSNorm(wkv u', kv_norm): one vector of d values, key and value of all
     * heads. */
    ref_linear(c, &layer->attn.wkv, x, T, kv);
    ref_rmsnorm(c, &layer->attn.kv_norm, kv, T, kv);
    for (int64_t t = 0; t < T; t++) {
        /* attention.kv.2: Its last R values are rotated at the token's position. Released: then the
         * QDQ of quant.kv.1. */
        ref_rope(c, freq, position + t, kv + t * d, d);
        ref_qdq_kv(c, kv + t * d);
    }
    ref_tap(c, "kv", position, T, d, 0, kv);
}

/* x [T, D], qr [T, q_lora_rank] -> the new entries of the layer's compressors and, in CSA, the indexer's
 * queries iq [T, n_i, d_i] and weights w [T, n_i]. */
static void compress(ref_context *c, const dsv4_layer *layer, ref_layer_state *state,
                     const double *freq, int64_t position, const double *x, const double *qr,
                     int64_t T, double *iq, double *w)
{
    /* attention.compressed.1: CSA and HCA layers compress the same normed input u' that queries and
     * keys are made from. The new entries of a call are made before any token of it attends; what a
     * token may see of them is compressor.visible.1. */
    if (layer->kind != DSV4_SWA)
        ref_compress(c, &layer->attn.compressor, &state->compressor, freq, position, x, T);
    if (layer->kind == DSV4_CSA) {
        ref_index_query(c, layer, freq, position, qr, T, iq);
        ref_compress(c, &layer->attn.indexer.compressor, &state->index, freq, position, x, T);
        ref_index_weights(c, layer, x, T, w);
    }
}

/* The compressed entries that token t attends to -> selected; returns how many. In CSA iq [n_i, d_i]
 * and w [n_i] are the token's indexer query and weights. */
static int64_t choose(const ref_context *c, const dsv4_layer *layer, const ref_layer_state *state,
                      int64_t t, const double *iq, const double *w, int64_t *selected)
{
    /* attention.swa.1: An SWA layer attends to its window only. */
    if (layer->kind == DSV4_SWA)
        return 0;
    int64_t visible = ref_visible(t, layer->ratio), count;
    if (layer->kind == DSV4_HCA) {
        /* attention.hca.1: An HCA layer attends to its window and to all visible entries of its
         * compressor, in ascending order. It has no indexer. */
        for (count = 0; count < visible; count++)
            selected[count] = count;
    } else {
        /* attention.csa.1: A CSA layer attends to its window and to the visible entries that its
         * indexer selects. */
        double *score = ref_new(visible);
        ref_index_scores(c, iq, w, state->index.entries, visible, score);
        ref_tap(c, "index_score", t, 1, visible, 0, score);
        count = ref_select(score, visible, c->config->index_topk, selected);
        free(score);
    }
    ref_tap_indices(c, "selected", t, 1, count, selected);
    return count;
}

/* q [T, H, d], kv [T, d], iq, w -> core [T, H, d], token by token: each joins the window first. */
static void attend(const ref_context *c, const dsv4_layer *layer, ref_layer_state *state,
                   int64_t position, const double *q, const double *kv, const double *iq,
                   const double *w, int64_t T, double *core)
{
    int64_t H = c->config->num_attention_heads, d = c->config->head_dim;
    int64_t W = c->config->sliding_window, n_i = c->config->index_n_heads;
    int64_t in_window = position + T < W ? position + T : W, entries = state->compressor.count;
    int64_t *selected = dsv4_alloc((size_t)entries, sizeof *selected);
    ref_entry *list = dsv4_alloc((size_t)(in_window + entries), sizeof *list);
    double *sink = ref_vector(c, &layer->attn.attn_sink);
    for (int64_t t = 0; t < T; t++) {
        ref_window_push(c, state, position + t, kv + t * d);
        int64_t n_selected = choose(c, layer, state, position + t,
                                    iq + t * n_i * c->config->index_head_dim, w + t * n_i,
                                    selected);
        int64_t n_list = ref_list_entries(c, state, position + t, selected, n_selected, list);
        ref_core_attn(c, q + t * H * d, sink, list, n_list, core + t * H * d);
    }
    ref_tap(c, "attn_core", position, T, H, d, core);
    free(selected);
    free(list);
    free(sink);
}

/* core [T, H, d] -> y [T, D]; core is rotated back in place. */
static void make_output(const ref_context *c, const dsv4_layer *layer, const double *freq,
                        int64_t position, double *core, int64_t T, double *y)
{
    int64_t H = c->config->num_attention_heads, d = c->config->head_dim;
    int64_t groups = c->config->o_groups;
    double *grouped = ref_new(T * groups * c->config->o_lora_rank);
    /* attention.out.1: The last R values of every head's output are rotated back by the inverse
     * rotation at the token's own position. Released: rounded to bf16. */
    for (int64_t i = 0; i < T * H; i++)
        ref_rope_inverse(c, freq, position + i / H, core + i * d, d);
    /* attention.out.2: Heads fall into o_groups consecutive groups; each group's (H / o_groups) d
     * values pass its slice of wo_a (linear.grouped.1). */
    ref_linear_grouped(c, &layer->attn.wo_a, groups, core, T, grouped);
    /* attention.out.3: The o_groups o_lora_rank results, concatenated, pass wo_b. */
    ref_linear(c, &layer->attn.wo_b, grouped, T, y);
    ref_tap(c, "attn_out", position, T, c->config->hidden_size, 0, y);
    free(grouped);
}

/* x [T, D], the tokens from `position` on -> y [T, D]. */
void ref_attention(ref_context *c, const dsv4_layer *layer, ref_layer_state *state,
                   int64_t position, const double *x, int64_t T, double *y)
{
    const dsv4_config *config = c->config;
    int64_t H = config->num_attention_heads, d = config->head_dim, n_i = config->index_n_heads;
    double *freq = ref_new(config->qk_rope_head_dim / 2);
    double *qr = ref_new(T * config->q_lora_rank), *q = ref_new(T * H * d);
    double *kv = ref_new(T * d), *core = ref_new(T * H * d);
    double *iq = ref_new(T * n_i * config->index_head_dim), *w = ref_new(T * n_i);

    ref_rope_frequencies(c, layer->kind != DSV4_SWA, freq);
    make_queries(c, layer, freq, position, x, T, qr, q);
    make_keys(c, layer, freq, position, x, T, kv);
    compress(c, layer, state, freq, position, x, qr, T, iq, w);
    attend(c, layer, state, position, q, kv, iq, w, T, core);
    make_output(c, layer, freq, position, core, T, y);

    free(freq);
    free(qr);
    free(q);
    free(kv);
    free(core);
    free(iq);
    free(w);
}
