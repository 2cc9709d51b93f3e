#include "against.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int status, const dsv4_error *err)
{
    if (status == 0)
        return;
    fprintf(stderr, "%s\n", err->text);
    abort();
}

double bf16_step(double x)
{
    return ldexp(1, (x == 0 ? -126 : (int)fmax(ilogb(x), -126)) - 7);
}

static const char *last_part(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash != NULL ? slash + 1 : name;
}

static against_tensor *find(against *a, const char *name)
{
    for (int64_t i = 0; i < a->count; i++)
        if (strcmp(a->tensors[i].name, name) == 0)
            return &a->tensors[i];
    a->tensors = realloc(a->tensors, (size_t)(a->count + 1) * sizeof *a->tensors);
    against_tensor *t = &a->tensors[a->count++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    snprintf(t->tensor, sizeof t->tensor, "%s", last_part(name));
    dsv4_error err = {{0}};
    must(dsv4_h5_read(a->file, name, &t->want, &err), &err);
    for (int64_t i = 0; !t->want.integer && i < t->want.count; i++)
        if (isfinite(t->want.values[i]))
            t->scale = fmax(t->scale, fabs(t->want.values[i]));
    return t;
}

/* How far apart neighbouring values of the format stand around value i of a quantised vector [width].
 * The scale of its block is read off the block's largest value; where that was rounded down to half the
 * format's range, the true scale is twice as large, so the larger of the two is taken. */
static double qdq_step(const against *a, const against_tensor *t, const double *vector, int64_t width,
                       int64_t i)
{
    bool index = strncmp(t->tensor, "index_", 6) == 0;
    int64_t block = index ? 32 : 64, first = i / block * block;
    if (!index && i >= width - a->config->qk_rope_head_dim)
        return bf16_step(t->scale); /* rotary values are not quantised */
    double amax = 0, largest = index ? 6 : 448;
    for (int64_t j = first; j < first + block; j++)
        amax = fmax(amax, fabs(vector[j]));
    double scale = exp2(ceil(log2(amax / largest)));
    if (amax / scale <= largest / 2)
        scale *= 2;
    double x = fabs(vector[i]) / scale;
    if (index)
        return scale * (x >= 4 ? 2 : x >= 2 ? 1 : 0.5);
    return scale * exp2(fmax(floor(log2(fmax(x, 1e-9))), -6) - 3);
}

static bool is_qdq(const char *tensor)
{
    return strcmp(tensor, "kv") == 0 || strcmp(tensor, "compressed") == 0 ||
           strcmp(tensor, "index_q") == 0 || strcmp(tensor, "index_k") == 0;
}

against_tensor *against_rows(against *a, const char *name, int64_t row, int64_t rows, int64_t width,
                             const double *got)
{
    against_tensor *t = find(a, name);
    if (rows == 0)
        return t;
    int64_t whole = t->want.count / t->want.shape[0]; /* of a row; index_score shows only a part */
    int64_t vector = t->want.shape[t->want.rank - 1];
    for (int64_t i = 0; i < rows * width; i++) {
        int64_t at = (row + i / width) * whole + i % width;
        double want = t->want.values[at], error = fabs(got[i] - want);
        t->seen++;
        if (got[i] == want) {
            t->same++;
            continue;
        }
        t->worst = error <= t->worst ? t->worst : error; /* keeps a NaN */
        if (a->feed && is_qdq(t->tensor)) { /* fed passes are released ones */
            double step = qdq_step(a, t, t->want.values + at / vector * vector, vector, at % vector);
            t->worst_steps = fmax(t->worst_steps, error / step);
        }
    }
    return t;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static bool same_set(const int64_t *a, const int64_t *b, int64_t count)
{
    size_t bytes = (size_t)count * sizeof *a;
    int64_t *x = malloc(bytes + 1), *y = malloc(bytes + 1);
    memcpy(x, a, bytes);
    memcpy(y, b, bytes);
    qsort(x, (size_t)count, sizeof *x, ascending);
    qsort(y, (size_t)count, sizeof *y, ascending);
    bool same = memcmp(x, y, bytes) == 0;
    free(x);
    free(y);
    return same;
}

/* A selection of `count` among `visible` scores is good if nothing outside is better than anything in it. */
static bool is_best(const double *scores, int64_t visible, const int64_t *selected, int64_t count)
{
    double worst_in = INFINITY, best_out = -INFINITY;
    for (int64_t g = 0; g < visible; g++) {
        bool in = false;
        for (int64_t i = 0; i < count; i++)
            in = in || selected[i] == g;
        if (in)
            worst_in = fmin(worst_in, scores[g]);
        else
            best_out = fmax(best_out, scores[g]);
    }
    return worst_in >= best_out;
}

static void indices(against *a, against_tensor *t, const dsv4_point *p)
{
    int64_t whole = t->want.count / t->want.shape[0], width = p->dim[0];
    for (int64_t r = 0; r < p->rows; r++) {
        const int64_t *want = t->want.indices + (p->row + r) * whole;
        int64_t *got = p->indices + r * width;
        t->rows++;
        t->unlike += !same_set(got, want, width) || (width < whole && want[width] != -1);
        if (strcmp(t->tensor, "selected") == 0 && a->config->compress_ratios[p->layer] == 4)
            t->not_best += !is_best(a->scores, (p->row + 1) / 4, got, width);
    }
}

static void at(void *context, const dsv4_point *p)
{
    against *a = context;
    int64_t L = a->config->num_hidden_layers, width = p->dim[0] * (p->rank == 2 ? p->dim[1] : 1);
    char name[96];
    snprintf(name, sizeof name, "trace/%s/%lld/%s", p->layer < L ? "layers" : "mtp",
             (long long)(p->layer < L ? p->layer : p->layer - L), p->name);
    against_tensor *t = find(a, name);
    int64_t whole = t->want.shape[0] != 0 ? t->want.count / t->want.shape[0] : 0;
    size_t count = (size_t)(p->rows * width);
    if (p->indices != NULL) {
        indices(a, t, p);
        if (strcmp(p->name, "route_index") == 0) {
            a->route = realloc(a->route, count * sizeof *a->route);
            memcpy(a->route, p->indices, count * sizeof *a->route);
        }
        for (int64_t r = 0; a->feed && r < p->rows; r++)
            memcpy(p->indices + r * width, t->want.indices + (p->row + r) * whole,
                   (size_t)width * sizeof *p->indices);
        return;
    }
    if (strcmp(p->name, "route_weight") == 0) {
        /* Bring ours into the order of the file's route_index before comparing. */
        snprintf(strrchr(name, '/'), 32, "/route_index");
        const int64_t *order = find(a, name)->want.indices + p->row * width;
        snprintf(strrchr(name, '/'), 32, "/route_weight");
        double *sorted = calloc(count + 1, sizeof *sorted);
        for (size_t i = 0; i < count; i++)
            for (size_t first = i / (size_t)width * (size_t)width, j = first;
                 j < first + (size_t)width; j++)
                if (a->route[j] == order[i])
                    sorted[i] = p->values[j];
        against_rows(a, name, p->row, p->rows, width, sorted);
        free(sorted);
    } else {
        against_rows(a, name, p->row, p->rows, width, p->values);
    }
    t = find(a, name);
    for (int64_t r = 0; a->feed && r < p->rows; r++)
        memcpy(p->values + r * width, t->want.values + (p->row + r) * whole,
               (size_t)width * sizeof *p->values);
    if (strcmp(p->name, "index_score") == 0) {
        a->scores = realloc(a->scores, (count + 1) * sizeof *a->scores);
        memcpy(a->scores, p->values, count * sizeof *a->scores);
    }
}

void against_open(against *a, const char *path, const dsv4_config *config, bool feed)
{
    dsv4_error err = {{0}};
    memset(a, 0, sizeof *a);
    a->file = dsv4_h5_open(path, &err);
    must(a->file == NULL ? -1 : 0, &err);
    a->config = config;
    a->feed = feed;
    a->tap = (dsv4_tap){at, a};
}

char *against_unseen(against *a)
{
    dsv4_error err = {{0}};
    int64_t count;
    char **names = dsv4_h5_names(a->file, &count, &err), *unseen = NULL;
    must(names == NULL ? -1 : 0, &err);
    for (int64_t i = 0; i < count && unseen == NULL; i++) {
        bool seen = strncmp(names[i], "trace/", strlen("trace/")) != 0;
        for (int64_t j = 0; j < a->count && !seen; j++)
            seen = strcmp(a->tensors[j].name, names[i]) == 0 &&
                   (a->tensors[j].seen > 0 || a->tensors[j].rows > 0);
        if (!seen)
            unseen = strdup(names[i]);
    }
    dsv4_h5_names_free(names, count);
    return unseen;
}

void against_close(against *a)
{
    dsv4_error err = {{0}};
    for (int64_t i = 0; i < a->count; i++)
        dsv4_h5_data_free(&a->tensors[i].want);
    free(a->tensors);
    free(a->scores);
    free(a->route);
    must(dsv4_h5_close(a->file, &err), &err);
}
