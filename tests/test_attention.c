/* spec/attention.md. Each test lets the tap put numbers in the place of what it does not test. */
#include <math.h>
#include <string.h>

#include "small.h"
#include "spy.h"

enum { D = 8, Q = 6, H = 6, d = 68, R = 4, W = 5, GROUPS = 3, LORA = 2, N_I = 2, D_I = 32, T = 23 };

static const double rope_theta = 100, compress_rope_theta = 400;

static dsv4_compressor compressor(small *s, int64_t ratio, int64_t width)
{
    int64_t channels = ratio == 4 ? 2 * width : width;
    return (dsv4_compressor){
        .ape = small_random_matrix(s, DSV4_F32, ratio, channels, 1),
        .norm = small_random_matrix(s, DSV4_BF16, 1, width, 1),
        .wkv = small_random_matrix(s, DSV4_BF16, channels, D, 1),
        .wgate = small_random_matrix(s, DSV4_BF16, channels, D, 1)};
}

/* A layer of random weights; only CSA has an indexer, only CSA and HCA a compressor. */
static dsv4_layer make_layer(small *s, int64_t ratio, double *freq)
{
    dsv4_config *c = &s->config;
    c->hidden_size = D, c->q_lora_rank = Q, c->num_attention_heads = H, c->head_dim = d;
    c->qk_rope_head_dim = R, c->sliding_window = W, c->o_groups = GROUPS, c->o_lora_rank = LORA;
    c->index_n_heads = ratio == 4 ? N_I : 0;
    c->index_head_dim = ratio == 4 ? D_I : 0;
    c->rope_theta = rope_theta, c->compress_rope_theta = compress_rope_theta;
    c->rope_scaling.present = false;
    c->rms_norm_eps = 0.01;
    freq[0] = 1;
    freq[1] = 1 / sqrt(ratio != 0 ? compress_rope_theta : rope_theta);

    dsv4_layer layer = {.ratio = ratio,
                        .kind = ratio == 0 ? DSV4_SWA : ratio == 4 ? DSV4_CSA : DSV4_HCA};
    layer.attn.attn_sink = small_random_matrix(s, DSV4_F32, 1, H, 2);
    layer.attn.wq_a = small_random_matrix(s, DSV4_BF16, Q, D, 1);
    layer.attn.q_norm = small_random_matrix(s, DSV4_BF16, 1, Q, 1);
    layer.attn.wq_b = small_random_matrix(s, DSV4_BF16, H * d, Q, 1);
    layer.attn.wkv = small_random_matrix(s, DSV4_BF16, d, D, 1);
    layer.attn.kv_norm = small_random_matrix(s, DSV4_BF16, 1, d, 1);
    layer.attn.wo_a = small_random_matrix(s, DSV4_BF16, GROUPS * LORA, H * d / GROUPS, 1);
    layer.attn.wo_b = small_random_matrix(s, DSV4_BF16, D, GROUPS * LORA, 1);
    if (ratio != 0)
        layer.attn.compressor = compressor(s, ratio, d);
    if (ratio == 4) {
        layer.attn.indexer.wq_b = small_random_matrix(s, DSV4_BF16, N_I * D_I, Q, 1);
        layer.attn.indexer.weights_proj = small_random_matrix(s, DSV4_BF16, N_I, D, 1);
        layer.attn.indexer.compressor = compressor(s, ratio, D_I);
    }
    return layer;
}

/* Runs tokens x [tokens, D] -> y, in one call, after `position` tokens of zeros in another. */
static void run(small *s, const dsv4_layer *layer, int64_t position, const double *x,
                int64_t tokens, double *y)
{
    int64_t ratio = layer->ratio;
    const dsv4_tap *tap = s->c.tap;
    dsv4_config config = s->config;
    config.num_hidden_layers = 1;
    config.compress_ratios = &ratio;
    ref_state *state = ref_state_new(&config, 0, position + tokens);
    s->c.tap = NULL;
    if (position > 0)
        ref_attention(&s->c, layer, &state->layer[0], 0, small_array(s, position * D), position,
                      small_array(s, position * D));
    s->c.tap = tap;
    ref_attention(&s->c, layer, &state->layer[0], position, x, tokens, y);
    ref_state_free(state);
    assert_string_equal(s->error.text, "");
}

/* ---- the formulas, with the rounding points of each contract ---- */

static void linear(small *s, const dsv4_matrix *m, const double *x, double *y)
{
    const double *w = small_values(s, m);
    for (int64_t o = 0; o < m->rows; o++) {
        y[o] = 0;
        for (int64_t i = 0; i < m->cols; i++)
            y[o] += w[o * m->cols + i] * x[i];
        y[o] = small_bf16_point(s, y[o]);
    }
}

static void norm(small *s, const dsv4_matrix *weight, double *x)
{
    const double *w = small_values(s, weight);
    double squares = 0;
    for (int64_t i = 0; i < weight->cols; i++)
        squares += x[i] * x[i];
    double r = small_f32_point(s, 1 / sqrt(squares / (double)weight->cols + 0.01));
    for (int64_t i = 0; i < weight->cols; i++)
        x[i] = small_bf16_point(s, small_f32_point(s, small_f32_point(s, x[i] * r) * w[i]));
}

static void norm_head(small *s, double *x)
{
    double squares = 0;
    for (int i = 0; i < d; i++)
        squares += small_bf16_point(s, x[i] * x[i]);
    double shifted = small_bf16_point(s, small_bf16_point(s, squares / d) + 0.01);
    double r = small_bf16_point(s, 1 / sqrt(shifted));
    for (int i = 0; i < d; i++)
        x[i] = small_bf16_point(s, x[i] * r);
}

/* Turns the last four values by position x frequency; `back` is -1 for the inverse. */
static void turn(small *s, double *x, double position, double theta, double back)
{
    for (int i = 0; i < 2; i++) {
        double frequency = small_f32_point(s, i == 0 ? 1 : 1 / sqrt(theta));
        double angle = small_f32_point(s, position * frequency);
        double cosine = small_f32_point(s, cos(angle));
        double sine = back * small_f32_point(s, sin(angle));
        double *pair = x + d - R + 2 * i, a = pair[0], b = pair[1];
        pair[0] = small_bf16_point(s, a * cosine - b * sine);
        pair[1] = small_bf16_point(s, a * sine + b * cosine);
    }
}

static void quantise(small *s, double *x)
{
    double amax = 1e-4;
    for (int i = 0; i < d - R; i++)
        amax = fmax(amax, fabs(x[i]));
    double scale = exp2(ceil(log2(amax / 448)));
    for (int i = 0; i < d - R && s->c.numerics == DSV4_RELEASED; i++)
        x[i] = small_to_e4m3(x[i] / scale) * scale;
}

/* Bounds for the two contracts: exact to rounding; released to the bit, as sums are in binary64. */
static double bound(const small *s)
{
    return s->c.numerics == DSV4_EXACT ? 1e-13 : 0;
}

/* covers: attention.query.1 attention.query.2 attention.query.3 attention.kv.1 attention.kv.2 */
static void queries_and_keys(void **state)
{
    small *s = *state;
    static const int64_t ratios[] = {0, 4, 6};
    const int64_t tokens = 3, position = 9;
    for (int i = 0; i < 6; i++) {
        double freq[2], y[3 * D];
        dsv4_layer layer = make_layer(s, ratios[i / 2], freq);
        double *q = small_array(s, 12 * H * d), *kv = small_array(s, 12 * d);
        const double *x = small_randoms(s, tokens * D, 1);
        double theta = layer.kind == DSV4_SWA ? rope_theta : compress_rope_theta;
        s->c.numerics = i % 2 ? DSV4_RELEASED : DSV4_EXACT;
        spy watch;
        spy_start(s, &watch);
        spy_see(&watch, "q", q, 0);
        spy_see(&watch, "kv", kv, 0);
        run(s, &layer, position, x, tokens, y);
        for (int64_t t = 0; t < tokens; t++) {
            double qr[Q], want[H * d];
            linear(s, &layer.attn.wq_a, x + t * D, qr);
            norm(s, &layer.attn.q_norm, qr);
            linear(s, &layer.attn.wq_b, qr, want);
            for (int h = 0; h < H; h++) {
                norm_head(s, want + h * d);
                turn(s, want + h * d, (double)(position + t), theta, 1);
            }
            small_near(s, q + (position + t) * H * d, want, H * d, bound(s));
            linear(s, &layer.attn.wkv, x + t * D, want);
            norm(s, &layer.attn.kv_norm, want);
            turn(s, want, (double)(position + t), theta, 1);
            quantise(s, want);
            small_near(s, kv + (position + t) * d, want, d, bound(s));
        }
    }
}

/* Softmax of token t over its window kv and the entries `chosen`. */
static void softmax(const double *q, double sink, const double *kv, int64_t t,
                    const double *entries, const double *chosen, int64_t n, double *out)
{
    const double *e[T + T];
    int64_t count = 0;
    for (int64_t u = t - W + 1 > 0 ? t - W + 1 : 0; u <= t; u++)
        e[count++] = kv + u * d;
    for (int64_t i = 0; i < n; i++)
        e[count++] = entries + (int64_t)chosen[i] * d;
    double sum = exp(sink);
    memset(out, 0, d * sizeof *out);
    for (int64_t i = 0; i < count; i++) {
        double logit = 0;
        for (int j = 0; j < d; j++)
            logit += q[j] * e[i][j];
        double p = exp(logit / sqrt(d));
        sum += p;
        for (int j = 0; j < d; j++)
            out[j] += p * e[i][j];
    }
    for (int j = 0; j < d; j++)
        out[j] /= sum;
}

/* q, kv, entries and index scores are given: what comes out is the softmax over the right ones. */
static void attends(small *s, int64_t ratio)
{
    double freq[2], y[T * D];
    dsv4_layer layer = make_layer(s, ratio, freq);
    const double *sink = small_values(s, &layer.attn.attn_sink);
    const double *q = small_randoms(s, T * H * d, 3), *kv = small_randoms(s, T * d, 1);
    const double *entries = small_randoms(s, 8 * d, 1), *scores = small_randoms(s, T * 8, 1);
    double *core = small_array(s, T * H * d), chosen[T * 8];
    s->config.index_topk = 3;
    spy watch;
    spy_start(s, &watch);
    spy_give(&watch, "q", q, 0);
    spy_give(&watch, "kv", kv, 0);
    spy_give(&watch, "compressed", entries, 0);
    spy_give(&watch, "index_score", scores, 8);
    spy_see(&watch, "selected", chosen, 8);
    spy_see(&watch, "attn_core", core, 0);
    run(s, &layer, 0, small_randoms(s, T * D, 1), T, y);
    assert_int_equal(spy_rows(&watch, "index_score"), ratio == 4 ? T : 0);
    assert_int_equal(spy_rows(&watch, "compressed"), ratio != 0 ? T / ratio : 0);
    assert_int_equal(spy_rows(&watch, "selected"), ratio != 0 ? T : 0);

    for (int64_t t = 0; t < T; t++) {
        int64_t visible = ratio != 0 ? (t + 1) / ratio : 0;
        int64_t n = ratio == 4 && visible > 3 ? 3 : visible;
        double want[8], out[d];
        for (int64_t g = 0; g < visible; g++) {
            int64_t place = 0; /* HCA: in order; CSA: the number of its betters */
            for (int64_t i = 0; i < visible; i++)
                place += ratio == 4 ? scores[t * 8 + i] > scores[t * 8 + g] : i < g;
            if (place < n)
                want[place] = (double)g;
        }
        small_same(s, chosen + t * 8, want, n);
        for (int h = 0; h < H; h++) {
            softmax(q + (t * H + h) * d, sink[h], kv, t, entries, want, n, out);
            small_near(s, core + (t * H + h) * d, out, d, 1e-13);
        }
    }
}

/* covers: attention.swa.1 */
static void swa(void **state)
{
    attends(*state, 0);
}

/* covers: attention.csa.1 */
static void csa(void **state)
{
    attends(*state, 4);
}

/* covers: attention.hca.1 */
static void hca(void **state)
{
    attends(*state, 5);
    attends(*state, 23); /* one entry, for the last token */
    attends(*state, 24); /* none */
}

/* The entries are those that the compressor makes of the layer's own input. They are there before
 * the first token of the call attends: in attends() above the last of a group sees its own.
 * covers: attention.compressed.1 */
static void compressed(void **state)
{
    small *s = *state;
    for (int64_t ratio = 4; ratio <= 5; ratio++) {
        double freq[2], y[T * D], *entries = small_array(s, 8 * d), *keys = small_array(s, 8 * D_I);
        dsv4_layer layer = make_layer(s, ratio, freq);
        const double *x = small_randoms(s, T * D, 1);
        dsv4_config config = s->config;
        config.num_hidden_layers = 1;
        config.compress_ratios = &ratio;
        ref_state *own = ref_state_new(&config, 0, T);
        spy watch;
        spy_start(s, &watch);
        spy_see(&watch, "compressed", entries, 0);
        spy_see(&watch, "index_k", keys, 0);
        run(s, &layer, 0, x, T, y);
        s->c.tap = NULL;
        ref_layer_state *l = &own->layer[0];
        ref_compress(&s->c, &layer.attn.compressor, &l->compressor, freq, 0, x, T);
        small_near(s, entries, l->compressor.entries, T / ratio * d, 1e-13);
        if (ratio == 4) {
            ref_compress(&s->c, &layer.attn.indexer.compressor, &l->index, freq, 0, x, T);
            small_near(s, keys, l->index.entries, T / ratio * D_I, 1e-13);
        }
        ref_state_free(own);
    }
}

/* covers: attention.out.1 attention.out.2 attention.out.3 */
static void output(void **state)
{
    small *s = *state;
    const int64_t tokens = 2, position = 7;
    for (int i = 0; i < 4; i++) {
        double freq[2], y[2 * D], shown[9 * D];
        dsv4_layer layer = make_layer(s, i / 2 == 0 ? 0 : 9, freq);
        double *core = small_randoms(s, 9 * H * d, 1);
        s->c.numerics = i % 2 ? DSV4_RELEASED : DSV4_EXACT;
        spy watch;
        spy_start(s, &watch);
        spy_give(&watch, "attn_core", core, 0);
        spy_see(&watch, "attn_out", shown, 0);
        run(s, &layer, position, small_randoms(s, tokens * D, 1), tokens, y);
        small_same(s, shown + position * D, y, tokens * D);
        for (int64_t t = 0; t < tokens; t++) {
            double *x = core + (position + t) * H * d, grouped[GROUPS * LORA], want[D];
            for (int h = 0; h < H; h++)
                turn(s, x + h * d, (double)(position + t),
                     layer.kind == DSV4_SWA ? rope_theta : compress_rope_theta, -1);
            for (int g = 0; g < GROUPS; g++) { /* a matrix of its own for each group */
                dsv4_matrix slice = layer.attn.wo_a;
                slice.rows = LORA;
                slice.data = (const char *)slice.data + 2 * g * LORA * slice.cols;
                linear(s, &slice, x + g * (H / GROUPS) * d, grouped + g * LORA);
            }
            linear(s, &layer.attn.wo_b, grouped, want);
            small_near(s, y + t * D, want, D, bound(s));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(queries_and_keys), small_test(swa), small_test(csa), small_test(hca),
        small_test(compressed), small_test(output),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL) != 0;
}
