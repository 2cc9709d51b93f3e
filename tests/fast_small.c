#include "fast_small.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

fast_context fast_small_open(small *s, const fast_kernels *level, int threads)
{
    fast_pool *pool = fast_pool_new(threads, &s->error);
    assert_non_null(pool);
    bool released = s->c.numerics == DSV4_RELEASED;
    return (fast_context){.config = &s->config, .released = released, .deterministic = true,
                          .kernels = level, .pool = pool, .memory = fast_memory_new(),
                          .error = &s->error};
}

void fast_small_close(fast_context *c)
{
    fast_pool_free(c->pool);
    fast_memory_free(c->memory);
    *c = (fast_context){0};
}

bool fast_small_next(fast_walk *walk, small *s, int threads)
{
    int count;
    const fast_kernels *const *level = fast_levels(&count);
    if (walk->next > 0)
        fast_small_close(&walk->c);
    if (walk->next == count)
        return false;
    walk->c = fast_small_open(s, level[walk->next++], threads);
    return true;
}

float *small_floats(small *s, const double *x, int64_t count)
{
    float *narrow = small_alloc(s, count, sizeof *narrow);
    for (int64_t i = 0; i < count; i++)
        narrow[i] = (float)x[i];
    return narrow;
}

double *small_doubles(small *s, const float *x, int64_t count)
{
    double *wide = small_array(s, count);
    for (int64_t i = 0; i < count; i++)
        wide[i] = x[i];
    return wide;
}

static void differs(const fast_context *c, const char *what, int64_t i, double got, double want,
                    double bound, const char *file, int line)
{
    print_error("%s, %s: %s [%" PRId64 "] is %.9g (%a), expected %.9g (%a) within %g\n",
                c->kernels->name, c->released ? "released" : "exact", what, i, got, got, want, want,
                bound);
    _fail(file, line);
}

void fast_near_at(const fast_context *c, const char *what, const float *got, const double *want,
                  const double *bound, int64_t count, const char *file, int line)
{
    for (int64_t i = 0; i < count; i++)
        if (isnan(want[i]) ? !isnan(got[i])
                           : got[i] != want[i] && !(fabs(got[i] - want[i]) <= bound[i]))
            differs(c, what, i, got[i], want[i], bound[i], file, line);
}

void fast_same_at(const fast_context *c, const char *what, const float *got, const double *want,
                  int64_t count, const char *file, int line)
{
    for (int64_t i = 0; i < count; i++)
        if (isnan(want[i]) ? !isnan(got[i])
                           : got[i] != want[i] || !signbit(got[i]) != !signbit(want[i]))
            differs(c, what, i, got[i], want[i], 0, file, line);
}

void fast_bits_at(const fast_context *c, const char *what, const float *got, const float *want,
                  int64_t count, const char *file, int line)
{
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            differs(c, what, i, got[i], want[i], 0, file, line);
}

void fast_rounded_at(const fast_context *c, const char *what, const float *got, const double *want,
                     const double *bound, int64_t count, int64_t flips, const char *file, int line)
{
    int64_t differing = 0;
    for (int64_t i = 0; i < count; i++) {
        double step = ldexp(1, (want[i] != 0 ? ilogb(want[i]) : -126) - 7);
        double most = bound[i] + step; /* across the end of a binade a step is no larger */
        if (!(fabs(got[i] - want[i]) <= most))
            differs(c, what, i, got[i], want[i], most, file, line);
        if (small_to_bf16(got[i]) != got[i])
            differs(c, what, i, got[i], small_to_bf16(got[i]), 0, file, line);
        differing += got[i] != want[i];
    }
    if (differing > flips) {
        print_error("%s: %s: %" PRId64 " of %" PRId64 " roundings differ, expected %" PRId64
                    " at most\n", c->kernels->name, what, differing, count, flips);
        _fail(file, line);
    }
}
