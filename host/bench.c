#include "bench.h"

#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_operators.h"
#include "clock.h"
#include "fast/pool.h"
#include "growth.h"
#include "json.h"
#include "limits.h"
#include "memory.h"
#include "path_options.h"
#include "preload.h"
#include "verify.h"
#include "work.h"

enum {
    MOST_DEPTHS = 64, MOST_REPETITIONS = 99, PROFILED_TOKENS = 16, CHUNK = 512,
    WATCHED_TOKENS = 8 /* whose experts are compared with those of the token before */
};
static const int64_t MOST_TOKENS = INT64_C(1) << 40;

typedef struct {
    const char *dir, *vectors;
    const dsv4_path *path;
    dsv4_numerics numerics;
    dsv4_path_choice how;
    int64_t prompt, generate;
    int64_t depth[MOST_DEPTHS];
    int depths;
    int64_t repetitions;
    double patience; /* seconds that may be spent on computing one depth */
    double limit_seconds;
    bool operators, cold, json;
} bench_arguments;

/* Calls of one kind at one depth. */
typedef struct {
    const char *what; /* "prefill", "decode" */
    int64_t depth, tokens, per_call;
    bool synthetic;
    double seconds, best; /* of a call: median, least */
    int calls;
    bool profiled;
    double profiled_seconds;
    dsv4_profile profile; /* of a call, from calls of its own */
    dsv4_work work;
    dsv4_rate reading, matrix; /* the limits just before */
} measurement;

typedef struct {
    const bench_arguments *arguments;
    dsv4_model model;
    dsv4_storage storage;
    int threads, layers[DSV4_OUTSIDE];
    dsv4_limits limits;
    int limit_of; /* index of the limits of as many threads as the path has */
    double rate;  /* tokens per second of the last prefill; 0 before */
    uint64_t seed;
    json_t *json, *runs, *operators;
    dsv4_rate matrix; /* the limit before the operators */
    measurement done[2 * MOST_DEPTHS];
    int count;
} bench;

/* ---- runs ---- */

static void draw_ids(bench *b, int64_t *ids, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t x = b->seed += 0x9e3779b97f4a7c15;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
        x = (x ^ x >> 27) * 0x94d049bb133111eb;
        ids[i] = (int64_t)((x ^ x >> 31) % (uint64_t)b->model.config.vocab_size);
    }
}

/* The next `count` random tokens, so many a call -> seconds [calls], or NULL. */
static int advance(bench *b, dsv4_run *run, int64_t count, int64_t per_call, double *logits,
                   double *seconds, dsv4_error *err)
{
    int64_t *ids = dsv4_alloc((size_t)count, sizeof *ids);
    int result = 0;
    draw_ids(b, ids, count);
    for (int64_t at = 0, n, call = 0; at < count && result == 0; at += n, call++) {
        n = count - at < per_call ? count - at : per_call;
        double began = dsv4_now();
        result = b->arguments->path->forward(run, ids + at, n, logits, err);
        if (seconds != NULL)
            seconds[call] = dsv4_now() - began;
    }
    free(ids);
    return result;
}

/* A path asks for addresses only; the memory would be found missing when the state is filled. */
static int check_room(const bench *b, int64_t tokens, dsv4_error *err)
{
    const dsv4_config *c = &b->model.config;
    double bytes = 0, room = dsv4_memory_available();
    for (int64_t i = 0; i < c->num_hidden_layers; i++) {
        dsv4_layer_kind kind = dsv4_config_kind(c, i);
        double entry = b->storage.entry + (kind == DSV4_CSA ? b->storage.key : 0);
        bytes += kind == DSV4_SWA ? 0 : entry * (double)tokens / (double)c->compress_ratios[i];
    }
    if (room == 0 || bytes < room)
        return 0;
    return dsv4_fail(err, "the state of %" PRId64 " tokens takes %.1f GB, expected at most the %.1f "
                     "GB that are free", tokens, bytes / 1e9, room / 1e9);
}

/* A run that has seen `depth` tokens and has room for `room` more; NULL with one line. */
static dsv4_run *open_at(bench *b, int64_t depth, int64_t room, bool synthetic, dsv4_error *err)
{
    const dsv4_path *path = b->arguments->path;
    if (check_room(b, depth + room, err) != 0)
        return NULL;
    dsv4_run *run = path->open(&b->model, b->arguments->numerics, depth + room, NULL, err);
    if (run == NULL)
        return NULL;
    int result = depth == 0  ? 0
                 : synthetic ? path->fill(run, depth, b->seed, err)
                             : advance(b, run, depth, CHUNK, NULL, NULL, err);
    if (result == 0)
        return run;
    path->close(run);
    return NULL;
}

static bool can_profile(const bench *b)
{
    return b->arguments->path->profile != NULL;
}

typedef struct { double seconds; dsv4_profile profile; } profiled_call;

static int quicker(const void *a, const void *b)
{
    const profiled_call *x = a, *y = b;
    return (x->seconds > y->seconds) - (x->seconds < y->seconds);
}

/* The mean of those between the quartiles: whole calls, so that parts add up, without the odd
 * ones. */
static void average(measurement *m, profiled_call *call, int calls)
{
    int first = calls / 4, end = calls - first;
    qsort(call, (size_t)calls, sizeof *call, quicker);
    for (int i = first; i < end; i++) {
        m->profiled_seconds += call[i].seconds / (end - first);
        for (int kind = 0; kind < DSV4_PROFILE_KINDS; kind++)
            for (int part = 0; part < DSV4_PARTS; part++)
                m->profile.seconds[kind][part] +=
                    call[i].profile.seconds[kind][part] / (end - first);
    }
}

/* Calls of `per_call` tokens with the profile on. */
static int profile_calls(bench *b, dsv4_run *run, int64_t count, double *logits, measurement *m,
                         dsv4_error *err)
{
    profiled_call call[PROFILED_TOKENS] = {{0}};
    int calls = (int)(count / m->per_call);
    for (int i = 0; i < calls; i++) {
        b->arguments->path->profile(run, &call[i].profile);
        if (advance(b, run, m->per_call, m->per_call, logits, &call[i].seconds, err) != 0)
            return -1;
    }
    b->arguments->path->profile(run, NULL);
    average(m, call, calls);
    m->profiled = true;
    return 0;
}

static void summarise(measurement *m, double *sample, int count)
{
    m->seconds = dsv4_median(sample, count);
    m->best = sample[0];
    m->calls = count;
}

/* Every repetition begins at the depth itself: with a state of its own. */
static int measure_prefill(bench *b, measurement *m, dsv4_error *err)
{
    const bench_arguments *a = b->arguments;
    double sample[MOST_REPETITIONS], began = dsv4_now(), longest = 0;
    int count = 0, result = 0;
    while (result == 0 && count < a->repetitions &&
           (count == 0 || dsv4_now() - began + longest <= a->patience)) {
        double start = dsv4_now();
        dsv4_run *run = open_at(b, m->depth, m->tokens, m->synthetic, err);
        if (run == NULL)
            return -1;
        result = advance(b, run, m->tokens, m->per_call, NULL, &sample[count++], err);
        a->path->close(run);
        longest = dsv4_now() - start > longest ? dsv4_now() - start : longest;
    }
    if (result != 0)
        return -1;
    summarise(m, sample, count);
    b->rate = (double)m->tokens / m->seconds;
    if (!can_profile(b))
        return 0;
    dsv4_run *run = open_at(b, m->depth, m->tokens, m->synthetic, err);
    if (run == NULL)
        return -1;
    result = profile_calls(b, run, m->tokens, NULL, m, err);
    a->path->close(run);
    return result;
}

/* In the same run, or, where the model sees no more positions, in one of its own. */
static int profile_decode(bench *b, dsv4_run **run, int64_t count, bool room, double *logits,
                          measurement *m, dsv4_error *err)
{
    if (!room) {
        b->arguments->path->close(*run);
        *run = open_at(b, m->depth, count, m->synthetic, err);
        if (*run == NULL)
            return -1;
    }
    return profile_calls(b, *run, count, logits, m, err);
}

static int measure_decode(bench *b, measurement *m, dsv4_error *err)
{
    int64_t more = !can_profile(b) ? 0 : m->tokens < PROFILED_TOKENS ? m->tokens : PROFILED_TOKENS;
    bool room = m->depth + m->tokens + more <= b->model.config.max_position_embeddings;
    dsv4_run *run = open_at(b, m->depth, m->tokens + (room ? more : 0), m->synthetic, err);
    if (run == NULL)
        return -1;
    double *sample = dsv4_alloc((size_t)m->tokens, sizeof *sample);
    double *logits = dsv4_alloc((size_t)b->model.config.vocab_size, sizeof *logits);
    int result = advance(b, run, m->tokens, 1, logits, sample, err);
    if (result == 0) {
        summarise(m, sample, (int)m->tokens);
        if (b->rate == 0)
            b->rate = 1 / m->seconds;
        if (more > 0)
            result = profile_decode(b, &run, more, room, logits, m, err);
    }
    free(sample);
    free(logits);
    if (run != NULL)
        b->arguments->path->close(run);
    return result;
}

/* ---- figures ---- */

typedef struct { double bandwidth, flops, limit; } fractions;

static fractions fractions_of(dsv4_amount amount, double seconds, const measurement *m)
{
    double bytes = amount.weights + amount.cache;
    fractions f = {0};
    if (seconds <= 0)
        return f;
    f.bandwidth = bytes / seconds / m->reading.median;
    f.flops = amount.flops / seconds / m->matrix.median;
    f.limit = f.bandwidth > f.flops ? f.bandwidth : f.flops;
    return f;
}

static json_t *figures(dsv4_amount amount, double seconds, const measurement *m)
{
    fractions f = fractions_of(amount, seconds, m);
    double rate = seconds > 0 ? 1 / seconds : 0;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "seconds", seconds,
                     "weight_bytes", amount.weights, "cache_bytes", amount.cache, "flops",
                     amount.flops, "bytes_per_second", (amount.weights + amount.cache) * rate,
                     "flops_per_second", amount.flops * rate, "bandwidth_fraction", f.bandwidth,
                     "flop_fraction", f.flops, "limit_fraction", f.limit);
}

static const char *const kind_names[DSV4_PROFILE_KINDS] = {
    [DSV4_SWA] = "SWA", [DSV4_CSA] = "CSA", [DSV4_HCA] = "HCA", [DSV4_OUTSIDE] = "outside"};

static const char *state_of(const measurement *m)
{
    return m->depth == 0 ? "empty" : m->synthetic ? "synthetic" : "computed";
}

static double part_seconds(const measurement *m, int kind, int part)
{
    return dsv4_profile_sum(&m->profile, kind, part);
}

/* The layers: all but the head and the embedding. */
typedef struct { dsv4_amount amount; double seconds; } layers_alone;

static layers_alone layers_of(const measurement *m)
{
    layers_alone all = {.seconds = 0};
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++) {
        dsv4_amount one = dsv4_work_sum(&m->work, kind, -1);
        all.amount.weights += one.weights;
        all.amount.cache += one.cache;
        all.amount.flops += one.flops;
        all.seconds += part_seconds(m, kind, -1);
    }
    return all;
}

static json_t *components(const measurement *m)
{
    json_t *list = json_array();
    for (int kind = 0; kind < DSV4_PROFILE_KINDS; kind++)
        for (int part = 0; part < DSV4_PARTS; part++) {
            double seconds = m->profile.seconds[kind][part];
            dsv4_amount amount = dsv4_work_sum(&m->work, kind, part);
            if (seconds == 0 && amount.weights + amount.flops == 0)
                continue;
            json_t *one = figures(amount, seconds, m);
            json_object_set_new(one, "kind", json_string(kind_names[kind]));
            json_object_set_new(one, "part", json_string(dsv4_part_name((dsv4_part)part)));
            json_array_append_new(list, one);
        }
    return list;
}

static json_t *layer_kinds(const bench *b, const measurement *m)
{
    json_t *list = json_object();
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++)
        if (b->layers[kind] > 0)
            json_object_set_new(list, kind_names[kind],
                                json_real(part_seconds(m, kind, -1) / b->layers[kind]));
    return list;
}

static json_t *rate_json(dsv4_rate rate)
{
    return json_pack("{s:f, s:f}", "median", rate.median, "best", rate.best);
}

static json_t *layers_json(const measurement *m)
{
    layers_alone all = layers_of(m);
    return figures(all.amount, all.seconds, m);
}

static void keep(bench *b, const measurement *m)
{
    json_t *run = figures(dsv4_work_sum(&m->work, -1, -1), m->seconds, m);
    json_object_set_new(run, "kind", json_string(m->what));
    json_object_set_new(run, "depth", json_integer(m->depth));
    json_object_set_new(run, "state", json_string(state_of(m)));
    json_object_set_new(run, "tokens_per_call", json_integer(m->per_call));
    json_object_set_new(run, "calls", json_integer(m->calls));
    json_object_set_new(run, "logits", json_integer(m->per_call == 1 && m->what[0] == 'd'));
    json_object_set_new(run, "seconds_by_layers",
                        json_real(m->seconds / (double)b->model.config.num_hidden_layers));
    json_object_set_new(run, "best_seconds", json_real(m->best));
    json_object_set_new(run, "tokens_per_second", json_real((double)m->per_call / m->seconds));
    json_object_set_new(run, "read_limit", rate_json(m->reading));
    json_object_set_new(run, "matrix_limit", rate_json(m->matrix));
    json_object_set_new(run, "layers", m->profiled ? layers_json(m) : json_null());
    json_object_set_new(run, "profiled_seconds",
                        m->profiled ? json_real(m->profiled_seconds) : json_null());
    json_object_set_new(run, "seconds_per_layer", m->profiled ? layer_kinds(b, m) : json_null());
    json_object_set_new(run, "components", m->profiled ? components(m) : json_null());
    json_array_append_new(b->runs, run);
}

/* ---- tables ---- */

static void print_rates(dsv4_amount amount, double seconds, const measurement *m)
{
    fractions f = fractions_of(amount, seconds, m);
    if (seconds <= 0) {
        printf("\n");
        return;
    }
    printf(" %8.2f %5.1f%% %10.1f %5.1f%%\n", (amount.weights + amount.cache) / seconds / 1e9,
           100 * f.bandwidth, amount.flops / seconds / 1e9, 100 * f.flops);
}

static void print_part(const bench *b, const measurement *m, int part)
{
    dsv4_amount amount = dsv4_work_sum(&m->work, -1, part);
    double all = part_seconds(m, -1, part);
    if (all == 0 && amount.weights + amount.flops == 0)
        return;
    printf("    %-22s", part < 0 ? "all" : dsv4_part_name((dsv4_part)part));
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++)
        if (b->layers[kind] > 0)
            printf(" %9.3f", 1e3 * part_seconds(m, kind, part) / b->layers[kind]);
    printf(" %9.3f", 1e3 * all);
    print_rates(amount, all, m);
}

static void print_components(const bench *b, const measurement *m)
{
    printf("    %-22s", "ms");
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++)
        if (b->layers[kind] > 0)
            printf(" %5s layer", kind_names[kind]);
    printf(" %9s %8s %6s %10s %6s\n", "whole", "GB/s", "", "GFLOP/s", "");
    for (int part = 0; part < DSV4_PARTS; part++)
        print_part(b, m, part);
    print_part(b, m, -1);
}

static void print_measurement(const bench *b, const measurement *m)
{
    dsv4_amount amount = dsv4_work_sum(&m->work, -1, -1);
    printf("\n%s of %" PRId64 " token%s at depth %" PRId64 ", %s: %.2f tokens/s\n", m->what,
           m->tokens, m->tokens == 1 ? "" : "s", m->depth,
           m->depth == 0  ? "nothing before"
           : m->synthetic ? "SYNTHETIC entries before"
                          : "computed entries before",
           (double)m->per_call / m->seconds);
    printf("    a call of %" PRId64 ": median of %d %.3f ms, best %.3f ms; %.4f GB of weights, "
           "%.4f GB of cache, %.2f GFLOP\n", m->per_call, m->calls, 1e3 * m->seconds,
           1e3 * m->best, amount.weights / 1e9, amount.cache / 1e9, amount.flops / 1e9);
    printf("    limits just before: reading %.1f GB/s, multiplying %.1f GFLOP/s; the share of them:\n",
           m->reading.median / 1e9, m->matrix.median / 1e9);
    printf("    %-22s", "the whole");
    print_rates(amount, m->seconds, m);
    if (m->per_call == 1)
        printf("    a layer, the head shared out among them: %.1f ms\n",
               1e3 * m->seconds / (double)b->model.config.num_hidden_layers);
    if (m->profiled) {
        layers_alone all = layers_of(m);
        printf("    %-22s", "the layers, no head");
        print_rates(all.amount, all.seconds, m);
        print_components(b, m);
    } else
        printf("    components: not known to path %s\n", b->arguments->path->name);
    fflush(stdout);
}

static int limits_now(const bench *b, dsv4_rate *reading, dsv4_rate *matrix, dsv4_error *err)
{
    return dsv4_limits_again(&b->limits, b->limit_of, b->arguments->limit_seconds / 6, reading, matrix,
                             err);
}

static int measure(bench *b, const char *what, int64_t depth, bool synthetic, dsv4_error *err)
{
    bool prefill = strcmp(what, "prefill") == 0;
    int64_t tokens = prefill ? b->arguments->prompt : b->arguments->generate;
    measurement m = {.what = what, .depth = depth, .tokens = tokens, .synthetic = synthetic,
                     .per_call = prefill ? tokens : 1};
    if (tokens == 0)
        return 0;
    /* The neighbours of a shared machine come and go. */
    if (limits_now(b, &m.reading, &m.matrix, err) != 0)
        return -1;
    if ((prefill ? measure_prefill : measure_decode)(b, &m, err) != 0)
        return -1;
    /* Of decoding, the token in the middle. */
    dsv4_work_of(&b->model, &b->storage, prefill ? depth : depth + tokens / 2, m.per_call,
                 prefill ? 0 : 1, &m.work);
    keep(b, &m);
    b->done[b->count++] = m;
    if (!b->arguments->json)
        print_measurement(b, &m);
    return 0;
}

/* ---- growth ---- */

static dsv4_growth_point growth_point(const bench *b, const measurement *m)
{
    const dsv4_config *c = &b->model.config;
    int64_t last = m->depth + (m->per_call == 1 ? m->tokens / 2 : m->tokens - 1);
    return (dsv4_growth_point){m->depth, m->profile, dsv4_growth_visible(c, DSV4_CSA, last),
                               dsv4_growth_visible(c, DSV4_HCA, last)};
}

static void keep_growth(const bench *b, json_t *list, const measurement *m, const dsv4_growth *g,
                        double base)
{
    json_t *layers = json_object();
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++)
        if (b->layers[kind] > 0)
            json_object_set_new(layers, kind_names[kind],
                                json_real(g->layer[kind] / b->layers[kind]));
    json_array_append_new(list, json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "depth",
        (json_int_t)m->depth, "seconds", g->seconds, "indexer_seconds", g->indexer,
        "seconds_per_key", g->indexer_per_key, "core_seconds", g->core, "seconds_per_entry",
        g->core_per_entry, "unexplained_seconds", g->rest, "unexplained_fraction", g->rest / base,
        "seconds_per_layer", layers));
}

static void print_decode_growth(const measurement *m, const dsv4_growth *g, double base)
{
    printf("    %9" PRId64 " %10.3f %10.3f %9.2f %10.3f %9.2f %10.3f %7.1f%%\n", m->depth,
           1e3 * g->seconds, 1e3 * g->indexer, 1e9 * g->indexer_per_key, 1e3 * g->core,
           1e9 * g->core_per_entry, 1e3 * g->rest, 100 * g->rest / base);
}

static void print_prefill_growth(const bench *b, const measurement *first, const measurement *m,
                                 const dsv4_growth *g)
{
    printf("    %9" PRId64 " %10.3f", m->depth, 1e3 * g->seconds);
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++)
        if (b->layers[kind] > 0)
            printf(" %10.3f %6.1f%%", 1e3 * g->layer[kind] / b->layers[kind],
                   100 * g->layer[kind] / part_seconds(first, kind, -1));
    printf("\n");
}

static void print_growth_head(const bench *b, const measurement *first)
{
    printf("\ngrowth of %s over depth %" PRId64 ", from the times of components\n", first->what,
           first->depth);
    if (first->per_call == 1 && first->depth < dsv4_growth_steady(&b->model.config))
        printf("    Up to depth %" PRId64 " the window and the choice of CSA layers grow as well: "
               "that counts as the rest.\n", dsv4_growth_steady(&b->model.config));
    if (first->what[0] == 'd') {
        printf("    %9s %10s %10s %9s %10s %9s %10s %8s\n", "depth", "ms more", "indexer", "ns/key",
               "HCA core", "ns/entry", "the rest", "of all");
        return;
    }
    printf("    %9s %10s", "depth", "ms more");
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++)
        if (b->layers[kind] > 0)
            printf("  %4s layer %7s", kind_names[kind], "");
    printf("\n");
}

/* Of all depths over the first. */
static void show_growth(bench *b, const char *what, json_t *growth)
{
    const measurement *first = NULL;
    json_t *list = json_array();
    for (int i = 0; i < b->count; i++) {
        const measurement *m = &b->done[i];
        if (strcmp(m->what, what) != 0 || !m->profiled)
            continue;
        if (first == NULL) {
            first = m;
            continue;
        }
        dsv4_growth_point from = growth_point(b, first), to = growth_point(b, m);
        dsv4_growth g = dsv4_growth_of(&from, &to);
        double base = part_seconds(first, -1, -1);
        if (!b->arguments->json && json_array_size(list) == 0)
            print_growth_head(b, first);
        if (!b->arguments->json && what[0] == 'd')
            print_decode_growth(m, &g, base);
        else if (!b->arguments->json)
            print_prefill_growth(b, first, m, &g);
        keep_growth(b, list, m, &g, base);
    }
    json_object_set_new(growth, what, list);
}

/* ---- limits ---- */

static json_t *rates_json(const dsv4_limits *limits, const dsv4_rate *rate)
{
    json_t *list = json_array();
    for (int n = 0; n < DSV4_LIMIT_THREADS; n++) {
        json_t *one = rate_json(rate[n]);
        json_object_set_new(one, "threads", json_integer(limits->threads[n]));
        json_array_append_new(list, one);
    }
    return list;
}

static void keep_limits(bench *b)
{
    const dsv4_limits *l = &b->limits;
    json_t *peaks = json_array();
    for (int i = 0; i < l->count; i++)
        json_array_append_new(peaks, json_pack("{s:s, s:s, s:s, s:o}", "key", l->limit[i].key,
                                               "level", l->limit[i].level, "name",
                                               l->limit[i].name, "flops_per_second",
                                               rates_json(l, l->limit[i].rate)));
    json_object_set_new(b->json, "limits",
                        json_pack("{s:f, s:o, s:o, s:s, s:i}", "read_buffer_bytes", l->read_bytes,
                                  "read_bytes_per_second", rates_json(l, l->read), "peaks", peaks,
                                  "matrix", l->limit[l->matrix].key, "compared_with_threads",
                                  l->threads[b->limit_of]));
}

static void print_rate(const char *level, const char *name, const dsv4_rate *rate)
{
    printf("    %-10s %-26s", level, name);
    for (int n = 0; n < DSV4_LIMIT_THREADS; n++)
        printf(" %9.1f %9.1f", rate[n].median / 1e9, rate[n].best / 1e9);
    printf("\n");
}

static void print_limits(const bench *b)
{
    const dsv4_limits *l = &b->limits;
    char threads[DSV4_LIMIT_THREADS][32];
    for (int n = 0; n < DSV4_LIMIT_THREADS; n++)
        snprintf(threads[n], sizeof threads[n], "%d thread%s", l->threads[n],
                 l->threads[n] == 1 ? "" : "s");
    printf("limits of this machine now, median and best %19s %19s\n", threads[0], threads[1]);
    print_rate("", "reading, GB/s", l->read);
    for (int i = 0; i < l->count; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s, G%s/s%s", l->limit[i].name,
                 strstr(l->limit[i].key, "int8") != NULL ? "OP" : "FLOP",
                 i == l->matrix ? " *" : "");
        print_rate(l->limit[i].level, name, l->limit[i].rate);
    }
    printf("Percentages below are of reading and of *, as they are just before, by %d thread%s.\n",
           l->threads[b->limit_of], l->threads[b->limit_of] == 1 ? "" : "s");
    fflush(stdout);
}

static int read_again(bench *b, dsv4_error *err)
{
    dsv4_rate after, matrix;
    double before = b->limits.read[b->limit_of].median;
    if (limits_now(b, &after, &matrix, err) != 0)
        return -1;
    json_object_set_new(json_object_get(b->json, "limits"), "read_after", rate_json(after));
    json_object_set_new(json_object_get(b->json, "limits"), "matrix_after", rate_json(matrix));
    if (!b->arguments->json)
        printf("\nreading at the end: %.1f GB/s, best %.1f; at the beginning %.1f (%+.0f%%)\n",
               after.median / 1e9, after.best / 1e9, before / 1e9,
               100 * (after.median / before - 1));
    return 0;
}

/* ---- operators ---- */

static json_t *scan_json(const bench *b, const dsv4_operator_time *t)
{
    double rate = t->flops / t->seconds;
    return json_pack("{s:I, s:f, s:f, s:f}", "keys", (json_int_t)t->keys, "seconds_per_key",
                     t->seconds / (double)t->keys, "flops_per_second", rate, "flop_fraction",
                     rate / b->matrix.median);
}

static void keep_operator(const bench *b, const dsv4_operator_time *t)
{
    bool timed = t->untimed[0] == '\0', ratio = timed && t->ref_seconds > 0;
    json_t *one = json_pack("{s:s, s:s, s:s, s:i, s:i}", "operator", t->op->name, "sizes", t->sizes,
                            "numerics", t->numerics == DSV4_EXACT ? "exact" : "released", "cases",
                            t->cases, "failed", t->failed);
    json_object_set_new(one, "seconds", timed ? json_real(t->seconds) : json_null());
    json_object_set_new(one, "ref_seconds", ratio ? json_real(t->ref_seconds) : json_null());
    json_object_set_new(one, "ratio", ratio ? json_real(t->ref_seconds / t->seconds) : json_null());
    json_object_set_new(one, "not_timed", timed ? json_null() : dsv4_json_text(t->untimed));
    json_object_set_new(one, "scan", timed && t->keys > 0 ? scan_json(b, t) : json_null());
    json_array_append_new(b->operators, one);
}

static void print_operator(const bench *b, const dsv4_operator_time *t)
{
    double matrix = b->matrix.median;
    bool other = t->numerics != b->arguments->numerics;
    printf("    %-18s", t->keys > 0 ? "  a long scan" : t->op->name);
    if (t->untimed[0] != '\0') {
        printf(" not timed: %s\n", t->untimed);
        return;
    }
    printf(" %10.4f", 1e3 * t->seconds);
    if (t->ref_seconds > 0)
        printf(" %10.3f %8.1f", 1e3 * t->ref_seconds, t->ref_seconds / t->seconds);
    else
        printf(" %10s %8s", "", "");
    printf("  %s%s\n", t->sizes, other ? "; of the other contract" : "");
    if (t->keys > 0)
        printf("    %18s %10.2f ns a key by %d thread%s; %.1f GFLOP/s, %.1f%%\n", "",
               1e9 * t->seconds / (double)t->keys, b->threads, b->threads == 1 ? "" : "s",
               t->flops / t->seconds / 1e9, 100 * t->flops / t->seconds / matrix);
}

static void show_operator(void *context, const dsv4_operator_time *t)
{
    bench *b = context;
    keep_operator(b, t);
    if (b->arguments->json)
        return;
    print_operator(b, t);
    fflush(stdout);
}

static int bench_operators(bench *b, dsv4_error *err)
{
    const bench_arguments *a = b->arguments;
    char *vectors = dsv4_vectors_directory(a->vectors, err);
    dsv4_rate reading;
    if (vectors == NULL || limits_now(b, &reading, &b->matrix, err) != 0) {
        free(vectors);
        return -1;
    }
    b->operators = json_array();
    json_object_set_new(b->json, "operators", b->operators);
    if (!a->json)
        printf("\n    %-18s %10s %10s %8s  first inputs\n", "operator", "ms", "ref, ms", "ratio");
    int result = dsv4_bench_operators(a->path, a->numerics, &b->model.config, vectors,
                                      show_operator, b, err);
    free(vectors);
    return result;
}

/* ---- all of it ---- */

static const char *numerics_name(const bench *b)
{
    return b->arguments->numerics == DSV4_EXACT ? "exact" : "released";
}

static int check_depths(const bench *b, dsv4_error *err)
{
    const bench_arguments *a = b->arguments;
    int64_t most = b->model.config.max_position_embeddings;
    int64_t tokens = a->prompt > a->generate ? a->prompt : a->generate;
    for (int i = 0; i < a->depths; i++)
        if (a->depth[i] > most - tokens)
            return dsv4_fail(err, "-d %" PRId64 ": with the %" PRId64 " tokens after it that are %"
                             PRId64 " positions, expected at most max_position_embeddings, %" PRId64,
                             a->depth[i], tokens, a->depth[i] + tokens, most);
    return 0;
}

static int prepare(bench *b, dsv4_error *err)
{
    const bench_arguments *a = b->arguments;
    if (dsv4_path_choose(a->path, &a->how, "dsv4 bench", err) != 0)
        return -1;
    if (dsv4_model_open(&b->model, a->dir, a->numerics, false, err) != 0)
        return -1;
    if (check_depths(b, err) != 0)
        return -1;
    const dsv4_config *config = &b->model.config;
    for (int64_t i = 0; i < config->num_hidden_layers; i++)
        b->layers[dsv4_config_kind(config, i)]++;
    b->storage = dsv4_storage_of(a->path, config, a->numerics);
    b->threads = a->path->configure == NULL   ? 1
                 : a->how.options.threads > 0 ? a->how.options.threads
                                              : fast_pool_processors();
    b->limit_of = b->threads > 1;
    const char *level = a->path->level != NULL ? a->path->level() : "binary64, 1 thread";
    b->json = json_pack("{s:s, s:s, s:s, s:i, s:s, s:{s:i, s:i, s:i}}", "path", a->path->name,
                        "level", level, "numerics", numerics_name(b), "threads", b->threads,
                        "version", DSV4_VERSION, "layers", "SWA", b->layers[DSV4_SWA], "CSA",
                        b->layers[DSV4_CSA], "HCA", b->layers[DSV4_HCA]);
    b->runs = json_array();
    json_object_set_new(b->json, "runs", b->runs);
    if (!a->json)
        printf("%s: %" PRId64 " layers (%d SWA, %d CSA, %d HCA), %s; path %s: %s\n", a->dir,
               config->num_hidden_layers, b->layers[DSV4_SWA], b->layers[DSV4_CSA],
               b->layers[DSV4_HCA], numerics_name(b), a->path->name, level);
    return 0;
}

/* ---- loading ---- */

/* The disk's own rate at two places of the file; 0 where the file system does not let us past the
 * page cache. */
typedef struct {
    double seconds, direct[2];
    dsv4_residency before, after;
    dsv4_error refused;
} load;

/* The processor has to see every page too: of a virtual machine, its host may not have it yet. */
static double touch_files(const dsv4_checkpoint *checkpoint)
{
    enum { PAGE = 4096 };
    double began = dsv4_now();
    unsigned sum = 0;
    for (int64_t i = 0; i < dsv4_checkpoint_files(checkpoint); i++) {
        const char *path;
        dsv4_file file = dsv4_checkpoint_file(checkpoint, i, &path);
        for (size_t at = 0; at < file.size; at += PAGE)
            sum += (unsigned char)file.data[at];
    }
    volatile unsigned sink = sum;
    (void)sink;
    return dsv4_now() - began;
}

static double load_rate(const load *l)
{
    double bytes = l->before.bytes - l->before.resident;
    return bytes > 0 ? bytes / l->seconds : 0;
}

static double direct_rate(const load *l)
{
    return (l->direct[0] + l->direct[1]) / 2;
}

static json_t *cold_json(const load *l)
{
    if (l->refused.text[0] != '\0')
        return json_pack("{s:n, s:n, s:o}", "direct_rates", "direct_fraction", "direct_refused",
                         dsv4_json_text(l->refused.text));
    return json_pack("{s:[f,f], s:f, s:n}", "direct_rates", l->direct[0], l->direct[1],
                     "direct_fraction", load_rate(l) / direct_rate(l),
                     "direct_refused");
}

static void print_load(const bench *b, const load *l, double touched)
{
    printf("loading: %.2f GB, of which %.1f%% were in memory; the rest in %.3f s",
           l->before.bytes / 1e9, 100 * l->before.resident / l->before.bytes, l->seconds);
    if (load_rate(l) > 0)
        printf(", %.3f GB/s", load_rate(l) / 1e9);
    printf("; touched in %.3f s\n", touched);
    if (!b->arguments->cold)
        return;
    if (l->refused.text[0] != '\0')
        printf("    compared with nothing: %s\n", l->refused.text);
    else
        printf("    direct reading before: %.3f and %.3f GB/s; loading reaches %.1f%% of their "
               "mean\n", l->direct[0] / 1e9, l->direct[1] / 1e9, 100 * load_rate(l) / direct_rate(l));
}

/* Cold, the disk is measured first: what has been read once, the host of a virtual machine may give
 * from its own memory. */
static int load_files(bench *b, load *l, dsv4_error *err)
{
    const dsv4_checkpoint *checkpoint = b->model.checkpoint;
    bool cold = b->arguments->cold;
    if (cold && dsv4_evict(checkpoint, err) != 0)
        return -1;
    for (int i = 0; i < 2 && cold && l->refused.text[0] == '\0'; i++)
        dsv4_direct_rate(checkpoint, i == 0 ? 0.25 : 0.75, &l->direct[i], &l->refused);
    l->before = dsv4_residency_of(checkpoint);
    double began = dsv4_now();
    if (dsv4_preload_end(dsv4_preload_begin(checkpoint), false, err) != 0)
        return -1;
    l->seconds = dsv4_now() - began;
    l->after = dsv4_residency_of(checkpoint);
    return 0;
}

static int report_no_room(const bench *b, dsv4_error *err)
{
    double bytes = dsv4_residency_of(b->model.checkpoint).bytes, room = dsv4_memory_available();
    if (b->arguments->cold)
        return dsv4_fail(err, "--cold: %.1f GB of files do not fit into memory, of which %.1f GB are "
                         "free", bytes / 1e9, room / 1e9);
    if (!b->arguments->json)
        printf("loading: %.1f GB do not fit into memory, of which %.1f GB are free: some may be read "
               "from the disk\n", bytes / 1e9, room / 1e9);
    return 0;
}

/* All weights come into memory, if there is room for them: a run that goes on for long would find
 * them there. */
static int load_weights(bench *b, dsv4_error *err)
{
    load l = {.seconds = 0};
    bool fits = dsv4_preload_fits(b->model.checkpoint);
    json_object_set_new(b->json, "weights_in_memory", json_boolean(fits));
    if (!fits)
        return report_no_room(b, err);
    if (load_files(b, &l, err) != 0)
        return -1;
    double touched = touch_files(b->model.checkpoint);
    json_t *json = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "bytes", l.before.bytes,
                             "resident_before", l.before.resident, "resident_after",
                             l.after.resident, "seconds", l.seconds, "bytes_per_second",
                             load_rate(&l), "touch_seconds", touched);
    json_object_set_new(json, "cold", b->arguments->cold ? cold_json(&l) : json_null());
    json_object_set_new(b->json, "load", json);
    if (!b->arguments->json)
        print_load(b, &l, touched);
    return 0;
}

/* ---- experts ---- */

/* Whether they change from token to token, as those of a text do. */
typedef struct {
    int64_t *last; /* [layers, k] of the token before */
    int64_t k, seen, repeated;
    bool first;
} rotation;

static void watch_experts(void *context, const dsv4_point *point)
{
    rotation *r = context;
    if (strcmp(point->name, "route_index") != 0)
        return;
    int64_t *last = r->last + point->layer * r->k;
    for (int64_t i = 0; i < r->k && !r->first; i++) {
        r->seen++;
        for (int64_t j = 0; j < r->k; j++)
            r->repeated += point->indices[i] == last[j];
    }
    memcpy(last, point->indices, (size_t)r->k * sizeof *last);
}

static int rotate_experts(bench *b, dsv4_error *err)
{
    const dsv4_config *c = &b->model.config;
    const dsv4_path *path = b->arguments->path;
    rotation r = {.k = c->num_experts_per_tok, .first = true};
    const dsv4_tap tap = {watch_experts, &r};
    dsv4_run *run = path->open(&b->model, b->arguments->numerics, WATCHED_TOKENS, &tap, err);
    if (run == NULL)
        return -1;
    r.last = dsv4_alloc((size_t)(c->num_hidden_layers * r.k), sizeof *r.last);
    int result = 0;
    for (int i = 0; i < WATCHED_TOKENS && result == 0; i++, r.first = false)
        result = advance(b, run, 1, 1, NULL, NULL, err);
    path->close(run);
    free(r.last);
    if (result != 0)
        return -1;
    double repeated = (double)r.repeated / (double)r.seen;
    double even = (double)r.k / (double)c->n_routed_experts;
    json_object_set_new(b->json, "experts", json_pack("{s:f, s:f}", "repeated", repeated,
                                                      "repeated_by_even_router", even));
    if (!b->arguments->json)
        printf("experts: %.1f%% of a token's are those of the token before; of an even router "
               "%.1f%%\n", 100 * repeated, 100 * even);
    return 0;
}

/* Once over what will be read, so that it is in memory. The reference is too slow for it to
 * matter. */
static int warm_up(bench *b, dsv4_error *err)
{
    const bench_arguments *a = b->arguments;
    int64_t tokens = a->prompt > 64 ? a->prompt : 64;
    if (a->path == dsv4_path_find("ref") || (a->prompt == 0 && a->generate == 0))
        return 0;
    double *logits = dsv4_alloc((size_t)b->model.config.vocab_size, sizeof *logits);
    dsv4_run *run = open_at(b, 0, tokens + 1, false, err);
    if (run == NULL) {
        free(logits);
        return -1;
    }
    double began = dsv4_now();
    int result = advance(b, run, tokens, CHUNK, NULL, NULL, err);
    b->rate = (double)tokens / (dsv4_now() - began);
    if (result == 0)
        result = advance(b, run, 1, 1, logits, NULL, err);
    a->path->close(run);
    free(logits);
    return result != 0 ? -1 : rotate_experts(b, err);
}

/* A depth is computed at least three times over: before a prefill, one under the profile, and
 * decoding. */
static bool too_long(const bench *b, int64_t depth)
{
    return b->rate <= 0 || 3 * (double)depth / b->rate > b->arguments->patience;
}

static int run_all(bench *b, dsv4_error *err)
{
    const bench_arguments *a = b->arguments;
    if (prepare(b, err) != 0 || load_weights(b, err) != 0)
        return -1;
    int most = b->threads > 1 ? b->threads : fast_pool_processors();
    if (dsv4_limits_measure(&b->limits, most, a->limit_seconds, err) != 0)
        return -1;
    keep_limits(b);
    if (!a->json)
        print_limits(b);
    if (warm_up(b, err) != 0)
        return -1;
    for (int i = 0; i < a->depths; i++) {
        bool synthetic = a->depth[i] > 0 && too_long(b, a->depth[i]);
        if (measure(b, "prefill", a->depth[i], synthetic, err) != 0 ||
            measure(b, "decode", a->depth[i], synthetic, err) != 0)
            return -1;
    }
    json_t *growth = json_object();
    json_object_set_new(b->json, "growth", growth);
    show_growth(b, "prefill", growth);
    show_growth(b, "decode", growth);
    if (a->operators && bench_operators(b, err) != 0)
        return -1;
    return read_again(b, err);
}

/* ---- the command ---- */

enum {
    KEY_PATH = 256, KEY_NUMERICS, KEY_OPERATORS, KEY_VECTORS, KEY_JSON, KEY_PATIENCE, KEY_LIMITS,
    KEY_COLD
};

static int64_t parse_number(const char *name, const char *text, int64_t least, int64_t most,
                            struct argp_state *state)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || number < least || number > most)
        argp_error(state, "%s: expected a number from %" PRId64 " to %" PRId64 ", got '%s'", name,
                   least, most, text);
    return number;
}

static void parse_depths(bench_arguments *arguments, const char *text, struct argp_state *state)
{
    char *copy = dsv4_alloc(strlen(text) + 1, 1), *rest = strcpy(copy, text);
    arguments->depths = 0;
    for (char *word; (word = strsep(&rest, ",")) != NULL;) {
        if (arguments->depths == MOST_DEPTHS)
            argp_error(state, "-d: expected at most %d depths", MOST_DEPTHS);
        arguments->depth[arguments->depths++] = parse_number("-d", word, 0, MOST_TOKENS, state);
    }
    free(copy);
}

static dsv4_numerics parse_numerics(const char *text, struct argp_state *state)
{
    if (strcmp(text, "exact") != 0 && strcmp(text, "released") != 0)
        argp_error(state, "--numerics: expected exact or released, got '%s'", text);
    return strcmp(text, "exact") == 0 ? DSV4_EXACT : DSV4_RELEASED;
}

static double parse_seconds(const char *name, const char *text, struct argp_state *state)
{
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end != '\0' || !(seconds >= 0 && seconds <= 1e9))
        argp_error(state, "%s: expected seconds, 0 or more, got '%s'", name, text);
    return seconds;
}

static void check_arguments(const bench_arguments *arguments, struct argp_state *state)
{
    if (arguments->dir == NULL)
        argp_error(state, "expected MODEL_DIR, a checkpoint directory");
    if (arguments->path == NULL)
        argp_error(state, "--path: expected %s", dsv4_path_names());
    if (arguments->vectors != NULL && !arguments->operators)
        argp_error(state, "--vectors needs --operators");
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    bench_arguments *arguments = state->input;
    switch (key) {
    case 'p': arguments->prompt = parse_number("-p", text, 0, 1 << 20, state); return 0;
    case 'n': arguments->generate = parse_number("-n", text, 0, 1 << 20, state); return 0;
    case 'd': parse_depths(arguments, text, state); return 0;
    case 'r':
        arguments->repetitions = parse_number("-r", text, 1, MOST_REPETITIONS, state);
        return 0;
    case KEY_PATIENCE: arguments->patience = parse_seconds("--patience", text, state); return 0;
    case KEY_LIMITS: arguments->limit_seconds = parse_seconds("--limits", text, state); return 0;
    case KEY_PATH: arguments->path = dsv4_path_find(text); return 0;
    case KEY_NUMERICS: arguments->numerics = parse_numerics(text, state); return 0;
    case ARGP_KEY_INIT: state->child_inputs[0] = &arguments->how; return 0;
    case KEY_OPERATORS: arguments->operators = true; return 0;
    case KEY_VECTORS: arguments->vectors = text; return 0;
    case KEY_COLD: arguments->cold = true; return 0;
    case KEY_JSON: arguments->json = true; return 0;
    case ARGP_KEY_ARG:
        if (arguments->dir != NULL)
            argp_error(state, "expected one MODEL_DIR, got a second: '%s'", text);
        arguments->dir = text;
        return 0;
    case ARGP_KEY_END: check_arguments(arguments, state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "What to measure:", 1},
    {"prompt", 'p', "N", 0, "Prefill of N tokens in one call (default 512; 0: none)", 1},
    {"generate", 'n', "N", 0, "Decoding of N tokens, one by one (default 32; 0: none)", 1},
    {"depth", 'd', "N,N...", 0, "After so many tokens of context (default 0); of several, what the "
     "later ones take more than the first", 1},
    {"operators", KEY_OPERATORS, NULL, 0, "Time every operator at the model's sizes, beside ref", 1},
    {"cold", KEY_COLD, NULL, 0, "Drop the checkpoint from memory first, and compare its loading with "
     "direct reading from the disk", 1},
    {"vectors", KEY_VECTORS, "DIR", 0, "Golden vectors for --operators (default: as `dsv4 verify` "
     "finds them)", 1},
    {"repetitions", 'r', "N", 0, "Prefills that the median is of, if patience allows (default 3)", 1},
    {"patience", KEY_PATIENCE, "S", 0, "Seconds that computing a depth may take (default 60); where it "
     "would take longer, its caches are filled with random entries, and the report says SYNTHETIC", 1},
    {"limits", KEY_LIMITS, "S", 0, "Seconds for measuring the machine's limits (default 3; "
     "below 0.5, of less memory than it takes to be sure of no cache)", 1},
    {NULL, 0, NULL, 0, "How to compute it:", 2},
    {"path", KEY_PATH, "NAME", 0, "Implementation: fast (default) or ref", 2},
    {"numerics", KEY_NUMERICS, "KIND", 0, "released (default) or exact", 2},
    {NULL, 0, NULL, 0, "Report:", 3},
    {"json", KEY_JSON, NULL, 0, "One JSON object in place of tables. Seconds, bytes, and FLOP per "
     "call; rates per second; fractions of the limits", 3},
    {0},
};

static const char documentation[] =
    "Measures how fast a model runs, and how near that is to what the machine can do.\v"
    "The machine's limits are measured in the same run: how fast it reads memory, in chunks of 13 "
    "MiB from a buffer that no cache holds, and how fast each of its instruction sets multiplies "
    "and adds. Every figure is compared with them: bytes that have to be read (weights in the form "
    "in which they are stored, each once a call; of the experts those that are chosen, for several "
    "tokens as many as an even router would choose; caches), and multiplications and additions of "
    "products, without padding.\n"
    "\n"
    "Token ids are random, so that experts change from token to token. A prefill gives no logits; "
    "decoding gives them for every token. Times of components come from calls of their own, which "
    "compute one component after the other. docs/bench.md explains every figure and key.\n"
    "\n"
    "--operators judges each operator by the golden vectors first; one that fails is not timed. The operators "
    "that only decode codes are not what a fast pass does: it decodes within products, and answers "
    "them by products with unit vectors.\n"
    "\n"
    "Example: dsv4 bench model/ -p 512 -n 32 -d 0,4096,65536";

int dsv4_bench_main(int argc, char **argv)
{
    const struct argp_child children[] = {{&dsv4_path_argp, 0, NULL, 0}, {0}};
    const struct argp argp = {.options = options, .parser = parse_option, .args_doc = "MODEL_DIR",
                              .doc = documentation, .children = children};
    bench_arguments arguments = {.path = dsv4_path_find("fast"), .numerics = DSV4_RELEASED,
                                 .prompt = 512, .generate = 32, .depths = 1, .repetitions = 3,
                                 .patience = 60, .limit_seconds = 3};
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    bench b = {.arguments = &arguments, .seed = 1};
    dsv4_error err = {""};
    int result = run_all(&b, &err);
    if (result == 0 && arguments.json) {
        json_dumpf(b.json, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
    }
    json_decref(b.json);
    dsv4_limits_free(&b.limits);
    dsv4_model_close(&b.model);
    if (result == 0)
        return 0;
    fflush(stdout);
    fprintf(stderr, "dsv4 bench: %s\n", err.text);
    return 2;
}
