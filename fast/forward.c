/* spec/forward.md: the pass over the next tokens of one or several sequences. */
#include "fast/fast.h"

void fast_forward(fast_context *c, const fast_call *call, const dsv4_model *model,
                  const int64_t *ids, float *h)
{
    fast_place mark = fast_mark(c->memory);
    fast_layer_state **state = FAST_TAKE(c, fast_layer_state *, call->segments);
    fast_place before = fast_mark(c->memory);
    /* forward.embed.1 */
    fast_enter(c, DSV4_PART_EMBED);
    float *e = FAST_TAKE(c, float, call->T * c->config->hidden_size);
    fast_embed(c, &model->embed, ids, call->T, e);
    fast_streams(c, e, call->T, h);
    fast_enter(c, DSV4_PART_OTHER);
    fast_release(c->memory, before);
    /* forward.layers.1 */
    for (int64_t i = 0; i < c->config->num_hidden_layers && c->error->text[0] == '\0'; i++) {
        for (int64_t j = 0; j < call->segments; j++)
            state[j] = &call->segment[j].state->layer[i];
        c->layer = model->layers[i].index;
        fast_block(c, call, &model->layers[i], state, ids, h);
    }
    /* forward.position.1 */
    for (int64_t j = 0; j < call->segments; j++)
        call->segment[j].state->position += call->segment[j].rows;
    fast_release(c->memory, mark);
}
