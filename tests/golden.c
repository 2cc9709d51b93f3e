#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/path.h"

static void stop(const dsv4_error *err)
{
    fprintf(stderr, "golden: %s\n", err->text);
    abort();
}

dsv4_case golden_case(const char *op, const char *name, dsv4_numerics numerics)
{
    dsv4_case c = {.op = dsv4_operator_find(op), .numerics = numerics};
    snprintf(c.name, sizeof c.name, "%s-%s", numerics == DSV4_EXACT ? "exact" : "released", name);
    snprintf(c.reason, sizeof c.reason, "a case of the tests");
    return c;
}

void golden_fill(dsv4_array *array, unsigned seed)
{
    for (int64_t i = 0; i < array->count; i++) {
        seed = seed * 1664525u + 1013904223u;
        ((float *)array->data)[i] = (float)((int)(seed >> 24) - 127) / 64;
    }
}

static void add_floats(dsv4_case *c, const char *name, int64_t rows, int64_t cols, unsigned seed)
{
    const int64_t shape[] = {rows, cols};
    golden_fill(dsv4_case_add_in(c, name, DSV4_FORMAT_BF16, rows > 0 ? 2 : 1,
                                 rows > 0 ? shape : shape + 1), seed);
}

void golden_answer(dsv4_case *c)
{
    dsv4_error err = {""};
    dsv4_case answer = {.op = c->op, .numerics = c->numerics};
    if (dsv4_path_ref.answer(NULL, c, &answer, &err) != 0)
        stop(&err);
    c->out = answer.out;
    c->outs = answer.outs;
    answer.out = NULL;
    answer.outs = 0;
    dsv4_case_free(&answer);
    c->tolerance = dsv4_alloc((size_t)c->outs, sizeof *c->tolerance);
    for (int i = 0; i < c->outs; i++) {
        c->tolerance[i][DSV4_TIER_FP32] = (dsv4_tolerance){1e-5, c->numerics ? 0x1p-7 : 1e-5, 1e-4};
        c->tolerance[i][DSV4_TIER_BF16] = (dsv4_tolerance){0x1p-7, 0x1p-7, 0x1p-6};
    }
}

static dsv4_case rmsnorm(const char *name, dsv4_numerics numerics, int64_t T, int64_t K)
{
    dsv4_case c = golden_case("rmsnorm", name, numerics);
    dsv4_case_set(&c, "rms_norm_eps", 1e-2);
    add_floats(&c, "x", T, K, 1);
    add_floats(&c, "weight", 0, K, 2);
    golden_answer(&c);
    return c;
}

static dsv4_case rope(void)
{
    dsv4_case c = golden_case("rope", "swa", DSV4_EXACT);
    static const struct { const char *name; double value; } params[] = {
        {"qk_rope_head_dim", 8}, {"rope_theta", 10000}, {"compress_rope_theta", 160000},
        {"compressed", 0}, {"factor", 0}, {"original_max_position_embeddings", 0},
        {"beta_fast", 32}, {"beta_slow", 1},
    };
    for (size_t i = 0; i < sizeof params / sizeof *params; i++)
        dsv4_case_set(&c, params[i].name, params[i].value);
    add_floats(&c, "x", 3, 12, 3);
    dsv4_array *positions = dsv4_case_add_in(&c, "positions", DSV4_FORMAT_I64, 1, (int64_t[]){3});
    memcpy(positions->data, (int64_t[]){0, 2, 9}, 3 * sizeof(int64_t));
    golden_answer(&c);
    return c;
}

static dsv4_case gate(void)
{
    dsv4_case c = golden_case("gate_score", "small", DSV4_EXACT);
    dsv4_case_set(&c, "num_experts_per_tok", 2);
    dsv4_case_set(&c, "routed_scaling_factor", 1.5);
    dsv4_case_set(&c, "norm_topk_prob", 1);
    add_floats(&c, "x", 3, 4, 4);
    add_floats(&c, "weight", 6, 4, 5);
    add_floats(&c, "bias", 0, 6, 6);
    golden_answer(&c);
    return c;
}

static void write_file(const char *directory, const char *name, dsv4_case *cases, int64_t count)
{
    char path[4096];
    dsv4_error err = {""};
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (dsv4_case_file_write(path, cases, count, &err) != 0)
        stop(&err);
    for (int64_t i = 0; i < count; i++)
        dsv4_case_free(&cases[i]);
}

void golden_write(const char *directory)
{
    mkdir(directory, 0777);
    write_file(directory, "rmsnorm_exact.h5",
               (dsv4_case[]){rmsnorm("a", DSV4_EXACT, 3, 8), rmsnorm("b", DSV4_EXACT, 2, 16)}, 2);
    write_file(directory, "rmsnorm_released.h5",
               (dsv4_case[]){rmsnorm("a", DSV4_RELEASED, 3, 8)}, 1);
    write_file(directory, "rope_exact.h5", (dsv4_case[]){rope()}, 1);
    write_file(directory, "gate_score_exact.h5", (dsv4_case[]){gate()}, 1);
}
