#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden.h"
#include "host/judge.h"

/* A case with one output, and an answer to it that is equal at first. */
typedef struct {
    dsv4_case c, answer;
    dsv4_verdict verdict;
} trial;

static dsv4_array *add(trial *t, const char *slot, int rank, const int64_t *shape,
                       dsv4_format format, const void *values)
{
    dsv4_array *want = dsv4_case_add_out(&t->c, slot, format, rank, shape);
    memcpy(want->data, values, (size_t)want->count * sizeof(double));
    dsv4_array *got = dsv4_case_add_out(&t->answer, slot, format, rank, shape);
    memcpy(got->data, values, (size_t)want->count * sizeof(double));
    dsv4_tolerance(*tolerance)[DSV4_TIERS] = dsv4_alloc((size_t)t->c.outs, sizeof *tolerance);
    if (t->c.tolerance != NULL)
        memcpy(tolerance, t->c.tolerance, (size_t)(t->c.outs - 1) * sizeof *tolerance);
    free(t->c.tolerance);
    t->c.tolerance = tolerance;
    return got;
}

static void tolerate(trial *t, double row, double element, double rms)
{
    for (int i = 0; i < t->c.outs; i++) {
        t->c.tolerance[i][DSV4_TIER_FP32] = (dsv4_tolerance){row, element, rms};
        t->c.tolerance[i][DSV4_TIER_BF16] = (dsv4_tolerance){1e3 * row, 1e3 * element, 1e3 * rms};
    }
}

static trial new_trial(const char *op)
{
    trial t = {.c = golden_case(op, "t", DSV4_EXACT), .answer = golden_case(op, "t", DSV4_EXACT)};
    return t;
}

static void free_trial(trial *t)
{
    dsv4_case_free(&t->c);
    dsv4_case_free(&t->answer);
}

static bool judged(trial *t, dsv4_tier tier)
{
    dsv4_judge_answer(&t->c, t->c.out, t->c.outs, &t->answer, (dsv4_strictness){.tier = tier},
                      &t->verdict);
    return t->verdict.passed;
}

static bool passes(trial *t)
{
    return judged(t, DSV4_TIER_FP32);
}

/* rmsnorm y [2, 3] = {{1, -2, 4}, {0.5, 0, 1}} with one value changed. */
static bool one_value(double row, double element, double rms, int64_t i, double value, trial *t)
{
    *t = new_trial("rmsnorm");
    dsv4_array *y = add(t, "y", 2, (int64_t[]){2, 3}, DSV4_FORMAT_F64,
                        (double[]){1, -2, 4, 0.5, 0, 1});
    tolerate(t, row, element, rms);
    ((double *)y->data)[i] = value;
    bool passed = passes(t);
    free_trial(t);
    return passed;
}

static void values_test(void **state)
{
    (void)state;
    trial t;
    assert_true(one_value(0, 0, 0, 0, 1, &t));
    assert_true(t.verdict.ratio == 0);
    /* 0.25 is 1/16 of the row's 4, but 1/4 of the other row's 1. */
    assert_true(one_value(0.0625, 0, 1, 0, 1.25, &t));
    assert_true(t.verdict.ratio == 1);
    assert_false(one_value(0.0625, 0, 1, 0, 1.2500001, &t));
    assert_false(one_value(0.0625, 0, 1, 4, 0.25, &t));
    assert_int_equal(t.verdict.slot[0].wrong, 1);
    assert_int_equal(t.verdict.slot[0].count, 6);
    assert_int_equal(t.verdict.slot[0].index[0], 1);
    assert_int_equal(t.verdict.slot[0].index[1], 1);
    assert_true(t.verdict.slot[0].expected == 0 && t.verdict.slot[0].got == 0.25);
    assert_true(t.verdict.slot[0].error == 0.25 && t.verdict.slot[0].tolerance == 0.0625);
    assert_true(t.verdict.ratio == 4);
    /* Of the element alone. */
    assert_true(one_value(0, 0.125, 1, 2, 4.5, &t));
    assert_false(one_value(0, 0.125, 1, 2, 4.6, &t));
    assert_false(one_value(0, 0.125, 1, 4, 1e-300, &t));
    /* Each within, but not all together: rms of the error 0.25, of the values sqrt(22.25). */
    assert_true(one_value(1, 0, 0.25 / sqrt(22.25) * 1.001, 4, 0.25, &t));
    assert_false(one_value(1, 0, 0.25 / sqrt(22.25) * 0.999, 4, 0.25, &t));
    assert_int_equal(t.verdict.slot[0].rank, -1);
    assert_non_null(strstr(t.verdict.slot[0].note, "rms"));
}

static void not_finite_test(void **state)
{
    (void)state;
    trial t;
    assert_false(one_value(1, 1, 1, 2, NAN, &t));
    assert_true(isinf(t.verdict.ratio) && isnan(t.verdict.slot[0].got));
    assert_false(one_value(1, 1, 1, 2, INFINITY, &t));
    assert_false(one_value(INFINITY, 1, INFINITY, 2, INFINITY, &t));

    t = new_trial("rmsnorm");
    dsv4_array *y = add(&t, "y", 1, (int64_t[]){4}, DSV4_FORMAT_F64,
                        (double[]){NAN, INFINITY, -INFINITY, 1});
    tolerate(&t, 0, 0, 0);
    assert_true(passes(&t));
    double *got = y->data;
    got[0] = 17; /* free */
    assert_true(passes(&t));
    got[1] = -INFINITY;
    assert_false(passes(&t));
    assert_int_equal(t.verdict.slot[0].index[0], 1);
    got[1] = 1e308;
    assert_false(passes(&t));
    got[1] = INFINITY;
    got[2] = NAN;
    assert_false(passes(&t));
    free_trial(&t);
}

static void tiers_test(void **state)
{
    (void)state;
    trial t = new_trial("rmsnorm");
    dsv4_array *y = add(&t, "y", 1, (int64_t[]){2}, DSV4_FORMAT_F64, (double[]){1, 1});
    tolerate(&t, 1e-6, 0, 1e-6);
    ((double *)y->data)[0] = 1 + 1e-4;
    assert_false(judged(&t, DSV4_TIER_FP32));
    assert_true(judged(&t, DSV4_TIER_BF16));
    ((double *)y->data)[0] = 1 + 1e-9;
    assert_true(judged(&t, DSV4_TIER_FP32));
    dsv4_judge_answer(&t.c, t.c.out, t.c.outs, &t.answer, (dsv4_strictness){.identical = true},
                      &t.verdict);
    assert_false(t.verdict.passed);
    free_trial(&t);
}

static void form_test(void **state)
{
    (void)state;
    trial t = new_trial("attention_swa");
    add(&t, "y", 2, (int64_t[]){1, 2}, DSV4_FORMAT_F64, (double[]){1, 2});
    add(&t, "q", 2, (int64_t[]){1, 2}, DSV4_FORMAT_F64, (double[]){1, 2});
    tolerate(&t, 0, 0, 0);
    assert_true(passes(&t));
    assert_int_equal(t.verdict.slots, 2);

    dsv4_array given[2] = {t.answer.out[0], t.answer.out[1]};
    t.answer.outs = 1; /* q is optional, y is not */
    assert_true(passes(&t));
    assert_int_equal(t.verdict.slots, 1);
    t.answer.out[0] = given[1];
    assert_false(passes(&t));
    assert_string_equal(t.verdict.slot[0].note, "missing out/y");
    assert_true(t.verdict.slot[0].misshaped);

    t.answer.out[0] = given[0];
    t.answer.out[0].shape[0] = 2;
    t.answer.out[0].shape[1] = 1;
    assert_false(passes(&t));
    assert_string_equal(t.verdict.slot[0].note, "out/y: shape [2,1], expected [1,2]");
    t.answer.out[0] = given[0];
    t.answer.out[0].format = DSV4_FORMAT_I64;
    assert_false(passes(&t));
    assert_string_equal(t.verdict.slot[0].note, "out/y: integers, expected floats");
    t.answer.out[0] = given[0];
    t.answer.out[1] = given[1];
    t.answer.outs = 2;
    free_trial(&t);
}

static bool scaled(const double got[4], double tolerance)
{
    trial t = new_trial("indexer_score");
    dsv4_array *score = add(&t, "score", 2, (int64_t[]){2, 2}, DSV4_FORMAT_F64,
                            (double[]){1, -2, 3, 0});
    memcpy(score->data, got, 4 * sizeof *got);
    tolerate(&t, tolerance, 0, tolerance);
    bool passed = passes(&t);
    free_trial(&t);
    return passed;
}

static void scale_test(void **state)
{
    (void)state;
    assert_true(scaled((double[]){1, -2, 3, 0}, 1e-12));
    assert_true(scaled((double[]){90.5, -181, 271.5, 0}, 1e-12));
    assert_true(scaled((double[]){1e-300, -2e-300, 3e-300, 0}, 1e-12));
    assert_false(scaled((double[]){-1, 2, -3, 0}, 1e-2)); /* another order of merit */
    assert_false(scaled((double[]){2, -4, 3, 0}, 1e-2)); /* a factor for each row */
    assert_false(scaled((double[]){NAN, -2, 3, 0}, 1e-2));
    assert_false(scaled((double[]){INFINITY, -2, 3, 0}, 1e-2));
    assert_false(scaled((double[]){0, 0, 0, 0}, 1e-2));
}

/* indexer_select of 3 out of 6 at position 19, ratio 4: 5 are visible. Two scores are tied. */
static bool selects(int64_t a, int64_t b, int64_t c, double margin, trial *t)
{
    *t = new_trial("indexer_select");
    dsv4_case_set(&t->c, "ratio", 4);
    dsv4_array *score = dsv4_case_add_in(&t->c, "score", DSV4_FORMAT_F32, 2, (int64_t[]){1, 6});
    memcpy(score->data, (float[]){5, 2, 8, 2, 1.9f, 2}, 6 * sizeof(float));
    dsv4_array *positions =
        dsv4_case_add_in(&t->c, "positions", DSV4_FORMAT_I64, 1, (int64_t[]){1});
    *(int64_t *)positions->data = 19;
    dsv4_array *selected = add(t, "selected", 2, (int64_t[]){1, 3}, DSV4_FORMAT_I64,
                               (int64_t[]){2, 0, 1});
    memcpy(selected->data, (int64_t[]){a, b, c}, 3 * sizeof(int64_t));
    tolerate(t, margin, 0, 0);
    bool passed = passes(t);
    free_trial(t);
    return passed;
}

static void selection_test(void **state)
{
    (void)state;
    trial t;
    assert_true(selects(2, 0, 1, 0, &t));
    assert_true(selects(1, 2, 0, 0, &t));  /* a set */
    assert_true(selects(3, 2, 0, 0, &t));  /* a tie of 1 and 3 */
    assert_false(selects(4, 2, 0, 0, &t)); /* 1.9 is not 2 */
    assert_int_equal(t.verdict.slot[0].index[1], 0);
    assert_true(t.verdict.slot[0].expected == 1 && t.verdict.slot[0].got == 4);
    assert_true(selects(4, 2, 0, 0.1 / 8 * 1.01, &t));
    assert_false(selects(4, 2, 0, 0.1 / 8 * 0.99, &t));
    assert_false(selects(5, 2, 0, 0, &t)); /* a tie, but not yet visible */
    assert_non_null(strstr(t.verdict.slot[0].note, "outside 0..4"));
    assert_false(selects(2, 2, 0, 1, &t)); /* twice */
    assert_non_null(strstr(t.verdict.slot[0].note, "twice"));
    assert_false(selects(2, 0, -1, 1, &t)); /* one too few */
    assert_non_null(strstr(t.verdict.slot[0].note, "2 members, expected 3"));
    assert_false(selects(2, -1, 0, 1, &t));
    assert_false(selects(2, 0, INT64_MIN, 1, &t));
    assert_false(selects(2, 0, INT64_MAX, 1, &t));
}

static bool routed(const int64_t index[2], const double weight[2], trial *t)
{
    *t = new_trial("gate_score");
    dsv4_array *chosen = add(t, "route_index", 2, (int64_t[]){1, 2}, DSV4_FORMAT_I64,
                             (int64_t[]){3, 1});
    memcpy(chosen->data, index, 2 * sizeof *index);
    dsv4_array *weights = add(t, "route_weight", 2, (int64_t[]){1, 2}, DSV4_FORMAT_F64,
                              (double[]){0.25, 1.25});
    memcpy(weights->data, weight, 2 * sizeof *weight);
    add(t, "biased", 2, (int64_t[]){1, 4}, DSV4_FORMAT_F64, (double[]){1, 3, 0, 1});
    tolerate(t, 1e-6, 0, 1e-6);
    bool passed = passes(t);
    free_trial(t);
    return passed;
}

static void weights_test(void **state)
{
    (void)state;
    trial t;
    assert_true(routed((int64_t[]){3, 1}, (double[]){0.25, 1.25}, &t));
    assert_true(routed((int64_t[]){1, 3}, (double[]){1.25, 0.25}, &t));
    assert_false(routed((int64_t[]){1, 3}, (double[]){0.25, 1.25}, &t));
    assert_string_equal(dsv4_verdict_failure(&t.verdict)->slot->name, "route_weight");
    assert_true(routed((int64_t[]){1, 0}, (double[]){1.25, 0.25}, &t)); /* 0 and 3 are tied */
    assert_false(routed((int64_t[]){1, 2}, (double[]){1.25, 0.25}, &t));
    assert_string_equal(dsv4_verdict_failure(&t.verdict)->slot->name, "route_index");
}

/* Hash routing: no scores; tid2eid may name an expert twice. */
static void hash_test(void **state)
{
    (void)state;
    trial t = new_trial("gate_hash");
    int64_t *got = add(&t, "route_index", 2, (int64_t[]){2, 2}, DSV4_FORMAT_I64,
                       (int64_t[]){4, 4, 1, 0})->data;
    double *weight = add(&t, "route_weight", 2, (int64_t[]){2, 2}, DSV4_FORMAT_F64,
                         (double[]){0.75, 0.75, 1, 1})->data;
    tolerate(&t, 1e-6, 0, 1e-6);
    weight[1] = 0;
    assert_false(passes(&t));
    weight[1] = 0.75;
    assert_true(passes(&t));
    got[2] = 0;
    got[3] = 1;
    assert_true(passes(&t));
    got[1] = 3;
    assert_false(passes(&t));
    got[1] = 4;
    got[3] = 0;
    assert_false(passes(&t));
    assert_int_equal(t.verdict.slot[0].wrong, 1);
    assert_int_equal(t.verdict.slot[0].count, 2);
    free_trial(&t);
}

/* Against a mistake's outputs: what the case leaves free stays so, what the mistake makes NaN has
 * to be. */
static void other_expectation_test(void **state)
{
    (void)state;
    trial t = new_trial("rmsnorm");
    dsv4_array *y = add(&t, "y", 1, (int64_t[]){3}, DSV4_FORMAT_F64, (double[]){NAN, 1, 2});
    tolerate(&t, 1e-6, 0, 1e-6);
    trial mistake = new_trial("rmsnorm");
    add(&mistake, "y", 1, (int64_t[]){3}, DSV4_FORMAT_F64, (double[]){5, NAN, 7});
    double *got = y->data;
    memcpy(got, (double[]){1, NAN, 7}, 3 * sizeof *got);
    dsv4_judge_answer(&t.c, mistake.c.out, 1, &t.answer, (dsv4_strictness){0}, &t.verdict);
    assert_true(t.verdict.passed);
    got[1] = 1;
    dsv4_judge_answer(&t.c, mistake.c.out, 1, &t.answer, (dsv4_strictness){0}, &t.verdict);
    assert_false(t.verdict.passed);
    assert_false(passes(&t));
    free_trial(&mistake);
    free_trial(&t);
}

static void index_text_test(void **state)
{
    (void)state;
    char text[32], tiny[6];
    dsv4_index_text(text, sizeof text, 3, (int64_t[]){5, 2, 1033});
    assert_string_equal(text, "[5,2,1033]");
    dsv4_index_text(text, sizeof text, 0, NULL);
    assert_string_equal(text, "[]");
    dsv4_index_text(tiny, sizeof tiny, 3, (int64_t[]){5, 2, 1033});
    assert_int_equal(strlen(tiny), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_test),          cmocka_unit_test(not_finite_test),
        cmocka_unit_test(tiers_test),           cmocka_unit_test(form_test),
        cmocka_unit_test(scale_test),           cmocka_unit_test(selection_test),
        cmocka_unit_test(weights_test),         cmocka_unit_test(hash_test),
        cmocka_unit_test(other_expectation_test), cmocka_unit_test(index_text_test),
    };
    return cmocka_run_group_tests_name("judge", tests, NULL, NULL) != 0;
}
