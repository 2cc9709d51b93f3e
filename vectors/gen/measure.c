/* Tolerances, and the margin of choices, from engines that are all correct.
 *
 * An output's tolerance in a tier is what engines of that tier really differ by: sums in other orders,
 * other last bits of elementary functions; in *released*, with noise on every sum that makes a flip
 * of a bf16 rounding, which is rare, frequent. The largest deviation over the engines is doubled or more,
 * because a few dozen engines are not all, and rounded up to a power of two, so that the last
 * bit of a library does not show in the files. */
#include "gen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vectors/museum/museum.h"

/* Large cases show rare deviations in few engines, and take long. */
enum { ENGINES = 32, ENGINES_LARGE = 8, LARGE = 4096 };

/* Beyond what was seen: a factor, and a floor in units of the row's largest magnitude, of the element
 * itself, and of the root mean square. */
typedef struct { double factor, row, element, rms; } allowance;

/* Whether *released* rounds this output to bf16. */
static bool is_bf16(const dsv4_array *a)
{
    for (int64_t i = 0; i < a->count; i++) {
        double x = dsv4_array_value(a, i);
        if (isfinite(x) && gen_to_bf16(x) != x)
            return false;
    }
    return true;
}

/* The largest step between neighbouring codes of an output that leaves through a QDQ, in units of its
 * row's largest magnitude: 448 - 416 of E4M3, 6 - 4 of E2M1; 0 for other outputs. */
static double code_step(const dsv4_case *c, const dsv4_array *out)
{
    bool entries = strcmp(c->op->chapter, "compressor") == 0;
    if (strcmp(c->op->name, "indexer_query") == 0 || (entries && dsv4_case_param(c, "index", 0) != 0))
        return 1. / 3;
    return entries || strcmp(out->name, "kv") == 0 ? 1. / 14 : 0;
}

/* The share of the root mean square that a few flips make: two, or one in `often` values, each of
 * `unit` times the largest value. */
static double flips(const dsv4_array *a, double unit, double often)
{
    double top = 0, squares = 0, count = 0;
    for (int64_t i = 0; i < a->count; i++)
        if (isfinite(dsv4_array_value(a, i))) {
            top = fmax(top, fabs(dsv4_array_value(a, i)));
            squares += dsv4_array_value(a, i) * dsv4_array_value(a, i);
            count++;
        }
    return squares > 0 ? unit * top * sqrt(fmax(2, count / often) / squares) : 0;
}

static allowance allowance_of(const dsv4_case *c, const dsv4_array *out, dsv4_tier tier)
{
    /* Conversions leave no freedom, and their results are bf16 numbers. */
    if (strcmp(c->op->chapter, "quant") == 0)
        return (allowance){0};
    /* Each frequency counts by itself, the smallest as much as the largest. */
    if (strcmp(c->op->name, "rope_frequencies") == 0)
        return (allowance){.factor = 4, .element = tier == DSV4_TIER_BF16 ? 0x1p-7 : 0x1p-20};
    /* A bf16 number is off by half a unit, 2^-9 of it, when it is rounded, and by a whole one, 2^-7 at
     * the most, when its rounding flips; behind a QDQ by a whole step of codes. */
    double rms = is_bf16(out) ? flips(out, 0x1p-7, 64) : 0, step = 0;
    if (c->numerics == DSV4_RELEASED && (step = code_step(c, out)) > 0)
        rms = flips(out, step, 256);
    if (tier == DSV4_TIER_BF16)
        return (allowance){3, fmax(0x1p-8, step), 0x1p-8, fmax(0x1p-8, rms)};
    if (c->numerics == DSV4_RELEASED && is_bf16(out))
        return (allowance){2, fmax(0x1p-20, step), 0x1p-7, rms};
    return (allowance){4, 0x1p-21, 0x1p-22, 0x1p-22};
}

static double power_of_two_above(double x)
{
    int exponent;
    if (!(x > 0))
        return 0;
    double fraction = frexp(x, &exponent);
    return ldexp(fraction > 0.75 || fraction == 0.5 ? (fraction == 0.5 ? 0.5 : 1) : 0.75, exponent);
}

static int64_t row_of(const dsv4_array *a)
{
    return a->rank > 0 ? a->shape[a->rank - 1] : 1;
}

/* What `got` adds to the deviation of `want`: the largest excess over the element's own allowance, in
 * units of the row's largest magnitude, and the relative root mean square. */
static void deviation(const dsv4_array *want, const dsv4_array *got, double factor, double element,
                      double *row, double *rms)
{
    double squares = 0, errors = 0;
    int64_t width = row_of(want);
    for (int64_t first = 0; first + width <= want->count && width > 0; first += width) {
        double top = 0;
        for (int64_t i = first; i < first + width; i++)
            if (isfinite(dsv4_array_value(want, i)))
                top = fmax(top, fabs(dsv4_array_value(want, i)));
        for (int64_t i = first; i < first + width; i++) {
            double w = dsv4_array_value(want, i), e = fabs(dsv4_array_value(got, i) - w);
            if (isnan(w) || !isfinite(w))
                continue;
            squares += w * w;
            errors += e * e;
            if (top > 0)
                *row = fmax(*row, fmax(factor * e - element * fabs(w), 0) / top);
        }
    }
    if (squares > 0)
        *rms = fmax(*rms, sqrt(errors / squares));
}

/* One correct engine; its answer, and the hash of its choices. */
static int run(const dsv4_case *c, dsv4_tier tier, uint64_t seed, bool flips_matter,
               dsv4_case *answer, uint64_t *choices, dsv4_error *err)
{
    museum_engine engine = {.arithmetic = tier == DSV4_TIER_BF16 ? MUSEUM_BF16 : MUSEUM_BINARY32,
                            .seed = seed};
    /* Noise of 2^-16 is 128 units of binary32, far more than a sum of thousands is off by: flips become so
     * much more frequent, and a few dozen engines meet those that matter. A layer has thousands of
     * roundings, of which some flip anyway: 2^-19. */
    bool layer = c->op->in[0].name != NULL && dsv4_case_in(c, "calls") != NULL &&
                 strcmp(c->op->chapter, "compressor") != 0;
    if (c->numerics == DSV4_RELEASED && flips_matter)
        engine.jitter = layer ? 0x1p-19 : 0x1p-16;
    *answer = (dsv4_case){.op = c->op, .numerics = c->numerics};
    int result = museum_run(&engine, c, answer, choices, err);
    if (result > 0)
        return dsv4_fail(err, "%s: the museum does not offer it", c->op->name);
    return result;
}

static const dsv4_slot *slot_of(const dsv4_operator *op, const char *name)
{
    for (const dsv4_slot *slot = op->out; slot->name != NULL; slot++)
        if (strcmp(slot->name, name) == 0)
            return slot;
    return NULL;
}

static bool has_flag(const dsv4_case *c, const char *flag)
{
    size_t length = strlen(flag);
    for (const char *at = c->flags; (at = strstr(at, flag)) != NULL; at += length)
        if ((at == c->flags || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    return false;
}

/* Compares an engine's answer with the case; `row` and `rms` [outs] grow. `a` [outs]. */
static int compare(const dsv4_case *c, const dsv4_case *answer, const allowance *a, double *row,
                   double *rms, dsv4_error *err)
{
    for (int o = 0; o < c->outs; o++) {
        const dsv4_array *got = dsv4_case_out(answer, c->out[o].name);
        if (got == NULL || got->count != c->out[o].count)
            return dsv4_fail(err, "%s/%s: the museum's %s has another shape", c->op->name, c->name,
                             c->out[o].name);
        if (slot_of(c->op, c->out[o].name)->kind == DSV4_SLOT_VALUES)
            deviation(&c->out[o], got, a[o].factor, a[o].element, &row[o], &rms[o]);
    }
    return 0;
}

static int measure_tier(dsv4_case *c, dsv4_tier tier, uint64_t choices, bool *agree,
                        dsv4_error *err)
{
    int64_t values = 0;
    for (int o = 0; o < c->outs; o++)
        values += c->out[o].count;
    bool large = values >= LARGE || has_flag(c, "real-size") || c->checkpoint[0] != '\0';
    int engines = large ? ENGINES_LARGE : ENGINES;
    bool free_choice = has_flag(c, "free-choice") ||
                       (has_flag(c, "free-choice-bf16") &&
                        (tier == DSV4_TIER_BF16 || c->numerics == DSV4_RELEASED));
    allowance *a = dsv4_alloc((size_t)c->outs, sizeof *a);
    bool bf16_inside = false; /* where no output is bf16, nothing may be rounded to it on the way */
    for (int o = 0; o < c->outs; o++) {
        a[o] = allowance_of(c, &c->out[o], tier);
        bf16_inside = bf16_inside ||
                      (c->out[o].format != DSV4_FORMAT_I64 && is_bf16(&c->out[o]));
    }
    bf16_inside = bf16_inside || strcmp(c->op->chapter, "head") == 0 ||
                  strcmp(c->op->chapter, "mtp") == 0 || strcmp(c->op->chapter, "forward") == 0;
    /* Flips are frequent with jitter: twice the most that was seen is enough. */
    for (int o = 0; o < c->outs && c->numerics == DSV4_RELEASED && bf16_inside; o++)
        a[o].factor = fmin(a[o].factor, tier == DSV4_TIER_BF16 ? 3 : 2);
    double *row = dsv4_alloc((size_t)c->outs, sizeof *row);
    double *rms = dsv4_alloc((size_t)c->outs, sizeof *rms);
    int result = 0;
    for (int i = 0; i < engines && result == 0 && *agree; i++) {
        dsv4_case answer;
        uint64_t chosen;
        result = run(c, tier, (uint64_t)(1000 + i), bf16_inside, &answer, &chosen, err);
        *agree = result == 0 && (chosen == choices || free_choice);
        if (result == 0 && *agree)
            result = compare(c, &answer, a, row, rms, err);
        dsv4_case_free(&answer);
    }
    for (int o = 0; o < c->outs; o++)
        c->tolerance[o][tier] = (dsv4_tolerance){
            .row = fmax(a[o].row, power_of_two_above(row[o])), .element = a[o].element,
            .rms = fmax(power_of_two_above(a[o].rms), power_of_two_above(a[o].factor * rms[o]))};
    free(a);
    free(row);
    free(rms);
    return result;
}

/* The second opinion: the museum, without a bug and in binary64, computes what ref/ does: in exact to
 * rounding, and in released, where single roundings flip, as well as other engines. */
static int second_opinion(const dsv4_case *c, uint64_t *choices, double *rms, dsv4_error *err)
{
    const museum_engine engine = {.arithmetic = MUSEUM_BINARY64};
    dsv4_case answer = {.op = c->op, .numerics = c->numerics};
    allowance *none = dsv4_alloc((size_t)c->outs, sizeof *none);
    double *row = dsv4_alloc((size_t)c->outs, sizeof *row);
    for (int o = 0; o < c->outs; o++)
        none[o].factor = 1;
    int result = museum_run(&engine, c, &answer, choices, err);
    if (result > 0)
        result = dsv4_fail(err, "%s: the museum does not offer it", c->op->name);
    if (result == 0)
        result = compare(c, &answer, none, row, rms, err);
    dsv4_case_free(&answer);
    free(none);
    free(row);
    return result;
}

int gen_measure(dsv4_case *c, bool *agree, dsv4_error *err)
{
    uint64_t choices;
    double *rms = dsv4_alloc((size_t)c->outs, sizeof *rms);
    c->tolerance = dsv4_alloc((size_t)c->outs, sizeof *c->tolerance);
    *agree = true;
    int result = second_opinion(c, &choices, rms, err);
    for (int tier = 0; tier < DSV4_TIERS && *agree && result == 0; tier++)
        result = measure_tier(c, (dsv4_tier)tier, choices, agree, err);
    for (int o = 0; o < c->outs && result == 0 && *agree; o++) {
        double bound = c->numerics == DSV4_EXACT ? 1e-11 : c->tolerance[o][DSV4_TIER_FP32].rms;
        if (!(rms[o] <= bound))
            result = dsv4_fail(err, "%s/%s: %s: ref and the museum differ by %g (rms), expected at "
                               "most %g", c->op->name, c->name, c->out[o].name, rms[o], bound);
    }
    free(rms);
    return result;
}
