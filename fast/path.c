/* The optimised path behind the interface of host/path.h: what is configured, runs and batches
 * of runs, and the tap. Not a chapter. */
#include "fast/fast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what all runs share ---- */

/* Set up by configure(), or by the first run with what is best here. One thread at a time works
 * with it. */
static struct {
    const fast_kernels *kernels; /* NULL: not set up */
    fast_pool *pool;
    fast_memory *memory;
    bool deterministic;
    int runs; /* open ones */
    char level[64];
} engine;

static void shut_down(void)
{
    fast_pool_free(engine.pool);
    fast_memory_free(engine.memory);
    engine.kernels = NULL;
    engine.pool = NULL;
    engine.memory = NULL;
}

static int configure(const dsv4_path_options *options, dsv4_error *err)
{
    static bool registered;
    const char *cap = options->isa != NULL ? options->isa : getenv("DSV4_ISA");
    if (engine.runs > 0)
        return dsv4_fail(err, "the path cannot be configured while %d runs are open", engine.runs);
    dsv4_error why = {""};
    const fast_kernels *kernels = fast_level(cap, &why);
    if (kernels == NULL)
        return dsv4_fail(err, "%s: %s", options->isa != NULL ? "--isa" : "DSV4_ISA", why.text);
    fast_pool *pool = fast_pool_new(options->threads, err);
    if (pool == NULL)
        return -1;
    shut_down();
    engine.kernels = kernels;
    engine.pool = pool;
    engine.memory = fast_memory_new();
    engine.deterministic = options->deterministic;
    int threads = fast_pool_threads(pool);
    snprintf(engine.level, sizeof engine.level, "%s, %d thread%s", kernels->name, threads,
             threads == 1 ? "" : "s");
    if (!registered)
        registered = atexit(shut_down) == 0;
    return 0;
}

static int set_up(dsv4_error *err)
{
    static const dsv4_path_options best = {0};
    return engine.kernels != NULL ? 0 : configure(&best, err);
}

static const char *level(void)
{
    dsv4_error ignored = {""};
    return set_up(&ignored) == 0 ? engine.level : "no level";
}

const fast_kernels *fast_configured_kernels(void)
{
    dsv4_error ignored = {""};
    return set_up(&ignored) == 0 ? engine.kernels : NULL;
}

fast_pool *fast_configured_pool(void)
{
    return engine.pool;
}

bool fast_configured_deterministic(void)
{
    return engine.deterministic;
}

/* ---- the tap ---- */

bool fast_check_finite(const fast_context *c, const char *what, int64_t row, int64_t width,
                       const float *x, int64_t count)
{
    if (c->kernels->quant->finite(x, count))
        return true;
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(x[i])) { /* numerics.finite.1 */
            dsv4_fail(c->error, "%s [%lld, %lld] is %s, expected a finite number: the weights make "
                      "the model overflow", what, (long long)(row + i / width),
                      (long long)(i % width), isnan(x[i]) ? "NaN" : "infinite");
            break;
        }
    return false;
}

/* To binary64 for the tap, and back what it left. */
static void show(const dsv4_tap *tap, dsv4_point *point, float *values, int64_t count)
{
    double *copy = dsv4_alloc((size_t)count, sizeof *copy);
    for (int64_t i = 0; i < count; i++)
        copy[i] = values[i];
    point->values = copy;
    tap->at(tap->context, point);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)copy[i];
    free(copy);
}

void fast_tap_rows(const fast_context *c, const fast_segment *segment, const char *name, int64_t row,
                   int64_t rows, int64_t dim0, int64_t dim1, float *values)
{
    int64_t width = dim0 * (dim1 != 0 ? dim1 : 1);
    dsv4_point point = {.name = name, .layer = c->layer, .row = row, .rows = rows,
                        .rank = dim1 != 0 ? 2 : 1, .dim = {dim0, dim1}};
    if (segment->tap != NULL)
        show(segment->tap, &point, values, rows * width);
    char what[64];
    snprintf(what, sizeof what, "layer %lld: %s", (long long)c->layer, name);
    fast_check_finite(c, what, row, width, values, rows * width);
}

void fast_tap(const fast_context *c, const fast_call *call, const char *name, int64_t dim0,
              int64_t dim1, float *values)
{
    int64_t width = dim0 * (dim1 != 0 ? dim1 : 1);
    for (int64_t i = 0; i < call->segments; i++) {
        const fast_segment *s = &call->segment[i];
        fast_tap_rows(c, s, name, s->position, s->rows, dim0, dim1, values + s->first * width);
    }
}

void fast_tap_indices(const fast_context *c, const fast_segment *segment, const char *name,
                      int64_t row, int64_t rows, int64_t dim0, int64_t *indices)
{
    dsv4_point point = {.name = name, .layer = c->layer, .row = row, .rows = rows, .rank = 1,
                        .dim = {dim0, 0}, .indices = indices};
    if (segment->tap != NULL)
        segment->tap->at(segment->tap->context, &point);
}

/* ---- runs ---- */

struct dsv4_run {
    const dsv4_model *model;
    bool released;
    const dsv4_tap *tap;
    fast_state *state;
    float *h; /* [h_tokens, n, D]: the streams of the last forward call, for MTP; else NULL */
    int64_t h_tokens;
    dsv4_profile *profile; /* where times are added; or NULL */
};

const fast_state *fast_run_state(const dsv4_run *run)
{
    return run->state;
}

static dsv4_run *open_run(const dsv4_model *model, dsv4_numerics numerics, int64_t max_tokens,
                          const dsv4_tap *tap, dsv4_error *err)
{
    if (max_tokens < 1) {
        dsv4_fail(err, "a run of %lld tokens: expected at least 1", (long long)max_tokens);
        return NULL;
    }
    if (set_up(err) != 0)
        return NULL;
    bool released = numerics == DSV4_RELEASED;
    fast_state *state =
        fast_state_new(&model->config, released, model->mtp != NULL ? 1 : 0, max_tokens, err);
    if (state == NULL)
        return NULL;
    dsv4_run *run = dsv4_alloc(1, sizeof *run);
    *run = (dsv4_run){.model = model, .released = released, .tap = tap, .state = state};
    engine.runs++;
    return run;
}

static int64_t state_bytes(const dsv4_config *config, dsv4_numerics numerics, int64_t tokens)
{
    return fast_state_bytes(config, numerics == DSV4_RELEASED, 0, tokens);
}

static void close_run(dsv4_run *run)
{
    if (run == NULL)
        return;
    engine.runs--;
    fast_state_free(run->state);
    free(run->h);
    free(run);
}

static void profile_run(dsv4_run *run, dsv4_profile *profile)
{
    run->profile = profile;
}

static int fill(dsv4_run *run, int64_t position, uint64_t seed, dsv4_error *err)
{
    if (position < 0 || position > run->state->max_tokens)
        return dsv4_fail(err, "a state of %lld tokens in a run of at most %lld",
                         (long long)position, (long long)run->state->max_tokens);
    const fast_context c = {.config = &run->model->config, .released = run->released,
                            .kernels = engine.kernels, .pool = engine.pool,
                            .memory = engine.memory, .error = err};
    fast_state_fill(&c, run->state, position, seed);
    run->h_tokens = 0;
    return err->text[0] == '\0' ? 0 : -1;
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

/* ---- calls ---- */

/* Rows that pass through the layers together: more would save little, and their intermediate results
 * take more memory. Logits are made for fewer where the vocabulary is large. */
enum { MOST_ROWS = 1024, MOST_LOGITS = 1 << 24 };

/* One call of forward_batch() or mtp_batch(), worked off MOST_ROWS rows at a time. */
typedef struct {
    dsv4_run *const *runs;
    int64_t count;
    const int64_t *const *ids;
    const int64_t *n;
    double *const *logits;
    bool mtp;
    fast_context c;
} work;

/* Rows of several runs: segment i has tokens done[i] .. of run of[i]'s share of the call. */
typedef struct {
    fast_call call;
    fast_segment *segment;
    int64_t *of, *done;
    int64_t *ids;
} slab;

/* The next rows: as many of each run as there is room for. `done` [count] moves on. */
static bool next_slab(const work *w, int64_t *done, slab *s)
{
    const fast_context *c = &w->c;
    int64_t *position = FAST_TAKE(c, int64_t, MOST_ROWS);
    *s = (slab){.segment = FAST_TAKE(c, fast_segment, w->count),
                .of = FAST_TAKE(c, int64_t, w->count), .done = FAST_TAKE(c, int64_t, w->count),
                .ids = FAST_TAKE(c, int64_t, MOST_ROWS)};
    int64_t T = 0, segments = 0;
    for (int64_t i = 0; i < w->count && T < MOST_ROWS; i++) {
        int64_t rows = w->n[i] - done[i] < MOST_ROWS - T ? w->n[i] - done[i] : MOST_ROWS - T;
        if (rows == 0)
            continue;
        const dsv4_run *run = w->runs[i];
        int64_t start = w->mtp ? run->state->mtp_position : run->state->position;
        s->segment[segments] = (fast_segment){run->state, T, rows, start, run->tap};
        s->of[segments] = i;
        s->done[segments++] = done[i];
        for (int64_t j = 0; j < rows; j++) {
            position[T + j] = start + j;
            s->ids[T + j] = w->ids[i][done[i] + j];
        }
        T += rows;
        done[i] += rows;
    }
    s->call = (fast_call){T, segments, s->segment, position};
    return T > 0;
}

/* The logits of one segment from its streams h [rows, n, D]. */
static void make_logits(const work *w, const slab *s, int64_t i, const float *h)
{
    const fast_context *c = &w->c;
    const fast_segment *segment = &s->segment[i];
    const dsv4_model *model = w->runs[s->of[i]]->model;
    int64_t V = c->config->vocab_size, nD = c->config->hc_mult * c->config->hidden_size;
    int64_t most = MOST_LOGITS / V > 0 ? MOST_LOGITS / V : 1;
    for (int64_t row = 0, rows; row < segment->rows; row += rows) {
        rows = segment->rows - row < most ? segment->rows - row : most;
        fast_place mark = fast_mark(c->memory);
        fast_enter(c, DSV4_PART_HEAD);
        float *logits = FAST_TAKE(c, float, rows * V);
        fast_head(c, w->mtp ? &model->mtp->hc_head : &model->hc_head,
                  w->mtp ? &model->mtp->norm : &model->norm, &model->head, h + row * nD, rows,
                  logits);
        fast_check_finite(c, w->mtp ? "mtp_logits" : "logits", segment->position + row, V, logits,
                          rows * V);
        double *out = w->logits[s->of[i]] + (s->done[i] + row) * V;
        for (int64_t j = 0; j < rows * V; j++)
            out[j] = logits[j];
        fast_enter(c, DSV4_PART_OTHER);
        fast_release(c->memory, mark);
    }
}

static bool wants_logits(const work *w, int64_t run)
{
    return w->logits != NULL && w->logits[run] != NULL;
}

static void compute_slab(work *w, slab *s)
{
    fast_context *c = &w->c;
    const dsv4_model *model = w->runs[0]->model;
    int64_t nD = c->config->hc_mult * c->config->hidden_size;
    float *h = FAST_TAKE(c, float, s->call.T * nD);
    if (w->mtp) {
        float *before = FAST_TAKE(c, float, s->call.T * nD);
        for (int64_t i = 0; i < s->call.segments; i++)
            memcpy(before + s->segment[i].first * nD, w->runs[s->of[i]]->h + s->done[i] * nD,
                   (size_t)(s->segment[i].rows * nD) * sizeof *before);
        fast_mtp(c, &s->call, model, s->ids, before, h);
    } else {
        fast_forward(c, &s->call, model, s->ids, h);
    }
    for (int64_t i = 0; i < s->call.segments && c->error->text[0] == '\0'; i++) {
        dsv4_run *run = w->runs[s->of[i]];
        const float *rows = h + s->segment[i].first * nD;
        if (!w->mtp && run->h != NULL)
            memcpy(run->h + s->done[i] * nD, rows, (size_t)(s->segment[i].rows * nD) * sizeof *h);
        if (wants_logits(w, s->of[i]))
            make_logits(w, s, i, rows);
    }
}

static int compute(work *w, dsv4_error *err)
{
    const dsv4_run *first = w->runs[0];
    w->c = (fast_context){.config = &first->model->config, .released = first->released,
                          .deterministic = engine.deterministic, .kernels = engine.kernels,
                          .pool = engine.pool, .memory = engine.memory, .error = err};
    fast_profile profile;
    if (first->profile != NULL) {
        profile = fast_profile_start(first->profile);
        w->c.profile = &profile;
    }
    int64_t *done = dsv4_alloc((size_t)w->count, sizeof *done);
    for (bool more = true; more && err->text[0] == '\0';) {
        fast_place mark = fast_mark(engine.memory);
        slab s;
        more = next_slab(w, done, &s);
        if (more)
            compute_slab(w, &s);
        fast_release(engine.memory, mark);
    }
    free(done);
    fast_enter(&w->c, DSV4_PART_OTHER); /* the last part ends here */
    return err->text[0] == '\0' ? 0 : -1;
}

static int check_batch(dsv4_run *const *runs, int64_t count, dsv4_error *err)
{
    if (count < 1)
        return dsv4_fail(err, "a batch of %lld sequences: expected 1 or more", (long long)count);
    for (int64_t i = 0; i < count; i++) {
        if (runs[i]->model != runs[0]->model || runs[i]->released != runs[0]->released)
            return dsv4_fail(err, "the runs of a batch are of different models or contracts");
        for (int64_t j = 0; j < i; j++)
            if (runs[i] == runs[j])
                return dsv4_fail(err, "run %lld of a batch is run %lld again", (long long)i,
                                 (long long)j);
    }
    return 0;
}

static int forward_batch(dsv4_run *const *runs, int64_t count, const int64_t *const *ids,
                         const int64_t *n, double *const *logits, dsv4_error *err)
{
    if (check_batch(runs, count, err) != 0)
        return -1;
    for (int64_t i = 0; i < count; i++)
        if (check_call(runs[i], ids[i], n[i], runs[i]->state->position, runs[i]->state->position,
                       err) != 0)
            return -1;
    const dsv4_config *config = &runs[0]->model->config;
    for (int64_t i = 0; i < count; i++) {
        if (runs[i]->model->mtp != NULL && n[i] != runs[i]->h_tokens) {
            free(runs[i]->h);
            runs[i]->h = dsv4_alloc((size_t)(n[i] * config->hc_mult * config->hidden_size),
                                    sizeof *runs[i]->h);
        }
        runs[i]->h_tokens = n[i];
    }
    work w = {.runs = runs, .count = count, .ids = ids, .n = n, .logits = logits};
    return compute(&w, err);
}

static int mtp_batch(dsv4_run *const *runs, int64_t count, const int64_t *const *next_ids,
                     const int64_t *n, double *const *logits, dsv4_error *err)
{
    if (check_batch(runs, count, err) != 0)
        return -1;
    if (runs[0]->model->mtp == NULL)
        return dsv4_fail(err, "the model was opened without its MTP layer");
    for (int64_t i = 0; i < count; i++) {
        int64_t position = runs[i]->state->mtp_position;
        if (n[i] != runs[i]->h_tokens || position + n[i] != runs[i]->state->position)
            return dsv4_fail(err, "MTP of %lld tokens after %lld, expected the %lld of the last "
                             "forward call", (long long)n[i], (long long)position,
                             (long long)runs[i]->h_tokens);
        if (check_call(runs[i], next_ids[i], n[i], position, position + 1, err) != 0)
            return -1;
    }
    work w = {.runs = runs, .count = count, .ids = next_ids, .n = n, .logits = logits,
              .mtp = true};
    return compute(&w, err);
}

static int forward(dsv4_run *run, const int64_t *ids, int64_t n, double *logits, dsv4_error *err)
{
    return forward_batch(&run, 1, &ids, &n, &logits, err);
}

static int mtp(dsv4_run *run, const int64_t *next_ids, int64_t n, double *logits, dsv4_error *err)
{
    return mtp_batch(&run, 1, &next_ids, &n, &logits, err);
}

const dsv4_path dsv4_path_fast = {
    .name = "fast", .configure = configure, .level = level, .open = open_run, .forward = forward,
    .mtp = mtp, .forward_batch = forward_batch, .mtp_batch = mtp_batch, .profile = profile_run,
    .fill = fill, .close = close_run, .state_bytes = state_bytes, .answer = fast_answer,
};
