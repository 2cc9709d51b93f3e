#include "trace.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* One row of a tensor; indices are kept as numbers. */
struct trace_row {
    const char *name;
    int64_t layer, row, width;
    bool compared;
    double *values;
};

static double value(const dsv4_point *p, int64_t at)
{
    return p->values != NULL ? p->values[at] : (double)p->indices[at];
}

static int64_t width_of(const dsv4_point *p)
{
    return p->dim[0] * (p->rank == 2 ? p->dim[1] : 1);
}

static trace_difference *difference(trace *t, const char *name)
{
    trace_difference *d = t->of;
    while (d->name != NULL && strcmp(d->name, name) != 0)
        d++;
    assert_true(d < t->of + sizeof t->of / sizeof *t->of - 1);
    d->name = name;
    return d;
}

static void keep(void *context, const dsv4_point *p)
{
    trace *t = context;
    trace_difference *d = difference(t, p->name);
    int64_t width = width_of(p);
    for (int64_t i = 0; i < p->rows && width > 0; i++) {
        if (t->count == t->room) {
            t->room = 2 * t->room + 1024;
            t->rows = realloc(t->rows, (size_t)t->room * sizeof *t->rows);
        }
        struct trace_row *row = &t->rows[t->count++];
        *row = (struct trace_row){p->name, p->layer, p->row + i, width, false,
                                  dsv4_alloc((size_t)width, sizeof *row->values)};
        for (int64_t j = 0; j < width; j++) {
            row->values[j] = value(p, i * width + j);
            d->scale = fmax(d->scale, fabs(row->values[j]));
        }
    }
}

/* Rows mostly come in the order in which they were kept. */
static struct trace_row *find(trace *t, const char *name, int64_t layer, int64_t row)
{
    for (int64_t i = 0; i < t->count; i++) {
        struct trace_row *x = &t->rows[t->at];
        t->at = (t->at + 1) % t->count;
        if (x->layer == layer && x->row == row && strcmp(x->name, name) == 0)
            return x;
    }
    fail_msg("layer %d: %s [%d] was not kept", (int)layer, name, (int)row);
    return NULL;
}

static void compare(trace *t, const dsv4_point *p, bool feed)
{
    trace_difference *d = difference(t, p->name);
    int64_t width = width_of(p);
    for (int64_t i = 0; i < p->rows && width > 0; i++) {
        struct trace_row *want = find(t, p->name, p->layer, p->row + i);
        want->compared = true;
        if (want->width < width || (want->width > width && want->values[width] != -1))
            fail_msg("layer %d: %s [%d] has %d values", (int)p->layer, p->name, (int)want->row,
                     (int)width);
        for (int64_t j = 0; j < width; j++) {
            double error = fabs(value(p, i * width + j) - want->values[j]);
            d->seen++;
            d->same += error <= 1e-6 * d->scale;
            d->worst = error <= d->worst ? d->worst : error;
            if (feed && p->values != NULL)
                p->values[i * width + j] = want->values[j];
            else if (feed)
                p->indices[i * width + j] = (int64_t)want->values[j];
        }
    }
}

static void compare_only(void *context, const dsv4_point *p)
{
    compare(context, p, false);
}

static void compare_and_feed(void *context, const dsv4_point *p)
{
    compare(context, p, true);
}

dsv4_tap trace_keeper(trace *t)
{
    return (dsv4_tap){keep, t};
}

static void start(trace *t)
{
    t->at = 0;
    for (int64_t i = 0; i < t->count; i++)
        t->rows[i].compared = false;
    for (trace_difference *d = t->of; d->name != NULL; d++)
        *d = (trace_difference){.name = d->name, .scale = d->scale};
}

dsv4_tap trace_comparer(trace *t)
{
    start(t);
    return (dsv4_tap){compare_only, t};
}

dsv4_tap trace_feeder(trace *t)
{
    start(t);
    return (dsv4_tap){compare_and_feed, t};
}

static void all_compared(const trace *t, const char *what)
{
    for (int64_t i = 0; i < t->count; i++)
        if (!t->rows[i].compared && t->rows[i].values[0] != -1) /* -1: nothing was selected */
            fail_msg("%s: layer %d: %s [%d] was not shown", what, (int)t->rows[i].layer,
                     t->rows[i].name, (int)t->rows[i].row);
}

void trace_within(const trace *t, const char *what, double bound)
{
    trace_mostly(t, what, 0, bound);
}

void trace_mostly(const trace *t, const char *what, double share, double bound)
{
    all_compared(t, what);
    for (const trace_difference *d = t->of; d->name != NULL; d++) {
        if (!(d->worst <= bound * d->scale))
            fail_msg("%s: %s differs by %g of %g", what, d->name, d->worst, d->scale);
        if (!((double)d->same >= share * (double)d->seen))
            fail_msg("%s: of %s only %d of %d values are the same", what, d->name, (int)d->same,
                     (int)d->seen);
    }
}

void trace_free(trace *t)
{
    for (int64_t i = 0; i < t->count; i++)
        free(t->rows[i].values);
    free(t->rows);
    *t = (trace){0};
}
