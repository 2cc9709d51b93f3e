#include "diff.h"

#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5.h"
#include "trace.h"
#include "verdict.h"

/* How two datasets of one name differ. */
typedef struct {
    bool integer;
    double max_absolute, max_relative, cosine;
    int64_t count, same;
    int64_t first; /* flat index of the first values that are not identical, -1 for none */
    int64_t rows_beyond, first_row; /* rows beyond the tolerance, and the first of them, or -1 */
    const char *note; /* how they were compared, where not value by value */
    char first_a[32], first_b[32];
} difference;

typedef struct {
    const char *path[2];
    double tolerance;
} diff_arguments;

/* The length of the last dimension, within which `selected` and `route_index` have no order. */
static int64_t row_length(const dsv4_h5_data *data)
{
    return data->rank > 0 ? data->shape[data->rank - 1] : 1;
}

static double value(const dsv4_h5_data *data, int64_t i)
{
    return data->integer ? (double)data->indices[i] : data->values[i];
}

static void print_value(char text[32], const dsv4_h5_data *data, int64_t i)
{
    if (data->integer)
        snprintf(text, 32, "%" PRId64, data->indices[i]);
    else
        snprintf(text, 32, "%.17g", data->values[i]);
}

static void note_first(difference *d, int64_t i, const dsv4_h5_data *a, int64_t ai,
                       const dsv4_h5_data *b, int64_t bi)
{
    if (d->first >= 0)
        return;
    d->first = i;
    print_value(d->first_a, a, ai);
    print_value(d->first_b, b, bi);
}

static void note_row(difference *d, int64_t row)
{
    d->rows_beyond++;
    d->first_row = d->first_row < 0 ? row : d->first_row;
}

static double distance(double a, double b)
{
    if (a == b || (isnan(a) && isnan(b)))
        return 0;
    double error = fabs(a - b);
    return isnan(error) ? INFINITY : error;
}

static double largest_finite(const dsv4_h5_data *data)
{
    double largest = 0;
    for (int64_t i = 0; i < data->count; i++)
        if (isfinite(value(data, i)))
            largest = fmax(largest, fabs(value(data, i)));
    return largest;
}

/* Over the places where both are finite; the magnitudes keep the squares in range. */
static double cosine(const dsv4_h5_data *a, const dsv4_h5_data *b, double a_largest)
{
    double b_largest = largest_finite(b);
    if (a_largest == 0 || b_largest == 0)
        return a_largest == b_largest ? 1 : 0;
    double ab = 0, aa = 0, bb = 0;
    for (int64_t i = 0; i < a->count; i++) {
        double x = value(a, i) / a_largest, y = value(b, i) / b_largest;
        if (!isfinite(x) || !isfinite(y))
            continue;
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa) / sqrt(bb) : 0;
}

static bool same_value(const dsv4_h5_data *a, const dsv4_h5_data *b, int64_t i)
{
    return a->integer && b->integer ? a->indices[i] == b->indices[i]
                                    : distance(value(a, i), value(b, i)) == 0;
}

/* The rows of the first `count` values that have one beyond the tolerance. */
static void find_rows(difference *d, const dsv4_h5_data *a, const dsv4_h5_data *b, int64_t count,
                      double a_largest, double tolerance)
{
    int64_t rows = a->rank > 0 ? a->shape[0] : 1, length = rows > 0 ? a->count / rows : 0;
    for (int64_t i = 0; i < count; i++) {
        if (same_value(a, b, i))
            continue;
        if (d->integer || distance(value(a, i), value(b, i)) / a_largest > tolerance) {
            note_row(d, i / length);
            i = (i / length + 1) * length - 1; /* one is enough */
        }
    }
}

static void compare_values(difference *d, const dsv4_h5_data *a, const dsv4_h5_data *b,
                           int64_t bound_values, double tolerance)
{
    for (int64_t i = 0; i < a->count; i++) {
        if (same_value(a, b, i)) {
            d->same++;
            continue;
        }
        d->max_absolute = fmax(d->max_absolute, distance(value(a, i), value(b, i)));
        note_first(d, i, a, i, b, i);
    }
    double a_largest = largest_finite(a);
    if (d->max_absolute > 0)
        d->max_relative = d->max_absolute / a_largest;
    d->cosine = cosine(a, b, a_largest);
    find_rows(d, a, b, bound_values, a_largest, tolerance);
}

static int compare_indices(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Sorted rows side by side; what only one of them has comes with the first member that differs.
 * False where there is one. */
static bool compare_row_sets(difference *d, const dsv4_h5_data *a, const dsv4_h5_data *b,
                             int64_t start, int64_t length)
{
    const int64_t *x = a->indices + start, *y = b->indices + start;
    int64_t i = 0, j = 0, only_a = -1, only_b = -1;
    while (i < length || j < length) {
        if (i < length && j < length && x[i] == y[j]) {
            d->same++;
            i++;
            j++;
        } else if (j == length || (i < length && x[i] < y[j])) {
            only_a = only_a < 0 ? i : only_a;
            i++;
        } else {
            only_b = only_b < 0 ? j : only_b;
            j++;
        }
    }
    if (only_a >= 0) /* the rows are equally long, so each has a member that the other lacks */
        note_first(d, start + only_a, a, start + only_a, b, start + only_b);
    return only_a < 0;
}

static void compare_sets(difference *d, dsv4_h5_data *a, dsv4_h5_data *b, int64_t bound_values)
{
    int64_t length = row_length(a);
    for (int64_t start = 0; start < a->count; start += length) {
        qsort(a->indices + start, (size_t)length, sizeof *a->indices, compare_indices);
        qsort(b->indices + start, (size_t)length, sizeof *b->indices, compare_indices);
        if (!compare_row_sets(d, a, b, start, length) && start < bound_values)
            note_row(d, start / length);
    }
}

typedef struct {
    int64_t key;
    double value;
} keyed;

static int compare_keys(const void *a, const void *b)
{
    return compare_indices(&((const keyed *)a)->key, &((const keyed *)b)->key);
}

static void sort_rows_by(dsv4_h5_data *data, const dsv4_h5_data *keys)
{
    int64_t length = row_length(data);
    keyed *row = dsv4_alloc((size_t)length, sizeof *row);
    for (int64_t start = 0; start < data->count; start += length) {
        for (int64_t i = 0; i < length; i++)
            row[i] = (keyed){keys->indices[start + i], data->values[start + i]};
        qsort(row, (size_t)length, sizeof *row, compare_keys);
        for (int64_t i = 0; i < length; i++)
            data->values[start + i] = row[i].value;
    }
    free(row);
}

static bool same_shape(const dsv4_h5_data *a, const dsv4_h5_data *b)
{
    return a->rank == b->rank &&
           memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}

static const char *last_component(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash != NULL ? slash + 1 : name;
}

/* Sorts the rows of a route_weight by the route_index beside it, in both files. False where a file
 * has none that fits. */
static bool sort_by_route(dsv4_h5 *const file[2], const char *name, dsv4_h5_data data[2])
{
    char *sibling = dsv4_alloc(strlen(name) + 1, 1); /* route_index is the shorter word */
    memcpy(sibling, name, (size_t)(last_component(name) - name));
    strcat(sibling, "route_index");
    bool usable = true;
    dsv4_h5_data keys[2] = {{0}, {0}};
    for (int f = 0; f < 2; f++) {
        dsv4_error ignored = {""};
        usable = usable && !data[f].integer &&
                 dsv4_h5_read(file[f], sibling, &keys[f], &ignored) == 0 && keys[f].integer &&
                 same_shape(&keys[f], &data[f]);
    }
    for (int f = 0; f < 2; f++) {
        if (usable)
            sort_rows_by(&data[f], &keys[f]);
        dsv4_h5_data_free(&keys[f]);
    }
    free(sibling);
    return usable;
}

/* How many values are bound to agree: the last row of MTP is free. */
static int64_t count_bound(const char *name, const dsv4_h5_data *data)
{
    dsv4_trace_stage stage = dsv4_trace_place_of(name).stage;
    bool mtp = stage == DSV4_TRACE_MTP || stage == DSV4_TRACE_MTP_LOGITS;
    if (!mtp || data->rank == 0 || data->shape[0] == 0)
        return data->count;
    return data->count - data->count / data->shape[0];
}

static void compare(difference *d, dsv4_h5 *const file[2], const char *name, dsv4_h5_data data[2],
                    double tolerance)
{
    const char *last = last_component(name);
    const int64_t bound = count_bound(name, &data[0]);
    *d = (difference){.integer = data[0].integer && data[1].integer, .count = data[0].count,
                      .first = -1, .first_row = -1, .cosine = 1};
    if (d->integer && (!strcmp(last, "selected") || !strcmp(last, "route_index"))) {
        d->note = "rows as sets";
        compare_sets(d, &data[0], &data[1], bound);
        return;
    }
    if (!strcmp(last, "route_weight") && sort_by_route(file, name, data))
        d->note = "rows in the order of route_index";
    compare_values(d, &data[0], &data[1], bound, tolerance);
}

/* "[5,2,17]" */
static void print_list(const int64_t *list, int count)
{
    putchar('[');
    for (int i = 0; i < count; i++)
        printf("%s%" PRId64, i > 0 ? "," : "", list[i]);
    putchar(']');
}

static void print_index(const dsv4_h5_data *data, int64_t flat)
{
    int64_t index[DSV4_H5_MAX_RANK];
    for (int i = data->rank - 1; i >= 0; i--) {
        index[i] = flat % data->shape[i];
        flat /= data->shape[i];
    }
    print_list(index, data->rank);
}

/* Names come from a file: control characters would break the table. */
static void print_name(const char *name, int width)
{
    int length = 0;
    for (; name[length] != '\0'; length++)
        putchar((unsigned char)name[length] < ' ' || name[length] == 0x7f ? '?' : name[length]);
    printf("%*s", length < width ? width - length : 0, "");
}

static void print_header(int width)
{
    print_name("dataset", width);
    printf("  %-6s  %10s  %10s  %14s  %8s  %s\n", "", "max abs", "max rel", "cosine", "same",
           "first difference");
}

static void print_row(const char *name, int width, const difference *d, const dsv4_h5_data *a,
                      bool within)
{
    print_name(name, width);
    printf("  %-6s", within ? "within" : "BEYOND");
    if (d->integer && d->note != NULL)
        printf("  %10s  %10s  %14s", "-", "-", "-");
    else if (d->integer)
        printf("  %10.3g  %10s  %14s", d->max_absolute, "-", "-");
    else
        printf("  %10.3g  %10.3g  %14.11f", d->max_absolute, d->max_relative, d->cosine);
    /* Rounded down: 100% means every value. */
    printf("  %7.3f%%", d->count > 0 ? floor(1e5 * (double)d->same / (double)d->count) / 1e3 : 100);
    if (d->first >= 0) {
        printf("  ");
        print_index(a, d->first);
        printf(" %s / %s", d->first_a, d->first_b);
    }
    if (d->note != NULL)
        printf("  (%s)", d->note);
    putchar('\n');
}

typedef struct {
    int64_t within, beyond, misshaped;
    const char *first; /* the first dataset that is not within */
} tally;

/* One row of the table. */
static int diff_dataset(dsv4_h5 *const file[2], const char *name, int width, double tolerance,
                        tally *sum, dsv4_compared *compared, dsv4_error *err)
{
    *compared = (dsv4_compared){.name = name, .misshaped = true};
    dsv4_h5_data data[2];
    if (dsv4_h5_read(file[0], name, &data[0], err) != 0)
        return -1;
    if (dsv4_h5_read(file[1], name, &data[1], err) != 0) {
        dsv4_h5_data_free(&data[0]);
        return -1;
    }
    if (!same_shape(&data[0], &data[1])) {
        print_name(name, width);
        printf("  SHAPE   ");
        print_list(data[0].shape, data[0].rank);
        printf(" / ");
        print_list(data[1].shape, data[1].rank);
        putchar('\n');
        sum->misshaped++;
        sum->first = sum->first != NULL ? sum->first : name;
    } else {
        difference d;
        compare(&d, file, name, data, tolerance);
        bool within = d.integer ? d.same == d.count : d.max_relative <= tolerance;
        print_row(name, width, &d, &data[0], within);
        *compared = (dsv4_compared){.name = name, .within = within,
                                    .max_relative = d.max_relative, .beyond = d.rows_beyond,
                                    .first = d.first_row,
                                    .rows = data[0].rank > 0 ? data[0].shape[0] : 1};
        sum->within += within;
        sum->beyond += !within;
        sum->first = sum->first != NULL || within ? sum->first : name;
    }
    dsv4_h5_data_free(&data[0]);
    dsv4_h5_data_free(&data[1]);
    return 0;
}

typedef struct {
    char **name;
    int64_t count;
} name_list;

static bool contains(const name_list *list, const char *name)
{
    int64_t low = 0, high = list->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(list->name[middle], name);
        if (order == 0)
            return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

enum { SHOWN = 8 };

static void print_only(const name_list *names, const name_list *others, const char *path)
{
    int64_t count = 0;
    for (int64_t i = 0; i < names->count; i++)
        if (!contains(others, names->name[i]) && count++ < SHOWN) {
            printf("only in %s: ", path);
            print_name(names->name[i], 0);
            putchar('\n');
        }
    if (count > SHOWN)
        printf("only in %s: and %" PRId64 " more\n", path, count - SHOWN);
}

static int compare_places(const void *a, const void *b)
{
    return dsv4_trace_compare(*(char *const *)a, *(char *const *)b);
}

static void print_summary(const name_list names[2], const diff_arguments *arguments,
                          const tally *sum)
{
    print_only(&names[0], &names[1], arguments->path[0]);
    print_only(&names[1], &names[0], arguments->path[1]);
    printf("%" PRId64 " datasets compared: %" PRId64 " within %g, %" PRId64 " beyond",
           sum->within + sum->beyond + sum->misshaped, sum->within, arguments->tolerance,
           sum->beyond);
    if (sum->misshaped > 0)
        printf(", %" PRId64 " of different shapes", sum->misshaped);
    putchar('\n');
    if (sum->first != NULL && strncmp(sum->first, "trace/", strlen("trace/")) == 0) {
        printf("first to differ, in the order of computation: ");
        print_name(sum->first, 0);
        putchar('\n');
    }
}

/* The highest layer that a dataset of either file belongs to; -1 for none. */
static long last_layer(const name_list names[2])
{
    long last = -1;
    for (int f = 0; f < 2; f++)
        for (int64_t i = 0; i < names[f].count; i++) {
            dsv4_trace_place place = dsv4_trace_place_of(names[f].name[i]);
            if (place.stage == DSV4_TRACE_LAYERS && place.layer > last)
                last = place.layer;
        }
    return last;
}

static int diff_names(dsv4_h5 *const file[2], const name_list names[2],
                      const diff_arguments *arguments, dsv4_error *err)
{
    int width = (int)strlen("dataset");
    char **common = dsv4_alloc((size_t)names[0].count, sizeof *common);
    int64_t count = 0;
    for (int64_t i = 0; i < names[0].count; i++)
        if (contains(&names[1], names[0].name[i])) {
            int length = (int)strlen(names[0].name[i]);
            width = length > width ? length : width;
            common[count++] = names[0].name[i];
        }
    qsort(common, (size_t)count, sizeof *common, compare_places);

    tally sum = {0};
    dsv4_compared *compared = dsv4_alloc((size_t)count, sizeof *compared);
    int result = count > 0 ? 0 : dsv4_fail(err, "%s and %s have no dataset in common",
                                           arguments->path[0], arguments->path[1]);
    if (result == 0)
        print_header(width);
    for (int64_t i = 0; i < count && result == 0; i++)
        result = diff_dataset(file, common[i], width, arguments->tolerance, &sum, &compared[i],
                              err);
    if (result == 0)
        print_summary(names, arguments, &sum);
    if (result == 0)
        dsv4_verdict_print(file, compared, count, last_layer(names));
    free(common);
    free(compared);
    return result != 0 ? -1 : sum.beyond + sum.misshaped > 0;
}

static int diff_files(const diff_arguments *arguments, dsv4_error *err)
{
    int result = -1;
    dsv4_h5 *file[2] = {NULL, NULL};
    name_list names[2] = {{0}, {0}};
    bool good = true;
    for (int f = 0; f < 2 && good; f++) {
        file[f] = dsv4_h5_open(arguments->path[f], err);
        if (file[f] != NULL)
            names[f].name = dsv4_h5_names(file[f], &names[f].count, err);
        good = names[f].name != NULL;
    }
    if (good)
        result = diff_names(file, names, arguments, err);
    for (int f = 0; f < 2; f++) {
        dsv4_h5_names_free(names[f].name, names[f].count);
        dsv4_h5_abandon(file[f]);
    }
    return result;
}

enum { KEY_TOLERANCE = 256 }; /* no short option */

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    diff_arguments *arguments = state->input;
    char *end;
    switch (key) {
    case KEY_TOLERANCE:
        arguments->tolerance = strtod(text, &end);
        if (end == text || *end != '\0' || !isfinite(arguments->tolerance) ||
            arguments->tolerance < 0)
            argp_error(state, "--tol: expected a number that is 0 or more, got '%s'", text);
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num >= 2)
            argp_error(state, "expected two files, got a third: '%s'", text);
        else
            arguments->path[state->arg_num] = text;
        return 0;
    case ARGP_KEY_END:
        if (state->arg_num < 2)
            argp_error(state, "expected two files, got %u", state->arg_num);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"tol", KEY_TOLERANCE, "T", 0, "Largest relative error of a float dataset that still passes "
     "(default 0: identical values)", 0},
    {0},
};

static const char documentation[] =
    "Compares two tensor files (HDF5), such as those of `dsv4 logits -o`, dataset by dataset.\v"
    "For every dataset that both files have, one row, traces in the order of computation:\n"
    "\n"
    "  max abs   the largest absolute error |a - b|\n"
    "  max rel   the same divided by the largest finite magnitude in A's dataset\n"
    "  cosine    of the two datasets as vectors, over values finite in both\n"
    "  same      share of identical values\n"
    "  first difference   index and values of the first that are not identical\n"
    "\n"
    "Equal infinities are identical, and so are two NaN; either against anything else is an "
    "infinite error. Integers have to be identical whatever the tolerance. The order within a row "
    "of `selected` and of `route_index` has no meaning: their rows are compared as sets (the first "
    "difference shows a member that only A has and one that only B has), and a `route_weight` is "
    "compared with its rows in the order of the `route_index` beside it. Datasets that only one "
    "file has are listed and do not count.\n"
    "\n"
    "Of traces, whole or in part and of any engine, the last lines say what parted first: "
    "arithmetic (a tensor beyond the tolerance) or a discrete choice (a routing or a selection "
    "that differs although all before it is within); where; and how close a selection was by the "
    "scores of both files: a tie, a near-tie or a wrong rule. Where the files lack what decides, "
    "they say so. The last row of MTP, which is free, parts nothing. With `dsv4 logits --replay` "
    "one engine's choices are given to the reference, and the arithmetic can be compared alone.\n"
    "\n"
    "Exit code: 0 all within the tolerance; 1 an error beyond it or different shapes; 2 a file "
    "could not be read, or nothing is common.";

int dsv4_diff_main(int argc, char **argv)
{
    const struct argp argp = {.options = options, .parser = parse_option, .args_doc = "A.h5 B.h5",
                              .doc = documentation};
    diff_arguments arguments = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    dsv4_error err = {""};
    int result = diff_files(&arguments, &err);
    if (result < 0) {
        fflush(stdout);
        fprintf(stderr, "dsv4 diff: %s\n", err.text);
        return 2;
    }
    return result;
}
