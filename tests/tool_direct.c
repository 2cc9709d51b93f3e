/* Holds tests/direct.c against an oracle file: tool_direct MODEL_DIR exact|released ORACLE.h5
 *
 * First every tensor is computed from the oracle's own tensors before it ("fed"), so that each
 * difference is one step's; then a pass that is left alone gives the differences end to end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "direct.h"
#include "host/h5.h"

enum { MAX_TENSORS = 1024 };

/* What was seen of one dataset. */
typedef struct {
    char name[64];
    dsv4_h5_data want;
    int64_t count, same, rows;   /* values, identical ones, rows with any that is not */
    double error, square, scale; /* largest |difference|, sum of squares, largest |oracle value| */
} tensor;

typedef struct {
    const dsv4_model *model;
    dsv4_h5 *oracle;
    bool feed;
    tensor tensors[MAX_TENSORS];
    int64_t count;
    dsv4_error err;
} comparison;

static void stop(const dsv4_error *err)
{
    fprintf(stderr, "tool_direct: %s\n", err->text);
    exit(2);
}

static tensor *find(comparison *c, const char *name)
{
    for (int64_t i = 0; i < c->count; i++)
        if (!strcmp(c->tensors[i].name, name))
            return &c->tensors[i];
    if (c->count == MAX_TENSORS) {
        dsv4_fail(&c->err, "more than %d tensors", MAX_TENSORS);
        stop(&c->err);
    }
    tensor *x = &c->tensors[c->count++];
    snprintf(x->name, sizeof x->name, "%s", name);
    if (dsv4_h5_read(c->oracle, name, &x->want, &c->err))
        stop(&c->err);
    for (int64_t i = 0; !x->want.integer && i < x->want.count; i++)
        if (isfinite(x->want.values[i]))
            x->scale = fmax(x->scale, fabs(x->want.values[i]));
    return x;
}

static void require(comparison *c, const tensor *x, bool integer, int64_t count)
{
    if (x->want.integer == integer && x->want.count >= count)
        return;
    dsv4_fail(&c->err, "%s: expected %lld %s, got %lld %s", x->name, (long long)count,
              integer ? "indices" : "values", (long long)x->want.count,
              x->want.integer ? "indices" : "values");
    stop(&c->err);
}

static void compare(tensor *x, int64_t start, int64_t rows, int64_t width, const double *got)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t before = x->same;
        for (int64_t i = row * width; i < (row + 1) * width; i++) {
            double want = x->want.values[start + i], difference = fabs(got[i] - want);
            x->same += (float)got[i] == (float)want;
            if (!isnan(x->error) && !(difference <= x->error)) /* once NaN, always NaN */
                x->error = difference;
            x->square += difference * difference;
        }
        x->count += width;
        x->rows += x->same - before < width;
    }
}

/* The order within a row of indices has no meaning: each of the oracle's must be in our row. */
static void compare_indices(tensor *x, int64_t rows, int64_t width, const int64_t *got)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t before = x->same;
        for (int64_t i = 0; i < width; i++) {
            bool found = false;
            for (int64_t j = 0; j < width; j++)
                found = found || got[row * width + j] == x->want.indices[row * width + i];
            x->same += found;
        }
        x->count += width;
        x->rows += x->same - before < width;
    }
}

static void at(void *context, const dsv4_point *point)
{
    comparison *c = context;
    char name[64];
    int64_t mtp = point->layer - c->model->config.num_hidden_layers;
    if (mtp >= 0)
        snprintf(name, sizeof name, "trace/mtp/%d/%s", (int)mtp, point->name);
    else
        snprintf(name, sizeof name, "trace/layers/%d/%s", (int)point->layer, point->name);
    int64_t width = point->dim[0] * (point->rank == 2 ? point->dim[1] : 1);
    tensor *x = find(c, name);
    int64_t start = x->want.count ? point->row * (x->want.count / x->want.shape[0]) : 0;
    require(c, x, point->indices != NULL, start + point->rows * width);
    if (point->indices) {
        compare_indices(x, point->rows, width, point->indices);
        if (c->feed)
            memcpy(point->indices, x->want.indices + start,
                   (size_t)(point->rows * width) * sizeof *point->indices);
    } else {
        compare(x, start, point->rows, width, point->values);
        if (c->feed)
            memcpy(point->values, x->want.values + start,
                   (size_t)(point->rows * width) * sizeof *point->values);
    }
}

/* One line per tensor; the largest error relative to the scale. */
static double report(const comparison *c)
{
    double worst = 0;
    printf("%-29s%9s%10s%6s%13s%12s%10s\n", "", "values", "same", "rows", "max / scale",
           "bf16 units", "rms");
    for (int64_t i = 0; i < c->count; i++) {
        const tensor *x = &c->tensors[i];
        printf("%-29s%9lld%9.3f%%%6lld", x->name, (long long)x->count,
               100 * (double)x->same / (double)x->count, (long long)x->rows);
        if (!x->want.integer) {
            double scale = x->scale > 0 ? x->scale : 1, relative = x->error / scale;
            double unit = ldexp(1, ilogb(scale) - 7);
            printf("%13.2e%12.3f%10.2e", relative, x->error / unit,
                   sqrt(x->square / (double)x->count));
            worst = isnan(worst) || relative <= worst ? worst : relative;
        }
        printf("\n");
    }
    return worst;
}

/* One pass; returns the largest relative error. */
static double run(const dsv4_model *model, dsv4_numerics numerics, dsv4_h5 *oracle, bool feed,
                  const char *title)
{
    comparison *c = dsv4_alloc(1, sizeof *c);
    *c = (comparison){.model = model, .oracle = oracle, .feed = feed};
    dsv4_tap tap = {at, c};
    dsv4_h5_data ids;
    if (dsv4_h5_read(oracle, "token_ids", &ids, &c->err) ||
        (!ids.integer && dsv4_fail(&c->err, "token_ids: expected integers")))
        stop(&c->err);
    int64_t V = model->config.vocab_size, count = ids.count * V;
    double *logits = dsv4_alloc((size_t)count, sizeof *logits);
    double *mtp_logits = dsv4_alloc((size_t)count, sizeof *mtp_logits);
    if (direct_forward(model, numerics, ids.indices, ids.count, logits,
                       model->mtp ? mtp_logits : NULL, &tap)) {
        dsv4_fail(&c->err, "a token id or expert index is out of range");
        stop(&c->err);
    }
    for (int i = 0; i < (model->mtp ? 2 : 1); i++) {
        tensor *x = find(c, i ? "mtp_logits" : "logits");
        require(c, x, false, count);
        compare(x, 0, ids.count, V, i ? mtp_logits : logits);
    }
    printf("%s\n", title);
    double worst = report(c);
    for (int64_t i = 0; i < c->count; i++)
        dsv4_h5_data_free(&c->tensors[i].want);
    dsv4_h5_data_free(&ids);
    free(logits);
    free(mtp_logits);
    free(c);
    return worst;
}

int main(int argc, char **argv)
{
    dsv4_error err = {""};
    dsv4_model model;
    if (argc != 4 || (strcmp(argv[2], "exact") && strcmp(argv[2], "released"))) {
        fprintf(stderr, "usage: tool_direct MODEL_DIR exact|released ORACLE.h5\n");
        return 2;
    }
    dsv4_numerics numerics = strcmp(argv[2], "exact") ? DSV4_RELEASED : DSV4_EXACT;
    if (dsv4_model_open(&model, argv[1], numerics, true, &err))
        stop(&err);
    dsv4_h5 *oracle = dsv4_h5_open(argv[3], &err);
    if (!oracle)
        stop(&err);
    run(&model, numerics, oracle, true, "each step fed with the oracle's tensors");
    double worst = run(&model, numerics, oracle, false, "end to end");
    dsv4_h5_close(oracle, &err);
    dsv4_model_close(&model);
    return numerics == DSV4_EXACT && !(worst < 1e-9);
}
