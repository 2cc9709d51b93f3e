/* Small operands for the tests of single chapters: a configuration without a file, matrices of
 * every stored format over plain numbers, random numbers, roundings found by search, and asserts
 * that say what differs. Shares no code with ref/.
 *
 *     static void some_test(void **state)
 *     {
 *         small *s = *state;
 *         s->config.hidden_size = 3;
 *         dsv4_matrix w = small_f32(s, (double[]){1, 2, 3, 4, 5, 6}, 2, 3);
 *         ref_linear(&s->c, &w, x, 1, y);
 *         small_same(s, y, want, 2);
 *     }
 *     ... small_test(some_test), ...
 */
#ifndef TESTS_SMALL_H
#define TESTS_SMALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ref/ref.h"

/* What a test starts with. All that the functions below return is released after the test. */
typedef struct {
    dsv4_config config; /* sizes that all differ: set those that matter. No layers */
    dsv4_error error;
    ref_context c;      /* of both, EXACT; for the other contract set c.numerics */
    uint64_t seed;      /* DSV4_SEED in the environment, or a fixed one */
    uint64_t drawn;     /* random numbers so far */
    void **kept;
    int64_t kept_count;
} small;

int small_setup(void **state);
int small_teardown(void **state);
#define small_test(f) cmocka_unit_test_setup_teardown(f, small_setup, small_teardown)

/* Zeroed memory. */
void *small_alloc(small *s, int64_t count, size_t size);
double *small_array(small *s, int64_t count);
double *small_copy(small *s, const double *x, int64_t count);

/* Random numbers: splitmix64 of (seed, drawn). Each test draws the same ones on every machine. */
uint64_t small_bits(small *s);
double small_random(small *s);                         /* uniform in [-1, 1), a binary32 number */
double *small_randoms(small *s, int64_t count, double amplitude); /* bf16 numbers in +-amplitude */

/* Matrices. Their data is at an odd address, as a safetensors file may have it. Values that the
 * format does not hold are rounded to nearest. */
dsv4_matrix small_f32(small *s, const double *values, int64_t rows, int64_t cols);
dsv4_matrix small_bf16(small *s, const double *values, int64_t rows, int64_t cols);
dsv4_matrix small_f16(small *s, const double *values, int64_t rows, int64_t cols);

/* E4M3 codes and one E8M0 byte per 128 x 128; bytes of two E2M1 codes and one E8M0 byte per 32. */
dsv4_matrix small_fp8(small *s, const uint8_t *codes, const uint8_t *scales, int64_t rows,
                      int64_t cols);
dsv4_matrix small_fp4(small *s, const uint8_t *bytes, const uint8_t *scales, int64_t rows,
                      int64_t cols);

/* Random values of magnitude up to `amplitude`: F32, BF16, F16, F8_E4M3 or I8 (FP4), the last two
 * with scales that differ from block to block. */
dsv4_matrix small_random_matrix(small *s, dsv4_dtype dtype, int64_t rows, int64_t cols,
                                double amplitude);

/* The values that a matrix stands for [rows, cols]. */
double *small_values(small *s, const dsv4_matrix *m);

/* Rounded once to the nearest number of a format, ties to even; the last two clamp. */
double small_to_f32(double x);
double small_to_bf16(double x);
double small_to_e4m3(double x);
double small_to_e2m1(double x);

/* The input of an FP8 or FP4 product in RELEASED (quant.act.1 to 3). */
void small_act_quant(double *x, int64_t count, int64_t block);

/* The identity in EXACT. */
double small_f32_point(const small *s, double x);
double small_bf16_point(const small *s, double x);

/* Fails with the place, the index, what was got and wanted, the bound and the seed, when any of
 * `count` values differs by more than `bound`. NaN equals NaN only. */
#define small_near(s, got, want, count, bound) \
    small_near_at(s, #got, got, want, count, bound, __FILE__, __LINE__)
#define small_same(s, got, want, count) small_near(s, got, want, count, 0)
void small_near_at(const small *s, const char *what, const double *got, const double *want,
                   int64_t count, double bound, const char *file, int line);

/* The same for one value. */
#define small_about(s, got, want, bound) \
    small_near_at(s, #got, &(const double){got}, &(const double){want}, 1, bound, __FILE__, \
                  __LINE__)
#define small_is(s, got, want) small_about(s, got, want, 0)

#endif
