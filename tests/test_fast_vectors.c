/* The committed golden vectors, answered by the fast path at every level that this machine has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "fast/kernels.h"
#include "host/judge.h"
#include "host/path.h"

static const char *const numerics_names[] = {[DSV4_EXACT] = "exact", [DSV4_RELEASED] = "released"};

/* Calls `work` on every case; how many there are. */
static int64_t each_case(void (*work)(dsv4_case *c))
{
    int64_t cases = 0;
    for (int i = 0; i < 2 * dsv4_operator_count; i++) {
        char path[4096];
        snprintf(path, sizeof path, "vectors/v1/%s_%s.h5", dsv4_operators[i / 2].name,
                 numerics_names[i % 2]);
        if (access(path, F_OK) != 0)
            continue;
        dsv4_case_file file;
        dsv4_error err = {""};
        if (dsv4_case_file_read(&file, path, &err) != 0)
            fail_msg("%s", err.text);
        for (int64_t j = 0; j < file.count; j++)
            work(&file.c[j]);
        cases += file.count;
        dsv4_case_file_free(&file);
    }
    return cases;
}

static void configure(const char *isa, int threads, bool deterministic)
{
    dsv4_error err = {""};
    const dsv4_path_options options = {threads, isa, deterministic};
    if (dsv4_path_fast.configure(&options, &err) != 0)
        fail_msg("%s", err.text);
    char expected[64];
    snprintf(expected, sizeof expected, "%s, %d thread%s", isa, threads, threads == 1 ? "" : "s");
    assert_string_equal(dsv4_path_fast.level(), expected);
}

static dsv4_case answer(const dsv4_case *c)
{
    dsv4_case got = {.op = c->op, .numerics = c->numerics};
    dsv4_error err = {""};
    memcpy(got.name, c->name, sizeof got.name);
    int status = dsv4_path_fast.answer(NULL, c, &got, &err);
    if (status != 0)
        fail_msg("%s/%s is not answered: %s", c->op->name, c->name, err.text);
    return got;
}

static bool is_right(const dsv4_case *c, const dsv4_case *got, dsv4_verdict *verdict)
{
    dsv4_judge_answer(c, c->out, c->outs, got, (dsv4_strictness){.tier = DSV4_TIER_FP32}, verdict);
    return verdict->passed && verdict->slots == c->outs;
}

/* ---- every operator is right, at every level ---- */

static void check_answer(dsv4_case *c)
{
    dsv4_case got = answer(c);
    dsv4_verdict verdict;
    if (!is_right(c, &got, &verdict)) {
        const dsv4_slot_verdict *v = dsv4_verdict_failure(&verdict);
        char index[112] = "";
        if (v != NULL && v->rank >= 0)
            dsv4_index_text(index, sizeof index, v->rank, v->index);
        fail_msg("%s: %s/%s %s %s%s: expected %.9g, got %.9g; %s", dsv4_path_fast.level(),
                 c->op->name, c->name, numerics_names[c->numerics], v != NULL ? v->slot->name : "",
                 index, v != NULL ? v->expected : 0, v != NULL ? v->got : 0,
                 v != NULL ? v->note : "an output is missing");
    }
    dsv4_case_free(&got);
}

static const char *level_name(int rank)
{
    int count;
    const fast_kernels *const *levels = fast_levels(&count);
    return rank < count ? levels[rank]->name : NULL;
}

/* Under a sanitizer or an emulator. */
static bool is_slow(void)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    return true;
#else
    return getenv("DSV4_EMULATED") != NULL;
#endif
}

static void check_level(int rank)
{
    const char *level = level_name(rank);
    if (level == NULL) {
        printf("skipped: this machine has %d levels of instructions\n", rank);
        skip();
    }
    /* The best level once more without a second thread, unless that takes long. */
    for (int threads = level_name(rank + 1) == NULL && !is_slow() ? 1 : 3; threads <= 3;
         threads += 2) {
        configure(level, threads, false);
        assert_true(each_case(check_answer) >= 350);
    }
}

static void portable_answers(void **state)
{
    (void)state;
    check_level(0);
}

static void second_level_answers(void **state)
{
    (void)state;
    check_level(1);
}

static void third_level_answers(void **state)
{
    (void)state;
    check_level(2);
}

/* ---- threads, chunks and neighbours change no bit ---- */

/* Cuts a schedule into calls of one row. */
static void cut_calls(dsv4_case *c)
{
    const dsv4_array *sequence = dsv4_case_in(c, "sequence");
    for (int i = 0; i < c->ins && sequence != NULL; i++) {
        dsv4_array *calls = &c->in[i];
        if (strcmp(calls->name, "calls") != 0)
            continue;
        free(calls->data);
        calls->count = calls->shape[0] = sequence->count;
        int64_t *rows = calls->data = dsv4_alloc((size_t)calls->count, sizeof *rows);
        for (int64_t row = 0; row < calls->count; row++)
            rows[row] = 1;
        dsv4_case_set(c, "batch", 0);
    }
}

static const char *level_in_test;

static void check_bits(dsv4_case *c)
{
    static int cases;
    if (cases++ % 8 != 0 && is_slow())
        return;
    configure(level_in_test, 3, true);
    dsv4_case whole = answer(c);
    cut_calls(c);
    configure(level_in_test, 1, true);
    dsv4_case cut = answer(c);
    assert_int_equal(whole.outs, cut.outs);
    for (int i = 0; i < whole.outs; i++) {
        assert_int_equal(whole.out[i].count, cut.out[i].count);
        size_t size = (size_t)(whole.out[i].count * dsv4_format_size(whole.out[i].format));
        if (memcmp(whole.out[i].data, cut.out[i].data, size) != 0)
            fail_msg("%s: %s/%s %s %s: other calls or threads give other bits", level_in_test,
                     c->op->name, c->name, numerics_names[c->numerics], whole.out[i].name);
    }
    dsv4_case_free(&whole);
    dsv4_case_free(&cut);
}

static void bits_stay(void **state)
{
    (void)state;
    int count;
    fast_levels(&count);
    level_in_test = level_name(count - 1);
    assert_true(each_case(check_bits) >= 350);
}

/* ---- the judge of these tests sees a wrong answer ---- */

static void check_change(dsv4_case *c)
{
    dsv4_case got = answer(c);
    dsv4_verdict verdict;
    float *y = got.out[0].data;
    assert_true(is_right(c, &got, &verdict));
    y[got.out[0].count / 2] *= 1.01f;
    assert_false(is_right(c, &got, &verdict));
    dsv4_case_free(&got);
}

static void changes_show(void **state)
{
    (void)state;
    dsv4_case_file file;
    dsv4_error err = {""};
    configure(level_name(0), 1, false);
    assert_int_equal(dsv4_case_file_read(&file, "vectors/v1/rmsnorm_exact.h5", &err), 0);
    for (int64_t i = 0; i < file.count; i++)
        check_change(&file.c[i]);
    dsv4_case_file_free(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(portable_answers),    cmocka_unit_test(second_level_answers),
        cmocka_unit_test(third_level_answers), cmocka_unit_test(bits_stay),
        cmocka_unit_test(changes_show),
    };
    return cmocka_run_group_tests_name("fast_vectors", tests, NULL, NULL) != 0;
}
