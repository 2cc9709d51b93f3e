/* Cases of compressor, indexer, core attention and attention whole. */
#include "layers.h"

#include <math.h>
#include <stdlib.h>

/* ---- sizes ---- */

const gen_geometry gen_tiny = {.D = 32, .H = 4, .d = 16, .R = 8, .Q = 16, .g = 2, .o = 8,
                               .n_i = 8, .d_i = 8, .E = 4, .k = 2, .I = 24, .n = 4, .V = 21};
/* The smallest that released takes: 128 before every FP8 and FP4 product, R 64. */
const gen_geometry gen_tiny_released = {.D = 128, .H = 2, .d = 128, .R = 64, .Q = 128, .g = 2,
                                        .o = 64, .n_i = 8, .d_i = 64, .E = 4, .k = 2, .I = 128,
                                        .n = 4, .V = 21};
const gen_geometry gen_real = {.D = 128, .H = 4, .d = 512, .R = 64, .Q = 128, .g = 2, .o = 64,
                               .n_i = 8, .d_i = 128, .E = 4, .k = 2, .I = 128, .n = 4, .V = 21};

const gen_geometry *gen_sizes(const gen *g)
{
    if (g->plan->n[0] == REAL)
        return &gen_real;
    return gen_released(g) ? &gen_tiny_released : &gen_tiny;
}

/* Where the compressor's weights come by recipe they are larger than others, and its input is smaller. */
double gen_input_gain(const gen_geometry *z)
{
    return z == &gen_tiny ? 1 : 0.125;
}

void gen_layer_rope(gen *g, const gen_geometry *z, bool compressed)
{
    if (z == &gen_tiny)
        gen_rope_small(g, z->R, compressed);
    else
        gen_rope(g, z->R, compressed);
}

/* ---- schedules ---- */

/* Rows of all schedules but FULL, CHUNKS and TAIL. */
static const gen_run packed[] = {
    {0, 9, true}, {1, 5, false}, {2, 13, false}, {0}};
static const gen_run interleaved[] = {
    {0, 5, true}, {1, 3, true}, {0, 4, true}, {1, 6, true}, {0, 1, true}, {1, 1, false},
    {0, 1, true}, {1, 1, false}, {2, 4, true}, {0, 2, true}, {2, 5, false}, {0}};
static const gen_run padded[] = { /* rectangles [2, 11], then [2, 1] three times, then [2, 4] */
    {-1, 3, true}, {0, 8, false}, {1, 11, false}, {0, 1, true}, {1, 1, false}, {0, 1, true},
    {1, 1, false}, {0, 1, true}, {1, 1, false}, {0, 4, true}, {1, 4, false}, {0}};

int64_t gen_schedule_rows(const gen *g)
{
    const gen_run *runs = g->plan->n[2] == PACKED ? packed
                          : g->plan->n[2] == INTERLEAVED ? interleaved : padded;
    int64_t rows = 0;
    if (g->plan->n[2] == FULL || g->plan->n[2] == CHUNKS || g->plan->n[2] == TAIL)
        return g->plan->n[3];
    for (; runs->rows > 0; runs++)
        rows += runs->rows * (g->plan->n[4] > 0 ? g->plan->n[4] : 1);
    return rows;
}

/* Runs are stretched by `factor`, so that long groups fill. */
static void stretched(gen *g, const gen_run *runs, int64_t factor)
{
    gen_run longer[24] = {{0}};
    for (int i = 0; runs[i].rows > 0; i++) {
        longer[i] = runs[i];
        longer[i].rows *= factor;
    }
    gen_schedule(g, longer);
}

void gen_plan_schedule(gen *g)
{
    const int64_t *n = g->plan->n;
    const int64_t factor = n[4] > 0 ? n[4] : 1;
    switch (n[2]) {
    case FULL:
        gen_chunks(g, n[3], n[3]);
        break;
    case CHUNKS:
        gen_chunks(g, n[3], n[4]);
        break;
    case TAIL: { /* a prompt, then token by token */
        gen_run *runs = dsv4_alloc((size_t)(n[3] - n[4] + 2), sizeof *runs);
        runs[0] = (gen_run){0, n[4], true};
        for (int64_t i = 1; i <= n[3] - n[4]; i++)
            runs[i] = (gen_run){0, 1, true};
        gen_schedule(g, runs);
        free(runs);
        break;
    }
    case PACKED: stretched(g, packed, factor); break;
    case INTERLEAVED: stretched(g, interleaved, factor); break;
    default:
        stretched(g, padded, factor);
        gen_set(g, "batch", 2);
    }
}

/* ---- compressor: n = geometry, ratio, schedule, rows, chunk, index ---- */

static void compressor_weights(gen *g, const char *prefix, int64_t ratio, int64_t d, int64_t D)
{
    char name[DSV4_NAME];
    int64_t width = ratio == 4 ? 2 * d : d;
    snprintf(name, sizeof name, "%sape", prefix);
    gen_values_f32(g, name, GEN_DIMS(ratio, width), 0, 1);
    snprintf(name, sizeof name, "%snorm.weight", prefix);
    gen_values(g, name, GEN_DIMS(d), 1, 0.2);
    snprintf(name, sizeof name, "%swkv", prefix);
    gen_before_norm(g, name, PLAIN, width, D);
    snprintf(name, sizeof name, "%swgate", prefix);
    gen_before_norm(g, name, PLAIN, width, D);
}

enum { WIDTH = 32 }; /* of the input: no quantisation asks for more */

static void compressor(gen *g)
{
    const gen_geometry *z = gen_sizes(g);
    const int64_t *n = g->plan->n;
    gen_set(g, "index", (double)n[5]);
    gen_set(g, "ratio", (double)n[1]);
    gen_set(g, "rms_norm_eps", 1e-6);
    gen_layer_rope(g, z, true);
    gen_values(g, "x", GEN_DIMS(gen_schedule_rows(g), WIDTH), 0, n[0] == REAL ? 0.25 : 1);
    gen_plan_schedule(g);
    compressor_weights(g, "", n[1], n[5] != 0 ? z->d_i : z->d, WIDTH);
}

static void entry(gen *g) /* n = geometry, ratio, -, groups: 0 the first, or far ones, -, index */
{
    static const int64_t far[6] = {1, 2, 16383, 16384, 262143, 262142};
    const gen_geometry *z = gen_sizes(g);
    const int64_t *n = g->plan->n;
    const int64_t d = n[5] != 0 ? z->d_i : z->d;
    gen_set(g, "index", (double)n[5]);
    gen_set(g, "ratio", (double)n[1]);
    gen_set(g, "rms_norm_eps", 1e-2);
    gen_layer_rope(g, z, true);
    gen_values(g, "pooled", GEN_DIMS((int64_t)6, d), 0.25, 0.5);
    int64_t *group = gen_indices(g, "group", GEN_DIMS((int64_t)6));
    for (int64_t i = 0; i < 6; i++)
        group[i] = n[3] == 0 ? i : far[i] * 4 / n[1];
    gen_values(g, "norm.weight", GEN_DIMS(d), 1, 0.3);
}

/* ---- indexer: n = geometry, heads, T, G ... ---- */

static void index_query(gen *g)
{
    static const int64_t far[5] = {0, 1, 65535, 65536, 1048575};
    const gen_geometry *z = gen_sizes(g);
    const int64_t *n = g->plan->n, heads = n[1], T = n[2];
    gen_set(g, "index_n_heads", (double)heads);
    gen_layer_rope(g, z, true);
    gen_values(g, "qr", GEN_DIMS(T, z->Q), 0, 1);
    int64_t *positions = gen_indices(g, "positions", GEN_DIMS(T));
    for (int64_t t = 0; t < T; t++)
        positions[t] = n[3] != 0 ? far[t] : 3 * t + 1;
    gen_quantised(g, "wq_b", FP8, heads * z->d_i, z->Q, 1);
}

static void index_weights(gen *g)
{
    const gen_geometry *z = gen_sizes(g);
    gen_set(g, "index_n_heads", (double)g->plan->n[1]);
    gen_set(g, "index_head_dim", (double)z->d_i);
    gen_values(g, "x", GEN_DIMS(g->plan->n[2], z->D), 0, 1);
    gen_matrix(g, "weights_proj", PLAIN, g->plan->n[1], z->D, 1);
}

/* Values of E2M1 times a scale, as queries and keys have after their QDQ. */
static void index_values(gen *g, const char *name, const int64_t *dims)
{
    static const float magnitude[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    float *x = gen_floats(g, name, DSV4_FORMAT_BF16, dims);
    int64_t count = g->c->in[g->c->ins - 1].count;
    double scale = 0.25;
    for (int64_t i = 0; i < count; i++) {
        if (i % 32 == 0)
            scale = ldexp(0.125, (int)gen_below(g, 3));
        uint64_t bits = gen_bits(g);
        x[i] = magnitude[bits & 7] * (float)(bits & 8 ? -scale : scale);
    }
}

static void index_score(gen *g) /* n = geometry, heads, T, G */
{
    const gen_geometry *z = gen_sizes(g);
    const int64_t *n = g->plan->n;
    index_values(g, "iq", GEN_DIMS(n[2], n[1], z->d_i));
    gen_values(g, "w", GEN_DIMS(n[2], n[1]), 0, 0.125);
    index_values(g, "keys", GEN_DIMS(n[3], z->d_i));
}

static void index_select(gen *g) /* n = topk, first position, T, G, ties */
{
    const int64_t *n = g->plan->n;
    gen_set(g, "index_topk", (double)n[0]);
    gen_set(g, "ratio", 4);
    float *score = gen_values(g, "score", GEN_DIMS(n[2], n[3]), 0, 1);
    for (int64_t t = 0; t < n[2]; t++)
        for (int64_t i = 0; i < n[3]; i++) {
            /* A row is a permutation of clearly different scores, or of a few values many times. */
            int64_t rank = (i * 7 + t * 5) % n[3];
            double value = n[4] != 0 ? (double)(rank % 3) - 1 : (double)rank - (double)n[3] / 2;
            score[t * n[3] + i] = (float)gen_to_bf16(n[3] > 256 ? score[t * n[3] + i] : value / 4);
        }
    gen_range(g, "positions", n[2], n[1]);
}

/* ---- core_attn: n = geometry, T, W, compressed slots, kind; x = sink, size of q ---- */

enum { CORE_ORDINARY, CORE_EMPTY, CORE_LARGE_LOGITS };

static void core(gen *g)
{
    const gen_geometry *z = gen_sizes(g);
    const int64_t *n = g->plan->n;
    const int64_t T = n[1], L = n[2] + n[3], M = L + 3;
    gen_values(g, "q", GEN_DIMS(T, z->H, z->d), 0, g->plan->x[1]);
    float *e = gen_values(g, "entries", GEN_DIMS(M, z->d), 0.25, 0.75);
    int64_t *list = gen_indices(g, "list", GEN_DIMS(T, L));
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < L; i++) {
            bool empty = n[4] == CORE_EMPTY && i < n[2] && i > t;
            list[t * L + i] = empty ? -1 : (i * 5 + t) % M;
        }
    gen_values_f32(g, "attn_sink", GEN_DIMS(z->H), g->plan->x[0], 0.75);
    for (int64_t i = 0; n[4] == CORE_LARGE_LOGITS && i < M * z->d; i++)
        e[i] = (float)ldexp(e[i], (int)(i / z->d % 4) - 1); /* the maximum grows from block to block */
}

/* ---- attention: n = geometry, ratio, schedule, rows, chunk, W, topk ---- */

void gen_attention_weights(gen *g, const gen_geometry *z, int64_t ratio)
{
    gen_values_f32(g, "attn.attn_sink", GEN_DIMS(z->H), 0.5, 0.75);
    gen_before_norm(g, "attn.wq_a", FP8, z->Q, z->D);
    gen_values(g, "attn.q_norm.weight", GEN_DIMS(z->Q), 1, 0.2);
    gen_before_norm(g, "attn.wq_b", FP8, z->H * z->d, z->Q);
    gen_before_norm(g, "attn.wkv", FP8, z->d, z->D);
    gen_values(g, "attn.kv_norm.weight", GEN_DIMS(z->d), 1, 0.2);
    gen_quantised(g, "attn.wo_a", FP8, z->g * z->o, z->H * z->d / z->g, 1);
    gen_quantised(g, "attn.wo_b", FP8, z->D, z->g * z->o, 1);
    if (ratio > 0)
        compressor_weights(g, "attn.compressor.", ratio, z->d, z->D);
    if (ratio == 4) {
        gen_before_norm(g, "attn.indexer.wq_b", FP8, z->n_i * z->d_i, z->Q);
        gen_matrix(g, "attn.indexer.weights_proj", PLAIN, z->n_i, z->D, 1);
        compressor_weights(g, "attn.indexer.compressor.", ratio, z->d_i, z->D);
    }
}

void gen_attention_parameters(gen *g, const gen_geometry *z, int64_t ratio, int64_t W, int64_t topk)
{
    gen_set(g, "sliding_window", (double)W);
    gen_set(g, "num_attention_heads", (double)z->H);
    gen_set(g, "o_groups", (double)z->g);
    gen_set(g, "ratio", (double)ratio);
    gen_set(g, "rms_norm_eps", 1e-6);
    gen_layer_rope(g, z, ratio > 0);
    if (topk > 0) {
        gen_set(g, "index_n_heads", (double)z->n_i);
        gen_set(g, "index_topk", (double)topk);
    }
}

static void attention(gen *g)
{
    const gen_geometry *z = gen_sizes(g);
    const int64_t *n = g->plan->n;
    gen_attention_parameters(g, z, n[1], n[5], n[6]);
    gen_values(g, "x", GEN_DIMS(gen_schedule_rows(g), z->D), 0, gen_input_gain(z));
    gen_plan_schedule(g);
    gen_attention_weights(g, z, n[1]);
}

static void output(gen *g) /* n = geometry, T, far */
{
    static const int64_t far[3] = {65535, 65536, 1048575};
    const gen_geometry *z = gen_sizes(g);
    const int64_t *n = g->plan->n;
    gen_set(g, "o_groups", (double)z->g);
    gen_layer_rope(g, z, true);
    gen_values(g, "core", GEN_DIMS(n[1], z->H, z->d), 0, 1);
    int64_t *positions = gen_indices(g, "positions", GEN_DIMS(n[1]));
    for (int64_t t = 0; t < n[1]; t++)
        positions[t] = n[2] != 0 ? far[t] : 7 * t;
    gen_quantised(g, "wo_a", FP8, z->g * z->o, z->H * z->d / z->g, 1);
    gen_quantised(g, "wo_b", FP8, z->D, z->g * z->o, 1);
}

const gen_plan gen_attention[] = {
    {"compressor_entry", "main-csa", "magnified", "first groups; an rms_norm_eps of 1e-2", BOTH, entry,
     {TINY, 4, 0, 0, 0, 0}, {0}},
    {"compressor_entry", "main-hca", "", "groups of 128 begin at multiples of 128", BOTH, entry,
     {REAL, 128, 0, 0, 0, 0}, {0}},
    {"compressor_entry", "index", "", "an indexer key: Hadamard, and in released FP4", BOTH, entry,
     {REAL, 4, 0, 0, 0, 1}, {0}},
    {"compressor_entry", "main-far", "far seam", "first tokens 65,532, 65,536 and 1,048,572", BOTH,
     entry, {REAL, 4, 0, 1, 0, 0}, {0}},
    {"compressor_entry", "index-far", "far seam", "the same for an indexer key", BOTH, entry,
     {REAL, 4, 0, 1, 0, 1}, {0}},

    {"compressor_csa", "one-group", "seam", "4 tokens: the group without a previous one", BOTH,
     compressor, {TINY, 4, FULL, 4, 0, 0}, {0}},
    {"compressor_csa", "ratio-plus-one", "seam", "5 tokens: the last belongs to no complete group",
     BOTH, compressor, {TINY, 4, FULL, 5, 0, 0}, {0}},
    {"compressor_csa", "four-groups", "seam", "19 tokens", BOTH, compressor, {TINY, 4, FULL, 19, 0, 0},
     {0}},
    {"compressor_csa", "token-by-token", "chunked seam", "calls of one token", BOTH, compressor,
     {TINY, 4, CHUNKS, 17, 1, 0}, {0}},
    {"compressor_csa", "chunks-of-3", "chunked seam", "calls of three tokens: groups straddle them",
     BOTH, compressor, {TINY, 4, CHUNKS, 17, 3, 0}, {0}},
    {"compressor_csa", "chunks-of-5", "chunked seam", "calls of five tokens", BOTH, compressor,
     {TINY, 4, CHUNKS, 21, 5, 0}, {0}},
    {"compressor_csa", "packed", "packed", "three sequences in one call", BOTH, compressor,
     {TINY, 4, PACKED, 0, 0, 0}, {0}},
    {"compressor_csa", "interleaved", "interleaved chunked", "three sequences by turns", BOTH,
     compressor, {TINY, 4, INTERLEAVED, 0, 0, 0}, {0}},
    {"compressor_csa", "left-padded", "padded chunked", "a batch of two, one with three rows of "
     "padding in front, then decoding", BOTH, compressor, {TINY, 4, PADDED, 0, 0, 0}, {0}},
    {"compressor_csa", "index", "chunked", "the indexer's: Hadamard, and in released FP4", BOTH,
     compressor, {TINY, 4, CHUNKS, 18, 7, 1}, {0}},
    {"compressor_csa", "real", "real-size", "d 512, R 64", BOTH, compressor,
     {REAL, 4, CHUNKS, 13, 6, 0}, {0}},
    {"compressor_csa", "real-index", "real-size", "d_i 128", BOTH, compressor,
     {REAL, 4, CHUNKS, 13, 6, 1}, {0}},
    {"compressor_hca", "ratio-128", "seam", "129 tokens: one group, and one token more", BOTH,
     compressor, {TINY, 128, FULL, 129, 0, 0}, {0}},
    {"compressor_hca", "two-groups", "chunked seam", "257 tokens in calls of 100", BOTH, compressor,
     {TINY, 128, CHUNKS, 257, 100, 0}, {0}},
    {"compressor_hca", "decoding", "chunked seam", "a prompt of 126 tokens, then token by token over "
     "the boundary", BOTH, compressor, {TINY, 128, TAIL, 130, 126, 0}, {0}},
    {"compressor_hca", "small-ratio", "chunked", "groups of 8 in calls of 5", BOTH, compressor,
     {TINY, 8, CHUNKS, 27, 5, 0}, {0}},
    {"compressor_hca", "packed", "packed", "three sequences in one call, groups of 5", BOTH,
     compressor, {TINY, 5, PACKED, 0, 0, 0}, {0}},
    {"compressor_hca", "interleaved", "interleaved chunked", "three sequences by turns, groups of 5",
     BOTH, compressor, {TINY, 5, INTERLEAVED, 0, 0, 0}, {0}},
    {"compressor_hca", "left-padded", "padded chunked", "a batch of two with padding, groups of 5",
     BOTH, compressor, {TINY, 5, PADDED, 0, 0, 0}, {0}},
    {"compressor_hca", "real", "real-size", "d 512, R 64, ratio 128", BOTH, compressor,
     {REAL, 128, FULL, 128, 0, 0}, {0}},

    {"indexer_query", "tiny", "", "", BOTH, index_query, {TINY, 8, 4}, {0}},
    {"indexer_query", "real", "real-size", "64 heads of 128", BOTH, index_query, {REAL, 64, 2}, {0}},
    {"indexer_query", "far", "far seam", "positions 0 to 1,048,575", BOTH, index_query,
     {REAL, 4, 5, 1}, {0}},
    {"indexer_weights", "tiny", "", "", BOTH, index_weights, {TINY, 8, 5}, {0}},
    {"indexer_weights", "real", "real-size", "64 heads of 128", BOTH, index_weights, {REAL, 64, 3},
     {0}},
    {"indexer_score", "tiny", "", "", BOTH, index_score, {TINY, 8, 4, 10}, {0}},
    {"indexer_score", "one-head", "seam tie", "one head: many scores are exactly 0", BOTH,
     index_score, {TINY, 1, 3, 9}, {0}},
    {"indexer_score", "real", "real-size", "64 heads of 128, 40 keys", BOTH, index_score,
     {REAL, 64, 2, 40}, {0}},
    {"indexer_select", "topk-minus-one", "seam", "3 entries and a top-k of 4: all are kept", BOTH,
     index_select, {4, 3, 10, 3}, {0}},
    {"indexer_select", "topk", "seam", "as many entries as the top-k", BOTH, index_select,
     {4, 0, 19, 4}, {0}},
    {"indexer_select", "topk-plus-one", "seam", "one more entry than the top-k", BOTH, index_select,
     {4, 12, 12, 5}, {0}},
    {"indexer_select", "causal", "seam", "the best scores are not visible yet", BOTH, index_select,
     {3, 1, 40, 10}, {0}},
    {"indexer_select", "ties", "tie free-choice", "three values many times: any of the equal may be taken", BOTH,
     index_select, {4, 20, 20, 10, 1}, {0}},
    {"indexer_select", "real", "real-size seam", "512 of 511, 512, 513 and 514 visible entries", BOTH,
     index_select, {512, 2043, 14, 514}, {0}},

    {"core_attn", "tiny", "", "a window of 8 and 3 compressed entries", BOTH, core,
     {TINY, 4, 8, 3, CORE_ORDINARY}, {0.5, 1}},
    {"core_attn", "one-entry", "seam", "one entry and the sink", BOTH, core,
     {TINY, 2, 1, 0, CORE_ORDINARY}, {1, 1}},
    {"core_attn", "empty-slots", "seam", "the first tokens: slots of the window are empty", BOTH, core,
     {TINY, 6, 8, 2, CORE_EMPTY}, {0, 1}},
    {"core_attn", "large-sink", "magnified", "a sink above all logits", BOTH, core,
     {TINY, 3, 8, 2, CORE_ORDINARY}, {8, 1}},
    {"core_attn", "blocks", "seam", "129 slots: three blocks of 64, with a maximum that grows", BOTH,
     core, {TINY, 3, 128, 1, CORE_LARGE_LOGITS}, {0.5, 2}},
    {"core_attn", "empty-block", "seam", "the second block of the window is empty", BOTH, core,
     {TINY, 3, 128, 4, CORE_EMPTY}, {0.5, 1}},
    {"core_attn", "real", "real-size", "heads of 512, a window of 128 and 20 entries", BOTH, core,
     {REAL, 1, 128, 20, CORE_ORDINARY}, {0.5, 1}},
    {"attention_output", "tiny", "", "", BOTH, output, {TINY, 4, 0}, {0}},
    {"attention_output", "real", "real-size", "heads of 512, R 64", BOTH, output, {REAL, 3, 0}, {0}},
    {"attention_output", "far", "far seam", "positions 65,535, 65,536 and 1,048,575", BOTH, output,
     {REAL, 3, 1}, {0}},

    {"attention_swa", "one-token", "seam", "a single token attends to itself and the sink", BOTH,
     attention, {TINY, 0, FULL, 1, 0, 8}, {0}},
    {"attention_swa", "window", "seam", "12 tokens and a window of 8", BOTH, attention,
     {TINY, 0, FULL, 12, 0, 8}, {0}},
    {"attention_swa", "decoding", "chunked seam", "7 tokens, then one by one over a window of 8", BOTH,
     attention, {TINY, 0, TAIL, 12, 7, 8}, {0}},
    {"attention_swa", "window-128", "seam", "131 tokens and a window of 128", BOTH, attention,
     {TINY, 0, FULL, 131, 0, 128}, {0}},
    {"attention_swa", "ring", "chunked seam", "a prompt of 126, then token by token over 127, 128 and "
     "129", BOTH, attention, {TINY, 0, TAIL, 131, 126, 128}, {0}},
    {"attention_swa", "packed", "packed", "three sequences in one call", BOTH, attention,
     {TINY, 0, PACKED, 0, 0, 8}, {0}},
    {"attention_swa", "interleaved", "interleaved chunked", "three sequences by turns", BOTH,
     attention, {TINY, 0, INTERLEAVED, 0, 0, 4}, {0}},
    {"attention_swa", "left-padded", "padded chunked", "a batch of two with padding, then decoding",
     BOTH, attention, {TINY, 0, PADDED, 0, 0, 8}, {0}},
    {"attention_swa", "real", "real-size", "heads of 512, R 64", BOTH, attention,
     {REAL, 0, CHUNKS, 6, 4, 128}, {0}},

    {"attention_csa", "ratio-minus-one", "seam", "3 tokens: no group is complete", BOTH, attention,
     {TINY, 4, FULL, 3, 0, 8, 4}, {0}},
    {"attention_csa", "ratio", "seam", "4 tokens: the last sees the first group", BOTH, attention,
     {TINY, 4, FULL, 4, 0, 2, 4}, {0}},
    {"attention_csa", "ratio-plus-one", "seam", "5 tokens and a window of 2", BOTH, attention,
     {TINY, 4, FULL, 5, 0, 2, 4}, {0}},
    {"attention_csa", "all-visible", "", "30 tokens, all entries kept", BOTH, attention,
     {TINY, 4, FULL, 30, 0, 4, 8}, {0}},
    {"attention_csa", "select", "seam", "26 tokens: 2 of up to 6 entries are kept", BOTH, attention,
     {TINY, 4, FULL, 18, 0, 4, 2}, {0}},
    {"attention_csa", "select-one", "seam", "a top-k of 1", BOTH, attention,
     {TINY, 4, FULL, 17, 0, 4, 1}, {0}},
    {"attention_csa", "token-by-token", "chunked seam", "calls of one token", BOTH, attention,
     {TINY, 4, CHUNKS, 18, 1, 4, 8}, {0}},
    {"attention_csa", "chunks-of-3", "chunked seam", "calls of three tokens", BOTH, attention,
     {TINY, 4, CHUNKS, 19, 3, 4, 8}, {0}},
    {"attention_csa", "packed", "packed", "three sequences in one call", BOTH, attention,
     {TINY, 4, PACKED, 0, 0, 4, 8}, {0}},
    {"attention_csa", "interleaved", "interleaved chunked", "three sequences by turns", BOTH,
     attention, {TINY, 4, INTERLEAVED, 0, 0, 4, 8}, {0}},
    {"attention_csa", "left-padded", "padded chunked", "a batch of two with padding, then decoding",
     BOTH, attention, {TINY, 4, PADDED, 0, 0, 4, 8}, {0}},
    {"attention_csa", "real", "real-size", "heads of 512, indexer heads of 128", BOTH, attention,
     {REAL, 4, CHUNKS, 14, 9, 128, 512}, {0}},

    {"attention_hca", "ratio-minus-one", "seam", "127 tokens: no group is complete", BOTH, attention,
     {TINY, 128, FULL, 127, 0, 8}, {0}},
    {"attention_hca", "ratio-plus-one", "seam", "129 tokens: the last two see the group", BOTH,
     attention, {TINY, 128, FULL, 129, 0, 8}, {0}},
    {"attention_hca", "small-ratio", "", "groups of 8 and a window of 4", BOTH, attention,
     {TINY, 8, FULL, 30, 0, 4}, {0}},
    {"attention_hca", "decoding", "chunked seam", "a prompt of 126, then token by token over the "
     "boundary and a window of 128", BOTH, attention, {TINY, 128, TAIL, 131, 126, 128}, {0}},
    {"attention_hca", "chunks-of-7", "chunked", "groups of 8 in calls of 7", BOTH, attention,
     {TINY, 8, CHUNKS, 27, 7, 4}, {0}},
    {"attention_hca", "packed", "packed", "three sequences in one call, groups of 5", BOTH, attention,
     {TINY, 5, PACKED, 0, 0, 4}, {0}},
    {"attention_hca", "interleaved", "interleaved chunked", "three sequences by turns, groups of 5",
     BOTH, attention, {TINY, 5, INTERLEAVED, 0, 0, 4}, {0}},
    {"attention_hca", "left-padded", "padded chunked", "a batch of two with padding, groups of 5",
     BOTH, attention, {TINY, 5, PADDED, 0, 0, 4}, {0}},
    {"attention_hca", "left-padded-128", "padded chunked", "a batch of two with 24 rows of padding, "
     "groups of 128", BOTH, attention, {TINY, 128, PADDED, 0, 12, 16}, {0}},
    {"attention_hca", "real", "real-size", "heads of 512, ratio 128", BOTH, attention,
     {REAL, 128, FULL, 129, 0, 128}, {0}},
    {0},
};
