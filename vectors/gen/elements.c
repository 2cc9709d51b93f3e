/* Cases of the number formats, linear maps, norms, rotations, Hadamard, embedding and Muon. */
#include "gen.h"

#include <math.h>

/* ---- number formats ---- */

static void all_e4m3(gen *g)
{
    uint8_t *codes = gen_codes(g, "codes", DSV4_FORMAT_E4M3, GEN_DIMS(254));
    for (int code = 0; code < 256; code++)
        if ((code & 127) != 127)
            *codes++ = (uint8_t)code;
}

static void all_e2m1(gen *g)
{
    uint8_t *codes = gen_codes(g, "codes", DSV4_FORMAT_E2M1, GEN_DIMS(256));
    for (int code = 0; code < 256; code++)
        codes[code] = (uint8_t)code;
}

/* 2^-60 .. 2^60: what survives in every format that an engine may use behind it. */
static void e8m0_range(gen *g)
{
    uint8_t *codes = gen_codes(g, "codes", DSV4_FORMAT_E8M0, GEN_DIMS(121));
    for (int i = 0; i < 121; i++)
        codes[i] = (uint8_t)(127 - 60 + i);
}

/* Every number that the format can hold between 2^low and 2^high, the middle to the next, and the
 * middle's neighbours in bf16: `bits` bits behind the leading one. */
static void ties(gen *g, int bits, int low, int high, double smallest)
{
    int64_t steps = (int64_t)(high - low) << bits, below = (int64_t)(ldexp(1, low) / smallest);
    float *x = gen_floats(g, "x", DSV4_FORMAT_BF16, GEN_DIMS(2 * 4 * (steps + below) + 6));
    for (int sign = 1; sign >= -1; sign -= 2) {
        for (int64_t i = 0; i < steps + below; i++) {
            double unit = smallest, value = (double)i * smallest;
            if (i >= below) {
                int64_t step = i - below;
                int exponent = low + (int)(step >> bits);
                unit = ldexp(1, exponent - bits);
                value = ldexp(1, exponent) + (double)(step & ((INT64_C(1) << bits) - 1)) * unit;
            }
            double middle = value + unit / 2;
            *x++ = (float)(sign * value);
            *x++ = (float)(sign * middle);
            *x++ = (float)(sign * gen_to_bf16(middle * (1 + 0x1p-7)));
            *x++ = (float)(sign * gen_to_bf16(middle * (1 - 0x1p-7)));
        }
    }
    const double far = ldexp(1, high);
    const double outside[6] = {1.5 * far, 1.75 * far, 1.875 * far, 2 * far, 1000 * far, -3 * far};
    for (int i = 0; i < 6; i++)
        *x++ = (float)outside[i];
}

static void e4m3_ties(gen *g)
{
    ties(g, 3, -6, 8, 0x1p-9);
}

static void e2m1_ties(gen *g)
{
    ties(g, 1, 0, 2, 0.5);
}

/* ---- QDQ: n = rows, width, block ---- */

/* Rows of normal numbers whose blocks have sizes of their own, so that a scale of the wrong block shows:
 * first a zero row, one below every floor, and one whose largest values are powers of two times the
 * format's largest. */
static void blocks(gen *g, const char *name, int64_t rows, int64_t width, int64_t block, double top)
{
    float *x = gen_floats(g, name, DSV4_FORMAT_BF16, GEN_DIMS(rows, width));
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < width; i++) {
            double size = ldexp(1, (int)((t * 3 + i / block * 5) % 11) - 5);
            double value = gen_normal(g) * size;
            if (t == 0)
                value = 0;
            else if (t == 1)
                value = gen_normal(g) * 0x1p-30;
            else if (t == 2 && i % block == 3)
                value = top * size;
            else if (t == 2)
                value = fmin(fabs(value), top * size / 2);
            x[t * width + i] = (float)gen_to_bf16(value);
        }
}

static void act(gen *g)
{
    gen_set(g, "block", (double)g->plan->n[2]);
    blocks(g, "x", g->plan->n[0], g->plan->n[1], g->plan->n[2], 448);
}

static void kv(gen *g)
{
    gen_set(g, "qk_rope_head_dim", (double)g->plan->n[2]);
    blocks(g, "x", g->plan->n[0], g->plan->n[1], 64, 448);
}

static void index_vector(gen *g)
{
    blocks(g, "x", g->plan->n[0], g->plan->n[1], 32, 6);
}

/* ---- linear: n = T, in, out, groups ---- */

static void linear(gen *g, gen_weight kind)
{
    const int64_t *n = g->plan->n;
    gen_values(g, "x", GEN_DIMS(n[0], n[1]), 0, 1);
    if (n[3] != 0)
        gen_matrix_recipe(g, "w", kind, n[2], n[1]);
    else
        gen_matrix(g, "w", kind, n[2], n[1], 1);
}

static void linear_fp8(gen *g) { linear(g, FP8); }
static void linear_fp4(gen *g) { linear(g, FP4); }
static void linear_plain(gen *g) { linear(g, PLAIN); }

/* Released: weights of binary32, which a bf16 linear has to round. */
static void linear_wide(gen *g)
{
    const int64_t *n = g->plan->n;
    gen_values(g, "x", GEN_DIMS(n[0], n[1]), 0, 1);
    gen_values_f32(g, "w.weight", GEN_DIMS(n[2], n[1]), 0, 1 / sqrt((double)n[1]));
}

static void linear_grouped(gen *g)
{
    const int64_t *n = g->plan->n;
    gen_set(g, "o_groups", (double)n[3]);
    gen_values(g, "x", GEN_DIMS(n[0], n[3], n[1]), 0, 1);
    if (n[4] != 0)
        gen_matrix_recipe(g, "w", FP8, n[3] * n[2], n[1]);
    else
        gen_quantised(g, "w", FP8, n[3] * n[2], n[1], 1);
}

/* ---- rmsnorm: n = T, width, H; x = eps, gain, offset ---- */

static void rmsnorm(gen *g)
{
    const int64_t *n = g->plan->n;
    gen_set(g, "rms_norm_eps", g->plan->x[0]);
    float *x = gen_values(g, "x", GEN_DIMS(n[0], n[1]), g->plan->x[2], g->plan->x[1]);
    for (int64_t i = 0; i < n[0] * n[1]; i++) /* rows of other sizes: down to where eps decides */
        x[i] = (float)ldexp(x[i], -(int)(i / n[1] % 4) * 3);
    gen_values(g, "weight", GEN_DIMS(n[1]), 1, 0.3);
}

static void rmsnorm_head(gen *g)
{
    const int64_t *n = g->plan->n;
    gen_set(g, "rms_norm_eps", g->plan->x[0]);
    float *x = gen_values(g, "x", GEN_DIMS(n[0], n[2], n[1]), 0, g->plan->x[1]);
    for (int64_t i = 0; i < n[0] * n[2] * n[1]; i++)
        x[i] = (float)ldexp(x[i], -(int)(i / n[1] % 3) * 2);
}

/* ---- rope: n = T, width, R, compressed, small; positions from n[5] on, or far ones ---- */

static void rope_parameters(gen *g)
{
    const int64_t *n = g->plan->n;
    if (n[4] != 0)
        gen_rope_small(g, n[2], n[3] != 0);
    else
        gen_rope(g, n[2], n[3] != 0);
}

static void frequencies(gen *g)
{
    rope_parameters(g);
    if (g->plan->n[5] == 1)
        gen_set(g, "factor", 0); /* no rope_scaling */
    if (g->plan->n[5] == 3) /* hi falls behind the last pair */
        gen_set(g, "compress_rope_theta", 10000);
    if (g->plan->n[5] == 2) { /* lo = hi: the ramp's span of 0 becomes 0.001 */
        gen_set(g, "beta_fast", 1);
        gen_set(g, "beta_slow", 1);
        gen_set(g, "original_max_position_embeddings", 6);
    }
}

static void rope(gen *g)
{
    static const int64_t far[] = {65535, 65536, 1048575};
    const int64_t *n = g->plan->n;
    rope_parameters(g);
    gen_values(g, "x", GEN_DIMS(n[0], n[1]), 0, 1);
    int64_t *positions = gen_indices(g, "positions", GEN_DIMS(n[0]));
    for (int64_t t = 0; t < n[0]; t++)
        positions[t] = n[5] < 0 ? far[-n[5] - 1 + t] : n[5] + t;
}

/* ---- hadamard, embed, muon ---- */

static void hadamard(gen *g)
{
    gen_values(g, "x", GEN_DIMS(g->plan->n[0], g->plan->n[1]), 0, 1);
}

static void embed(gen *g) /* n = T, D, streams, V */
{
    const int64_t *n = g->plan->n;
    gen_set(g, "hc_mult", (double)n[2]);
    int64_t *ids = gen_indices(g, "token_ids", GEN_DIMS(n[0]));
    for (int64_t t = 0; t < n[0]; t++)
        ids[t] = t == 0 ? 0 : t == 1 ? n[3] - 1 : gen_below(g, n[3]);
    gen_values(g, "embed.weight", GEN_DIMS(n[3], n[1]), 0, 1);
}

static void muon(gen *g) /* n = rows, cols */
{
    const int64_t *n = g->plan->n;
    gen_set(g, "momentum", 0.95);
    gen_set(g, "learning_rate", g->plan->x[0]);
    gen_set(g, "weight_decay", 0.1);
    gen_set(g, "rescale", 0.18);
    gen_values(g, "G", GEN_DIMS(n[0], n[1]), 0, 1);
    gen_values(g, "B", GEN_DIMS(n[0], n[1]), 0, 4);
    gen_values(g, "M", GEN_DIMS(n[0], n[1]), 0, 1);
}

const gen_plan gen_elements[] = {
    {"quant_e4m3_decode", "all-codes", "", "all codes but the two NaN", BOTH, all_e4m3, {0}, {0}},
    {"quant_e4m3_encode", "ties", "seam tie", "every value, every middle between two, and the "
     "middles' neighbours; beyond the largest", BOTH, e4m3_ties, {0}, {0}},
    {"quant_e2m1_decode", "all-codes", "", "all bytes of two codes", BOTH, all_e2m1, {0}, {0}},
    {"quant_e2m1_encode", "ties", "seam tie", "every value, every middle between two, and the "
     "middles' neighbours; beyond the largest", BOTH, e2m1_ties, {0}, {0}},
    {"quant_e8m0_decode", "range", "", "2^-60 to 2^60", BOTH, e8m0_range, {0}, {0}},
    {"quant_act", "linear-input", "seam", "blocks of 128, as before an FP8 or FP4 product; a zero "
     "row, one below the floor, one at the largest code", RELEASED, act, {8, 384, 128}, {0}},
    {"quant_act", "blocks-of-64", "seam", "blocks of 64, as in KV entries", RELEASED, act,
     {8, 192, 64}, {0}},
    {"quant_kv", "tiny", "", "two blocks of 64 and a rotary part of 64", RELEASED, kv,
     {8, 192, 64}, {0}},
    {"quant_kv", "real", "real-size", "d 512, R 64: seven blocks", RELEASED, kv, {6, 512, 64}, {0}},
    {"quant_index", "tiny", "", "one block of 32", RELEASED, index_vector, {8, 32}, {0}},
    {"quant_index", "real", "real-size", "d_i 128: four blocks", RELEASED, index_vector, {8, 128},
     {0}},

    {"linear_fp8", "one-block", "", "one block of 128 x 128", BOTH, linear_fp8, {3, 128, 128}, {0}},
    {"linear_fp8", "blocks", "", "scales of 2 x 3 blocks that differ", BOTH, linear_fp8,
     {4, 384, 256}, {0}},
    {"linear_fp8", "short-block", "seam", "129 rows: the last block has one row", BOTH, linear_fp8,
     {1, 256, 129}, {0}},
    {"linear_fp8", "ragged", "seam", "neither side a multiple of 128; only plain products can have "
     "such an input", EXACT, linear_fp8, {2, 200, 70}, {0}},
    {"linear_fp8", "real-wq-a", "real-size recipe", "wq_a of Flash: 4096 to 1024", BOTH, linear_fp8,
     {2, 4096, 1024, 1}, {0}},
    {"linear_fp4", "one-block", "", "four scales in a row, one block of inputs", BOTH, linear_fp4,
     {3, 128, 64}, {0}},
    {"linear_fp4", "blocks", "", "three blocks of inputs, twelve scales in a row", BOTH, linear_fp4,
     {4, 384, 96}, {0}},
    {"linear_fp4", "real-w1", "real-size recipe", "w1 of a Flash expert: 4096 to 2048", BOTH,
     linear_fp4, {1, 4096, 2048, 1}, {0}},
    {"linear_fp4", "real-w2", "real-size recipe", "w2 of a Flash expert: 2048 to 4096", BOTH,
     linear_fp4, {1, 2048, 4096, 1}, {0}},
    {"linear_plain", "tiny", "", "weights of bf16", BOTH, linear_plain, {3, 48, 20}, {0}},
    {"linear_plain", "square", "", "a square matrix, whose transpose fits too", BOTH, linear_plain,
     {3, 64, 64}, {0}},
    {"linear_plain", "binary32-weights", "", "weights of binary32: released rounds them to bf16",
     RELEASED, linear_wide, {3, 64, 40}, {0}},
    {"linear_f32", "tiny", "", "binary32 weights are used as they are", BOTH, linear_wide,
     {3, 48, 20}, {0}},
    {"linear_f32", "real-gate", "real-size recipe", "the gate of Flash: 4096 to 256", BOTH,
     linear_plain, {2, 4096, 256, 1}, {0}},
    {"linear_grouped", "tiny", "", "two groups of three", BOTH, linear_grouped, {3, 128, 64, 2},
     {0}},
    {"linear_grouped", "four-groups", "", "four groups of 64 rows; FP8 blocks hold two of them",
     BOTH, linear_grouped, {2, 128, 64, 4}, {0}},
    {"linear_grouped", "real-width", "real-size recipe", "groups of 4096 values, as wo_a of Flash; "
     "two of its eight groups", BOTH, linear_grouped, {1, 4096, 1024, 2, 1}, {0}},

    {"rmsnorm", "one-value", "seam", "a width of 1", BOTH, rmsnorm, {4, 1}, {1e-6, 1}},
    {"rmsnorm", "width-127", "seam", "a width just below 128", BOTH, rmsnorm, {4, 127}, {1e-6, 1}},
    {"rmsnorm", "width-129", "seam", "a width just above 128", BOTH, rmsnorm, {4, 129}, {1e-6, 1}},
    {"rmsnorm", "offset", "", "values around 1: a norm that subtracts the mean differs", BOTH,
     rmsnorm, {4, 64}, {1e-6, 0.5, 1}},
    {"rmsnorm", "eps", "magnified", "an eps of 1e-2 beside rows from 1 down to 1/512", BOTH, rmsnorm,
     {8, 64}, {1e-2, 1}},
    {"rmsnorm", "real", "real-size", "4096 values, as attn_norm of Flash", BOTH, rmsnorm, {3, 4096},
     {1e-6, 1}},
    {"rmsnorm_head", "tiny", "", "heads of different sizes", BOTH, rmsnorm_head, {4, 16, 3},
     {1e-6, 1}},
    {"rmsnorm_head", "eps", "magnified", "an eps of 1e-2 beside small heads", BOTH, rmsnorm_head,
     {6, 32, 3}, {1e-2, 0.25}},
    {"rmsnorm_head", "real", "real-size", "heads of 512", BOTH, rmsnorm_head, {2, 512, 6},
     {1e-6, 1}},

    {"rope_frequencies", "swa", "", "SWA layers: rope_theta, no YaRN", BOTH, frequencies,
     {0, 0, 64, 0}, {0}},
    {"rope_frequencies", "compressed", "", "CSA and HCA layers: compress_rope_theta and YaRN", BOTH,
     frequencies, {0, 0, 64, 1}, {0}},
    {"rope_frequencies", "small-ramp", "", "four pairs, of which YaRN's ramp covers two", BOTH,
     frequencies, {0, 0, 8, 1, 1}, {0}},
    {"rope_frequencies", "no-scaling", "", "without rope_scaling the frequencies stay", BOTH,
     frequencies, {0, 0, 64, 1, 0, 1}, {0}},
    {"rope_frequencies", "ramp-beyond", "seam", "hi is 33 of 32 pairs: it is bounded by R - 1, not by "
     "the number of pairs", BOTH, frequencies, {0, 0, 64, 1, 0, 3}, {0}},
    {"rope_frequencies", "span-zero", "seam", "lo = hi: the span 0 becomes 0.001", BOTH, frequencies,
     {0, 0, 8, 1, 1, 2}, {0}},
    {"rope", "tiny-swa", "", "4 of 8 pairs rotate", BOTH, rope, {6, 16, 8, 0, 1, 0}, {0}},
    {"rope", "tiny-compressed", "", "the same with compress_rope_theta and YaRN", BOTH, rope,
     {6, 16, 8, 1, 1, 100}, {0}},
    {"rope", "all-rotary", "seam", "R = d: nothing stays", BOTH, rope, {3, 64, 64, 0, 0, 5}, {0}},
    {"rope", "real-swa", "real-size", "d 512, R 64, from position 126 over 128", BOTH, rope,
     {5, 512, 64, 0, 0, 126}, {0}},
    {"rope", "far-swa", "far seam", "positions 65,535 and 65,536", BOTH, rope,
     {2, 128, 64, 0, 0, -1}, {0}},
    {"rope", "million-swa", "far seam", "position 1,048,575: in exact, binary32 angles are off "
     "by hundredths", BOTH, rope, {1, 128, 64, 0, 0, -3}, {0}},
    {"rope", "far-compressed", "far seam", "positions 65,535 and 65,536, with YaRN", BOTH, rope,
     {2, 128, 64, 1, 0, -1}, {0}},
    {"rope", "million-compressed", "far seam", "position 1,048,575, with YaRN: in exact, binary32 angles are off "
     "by hundredths", BOTH, rope, {1, 128, 64, 1, 0, -3}, {0}},
    {"rope_inverse", "tiny-swa", "", "back by the same angle", BOTH, rope, {6, 16, 8, 0, 1, 0},
     {0}},
    {"rope_inverse", "tiny-compressed", "", "the same with YaRN", BOTH, rope,
     {6, 16, 8, 1, 1, 100}, {0}},
    {"rope_inverse", "real-compressed", "real-size", "d 512, R 64", BOTH, rope,
     {4, 512, 64, 1, 0, 1000}, {0}},
    {"rope_inverse", "far-compressed", "far seam", "positions 65,535 and 65,536, with YaRN", BOTH, rope,
     {2, 128, 64, 1, 0, -1}, {0}},
    {"rope_inverse", "million-compressed", "far seam", "position 1,048,575, with YaRN: in exact, binary32 angles are off "
     "by hundredths", BOTH, rope, {1, 128, 64, 1, 0, -3}, {0}},

    {"hadamard", "width-2", "seam", "the smallest transform", BOTH, hadamard, {3, 2}, {0}},
    {"hadamard", "width-16", "", "", BOTH, hadamard, {4, 16}, {0}},
    {"hadamard", "real", "real-size", "d_i 128", BOTH, hadamard, {6, 128}, {0}},
    {"embed", "four-streams", "", "ids 0 and V - 1 among them", BOTH, embed, {5, 12, 4, 9}, {0}},
    {"embed", "one-stream", "seam", "hc_mult 1", BOTH, embed, {3, 8, 1, 5}, {0}},

    {"muon", "wide", "", "fewer rows than columns", EXACT, muon, {12, 30}, {0.02}},
    {"muon", "tall", "", "more rows than columns: orthogonalised on the transpose", EXACT, muon,
     {30, 12}, {0.02}},
    {"muon", "square", "seam", "as many rows as columns", EXACT, muon, {16, 16}, {0.02}},
    {"muon", "large-step", "magnified", "a learning rate of 1 shows the decay and the scale", EXACT,
     muon, {8, 24}, {1}},
    {"muon", "one-row", "seam", "a single row: O is U / |U|", EXACT, muon, {1, 9}, {0.5}},
    {0},
};
