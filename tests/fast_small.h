/* Small operands (small.h) for the operators of fast/: a context on any level of instructions
 * and any number of threads, and numbers in binary32 beside the reference's binary64. */
#ifndef TESTS_FAST_SMALL_H
#define TESTS_FAST_SMALL_H

#include "fast/fast.h"
#include "small.h"

/* Binary32's unit of rounding: an operation is off by this part of its result at most. */
static const double fast_unit = 0x1p-24;

/* A context with the configuration, contract (as s->c has it now) and error of `s`. */
fast_context fast_small_open(small *s, const fast_kernels *level, int threads);
void fast_small_close(fast_context *c);

/* Walks through the levels that the machine has, with a fresh context for each:
 *
 *     fast_walk walk = {0};
 *     while (fast_small_next(&walk, s, threads))
 *         fast_hadamard(&walk.c, x, width, rows);
 */
typedef struct {
    fast_context c;
    int next;
} fast_walk;
bool fast_small_next(fast_walk *walk, small *s, int threads);

float *small_floats(small *s, const double *x, int64_t count);
double *small_doubles(small *s, const float *x, int64_t count);

/* Fails where got[i] differs from want[i] by more than bound[i]. NaN equals NaN only. */
#define fast_near(c, got, want, bound, count) \
    fast_near_at(c, #got, got, want, bound, count, __FILE__, __LINE__)
void fast_near_at(const fast_context *c, const char *what, const float *got, const double *want,
                  const double *bound, int64_t count, const char *file, int line);

/* Fails where the numbers are not the same; a zero's sign counts. */
#define fast_same(c, got, want, count) fast_same_at(c, #got, got, want, count, __FILE__, __LINE__)
void fast_same_at(const fast_context *c, const char *what, const float *got, const double *want,
                  int64_t count, const char *file, int line);

/* The same for two results of fast/. */
#define fast_bits(c, got, want, count) fast_bits_at(c, #got, got, want, count, __FILE__, __LINE__)
void fast_bits_at(const fast_context *c, const char *what, const float *got, const float *want,
                  int64_t count, const char *file, int line);

/* RELEASED: `want` is rounded to bf16. A value before rounding that was off by bound[i] may have
 * been rounded to a neighbour: fails where the difference is larger than that makes possible, or
 * where more than `flips` values differ from what is wanted. */
#define fast_rounded(c, got, want, bound, count, flips) \
    fast_rounded_at(c, #got, got, want, bound, count, flips, __FILE__, __LINE__)
void fast_rounded_at(const fast_context *c, const char *what, const float *got, const double *want,
                     const double *bound, int64_t count, int64_t flips, const char *file, int line);

#endif
