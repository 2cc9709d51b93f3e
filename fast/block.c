/* spec/block.md: one layer: attention and mixture of experts, each between the mHC mixes. */
#include "fast/fast.h"

/* What mHC needs around one sublayer. */
typedef struct { float *pre, *post, *comb, *u, *x, *y; } surroundings;

/* The streams h, mixed, collapsed and normed -> s->x (mhc.mix.1 to mhc.pre.2). */
static void enter(const fast_context *c, const fast_call *call, const dsv4_hc *hc,
                  const dsv4_matrix *norm, const char *name, const float *h, surroundings *s)
{
    fast_enter(c, DSV4_PART_MHC);
    fast_mhc_mix(c, hc, h, call->T, s->pre, s->post, s->comb);
    fast_mhc_pre(c, s->pre, h, call->T, s->u);
    fast_tap(c, call, name, c->config->hidden_size, 0, s->u);
    fast_rmsnorm(c, norm, s->u, call->T, s->x);
}

void fast_block(const fast_context *c, const fast_call *call, const dsv4_layer *layer,
                fast_layer_state *const *state, const int64_t *ids, float *h)
{
    fast_place mark = fast_mark(c->memory);
    int64_t T = call->T, n = c->config->hc_mult, D = c->config->hidden_size;
    surroundings s = {FAST_TAKE(c, float, T * n), FAST_TAKE(c, float, T * n),
                      FAST_TAKE(c, float, T * n * n), FAST_TAKE(c, float, T * D),
                      FAST_TAKE(c, float, T * D), FAST_TAKE(c, float, T * D)};

    fast_profile_kind(c, (int)layer->kind);
    /* block.attention.1 */
    enter(c, call, &layer->hc_attn, &layer->attn_norm, "attn_in", h, &s);
    fast_attention(c, call, layer, state, s.x, s.y);
    fast_enter(c, DSV4_PART_MHC);
    fast_mhc_post(c, s.post, s.comb, s.y, T, h);
    fast_tap(c, call, "mid", n, D, h);

    /* block.moe.1 */
    enter(c, call, &layer->hc_ffn, &layer->ffn_norm, "ffn_in", h, &s);
    fast_moe(c, call, layer, ids, s.x, s.y);
    fast_enter(c, DSV4_PART_MHC);
    fast_mhc_post(c, s.post, s.comb, s.y, T, h);
    fast_tap(c, call, "out", n, D, h);
    fast_enter(c, DSV4_PART_OTHER);
    fast_profile_kind(c, DSV4_OUTSIDE);
    fast_release(c->memory, mark);
}
