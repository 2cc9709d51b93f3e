/* spec/state.md: what one sequence leaves behind for its next tokens. */
#include "ref.h"

#include <stdlib.h>
#include <string.h>

/* kv [d] of token t joins the window of its layer. */
void ref_window_push(const ref_context *c, ref_layer_state *state, int64_t t, const double *kv)
{
    int64_t d = c->config->head_dim;
    /* state.window.1: The window is a ring of W entries: the kv of token t (after rotation and QDQ)
     * takes row t mod W, over that of token t - W, before token t attends. */
    memcpy(state->window + t % c->config->sliding_window * d, kv, (size_t)d * sizeof *kv);
}

/* The item a, z [c d] of token t joins its compressor. */
void ref_compressor_push(ref_compressor_state *state, int64_t t, const double *a, const double *z)
{
    int64_t width = state->halves * state->head;
    /* state.compressor.1: Each compressor keeps the a and z of the unfinished group's tokens; in
     * CSA those of the group before it too, which the next entry also pools. */
    int64_t slots = state->halves * state->ratio;
    memcpy(state->a + t % slots * width, a, (size_t)width * sizeof *a);
    memcpy(state->z + t % slots * width, z, (size_t)width * sizeof *z);
}

static void compressor_state(ref_compressor_state *state, bool index, int64_t ratio, int64_t head,
                             int64_t max_tokens)
{
    *state = (ref_compressor_state){
        .index = index, .ratio = ratio, .head = head, .halves = ratio == 4 ? 2 : 1};
    int64_t items = state->halves * ratio * state->halves * head;
    state->a = ref_new(items);
    state->z = ref_new(items);
    /* state.compressor.2: Each compressor keeps all entries that it has emitted (finished: normed,
     * rotated, QDQ). */
    state->entries = ref_new(max_tokens / ratio * head);
}

static void layer_state(ref_layer_state *state, const dsv4_config *config, int64_t layer,
                        int64_t max_tokens)
{
    int64_t ratio = config->compress_ratios[layer];
    int64_t rows = config->sliding_window < max_tokens ? config->sliding_window : max_tokens;
    state->window = ref_new(rows * config->head_dim);
    if (ratio > 0)
        compressor_state(&state->compressor, false, ratio, config->head_dim, max_tokens);
    if (ratio == 4)
        compressor_state(&state->index, true, ratio, config->index_head_dim, max_tokens);
}

/* Room for `max_tokens` tokens. */
ref_state *ref_state_new(const dsv4_config *config, int64_t mtp_layers, int64_t max_tokens)
{
    ref_state *state = dsv4_alloc(1, sizeof *state);
    state->max_tokens = max_tokens;
    state->layers = config->num_hidden_layers;
    state->mtp_layers = mtp_layers;
    /* state.sequence.1: Every sequence has its own state, one part per layer, empty at position 0.
     * Nothing passes from one sequence to another. */
    state->layer = dsv4_alloc((size_t)state->layers, sizeof *state->layer);
    for (int64_t i = 0; i < state->layers; i++)
        layer_state(&state->layer[i], config, i, max_tokens);
    /* state.mtp.1: The MTP layer has a state of its own. Its step t needs the id of token t + 1, so
     * it waits until that is known: in generation it lags one token behind. */
    state->mtp = dsv4_alloc((size_t)mtp_layers, sizeof *state->mtp);
    for (int64_t i = 0; i < mtp_layers; i++)
        layer_state(&state->mtp[i], config, state->layers + i, max_tokens);
    return state;
}

static void free_layers(ref_layer_state *layer, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        ref_compressor_state *compressors[2] = {&layer[i].compressor, &layer[i].index};
        for (int j = 0; j < 2; j++) {
            free(compressors[j]->a);
            free(compressors[j]->z);
            free(compressors[j]->entries);
        }
        free(layer[i].window);
    }
    free(layer);
}

void ref_state_free(ref_state *state)
{
    if (state == NULL)
        return;
    free_layers(state->layer, state->layers);
    free_layers(state->mtp, state->mtp_layers);
    free(state);
}
