/* Golden cases answered by the reference (ref/operators.c): random small ones of every operator
 * against the functions of the chapters, and schedules of every kind against each other. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "small.h"
#include "spy.h"
#include "whole.h"

/* ---- cases, made from the table of operators ---- */

/* Sizes that suit both contracts: KV entries have 64 values before their rotary ones. */
static const struct { const char *symbol; int64_t value; } sizes[] = {
    {"T", 5},  {"N", 18}, {"C", 2},  {"K", 128}, {"O", 7},  {"D", 20}, {"H", 4},  {"d", 72},
    {"Q", 14}, {"g", 2},  {"o", 5},  {"n", 3},   {"G", 9},  {"M", 150}, {"L", 200}, {"V", 17},
    {"I", 6},  {"E", 8},  {"k", 2},  {"R", 8},   {"rows", 5}, {"cols", 3}, {"n_i", 3}, {"d_i", 32},
};

static const struct { const char *param; double value; } params[] = {
    {"sliding_window", 3}, {"num_attention_heads", 4}, {"o_groups", 2}, {"rms_norm_eps", 0.01},
    {"qk_rope_head_dim", 8}, {"rope_theta", 100}, {"compress_rope_theta", 1600}, {"factor", 16},
    {"original_max_position_embeddings", 64}, {"beta_fast", 8}, {"beta_slow", 1},
    {"num_experts_per_tok", 2}, {"routed_scaling_factor", 1.5}, {"norm_topk_prob", 1},
    {"swiglu_limit", 0.5}, {"hc_mult", 3}, {"hc_sinkhorn_iters", 3}, {"hc_eps", 0.01},
    {"index_n_heads", 3}, {"index_head_dim", 32}, {"index_topk", 2}, {"block", 64},
    {"momentum", 0.95}, {"learning_rate", 0.01}, {"weight_decay", 0.1}, {"rescale", 0.18},
    {"compressed", 1}, {"index", 0}, {"hash", 0}, {"batch", 0}, {"ratio", 0},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

typedef struct {
    small *s;
    dsv4_case c, answer;
} question;

static int64_t symbol(const dsv4_case *c, const char *name, size_t length)
{
    if (length == 1 && *name == 'r')
        return (int64_t)dsv4_case_param(c, "ratio", 1);
    if (length == 1 && *name == 'c')
        return dsv4_case_param(c, "ratio", 0) == 4 ? 2 : 1;
    if (strstr(c->op->name, "compressor") == c->op->name && length == 1 && *name == 'd')
        return dsv4_case_param(c, "index", 0) != 0 ? 32 : 72;
    for (size_t i = 0; i < COUNT(sizes); i++)
        if (strlen(sizes[i].symbol) == length && memcmp(sizes[i].symbol, name, length) == 0)
            return sizes[i].value;
    fail_msg("%s: no size for %s", c->op->name, name);
    return 0;
}

/* One of the table's expressions, such as "(2+n)*n" or "H*d/g", from left to right. */
static int64_t evaluate(const dsv4_case *c, const char **at)
{
    int64_t total = 0;
    for (char operation = '+';; operation = *(*at)++) {
        size_t length = strcspn(*at, "*/+() ");
        int64_t value;
        if (**at == '(') {
            ++*at;
            value = evaluate(c, at);
            ++*at;
        } else {
            value = **at >= '0' && **at <= '9' ? strtoll(*at, NULL, 10) : symbol(c, *at, length);
            *at += length;
        }
        total = operation == '+' ? total + value : operation == '*' ? total * value : total / value;
        if (**at == '\0' || **at == ' ' || **at == ')')
            return total;
    }
}

static int shape_of(const dsv4_case *c, const char *dims, int64_t *shape)
{
    int rank = 0;
    while (*dims != '\0') {
        shape[rank++] = evaluate(c, &dims);
        dims += strspn(dims, " ");
    }
    return rank;
}

static void add_matrix(question *q, const char *name, dsv4_format format, const int64_t *shape)
{
    char part[DSV4_NAME];
    bool fp4 = format == DSV4_FORMAT_E2M1;
    int64_t rows = shape[0], cols = shape[1];
    dsv4_dtype dtype = fp4 ? DSV4_I8 : format == DSV4_FORMAT_E4M3 ? DSV4_F8_E4M3 : DSV4_F32;
    dsv4_matrix m = small_random_matrix(q->s, dtype, rows, cols, 1);
    snprintf(part, sizeof part, "%s.weight", name);
    dsv4_array *weight =
        dsv4_case_add_in(&q->c, part, format, 2, (int64_t[]){rows, fp4 ? cols / 2 : cols});
    memcpy(weight->data, m.data, (size_t)(weight->count * dsv4_format_size(format)));
    if (m.scale == NULL)
        return;
    snprintf(part, sizeof part, "%s.scale", name);
    dsv4_array *scale =
        dsv4_case_add_in(&q->c, part, DSV4_FORMAT_E8M0, 2,
                         (int64_t[]){fp4 ? rows : (rows + 127) / 128, (cols + (fp4 ? 31 : 127)) /
                                     (fp4 ? 32 : 128)});
    memcpy(scale->data, m.scale, (size_t)scale->count);
}

/* Below this, from 0 on. */
static int64_t index_end(const dsv4_case *c, const char *name)
{
    return strcmp(name, "list") == 0                 ? symbol(c, "M", 1)
           : strstr(name, "tid2eid") != NULL         ? symbol(c, "E", 1)
           : strstr(name, "ids") != NULL             ? symbol(c, "V", 1)
                                                     : 40;
}

static void add_slot(question *q, const dsv4_slot *slot, const char *name)
{
    dsv4_case *c = &q->c;
    int64_t shape[DSV4_ARRAY_RANK];
    int rank = shape_of(c, slot->dims, shape);
    if (slot->kind == DSV4_SLOT_MATRIX) {
        bool fp8 = strcmp(c->op->name, "linear_fp8") == 0;
        bool fp4 = strcmp(c->op->name, "linear_fp4") == 0;
        dsv4_format format = fp8 ? DSV4_FORMAT_E4M3 : fp4 ? DSV4_FORMAT_E2M1 : DSV4_FORMAT_F32;
        add_matrix(q, name, format, shape);
        return;
    }
    dsv4_format format = slot->kind == DSV4_SLOT_INDICES        ? DSV4_FORMAT_I64
                         : slot->kind == DSV4_SLOT_VALUES       ? DSV4_FORMAT_BF16
                         : strstr(c->op->name, "e2m1") != NULL ? DSV4_FORMAT_E2M1
                         : strstr(c->op->name, "e8m0") != NULL ? DSV4_FORMAT_E8M0
                                                               : DSV4_FORMAT_E4M3;
    dsv4_array *array = dsv4_case_add_in(c, name, format, rank, shape);
    for (int64_t i = 0; i < array->count; i++) {
        if (array->format == DSV4_FORMAT_I64)
            ((int64_t *)array->data)[i] =
                (int64_t)(small_bits(q->s) % (uint64_t)index_end(c, name));
        else if (array->format != DSV4_FORMAT_BF16)
            ((uint8_t *)array->data)[i] = (uint8_t)(small_bits(q->s) >> 56);
        else
            ((float *)array->data)[i] = (float)small_to_bf16(2 * small_random(q->s));
    }
}

static bool wanted(const dsv4_case *c, const char *slot)
{
    double ratio = dsv4_case_param(c, "ratio", 0);
    if (strstr(slot, "indexer") != NULL)
        return ratio == 4;
    if (strstr(slot, "attn.compressor") != NULL)
        return ratio > 0;
    if (strcmp(slot, "ffn.gate.bias") == 0)
        return dsv4_case_param(c, "hash", 0) == 0;
    if (strcmp(slot, "ffn.gate.tid2eid") == 0)
        return dsv4_case_param(c, "hash", 0) != 0;
    return true;
}

static bool has_word(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = words; (at = strstr(at, word)) != NULL; at += length)
        if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    return false;
}

/* Two sequences of 11 and 7 tokens, one call each. */
static void add_plain_schedule(dsv4_case *c)
{
    for (int64_t i = 0; i < 18; i++)
        ((int64_t *)dsv4_case_in(c, "sequence")->data)[i] = i >= 11;
    memcpy(dsv4_case_in(c, "calls")->data, (int64_t[]){11, 7}, 2 * sizeof(int64_t));
}

/* Random inputs. Parameter `set`, unless NULL, is `value`; the others are those above. */
static question make(small *s, const char *op, dsv4_numerics numerics, const char *set,
                     double value)
{
    question q = {.s = s, .c = {.op = dsv4_operator_find(op), .name = "small", .reason = "a test"}};
    dsv4_case *c = &q.c;
    c->numerics = numerics;
    for (size_t i = 0; i < COUNT(params); i++)
        if (has_word(c->op->params, params[i].param))
            dsv4_case_set(c, params[i].param, params[i].value);
    if (strcmp(op, "compressor_csa") == 0 || strcmp(op, "attention_csa") == 0 ||
        strcmp(op, "indexer_select") == 0 || strcmp(op, "compressor_entry") == 0)
        dsv4_case_set(c, "ratio", 4);
    if (strcmp(op, "compressor_hca") == 0 || strcmp(op, "attention_hca") == 0)
        dsv4_case_set(c, "ratio", 5);
    if (set != NULL)
        dsv4_case_set(c, set, value);
    for (const dsv4_slot *slot = c->op->in; slot->name != NULL; slot++) {
        const char *star = strchr(slot->name, '*');
        for (int64_t e = 0; star != NULL && e < symbol(c, "E", 1); e++) {
            char name[DSV4_NAME];
            snprintf(name, sizeof name, "%.*s%d%s", (int)(star - slot->name), slot->name, (int)e,
                     star + 1);
            add_slot(&q, slot, name);
        }
        if (star == NULL && wanted(c, slot->name))
            add_slot(&q, slot, slot->name);
    }
    if (dsv4_case_in(c, "sequence") != NULL)
        add_plain_schedule(c);
    return q;
}

static void answer(question *q)
{
    dsv4_case_free(&q->answer);
    q->answer = (dsv4_case){.op = q->c.op, .numerics = q->c.numerics};
    if (ref_answer(NULL, &q->c, &q->answer, &q->s->error) != 0)
        fail_msg("%s", q->s->error.text);
}

static void drop(question *q)
{
    dsv4_case_free(&q->c);
    dsv4_case_free(&q->answer);
}

static double *in(question *q, const char *name)
{
    double *values = dsv4_case_values(&q->c, name);
    double *copy = small_copy(q->s, values, dsv4_case_in(&q->c, name)->count);
    free(values);
    return copy;
}

static int64_t *in_indices(const question *q, const char *name)
{
    return dsv4_case_in(&q->c, name)->data;
}

static const double *got(const question *q, const char *name)
{
    assert_non_null(dsv4_case_out(&q->answer, name));
    return dsv4_case_out(&q->answer, name)->data;
}

static const int64_t *got_indices(const question *q, const char *name)
{
    return dsv4_case_out(&q->answer, name)->data;
}

/* The configuration that the parameters and sizes above are, without the help of host/cases.c. */
static ref_context *context(question *q)
{
    small *s = q->s;
    int64_t *ratio = small_alloc(s, 1, sizeof *ratio);
    *ratio = (int64_t)dsv4_case_param(&q->c, "ratio", 0);
    s->config = (dsv4_config){
        .hidden_size = 20, .num_hidden_layers = 1, .num_attention_heads = 4, .head_dim = 72,
        .q_lora_rank = 14, .qk_rope_head_dim = 8, .o_groups = 2, .o_lora_rank = 5,
        .sliding_window = 3, .index_n_heads = 3, .index_head_dim = 32, .index_topk = 2,
        .moe_intermediate_size = 6, .n_routed_experts = 8, .num_experts_per_tok = 2, .hc_mult = 3,
        .hc_sinkhorn_iters = 3, .vocab_size = 17, .routed_scaling_factor = 1.5,
        .swiglu_limit = 0.5, .hc_eps = 0.01, .rms_norm_eps = 0.01, .rope_theta = 100,
        .compress_rope_theta = 1600, .norm_topk_prob = true,
        .rope_scaling = {true, 16, 64, 8, 1}, .compress_ratios = ratio};
    s->c = (ref_context){.config = &s->config, .numerics = q->c.numerics, .error = &s->error};
    return &s->c;
}

static double *frequencies(question *q, bool compressed)
{
    double *freq = small_array(q->s, 4);
    ref_rope_frequencies(context(q), compressed, freq);
    return freq;
}

static dsv4_matrix matrix(const question *q, const char *name)
{
    return dsv4_case_matrix(&q->c, name);
}

enum { T = 5, D = 20, H = 4, d = 72, n = 3, V = 17, N = 18 };

static const dsv4_numerics both[] = {DSV4_EXACT, DSV4_RELEASED};

/* ---- operators without a state ---- */

/* Every operator of the table has an answer, as the table has it, in both contracts. */
static void all_of_the_table(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2 * dsv4_operator_count; i++) {
        const dsv4_operator *op = &dsv4_operators[i / 2];
        if (strcmp(op->name, "forward") == 0)
            continue; /* its model is a directory */
        question q = make(s, op->name, both[i % 2], NULL, 0);
        answer(&q);
        for (const dsv4_slot *slot = op->out; slot->name != NULL; slot++)
            assert_non_null(dsv4_case_out(&q.answer, slot->name));
        dsv4_case both_sides = q.c; /* the answer as what is expected */
        both_sides.out = q.answer.out;
        both_sides.outs = q.answer.outs;
        if (dsv4_case_check(&both_sides, &s->error) != 0)
            fail_msg("%s", s->error.text);
        drop(&q);
    }
    static const dsv4_operator other = {.name = "other"};
    dsv4_case c = {.op = &other}, nothing = {0};
    assert_int_equal(ref_answer(NULL, &c, &nothing, &s->error), 1);
    assert_string_equal(s->error.text, "");
}

static void codes(void **state)
{
    small *s = *state;
    static const struct { const char *op; double (*value)(int); } decoders[] = {
        {"quant_e4m3_decode", ref_decode_e4m3}, {"quant_e8m0_decode", ref_decode_e8m0}};
    for (int i = 0; i < 2; i++) {
        question q = make(s, decoders[i].op, DSV4_EXACT, NULL, 0);
        answer(&q);
        for (int j = 0; j < N; j++)
            small_is(s, got(&q, "values")[j],
                     decoders[i].value(((uint8_t *)dsv4_case_in(&q.c, "codes")->data)[j]));
        drop(&q);
    }
    question q = make(s, "quant_e2m1_decode", DSV4_EXACT, NULL, 0);
    memcpy(dsv4_case_in(&q.c, "codes")->data, "\x21\xf7", 2);
    answer(&q);
    small_same(s, got(&q, "values"), ((double[]){0.5, 1, 6, -6}), 4);
    drop(&q);
    for (int i = 0; i < 2; i++) {
        q = make(s, i ? "quant_e2m1_encode" : "quant_e4m3_encode", DSV4_EXACT, NULL, 0);
        answer(&q);
        for (int j = 0; j < N; j++)
            small_is(s, got(&q, "values")[j],
                     (i ? small_to_e2m1 : small_to_e4m3)(in(&q, "x")[j]));
        drop(&q);
    }
}

static void quantisation(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "quant_act", both[i], NULL, 0);
        double *want = in(&q, "x");
        if (both[i] == DSV4_RELEASED)
            small_act_quant(want, T * 128, 64);
        answer(&q);
        small_same(s, got(&q, "y"), want, T * 128);
        drop(&q);
        q = make(s, "quant_kv", both[i], NULL, 0);
        want = in(&q, "x");
        for (int t = 0; t < T; t++)
            ref_qdq_kv(context(&q), want + t * d);
        answer(&q);
        small_same(s, got(&q, "y"), want, T * d);
        drop(&q);
        q = make(s, "quant_index", both[i], NULL, 0);
        want = in(&q, "x");
        for (int t = 0; t < T; t++)
            ref_qdq_index(context(&q), want + t * 32);
        answer(&q);
        small_same(s, got(&q, "y"), want, T * 32);
        drop(&q);
    }
}

static void linear(void **state)
{
    small *s = *state;
    static const char *const ops[] = {"linear_fp8", "linear_fp4", "linear_plain", "linear_f32",
                                      "linear_grouped"};
    for (int i = 0; i < 10; i++) {
        question q = make(s, ops[i / 2], both[i % 2], NULL, 0);
        const dsv4_matrix w = matrix(&q, "w");
        double want[T * 10];
        assert_int_equal(w.cols, 128);
        assert_int_equal(w.scale != NULL, i / 2 < 2);
        if (i / 2 < 3)
            ref_linear(context(&q), &w, in(&q, "x"), T, want);
        else if (i / 2 == 3)
            ref_linear_f32(context(&q), &w, in(&q, "x"), T, want);
        else
            ref_linear_grouped(context(&q), &w, 2, in(&q, "x"), T, want);
        answer(&q);
        small_same(s, got(&q, "y"), want, T * w.rows);
        drop(&q);
    }
}

static void elements(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "rmsnorm", both[i], NULL, 0);
        dsv4_matrix w = matrix(&q, "weight");
        double want[T * H * 128];
        ref_rmsnorm(context(&q), &w, in(&q, "x"), T, want);
        answer(&q);
        small_same(s, got(&q, "y"), want, T * 128);
        drop(&q);

        q = make(s, "rmsnorm_head", both[i], NULL, 0);
        memcpy(want, in(&q, "x"), sizeof(double) * T * H * d);
        ref_rmsnorm_head(context(&q), want, T * H);
        answer(&q);
        small_same(s, got(&q, "y"), want, T * H * d);
        drop(&q);

        q = make(s, "hadamard", both[i], NULL, 0);
        memcpy(want, in(&q, "x"), sizeof(double) * T * 32);
        for (int t = 0; t < T; t++)
            ref_hadamard(context(&q), want + t * 32, 32);
        answer(&q);
        small_same(s, got(&q, "y"), want, T * 32);
        drop(&q);

        q = make(s, "embed", both[i], NULL, 0);
        const double *rows = in(&q, "embed.weight");
        answer(&q);
        for (int j = 0; j < T * n; j++)
            small_same(s, got(&q, "h") + j * D, rows + in_indices(&q, "token_ids")[j / n] * D, D);
        drop(&q);
    }
}

static void rotation(void **state)
{
    small *s = *state;
    for (int i = 0; i < 4; i++) {
        bool compressed = i / 2;
        question q = make(s, "rope_frequencies", both[i % 2], "compressed", compressed);
        answer(&q);
        small_same(s, got(&q, "freq"), frequencies(&q, compressed), 4);
        drop(&q);
        q = make(s, "rope", both[i % 2], "compressed", compressed);
        question back = make(s, "rope_inverse", both[i % 2], "compressed", compressed);
        double *want = in(&q, "x"), *wanted_back = in(&back, "x");
        const double *freq = frequencies(&q, compressed);
        for (int t = 0; t < T; t++) {
            ref_rope(&s->c, freq, in_indices(&q, "positions")[t], want + t * d, d);
            ref_rope_inverse(&s->c, freq, in_indices(&back, "positions")[t], wanted_back + t * d,
                             d);
        }
        answer(&q);
        answer(&back);
        small_same(s, got(&q, "y"), want, T * d);
        small_same(s, got(&back, "y"), wanted_back, T * d);
        drop(&q);
        drop(&back);
    }
}

static void hyper_connections(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "mhc_mix", both[i], NULL, 0);
        const dsv4_hc hc = {matrix(&q, "fn"), matrix(&q, "base"), matrix(&q, "scale")};
        double pre[n], post[n], comb[n * n], u[D];
        answer(&q);
        for (int t = 0; t < T; t++) {
            ref_mhc_mix(context(&q), &hc, in(&q, "x") + t * n * D, pre, post, comb);
            small_same(s, got(&q, "pre") + t * n, pre, n);
            small_same(s, got(&q, "post") + t * n, post, n);
            small_same(s, got(&q, "comb") + t * n * n, comb, n * n);
        }
        drop(&q);

        q = make(s, "mhc_sinkhorn", both[i], NULL, 0);
        answer(&q);
        for (int t = 0; t < T; t++) {
            memcpy(comb, in(&q, "logits") + t * n * n, sizeof comb);
            ref_mhc_sinkhorn(context(&q), comb);
            small_same(s, got(&q, "comb") + t * n * n, comb, n * n);
        }
        drop(&q);

        q = make(s, "mhc_pre", both[i], NULL, 0);
        answer(&q);
        for (int t = 0; t < T; t++) {
            ref_mhc_pre(context(&q), in(&q, "pre") + t * n, in(&q, "x") + t * n * D, u);
            small_same(s, got(&q, "u") + t * D, u, D);
        }
        drop(&q);

        q = make(s, "mhc_post", both[i], NULL, 0);
        double *x = in(&q, "x");
        answer(&q);
        for (int t = 0; t < T; t++)
            ref_mhc_post(context(&q), in(&q, "post") + t * n, in(&q, "comb") + t * n * n,
                         in(&q, "y") + t * D, x + t * n * D);
        small_same(s, got(&q, "x_new"), x, T * n * D);
        drop(&q);
    }
}

static void indexer(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "indexer_query", both[i], NULL, 0);
        dsv4_layer layer = {.attn.indexer.wq_b = matrix(&q, "wq_b")};
        const double *freq = frequencies(&q, true);
        double want[T * 3 * 32], score[9];
        for (int t = 0; t < T; t++)
            ref_index_query(&s->c, &layer, freq, in_indices(&q, "positions")[t],
                            in(&q, "qr") + t * 14, 1, want + t * 96);
        answer(&q);
        small_same(s, got(&q, "iq"), want, T * 96);
        drop(&q);

        q = make(s, "indexer_weights", both[i], NULL, 0);
        layer.attn.indexer.weights_proj = matrix(&q, "weights_proj");
        ref_index_weights(context(&q), &layer, in(&q, "x"), T, want);
        answer(&q);
        small_same(s, got(&q, "w"), want, T * 3);
        drop(&q);

        q = make(s, "indexer_score", both[i], NULL, 0);
        answer(&q);
        for (int t = 0; t < T; t++) {
            ref_index_scores(context(&q), in(&q, "iq") + t * 96, in(&q, "w") + t * 3,
                             in(&q, "keys"), 9, score);
            small_same(s, got(&q, "score") + t * 9, score, 9);
        }
        drop(&q);
    }
}

static void selection(void **state)
{
    small *s = *state;
    question q = make(s, "indexer_select", DSV4_EXACT, "index_topk", 4);
    float *score = dsv4_case_in(&q.c, "score")->data;
    const int64_t positions[T] = {2, 3, 14, 38, 1000}; /* 0, 1, 3, 9 and, of 250, 9 visible */
    const int64_t want[T][4] = {{-1, -1, -1, -1}, {0, -1, -1, -1}, {2, 1, 0, -1}, {8, 7, 6, 5},
                                {8, 7, 6, 5}};
    for (int j = 0; j < T * 9; j++)
        score[j] = (float)(j % 9);
    memcpy(in_indices(&q, "positions"), positions, sizeof positions);
    answer(&q);
    for (int j = 0; j < T * 4; j++)
        assert_int_equal(got_indices(&q, "selected")[j], want[j / 4][j % 4]);
    dsv4_case_set(&q.c, "index_topk", 512); /* all: 9 a row */
    answer(&q);
    assert_int_equal(dsv4_case_out(&q.answer, "selected")->shape[1], 9);
    drop(&q);
}

static void entry_lists(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "core_attn", both[i], NULL, 0);
        int64_t *list = in_indices(&q, "list");
        const double *entries = in(&q, "entries");
        double want[H * d];
        for (int j = 0; j < T * 200; j += 3)
            list[j] = -1;
        for (int j = 200; j < 200 + 64; j++) /* a block of empty slots */
            list[j] = -1;
        answer(&q);
        for (int t = 0; t < T; t++) {
            ref_entry entry[200];
            int64_t count = 0;
            for (int slot = 0; slot < 200; slot++)
                if (list[t * 200 + slot] >= 0)
                    entry[count++] = (ref_entry){entries + list[t * 200 + slot] * d, slot};
            ref_core_attn(context(&q), in(&q, "q") + t * H * d, in(&q, "attn_sink"), entry, count,
                          want);
            small_same(s, got(&q, "out") + t * H * d, want, H * d);
        }
        drop(&q);

        q = make(s, "attention_output", both[i], NULL, 0);
        const dsv4_matrix wo_a = matrix(&q, "wo_a"), wo_b = matrix(&q, "wo_b");
        const double *freq = frequencies(&q, true);
        double *core = in(&q, "core"), grouped[T * 10], y[T * D];
        for (int j = 0; j < T * H; j++)
            ref_rope_inverse(&s->c, freq, in_indices(&q, "positions")[j / H], core + j * d, d);
        ref_linear_grouped(&s->c, &wo_a, 2, core, T, grouped);
        ref_linear(&s->c, &wo_b, grouped, T, y);
        answer(&q);
        small_same(s, got(&q, "y"), y, T * D);
        drop(&q);
    }
}

static void gates(void **state)
{
    small *s = *state;
    for (int i = 0; i < 4; i++) {
        bool hash = i / 2;
        question q = make(s, hash ? "gate_hash" : "gate_score", both[i % 2], NULL, 0);
        dsv4_layer layer = {.hash = hash, .ffn.gate = {matrix(&q, "weight"), matrix(&q, "bias"),
                                                       matrix(&q, "tid2eid")}};
        answer(&q);
        for (int t = 0; t < T; t++) {
            int64_t chosen[2];
            double weight[2];
            ref_gate(context(&q), &layer, in(&q, "x") + t * D,
                     hash ? in_indices(&q, "token_ids")[t] : 0, chosen, weight);
            assert_int_equal(got_indices(&q, "route_index")[2 * t], chosen[0]);
            assert_int_equal(got_indices(&q, "route_index")[2 * t + 1], chosen[1]);
            small_same(s, got(&q, "route_weight") + 2 * t, weight, 2);
        }
        drop(&q);
    }
}

/* What the choice was made by: the score that its own weight tells, and the bias. */
static void biased(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "gate_score", both[i], NULL, 0);
        const double *x = in(&q, "x"), *weight = in(&q, "weight"), *bias = in(&q, "bias");
        answer(&q);
        for (int j = 0; j < T * 8; j++) {
            double product = 0;
            for (int k = 0; k < D; k++)
                product += weight[j % 8 * D + k] * x[j / 8 * D + k];
            double want = sqrt(log1p(exp(small_f32_point(s, product)))) + bias[j % 8];
            small_about(s, got(&q, "biased")[j], want, i ? 1e-6 : 1e-13);
            if (i)
                small_is(s, got(&q, "biased")[j], small_to_f32(got(&q, "biased")[j]));
        }
        for (int t = 0; t < T; t++)
            for (int k = 0; k < 2; k++) {
                const double *row = got(&q, "biased") + t * 8;
                int better = 0;
                for (int e = 0; e < 8; e++)
                    better += row[e] > row[got_indices(&q, "route_index")[2 * t + k]];
                assert_int_equal(better, k);
            }
        drop(&q);
    }
}

static void experts(void **state)
{
    small *s = *state;
    for (int i = 0; i < 4; i++) {
        question q = make(s, "expert", both[i % 2], NULL, 0);
        const dsv4_expert w = {matrix(&q, "w1"), matrix(&q, "w2"), matrix(&q, "w3")};
        const double *weight = in(&q, "weight");
        double y[T * D];
        if (i / 2) /* the shared one: the input is not there */
            strcpy(q.c.in[1].name, "other");
        answer(&q);
        for (int t = 0; t < T; t++) {
            ref_expert(context(&q), &w, i / 2 ? NULL : weight + t, in(&q, "x") + t * D, y);
            small_same(s, got(&q, "y") + t * D, y, D);
        }
        drop(&q);

        q = make(s, "moe", both[i % 2], "hash", i / 2);
        dsv4_layer layer;
        dsv4_case_layer(&q.c, context(&q)->config, &layer);
        ref_moe(&s->c, &layer, in_indices(&q, "token_ids"), 0, in(&q, "x"), T, y);
        answer(&q);
        small_same(s, got(&q, "y"), y, T * D);
        assert_int_equal(layer.hash, i / 2);
        dsv4_case_layer_free(&layer);
        drop(&q);
    }
}

static void head(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "head", both[i], NULL, 0);
        const dsv4_hc hc = {matrix(&q, "hc_head_fn"), matrix(&q, "hc_head_base"),
                            matrix(&q, "hc_head_scale")};
        const dsv4_matrix norm = matrix(&q, "norm"), weight = matrix(&q, "head");
        double want[T * V];
        ref_head(context(&q), &hc, &norm, &weight, in(&q, "h"), T, want);
        answer(&q);
        small_same(s, got(&q, "logits"), want, T * V);
        drop(&q);
    }
}

static void muon(void **state)
{
    small *s = *state;
    question q = make(s, "muon", DSV4_EXACT, NULL, 0);
    double *B = in(&q, "B"), *M = in(&q, "M");
    ref_muon_step(&(ref_muon_options){0.95, 0.01, 0.1, 0.18}, 5, 3, in(&q, "G"), B, M);
    answer(&q);
    small_same(s, got(&q, "B_new"), B, 15);
    small_same(s, got(&q, "M_new"), M, 15);
    drop(&q);
}

/* ---- operators with a state ---- */

/* Both sequences of the plain schedule in one go each, with a state of their own. */
static const struct { int64_t first, rows; } whole_sequences[2] = {{0, 11}, {11, 7}};

static void entries(void **state)
{
    small *s = *state;
    for (int i = 0; i < 8; i++) {
        bool hca = i / 2 % 2, index = i / 4;
        int64_t r = hca ? 5 : 4, width = index ? 32 : d, count = 0;
        const char *op = hca ? "compressor_hca" : "compressor_csa";
        question q = make(s, op, both[i % 2], "index", index);
        const dsv4_compressor w = {matrix(&q, "ape"), matrix(&q, "norm"), matrix(&q, "wkv"),
                                   matrix(&q, "wgate")};
        const double *freq = frequencies(&q, true), *x = in(&q, "x");
        answer(&q);
        for (int j = 0; j < 2; j++) {
            int64_t items = (hca ? 1 : 4) * r * width;
            ref_compressor_state one = {index, r, width, hca ? 1 : 2, small_array(s, items),
                                        small_array(s, items), small_array(s, 3 * width), 0};
            ref_compress(context(&q), &w, &one, freq, 0, x + whole_sequences[j].first * D,
                         whole_sequences[j].rows);
            assert_int_equal(one.count, whole_sequences[j].rows / r);
            small_same(s, got(&q, "entries") + count * width, one.entries, one.count * width);
            count += one.count;
        }
        assert_int_equal(dsv4_case_out(&q.answer, "entries")->shape[0], count);
        drop(&q);

        q = make(s, "compressor_entry", both[i % 2], "index", index);
        const dsv4_matrix norm = matrix(&q, "norm");
        double *want = in(&q, "pooled");
        context(&q);
        for (int g = 0; g < 9; g++) {
            double *entry = want + g * width;
            ref_bf16_all(&s->c, entry, width);
            ref_rmsnorm(&s->c, &norm, entry, 1, entry);
            ref_rope(&s->c, freq, 4 * in_indices(&q, "group")[g], entry, width);
            if (index)
                ref_hadamard(&s->c, entry, width);
            if (index)
                ref_qdq_index(&s->c, entry);
            else
                ref_qdq_kv(&s->c, entry);
        }
        answer(&q);
        small_same(s, got(&q, "entries"), want, 9 * width);
        drop(&q);
    }
}

static void attention(void **state)
{
    small *s = *state;
    static const char *const ops[] = {"attention_swa", "attention_csa", "attention_hca"};
    for (int i = 0; i < 6; i++) {
        question q = make(s, ops[i / 2], both[i % 2], NULL, 0);
        dsv4_layer layer;
        dsv4_case_layer(&q.c, context(&q)->config, &layer);
        assert_int_equal(layer.kind, i / 2 == 0 ? DSV4_SWA : i / 2 == 1 ? DSV4_CSA : DSV4_HCA);
        answer(&q);
        for (int j = 0; j < 2; j++) {
            int64_t first = whole_sequences[j].first, rows = whole_sequences[j].rows;
            ref_state *one = ref_state_new(&s->config, 0, rows);
            double y[11 * D], query[11 * H * d], kv[11 * d];
            spy watch;
            spy_start(s, &watch);
            spy_see(&watch, "q", query, 0);
            spy_see(&watch, "kv", kv, 0);
            ref_attention(&s->c, &layer, one->layer, 0, in(&q, "x") + first * D, rows, y);
            small_same(s, got(&q, "y") + first * D, y, rows * D);
            small_same(s, got(&q, "q") + first * H * d, query, rows * H * d);
            small_same(s, got(&q, "kv") + first * d, kv, rows * d);
            ref_state_free(one);
        }
        dsv4_case_layer_free(&layer);
        drop(&q);
    }
}

static void blocks(void **state)
{
    small *s = *state;
    static const double ratios[] = {0, 4, 5};
    for (int i = 0; i < 6; i++) {
        question q = make(s, "block", both[i % 2], "ratio", ratios[i / 2]);
        double *h = in(&q, "h");
        dsv4_layer layer;
        dsv4_case_layer(&q.c, context(&q)->config, &layer);
        answer(&q);
        for (int j = 0; j < 2; j++) {
            ref_state *one = ref_state_new(&s->config, 0, whole_sequences[j].rows);
            ref_block(&s->c, &layer, one->layer,
                      in_indices(&q, "token_ids") + whole_sequences[j].first, 0,
                      h + whole_sequences[j].first * n * D, whole_sequences[j].rows);
            ref_state_free(one);
        }
        small_same(s, got(&q, "h_new"), h, N * n * D);
        dsv4_case_layer_free(&layer);
        drop(&q);
    }
}

static void mtp(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        question q = make(s, "mtp", both[i], NULL, 0);
        dsv4_layer layer;
        dsv4_case_layer(&q.c, context(&q)->config, &layer);
        const dsv4_model model = {.embed = matrix(&q, "embed"), .head = matrix(&q, "head"),
                                  .mtp = &layer};
        answer(&q);
        for (int j = 0; j < 2; j++) {
            int64_t first = whole_sequences[j].first, rows = whole_sequences[j].rows;
            s->config.num_hidden_layers = 0;
            ref_state *one = ref_state_new(&s->config, 1, rows);
            double logits[11 * V], query[11 * H * d], kv[11 * d];
            spy watch;
            spy_start(s, &watch);
            spy_see(&watch, "q", query, 0);
            spy_see(&watch, "kv", kv, 0);
            ref_mtp(&s->c, &model, one, in_indices(&q, "next_ids") + first,
                    in(&q, "h") + first * n * D, rows, logits);
            small_same(s, got(&q, "logits") + first * V, logits, rows * V);
            small_same(s, got(&q, "q") + first * H * d, query, rows * H * d);
            small_same(s, got(&q, "kv") + first * d, kv, rows * d);
            ref_state_free(one);
        }
        dsv4_case_layer_free(&layer);
        drop(&q);
    }
}

/* ---- schedules ---- */

/* The rows of the plain schedule, 0..17, in another order and other calls; -1 is padding. */
typedef struct {
    const char *name;
    int64_t row[24], calls, call[18];
    int batch;
} schedule;

static const schedule schedules[] = {
    {"token by token", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17},
     18, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0},
    {"in chunks", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17},
     7, {3, 1, 6, 1, 2, 3, 2}, 0},
    {"packed", {11, 12, 13, 14, 15, 16, 17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 1, {18}, 0},
    {"interleaved", {0, 11, 1, 12, 13, 2, 3, 4, 14, 5, 6, 7, 15, 16, 17, 8, 9, 10},
     8, {1, 1, 1, 2, 4, 3, 3, 3}, 0},
    {"padded", {0, 1, 2, 3, 4, 5, 6, -1, -1, -1, 11, 12, 13, 14,
                7, 8, 9, 10, -1, -1, -1, 15, 16, 17}, 2, {14, 10}, 0},
    {"a batch, padded in front", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
                                  -1, -1, -1, -1, 11, 12, 13, 14, 15, 16, 17}, 1, {22}, 2},
};

/* The case with its rows rearranged; padding is what must not be looked at. */
static question rearranged(question *q, const schedule *to)
{
    question other = {.s = q->s, .c = q->c};
    int64_t rows = 0;
    for (int64_t i = 0; i < to->calls; i++)
        rows += to->call[i];
    other.c.in = NULL;
    other.c.ins = 0;
    dsv4_case_set(&other.c, "batch", to->batch);
    for (int i = 0; i < q->c.ins; i++) {
        const dsv4_array *from = &q->c.in[i];
        bool calls = strcmp(from->name, "calls") == 0;
        bool sequence = strcmp(from->name, "sequence") == 0;
        int64_t shape[DSV4_ARRAY_RANK];
        memcpy(shape, from->shape, sizeof shape);
        bool by_row = !calls && from->shape[0] == N; /* no weight has as many */
        if (calls || by_row)
            shape[0] = calls ? to->calls : rows;
        dsv4_array *array =
            dsv4_case_add_in(&other.c, from->name, from->format, from->rank, shape);
        size_t bytes = (size_t)(from->count / from->shape[0] * dsv4_format_size(from->format));
        if (calls)
            memcpy(array->data, to->call, (size_t)to->calls * sizeof(int64_t));
        else if (!by_row)
            memcpy(array->data, from->data, bytes * (size_t)from->shape[0]);
        for (int64_t j = 0; by_row && j < rows; j++) {
            char *row = (char *)array->data + (size_t)j * bytes;
            if (to->row[j] >= 0)
                memcpy(row, (const char *)from->data + (size_t)to->row[j] * bytes, bytes);
            else
                memset(row, 0xff, bytes); /* NaN, or -1 */
            assert_true(to->row[j] >= 0 || !sequence || *(int64_t *)(void *)row == -1);
        }
    }
    return other;
}

static void compare_rows(question *q, const dsv4_array *got_out, const dsv4_array *want,
                         const schedule *to)
{
    int64_t width = want->count / N;
    for (int64_t j = 0; j < got_out->shape[0]; j++) {
        const double *row = (const double *)got_out->data + j * width;
        if (to->row[j] >= 0)
            small_near(q->s, row, (const double *)want->data + to->row[j] * width, width, 1e-12);
        else
            for (int64_t k = 0; k < width; k++)
                assert_true(isnan(row[k]));
    }
}

/* Every schedule gives the rows of the plain one. */
static void check_schedules(question *q)
{
    answer(q);
    for (size_t i = 0; i < COUNT(schedules); i++) {
        question other = rearranged(q, &schedules[i]);
        answer(&other);
        if (other.answer.outs != q->answer.outs)
            fail_msg("%s, %s: %d outputs", q->c.op->name, schedules[i].name, other.answer.outs);
        for (int j = 0; j < q->answer.outs; j++) {
            const dsv4_array *want = &q->answer.out[j], *out = &other.answer.out[j];
            if (want->shape[0] == N) {
                compare_rows(q, out, want, &schedules[i]);
                continue;
            }
            assert_int_equal(out->count, want->count); /* entries, sequence by sequence */
            small_near(q->s, (double *)out->data, (double *)want->data, want->count, 1e-12);
        }
        drop(&other);
    }
}

static void any_schedule(void **state)
{
    small *s = *state;
    static const struct { const char *op, *set; double value; } cases[] = {
        {"compressor_csa", NULL, 0}, {"compressor_csa", "index", 1}, {"compressor_hca", NULL, 0},
        {"attention_swa", NULL, 0}, {"attention_csa", NULL, 0}, {"attention_hca", NULL, 0},
        {"block", "ratio", 0}, {"block", "ratio", 4}, {"block", "ratio", 5}, {"mtp", NULL, 0},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        question q = make(s, cases[i].op, DSV4_EXACT, cases[i].set, cases[i].value);
        check_schedules(&q);
        drop(&q);
    }
    question q = make(s, "block", DSV4_EXACT, "hash", 1);
    check_schedules(&q);
    drop(&q);
}

/* ---- a model ---- */

static question make_forward(small *s, const whole *w)
{
    question q = make(s, "forward", w->numerics, NULL, 0);
    snprintf(q.c.directory, sizeof q.c.directory, "%s", w->dir);
    strcpy(q.c.checkpoint, ".");
    return q;
}

static void forward(void **state)
{
    small *s = *state;
    for (int i = 0; i < 2; i++) {
        whole w;
        whole_open(&w, both[i], MAKE_EXACT, NULL);
        int64_t width = w.model.config.vocab_size;
        question q = make_forward(s, &w);
        answer(&q);
        for (int j = 0; j < 2; j++) {
            int64_t first = whole_sequences[j].first, rows = whole_sequences[j].rows;
            double *logits = small_array(s, rows * width), *after = small_array(s, rows * width);
            whole_pass(&w, in_indices(&q, "token_ids") + first, rows, rows, NULL, logits, after);
            for (int64_t v = 0; v < width; v++)
                after[(rows - 1) * width + v] = NAN; /* nothing follows */
            small_same(s, got(&q, "logits") + first * width, logits, rows * width);
            small_same(s, got(&q, "mtp_logits") + first * width, after, rows * width);
        }
        if (both[i] == DSV4_EXACT)
            check_schedules(&q);
        drop(&q);
        whole_close(&w);
    }
}

static void without_mtp(void **state)
{
    small *s = *state;
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, CHANGES("num_nextn_predict_layers", "0"));
    question q = make_forward(s, &w);
    answer(&q);
    assert_int_equal(q.answer.outs, 1);
    drop(&q);
    whole_close(&w);
}

/* ---- refusals ---- */

/* The message for a case whose index input has one bad value. */
static void refused(small *s, question *q, const char *input, int64_t at, int64_t bad,
                    const char *message)
{
    int64_t *index = in_indices(q, input), before = index[at];
    index[at] = bad;
    s->error.text[0] = '\0';
    dsv4_case_free(&q->answer);
    q->answer = (dsv4_case){.op = q->c.op};
    assert_int_equal(ref_answer(NULL, &q->c, &q->answer, &s->error), -1);
    if (strstr(s->error.text, message) == NULL)
        fail_msg("got \"%s\", expected \"%s\"", s->error.text, message);
    assert_null(strchr(s->error.text, '\n'));
    s->error.text[0] = '\0';
    index[at] = before;
}

static void bad_indices(void **state)
{
    small *s = *state;
    static const struct {
        const char *op, *input;
        int64_t at, bad;
        const char *message;
    } cases[] = {
        {"embed", "token_ids", 2, 17, "embed/small: token_ids: value 2 is 17, expected 0..16"},
        {"embed", "token_ids", 0, -1, "embed/small: token_ids: value 0 is -1, expected 0..16"},
        {"rope", "positions", 4, -3, "rope/small: positions: value 4 is -3, expected 0.."},
        {"indexer_query", "positions", 1, -1, "indexer_query/small: positions: value 1 is -1"},
        {"indexer_select", "positions", 1, -1, "indexer_select/small: positions: value 1 is -1"},
        {"attention_output", "positions", 1, -1, "attention_output/small: positions: value 1 is"},
        {"compressor_entry", "group", 3, -1, "compressor_entry/small: group: value 3 is -1"},
        {"core_attn", "list", 80, 150, "core_attn/small: list: value 80 is 150, expected -1..149"},
        {"core_attn", "list", 80, -2, "core_attn/small: list: value 80 is -2, expected -1..149"},
        {"gate_hash", "token_ids", 1, 17, "gate_hash/small: token_ids: value 1 is 17, expected 0"},
        {"mtp", "next_ids", 13, 17, "mtp/small: next_ids: value 13 is 17, expected 0..16"},
        {"block", "sequence", 3, -2, "sequence"},
        {"mtp", "calls", 1, 8, "calls"},
        {"compressor_csa", "calls", 0, 0, "calls"},
        {"attention_swa", "sequence", 17, 99, "sequence"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        question q = make(s, cases[i].op, DSV4_EXACT, NULL, 0);
        refused(s, &q, cases[i].input, cases[i].at, cases[i].bad, cases[i].message);
        drop(&q);
    }
    for (int i = 0; i < 2; i++) {
        const char *op = i ? "block" : "moe";
        question q = make(s, op, DSV4_EXACT, "hash", 1);
        refused(s, &q, "token_ids", 2, 17, "token_ids: value 2 is 17, expected 0..16");
        drop(&q);
    }
    question q = make(s, "gate_hash", DSV4_EXACT, NULL, 0);
    int64_t used = 2 * in_indices(&q, "token_ids")[0];
    refused(s, &q, "tid2eid", used, 8, "tid2eid: value");
    drop(&q);
}

static void bad_numbers(void **state)
{
    small *s = *state;
    question q = make(s, "linear_fp8", DSV4_EXACT, NULL, 0);
    ((uint8_t *)dsv4_case_in(&q.c, "w.scale")->data)[0] = 255;
    q.answer = (dsv4_case){.op = q.c.op};
    assert_int_equal(ref_answer(NULL, &q.c, &q.answer, &s->error), -1);
    assert_string_equal(s->error.text,
                        "small: w.scale: value [0, 0] is NaN, expected a finite number");
    drop(&q);
}

static void bad_models(void **state)
{
    small *s = *state;
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    question q = make_forward(s, &w);
    refused(s, &q, "token_ids", 4, 31, "forward/small: token_ids: value 4 is 31, expected 0..30");
    refused(s, &q, "calls", 0, 12, "calls");
    strcpy(q.c.checkpoint, "nowhere");
    refused(s, &q, "token_ids", 0, 0, "nowhere/config.json");
    drop(&q);
    whole_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(all_of_the_table), small_test(codes), small_test(quantisation),
        small_test(linear), small_test(elements), small_test(rotation),
        small_test(hyper_connections), small_test(indexer), small_test(selection),
        small_test(entry_lists), small_test(gates), small_test(biased), small_test(experts),
        small_test(head), small_test(muon), small_test(entries), small_test(attention),
        small_test(blocks), small_test(mtp), small_test(any_schedule), small_test(forward),
        small_test(without_mtp), small_test(bad_indices), small_test(bad_numbers),
        small_test(bad_models),
    };
    return cmocka_run_group_tests_name("operators", tests, NULL, NULL) != 0;
}
