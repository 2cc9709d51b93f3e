/* Both paths behind host/path.h: what a run refuses, and what it says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "whole.h"

enum { V = 31 };

static const dsv4_path *path; /* the one in hand */

static int choose_path(void **state)
{
    path = *state;
    return 0;
}

static int setup(void **state)
{
    path = *state;
    whole *w = dsv4_alloc(1, sizeof *w);
    whole_open(w, DSV4_EXACT, MAKE_EXACT, NULL);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    whole_close(*state);
    free(*state);
    return 0;
}

static dsv4_run *open_run(const whole *w, int64_t room)
{
    dsv4_error err = {{0}};
    dsv4_run *run = path->open(&w->model, w->numerics, room, NULL, &err);
    if (run == NULL)
        fail_msg("%s", err.text);
    return run;
}

typedef int (*call)(dsv4_run *, const int64_t *, int64_t, double *, dsv4_error *);

static void good(call f, dsv4_run *run, const int64_t *ids, int64_t n)
{
    double logits[8 * V];
    dsv4_error err = {{0}};
    if (f(run, ids, n, logits, &err) != 0)
        fail_msg("%s", err.text);
    assert_string_equal(err.text, "");
}

static void bad(call f, dsv4_run *run, const int64_t *ids, int64_t n, const char *message)
{
    double logits[8 * V];
    dsv4_error err = {{0}};
    assert_int_equal(f(run, ids, n, logits, &err), -1);
    if (strstr(err.text, message) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", message, err.text);
}

static const int64_t some_ids[8] = {3, 1, 4, 1, 5, 9, 2, 6};

static void names(void **state)
{
    (void)state;
    assert_ptr_equal(dsv4_path_find("ref"), &dsv4_path_ref);
    assert_ptr_equal(dsv4_path_find("fast"), &dsv4_path_fast);
    assert_null(dsv4_path_find("re"));
    assert_null(dsv4_path_find(""));
    assert_string_equal(dsv4_path_ref.name, "ref");
    assert_string_equal(dsv4_path_fast.name, "fast");
    assert_string_equal(dsv4_path_names(), "ref or fast");
}

static void room(void **state)
{
    const whole *w = *state;
    dsv4_error err = {{0}};
    assert_null(path->open(&w->model, DSV4_EXACT, 0, NULL, &err));
    assert_string_equal(err.text, "a run of 0 tokens: expected at least 1");
    path->close(NULL);

    dsv4_run *run = open_run(w, 5);
    bad(path->forward, run, some_ids, 6, "6 tokens after 0, expected 1 or more and at most 5");
    bad(path->forward, run, some_ids, 0, "0 tokens after 0");
    bad(path->forward, run, some_ids, -1, "-1 tokens after 0");
    bad(path->forward, run, some_ids, INT64_MAX, "tokens after 0");
    good(path->forward, run, some_ids, 3);
    bad(path->forward, run, some_ids, 3, "3 tokens after 3, expected 1 or more and at most 5");
    bad(path->forward, run, some_ids, INT64_MAX, "tokens after 3");
    good(path->forward, run, some_ids, 2);
    bad(path->forward, run, some_ids, 1, "1 tokens after 5");
    path->close(run);
}

/* A refused call leaves the run as it was: what follows is as if it had not been. */
static void ids_out_of_range(void **state)
{
    const whole *w = *state;
    double want[5 * V], got[5 * V];
    dsv4_error err = {{0}};
    dsv4_run *run = open_run(w, 5), *plain = open_run(w, 5);
    good(path->forward, run, some_ids, 2);
    bad(path->forward, run, (int64_t[]){0, 1, V}, 3, "token 4 has id 31, expected 0..30");
    bad(path->forward, run, (int64_t[]){-1}, 1, "token 2 has id -1, expected 0..30");
    bad(path->forward, run, (int64_t[]){INT64_MIN}, 1, "token 2 has id");
    assert_int_equal(path->forward(run, some_ids + 2, 3, got, &err), 0);
    assert_int_equal(path->forward(plain, some_ids, 5, want, &err), 0);
    assert_memory_equal(got, want + 2 * V, 3 * V * sizeof *got);
    bad(path->mtp, plain, (int64_t[]){0, 1, 2, 3, V}, 5, "has id 31, expected 0..30");
    good(path->mtp, plain, (int64_t[]){0, 1, 2, 3, V - 1}, 5);
    path->close(plain);
    plain = open_run(w, 1);
    good(path->forward, plain, (int64_t[]){V - 1}, 1);
    path->close(run);
    path->close(plain);
}

static void mtp_follows_forward(void **state)
{
    const whole *w = *state;
    dsv4_run *run = open_run(w, 8);
    bad(path->mtp, run, some_ids, 1, "MTP of 1 tokens after 0, expected the 0 of the last forward");
    good(path->forward, run, some_ids, 3);
    bad(path->mtp, run, some_ids + 1, 2, "MTP of 2 tokens after 0, expected the 3");
    bad(path->mtp, run, some_ids + 1, 0, "MTP of 0 tokens after 0");
    good(path->mtp, run, some_ids + 1, 3);
    bad(path->mtp, run, some_ids + 1, 3, "MTP of 3 tokens after 3");
    good(path->forward, run, some_ids, 2);
    good(path->forward, run, some_ids, 2); /* the two before were left out */
    bad(path->mtp, run, some_ids + 1, 2, "MTP of 2 tokens after 3");
    bad(path->mtp, run, some_ids + 1, 4, "MTP of 4 tokens after 3, expected the 2");
    path->close(run);
}

static void mtp_without_a_layer(void **state)
{
    const whole *w = *state;
    dsv4_model model;
    dsv4_error err = {{0}};
    assert_int_equal(dsv4_model_open(&model, w->dir, DSV4_EXACT, false, &err), 0);
    dsv4_run *run = path->open(&model, DSV4_EXACT, 3, NULL, &err);
    good(path->forward, run, some_ids, 3);
    bad(path->mtp, run, some_ids, 3, "the model was opened without its MTP layer");
    path->close(run);
    dsv4_model_close(&model);
}

/* An F32 matrix becomes a copy with one other value. To be freed. */
static void *poke(dsv4_matrix *m, int64_t row, int64_t col, float value)
{
    size_t size = (size_t)(m->rows * m->cols) * sizeof value;
    char *copy = dsv4_alloc(size, 1);
    memcpy(copy, m->data, size);
    memcpy(copy + (size_t)(row * m->cols + col) * sizeof value, &value, sizeof value);
    m->data = copy;
    return copy;
}

typedef struct { int64_t first[3]; } routing;

static void see_routing(void *context, const dsv4_point *p)
{
    if (p->layer == 0 && strcmp(p->name, "route_index") == 0)
        memcpy(((routing *)context)->first, p->indices, sizeof(routing));
}

static void forward_of(const whole *w, const int64_t *ids, int64_t n, const char *message)
{
    dsv4_run *run = open_run(w, n);
    if (message == NULL)
        good(path->forward, run, ids, n);
    else
        bad(path->forward, run, ids, n, message);
    path->close(run);
}

/* NaN is an error where it is read, and nothing where it is not. */
static void nan_in_an_expert(void **state)
{
    whole *w = *state;
    double logits[V];
    dsv4_error err = {{0}};
    routing chosen;
    const dsv4_tap tap = {see_routing, &chosen};
    dsv4_run *run = path->open(&w->model, DSV4_EXACT, 1, &tap, &err);
    assert_int_equal(path->forward(run, some_ids, 1, logits, &err), 0);
    path->close(run);
    for (int64_t e = 0; e < w->model.config.n_routed_experts; e++) {
        char message[64];
        dsv4_matrix *m = &w->model.layers[0].ffn.experts[e].w2, before = *m;
        bool read = e == chosen.first[0] || e == chosen.first[1] || e == chosen.first[2];
        void *copy = poke(m, 2, 5, NAN);
        snprintf(message, sizeof message, "layers.0.ffn.experts.%d.w2.weight: value [2, 5] is NaN",
                 (int)e);
        forward_of(w, some_ids, 1, read ? message : NULL);
        *m = before;
        free(copy);
    }
}

static void nan_in_the_embedding(void **state)
{
    whole *w = *state;
    dsv4_matrix before = w->model.embed;
    void *copy = poke(&w->model.embed, 9, 0, NAN);
    forward_of(w, some_ids, 5, NULL);
    forward_of(w, some_ids, 6, "embed.weight: value [9, 0] is NaN, expected a");
    dsv4_run *run = open_run(w, 5);
    good(path->forward, run, some_ids, 5);
    bad(path->mtp, run, some_ids + 1, 5, "embed.weight: value [9, 0] is NaN");
    path->close(run);
    w->model.embed = before;
    free(copy);
}

/* Every kind of weight is read, and checked, by its own code. */
static void nan_anywhere(void **state)
{
    whole *w = *state;
    dsv4_layer *csa = &w->model.layers[1], *mtp = &w->model.mtp[0];
    dsv4_matrix *read[] = {
        &w->model.head, &w->model.norm, &w->model.hc_head.fn, &w->model.hc_head.base,
        &w->model.hc_head.scale, &csa->attn.attn_sink, &csa->attn.wq_a, &csa->attn.q_norm,
        &csa->attn.wq_b, &csa->attn.wkv, &csa->attn.kv_norm, &csa->attn.wo_a, &csa->attn.wo_b,
        &csa->attn.compressor.ape, &csa->attn.compressor.norm, &csa->attn.compressor.wkv,
        &csa->attn.compressor.wgate, &csa->attn.indexer.wq_b, &csa->attn.indexer.weights_proj,
        &csa->attn.indexer.compressor.wkv, &csa->ffn.gate.weight, &csa->ffn.gate.bias,
        &csa->ffn.shared_experts.w1, &csa->ffn.shared_experts.w2, &csa->ffn.shared_experts.w3,
        &csa->attn_norm, &csa->ffn_norm, &csa->hc_attn.fn, &csa->hc_attn.base, &csa->hc_ffn.scale};
    dsv4_matrix *read_by_mtp[] = {&mtp->e_proj, &mtp->h_proj, &mtp->enorm, &mtp->hnorm, &mtp->norm,
                                  &mtp->hc_head.fn, &mtp->attn.wkv, &mtp->ffn.gate.bias};
    for (size_t i = 0; i < sizeof read / sizeof *read; i++) {
        dsv4_matrix before = *read[i];
        void *copy = poke(read[i], before.rows - 1, before.cols - 1, NAN);
        forward_of(w, some_ids, 4, before.name);
        *read[i] = before;
        free(copy);
    }
    for (size_t i = 0; i < sizeof read_by_mtp / sizeof *read_by_mtp; i++) {
        dsv4_matrix before = *read_by_mtp[i];
        void *copy = poke(read_by_mtp[i], before.rows - 1, before.cols - 1, NAN);
        dsv4_run *run = open_run(w, 4);
        good(path->forward, run, some_ids, 4);
        bad(path->mtp, run, some_ids + 1, 4, before.name);
        path->close(run);
        *read_by_mtp[i] = before;
        free(copy);
    }
}

static void infinite_weight(void **state)
{
    whole *w = *state;
    dsv4_matrix before = w->model.head;
    void *copy = poke(&w->model.head, 7, 2, -INFINITY);
    forward_of(w, some_ids, 1, "head.weight: value [7, 2] is infinite");
    w->model.head = before;
    free(copy);
}

/* covers: numerics.finite.1 */
/* RELEASED overflows at 2^128. What is not finite is an error at once, and named. */
static void overflow(void **state)
{
    (void)state;
    whole w; /* of plain weights, and of widths that RELEASED can quantise */
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, CHANGES("head_dim", "70", "index_head_dim", "32"));
    const float large = 3e38f;
    w.numerics = DSV4_RELEASED;

    dsv4_matrix head = w.model.head;
    void *copy = poke(&w.model.head, 7, 2, large);
    forward_of(&w, some_ids, 8, ", 7] is infinite, expected a finite number: the weights make the "
                                "model overflow");
    w.model.head = head;
    free(copy);

    dsv4_matrix *wo_a = &w.model.layers[1].attn.wo_a, *wo_b = &w.model.layers[1].attn.wo_b;
    void *copies[2] = {poke(wo_a, 0, 0, large), poke(wo_b, 3, 0, large)};
    forward_of(&w, some_ids, 3, "layer 1: attn_out [0, 3] is infinite");
    free(copies[0]);
    free(copies[1]);
    whole_close(&w);
}

/* Binary32 alone: two products that overflow cancel to NaN, which a choice must not hide. */
static void overflow_in_the_gate(void **state)
{
    whole *w = *state;
    if (path != &dsv4_path_fast)
        return;
    dsv4_matrix *gate = &w->model.layers[1].ffn.gate.weight, before = *gate;
    size_t size = (size_t)(gate->rows * gate->cols) * sizeof(float);
    float *copy = dsv4_alloc(size, 1);
    memcpy(copy, gate->data, size);
    for (int64_t i = 0; i < gate->cols; i++) {
        copy[2 * gate->cols + i] = i % 2 == 0 ? 3e38f : -3e38f;
        copy[3 * gate->cols + i] = i % 2 == 0 ? -3e38f : 3e38f;
    }
    gate->data = copy;
    forward_of(w, some_ids, 6, "layer 1: gate score [");
    *gate = before;
    free(copy);
}

static void long_window(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, CHANGES("sliding_window", "2147483647"));
    forward_of(&w, some_ids, 8, NULL);
    whole_close(&w);
}

static void table_entry_that_is_no_expert(void **state)
{
    whole *w = *state;
    dsv4_matrix *m = &w->model.layers[0].ffn.gate.tid2eid, before = *m;
    size_t size = (size_t)(m->rows * m->cols) * sizeof(int64_t);
    int64_t *copy = dsv4_alloc(size, 1);
    memcpy(copy, m->data, size);
    copy[9 * m->cols + 1] = 9;
    m->data = copy;
    forward_of(w, some_ids, 5, NULL);
    forward_of(w, some_ids, 6, "tid2eid: value [9, 1] is 9, expected an expert 0..8");
    *m = before;
    free(copy);
}

#define CASE(of, f) {#of ": " #f, f, setup, teardown, (void *)&dsv4_path_##of}
#define ALL(of) \
    CASE(of, room), CASE(of, ids_out_of_range), CASE(of, mtp_follows_forward), \
    CASE(of, mtp_without_a_layer), CASE(of, nan_in_an_expert), CASE(of, nan_in_the_embedding), \
    CASE(of, nan_anywhere), CASE(of, infinite_weight), \
    {#of ": overflow", overflow, choose_path, NULL, (void *)&dsv4_path_##of}, \
    {#of ": long_window", long_window, choose_path, NULL, (void *)&dsv4_path_##of}, \
    CASE(of, overflow_in_the_gate), \
    CASE(of, table_entry_that_is_no_expert)

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names), ALL(ref), ALL(fast)};
    return cmocka_run_group_tests_name("path", tests, NULL, NULL) != 0;
}
