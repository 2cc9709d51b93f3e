/* spec/forward.md: the whole pass over the next tokens of a sequence. */
#include "ref.h"

#include <stdlib.h>

/* ids [T] -> h [T, n, D], the streams after the last layer (MTP takes them), and logits [T, V].
 * After an error (c->error) nothing that was computed has a meaning. */
void ref_forward(ref_context *c, const dsv4_model *model, ref_state *state, const int64_t *ids,
                 int64_t T, double *h, double *logits)
{
    double *e = ref_new(T * c->config->hidden_size);
    /* forward.embed.1: The tokens' embeddings become streams (embed.streams.1). */
    ref_embed(c, &model->embed, ids, T, e);
    ref_streams(c, e, T, h);
    free(e);
    /* forward.layers.1: The num_hidden_layers layers follow, each a block of the kind that
     * compress_ratios gives it; the first num_hash_layers route by token id. */
    for (int64_t i = 0; i < c->config->num_hidden_layers && c->error->text[0] == '\0'; i++)
        ref_block(c, &model->layers[i], &state->layer[i], ids, state->position, h, T);
    /* forward.head.1: The head makes logits [S, V]: row t are the logits of token t + 1. */
    if (logits != NULL)
        ref_head(c, &model->hc_head, &model->norm, &model->head, h, T, logits);
    /* forward.position.1: The next call goes on at the position after the last token of this one.
     * Rotations, ape rows, group boundaries and visibility depend on that absolute position, never
     * on a token's place in its call. */
    state->position += T;
}
