/* fast/attention.c: how many entries are made into rows for tiles before rows of a call attend. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fast/fast.h"
#include "whole.h"

/* ---- tiles that only count ---- */

static int64_t rows_made;

static int64_t row_size(int64_t d)
{
    return d;
}

static void make_row(const float *e, int64_t d, uint16_t *row)
{
    (void)e;
    (void)d;
    *row = 0;
}

static void make_coded_row(const uint8_t *codes, const uint8_t *scales, const uint16_t *rope,
                           int64_t values, int64_t R, uint16_t *row)
{
    (void)codes;
    (void)scales;
    (void)rope;
    row[values + R - 1] = 0; /* there is room for it */
    rows_made++;
}

static int64_t scratch_size(int64_t heads, int64_t d)
{
    return heads + d;
}

static void begin(const fast_softmax *s, void *scratch)
{
    (void)s;
    (void)scratch;
}

static void block(const fast_softmax *s, const uint16_t *const *rows, int64_t count, void *scratch)
{
    (void)s;
    (void)scratch;
    for (int64_t i = 0; i < count; i++)
        assert_non_null(rows[i]);
}

static void end(const fast_softmax *s, void *scratch, bool *refused)
{
    (void)scratch;
    for (int64_t h = 0; h < s->heads; h++) {
        refused[h] = false;
        s->maximum[h] = 0;
        s->denominator[h] = 1;
    }
    for (int64_t i = 0; i < s->heads * s->d; i++)
        s->out[i] = 0;
}

static const fast_row_kernels counting = {.row_size = row_size, .row = make_row,
                                          .coded_row = make_coded_row,
                                          .scratch_size = scratch_size, .begin = begin,
                                          .block = block, .end = end};

/* ---- sequences ---- */

enum { HCA_LAYER = 2, SEQUENCES = 4, ROWS = 2 };

/* A call with two tokens of each sequence, in an HCA layer, where so many entries stand before them. */
static void attend(const whole *w, const int64_t entries[SEQUENCES])
{
    enum { T = SEQUENCES * ROWS };
    int64_t ratio = w->model.config.compress_ratios[HCA_LAYER], position[T];
    float x[T * 128], y[T * 128]; /* hidden_size as in whole.c */
    dsv4_error err = {""};
    dsv4_config one = w->model.config;
    one.num_hidden_layers = 1;
    one.compress_ratios = &ratio;
    int levels;
    fast_kernels kernels = *fast_levels(&levels)[0];
    kernels.core_attn_tiles = &counting;
    const fast_context c = {.config = &one, .released = true, .kernels = &kernels,
                            .pool = fast_pool_new(1, &err), .memory = fast_memory_new(),
                            .error = &err};
    fast_segment segment[SEQUENCES];
    fast_layer_state *layer[SEQUENCES];
    for (int i = 0; i < SEQUENCES; i++) {
        int64_t before = entries[i] * ratio;
        segment[i] = (fast_segment){fast_state_new(&one, true, 0, before + ROWS, &err), i * ROWS, ROWS,
                                    before, NULL};
        assert_non_null(segment[i].state);
        layer[i] = &segment[i].state->layer[0];
        layer[i]->compressor.entries.count = entries[i]; /* of zeros */
        for (int row = 0; row < ROWS; row++)
            position[i * ROWS + row] = before + row;
    }
    for (int i = 0; i < T * 128; i++)
        x[i] = (float)(i % 7) - 3;
    const fast_call call = {T, SEQUENCES, segment, position};
    fast_attention(&c, &call, &w->model.layers[HCA_LAYER], layer, x, y);
    assert_string_equal(err.text, "");
    for (int i = 0; i < SEQUENCES; i++)
        fast_state_free(segment[i].state);
    fast_pool_free(c.pool);
    fast_memory_free(c.memory);
}

/* Each entry becomes a row once for both tokens, or, where that would be more rows than there is room
 * for, once for each of them. */
static void test_room_for_rows(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    assert_int_equal(w.model.config.hidden_size, 128);
    rows_made = 0;
    attend(&w, (const int64_t[SEQUENCES]){30, 40, 50, 60});
    assert_int_equal(rows_made, 30 + 40 + 50 + 60);
    rows_made = 0; /* room is for 131072 */
    attend(&w, (const int64_t[SEQUENCES]){65536, 40000, 40000, 20000});
    assert_int_equal(rows_made, 65536 + 40000 + 2 * 40000 + 20000);
    rows_made = 0;
    attend(&w, (const int64_t[SEQUENCES]){65536, 65536, 1, 65537});
    assert_int_equal(rows_made, 65536 + 65536 + 2 * 1 + 2 * 65537);
    whole_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_room_for_rows)};
    return cmocka_run_group_tests_name("fast_attention", tests, NULL, NULL) != 0;
}
