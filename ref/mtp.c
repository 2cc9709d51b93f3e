/* spec/mtp.md: multi-token prediction: from h_t and token t+1 to the logits of token t+2. */
#include "ref.h"

#include <stdlib.h>

/* h [T, n, D], the streams after the last layer; next_ids [T], the token after each -> logits
 * [T, V]. */
void ref_mtp(ref_context *c, const dsv4_model *model, ref_state *state, const int64_t *next_ids,
             const double *h, int64_t T, double *logits)
{
    const dsv4_layer *layer = &model->mtp[0];
    int64_t n = c->config->hc_mult, D = c->config->hidden_size, position = state->mtp_position;
    double *e = ref_new(T * D), *from_e = ref_new(T * D);
    double *normed = ref_new(T * n * D), *x = ref_new(T * n * D);

    /* mtp.embed.1: e = RMSNorm(embedding of token t + 1, enorm), then e_proj e. The embedding
     * matrix is the model's. */
    ref_embed(c, &model->embed, next_ids, T, e);
    ref_rmsnorm(c, &layer->enorm, e, T, e);
    ref_linear(c, &layer->e_proj, e, T, from_e);
    /* mtp.stream.1: Each stream j of h_t passes RMSNorm with hnorm, then h_proj. */
    ref_rmsnorm(c, &layer->hnorm, h, T * n, normed);
    ref_linear(c, &layer->h_proj, normed, T * n, x);
    /* mtp.stream.2: Stream j of the layer's input is e_proj e + h_proj RMSNorm(h_tj, hnorm).
     * Released: both terms, and their sum, are rounded to bf16. */
    for (int64_t i = 0; i < T * n * D; i++)
        x[i] = ref_bf16(c, x[i] + from_e[i / (n * D) * D + i % D]);
    c->layer = layer->index;
    ref_tap(c, "in", position, T, n, D, x);

    /* mtp.block.1: One ordinary block follows, at position t, with the weights of mtp.0, a score
     * gate, the ratio compress_ratios[num_hidden_layers], and a window of its own. */
    ref_block(c, layer, state->mtp, next_ids, position, x, T);
    /* mtp.head.1: The head follows with MTP's own hc_head and norm, and the model's head matrix. */
    if (logits != NULL)
        ref_head(c, &layer->hc_head, &layer->norm, &model->head, x, T, logits);
    state->mtp_position += T;

    free(e);
    free(from_e);
    free(normed);
    free(x);
}
