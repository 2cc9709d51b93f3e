/* fast/gate.c, fast/expert.c and fast/moe.c: against the reference. */
#include "small.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/fast.h"
#include "spy.h"

static const double u = 0x1p-24; /* the relative error of one rounding to binary32 */

static fast_context begin(small *s, const fast_kernels *level, int threads)
{
    fast_context c = {.config = &s->config, .released = s->c.numerics == DSV4_RELEASED,
                      .kernels = level, .pool = fast_pool_new(threads, &s->error),
                      .memory = fast_memory_new(), .error = &s->error};
    assert_non_null(c.pool);
    return c;
}

static void end(const fast_context *c)
{
    fast_pool_free(c->pool);
    fast_memory_free(c->memory);
}

static float *floats(small *s, const double *x, int64_t count)
{
    float *y = small_alloc(s, count, sizeof *y);
    for (int64_t i = 0; i < count; i++)
        y[i] = (float)x[i];
    return y;
}

static double *doubles(small *s, const float *x, int64_t count)
{
    double *y = small_array(s, count);
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i];
    return y;
}

/* ---- gate ---- */

/* D + 3 roundings of the sum of magnitudes at most for a logit; 4 u for each function, and where s
 * is small, expf() of half the logit. */
static void gate_scores(void **state)
{
    small *s = *state;
    enum { E = 37, T = 11 };
    static const double amplitudes[] = {0.1, 1, 10, 80};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 8 * levels; i++) {
        int64_t D = i % 2 == 0 ? 24 : 33;
        s->config.hidden_size = D;
        s->config.n_routed_experts = E;
        s->c.numerics = i % 4 < 2 ? DSV4_EXACT : DSV4_RELEASED;
        dsv4_layer layer = {.ffn.gate.weight = small_random_matrix(
                                s, i % 3 == 0 ? DSV4_F32 : DSV4_BF16, E, D, amplitudes[i % 4])};
        double *x = small_randoms(s, T * D, 1), want[E];
        double *w = small_values(s, &layer.ffn.gate.weight);
        float got[T * E];
        fast_context c = begin(s, level[i / 8], 1 + i % 2);
        fast_gate_scores(&c, &layer, floats(s, x, T * D), T, got);
        for (int64_t t = 0; t < T; t++) {
            ref_gate_scores(&s->c, &layer, x + t * D, want);
            for (int64_t e = 0; e < E; e++) {
                double logit = 0, magnitude = 0;
                for (int64_t j = 0; j < D; j++) {
                    logit += w[e * D + j] * x[t * D + j];
                    magnitude += fabs(w[e * D + j] * x[t * D + j]);
                }
                double slope = 1 / (1 + exp(-logit)) / (2 * want[e]);
                double error = (double)(D + 3) * u * magnitude + u * fabs(logit);
                small_about(s, got[t * E + e], want[e], slope * error + 16 * u * want[e] + 1e-37);
            }
        }
        assert_string_equal(s->error.text, "");
        end(&c);
    }
}

/* Logits at the ends of the range: no overflow, no precision lost below 2^-126. */
static void gate_extremes(void **state)
{
    small *s = *state;
    enum { E = 12 };
    const double logits[E] = {0, 1, -1, 17, -17.5, -18, -18.5, 40, -80, -150, 3000, -600};
    int levels;
    s->config.hidden_size = 1;
    s->config.n_routed_experts = E;
    dsv4_layer layer = {.ffn.gate.weight = small_f32(s, logits, E, 1)};
    double want[E];
    float got[E];
    fast_context c = begin(s, fast_levels(&levels)[0], 1);
    fast_gate_scores(&c, &layer, (float[]){1}, 1, got);
    ref_gate_scores(&s->c, &layer, (double[]){1}, want);
    for (int e = 0; e < E; e++)
        small_about(s, got[e], want[e], 6 * u * want[e] + 1e-44);
    end(&c);
}

static dsv4_matrix table(small *s, dsv4_dtype dtype, int64_t rows, int64_t cols, int64_t E)
{
    int64_t size = dtype == DSV4_I64 ? 8 : 4;
    char *data = (char *)small_alloc(s, rows * cols * size + 1, 1) + 1;
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t wide = (int64_t)(small_bits(s) % (uint64_t)E);
        int32_t narrow = (int32_t)wide;
        memcpy(data + i * size, size == 8 ? (const void *)&wide : &narrow, (size_t)size);
    }
    return (dsv4_matrix){.name = "layers.0.ffn.gate.tid2eid", .file = "some.safetensors",
                         .dtype = dtype, .rows = rows, .cols = cols, .data = data};
}

/* Scores from few values, so that sums are often equal. */
static void gate_choices(void **state)
{
    small *s = *state;
    enum { T = 60, E = 23 };
    float score[T * E];
    int64_t chosen[T * 6], want[6], ids[T];
    int levels;
    fast_context c = begin(s, fast_levels(&levels)[0], 2);
    s->config.n_routed_experts = E;
    s->c.numerics = DSV4_RELEASED;
    for (int i = 0; i < 24; i++) {
        int64_t k = 1 + i % 6;
        double bias[E];
        s->config.num_experts_per_tok = k;
        for (int e = 0; e < E; e++)
            bias[e] = i % 3 == 0 ? 0 : i % 3 == 1 ? (double)(small_bits(s) % 3) : small_random(s);
        dsv4_layer layer = {.hash = i >= 18, .ffn.gate.bias = small_f32(s, bias, 1, E)};
        layer.ffn.gate.tid2eid = table(s, i % 2 == 0 ? DSV4_I64 : DSV4_I32, 50, k, E);
        for (int j = 0; j < T * E; j++)
            score[j] = i % 2 == 0 ? (float)(small_bits(s) % 7) : (float)fabs(small_random(s));
        for (int t = 0; t < T; t++)
            ids[t] = (int64_t)(small_bits(s) % 50);
        fast_gate_choose(&c, &layer, score, ids, T, chosen);
        for (int t = 0; t < T; t++) {
            ref_gate_choose(&s->c, &layer, doubles(s, score + t * E, E), ids[t], want);
            assert_memory_equal(chosen + t * k, want, (size_t)k * sizeof *want);
        }
    }
    assert_string_equal(s->error.text, "");
    end(&c);
}

static void gate_bad_entry(void **state)
{
    small *s = *state;
    static const int64_t bad[] = {10, -1, INT64_MAX};
    int levels;
    for (int i = 0; i < 3; i++) {
        const int64_t entries[8] = {0, 1, 2, 3, 4, bad[i], 6, 7}, id = 1;
        int64_t chosen[4], want[4];
        s->error.text[0] = '\0';
        fast_context c = begin(s, fast_levels(&levels)[0], 1);
        dsv4_layer layer = {.hash = true};
        layer.ffn.gate.tid2eid = (dsv4_matrix){.name = "layers.0.ffn.gate.tid2eid",
                                               .file = "some.safetensors", .dtype = DSV4_I64,
                                               .rows = 2, .cols = 4, .data = entries};
        ref_gate_choose(&s->c, &layer, NULL, id, want);
        dsv4_error line = s->error;
        s->error.text[0] = '\0';
        fast_gate_choose(&c, &layer, NULL, &id, 1, chosen);
        assert_string_not_equal(line.text, "");
        assert_string_equal(s->error.text, line.text);
        assert_memory_equal(chosen, want, sizeof want);
        end(&c);
    }
}

static void gate_not_a_number(void **state)
{
    small *s = *state;
    float score[10] = {NAN, 1, NAN, 2, 3, NAN, NAN, NAN, NAN, NAN};
    int64_t chosen[4], id = 0;
    int levels;
    fast_context c = begin(s, fast_levels(&levels)[0], 1);
    dsv4_layer layer = {.ffn.gate.bias = small_f32(s, small_array(s, 10), 1, 10)};
    fast_gate_choose(&c, &layer, score, &id, 1, chosen);
    for (int i = 0; i < 4; i++) {
        assert_in_range(chosen[i], 0, 9);
        for (int j = 0; j < i; j++)
            assert_int_not_equal(chosen[i], chosen[j]);
    }
    end(&c);
}

static void gate_weights(void **state)
{
    small *s = *state;
    enum { T = 40, E = 10, k = 4 };
    float score[T * E], got[T * k];
    int64_t chosen[T * k];
    double want[k];
    int levels;
    fast_context c = begin(s, fast_levels(&levels)[0], 1);
    for (int i = 0; i < 4; i++) {
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        s->config.norm_topk_prob = i < 2;
        for (int j = 0; j < T * E; j++)
            score[j] = (float)exp(20 * small_random(s));
        for (int j = 0; j < T * k; j++)
            chosen[j] = (int64_t)(small_bits(s) % E);
        fast_gate_weigh(&c, score, chosen, T, got);
        for (int t = 0; t < T; t++) {
            ref_gate_weigh(&s->c, doubles(s, score + t * E, E), chosen + t * k, want);
            for (int j = 0; j < k; j++)
                small_about(s, got[t * k + j], want[j], i % 2 == 0 ? u * want[j] : 0);
        }
    }
    end(&c);
}

/* ---- experts ---- */

static dsv4_expert make_expert(small *s, dsv4_dtype dtype, int64_t D, int64_t I)
{
    double amplitude = 4 / sqrt((double)D);
    return (dsv4_expert){.w1 = small_random_matrix(s, dtype, I, D, amplitude),
                         .w3 = small_random_matrix(s, dtype, I, D, amplitude),
                         .w2 = small_random_matrix(s, dtype, D, I, amplitude)};
}

/* EXACT: what ref_expert makes of x, and how far binary32 may be from it. Sums of n products have
 * n + 3 roundings of the sum of magnitudes at most; a clamp adds nothing; |silu'| < 1.1, and
 * silu has five operations, the product two; `weight_error` is relative. */
static void expert_bound(small *s, const dsv4_expert *w, double weight, double weight_error,
                         const double *x, double *y, double *bound)
{
    int64_t D = w->w1.cols, I = w->w1.rows;
    double *w1 = small_values(s, &w->w1), *w3 = small_values(s, &w->w3);
    double *w2 = small_values(s, &w->w2), *a = small_array(s, I), *error = small_array(s, I);
    double limit = s->config.swiglu_limit > 0 ? s->config.swiglu_limit : INFINITY;
    for (int64_t i = 0; i < I; i++) {
        double g = 0, v = 0, sum_g = 0, sum_v = 0;
        for (int64_t j = 0; j < D; j++) {
            g += w1[i * D + j] * x[j];
            v += w3[i * D + j] * x[j];
            sum_g += fabs(w1[i * D + j] * x[j]);
            sum_v += fabs(w3[i * D + j] * x[j]);
        }
        g = fmin(g, limit);
        v = fmax(fmin(v, limit), -limit);
        double silu = g / (1 + exp(-g));
        a[i] = weight * silu * v;
        error[i] = weight * (double)(D + 3) * u * (1.1 * sum_g * fabs(v) + fabs(silu) * sum_v) +
                   (weight_error + 12 * u) * fabs(a[i]);
    }
    for (int64_t j = 0; j < D; j++) {
        y[j] = bound[j] = 0;
        for (int64_t i = 0; i < I; i++) {
            double product = w2[j * I + i] * a[i];
            y[j] += product;
            bound[j] += (double)(I + 3) * u * fabs(product) + fabs(w2[j * I + i]) * error[i];
        }
    }
}

/* RELEASED: a flip of a rounding to bf16 changes little, and flips are rare: nearly all values are
 * the same, and together the others hardly differ. */
typedef struct { int64_t values, flips; double difference, size; } tally;

static void count(tally *n, const float *got, const double *want, int64_t values)
{
    for (int64_t i = 0; i < values; i++) {
        n->values++;
        n->flips += got[i] != want[i];
        n->difference += pow(got[i] - want[i], 2);
        n->size += want[i] * want[i];
    }
}

static void few_flips(const tally *n)
{
    if (n->flips * 50 > n->values || n->difference > 0x1p-18 * n->size) {
        print_error("%lld of %lld values differ, relative error %g\n", (long long)n->flips,
                    (long long)n->values, sqrt(n->difference / n->size));
        fail();
    }
}

/* Four experts with different numbers of rows, one of them unweighted, in one call. */
static void experts_of(small *s, const fast_kernels *level, dsv4_dtype dtype, int64_t D, int64_t I,
                       tally *n)
{
    static const int64_t rows[4] = {1, 5, 0, 9};
    dsv4_expert w[4];
    fast_expert_job job[4];
    double *x[4], weight[9];
    float weight32[9];
    for (int j = 0; j < 9; j++)
        weight[j] = weight32[j] = (float)fabs(small_random(s));
    s->config.swiglu_limit = small_bits(s) % 2 == 0 ? 0 : 1.5;
    for (int j = 0; j < 4; j++) {
        w[j] = make_expert(s, dtype, D, I);
        x[j] = small_randoms(s, rows[j] * D, 2);
        job[j] = (fast_expert_job){.w = &w[j], .rows = rows[j], .x = floats(s, x[j], rows[j] * D),
                                   .weight = j == 1 ? NULL : weight32,
                                   .y = small_alloc(s, rows[j] * D, sizeof(float))};
    }
    fast_context c = begin(s, level, 2);
    fast_experts(&c, job, 4);
    double *want = small_array(s, D), *same = small_array(s, D), *bound = small_array(s, D);
    for (int j = 0; j < 4; j++)
        for (int64_t r = 0; r < rows[j]; r++) {
            const double *row = x[j] + r * D, *by = j == 1 ? NULL : &weight[r];
            ref_expert(&s->c, &w[j], by, row, want);
            if (c.released) {
                count(n, job[j].y + r * D, want, D);
                continue;
            }
            expert_bound(s, &w[j], by != NULL ? *by : 1, 0, row, same, bound);
            for (int64_t i = 0; i < D; i++) {
                small_about(s, same[i], want[i], bound[i]);
                small_about(s, job[j].y[r * D + i], want[i], bound[i]);
            }
        }
    assert_string_equal(s->error.text, "");
    end(&c);
}

static void experts(void **state)
{
    small *s = *state;
    static const struct { dsv4_dtype dtype; int64_t D, I; } cases[] = {
        {DSV4_F32, 24, 12}, {DSV4_BF16, 48, 72}, {DSV4_F16, 7, 35}, {DSV4_F8_E4M3, 128, 256},
        {DSV4_I8, 256, 128}};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++)
        for (int i = 0; i < 10; i++) {
            tally n = {0};
            s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
            experts_of(s, level[l], cases[i / 2].dtype, cases[i / 2].D, cases[i / 2].I, &n);
            few_flips(&n);
        }
}

/* expert.act.2 by hand: as in test_expert.c, the weight comes before the rounding. */
static void expert_rounding(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    const float weight = 1.25f, x = 1;
    float y[2];
    s->c.numerics = DSV4_RELEASED;
    s->config.swiglu_limit = 0;
    dsv4_expert w = {.w1 = small_f32(s, (double[]){42}, 1, 1),
                     .w3 = small_f32(s, (double[]){13}, 1, 1),
                     .w2 = small_f32(s, (double[]){1.25}, 1, 1)};
    for (int l = 0; l < levels; l++) {
        fast_context c = begin(s, level[l], 1);
        const fast_expert_job jobs[2] = {{&w, 1, &x, &weight, &y[0]}, {&w, 1, &x, NULL, &y[1]}};
        fast_experts(&c, jobs, 2);
        small_is(s, y[0], 856);
        small_is(s, y[1], 680);
        end(&c);
    }
}

/* ---- mixture ---- */

typedef struct {
    dsv4_layer layer;
    int64_t T, D, E, k;
    double *x;
    float *x32;
    int64_t *ids;
} operands;

static operands make(small *s, dsv4_dtype dtype, int64_t T, int64_t D, int64_t I, bool hash)
{
    operands o = {.T = T, .D = D, .E = 10, .k = 4, .x = small_randoms(s, T * D, 2),
                  .ids = small_alloc(s, T, sizeof *o.ids)};
    s->config.hidden_size = D;
    s->config.n_routed_experts = o.E;
    s->config.num_experts_per_tok = o.k;
    s->config.vocab_size = 50;
    o.x32 = floats(s, o.x, T * D);
    for (int64_t t = 0; t < T; t++)
        o.ids[t] = (int64_t)(small_bits(s) % 50);
    o.layer = (dsv4_layer){.hash = hash, .ffn.experts = small_alloc(s, o.E, sizeof(dsv4_expert)),
                           .ffn.shared_experts = make_expert(s, dtype, D, I)};
    for (int64_t e = 0; e < o.E; e++)
        o.layer.ffn.experts[e] = make_expert(s, dtype, D, I);
    o.layer.ffn.gate.weight = small_random_matrix(s, DSV4_BF16, o.E, D, 1 / sqrt((double)D));
    o.layer.ffn.gate.bias = small_random_matrix(s, DSV4_F32, 1, o.E, 0.3);
    o.layer.ffn.gate.tid2eid = table(s, DSV4_I64, 50, o.k, o.E); /* with repetitions */
    return o;
}

/* Rows [first, first + T) as one sequence, its first token at `position`. */
static void run(const fast_context *c, const operands *o, int64_t first, int64_t T,
                int64_t position, const dsv4_tap *tap, float *y)
{
    const fast_segment segment = {.rows = T, .position = position, .tap = tap};
    const fast_call call = {.T = T, .segments = 1, .segment = &segment};
    fast_moe(c, &call, &o->layer, o->ids + first, o->x32 + first * o->D, y);
}

/* Both paths show their choices and weights to a tap. */
static void against_reference(small *s, const fast_kernels *level, const operands *o, tally *n)
{
    enum { AT = 7 };
    int64_t T = o->T, D = o->D, k = o->k, room = T + AT;
    double *index[2], *weight[2], *out[2], *y = small_array(s, T * D);
    float *got = small_alloc(s, T * D, sizeof *got);
    spy watch[2];
    fast_context c = begin(s, level, 2);
    for (int i = 0; i < 2; i++) {
        spy_start(s, &watch[i]);
        spy_see(&watch[i], "route_index", index[i] = small_array(s, room * k), 0);
        spy_see(&watch[i], "route_weight", weight[i] = small_array(s, room * k), 0);
        spy_see(&watch[i], "ffn_out", out[i] = small_array(s, room * D), 0);
    }
    run(&c, o, 0, T, AT, &watch[0].tap, got);
    ref_moe(&s->c, &o->layer, o->ids, AT, o->x, T, y); /* under watch[1] */
    assert_string_equal(s->error.text, "");
    small_same(s, index[0], index[1], room * k);
    small_near(s, weight[0], weight[1], room * k, 1e-5);
    small_same(s, out[0] + AT * D, doubles(s, got, T * D), T * D);
    double *part = small_array(s, D), *error = small_array(s, D), *bound = small_array(s, D);
    for (int64_t t = 0; t < T; t++) {
        if (c.released) {
            count(n, got + t * D, y + t * D, D);
            continue;
        }
        memset(bound, 0, (size_t)D * sizeof *bound);
        for (int64_t i = 0; i <= k; i++) {
            int64_t e = i < k ? (int64_t)index[1][(AT + t) * k + i] : 0;
            const dsv4_expert *w = i < k ? &o->layer.ffn.experts[e] : &o->layer.ffn.shared_experts;
            double by = i < k ? weight[1][(AT + t) * k + i] : 1;
            double by_error = i < k ? fabs(weight[0][(AT + t) * k + i] - by) / by : 0;
            expert_bound(s, w, by, by_error, o->x + t * D, part, error);
            for (int64_t j = 0; j < D; j++)
                bound[j] += error[j] + (double)(k + 1) * u * fabs(part[j]);
        }
        for (int64_t j = 0; j < D; j++)
            small_about(s, got[t * D + j], y[t * D + j], bound[j]);
    }
    end(&c);
}

static void moe(void **state)
{
    small *s = *state;
    static const struct { dsv4_dtype dtype; int64_t T, D, I; } cases[] = {
        {DSV4_F32, 1, 24, 12}, {DSV4_BF16, 20, 48, 72}, {DSV4_F16, 3, 7, 35},
        {DSV4_F8_E4M3, 4, 128, 128}, {DSV4_I8, 9, 128, 128}};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++)
        for (int i = 0; i < 20; i++) {
            tally n = {0};
            s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
            s->config.swiglu_limit = i % 3;
            operands o = make(s, cases[i / 4].dtype, cases[i / 4].T, cases[i / 4].D, cases[i / 4].I,
                              i % 4 >= 2);
            against_reference(s, level[l], &o, &n);
            few_flips(&n);
        }
}

/* Rows alone, in chunks, with other rows, on other numbers of threads, and more of them than go
 * through the experts at once. */
static void grouping_changes_nothing(void **state)
{
    small *s = *state;
    static const int64_t chunks[] = {1, 3, 130, 600};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 4 * levels; i++) {
        enum { T = 1040 };
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        bool quantised = i % 4 >= 2;
        operands o = quantised ? make(s, DSV4_I8, T / 8, 128, 128, i % 4 == 2)
                               : make(s, DSV4_BF16, T, 20, 6, false);
        size_t size = (size_t)(o.T * o.D) * sizeof(float);
        float *all = small_alloc(s, o.T * o.D, sizeof *all);
        float *y = small_alloc(s, o.T * o.D, sizeof *y);
        fast_context c = begin(s, level[i / 4], 1);
        run(&c, &o, 0, o.T, 0, NULL, all);
        end(&c);
        for (int j = 0; j < 4; j++) {
            c = begin(s, level[i / 4], 1 + j % 3);
            memset(y, 0xff, size);
            for (int64_t t = 0; t < o.T; t += chunks[j])
                run(&c, &o, t, o.T - t < chunks[j] ? o.T - t : chunks[j], t, NULL, y + t * o.D);
            assert_memory_equal(y, all, size);
            end(&c);
        }
    }
}

/* Two sequences in one call: each tap sees its own rows, at their positions, and keeps its
 * choices. */
static void segments(void **state)
{
    small *s = *state;
    enum { T = 9, SPLIT = 4, D = 24, k = 4 };
    int levels;
    operands o = make(s, DSV4_F32, T, D, 12, false);
    fast_context c = begin(s, fast_levels(&levels)[0], 2);
    double index[2][30 * k], weight[2][30 * k], out[2][30 * D], other[30 * k];
    float y[T * D], alone[T * D];
    for (int i = 0; i < 30 * k; i++)
        other[i] = (double)(small_bits(s) % 10); /* repetitions too */
    spy watch[2], single;
    spy_start(s, &single);
    spy_give(&single, "route_index", other, 0);
    for (int i = 0; i < 2; i++) {
        spy_start(s, &watch[i]);
        if (i == 1)
            spy_give(&watch[i], "route_index", other, 0);
        spy_see(&watch[i], "route_index", index[i], 0);
        spy_see(&watch[i], "route_weight", weight[i], 0);
        spy_see(&watch[i], "ffn_out", out[i], 0);
    }
    const fast_segment segment[2] = {
        {.rows = SPLIT, .position = 3, .tap = &watch[0].tap},
        {.first = SPLIT, .rows = T - SPLIT, .position = 20, .tap = &watch[1].tap}};
    const fast_call call = {.T = T, .segments = 2, .segment = segment};
    fast_moe(&c, &call, &o.layer, o.ids, o.x32, y);
    run(&c, &o, 0, SPLIT, 3, NULL, alone);
    run(&c, &o, SPLIT, T - SPLIT, 20, &single.tap, alone + SPLIT * D);
    assert_memory_equal(y, alone, sizeof y);
    small_same(s, index[1] + 20 * k, other + 20 * k, (T - SPLIT) * k);
    small_same(s, out[0] + 3 * D, doubles(s, y, SPLIT * D), SPLIT * D);
    small_same(s, out[1] + 20 * D, doubles(s, y + SPLIT * D, (T - SPLIT) * D), (T - SPLIT) * D);
    for (int t = SPLIT; t < T; t++) { /* weighed by each token's own scores */
        double scores[10], want[k];
        int64_t chosen[k];
        ref_gate_scores(&s->c, &o.layer, o.x + t * D, scores);
        for (int i = 0; i < k; i++)
            chosen[i] = (int64_t)other[(20 + t - SPLIT) * k + i];
        ref_gate_weigh(&s->c, scores, chosen, want);
        small_near(s, weight[1] + (20 + t - SPLIT) * k, want, k, 1e-5);
    }
    end(&c);
}

/* An expert of D = 1 that makes v x 50 / 64 of the input 1: silu(50) = 50. */
static dsv4_expert constant(small *s, double v)
{
    return (dsv4_expert){.w1 = small_f32(s, (double[]){50}, 1, 1),
                         .w3 = small_f32(s, (double[]){v}, 1, 1),
                         .w2 = small_f32(s, (double[]){1.0 / 64}, 1, 1)};
}

/* Experts 0 to 3 and the shared one make out[0..4] of 1; taken in the order `chosen`,
 * with weight 1. */
static void mixture_is(small *s, const double *out, int64_t k, const double *chosen, double want)
{
    const double ones[4] = {1, 1, 1, 1};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    operands o = {.T = 1, .D = 1, .E = 4, .k = k, .ids = &(int64_t){0}, .x32 = &(float){1}};
    s->config.hidden_size = 1;
    s->config.n_routed_experts = 4;
    s->config.num_experts_per_tok = k;
    s->config.swiglu_limit = 0;
    o.layer = (dsv4_layer){.ffn.experts = small_alloc(s, 4, sizeof(dsv4_expert)),
                           .ffn.shared_experts = constant(s, out[4] * 64 / 50),
                           .ffn.gate.weight = small_f32(s, ones, 4, 1),
                           .ffn.gate.bias = small_f32(s, ones, 1, 4)};
    for (int e = 0; e < 4; e++)
        o.layer.ffn.experts[e] = constant(s, out[e] * 64 / 50);
    for (int l = 0; l < levels; l++) {
        spy watch;
        float y;
        spy_start(s, &watch);
        spy_give(&watch, "route_index", chosen, 0);
        spy_give(&watch, "route_weight", ones, 0);
        fast_context c = begin(s, level[l], 1);
        run(&c, &o, 0, 1, 0, &watch.tap, &y);
        small_is(s, y, want);
        end(&c);
    }
}

/* Sums of numbers that absorb each other show their order. */
static void order(void **state)
{
    small *s = *state;
    const double big = 50 * 0x1p40;
    mixture_is(s, (double[]){big, 50, -big, 0, 0}, 3, (double[]){2, 0, 1}, 0);
    mixture_is(s, (double[]){big, -big, 50, 0, 0}, 3, (double[]){2, 0, 1}, 50);
    mixture_is(s, (double[]){big, -big, 0, 0, 50}, 2, (double[]){0, 1}, 50);
    mixture_is(s, (double[]){0, 50, 0, 0, 0}, 3, (double[]){1, 0, 1}, 100);
    s->c.numerics = DSV4_RELEASED; /* rounded once: after each addition 257.8125 would be 256 */
    mixture_is(s, (double[]){200, 56.25, 0.78125, 0, 0.78125}, 3, (double[]){0, 1, 2}, 258);
}

/* What overflows in an expert is an error, whatever comes behind it. */
static void overflow(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < 2 * levels; i++) {
        float y[3 * 24];
        s->error.text[0] = '\0';
        s->c.numerics = i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED;
        operands o = make(s, DSV4_F32, 3, 24, 12, false);
        double *huge = small_array(s, 12 * 24);
        for (int j = 0; j < 12 * 24; j++)
            huge[j] = 3e38;
        o.layer.ffn.shared_experts.w1 = small_f32(s, huge, 12, 24);
        o.x32[24] = 100;
        fast_context c = begin(s, level[i / 2], 2);
        run(&c, &o, 0, 3, 0, NULL, y);
        assert_string_not_equal(s->error.text, "");
        end(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(gate_scores), small_test(gate_extremes), small_test(gate_choices),
        small_test(gate_bad_entry), small_test(gate_not_a_number), small_test(gate_weights),
        small_test(experts), small_test(expert_rounding), small_test(moe),
        small_test(grouping_changes_nothing), small_test(segments), small_test(order),
        small_test(overflow),
    };
    return cmocka_run_group_tests_name("fast_moe", tests, NULL, NULL) != 0;
}
