/* The reference behind the interface of host/path.h, memory, and the tap. Not a chapter. */
#include "ref.h"

#include <stdio.h>
#include <stdlib.h>

double *ref_new(int64_t count)
{
    return dsv4_alloc((size_t)count, sizeof(double));
}

void ref_tap(const ref_context *c, const char *name, int64_t row, int64_t rows, int64_t dim0,
             int64_t dim1, double *values)
{
    dsv4_point point = {.name = name, .layer = c->layer, .row = row, .rows = rows,
                        .rank = dim1 != 0 ? 2 : 1, .dim = {dim0, dim1}, .values = values};
    if (c->tap != NULL)
        c->tap->at(c->tap->context, &point);
    int64_t width = dim0 * (dim1 != 0 ? dim1 : 1);
    char what[64];
    snprintf(what, sizeof what, "layer %lld: %s", (long long)c->layer, name);
    ref_check_finite(c, what, row, width, values, rows * width);
}

void ref_tap_indices(const ref_context *c, const char *name, int64_t row, int64_t rows,
                     int64_t dim0, int64_t *indices)
{
    dsv4_point point = {.name = name, .layer = c->layer, .row = row, .rows = rows, .rank = 1,
                        .dim = {dim0, 0}, .indices = indices};
    if (c->tap != NULL)
        c->tap->at(c->tap->context, &point);
}

struct dsv4_run {
    const dsv4_model *model;
    ref_context context;
    ref_state *state;
    double *h; /* [h_tokens, n, D]: the streams of the last forward call, for MTP */
    int64_t h_tokens;
};

static dsv4_run *open_run(const dsv4_model *model, dsv4_numerics numerics, int64_t max_tokens,
                          const dsv4_tap *tap, dsv4_error *err)
{
    if (max_tokens < 1) {
        dsv4_fail(err, "a run of %lld tokens: expected at least 1", (long long)max_tokens);
        return NULL;
    }
    dsv4_run *run = dsv4_alloc(1, sizeof *run);
    run->model = model;
    run->context = (ref_context){.config = &model->config, .numerics = numerics, .tap = tap};
    run->state = ref_state_new(&model->config, model->mtp != NULL ? 1 : 0, max_tokens);
    return run;
}

/* `first` is the place in the sequence of the token ids[0]. */
static int check_call(const dsv4_run *run, const int64_t *ids, int64_t n, int64_t position,
                      int64_t first, dsv4_error *err)
{
    int64_t V = run->model->config.vocab_size;
    if (n < 1 || n > run->state->max_tokens - position)
        return dsv4_fail(err, "%lld tokens after %lld, expected 1 or more and at most %lld in all",
                         (long long)n, (long long)position, (long long)run->state->max_tokens);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= V)
            return dsv4_fail(err, "token %lld has id %lld, expected 0..%lld",
                             (long long)(first + i), (long long)ids[i], (long long)(V - 1));
    return 0;
}

static int forward(dsv4_run *run, const int64_t *ids, int64_t n, double *logits, dsv4_error *err)
{
    const dsv4_config *config = run->context.config;
    int64_t position = run->state->position;
    if (check_call(run, ids, n, position, position, err) != 0)
        return -1;
    free(run->h);
    run->h = ref_new(n * config->hc_mult * config->hidden_size);
    run->h_tokens = n;
    run->context.error = err;
    ref_forward(&run->context, run->model, run->state, ids, n, run->h, logits);
    if (err->text[0] != '\0')
        return -1;
    int64_t V = config->vocab_size;
    return logits == NULL ||
           ref_check_finite(&run->context, "logits", position, V, logits, n * V) ? 0 : -1;
}

static int mtp(dsv4_run *run, const int64_t *next_ids, int64_t n, double *logits, dsv4_error *err)
{
    const dsv4_config *config = run->context.config;
    int64_t position = run->state->mtp_position;
    if (run->model->mtp == NULL)
        return dsv4_fail(err, "the model was opened without its MTP layer");
    if (n != run->h_tokens || position + n != run->state->position)
        return dsv4_fail(err, "MTP of %lld tokens after %lld, expected the %lld of the last "
                         "forward call", (long long)n, (long long)position,
                         (long long)run->h_tokens);
    if (check_call(run, next_ids, n, position, position + 1, err) != 0)
        return -1;
    run->context.error = err;
    ref_mtp(&run->context, run->model, run->state, next_ids, run->h, n, logits);
    if (err->text[0] != '\0')
        return -1;
    int64_t V = config->vocab_size;
    return logits == NULL ||
           ref_check_finite(&run->context, "mtp_logits", position, V, logits, n * V) ? 0 : -1;
}

/* splitmix64: uniform in [-sqrt 3, sqrt 3), so that the mean square is 1, as after a norm. */
static void draw(uint64_t *seed, int64_t count, double *x)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = *seed += 0x9e3779b97f4a7c15;
        bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
        bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
        bits ^= bits >> 31;
        x[i] = ((double)(bits >> 11) * 0x1p-52 - 1) * 1.7320508075688772;
    }
}

/* Entries as they would be left by QDQ. */
static void fill_entries(const ref_context *c, double *entries, int64_t count, int64_t head,
                         bool index, uint64_t *seed)
{
    draw(seed, count * head, entries);
    ref_bf16_all(c, entries, count * head);
    for (int64_t i = 0; i < count && index; i++)
        ref_qdq_index(c, entries + i * head);
    for (int64_t i = 0; i < count && !index; i++)
        ref_qdq_kv(c, entries + i * head);
}

static void fill_compressor(const ref_context *c, ref_compressor_state *state, int64_t position,
                            uint64_t *seed)
{
    if (state->head == 0)
        return;
    int64_t items = state->halves * state->ratio * state->halves * state->head;
    draw(seed, items, state->a);
    draw(seed, items, state->z);
    state->count = position / state->ratio;
    fill_entries(c, state->entries, state->count, state->head, state->index, seed);
}

static int fill(dsv4_run *run, int64_t position, uint64_t seed, dsv4_error *err)
{
    const dsv4_config *config = run->context.config;
    int64_t W = config->sliding_window;
    if (position < 0 || position > run->state->max_tokens)
        return dsv4_fail(err, "a state of %lld tokens in a run of at most %lld",
                         (long long)position, (long long)run->state->max_tokens);
    for (int64_t i = 0; i < run->state->layers; i++) {
        ref_layer_state *layer = &run->state->layer[i];
        fill_entries(&run->context, layer->window, position < W ? position : W, config->head_dim,
                     false, &seed);
        fill_compressor(&run->context, &layer->compressor, position, &seed);
        fill_compressor(&run->context, &layer->index, position, &seed);
    }
    run->state->position = position;
    run->h_tokens = 0;
    return 0;
}

static void close_run(dsv4_run *run)
{
    if (run == NULL)
        return;
    ref_state_free(run->state);
    free(run->h);
    free(run);
}

const dsv4_path dsv4_path_ref = {.name = "ref", .open = open_run, .forward = forward, .mtp = mtp,
                                 .fill = fill, .close = close_run, .answer = ref_answer};
