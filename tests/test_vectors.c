/* The committed golden vectors: what they promise, and that a changed value shows. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "host/cases.h"
#include "host/judge.h"
#include "host/path.h"

static const char directory[] = "vectors/v1";

/* Calls `work` on every case of every file. */
static void each_case(void (*work)(dsv4_case *c))
{
    int64_t cases = 0;
    for (int op = 0; op < dsv4_operator_count; op++)
        for (int n = 0; n < 2; n++) {
            char path[4096];
            struct stat status;
            snprintf(path, sizeof path, "%s/%s_%s.h5", directory, dsv4_operators[op].name,
                     n == 0 ? "exact" : "released");
            if (stat(path, &status) != 0)
                continue;
            dsv4_case_file file;
            dsv4_error err = {""};
            if (dsv4_case_file_read(&file, path, &err) != 0)
                fail_msg("%s", err.text);
            for (int64_t i = 0; i < file.count; i++)
                work(&file.c[i]);
            cases += file.count;
            dsv4_case_file_free(&file);
        }
    assert_true(cases >= 350);
}

static bool is_bf16(double x)
{
    float single = (float)x;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    return (double)single == x && (bits & 0xffff) == 0;
}

static void check_inputs(dsv4_case *c)
{
    for (int i = 0; i < c->ins && c->numerics == DSV4_EXACT; i++) {
        const dsv4_array *a = &c->in[i];
        if (a->format != DSV4_FORMAT_BF16 && a->format != DSV4_FORMAT_F32)
            continue;
        for (int64_t k = 0; k < a->count; k++)
            if (!is_bf16(dsv4_array_value(a, k)))
                fail_msg("%s/%s/in/%s: value %lld is no bf16 number", c->op->name, c->name,
                         a->name, (long long)k);
    }
    if (c->reason[0] == '\0' && strcmp(c->op->chapter, "hadamard") != 0 &&
        strcmp(c->name + strlen(c->name) - 4, "tiny") != 0)
        fail_msg("%s/%s has no reason", c->op->name, c->name);
}

static void exact_inputs_are_bf16(void **state)
{
    (void)state;
    each_case(check_inputs);
}

/* A tolerance is no blank cheque: a slot of noughts fails, whatever the tier. */
static void check_tolerances(dsv4_case *c)
{
    dsv4_case answer = {.op = c->op, .numerics = c->numerics};
    for (int o = 0; o < c->outs; o++)
        dsv4_case_add_out(&answer, c->out[o].name,
                          c->out[o].format == DSV4_FORMAT_I64 ? DSV4_FORMAT_I64 : DSV4_FORMAT_F64,
                          c->out[o].rank, c->out[o].shape);
    for (int tier = 0; tier < DSV4_TIERS; tier++) {
        dsv4_verdict verdict;
        dsv4_judge_answer(c, c->out, c->outs, &answer, (dsv4_strictness){.tier = (dsv4_tier)tier},
                          &verdict);
        if (verdict.passed)
            fail_msg("%s/%s: zeros pass", c->op->name, c->name);
    }
    dsv4_case_free(&answer);
}

static void zeros_never_pass(void **state)
{
    (void)state;
    each_case(check_tolerances);
}

static void set_value(dsv4_array *a, int64_t i, double x)
{
    if (a->format == DSV4_FORMAT_F64)
        ((double *)a->data)[i] = x;
    else
        ((float *)a->data)[i] = (float)x;
}

/* Every 2 % change of an expected value: one early, one late value of each output, and the largest. */
static void check_change(dsv4_case *c)
{
    dsv4_case answer = {.op = c->op, .numerics = c->numerics};
    for (int o = 0; o < c->outs; o++) {
        dsv4_array *copy = dsv4_case_add_out(&answer, c->out[o].name, c->out[o].format,
                                             c->out[o].rank, c->out[o].shape);
        memcpy(copy->data, c->out[o].data,
               (size_t)(c->out[o].count * dsv4_format_size(c->out[o].format)));
    }
    for (int o = 0; o < c->outs; o++) {
        dsv4_array *out = &c->out[o];
        if (out->format == DSV4_FORMAT_I64)
            continue;
        int64_t largest = 0, places[3] = {out->count / 7, out->count - 1 - out->count / 5, 0};
        for (int64_t i = 0; i < out->count; i++)
            if (!(fabs(dsv4_array_value(out, i)) <= fabs(dsv4_array_value(out, largest))) &&
                !isnan(dsv4_array_value(out, i)))
                largest = i;
        places[2] = largest;
        for (int p = 0; p < 3; p++) {
            double was = dsv4_array_value(out, places[p]);
            if (isnan(was) || was == 0)
                continue;
            dsv4_verdict verdict;
            set_value(out, places[p], was * 1.02);
            dsv4_judge_answer(c, c->out, c->outs, &answer, (dsv4_strictness){.identical = true},
                              &verdict);
            if (verdict.passed)
                fail_msg("%s/%s/%s: value %lld changed by 2 %% and nobody saw it", c->op->name,
                         c->name, out->name, (long long)places[p]);
            set_value(out, places[p], was);
        }
    }
    dsv4_verdict verdict;
    dsv4_judge_answer(c, c->out, c->outs, &answer, (dsv4_strictness){.identical = true}, &verdict);
    assert_true(verdict.passed);
    dsv4_case_free(&answer);
}

static void a_changed_value_shows(void **state)
{
    (void)state;
    each_case(check_change);
}

static int64_t size_of(const char *path)
{
    struct stat status;
    DIR *dir = opendir(path);
    if (dir == NULL)
        return stat(path, &status) == 0 ? (int64_t)status.st_size : 0;
    int64_t size = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char inner[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        size += size_of(inner);
    }
    closedir(dir);
    return size;
}

static void all_stay_under_40_mb(void **state)
{
    (void)state;
    int64_t size = size_of(directory);
    assert_true(size > 1000000);
    assert_true(size < 40000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_inputs_are_bf16),
        cmocka_unit_test(zeros_never_pass),
        cmocka_unit_test(a_changed_value_shows),
        cmocka_unit_test(all_stay_under_40_mb),
    };
    return cmocka_run_group_tests_name("vectors", tests, NULL, NULL) != 0;
}
