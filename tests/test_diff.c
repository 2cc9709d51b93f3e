/* dsv4 diff, as it is called. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "host/diff.h"
#include "host/h5.h"

#define SHAPE(...) ((const int64_t[]){__VA_ARGS__})
#define VALUES(...) ((const double[]){__VA_ARGS__})

/* Adds a dataset of F64, or of I64 where `indices` is given. */
static void add(dsv4_h5 *file, const char *name, int rank, const int64_t *shape,
                const double *values, const int64_t *indices)
{
    dsv4_error err = {""};
    int64_t width = 1;
    for (int i = 1; i < rank; i++)
        width *= shape[i];
    assert_non_null(file);
    assert_int_equal(dsv4_h5_define(file, name, indices != NULL ? DSV4_H5_I64 : DSV4_H5_F64, rank,
                                    shape, 0, &err), 0);
    assert_int_equal(dsv4_h5_write(file, name, 0, shape[0], width, values, indices, &err), 0);
}

static dsv4_h5 *create(const char *path)
{
    dsv4_error err = {""};
    return dsv4_h5_create(path, &err);
}

static void close_file(dsv4_h5 *file)
{
    dsv4_error err = {""};
    assert_int_equal(dsv4_h5_close(file, &err), 0);
}

/* A file of one dataset. */
static void put(const char *path, const char *name, int rank, const int64_t *shape,
                const double *values, const int64_t *indices)
{
    dsv4_h5 *file = create(path);
    add(file, name, rank, shape, values, indices);
    close_file(file);
}

/* The rows of a.h5 against b.h5, without the header, and the exit code. */
static void assert_diff(const char *tolerance, int code, const char *expected)
{
    command_result result = tolerance != NULL
                                ? command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5", "--tol",
                                               tolerance)
                                : command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_string_equal(result.err, "");
    const char *rows = strchr(result.out, '\n');
    assert_non_null(rows);
    assert_string_equal(rows + 1, expected);
    assert_int_equal(result.code, code);
    command_free(&result);
}

static void identical_files_are_equal(void **state)
{
    (void)state;
    const char *const paths[] = {"a.h5", "b.h5"};
    for (int f = 0; f < 2; f++) {
        dsv4_h5 *file = create(paths[f]);
        add(file, "x", 2, SHAPE(2, 2), VALUES(1, -INFINITY, NAN, 0), NULL);
        add(file, "zero", 2, SHAPE(2, 0), VALUES(0), NULL);
        add(file, "zeros", 1, SHAPE(2), VALUES(0, 0), NULL);
        add(file, "token_ids", 1, SHAPE(2), NULL, SHAPE(INT64_MAX, INT64_MIN));
        close_file(file);
    }
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_string_equal(result.out,
        "dataset               max abs     max rel          cosine      same  first difference\n"
        "token_ids  within           0           -               -  100.000%\n"
        "x          within           0           0   1.00000000000  100.000%\n"
        "zero       within           0           0   1.00000000000  100.000%\n"
        "zeros      within           0           0   1.00000000000  100.000%\n"
        "4 datasets compared: 4 within 0, 0 beyond\n");
    assert_string_equal(result.err, "");
    assert_int_equal(result.code, 0);
    command_free(&result);
}

/* The relative error is the largest absolute one over the largest finite magnitude of A. */
static void tolerance_is_relative_to_the_dataset(void **state)
{
    (void)state;
    put("a.h5", "x", 3, SHAPE(1, 2, 2), VALUES(0, 3, -4, -INFINITY), NULL);
    put("b.h5", "x", 3, SHAPE(1, 2, 2), VALUES(0, 3, -3.5, -INFINITY), NULL);
    const char row[] = "         0.5       0.125   0.99788010597   75.000%  [0,1,0] -4 / -3.5\n";
    char expected[400];
    sprintf(expected, "x        within%s1 datasets compared: 1 within 0.125, 0 beyond\n", row);
    assert_diff("0.125", 0, expected);
    sprintf(expected, "x        BEYOND%s1 datasets compared: 0 within 0.12, 1 beyond\n", row);
    assert_diff("0.12", 1, expected);
    sprintf(expected, "x        BEYOND%s1 datasets compared: 0 within 0, 1 beyond\n", row);
    assert_diff(NULL, 1, expected);
}

static void assert_infinite(double a, double b, const char *difference)
{
    char expected[400];
    put("a.h5", "x", 1, SHAPE(2), VALUES(1, a), NULL);
    put("b.h5", "x", 1, SHAPE(2), VALUES(1, b), NULL);
    sprintf(expected, "x        BEYOND         inf         inf   1.00000000000   50.000%%  [1] %s\n"
            "1 datasets compared: 0 within 1e+300, 1 beyond\n", difference);
    assert_diff("1e300", 1, expected);
}

static void infinities_are_no_numbers(void **state)
{
    (void)state;
    assert_infinite(NAN, 2, "nan / 2");
    assert_infinite(2, NAN, "2 / nan");
    assert_infinite(INFINITY, 2, "inf / 2");
    assert_infinite(INFINITY, -INFINITY, "inf / -inf");
    assert_infinite(NAN, INFINITY, "nan / inf");
}

static void cosine_of_zero_is_no_accident(void **state)
{
    (void)state;
    put("a.h5", "x", 1, SHAPE(2), VALUES(0, 0), NULL);
    put("b.h5", "x", 1, SHAPE(2), VALUES(0, 1), NULL);
    assert_diff(NULL, 1, "x        BEYOND           1         inf   0.00000000000   50.000%  "
                "[1] 0 / 1\n1 datasets compared: 0 within 0, 1 beyond\n");
    put("a.h5", "x", 1, SHAPE(2), VALUES(1e300, 0), NULL); /* the squares are out of range */
    put("b.h5", "x", 1, SHAPE(2), VALUES(1e-300, 0), NULL);
    assert_diff("1", 0, "x        within      1e+300           1   1.00000000000   50.000%  "
                "[0] 1.0000000000000001e+300 / 1e-300\n"
                "1 datasets compared: 1 within 1, 0 beyond\n");
    put("a.h5", "x", 1, SHAPE(2), VALUES(1, NAN), NULL);
    put("b.h5", "x", 1, SHAPE(2), VALUES(NAN, 1), NULL);
    assert_diff("1", 1, "x        BEYOND         inf         inf   0.00000000000    0.000%  "
                "[0] 1 / nan\n1 datasets compared: 0 within 1, 1 beyond\n");
}

static void integers_have_no_tolerance(void **state)
{
    (void)state;
    /* As binary64 the two would be equal. */
    put("a.h5", "x", 1, SHAPE(2), NULL, SHAPE(5, INT64_MAX));
    put("b.h5", "x", 1, SHAPE(2), NULL, SHAPE(5, INT64_MAX - 1));
    assert_diff("1", 1, "x        BEYOND           0           -               -   50.000%  "
                "[1] 9223372036854775807 / 9223372036854775806\n"
                "1 datasets compared: 0 within 1, 1 beyond\n");
    put("b.h5", "x", 1, SHAPE(2), VALUES(5, 0x1p63), NULL);
    assert_diff("0", 0, "x        within           0           0   1.00000000000  100.000%\n"
                "1 datasets compared: 1 within 0, 0 beyond\n");
}

static void shapes_have_to_agree(void **state)
{
    (void)state;
    dsv4_h5 *file = create("a.h5");
    add(file, "same", 1, SHAPE(1), VALUES(1), NULL);
    add(file, "x", 2, SHAPE(2, 2), VALUES(1, 2, 3, 4), NULL);
    add(file, "y", 1, SHAPE(4), VALUES(1, 2, 3, 4), NULL);
    close_file(file);
    file = create("b.h5");
    add(file, "same", 1, SHAPE(1), VALUES(1), NULL);
    add(file, "x", 1, SHAPE(4), VALUES(1, 2, 3, 4), NULL);
    add(file, "y", 1, SHAPE(0), VALUES(0), NULL);
    close_file(file);
    assert_diff("1", 1,
                "same     within           0           0   1.00000000000  100.000%\n"
                "x        SHAPE   [2,2] / [4]\n"
                "y        SHAPE   [4] / [0]\n"
                "3 datasets compared: 1 within 1, 0 beyond, 2 of different shapes\n");
}

static void other_datasets_are_listed(void **state)
{
    (void)state;
    dsv4_h5 *file = create("a.h5");
    add(file, "logits", 1, SHAPE(1), VALUES(1), NULL);
    add(file, "mtp_logits", 1, SHAPE(1), VALUES(1), NULL);
    close_file(file);
    file = create("b.h5");
    add(file, "kv\nq", 1, SHAPE(1), VALUES(1), NULL);
    add(file, "logits", 1, SHAPE(1), VALUES(1), NULL);
    add(file, "trace/z", 1, SHAPE(1), VALUES(1), NULL);
    close_file(file);
    assert_diff(NULL, 0, "logits   within           0           0   1.00000000000  100.000%\n"
                         "only in a.h5: mtp_logits\n"
                         "only in b.h5: kv?q\n"
                         "only in b.h5: trace/z\n"
                         "1 datasets compared: 1 within 0, 0 beyond\n");
}

static void selections_are_sets(void **state)
{
    (void)state;
    put("a.h5", "trace/layers/1/selected", 2, SHAPE(2, 3), NULL, SHAPE(3, 1, -1, 7, 8, 9));
    put("b.h5", "trace/layers/1/selected", 2, SHAPE(2, 3), NULL, SHAPE(-1, 3, 1, 9, 7, 8));
    assert_diff(NULL, 0, "trace/layers/1/selected  within           -           -               -"
                         "  100.000%  (rows as sets)\n"
                         "1 datasets compared: 1 within 0, 0 beyond\n");
    /* One member differs, the others stay equal although their places move. */
    put("b.h5", "trace/layers/1/selected", 2, SHAPE(2, 3), NULL, SHAPE(-1, 3, 1, 9, 8, 12));
    assert_diff("1", 1, "trace/layers/1/selected  BEYOND           -           -               -"
                        "   83.333%  [1,0] 7 / 12  (rows as sets)\n"
                        "1 datasets compared: 0 within 1, 1 beyond\n"
                        "first to differ, in the order of computation: trace/layers/1/selected\n"
                        "parted first: a discrete choice, or unseen arithmetic before it: "
                        "trace/layers/1/index_score is not in both files\n"
                        "first discrete choice to differ: trace/layers/1/selected, token 1; 1 of 2 "
                        "tokens differ\n"
                        "    only in A: 7; only in B: 12\n"
                        "    how close it was cannot be told: no trace/layers/1/index_score in "
                        "both files\n"
                        "first arithmetic to differ: none is in both files\n"
                        "before it: no arithmetic is in both files\n");
    put("a.h5", "route_index", 2, SHAPE(1, 3), NULL, SHAPE(2, 2, 9));
    put("b.h5", "route_index", 2, SHAPE(1, 3), NULL, SHAPE(2, 1, 0));
    assert_diff("1", 1, "route_index  BEYOND           -           -               -"
                        "   33.333%  [0,1] 2 / 0  (rows as sets)\n"
                        "1 datasets compared: 0 within 1, 1 beyond\n");
    /* Floats have no sets, and another name neither. */
    put("a.h5", "selected", 2, SHAPE(1, 2), VALUES(1, 2), NULL);
    put("b.h5", "selected", 2, SHAPE(1, 2), NULL, SHAPE(2, 1));
    assert_diff("0.5", 0, "selected  within           1         0.5   0.80000000000    0.000%  "
                          "[0,0] 1 / 2\n1 datasets compared: 1 within 0.5, 0 beyond\n");
    put("a.h5", "selected/x", 1, SHAPE(2), NULL, SHAPE(1, 2));
    put("b.h5", "selected/x", 1, SHAPE(2), NULL, SHAPE(2, 1));
    assert_diff("0.5", 1, "selected/x  BEYOND           1           -               -    0.000%  "
                          "[0] 1 / 2\n1 datasets compared: 0 within 0.5, 1 beyond\n");
}

/* Every row differs; the file has them by letter, the table by computation. */
static void traces_are_ordered_by_computation(void **state)
{
    (void)state;
    static const char *const names[] = {
        "token_ids", "trace/layers/2/attn_in", "trace/layers/2/q", "trace/layers/2/kv",
        "trace/layers/2/compressed", "trace/layers/2/index_q", "trace/layers/2/index_k",
        "trace/layers/2/index_score", "trace/layers/2/selected", "trace/layers/2/attn_core",
        "trace/layers/2/attn_out", "trace/layers/2/mid", "trace/layers/2/ffn_in",
        "trace/layers/2/route_index", "trace/layers/2/route_weight", "trace/layers/2/ffn_out",
        "trace/layers/2/out", "trace/layers/10/q", "logits", "mtp_token_ids",
        "trace/mtp/0/in", "trace/mtp/0/attn_in", "mtp_logits", "other", "trace/layers/2/kv2",
        "trace/layers/x/q", "trace/none/0/q"};
    const int count = sizeof names / sizeof *names;
    for (int which = 0; which < 2; which++) {
        dsv4_h5 *file = create(which == 0 ? "a.h5" : "b.h5");
        for (int i = 0; i < count; i++)
            add(file, names[i], 1, SHAPE(1), VALUES(which), NULL);
        close_file(file);
    }
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    const char *row = result.out;
    for (int i = 0; i < count; i++) {
        row = strchr(row, '\n') + 1;
        if (strncmp(row, names[i], strlen(names[i])) != 0 || row[strlen(names[i])] != ' ')
            fail_msg("row %d: expected %s in\n%s", i, names[i], result.out);
    }
    command_free(&result);
    for (int which = 0; which < 2; which++) { /* kv and what follows it differ, q does not */
        dsv4_h5 *file = create(which == 0 ? "a.h5" : "b.h5");
        add(file, "trace/layers/0/attn_core", 1, SHAPE(1), VALUES(which), NULL);
        add(file, "trace/layers/0/kv", 1, SHAPE(1), VALUES(which), NULL);
        add(file, "trace/layers/0/q", 1, SHAPE(1), VALUES(1), NULL);
        close_file(file);
    }
    result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_non_null(strstr(result.out, "order of computation: trace/layers/0/kv\n"));
    command_free(&result);
}

/* Traces of 12 tokens: an SWA layer, a CSA layer that selects 2 of 3 groups, MTP. */
enum { S = 12, G = 3 };

static const struct traced {
    const char *name;
    int rank;
    int64_t shape[2];
} traced[] = {
    {"token_ids", 1, {S}},
    {"trace/layers/0/kv", 2, {S, 2}}, {"trace/layers/0/mid", 2, {S, 2}},
    {"trace/layers/0/ffn_in", 2, {S, 2}}, {"trace/layers/0/route_index", 2, {S, 2}},
    {"trace/layers/0/route_weight", 2, {S, 2}}, {"trace/layers/0/out", 2, {S, 2}},
    {"trace/layers/1/kv", 2, {S, 2}}, {"trace/layers/1/compressed", 2, {G, 2}},
    {"trace/layers/1/index_q", 2, {S, 2}}, {"trace/layers/1/index_score", 2, {S, G}},
    {"trace/layers/1/selected", 2, {S, 2}}, {"trace/layers/1/attn_core", 2, {S, 2}},
    {"trace/layers/1/mid", 2, {S, 2}}, {"trace/layers/1/ffn_in", 2, {S, 2}},
    {"trace/layers/1/route_index", 2, {S, 2}}, {"trace/layers/1/out", 2, {S, 2}},
    {"logits", 2, {S, 2}}, {"mtp_token_ids", 1, {S}},
    {"trace/mtp/0/in", 2, {S, 2}}, {"trace/mtp/0/kv", 2, {S, 2}},
    {"trace/mtp/0/ffn_in", 2, {S, 2}}, {"trace/mtp/0/route_index", 2, {S, 2}},
    {"trace/mtp/0/out", 2, {S, 2}}, {"mtp_logits", 2, {S, 2}},
};

/* One value that is other than usual; row -1: the dataset is left out, -2: it has one row less. */
typedef struct {
    const char *name;
    int64_t row, i;
    double value;
} change;

#define USUAL ((const change[]){{NULL, 0, 0, 0}})
#define WITH(...) ((const change[]){__VA_ARGS__, {NULL, 0, 0, 0}})

static bool ends(const char *name, const char *end)
{
    return strlen(name) >= strlen(end) && strcmp(name + strlen(name) - strlen(end), end) == 0;
}

/* Every float is 1 but for the scores, of which group 0 has the best and group 2 the worst. */
static double usual(const char *name, int64_t row, int64_t i)
{
    if (ends(name, "index_score"))
        return i < (row + 1) / 4 ? 0.75 - 0.25 * (double)i : -INFINITY;
    if (ends(name, "selected"))
        return i < (row + 1) / 4 ? (double)i : -1;
    return ends(name, "route_index") ? (double)(3 * i + 1) : 1;
}

static void write_trace(const char *path, const change *changes)
{
    dsv4_h5 *file = create(path);
    for (size_t d = 0; d < sizeof traced / sizeof *traced; d++) {
        const struct traced *set = &traced[d];
        const int64_t width = set->rank == 2 ? set->shape[1] : 1;
        int64_t shape[2] = {set->shape[0], set->shape[1]}, indices[S * 3];
        double values[S * 3];
        bool wanted = true;
        for (int64_t at = 0; at < shape[0] * width; at++)
            values[at] = usual(set->name, at / width, at % width);
        for (const change *c = changes; c->name != NULL; c++) {
            if (strcmp(c->name, set->name) != 0)
                continue;
            wanted = wanted && c->row != -1;
            shape[0] -= c->row == -2;
            if (c->row >= 0)
                values[c->row * width + c->i] = c->value;
        }
        bool integer = ends(set->name, "ids") || ends(set->name, "selected") ||
                       ends(set->name, "route_index");
        for (int64_t at = 0; at < shape[0] * width && integer; at++)
            indices[at] = (int64_t)values[at];
        if (wanted)
            add(file, set->name, set->rank, shape, integer ? NULL : values,
                integer ? indices : NULL);
    }
    close_file(file);
}

/* What is said below the line that counts the datasets, with a tolerance of 0.001. */
static void assert_verdict(const change *a, const change *b, const char *expected)
{
    write_trace("a.h5", a);
    write_trace("b.h5", b);
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5", "--tol",
                                         "0.001");
    const char *said = strstr(result.out, " datasets compared: ");
    assert_non_null(said);
    assert_string_equal(strchr(said, '\n') + 1, expected);
    assert_string_equal(result.err, "");
    command_free(&result);
}

#define FIRST "first to differ, in the order of computation: "

static void arithmetic_parts_first(void **state)
{
    (void)state;
    assert_verdict(USUAL, USUAL, "");
    assert_verdict(USUAL, WITH({"trace/layers/0/kv", 3, 1, 1.0005}), "");
    assert_verdict(USUAL, WITH({"trace/layers/0/kv", 3, 1, 1.0005},
                               {"trace/layers/1/kv", 5, 1, 1.25}, {"trace/layers/1/kv", 7, 0, 1.5},
                               {"trace/layers/1/kv", 7, 1, 1.5},
                               {"trace/layers/1/kv", 2, 0, 1.0009}),
        FIRST "trace/layers/1/kv\n"
        "parted first: arithmetic\n"
        "first discrete choice to differ: none\n"
        "first arithmetic to differ: trace/layers/1/kv, token 5; 2 of 12 tokens are beyond the "
        "tolerance, max rel 0.5\n"
        "before it: the largest error is max rel 0.0005, in trace/layers/0/kv\n");
    /* Rows count as the table does: by the largest magnitude of the dataset. */
    assert_verdict(WITH({"trace/layers/1/kv", 0, 0, 4}),
                   WITH({"trace/layers/1/kv", 0, 0, 4}, {"trace/layers/1/kv", 3, 0, 1.003},
                        {"trace/layers/1/kv", 4, 1, 1.5}),
        FIRST "trace/layers/1/kv\n"
        "parted first: arithmetic\n"
        "first discrete choice to differ: none\n"
        "first arithmetic to differ: trace/layers/1/kv, token 4; 1 of 12 tokens are beyond the "
        "tolerance, max rel 0.125\n"
        "before it: all arithmetic is identical (datasets: 5)\n");
    /* A choice that differs behind it is told, and does not lead. */
    assert_verdict(USUAL, WITH({"trace/layers/1/compressed", 2, 0, 2},
                               {"trace/layers/1/route_index", 10, 0, 9},
                               {"trace/layers/1/route_index", 11, 1, 9}),
        FIRST "trace/layers/1/compressed\n"
        "parted first: arithmetic\n"
        "first discrete choice to differ: trace/layers/1/route_index, token 10; 2 of 12 tokens "
        "differ\n"
        "    only in A: 1; only in B: 9\n"
        "    how close it was is not in a trace; its input, ffn_in of this token, is identical\n"
        "first arithmetic to differ: trace/layers/1/compressed, group 2; 1 of 3 groups are beyond "
        "the tolerance, max rel 1\n"
        "before it: all arithmetic is identical (datasets: 6)\n");
    assert_verdict(USUAL, WITH({"logits", 4, 0, NAN}),
        "parted first: arithmetic, if layer 1 is the last of the model\n"
        "first discrete choice to differ: none\n"
        "first arithmetic to differ: logits, token 4; 1 of 12 tokens are beyond the tolerance, "
        "max rel inf\n"
        "before it: all arithmetic is identical (datasets: 13)\n");
    assert_verdict(USUAL, WITH({"mtp_logits", 4, 0, 3}),
        "parted first: arithmetic\n"
        "first discrete choice to differ: none\n"
        "first arithmetic to differ: mtp_logits, token 4; 1 of 12 tokens are beyond the tolerance, "
        "max rel 2\n"
        "before it: all arithmetic is identical (datasets: 18)\n");
}

/* The choice of token 11, among three groups, and its consequence; `score` are those of A and B. */
static void assert_selection(const double score[2][3], const double selected[2][2],
                             const char *expected)
{
    change side[2][7];
    for (int f = 0; f < 2; f++) {
        int n = 0;
        for (int i = 0; i < 3; i++)
            side[f][n++] = (change){"trace/layers/1/index_score", 11, i, score[f][i]};
        for (int i = 0; i < 2; i++)
            side[f][n++] = (change){"trace/layers/1/selected", 11, i, selected[f][i]};
        side[f][n++] = (change){"trace/layers/1/attn_core", 11, 0, f};
        side[f][n] = (change){NULL, 0, 0, 0};
    }
    char whole[2000];
    sprintf(whole, FIRST "trace/layers/1/selected\n"
            "parted first: a discrete choice\n"
            "first discrete choice to differ: trace/layers/1/selected, token 11; 1 of 12 tokens "
            "differ\n"
            "%s"
            "first arithmetic to differ: trace/layers/1/attn_core, token 11; 1 of 12 tokens are "
            "beyond the tolerance, max rel 1\n"
            "before it: %s\n", expected, memcmp(score[0], score[1], sizeof score[0]) == 0
            ? "all arithmetic is identical (datasets: 9)"
            : "the largest error is max rel 0.000651, in trace/layers/1/index_score");
    assert_verdict(side[0], side[1], whole);
}

static void selections_part_first(void **state)
{
    (void)state;
    assert_selection((const double[2][3]){{0.75, 0.5, 0.5}, {0.75, 0.5, 0.5}},
                     (const double[2][2]){{0, 1}, {2, 0}},
                     "    only in A: 1; only in B: 2\n"
                     "    by their own scores A decides by 0 and B by 0; the scores of this token "
                     "are up to 0 apart: a legal tie\n");
    assert_selection((const double[2][3]){{0.75, 0.50048828125, 0.5}, {0.75, 0.5, 0.500244140625}},
                     (const double[2][2]){{0, 1}, {0, 2}},
                     "    only in A: 1; only in B: 2\n"
                     "    by their own scores A decides by 0.000488 and B by 0.000244; the scores "
                     "of this token are up to 0.000488 apart: a near-tie\n");
    assert_selection((const double[2][3]){{0.75, 0.5, 0.25}, {0.75, 0.5, 0.25}},
                     (const double[2][2]){{0, 1}, {0, 2}},
                     "    only in A: 1; only in B: 2\n"
                     "    B leaves out entry 1 for 2, by its own scores 0.5 for 0.25: a wrong "
                     "rule\n");
    assert_selection((const double[2][3]){{0.75, 0.5, 0.25}, {0.75, 0.5, 0.25}},
                     (const double[2][2]){{1, 2}, {1, -1}},
                     "    only in A: 2; only in B: none\n"
                     "    A leaves out entry 0 for 2, by its own scores 0.75 for 0.25: a wrong "
                     "rule\n    B takes 1 of the 2 entries that are due: a wrong rule\n");
    assert_selection((const double[2][3]){{0.75, 0.5, 0.25}, {0.75, 0.5, 0.25}},
                     (const double[2][2]){{1, 1}, {3, 0}},
                     "    only in A: 1 1; only in B: 0 3\n"
                     "    A takes entry 1 twice: a wrong rule\n"
                     "    B takes entry 3, of 3 that are visible: a wrong rule\n");
}

/* Of several entries left out the best one shows the mistake. */
static void the_best_left_out_is_named(void **state)
{
    (void)state;
    for (int f = 0; f < 2; f++) {
        double score[16 * 4];
        int64_t selected[16];
        for (int i = 0; i < 64; i++)
            score[i] = i % 4 == 1 ? 0.75 : 0.5 - 0.125 * (i % 4);
        for (int t = 0; t < 16; t++)
            selected[t] = t < 3 ? -1 : t < 7 ? 0 : 1;
        selected[15] = f == 0 ? 1 : 3;
        dsv4_h5 *file = create(f == 0 ? "a.h5" : "b.h5");
        add(file, "trace/layers/1/index_score", 2, SHAPE(16, 4), score, NULL);
        add(file, "trace/layers/1/selected", 2, SHAPE(16, 1), NULL, selected);
        close_file(file);
    }
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_non_null(strstr(result.out, "token 15; 1 of 16 tokens differ\n"
                           "    only in A: 1; only in B: 3\n"
                           "    B leaves out entry 1 for 3, by its own scores 0.75 for 0.125: a "
                           "wrong rule\n"));
    command_free(&result);
}

/* Groups that a token does not see yet are judged by the rule, whatever their scores. */
static void hidden_groups_are_seen(void **state)
{
    (void)state;
    assert_verdict(USUAL, WITH({"trace/layers/1/selected", 6, 1, 1},
                               {"trace/layers/1/selected", 7, 0, 2}),
        FIRST "trace/layers/1/selected\n"
        "parted first: a discrete choice\n"
        "first discrete choice to differ: trace/layers/1/selected, token 6; 2 of 12 tokens differ\n"
        "    only in A: none; only in B: 1\n"
        "    B takes entry 1, of 1 that are visible: a wrong rule\n"
        "first arithmetic to differ: none\n"
        "before it: all arithmetic is identical (datasets: 9)\n");
    /* With scores that had parted, the choice is no news. */
    assert_verdict(USUAL, WITH({"trace/layers/1/index_score", 11, 2, 1},
                               {"trace/layers/1/selected", 11, 1, 2}),
        FIRST "trace/layers/1/index_score\n"
        "parted first: arithmetic\n"
        "first discrete choice to differ: trace/layers/1/selected, token 11; 1 of 12 tokens "
        "differ\n    only in A: 1; only in B: 2\n"
        "    by their own scores A decides by 0.25 and B by 0.5; the scores of this token are up "
        "to 0.75 apart: the scores had parted before\n"
        "first arithmetic to differ: trace/layers/1/index_score, token 11; 1 of 12 tokens are "
        "beyond the tolerance, max rel 1\n"
        "before it: all arithmetic is identical (datasets: 8)\n");
    /* Without anything of an indexer, it is HCA. */
    assert_verdict(WITH({"trace/layers/1/index_q", -1, 0, 0},
             {"trace/layers/1/index_score", -1, 0, 0}),
        WITH({"trace/layers/1/index_q", -1, 0, 0}, {"trace/layers/1/index_score", -1, 0, 0},
             {"trace/layers/1/selected", 3, 0, -1}),
        FIRST "trace/layers/1/selected\n"
        "parted first: a discrete choice\n"
        "first discrete choice to differ: trace/layers/1/selected, token 3; 1 of 12 tokens differ\n"
        "    only in A: 0; only in B: none\n"
        "    HCA takes all that is visible: a wrong rule\n"
        "first arithmetic to differ: none\n"
        "before it: all arithmetic is identical (datasets: 7)\n");
}

static void routings_part_first(void **state)
{
    (void)state;
    assert_verdict(USUAL, WITH({"trace/layers/0/kv", 1, 0, 1.0001},
                               {"trace/layers/0/ffn_in", 2, 0, 1.00025},
                               {"trace/layers/0/ffn_in", 3, 0, 1.0005},
                               {"trace/layers/0/route_index", 2, 0, 0},
                               {"trace/layers/0/route_weight", 2, 0, 5}),
        FIRST "trace/layers/0/route_index\n"
        "parted first: a discrete choice\n"
        "first discrete choice to differ: trace/layers/0/route_index, token 2; 1 of 12 tokens "
        "differ\n"
        "    only in A: 1; only in B: 0\n"
        "    how close it was is not in a trace; its input, ffn_in of this token, differs by max "
        "rel 0.00025\n"
        "first arithmetic to differ: trace/layers/0/route_weight, token 2; 1 of 12 tokens are "
        "beyond the tolerance, max rel 4\n"
        "before it: the largest error is max rel 0.0005, in trace/layers/0/ffn_in\n");
    assert_verdict(WITH({"trace/layers/0/ffn_in", -1, 0, 0}),
                   WITH({"trace/layers/0/route_index", 2, 0, 0}),
        FIRST "trace/layers/0/route_index\n"
        "parted first: a discrete choice, or unseen arithmetic before it: trace/layers/0/ffn_in is "
        "not in both files\n"
        "first discrete choice to differ: trace/layers/0/route_index, token 2; 1 of 12 tokens "
        "differ\n"
        "    only in A: 1; only in B: 0\n"
        "    how close it was is not in a trace\n"
        "first arithmetic to differ: none\n"
        "before it: all arithmetic is identical (datasets: 2)\n");
}

/* What the files lack must not be concluded. */
static void partial_traces(void **state)
{
    (void)state;
    static const char none[] = "first discrete choice to differ: none\n";
    char expected[1000];
    /* Between the streams that agree and layer 1's ffn_in lies the selection. */
    const change selected = {"trace/layers/1/selected", -1, 0, 0};
    const change attn_core = {"trace/layers/1/attn_core", 5, 0, 2};
    sprintf(expected, FIRST "trace/layers/1/attn_core\n"
            "parted first: cannot be told: B has no trace/layers/1/selected, a choice that may "
            "have parted before\n%s"
            "first arithmetic to differ: trace/layers/1/attn_core, token 5; 1 of 12 tokens are "
            "beyond the tolerance, max rel 1\n"
            "before it: all arithmetic is identical (datasets: 9)\n", none);
    assert_verdict(USUAL, WITH(attn_core, selected), expected);
    memcpy(strstr(expected, "B has no"), "A has no", 8);
    assert_verdict(WITH(selected), WITH(attn_core), expected);
    /* Streams behind it that agree settle it. */
    sprintf(expected, FIRST "trace/layers/1/ffn_in\n"
            "parted first: arithmetic\n%s"
            "first arithmetic to differ: trace/layers/1/ffn_in, token 5; 1 of 12 tokens are "
            "beyond the tolerance, max rel 1\n"
            "before it: all arithmetic is identical (datasets: 11)\n", none);
    assert_verdict(USUAL, WITH(selected, {"trace/layers/1/ffn_in", 5, 0, 2}), expected);
    assert_verdict(USUAL, WITH({"trace/layers/0/route_index", -1, 0, 0},
                               {"trace/layers/1/ffn_in", 5, 0, 2}), expected);
    sprintf(expected, FIRST "trace/layers/1/out\n"
            "parted first: cannot be told: neither file has trace/layers/1/route_index, a choice "
            "that may have parted before\n%s"
            "first arithmetic to differ: trace/layers/1/out, token 5; 1 of 12 tokens are "
            "beyond the tolerance, max rel 1\n"
            "before it: all arithmetic is identical (datasets: 12)\n", none);
    assert_verdict(WITH({"trace/layers/1/route_index", -1, 0, 0}),
                   WITH({"trace/layers/1/route_index", -1, 0, 0},
                        {"trace/layers/1/out", 5, 0, 2}), expected);
    /* The choices of all layers up to the logits count, and those of MTP. */
    sprintf(expected,
            "parted first: cannot be told: B has no trace/layers/1/route_index, a choice that may "
            "have parted before\n%s"
            "first arithmetic to differ: logits, token 5; 1 of 12 tokens are "
            "beyond the tolerance, max rel 1\n"
            "before it: all arithmetic is identical (datasets: 12)\n", none);
    assert_verdict(USUAL, WITH({"trace/layers/1/route_index", -1, 0, 0},
                               {"trace/layers/1/out", -1, 0, 0}, {"logits", 5, 0, 2}), expected);
    sprintf(expected, FIRST "trace/mtp/0/out\n"
            "parted first: cannot be told: B has no trace/mtp/0/route_index, a choice that may "
            "have parted before\n%s"
            "first arithmetic to differ: trace/mtp/0/out, token 5; 1 of 12 tokens are "
            "beyond the tolerance, max rel 1\n"
            "before it: all arithmetic is identical (datasets: 17)\n", none);
    assert_verdict(USUAL, WITH({"trace/mtp/0/route_index", -1, 0, 0},
                               {"trace/mtp/0/out", 5, 0, 2}), expected);
}

static void long_lists_are_cut(void **state)
{
    (void)state;
    int64_t list[2][10];
    for (int f = 0; f < 2; f++) {
        for (int i = 0; i < 10; i++)
            list[f][i] = 10 * f + i;
        put(f == 0 ? "a.h5" : "b.h5", "trace/layers/0/route_index", 2, SHAPE(1, 10), NULL, list[f]);
    }
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_non_null(strstr(result.out, "    only in A: 0 1 2 3 4 5 6 7 and 2 more; only in B: 10 "
                           "11 12 13 14 15 16 17 and 2 more\n"));
    command_free(&result);
}

static void put_streams(const char *path, double second)
{
    dsv4_h5 *file = create(path);
    add(file, "trace/layers/0/out", 2, SHAPE(2, 1), VALUES(1, 1), NULL);
    add(file, "trace/layers/1/out", 2, SHAPE(2, 1), VALUES(1, second), NULL);
    close_file(file);
}

/* Such as an engine writes that has hooks on its layers only. */
static void streams_alone(void **state)
{
    (void)state;
    put_streams("a.h5", 1);
    put_streams("b.h5", 2);
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_string_equal(strstr(result.out, FIRST),
        FIRST "trace/layers/1/out\n"
        "parted first: cannot be told: neither file has trace/layers/1/selected, a choice that may "
        "have parted before\n"
        "first discrete choice to differ: none is in both files\n"
        "first arithmetic to differ: trace/layers/1/out, token 1; 1 of 2 tokens are beyond the "
        "tolerance, max rel 1\n"
        "before it: all arithmetic is identical (datasets: 1)\n");
    command_free(&result);
    /* A layer number that no model has costs no time. */
    dsv4_h5 *file = create("b.h5");
    add(file, "trace/layers/999999999/out", 1, SHAPE(1), VALUES(1), NULL);
    close_file(file);
    put("a.h5", "trace/layers/999999999/out", 1, SHAPE(1), VALUES(2), NULL);
    result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_non_null(strstr(result.out, "cannot be told: neither file has trace/layers/0/selected"));
    command_free(&result);
}

static void what_is_no_parting(void **state)
{
    (void)state;
    assert_verdict(USUAL, WITH({"trace/mtp/0/in", 11, 0, 7}, {"trace/mtp/0/route_index", 11, 0, 7},
                               {"mtp_logits", 11, 0, 7}),
        FIRST "trace/mtp/0/in\n"
        "parted first: nothing: only the last row of MTP differs, which is free\n");
    assert_verdict(USUAL, WITH({"trace/mtp/0/in", 11, 0, 7}, {"trace/mtp/0/out", 10, 0, 1.5}),
        FIRST "trace/mtp/0/in\n"
        "parted first: arithmetic\n"
        "first discrete choice to differ: none\n"
        "first arithmetic to differ: trace/mtp/0/out, token 10; 1 of 12 tokens are beyond the "
        "tolerance, max rel 0.5\n"
        "before it: all arithmetic is identical (datasets: 16)\n");
    assert_verdict(USUAL, WITH({"token_ids", 4, 0, 7}, {"trace/layers/0/route_index", 4, 1, 7}),
        "parted first: the input: token_ids is not the same from token 4 on\n"
        "first discrete choice to differ: trace/layers/0/route_index, token 4; 1 of 12 tokens "
        "differ\n"
        "    only in A: 4; only in B: 7\n"
        "    how close it was is not in a trace; its input, ffn_in of this token, is identical\n"
        "first arithmetic to differ: none\n");
    assert_verdict(USUAL, WITH({"trace/layers/0/route_index", -2, 0, 0}),
        FIRST "trace/layers/0/route_index\n"
        "parted first: the shape of trace/layers/0/route_index: not the same tokens or not the "
        "same model\n"
        "first discrete choice to differ: trace/layers/0/route_index, which has another shape\n"
        "first arithmetic to differ: none\n"
        "before it: all arithmetic is identical (datasets: 3)\n");
}

static void missing_datasets_are_listed_in_short(void **state)
{
    (void)state;
    dsv4_h5 *file = create("a.h5");
    add(file, "x", 1, SHAPE(1), VALUES(1), NULL);
    for (int i = 0; i < 10; i++) {
        char name[16];
        snprintf(name, sizeof name, "y%d", i);
        add(file, name, 1, SHAPE(1), VALUES(1), NULL);
    }
    close_file(file);
    put("b.h5", "x", 1, SHAPE(1), VALUES(1), NULL);
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5");
    assert_non_null(strstr(result.out, "only in a.h5: y7\nonly in a.h5: and 2 more\n"));
    assert_int_equal(result.code, 0);
    command_free(&result);
}

static void put_route(const char *path, const int64_t *index, int64_t rank_of_index,
                      const double *weight)
{
    dsv4_h5 *file = create(path);
    if (index != NULL)
        add(file, "t/route_index", (int)rank_of_index,
            rank_of_index == 2 ? SHAPE(2, 2) : SHAPE(4), NULL, index);
    add(file, "t/route_weight", 2, SHAPE(2, 2), weight, NULL);
    close_file(file);
}

static void weights_follow_their_experts(void **state)
{
    (void)state;
    const char index_row[] = "t/route_index   within           -           -               -"
                             "  100.000%  (rows as sets)\n";
    char expected[600];
    put_route("a.h5", SHAPE(5, 2, 0, 1), 2, VALUES(.5, .2, .25, .125));
    put_route("b.h5", SHAPE(2, 5, 0, 1), 2, VALUES(.2, .5, .25, .125));
    sprintf(expected, "%st/route_weight  within           0           0   1.00000000000  100.000%%"
            "  (rows in the order of route_index)\n2 datasets compared: 2 within 0, 0 beyond\n",
            index_row);
    assert_diff(NULL, 0, expected);
    /* [1,0] is the weight of the second row's lowest expert. */
    put_route("b.h5", SHAPE(2, 5, 1, 0), 2, VALUES(.2, .5, .125, .5));
    sprintf(expected, "%st/route_weight  BEYOND        0.25         0.5   0.95216166868   75.000%%"
            "  [1,0] 0.25 / 0.5  (rows in the order of route_index)\n"
            "2 datasets compared: 1 within 0, 1 beyond\n", index_row);
    assert_diff(NULL, 1, expected);
    /* Without a route_index that fits, the weights stay where they are. */
    const char weights[] = "t/route_weight  BEYOND         0.3         0.6   0.75551782683"
                           "   50.000%  [0,0] 0.5 / 0.20000000000000001\n";
    put_route("b.h5", NULL, 2, VALUES(.2, .5, .25, .125));
    sprintf(expected, "%sonly in a.h5: t/route_index\n1 datasets compared: 0 within 0, 1 beyond\n",
            weights);
    assert_diff(NULL, 1, expected);
    put_route("b.h5", SHAPE(2, 5, 0, 1), 1, VALUES(.2, .5, .25, .125));
    sprintf(expected, "t/route_index   SHAPE   [2,2] / [4]\n%s2 datasets compared: 0 within 0, "
            "1 beyond, 1 of different shapes\n", weights);
    assert_diff(NULL, 1, expected);
}

static void assert_cannot_run(const char *a, const char *b, const char *expected)
{
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", a, b);
    assert_string_equal(result.err, expected);
    assert_int_equal(result.code, 2);
    command_free(&result);
}

static void unreadable_files_are_refused(void **state)
{
    (void)state;
    put("a.h5", "x", 1, SHAPE(1), VALUES(1), NULL);
    put("b.h5", "y", 1, SHAPE(1), VALUES(1), NULL);
    assert_cannot_run("a.h5", "b.h5", "dsv4 diff: a.h5 and b.h5 have no dataset in common\n");
    assert_cannot_run("none.h5", "b.h5",
                      "dsv4 diff: none.h5: cannot open: No such file or directory\n");
    assert_cannot_run("a.h5", ".", "dsv4 diff: .: cannot open: Is a directory\n");
    /* A dataset that only one of them has as numbers. */
    hid_t file = H5Fcreate("b.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t set = H5Dcreate2(file, "x", H5T_C_S1, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(set >= 0);
    H5Dclose(set);
    H5Sclose(space);
    H5Fclose(file);
    const char expected[] = "dsv4 diff: b.h5: x: expected integers or floats, got type class "
                            "string\n";
    assert_cannot_run("a.h5", "b.h5", expected);
    assert_cannot_run("b.h5", "a.h5", expected);
}

static void assert_usage(int count, const char *const *words, const char *expected)
{
    command_result result = command_run(dsv4_diff_main, count, words);
    assert_memory_equal(result.err, expected, strlen(expected));
    assert_string_equal(result.out, "");
    assert_int_equal(result.code, 2);
    command_free(&result);
}

static void usage_is_checked(void **state)
{
    (void)state;
    const char *const one[] = {"dsv4 diff", "a.h5"};
    const char *const three[] = {"dsv4 diff", "a.h5", "b.h5", "c.h5"};
    assert_usage(2, one, "dsv4 diff: expected two files, got 1\n");
    assert_usage(4, three, "dsv4 diff: expected two files, got a third: 'c.h5'\n");
    const char *const bad[] = {"", "x", "1x", "-1", "nan", "inf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *const words[] = {"dsv4 diff", "a.h5", "b.h5", "--tol", bad[i]};
        char expected[100];
        sprintf(expected, "dsv4 diff: --tol: expected a number that is 0 or more, got '%s'\n",
                bad[i]);
        assert_usage(5, words, expected);
    }
    const char *const unknown[] = {"dsv4 diff", "--none"};
    assert_usage(2, unknown, "dsv4 diff: unrecognized option '--none'\n");
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "--help");
    assert_non_null(strstr(result.out, "Usage: dsv4 diff [OPTION...] A.h5 B.h5\n"));
    assert_int_equal(result.code, 0);
    command_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identical_files_are_equal),
        cmocka_unit_test(tolerance_is_relative_to_the_dataset),
        cmocka_unit_test(infinities_are_no_numbers),
        cmocka_unit_test(cosine_of_zero_is_no_accident),
        cmocka_unit_test(integers_have_no_tolerance),
        cmocka_unit_test(shapes_have_to_agree),
        cmocka_unit_test(other_datasets_are_listed),
        cmocka_unit_test(selections_are_sets),
        cmocka_unit_test(traces_are_ordered_by_computation),
        cmocka_unit_test(arithmetic_parts_first),
        cmocka_unit_test(selections_part_first),
        cmocka_unit_test(the_best_left_out_is_named),
        cmocka_unit_test(hidden_groups_are_seen),
        cmocka_unit_test(routings_part_first),
        cmocka_unit_test(partial_traces),
        cmocka_unit_test(long_lists_are_cut),
        cmocka_unit_test(streams_alone),
        cmocka_unit_test(what_is_no_parting),
        cmocka_unit_test(missing_datasets_are_listed_in_short),
        cmocka_unit_test(weights_follow_their_experts),
        cmocka_unit_test(unreadable_files_are_refused),
        cmocka_unit_test(usage_is_checked),
    };
    return cmocka_run_group_tests_name("diff", tests, scratch_enter, scratch_leave) != 0;
}
