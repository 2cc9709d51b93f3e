/* experts MODEL_DIR THREADS ISA TOKENS CALLS: seconds that the routed experts of a layer take, alone.
 *
 * Exact products, no router and no shared expert: what `fused_experts_cpu` of the peer is given too.
 * Every row chooses num_experts_per_tok different experts at random, anew in every call. Grouping rows by
 * expert and summing what the experts made of a row are timed, as they are there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fast/fast.h"

enum { LAYER = 0 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Different ones, by the first k steps of a shuffle. */
static void choose(int64_t E, int64_t k, int64_t *order, int64_t *chosen)
{
    for (int64_t e = 0; e < k; e++) {
        int64_t other = e + random() % (E - e), swap = order[e];
        order[e] = order[other];
        order[other] = swap;
        chosen[e] = order[e];
    }
}

typedef struct { const float *part; const int64_t *place; int64_t k, D; float *y; } sums;

static void add_row(void *context, int64_t t, int worker)
{
    const sums *s = context;
    float *y = s->y + t * s->D;
    (void)worker;
    memset(y, 0, (size_t)s->D * sizeof *y);
    for (int64_t e = 0; e < s->k; e++) {
        const float *part = s->part + s->place[t * s->k + e] * s->D;
        for (int64_t i = 0; i < s->D; i++)
            y[i] += part[i];
    }
}

/* x [T, D] through the chosen experts [T, k] -> y [T, D]. */
static void mix(const fast_context *c, const dsv4_layer *layer, const int64_t *chosen,
                const float *weight, const float *x, int64_t T, float *y)
{
    int64_t E = c->config->n_routed_experts, k = c->config->num_experts_per_tok;
    int64_t D = c->config->hidden_size, at = 0, count = 0;
    fast_place mark = fast_mark(c->memory);
    int64_t *place = FAST_TAKE(c, int64_t, T * k);
    float *rows = FAST_TAKE(c, float, T * k * D), *weight_at = FAST_TAKE(c, float, T * k);
    fast_expert_job *jobs = FAST_TAKE(c, fast_expert_job, E);
    for (int64_t e = 0; e < E; e++) {
        int64_t first = at;
        for (int64_t i = 0; i < T * k; i++) {
            if (chosen[i] != e)
                continue;
            memcpy(rows + at * D, x + i / k * D, (size_t)D * sizeof *x);
            weight_at[at] = weight[i];
            place[i] = at++;
        }
        if (at > first)
            jobs[count++] = (fast_expert_job){.w = &layer->ffn.experts[e], .rows = at - first,
                                              .x = rows + first * D, .weight = weight_at + first,
                                              .y = rows + first * D};
    }
    fast_experts(c, jobs, count);
    fast_pool_run(c->pool, T, add_row, &(sums){rows, place, k, D, y});
    fast_release(c->memory, mark);
}

static double median_of_calls(const fast_context *c, const dsv4_layer *layer, int64_t T, int calls)
{
    int64_t E = c->config->n_routed_experts, k = c->config->num_experts_per_tok;
    int64_t D = c->config->hidden_size;
    int64_t *order = dsv4_alloc((size_t)E, sizeof *order);
    int64_t *chosen = dsv4_alloc((size_t)(T * k), sizeof *chosen);
    float *weight = dsv4_alloc((size_t)(T * k), sizeof *weight);
    float *x = dsv4_alloc((size_t)(T * D), sizeof *x), *y = dsv4_alloc((size_t)(T * D), sizeof *y);
    double *seconds = dsv4_alloc((size_t)calls, sizeof *seconds), median;
    for (int64_t e = 0; e < E; e++)
        order[e] = e;
    for (int64_t i = 0; i < T * k; i++)
        weight[i] = 1.5f / (float)k;
    for (int64_t i = 0; i < T * D; i++)
        x[i] = (float)(random() % 2001 - 1000) / 500;
    for (int call = -1; call < calls; call++) { /* the first one warms up */
        for (int64_t t = 0; t < T; t++)
            choose(E, k, order, chosen + t * k);
        double began = now();
        mix(c, layer, chosen, weight, x, T, y);
        if (call >= 0)
            seconds[call] = now() - began;
    }
    qsort(seconds, (size_t)calls, sizeof *seconds, ascending);
    median = seconds[calls / 2];
    free(order);
    free(chosen);
    free(weight);
    free(x);
    free(y);
    free(seconds);
    return median;
}

/* Every page of the experts comes into memory. */
static void touch(const dsv4_layer *layer, int64_t experts)
{
    volatile unsigned sum = 0;
    for (int64_t e = 0; e < experts; e++) {
        const dsv4_matrix *w[] = {&layer->ffn.experts[e].w1, &layer->ffn.experts[e].w2,
                                  &layer->ffn.experts[e].w3};
        for (int i = 0; i < 3; i++)
            for (int64_t at = 0; at < w[i]->rows * w[i]->cols / 2; at += 4096)
                sum += ((const unsigned char *)w[i]->data)[at];
    }
}

static int measure(const dsv4_model *model, const dsv4_path_options *options, int64_t tokens,
                   int calls, dsv4_error *err)
{
    if (dsv4_path_find("fast")->configure(options, err) != 0)
        return -1;
    fast_context c = {.config = &model->config, .kernels = fast_configured_kernels(),
                      .pool = fast_configured_pool(), .memory = fast_memory_new(), .error = err};
    touch(&model->layers[LAYER], model->config.n_routed_experts);
    double seconds = median_of_calls(&c, &model->layers[LAYER], tokens, calls);
    fast_memory_free(c.memory);
    if (err->text[0] != '\0')
        return -1;
    printf("{\"tokens_per_call\": %lld, \"calls\": %d, \"seconds\": %.6f}\n", (long long)tokens, calls,
           seconds);
    return 0;
}

int main(int argc, char **argv)
{
    int64_t tokens = argc == 6 ? atoll(argv[4]) : 0;
    int calls = argc == 6 ? atoi(argv[5]) : 0;
    if (tokens < 1 || calls < 1) {
        fprintf(stderr, "usage: experts MODEL_DIR THREADS ISA TOKENS CALLS; ISA may be empty\n");
        return 2;
    }
    dsv4_path_options options = {.threads = atoi(argv[2]), .isa = argv[3][0] != '\0' ? argv[3] : NULL};
    dsv4_model model;
    dsv4_error err = {""};
    int result = dsv4_model_open(&model, argv[1], DSV4_EXACT, false, &err);
    if (result == 0) {
        result = measure(&model, &options, tokens, calls, &err);
        dsv4_model_close(&model);
    }
    if (result != 0)
        fprintf(stderr, "experts: %s\n", err.text);
    return result == 0 ? 0 : 2;
}
