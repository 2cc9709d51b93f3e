#include "gen.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/ref.h"

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t gen_bits(gen *g)
{
    return mix(g->random.key + ++g->random.count * 0x9e3779b97f4a7c15u);
}

int64_t gen_below(gen *g, int64_t n)
{
    return (int64_t)(gen_bits(g) % (uint64_t)n);
}

/* The sum of four uniform numbers: no library's log or cos decides a last bit. */
double gen_normal(gen *g)
{
    uint64_t a = gen_bits(g), b = gen_bits(g);
    uint64_t sum = (a >> 32) + (a & 0xffffffffu) + (b >> 32) + (b & 0xffffffffu);
    return ((double)sum - 2 * 4294967295.0) / 4294967296.0 * 1.7320508075688772;
}

double gen_to_bf16(double x)
{
    float single = (float)x;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u; /* ties to even; no infinities here */
    memcpy(&single, &bits, sizeof bits);
    return single;
}

bool gen_released(const gen *g)
{
    return g->c->numerics == DSV4_RELEASED;
}

void gen_set(gen *g, const char *param, double value)
{
    dsv4_case_set(g->c, param, value);
}

static void *add(gen *g, const char *name, dsv4_format format, const int64_t *dims)
{
    int rank = 0;
    while (dims[rank] != 0)
        rank++;
    return dsv4_case_add_in(g->c, name, format, rank, dims)->data;
}

static int64_t product(const int64_t *dims)
{
    int64_t count = 1;
    for (; *dims != 0; dims++)
        count *= *dims;
    return count;
}

float *gen_floats(gen *g, const char *name, dsv4_format format, const int64_t *dims)
{
    return add(g, name, format, dims);
}

int64_t *gen_indices(gen *g, const char *name, const int64_t *dims)
{
    return add(g, name, DSV4_FORMAT_I64, dims);
}

uint8_t *gen_codes(gen *g, const char *name, dsv4_format format, const int64_t *dims)
{
    return add(g, name, format, dims);
}

float *gen_values(gen *g, const char *name, const int64_t *dims, double offset, double gain)
{
    float *x = gen_floats(g, name, DSV4_FORMAT_BF16, dims);
    for (int64_t i = 0; i < product(dims); i++)
        x[i] = (float)gen_to_bf16(offset + gain * gen_normal(g));
    return x;
}

float *gen_values_f32(gen *g, const char *name, const int64_t *dims, double offset, double gain)
{
    if (!gen_released(g))
        return gen_values(g, name, dims, offset, gain);
    float *x = gen_floats(g, name, DSV4_FORMAT_F32, dims);
    for (int64_t i = 0; i < product(dims); i++)
        x[i] = (float)(offset + gain * gen_normal(g));
    return x;
}

void gen_range(gen *g, const char *name, int64_t count, int64_t first)
{
    int64_t *x = gen_indices(g, name, GEN_DIMS(count));
    for (int64_t i = 0; i < count; i++)
        x[i] = first + i;
}

static int exponent_of(double x)
{
    int exponent;
    frexp(x, &exponent);
    return exponent;
}

typedef struct { char weight[DSV4_NAME], scale[DSV4_NAME]; } matrix_names;

static matrix_names names_of(const char *name)
{
    matrix_names names;
    snprintf(names.weight, sizeof names.weight, "%.50s.weight", name);
    snprintf(names.scale, sizeof names.scale, "%.50s.scale", name);
    return names;
}

/* Codes that are likely near zero, as those of trained weights: the exponent field counts the leading
 * zeros of random bits downwards from the top. */
static uint8_t e4m3_code(gen *g)
{
    uint64_t bits = gen_bits(g);
    int exponent = 15;
    for (uint64_t b = bits >> 16; exponent > 0 && (b & 3) != 0; b >>= 2)
        exponent--;
    unsigned code = (unsigned)(exponent << 3) | (bits & 7);
    if (code == 0x7f)
        code = 0x7e;
    return (uint8_t)(code | (bits >> 8 & 1) << 7);
}

void gen_matrix(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols, double gain)
{
    matrix_names names = names_of(name);
    double each = gain / sqrt((double)cols);
    if (kind == PLAIN) {
        gen_values(g, names.weight, GEN_DIMS(rows, cols), 0, each);
        return;
    }
    int64_t high = kind == FP8 ? 128 : 1, wide = kind == FP8 ? 128 : 32;
    uint8_t *codes = gen_codes(g, names.weight, kind == FP8 ? DSV4_FORMAT_E4M3 : DSV4_FORMAT_E2M1,
                               GEN_DIMS(rows, kind == FP8 ? cols : cols / 2));
    for (int64_t i = 0; i < rows * cols / (kind == FP8 ? 1 : 2); i++)
        codes[i] = kind == FP8 ? e4m3_code(g) : (uint8_t)gen_bits(g);
    int64_t down = (rows + high - 1) / high, across = (cols + wide - 1) / wide;
    uint8_t *scales = gen_codes(g, names.scale, DSV4_FORMAT_E8M0, GEN_DIMS(down, across));
    /* Codes have a root mean square of about 190 and 3; neighbouring scales differ. */
    int exponent = exponent_of(each) - (kind == FP8 ? 9 : 3);
    for (int64_t i = 0; i < down * across; i++)
        scales[i] = (uint8_t)(127 + exponent + (i / across + i % across * 2) % 3);
}

static void by_recipe(gen *g, const char *name, dsv4_format format, const int64_t *dims)
{
    add(g, name, format, dims);
    dsv4_array *array = &g->c->in[g->c->ins - 1];
    strcpy(array->recipe, "splitmix64");
    array->recipe_seed = gen_bits(g) >> 1;
    dsv4_recipe_fill(array);
}

void gen_matrix_recipe(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols)
{
    matrix_names names = names_of(name);
    if (kind == PLAIN) {
        by_recipe(g, names.weight, DSV4_FORMAT_BF16, GEN_DIMS(rows, cols));
    } else if (kind == FP8) {
        by_recipe(g, names.weight, DSV4_FORMAT_E4M3, GEN_DIMS(rows, cols));
        by_recipe(g, names.scale, DSV4_FORMAT_E8M0,
                  GEN_DIMS((rows + 127) / 128, (cols + 127) / 128));
    } else {
        by_recipe(g, names.weight, DSV4_FORMAT_E2M1, GEN_DIMS(rows, cols / 2));
        by_recipe(g, names.scale, DSV4_FORMAT_E8M0, GEN_DIMS(rows, cols / 32));
    }
}

/* What is larger than this need not be stored. A recipe's values have sizes of their own (bf16 0.6, FP8
 * 0.002 in all), so smaller matrices are made by it only where a norm follows. */
enum { STORED = 32768, STORED_BEFORE_NORM = 8192 };

void gen_quantised(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols,
                   double gain)
{
    if (rows * cols > STORED)
        gen_matrix_recipe(g, name, gen_released(g) ? kind : PLAIN, rows, cols);
    else
        gen_matrix(g, name, gen_released(g) ? kind : PLAIN, rows, cols, gain);
}

void gen_before_norm(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols)
{
    gen_weight used = gen_released(g) ? kind : PLAIN;
    if (rows * cols > STORED_BEFORE_NORM)
        gen_matrix_recipe(g, name, used, rows, cols);
    else
        gen_matrix(g, name, used, rows, cols, 1);
}

/* An output whose values are all binary32 numbers is stored as such. */
static void narrow(dsv4_array *out)
{
    if (out->format != DSV4_FORMAT_F64)
        return;
    const double *wide = out->data;
    for (int64_t i = 0; i < out->count; i++)
        if (!isnan(wide[i]) && (double)(float)wide[i] != wide[i])
            return;
    float *values = dsv4_alloc((size_t)out->count, sizeof *values);
    for (int64_t i = 0; i < out->count; i++)
        values[i] = (float)wide[i];
    free(out->data);
    out->data = values;
    out->format = DSV4_FORMAT_F32;
}

void gen_rope(gen *g, int64_t R, bool compressed)
{
    gen_set(g, "qk_rope_head_dim", (double)R);
    gen_set(g, "rope_theta", 10000);
    gen_set(g, "compress_rope_theta", 160000);
    gen_set(g, "compressed", compressed);
    gen_set(g, "factor", 16);
    gen_set(g, "original_max_position_embeddings", 65536);
    gen_set(g, "beta_fast", 32);
    gen_set(g, "beta_slow", 1);
}

void gen_rope_small(gen *g, int64_t R, bool compressed)
{
    gen_rope(g, R, compressed);
    gen_set(g, "factor", 4);
    gen_set(g, "original_max_position_embeddings", 256);
    gen_set(g, "beta_fast", 16);
}

void gen_schedule(gen *g, const gen_run *runs)
{
    int64_t rows = 0, calls = 0;
    for (const gen_run *run = runs; run->rows > 0; run++) {
        rows += run->rows;
        calls += run == runs || run->call;
    }
    int64_t *sequence = gen_indices(g, "sequence", GEN_DIMS(rows));
    for (const gen_run *run = runs; run->rows > 0; run++)
        for (int64_t i = 0; i < run->rows; i++)
            *sequence++ = run->sequence;
    int64_t *call = gen_indices(g, "calls", GEN_DIMS(calls)) - 1;
    for (const gen_run *run = runs; run->rows > 0; run++) {
        call += run == runs || run->call;
        *call += run->rows;
    }
}

void gen_chunks(gen *g, int64_t rows, int64_t chunk)
{
    gen_run *runs = dsv4_alloc((size_t)(rows / chunk + 2), sizeof *runs);
    int64_t n = 0;
    for (int64_t at = 0; at < rows; at += chunk)
        runs[n++] = (gen_run){0, at + chunk < rows ? chunk : rows - at, true};
    gen_schedule(g, runs);
    free(runs);
}

/* Whether every row's choice is clear: a tie that the bf16 tier accepts would change the weights, which
 * are compared by expert. Cases of ties have equal weights. */
static bool clear_choice(const dsv4_case *c)
{
    const dsv4_array *score = dsv4_case_out(c, "biased"), *chosen = dsv4_case_out(c, "route_index");
    if (score == NULL || strstr(c->flags, "tie") != NULL)
        return true;
    int64_t E = score->shape[1], k = chosen->shape[1];
    for (int64_t t = 0; t < score->shape[0]; t++) {
        double top = 0, last = INFINITY, next = -INFINITY;
        for (int64_t e = 0; e < E; e++) {
            double s = dsv4_array_value(score, t * E + e);
            bool is_chosen = false;
            for (int64_t i = 0; i < k; i++)
                is_chosen = is_chosen || ((const int64_t *)chosen->data)[t * k + i] == e;
            top = fmax(top, fabs(s));
            last = is_chosen ? fmin(last, s) : last;
            next = is_chosen ? next : fmax(next, s);
        }
        if (!(last - next > 0x1p-6 * top))
            return false;
    }
    return true;
}

/* Seeds are tried until correct engines agree on every routing and selection. */
enum { ATTEMPTS = 400 };

int gen_case(const gen_plan *plan, dsv4_numerics numerics, const char *directory, dsv4_case *c,
             dsv4_error *err)
{
    for (uint64_t attempt = 0; attempt < ATTEMPTS; attempt++) {
        *c = (dsv4_case){.op = dsv4_operator_find(plan->op), .numerics = numerics};
        if (c->op == NULL)
            return dsv4_fail(err, "%s: no such operator", plan->op);
        snprintf(c->name, sizeof c->name, "%s-%s",
                 numerics == DSV4_EXACT ? "exact" : "released", plan->name);
        snprintf(c->reason, sizeof c->reason, "%s", plan->reason);
        snprintf(c->flags, sizeof c->flags, "%s", plan->flags);
        snprintf(c->directory, sizeof c->directory, "%s", directory);
        gen g = {.c = c, .plan = plan};
        g.random.key = mix(attempt + 1);
        for (const char *p = plan->op; *p != '\0'; p++)
            g.random.key = mix(g.random.key ^ (unsigned char)*p);
        for (const char *p = c->name; *p != '\0'; p++)
            g.random.key = mix(g.random.key ^ (unsigned char)*p);
        plan->build(&g);

        dsv4_case answer = {.op = c->op, .numerics = numerics};
        int result = ref_answer(NULL, c, &answer, err);
        if (result != 0) {
            dsv4_case_free(&answer);
            return result < 0 ? -1 : dsv4_fail(err, "%s: ref does not offer it", plan->op);
        }
        c->out = answer.out;
        c->outs = answer.outs;
        answer.out = NULL;
        answer.outs = 0;
        dsv4_case_free(&answer);
        for (int o = 0; o < c->outs; o++)
            narrow(&c->out[o]);
        if (dsv4_case_check(c, err) != 0)
            return -1;
        bool agree;
        if (gen_measure(c, &agree, err) != 0)
            return -1;
        if (agree && clear_choice(c))
            return 0;
        dsv4_case_free(c);
    }
    return dsv4_fail(err, "%s/%s: %d seeds, and correct engines always choose differently",
                     plan->op, plan->name, ATTEMPTS);
}
