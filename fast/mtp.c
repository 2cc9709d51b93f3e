/* spec/mtp.md: multi-token prediction: from h_t and token t+1 to the streams before MTP's head. */
#include "fast/fast.h"

void fast_mtp(fast_context *c, const fast_call *call, const dsv4_model *model,
              const int64_t *next_ids, const float *h, float *x)
{
    fast_place mark = fast_mark(c->memory);
    const dsv4_layer *layer = &model->mtp[0];
    int64_t T = call->T, n = c->config->hc_mult, D = c->config->hidden_size;
    fast_layer_state **state = FAST_TAKE(c, fast_layer_state *, call->segments);
    fast_place before = fast_mark(c->memory);
    float *e = FAST_TAKE(c, float, T * D), *from_e = FAST_TAKE(c, float, T * D);
    float *normed = FAST_TAKE(c, float, T * n * D);
    c->layer = layer->index;

    /* mtp.embed.1 */
    fast_embed(c, &model->embed, next_ids, T, e);
    fast_rmsnorm(c, &layer->enorm, e, T, e);
    fast_linear(c, &layer->e_proj, e, T, from_e);
    /* mtp.stream.1, mtp.stream.2 */
    fast_rmsnorm(c, &layer->hnorm, h, T * n, normed);
    fast_linear(c, &layer->h_proj, normed, T * n, x);
    for (int64_t i = 0; i < T * n; i++)
        for (int64_t j = 0; j < D; j++)
            x[i * D + j] += from_e[i / n * D + j];
    fast_bf16(c, x, T * n * D);
    fast_release(c->memory, before);
    fast_tap(c, call, "in", n, D, x);

    /* mtp.block.1 */
    for (int64_t j = 0; j < call->segments; j++)
        state[j] = call->segment[j].state->mtp;
    fast_block(c, call, layer, state, next_ids, x);
    for (int64_t j = 0; j < call->segments; j++)
        call->segment[j].state->mtp_position += call->segment[j].rows;
    fast_release(c->memory, mark);
}
