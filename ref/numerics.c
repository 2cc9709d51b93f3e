/* spec/numerics.md: rounding, and the points where the released contract rounds. */
#include "ref.h"

#include <math.h>
#include <string.h>

/* numerics.exact.1: In the exact contract a rounding point returns its value unchanged, and no
 * activation is quantised. */
static bool exact(const ref_context *c)
{
    return c->numerics == DSV4_EXACT;
}

/* floor(log2 |x|) of a normal number, and 2^e: both stand in the bits of binary64. These two are the
 * most frequent of all; ilogb() and ldexp() give the same. */
static int binade(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (int)(bits >> 52 & 2047) - 1023;
}

static double power_of_two(int e)
{
    uint64_t bits = (uint64_t)(e + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

double ref_round_to(double x, int precision, int min_exponent)
{
    if (x == 0 || !isfinite(x))
        return x;
    /* numerics.round.1: The nearest value of a format with p bits and smallest exponent q is x /
     * ulp rounded to an integer, ties to even, times ulp, where ulp = 2^(max(floor(log2 |x|), q) -
     * (p - 1)). */
    int exponent = binade(x) > min_exponent ? binade(x) : min_exponent;
    double ulp = power_of_two(exponent - (precision - 1));
    return rint(x / ulp) * ulp;
}

/* numerics.overflow.1: Binary32 and bf16 share their range: a rounded magnitude of 2^128 or more is
 * infinite. */
static double overflow(double x)
{
    return fabs(x) >= 0x1p128 ? copysign(INFINITY, x) : x;
}

double ref_f32(const ref_context *c, double x)
{
    /* numerics.f32.1: Binary32 has p = 24 and q = -126. */
    return exact(c) ? x : overflow(ref_round_to(x, 24, -126));
}

double ref_bf16(const ref_context *c, double x)
{
    /* numerics.bf16.1: bf16 has p = 8 and q = -126: a binary32 number without its last 16 bits. */
    return exact(c) ? x : overflow(ref_round_to(x, 8, -126));
}

bool ref_check_finite(const ref_context *c, const char *what, int64_t row, int64_t width,
                      const double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        /* numerics.finite.1: A tensor of the trace, or a logit, that is NaN or infinite is an error
         * that names it: the weights make the model overflow, and a clamp or a top-k behind it
         * could hide that. */
        if (!isfinite(x[i])) {
            dsv4_fail(c->error, "%s [%lld, %lld] is %s, expected a finite number: the weights make "
                      "the model overflow", what, (long long)(row + i / width),
                      (long long)(i % width), isnan(x[i]) ? "NaN" : "infinite");
            return false;
        }
    return true;
}

void ref_f32_all(const ref_context *c, double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = ref_f32(c, x[i]);
}

void ref_bf16_all(const ref_context *c, double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = ref_bf16(c, x[i]);
}
