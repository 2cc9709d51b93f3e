#include "spy.h"

#include <string.h>

static double get(const dsv4_point *p, int64_t at)
{
    return p->values != NULL ? p->values[at] : (double)p->indices[at];
}

static void put(const dsv4_point *p, int64_t at, double value)
{
    if (p->values != NULL)
        p->values[at] = value;
    else
        p->indices[at] = (int64_t)value;
}

static void at(void *context, const dsv4_point *p)
{
    spy *watch = context;
    int64_t width = p->dim[0] * (p->rank == 2 ? p->dim[1] : 1);
    for (int i = 0; i < watch->count; i++) {
        if (strcmp(watch->on[i].name, p->name) != 0)
            continue;
        int64_t stride = watch->on[i].stride != 0 ? watch->on[i].stride : width;
        for (int64_t j = 0; j < p->rows * width; j++) {
            int64_t to = (p->row + j / width) * stride + j % width;
            if (watch->on[i].out != NULL)
                watch->on[i].out[to] = get(p, j);
            else
                put(p, j, watch->on[i].give[to]);
        }
        watch->on[i].rows += p->rows;
        watch->on[i].width = width;
    }
}

void spy_start(small *s, spy *watch)
{
    *watch = (spy){.tap = {at, watch}};
    s->c.tap = &watch->tap;
}

void spy_see(spy *watch, const char *name, double *out, int64_t stride)
{
    watch->on[watch->count].name = name;
    watch->on[watch->count].out = out;
    watch->on[watch->count++].stride = stride;
}

void spy_give(spy *watch, const char *name, const double *values, int64_t stride)
{
    watch->on[watch->count].name = name;
    watch->on[watch->count].give = values;
    watch->on[watch->count++].stride = stride;
}

static int find(const spy *watch, const char *name)
{
    int i = 0;
    while (i < watch->count && strcmp(watch->on[i].name, name) != 0)
        i++;
    assert_true(i < watch->count);
    return i;
}

int64_t spy_rows(const spy *watch, const char *name)
{
    return watch->on[find(watch, name)].rows;
}

int64_t spy_width(const spy *watch, const char *name)
{
    return watch->on[find(watch, name)].width;
}
