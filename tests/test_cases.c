/* Cases of golden vectors: their parts, their checks, their files. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "files.h"
#include "host/cases.h"
#include "host/h5.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define SHAPE(...) ((const int64_t[]){__VA_ARGS__})

/* ---- cases of every operator, from the table ---- */

/* What the symbols of the table's dims stand for. */
static const struct { const char *name; int64_t value; } sizes[] = {
    {"T", 3}, {"N", 4}, {"C", 1}, {"D", 8}, {"Q", 6}, {"H", 4}, {"d", 8}, {"g", 2}, {"o", 3},
    {"R", 4}, {"n_i", 3}, {"d_i", 8}, {"E", 3}, {"k", 2}, {"I", 5}, {"V", 7}, {"n", 2}, {"M", 5},
    {"L", 6}, {"K", 8}, {"O", 9}, {"G", 2}, {"k_i", 1}, {"rows", 3}, {"cols", 4},
};

static const struct { const char *name; double value; } params[] = {
    {"num_attention_heads", 4}, {"o_groups", 2}, {"hc_mult", 2}, {"index_n_heads", 3},
    {"index_head_dim", 8}, {"num_experts_per_tok", 2}, {"qk_rope_head_dim", 4}, {"index_topk", 1},
    {"block", 4}, {"hash", 0}, {"compressed", 1}, {"norm_topk_prob", 1}, {"index", 0},
    {"hc_sinkhorn_iters", 3}, {"sliding_window", 2}, {"rms_norm_eps", 1e-6}, {"hc_eps", 1e-6},
    {"original_max_position_embeddings", 64}, {"factor", 16}, {"rope_theta", 1e4},
    {"compress_rope_theta", 1.6e5}, {"beta_fast", 32}, {"beta_slow", 1},
};

static int64_t symbol(const char *name, size_t length, int64_t ratio)
{
    if (length == 1 && (*name == 'r' || *name == 'c'))
        return *name == 'r' ? ratio : ratio == 4 ? 2 : 1;
    for (size_t i = 0; i < COUNT(sizes); i++)
        if (strlen(sizes[i].name) == length && memcmp(sizes[i].name, name, length) == 0)
            return sizes[i].value;
    fail_msg("symbol %.*s has no size here", (int)length, name);
    return 0;
}

/* The value of one expression of the table, which ends at a space. */
static int64_t evaluate(const char *at, int64_t ratio)
{
    int64_t value = 1;
    char operation = '*';
    while (*at != '\0' && *at != ' ') {
        int64_t factor;
        if (*at == '(') {
            factor = 2 + symbol("n", 1, ratio); /* (2+n) */
            at = strchr(at, ')') + 1;
        } else if (*at >= '0' && *at <= '9') {
            factor = *at++ - '0';
        } else {
            size_t length = strcspn(at, "*/ ");
            factor = symbol(at, length, ratio);
            at += length;
        }
        value = operation == '*' ? value * factor : value / factor;
        if (*at == '*' || *at == '/')
            operation = *at++;
    }
    return value;
}

static int shape_of(const char *dims, int64_t ratio, int64_t shape[DSV4_ARRAY_RANK])
{
    int rank = 0;
    for (const char *at = dims; at != NULL; at = strchr(at, ' '), at += at != NULL)
        shape[rank++] = evaluate(at, ratio);
    return rank;
}

static dsv4_format code_format(const dsv4_operator *op)
{
    return strstr(op->name, "e4m3") != NULL   ? DSV4_FORMAT_E4M3
           : strstr(op->name, "e2m1") != NULL ? DSV4_FORMAT_E2M1
                                              : DSV4_FORMAT_E8M0;
}

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

static void add_input(dsv4_case *c, const dsv4_slot *slot, const char *name, int rank,
                      const int64_t *shape)
{
    char whole[2 * DSV4_NAME];
    snprintf(whole, sizeof whole, "%s%s", name,
             slot->kind == DSV4_SLOT_MATRIX ? ".weight" : "");
    dsv4_format format = slot->kind == DSV4_SLOT_INDICES ? DSV4_FORMAT_I64
                         : slot->kind == DSV4_SLOT_CODES ? code_format(c->op)
                                                         : DSV4_FORMAT_BF16;
    dsv4_array *array = dsv4_case_add_in(c, whole, format, rank, shape);
    for (int64_t i = 0; i < array->count && format == DSV4_FORMAT_BF16; i++)
        ((float *)array->data)[i] = (float)(i % 7) / 4;
    if (strcmp(name, "calls") == 0)
        *(int64_t *)array->data = symbol("N", 1, 1);
}

static void fill_inputs(dsv4_case *c, int64_t ratio, bool hash)
{
    for (const dsv4_slot *slot = c->op->in; slot->name != NULL; slot++) {
        int64_t shape[DSV4_ARRAY_RANK];
        if ((begins(slot->name, "attn.compressor.") && ratio == 0) ||
            (begins(slot->name, "attn.indexer.") && ratio != 4) ||
            (strcmp(slot->name, "ffn.gate.bias") == 0 && hash) ||
            (strcmp(slot->name, "ffn.gate.tid2eid") == 0 && !hash))
            continue;
        int rank = shape_of(slot->dims, ratio, shape);
        const char *star = strchr(slot->name, '*');
        for (int64_t i = 0; i < (star != NULL ? symbol("E", 1, 1) : 1); i++) {
            char name[DSV4_NAME / 2];
            if (star != NULL)
                snprintf(name, sizeof name, "%.*s%d%s", (int)(star - slot->name), slot->name,
                         (int)i,
                         star + 1);
            add_input(c, slot, star != NULL ? name : slot->name, rank, shape);
        }
    }
}

/* A well-formed case of any operator. A compressor's ratio is 2, for two groups of N = 4. */
static dsv4_case make_case(const char *op, int64_t ratio, bool hash)
{
    dsv4_case c = {.op = dsv4_operator_find(op), .name = "exact-any", .reason = "every slot"};
    assert_non_null(c.op);
    char names[1024];
    snprintf(names, sizeof names, "%s", c.op->params);
    for (char *name = strtok(names, " "); name != NULL; name = strtok(NULL, " ")) {
        double value = strcmp(name, "ratio") == 0 ? (double)ratio
                       : strcmp(name, "hash") == 0 ? hash : 0.5;
        for (size_t i = 0; i < COUNT(params); i++)
            if (strcmp(params[i].name, name) == 0 && strcmp(name, "hash") != 0)
                value = params[i].value;
        if (strcmp(name, "batch") != 0)
            dsv4_case_set(&c, name, value);
    }
    fill_inputs(&c, ratio, hash);
    if (strcmp(c.op->chapter, "forward") == 0)
        strcpy(c.checkpoint, "models/tiny");
    for (const dsv4_slot *slot = c.op->out; slot->name != NULL; slot++) {
        int64_t shape[DSV4_ARRAY_RANK];
        int rank = shape_of(slot->dims, ratio, shape);
        dsv4_case_add_out(&c, slot->name,
                          slot->kind == DSV4_SLOT_INDICES ? DSV4_FORMAT_I64 : DSV4_FORMAT_F64, rank,
                          shape);
    }
    c.tolerance = dsv4_alloc((size_t)c.outs, sizeof *c.tolerance);
    for (int i = 0; i < c.outs; i++)
        for (int tier = 0; tier < DSV4_TIERS; tier++)
            c.tolerance[i][tier] = (dsv4_tolerance){1e-6 * (tier + 1), 0.25 * i, 0.5};
    return c;
}

typedef struct { const char *op; int64_t ratio; bool hash; } variant;

/* Every operator once, and the layers of the other kinds. */
static int variants(variant list[])
{
    int count = 0;
    for (int i = 0; i < dsv4_operator_count; i++) {
        const char *name = dsv4_operators[i].name;
        bool csa = strstr(name, "attention_csa") != NULL || strcmp(name, "block") == 0;
        bool swa = strcmp(name, "attention_swa") == 0 || strcmp(name, "mtp") == 0;
        list[count++] = (variant){name, csa ? 4 : swa ? 0 : 2, false};
    }
    list[count++] = (variant){"block", 0, true};
    list[count++] = (variant){"block", 2, false};
    list[count++] = (variant){"moe", 2, true};
    list[count++] = (variant){"mtp", 4, false};
    return count;
}

enum { MAX_VARIANTS = 128 };

static void check_good(const dsv4_case *c)
{
    dsv4_error err = {""};
    int status = dsv4_case_check(c, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(status, 0);
}

static void check_bad(const dsv4_case *c, const char *expected)
{
    dsv4_error err = {""};
    assert_int_equal(dsv4_case_check(c, &err), -1);
    assert_string_equal(err.text, expected);
}

static dsv4_array *in(dsv4_case *c, const char *name)
{
    for (int i = 0; i < c->ins; i++)
        if (strcmp(c->in[i].name, name) == 0)
            return &c->in[i];
    fail_msg("no input %s", name);
    abort(); /* which the compiler knows not to return */
}

static void remove_in(dsv4_case *c, const char *name)
{
    dsv4_array *array = in(c, name);
    free(array->data);
    *array = c->in[--c->ins];
}

/* Another shape, zeros. */
static void reshape(dsv4_array *array, int rank, const int64_t *shape)
{
    array->rank = rank;
    array->count = 1;
    for (int i = 0; i < rank; i++)
        array->count *= array->shape[i] = shape[i];
    free(array->data);
    array->data = dsv4_alloc((size_t)array->count, (size_t)dsv4_format_size(array->format));
}

/* ---- parts ---- */

static void arrays_are_added_and_found(void **state)
{
    (void)state;
    dsv4_case c = {.op = dsv4_operator_find("forward"), .name = "x"};
    for (int i = 0; i < 100; i++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", i);
        dsv4_array *array = dsv4_case_add_in(&c, name, (dsv4_format)(i % DSV4_FORMATS), 2,
                                             SHAPE(i, 3));
        assert_int_equal(array->count, 3 * i);
        for (int64_t j = 0; j < array->count * dsv4_format_size(array->format); j++)
            assert_int_equal(((char *)array->data)[j], 0);
    }
    assert_int_equal(c.ins, 100);
    for (int i = 0; i < 100; i++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", i);
        assert_ptr_equal(dsv4_case_in(&c, name), &c.in[i]);
        assert_int_equal(c.in[i].shape[0], i);
    }
    assert_null(dsv4_case_in(&c, "a100"));
    assert_null(dsv4_case_out(&c, "a1"));

    dsv4_array *scalar = dsv4_case_add_out(&c, "scalar", DSV4_FORMAT_F64, 0, NULL);
    assert_int_equal(scalar->count, 1);
    *(double *)scalar->data = 2.5;
    assert_true(dsv4_array_value(scalar, 0) == 2.5);
    c.tolerance = dsv4_alloc(1, sizeof *c.tolerance);
    c.tolerance[0][1].rms = 7;
    dsv4_case_add_out(&c, "second", DSV4_FORMAT_I64, 1, SHAPE(2));
    dsv4_case_add_out(&c, "third", DSV4_FORMAT_I64, 1, SHAPE(2));
    assert_true(c.tolerance[0][1].rms == 7 && c.tolerance[2][1].rms == 0);
    dsv4_case_free(&c);
    assert_int_equal(c.ins, 0);
}

static void values_are_copied(void **state)
{
    (void)state;
    dsv4_case c = {.name = "x"};
    memcpy(dsv4_case_add_in(&c, "f", DSV4_FORMAT_F32, 1, SHAPE(2))->data, (float[]){1, -2.5f}, 8);
    memcpy(dsv4_case_add_in(&c, "i", DSV4_FORMAT_I64, 1, SHAPE(2))->data,
           SHAPE(INT64_MIN, 3), 16);
    dsv4_case_add_in(&c, "e", DSV4_FORMAT_E4M3, 1, SHAPE(2));
    double *values = dsv4_case_values(&c, "f");
    assert_true(values[0] == 1 && values[1] == -2.5);
    free(values);
    values = dsv4_case_values(&c, "i");
    assert_true(values[1] == 3);
    free(values);
    int64_t *indices = dsv4_case_indices(&c, "i");
    assert_true(indices[0] == INT64_MIN && indices[1] == 3);
    free(indices);
    assert_true(isnan(dsv4_array_value(dsv4_case_in(&c, "e"), 0)));
    dsv4_case_set(&c, "batch", 2);
    dsv4_case_set(&c, "ratio", 4);
    dsv4_case_set(&c, "batch", 3);
    assert_int_equal(c.params, 2);
    assert_true(dsv4_case_param(&c, "batch", 9) == 3 && dsv4_case_param(&c, "hash", 9) == 9);
    dsv4_case_free(&c);
}

static const char *the_long_name =
    "0123456789012345678901234567890123456789012345678901234567890123";

static int add_mistake(int count, char **words)
{
    (void)count;
    dsv4_case c = {.name = "x"};
    switch (words[0][0]) {
    case 'n': dsv4_case_add_in(&c, the_long_name, DSV4_FORMAT_F32, 1, SHAPE(1)); break;
    case 's': dsv4_case_add_in(&c, "a", DSV4_FORMAT_F32, 2, SHAPE(INT64_MAX, 2)); break;
    case 'r': dsv4_case_add_in(&c, "a", DSV4_FORMAT_F32, 5, SHAPE(1, 1, 1, 1, 1)); break;
    case 'm': dsv4_case_values(&c, "absent"); break;
    case 'p':
        for (int i = 0; i <= DSV4_MAX_PARAMS; i++) {
            char name[16];
            snprintf(name, sizeof name, "p%d", i);
            dsv4_case_set(&c, name, 0);
        }
        break;
    default:
        dsv4_case_add_in(&c, "a", DSV4_FORMAT_F32, 1, SHAPE(1));
        dsv4_case_add_in(&c, "a", DSV4_FORMAT_F32, 1, SHAPE(1));
    }
    return 0;
}

/* Nothing is cut off in silence. */
static void mistakes_in_building_end_the_program(void **state)
{
    (void)state;
    const struct { const char *what, *says; } mistakes[] = {
        {"name", "the name is too long"}, {"shape", "impossible shape"},
        {"rank", "rank out of range"},    {"missing", "the case lacks this input"},
        {"params", "too many parameters"}, {"twice", "the case has this input already"},
    };
    for (size_t i = 0; i < COUNT(mistakes); i++) {
        command_result result = command_call(add_mistake, mistakes[i].what);
        assert_int_equal(result.code, 2);
        assert_non_null(strstr(result.err, mistakes[i].says));
        command_free(&result);
    }
}

/* ---- configuration and weights ---- */

static void shapes_and_params_make_a_config(void **state)
{
    (void)state;
    dsv4_config config;
    dsv4_case c = make_case("attention_csa", 4, false);
    dsv4_case_config(&c, &config);
    assert_int_equal(config.hidden_size, 8);
    assert_int_equal(config.num_attention_heads, 4);
    assert_int_equal(config.head_dim, 8);
    assert_int_equal(config.q_lora_rank, 6);
    assert_int_equal(config.o_groups, 2);
    assert_int_equal(config.o_lora_rank, 3);
    assert_int_equal(config.index_n_heads, 3);
    assert_int_equal(config.index_head_dim, 8);
    assert_int_equal(config.index_topk, 1);
    assert_int_equal(config.sliding_window, 2);
    assert_int_equal(config.qk_rope_head_dim, 4);
    assert_int_equal(config.num_hidden_layers, 1);
    assert_int_equal(dsv4_config_kind(&config, 0), DSV4_CSA);
    assert_int_equal(config.compress_ratios[1], 4);
    assert_true(config.rope_scaling.present);
    assert_true(config.rope_scaling.factor == 16 && config.rope_scaling.beta_fast == 32);
    assert_true(config.rope_scaling.original_max_position_embeddings == 64);
    assert_true(config.compress_rope_theta == 1.6e5 && config.rope_theta == 1e4);
    dsv4_config_free(&config);
    dsv4_case_set(&c, "factor", 0);
    dsv4_case_config(&c, &config);
    assert_false(config.rope_scaling.present);
    dsv4_config_free(&config);
    dsv4_case_set(&c, "factor", 16);
    dsv4_case_set(&c, "original_max_position_embeddings", 0);
    dsv4_case_config(&c, &config);
    assert_false(config.rope_scaling.present);
    dsv4_config_free(&config);
    dsv4_case_free(&c);

    c = make_case("moe", 2, true);
    dsv4_case_set(&c, "norm_topk_prob", 0);
    dsv4_case_config(&c, &config);
    assert_int_equal(config.n_routed_experts, 3);
    assert_int_equal(config.moe_intermediate_size, 5);
    assert_int_equal(config.num_experts_per_tok, 2);
    assert_int_equal(config.vocab_size, 7);
    assert_int_equal(config.num_hash_layers, 1);
    assert_false(config.norm_topk_prob);
    assert_true(config.swiglu_limit == 0.5 && config.routed_scaling_factor == 0.5);
    dsv4_config_free(&config);
    dsv4_case_free(&c);
}

static void what_a_case_lacks_is_neutral(void **state)
{
    (void)state;
    dsv4_case c = make_case("hadamard", 2, false);
    dsv4_config config;
    dsv4_case_config(&c, &config);
    assert_true(config.rms_norm_eps == 1e-6 && config.hc_eps == 1e-6);
    assert_true(config.routed_scaling_factor == 1 && config.swiglu_limit == 0);
    assert_true(config.norm_topk_prob && !config.rope_scaling.present);
    assert_int_equal(config.hc_mult, 4);
    assert_int_equal(config.hc_sinkhorn_iters, 20);
    assert_int_equal(config.index_head_dim, 8);
    assert_int_equal(config.compress_ratios[0], 0);
    dsv4_config_free(&config);
    dsv4_case_free(&c);

    c = make_case("compressor_hca", 2, false);
    dsv4_case_config(&c, &config);
    assert_int_equal(config.head_dim, 8);
    assert_int_equal(config.index_head_dim, 0);
    dsv4_config_free(&config);
    dsv4_case_set(&c, "index", 1);
    dsv4_case_config(&c, &config);
    assert_int_equal(config.index_head_dim, 8);
    dsv4_config_free(&config);
    dsv4_case_free(&c);

    c = make_case("mhc_sinkhorn", 2, false); /* n from the shape alone */
    c.params = 0;
    dsv4_case_config(&c, &config);
    assert_int_equal(config.hc_mult, 2);
    dsv4_config_free(&config);
    dsv4_case_free(&c);

    c = make_case("mhc_mix", 2, false); /* n and D from (2+n)*n and n*D */
    c.params = 0;
    dsv4_case_config(&c, &config);
    assert_int_equal(config.hc_mult, 2);
    assert_int_equal(config.hidden_size, 8);
    dsv4_config_free(&config);
    dsv4_case_free(&c);
}

static void slots_become_matrices(void **state)
{
    (void)state;
    dsv4_case c = {.name = "exact-x"};
    dsv4_case_add_in(&c, "a.weight", DSV4_FORMAT_E4M3, 2, SHAPE(130, 64));
    dsv4_case_add_in(&c, "a.scale", DSV4_FORMAT_E8M0, 2, SHAPE(2, 1));
    dsv4_case_add_in(&c, "b.weight", DSV4_FORMAT_E2M1, 2, SHAPE(3, 32));
    dsv4_case_add_in(&c, "b.scale", DSV4_FORMAT_E8M0, 2, SHAPE(3, 2));
    dsv4_case_add_in(&c, "c.weight", DSV4_FORMAT_BF16, 2, SHAPE(3, 4));
    dsv4_case_add_in(&c, "v", DSV4_FORMAT_F32, 1, SHAPE(5));
    dsv4_case_add_in(&c, "table", DSV4_FORMAT_I64, 2, SHAPE(7, 2));
    const struct {
        const char *slot, *weight, *scale;
        dsv4_dtype dtype;
        int64_t rows, cols;
    } expected[] = {
        {"a", "a.weight", "a.scale", DSV4_F8_E4M3, 130, 64},
        {"b", "b.weight", "b.scale", DSV4_I8, 3, 64},
        {"c", "c.weight", NULL, DSV4_F32, 3, 4},
        {"c.weight", "c.weight", NULL, DSV4_F32, 3, 4},
        {"v", "v", NULL, DSV4_F32, 1, 5},
        {"table", "table", NULL, DSV4_I64, 7, 2},
    };
    for (size_t i = 0; i < COUNT(expected); i++) {
        dsv4_matrix m = dsv4_case_matrix(&c, expected[i].slot);
        assert_string_equal(m.name, expected[i].weight);
        assert_string_equal(m.file, "exact-x");
        assert_int_equal(m.dtype, expected[i].dtype);
        assert_int_equal(m.rows, expected[i].rows);
        assert_int_equal(m.cols, expected[i].cols);
        assert_ptr_equal(m.data, dsv4_case_in(&c, expected[i].weight)->data);
        assert_ptr_equal(m.scale, expected[i].scale != NULL
                                      ? dsv4_case_in(&c, expected[i].scale)->data : NULL);
    }
    dsv4_matrix none = dsv4_case_matrix(&c, "absent");
    assert_true(none.rows == 0 && none.data == NULL);
    dsv4_case_free(&c);
}

static void slots_become_a_layer(void **state)
{
    (void)state;
    dsv4_case c = make_case("mtp", 4, false);
    dsv4_config config;
    dsv4_layer layer;
    dsv4_case_config(&c, &config);
    dsv4_case_layer(&c, &config, &layer);
    assert_int_equal(layer.kind, DSV4_CSA);
    assert_int_equal(layer.ratio, 4);
    assert_int_equal(layer.index, 0);
    assert_false(layer.hash);
    const struct { const dsv4_matrix *got; const char *name; } bound[] = {
        {&layer.attn.attn_sink, "attn.attn_sink"}, {&layer.attn.wq_a, "attn.wq_a.weight"},
        {&layer.attn.q_norm, "attn.q_norm.weight"}, {&layer.attn.wo_b, "attn.wo_b.weight"},
        {&layer.attn.compressor.ape, "attn.compressor.ape"},
        {&layer.attn.compressor.wgate, "attn.compressor.wgate.weight"},
        {&layer.attn.indexer.weights_proj, "attn.indexer.weights_proj.weight"},
        {&layer.attn.indexer.compressor.norm, "attn.indexer.compressor.norm.weight"},
        {&layer.ffn.gate.weight, "ffn.gate.weight"}, {&layer.ffn.gate.bias, "ffn.gate.bias"},
        {&layer.ffn.experts[2].w3, "ffn.experts.2.w3.weight"},
        {&layer.ffn.shared_experts.w2, "ffn.shared_experts.w2.weight"},
        {&layer.hc_attn.fn, "hc_attn_fn"}, {&layer.hc_ffn.scale, "hc_ffn_scale"},
        {&layer.e_proj, "e_proj.weight"}, {&layer.hnorm, "hnorm.weight"},
        {&layer.norm, "norm.weight"}, {&layer.hc_head.base, "hc_head_base"},
    };
    for (size_t i = 0; i < COUNT(bound); i++) {
        assert_non_null(bound[i].got->name);
        assert_string_equal(bound[i].got->name, bound[i].name);
        assert_ptr_equal(bound[i].got->data, in(&c, bound[i].name)->data);
    }
    assert_null(layer.ffn.gate.tid2eid.data);
    dsv4_case_layer_free(&layer);
    dsv4_config_free(&config);
    dsv4_case_free(&c);
}

/* ---- schedule ---- */

static dsv4_case scheduled(int64_t batch, const int64_t *sequence, int64_t rows,
                           const int64_t *calls, int64_t count)
{
    dsv4_case c = {.op = dsv4_operator_find("block"), .name = "exact-x"};
    if (batch >= 0)
        dsv4_case_set(&c, "batch", (double)batch);
    memcpy(dsv4_case_add_in(&c, "sequence", DSV4_FORMAT_I64, 1, &rows)->data, sequence,
           (size_t)rows * sizeof *sequence);
    memcpy(dsv4_case_add_in(&c, "calls", DSV4_FORMAT_I64, 1, &count)->data, calls,
           (size_t)count * sizeof *calls);
    return c;
}

#define SCHEDULED(batch, sequence, calls)                                                          \
    scheduled(batch, sequence, sizeof(sequence) / 8, calls, sizeof(calls) / 8)

static void rows_get_positions(void **state)
{
    (void)state;
    /* Two calls packed, a decoding step each, padding, and a sequence that begins late. */
    const int64_t sequence[] = {0, 0, 0, 1, 1, -1, 0, 1, 0, 0, 2}, calls[] = {6, 1, 1, 3};
    const int64_t position[] = {0, 1, 2, 0, 1, -1, 3, 2, 4, 5, 0};
    const int64_t call[] = {0, 0, 0, 0, 0, 0, 1, 2, 3, 3, 3};
    const int64_t start[] = {0, 0, 0, 0, 0, -1, 3, 2, 4, 4, 0};
    dsv4_case c = SCHEDULED(-1, sequence, calls);
    dsv4_schedule s;
    dsv4_error err = {""};
    assert_int_equal(dsv4_case_schedule(&c, &s, &err), 0);
    assert_int_equal(s.rows, 11);
    assert_int_equal(s.calls, 4);
    assert_int_equal(s.sequences, 3);
    assert_memory_equal(s.sequence, sequence, sizeof sequence);
    assert_memory_equal(s.position, position, sizeof position);
    assert_memory_equal(s.call, call, sizeof call);
    assert_memory_equal(s.start, start, sizeof start);
    assert_memory_equal(s.length, SHAPE(6, 3, 1), 24);
    dsv4_schedule_free(&s);
    dsv4_case_free(&c);
}

static void a_batch_is_padded_in_front(void **state)
{
    (void)state;
    const int64_t sequence[] = {-1, -1, 0, 1, 1, 1, 0, 1, -1, -1}, calls[] = {6, 2, 2};
    dsv4_case c = SCHEDULED(2, sequence, calls);
    dsv4_schedule s;
    dsv4_error err = {""};
    assert_int_equal(dsv4_case_schedule(&c, &s, &err), 0);
    assert_memory_equal(s.position, SHAPE(-1, -1, 0, 0, 1, 2, 1, 3, -1, -1), 80);
    dsv4_schedule_free(&s);
    dsv4_case_free(&c);
}

static void schedule_refuses(dsv4_case c, const char *expected)
{
    dsv4_schedule s;
    dsv4_error err = {""};
    assert_int_equal(dsv4_case_schedule(&c, &s, &err), -1);
    assert_string_equal(err.text, expected);
    dsv4_case_free(&c);
}

static void contradictions_are_refused(void **state)
{
    (void)state;
    const int64_t three[] = {0, 0, 0}, two[] = {2}, four[] = {3, 1}, none[] = {3, 0}, all[] = {3};
    schedule_refuses(SCHEDULED(-1, three, two), "block/exact-x/in/calls: expected 3 rows in all, "
                     "as many as sequence has, got 2");
    schedule_refuses(SCHEDULED(-1, three, four), "block/exact-x/in/calls: expected 3 rows in all, "
                     "as many as sequence has, got more");
    schedule_refuses(SCHEDULED(-1, three, none), "block/exact-x/in/calls: expected at least 1 row "
                     "in each call, got 0 in call 1");
    const int64_t gap[] = {0, 2, 2}, low[] = {0, -2, 0}, high[] = {0, 3, 0}, apart[] = {0, 1, 0};
    schedule_refuses(SCHEDULED(-1, gap, all), "block/exact-x/in/sequence: expected rows of all "
                     "sequences 0 to 2, got none of 1");
    schedule_refuses(SCHEDULED(-1, low, all), "block/exact-x/in/sequence: expected -1 or the "
                     "number of a sequence, below 3, got -2 in row 1");
    schedule_refuses(SCHEDULED(-1, high, all), "block/exact-x/in/sequence: expected -1 or the "
                     "number of a sequence, below 3, got 3 in row 1");
    schedule_refuses(SCHEDULED(-1, apart, all), "block/exact-x/in/sequence: expected the rows of a "
                     "sequence together within a call, got row 2 of sequence 0 apart from row 0");
    schedule_refuses(SCHEDULED(2, three, all), "block/exact-x/in/calls: expected a multiple of "
                     "batch = 2, got 3 in call 0");
    const int64_t behind[] = {0, -1, 1, 1}, mixed[] = {0, 1, 1, 1}, same[] = {-1, 0, 0, 0},
        whole[] = {4};
    schedule_refuses(SCHEDULED(2, behind, whole), "block/exact-x/in/sequence: expected one "
                     "sequence in each of the batch's rows, padded in front, got -1 in row 1");
    schedule_refuses(SCHEDULED(2, mixed, whole), "block/exact-x/in/sequence: expected one sequence "
                     "in each of the batch's rows, padded in front, got 1 in row 1");
    schedule_refuses(SCHEDULED(2, same, whole), "block/exact-x/in/sequence: expected one sequence "
                     "in each of the batch's rows, padded in front, got 0 in row 2");
    dsv4_case empty = {.op = dsv4_operator_find("block"), .name = "exact-x"};
    schedule_refuses(empty, "block/exact-x/in: expected sequence [N] and calls [C] of format i64");
}

/* ---- checks ---- */

static void every_operator_has_good_cases(void **state)
{
    (void)state;
    variant list[MAX_VARIANTS];
    for (int i = 0, count = variants(list); i < count; i++) {
        dsv4_case c = make_case(list[i].op, list[i].ratio, list[i].hash);
        check_good(&c);
        dsv4_case_free(&c);
    }
}

/* Dimensions that a case may choose, as nothing else follows from them. */
static bool is_free(const char *op, const char *name, int dim)
{
    return (strcmp(name, "embed.weight") == 0 && dim == 0 && strcmp(op, "embed") == 0) ||
           (strcmp(name, "entries") == 0 && dim == 0 && strcmp(op, "core_attn") == 0) ||
           (strcmp(name, "list") == 0 && dim == 1) ||
           (strcmp(op, "indexer_select") == 0 && strcmp(name, "score") == 0 && dim == 1) ||
           (strcmp(op, "gate_hash") == 0 && strcmp(name, "weight") == 0 && dim == 0) ||
           (strstr(name, "tid2eid") != NULL && dim == 0);
}

/* Every array taken away, and every dimension made longer. */
static void every_shape_matters(void **state)
{
    (void)state;
    variant list[MAX_VARIANTS];
    for (int i = 0, count = variants(list); i < count; i++) {
        dsv4_case whole = make_case(list[i].op, list[i].ratio, list[i].hash);
        for (int j = 0; j < whole.ins + whole.outs; j++) {
            bool input = j < whole.ins;
            int at = input ? j : j - whole.ins;
            int rank = (input ? whole.in : whole.out)[at].rank;
            for (int dim = 0; dim < rank; dim++) {
                dsv4_case c = make_case(list[i].op, list[i].ratio, list[i].hash);
                dsv4_array *array = &(input ? c.in : c.out)[at];
                int64_t shape[DSV4_ARRAY_RANK];
                memcpy(shape, array->shape, sizeof shape);
                shape[dim]++;
                reshape(array, rank, shape);
                dsv4_error err = {""};
                if (dsv4_case_check(&c, &err) == 0 && !is_free(list[i].op, array->name, dim))
                    fail_msg("%s: %s: dimension %d may change", list[i].op, array->name, dim);
                if (err.text[0] == '\0' && !is_free(list[i].op, array->name, dim))
                    fail_msg("no message");
                dsv4_case_free(&c);
            }
        }
        dsv4_case_free(&whole);
    }
}

static void missing_arrays_are_named(void **state)
{
    (void)state;
    variant list[MAX_VARIANTS];
    for (int i = 0, count = variants(list); i < count; i++) {
        dsv4_case whole = make_case(list[i].op, list[i].ratio, list[i].hash);
        for (int j = 0; j < whole.ins; j++) {
            dsv4_case c = make_case(list[i].op, list[i].ratio, list[i].hash);
            char name[DSV4_NAME];
            strcpy(name, c.in[j].name);
            remove_in(&c, name);
            dsv4_error err = {""};
            bool optional = strncmp(name, "main.", 5) == 0 ||
                            (strcmp(list[i].op, "expert") == 0 && strcmp(name, "weight") == 0);
            assert_int_equal(dsv4_case_check(&c, &err), optional ? 0 : -1);
            if (!optional && strstr(err.text, ", got none") == NULL)
                fail_msg("%s without %s: %s", list[i].op, name, err.text);
            dsv4_case_free(&c);
        }
        dsv4_case_free(&whole);
    }
    dsv4_case c = make_case("mhc_pre", 2, false);
    free(c.out[--c.outs].data);
    check_bad(&c, "mhc_pre/exact-any/out/u: expected [T D], got none");
    dsv4_case_free(&c);
}

static void texts_are_checked(void **state)
{
    (void)state;
    dsv4_case c = make_case("hadamard", 2, false);
    strcpy(c.name, "Up/er");
    check_bad(&c, "hadamard: 'Up/er': expected a case's name of a-z, 0-9, - and _");
    strcpy(c.name, "x");
    strcpy(c.flags, "seam,tie");
    check_bad(&c, "hadamard/x: flags: expected only the characters "
              "abcdefghijklmnopqrstuvwxyz0123456789-_ , got byte 0x2c");
    strcpy(c.flags, "seam tie");
    strcpy(c.reason, "two\nlines");
    check_bad(&c, "hadamard/x: reason: expected one line of text, got byte 0x0a");
    strcpy(c.reason, "");
    strcpy(c.checkpoint, "models/a");
    check_bad(&c, "hadamard/x: checkpoint: expected none");
    strcpy(c.checkpoint, "../a");
    check_bad(&c, "hadamard/x: checkpoint: expected a directory beside the vector files, got ../a");
    dsv4_case_free(&c);
    c = make_case("forward", 2, false);
    c.checkpoint[0] = '\0';
    check_bad(&c, "forward/exact-any: checkpoint: expected one");
    dsv4_case_free(&c);
}

static void params_are_checked(void **state)
{
    (void)state;
    dsv4_case c = make_case("block", 4, false);
    dsv4_case_set(&c, "batch", 1);
    check_good(&c);
    const struct { const char *name; double good, bad; const char *says; } wrong[] = {
        {"hc_mult", 2, 2.5, "parameter hc_mult: expected an integer from 1 to 1024, got 2.5"},
        {"hash", 0, 2, "parameter hash: expected an integer from 0 to 1, got 2"},
        {"rms_norm_eps", 0, -1, "parameter rms_norm_eps: expected a number from 0 to 1, got -1"},
        {"swiglu_limit", 0, NAN, "parameter swiglu_limit: expected a finite number, got nan"},
        {"qk_rope_head_dim", 4, 3, "parameter qk_rope_head_dim: expected an even number, got 3"},
        {"qk_rope_head_dim", 4, 10,
         "parameter qk_rope_head_dim: expected at most 8, the width, got 10"},
        {"num_experts_per_tok", 2, 4,
         "parameter num_experts_per_tok: expected at most 3 experts, got 4"},
        {"ratio", 4, 0, "in/attn.compressor.ape: expected none in a layer of this kind (ratio, "
         "hash), "
                        "got one"},
        {"hash", 0, 1, "in/ffn.gate.bias: expected none in a layer of this kind (ratio, hash), "
         "got one"},
    };
    for (size_t i = 0; i < COUNT(wrong); i++) {
        char expected[256];
        dsv4_case_set(&c, wrong[i].name, wrong[i].bad);
        snprintf(expected, sizeof expected, "block/exact-any%s%s",
                 begins(wrong[i].says, "in/") ? "/" : ": ", wrong[i].says);
        check_bad(&c, expected);
        dsv4_case_set(&c, wrong[i].name, wrong[i].good);
    }
    check_good(&c);
    dsv4_case_set(&c, "momentum", 1);
    dsv4_error err = {""};
    assert_int_equal(dsv4_case_check(&c, &err), -1);
    assert_non_null(strstr(err.text, "parameter momentum: expected only sliding_window num_"));
    c.params--;
    c.params -= 2; /* index_topk, and batch, which may be absent */
    check_bad(&c, "block/exact-any: parameter index_topk: expected a number, got none");
    dsv4_case_free(&c);
    c = make_case("indexer_select", 0, false);
    check_bad(&c, "indexer_select/exact-any: parameter ratio: expected at least 1, got 0");
    dsv4_case_free(&c);
    c = make_case("attention_hca", 4, false);
    check_bad(&c, "attention_hca/exact-any: parameter ratio: expected that of an HCA layer, got 4");
    dsv4_case_set(&c, "ratio", 0);
    check_bad(&c, "attention_hca/exact-any: parameter ratio: expected that of an HCA layer, got 0");
    dsv4_case_free(&c);
    c = make_case("attention_swa", 2, false);
    check_bad(&c, "attention_swa/exact-any: parameter ratio: expected 0, of an SWA layer, got 2");
    dsv4_case_free(&c);
    c = make_case("attention_csa", 2, false);
    check_bad(&c, "attention_csa/exact-any: parameter ratio: expected 4, of a CSA layer, got 2");
    dsv4_case_free(&c);
}

static void formats_are_checked(void **state)
{
    (void)state;
    dsv4_case c = make_case("linear_fp8", 2, false);
    dsv4_array *x = in(&c, "x");
    x->format = DSV4_FORMAT_I64;
    check_bad(&c, "linear_fp8/exact-any/in/x: expected format bf16 f32, got i64");
    x->format = DSV4_FORMAT_F32;
    check_good(&c);
    x->format = DSV4_FORMAT_BF16;
    ((float *)x->data)[2] = 1 + 0x1p-8f;
    check_bad(&c, "linear_fp8/exact-any/in/x: expected bf16 numbers, got 1.00390625 at 2");
    ((float *)x->data)[2] = INFINITY;
    check_bad(&c, "linear_fp8/exact-any/in/x: expected a finite number, got inf at 2");
    ((float *)x->data)[2] = 0;
    c.out[0].format = DSV4_FORMAT_I64;
    check_bad(&c, "linear_fp8/exact-any/out/y: expected format f64 f32, got i64");
    c.out[0].format = DSV4_FORMAT_F64;
    ((double *)c.out[0].data)[0] = NAN; /* free */
    check_good(&c);
    ((double *)c.out[0].data)[0] = -INFINITY;
    check_bad(&c, "linear_fp8/exact-any/out/y: expected a finite number, got -inf at 0");
    dsv4_case_free(&c);

    c = make_case("quant_e4m3_decode", 2, false);
    ((uint8_t *)c.in[0].data)[3] = 0xff;
    check_bad(&c, "quant_e4m3_decode/exact-any/in/codes: expected no NaN code, got 0xff at 3");
    ((uint8_t *)c.in[0].data)[3] = 0xfe;
    check_good(&c);
    c.in[0].format = DSV4_FORMAT_E2M1;
    check_bad(&c, "quant_e4m3_decode/exact-any/in/codes: expected format as the operator's name "
              "says, got e2m1");
    dsv4_case_free(&c);
    c = make_case("quant_e8m0_decode", 2, false);
    ((uint8_t *)c.in[0].data)[0] = 0x7f;
    check_good(&c);
    ((uint8_t *)c.in[0].data)[0] = 0xff;
    check_bad(&c, "quant_e8m0_decode/exact-any/in/codes: expected no NaN code, got 0xff at 0");
    dsv4_case_free(&c);
}

/* [O, K] = [130, 160], of FP8 or FP4. */
static dsv4_case quantised(dsv4_format format)
{
    dsv4_case c = make_case("linear_fp8", 2, false);
    reshape(in(&c, "x"), 2, SHAPE(3, 160));
    reshape(&c.out[0], 2, SHAPE(3, 130));
    dsv4_array *weight = in(&c, "w.weight");
    weight->format = format;
    bool fp4 = format == DSV4_FORMAT_E2M1;
    reshape(weight, 2, fp4 ? SHAPE(130, 80) : SHAPE(130, 160));
    dsv4_case_add_in(&c, "w.scale", DSV4_FORMAT_E8M0, 2, fp4 ? SHAPE(130, 5) : SHAPE(2, 2));
    return c;
}

static void scales_go_with_their_weights(void **state)
{
    (void)state;
    dsv4_case c = quantised(DSV4_FORMAT_E4M3);
    check_good(&c);
    c.numerics = DSV4_RELEASED;
    check_bad(&c, "linear_fp8/exact-any/in/w.weight: expected a multiple of 128 columns in "
              "released numerics, got 160");
    c.numerics = DSV4_EXACT;
    reshape(in(&c, "w.scale"), 2, SHAPE(1, 2));
    check_bad(&c, "linear_fp8/exact-any/in/w.scale: expected shape [2, 2] [O K], got [1, 2]");
    remove_in(&c, "w.scale");
    check_bad(&c, "linear_fp8/exact-any/in/w.scale: expected the scale of an e4m3 weight, got "
              "none");
    dsv4_case_free(&c);
    c = quantised(DSV4_FORMAT_E2M1);
    check_good(&c);
    reshape(in(&c, "w.scale"), 2, SHAPE(130, 2));
    check_bad(&c, "linear_fp8/exact-any/in/w.scale: expected shape [130, 5] [O K], got [130, 2]");
    reshape(in(&c, "x"), 2, SHAPE(3, 80));
    reshape(in(&c, "w.weight"), 2, SHAPE(130, 40));
    check_bad(&c, "linear_fp8/exact-any/in/w.weight: expected shape [130, ?] [O K] of two codes in "
              "a byte, in blocks of 32 codes, got [130, 40]");
    dsv4_case_free(&c);
    c = make_case("linear_fp8", 2, false);
    dsv4_case_add_in(&c, "w.scale", DSV4_FORMAT_E8M0, 2, SHAPE(1, 1));
    check_bad(&c, "linear_fp8/exact-any/in/w.scale: expected none beside a plain weight, got one");
    dsv4_case_free(&c);
}

static void names_and_ranks_are_checked(void **state)
{
    (void)state;
    dsv4_case c = make_case("moe", 2, false);
    dsv4_case_add_in(&c, "ffn.experts.3.w1.weight", DSV4_FORMAT_BF16, 2, SHAPE(5, 8));
    check_bad(&c, "moe/exact-any/in/ffn.experts.3.w1.weight: expected only experts below 3");
    remove_in(&c, "ffn.experts.3.w1.weight");
    check_good(&c);
    const char *const others[] = {"ffn.experts.01.w1.weight", "ffn.experts..w1.weight",
                                  "ffn.experts.1.w4.weight", "ffn.experts.1.w1", "extra",
                                  "ffn.experts.1.w1.weight.weight"};
    for (size_t i = 0; i < COUNT(others); i++) {
        char expected[256];
        dsv4_case_add_in(&c, others[i], DSV4_FORMAT_BF16, 2, SHAPE(5, 8));
        snprintf(expected, sizeof expected,
                 "moe/exact-any/in/%s: expected a slot of the operator, got another name",
                 others[i]);
        check_bad(&c, expected);
        remove_in(&c, others[i]);
    }
    reshape(in(&c, "token_ids"), 2, SHAPE(3, 1));
    check_bad(&c, "moe/exact-any/in/token_ids: expected 1 dimensions [T], got 2");
    dsv4_case_free(&c);
    c = make_case("mhc_pre", 2, false);
    in(&c, "x")->shape[0] = 4;
    check_bad(&c, "mhc_pre/exact-any/in/x: expected as many values as the shape says");
    reshape(in(&c, "x"), 3, SHAPE(4, 2, 8));
    check_bad(&c, "mhc_pre/exact-any/in/x: expected shape [3, 2, 8] [T n D], got [4, 2, 8]");
    dsv4_case_free(&c);
}

static void indices_stay_in_range(void **state)
{
    (void)state;
    dsv4_case c = make_case("core_attn", 2, false);
    ((int64_t *)in(&c, "list")->data)[1] = -1;
    ((int64_t *)in(&c, "list")->data)[2] = 4;
    check_good(&c);
    ((int64_t *)in(&c, "list")->data)[2] = 5;
    check_bad(&c, "core_attn/exact-any/in/list: expected -1 to 4, got 5 at 2");
    dsv4_case_free(&c);
    c = make_case("gate_hash", 2, false);
    ((int64_t *)in(&c, "token_ids")->data)[1] = 7;
    check_bad(&c, "gate_hash/exact-any/in/token_ids: expected 0 to 6, got 7 at 1");
    ((int64_t *)in(&c, "token_ids")->data)[1] = 6;
    ((int64_t *)in(&c, "tid2eid")->data)[0] = 3;
    check_bad(&c, "gate_hash/exact-any/in/tid2eid: expected 0 to 2, got 3 at 0");
    dsv4_case_free(&c);
    c = make_case("rope", 2, false);
    ((int64_t *)in(&c, "positions")->data)[0] = -1;
    check_bad(&c, "rope/exact-any/in/positions: expected 0 to 2147483647, got -1 at 0");
    dsv4_case_free(&c);
    c = make_case("compressor_hca", 2, false);
    ((int64_t *)in(&c, "calls")->data)[0] = 3;
    check_bad(&c, "compressor_hca/exact-any/in/calls: expected 4 rows in all, as many as sequence "
              "has, got 3");
    dsv4_case_free(&c);
}

static void sizes_fit_the_contract(void **state)
{
    (void)state;
    dsv4_case c = make_case("quant_kv", 2, false);
    check_good(&c);
    c.numerics = DSV4_RELEASED;
    check_bad(&c, "quant_kv/exact-any: head - qk_rope_head_dim in released numerics: expected a "
              "multiple of 64, got 4");
    dsv4_case_free(&c);
    c = make_case("quant_index", 2, false);
    c.numerics = DSV4_RELEASED;
    check_bad(&c, "quant_index/exact-any: index head in released numerics: expected a multiple of "
              "32, got 8");
    dsv4_case_free(&c);
    c = make_case("hadamard", 2, false);
    c.numerics = DSV4_RELEASED;
    check_good(&c);
    reshape(&c.in[0], 2, SHAPE(3, 12));
    reshape(&c.out[0], 2, SHAPE(3, 12));
    check_bad(&c, "hadamard/exact-any: expected an index head of a power of two, got 12");
    dsv4_case_free(&c);
    c = make_case("quant_act", 2, false);
    dsv4_case_set(&c, "block", 3);
    check_bad(&c, "quant_act/exact-any: width: expected a multiple of 3, got 8");
    reshape(&c.in[0], 2, SHAPE(0, 8));
    reshape(&c.out[0], 2, SHAPE(0, 8));
    dsv4_case_set(&c, "block", 8);
    check_bad(&c, "quant_act/exact-any: expected no dimension 0, got T = 0");
    dsv4_case_free(&c);
    c = make_case("attention_swa", 0, false);
    c.tolerance[0][0].row = -1;
    check_bad(&c, "attention_swa/exact-any/out/y: tolerance: expected numbers of at least 0, got "
              "-1, 0, 0.5");
    dsv4_case_free(&c);
}

/* ---- recipes ---- */

static void recipes_have_fixed_values(void **state)
{
    (void)state;
    /* splitmix64 of seed 42: 0xbdd732262feb6e95, 0x..66f103. */
    static const uint8_t bytes[] = {149, 110, 235, 47, 38, 50, 215, 189, 3, 241, 102};
    static const uint8_t e4m3[] = {149, 46, 171, 47, 38, 50, 151, 189, 3, 177, 38};
    static const uint8_t e8m0[] = {119, 120, 121, 121, 120, 120, 121, 119, 121, 119, 120};
    static const float bf16[] = {-0.8359375f, 0.859375f, -0.1640625f, 0.3671875f, 0.296875f,
                                 0.390625f,
                                 -0.3203125f, -0.5234375f, 0.0234375f, -0.1171875f, 0.796875f};
    const struct { dsv4_format format; const void *values; } expected[] = {
        {DSV4_FORMAT_E2M1, bytes}, {DSV4_FORMAT_E4M3, e4m3}, {DSV4_FORMAT_E8M0, e8m0},
        {DSV4_FORMAT_BF16, bf16},  {DSV4_FORMAT_F32, bf16},
    };
    for (size_t i = 0; i < COUNT(expected); i++) {
        dsv4_case c = {.name = "x"};
        dsv4_array *array = dsv4_case_add_in(&c, "a", expected[i].format, 1, SHAPE(11));
        array->recipe_seed = 42;
        dsv4_recipe_fill(array);
        assert_memory_equal(array->data, expected[i].values,
                            11 * (size_t)dsv4_format_size(array->format));
        dsv4_case_free(&c);
    }
    dsv4_case c = {.name = "x"};
    dsv4_array *array = dsv4_case_add_in(&c, "a", DSV4_FORMAT_E2M1, 1, SHAPE(8));
    array->recipe_seed = UINT64_MAX;
    dsv4_recipe_fill(array);
    assert_memory_equal(array->data, ((uint8_t[]){32, 44, 101, 27, 119, 113, 217, 228}), 8);
    dsv4_case_free(&c);
}

/* ---- files ---- */

static void write_file(const char *path, const dsv4_case *cases, int64_t count)
{
    dsv4_error err = {""};
    int status = dsv4_case_file_write(path, cases, count, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(status, 0);
}

static dsv4_case_file read_file(const char *path)
{
    dsv4_error err = {""};
    dsv4_case_file file;
    int status = dsv4_case_file_read(&file, path, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(status, 0);
    return file;
}

static void assert_same_array(const dsv4_array *got, const dsv4_array *want)
{
    assert_non_null(got);
    assert_int_equal(got->format, want->format);
    assert_int_equal(got->rank, want->rank);
    assert_memory_equal(got->shape, want->shape, (size_t)want->rank * sizeof *want->shape);
    assert_int_equal(got->count, want->count);
    if (want->count > 0)
        assert_memory_equal(got->data, want->data,
                            (size_t)(want->count * dsv4_format_size(want->format)));
    assert_string_equal(got->recipe, want->recipe);
    assert_true(got->recipe_seed == want->recipe_seed);
}

static void assert_same_case(const dsv4_case *got, const dsv4_case *want)
{
    assert_ptr_equal(got->op, want->op);
    assert_string_equal(got->name, want->name);
    assert_string_equal(got->reason, want->reason);
    assert_string_equal(got->flags, want->flags);
    assert_string_equal(got->checkpoint, want->checkpoint);
    assert_int_equal(got->numerics, want->numerics);
    assert_int_equal(got->params, want->params);
    for (int i = 0; i < want->params; i++)
        assert_true(dsv4_case_param(got, want->param[i].name, NAN) == want->param[i].value);
    assert_int_equal(got->ins, want->ins);
    assert_int_equal(got->outs, want->outs);
    for (int i = 0; i < want->ins; i++)
        assert_same_array(dsv4_case_in(got, want->in[i].name), &want->in[i]);
    for (int i = 0; i < want->outs; i++) {
        const dsv4_array *out = dsv4_case_out(got, want->out[i].name);
        assert_same_array(out, &want->out[i]);
        assert_memory_equal(got->tolerance[out - got->out], want->tolerance[i],
                            sizeof want->tolerance[i]);
    }
}

static void every_operator_goes_round(void **state)
{
    (void)state;
    variant list[MAX_VARIANTS];
    for (int i = 0, count = variants(list); i < count; i++) {
        dsv4_case c = make_case(list[i].op, list[i].ratio, list[i].hash);
        write_file("a.h5", &c, 1);
        dsv4_case_file file = read_file("a.h5");
        assert_int_equal(file.count, 1);
        assert_string_equal(file.path, "a.h5");
        assert_string_equal(file.c[0].directory, ".");
        assert_same_case(&file.c[0], &c);
        dsv4_case_file_free(&file);
        dsv4_case_free(&c);
    }
}

static void fill_by_recipe(dsv4_array *array, uint64_t seed)
{
    strcpy(array->recipe, "splitmix64");
    array->recipe_seed = seed;
    dsv4_recipe_fill(array);
}

/* Three cases: of plain, FP8 and FP4 weights, the last two by recipe. */
static void make_three(dsv4_case c[3])
{
    c[0] = make_case("linear_fp8", 2, false);
    c[1] = quantised(DSV4_FORMAT_E4M3);
    c[2] = quantised(DSV4_FORMAT_E2M1);
    strcpy(c[0].name, "exact-plain");
    strcpy(c[1].name, "exact-fp8");
    strcpy(c[2].name, "exact-fp4");
    strcpy(c[1].flags, "real-size seam");
    for (int i = 1; i < 3; i++) {
        fill_by_recipe(in(&c[i], "w.weight"), UINT64_MAX - (uint64_t)i);
        fill_by_recipe(in(&c[i], "w.scale"), 7);
        fill_by_recipe(in(&c[i], "x"), 8);
    }
    in(&c[0], "x")->format = DSV4_FORMAT_F32;
    ((float *)in(&c[0], "x")->data)[0] = 1 / 3.0f;
    ((double *)c[0].out[0].data)[0] = 1 / 3.0;
    ((double *)c[0].out[0].data)[1] = NAN;
}

static void free_cases(dsv4_case *c, int count)
{
    for (int i = 0; i < count; i++)
        dsv4_case_free(&c[i]);
}

static void recipes_are_not_stored(void **state)
{
    (void)state;
    dsv4_case c[3];
    make_three(c);
    write_file("a.h5", c, 3);
    dsv4_case_file file = read_file("a.h5");
    assert_int_equal(file.count, 3);
    assert_same_case(&file.c[0], &c[2]); /* fp4, fp8, plain */
    assert_same_case(&file.c[1], &c[1]);
    assert_same_case(&file.c[2], &c[0]);
    dsv4_case_file_free(&file);
    dsv4_error err = {""};
    dsv4_h5 *opened = dsv4_h5_open("a.h5", &err);
    assert_int_equal(dsv4_h5_count(opened, "linear_fp8/exact-fp8/in/w.weight", &err), 0);
    int64_t shape[2];
    assert_int_equal(dsv4_h5_get_numbers(opened, "linear_fp8/exact-fp4/in/w.weight", "shape",
                                         DSV4_H5_I64, 2, shape, &err), 2);
    assert_memory_equal(shape, SHAPE(130, 80), 16);
    dsv4_h5_abandon(opened);
    free_cases(c, 3);
}

/* The same cases in another order, with their arrays and parameters in another order. */
static void bytes_do_not_depend_on_the_order(void **state)
{
    (void)state;
    dsv4_case c[3];
    make_three(c);
    write_file("a.h5", c, 3);
    size_t size, again;
    char *bytes = files_read("a.h5", &size);
    dsv4_case swapped[] = {c[2], c[0], c[1]};
    for (int i = 0; i < 3; i++) {
        dsv4_array first = swapped[i].in[0];
        swapped[i].in[0] = swapped[i].in[1];
        swapped[i].in[1] = first;
    }
    write_file("b.h5", swapped, 3);
    char *others = files_read("b.h5", &again);
    assert_int_equal(size, again);
    assert_memory_equal(bytes, others, size);
    free(others);
    dsv4_case_file file = read_file("b.h5"); /* and what was read */
    write_file("b.h5", file.c, file.count);
    others = files_read("b.h5", &again);
    assert_int_equal(size, again);
    assert_memory_equal(bytes, others, size);
    free(others);
    free(bytes);
    dsv4_case_file_free(&file);
    free_cases(c, 3);

    dsv4_case layer = make_case("mtp", 4, false); /* many attributes, many links */
    write_file("a.h5", &layer, 1);
    dsv4_param last = layer.param[layer.params - 1];
    layer.param[layer.params - 1] = layer.param[0];
    layer.param[0] = last;
    write_file("b.h5", &layer, 1);
    bytes = files_read("a.h5", &size);
    others = files_read("b.h5", &again);
    assert_int_equal(size, again);
    assert_memory_equal(bytes, others, size);
    free(bytes);
    free(others);
    dsv4_case_free(&layer);
}

static void unwritable_cases_are_refused(void **state)
{
    (void)state;
    dsv4_case c[3];
    make_three(c);
    const char *says[] = {
        "a.h5: expected at least one case, got none",
        "linear_fp8/exact-fp8: expected one case of that name, got two",
        "linear_fp8/exact-plain: expected a case of linear_fp8 in exact numerics, as exact-fp4 is",
        "linear_fp8/exact-fp8: expected tolerances, got none",
        "linear_fp8/exact-fp8/in/w.scale: expected the values of its recipe, got others",
        "linear_fp8/exact-fp8/in/w.scale: expected recipe splitmix64, got dice",
    };
    for (size_t i = 0; i < COUNT(says); i++) {
        dsv4_error err = {""};
        dsv4_tolerance (*tolerance)[DSV4_TIERS] = c[1].tolerance;
        dsv4_array *scale = in(&c[1], "w.scale");
        strcpy(c[2].name, i == 1 ? "exact-fp8" : "exact-fp4");
        c[0].numerics = i == 2 ? DSV4_RELEASED : DSV4_EXACT;
        reshape(in(&c[0], "x"), 2, i == 2 ? SHAPE(3, 128) : SHAPE(3, 8));
        reshape(in(&c[0], "w.weight"), 2, i == 2 ? SHAPE(9, 128) : SHAPE(9, 8));
        c[1].tolerance = i == 3 ? NULL : tolerance;
        ((uint8_t *)scale->data)[0] ^= i == 4;
        strcpy(scale->recipe, i == 5 ? "dice" : "splitmix64");
        assert_int_equal(dsv4_case_file_write("a.h5", c, i == 0 ? 0 : 3, &err), -1);
        assert_string_equal(err.text, says[i]);
        c[1].tolerance = tolerance;
        ((uint8_t *)scale->data)[0] ^= i == 4;
        FILE *left = fopen("a.h5.part", "r");
        assert_null(left);
    }
    dsv4_error err = {""};
    strcpy(in(&c[1], "w.scale")->recipe, "splitmix64");
    assert_int_equal(dsv4_case_file_write("no/such/a.h5", c, 3, &err), -1);
    assert_memory_equal(err.text, "no/such/a.h5.part: cannot create", 32);
    free_cases(c, 3);
}

static void answers_are_written(void **state)
{
    (void)state;
    dsv4_case c = make_case("mhc_mix", 2, false);
    dsv4_case answer = {.op = c.op, .name = "exact-any"};
    dsv4_array *pre = dsv4_case_add_out(&answer, "pre", DSV4_FORMAT_F32, 2, SHAPE(3, 2));
    for (int i = 0; i < 6; i++)
        ((float *)pre->data)[i] = (float)i / 2;
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create("answer.h5", &err);
    assert_int_equal(dsv4_case_write_answer(file, &c, answer.out, answer.outs, &err), 0);
    strcpy(c.name, "exact-other");
    assert_int_equal(dsv4_case_write_answer(file, &c, answer.out, answer.outs, &err), 0);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    file = dsv4_h5_open("answer.h5", &err);
    dsv4_h5_data data;
    assert_int_equal(dsv4_h5_read(file, "mhc_mix/exact-other/out/pre", &data, &err), 0);
    assert_int_equal(data.rank, 2);
    assert_true(data.values[5] == 2.5);
    assert_true(dsv4_h5_has(file, "/mhc_mix/exact-any/out/pre"));
    dsv4_h5_data_free(&data);
    dsv4_h5_abandon(file);
    assert_string_equal(err.text, "");
    dsv4_case_free(&answer);
    dsv4_case_free(&c);
}

/* ---- files of others ---- */

#define CASE "/linear_fp8/exact-plain"
#define RECIPE "/linear_fp8/exact-fp8/in/w.weight"

static void set_text(hid_t file, const char *object, const char *name, const char *text)
{
    hid_t id = H5Oopen(file, object, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1);
    if (H5Aexists(id, name) > 0)
        H5Adelete(id, name);
    H5Tset_size(type, strlen(text) + 1);
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(id, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, type, text);
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
    H5Oclose(id);
}

static void set_integers(hid_t file, const char *object, const char *name, hsize_t count,
                         const int64_t *numbers)
{
    hid_t id = H5Oopen(file, object, H5P_DEFAULT);
    if (H5Aexists(id, name) > 0)
        H5Adelete(id, name);
    hid_t space = H5Screate_simple(1, &count, NULL);
    hid_t attribute = H5Acreate2(id, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, H5T_NATIVE_INT64, numbers);
    H5Aclose(attribute);
    H5Sclose(space);
    H5Oclose(id);
}

static void delete_attribute(hid_t file, const char *object, const char *name)
{
    assert_true(H5Adelete_by_name(file, object, name, H5P_DEFAULT) >= 0);
}

/* Another dataset in place of one, without data unless HDF5 makes them. */
static void replace(hid_t file, const char *name, hid_t type, int rank, const hsize_t *dims,
                    bool chunked)
{
    H5Ldelete(file, name, H5P_DEFAULT);
    hid_t space = H5Screate_simple(rank, dims, NULL), creation = H5Pcreate(H5P_DATASET_CREATE);
    if (chunked)
        H5Pset_chunk(creation, rank, dims);
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    assert_true(set >= 0);
    H5Dclose(set);
    H5Pclose(creation);
    H5Sclose(space);
    set_text(file, name, "format", type == H5T_STD_U8LE ? "e4m3" : "bf16");
}

static void change(hid_t file, int which)
{
    const hsize_t huge[] = {(hsize_t)1 << 35, (hsize_t)1 << 20}, small[] = {3, 8}, wide[] = {5000,
                                                                                             8};
    const hsize_t ones[] = {1, 1, 1, 1, 1};
    switch (which) {
    case 0: set_text(file, "/", "format", "dsv4-vectors-9"); break;
    case 1: delete_attribute(file, "/", "operator"); break;
    case 2: set_text(file, "/", "operator", "linear_fp9"); break;
    case 3: set_text(file, "/", "operator", "linear_fp4"); break;
    case 4: set_text(file, "/", "numerics", "roughly"); break;
    case 5: set_text(file, "/", "numerics", "released"); break;
    case 6: H5Gclose(H5Gcreate2(file, "more", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); break;
    case 7: H5Ldelete(file, CASE "/out", H5P_DEFAULT); break;
    case 8: H5Ldelete(file, CASE "/in/x", H5P_DEFAULT); break;
    case 9: H5Lcreate_external("/etc/passwd", "/", file, CASE "/in/y", H5P_DEFAULT,
                               H5P_DEFAULT); break;
    case 10: H5Lcreate_soft(CASE "/in/x", file, CASE "/in/y", H5P_DEFAULT, H5P_DEFAULT); break;
    case 11: H5Gclose(H5Gcreate2(file, CASE "/in/y", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); break;
    case 12: delete_attribute(file, CASE "/in/x", "format"); break;
    case 13: set_text(file, CASE "/in/x", "format", "fp32"); break;
    case 14: set_text(file, CASE "/in/x", "format", "i64"); break;
    case 15: replace(file, CASE "/in/x", H5T_IEEE_F64LE, 2, small, false); break;
    case 16: replace(file, CASE "/in/x", H5T_IEEE_F32LE, 2, huge, false); break;
    case 17: replace(file, CASE "/in/x", H5T_IEEE_F32LE, 2, wide, false); break;
    case 18: replace(file, CASE "/in/x", H5T_IEEE_F32LE, 5, ones, false); break;
    case 19: replace(file, CASE "/in/x", H5T_IEEE_F32LE, 2, small, true); break;
    case 20: set_text(file, RECIPE, "sha256", "00"); break;
    case 21: set_integers(file, RECIPE, "shape", 2, SHAPE((int64_t)1 << 40,
                                                          (int64_t)1 << 40)); break;
    case 22: set_integers(file, RECIPE, "shape", 2, SHAPE(1 << 15, (1 << 15) + 1)); break;
    case 23: set_integers(file, RECIPE, "shape", 2, SHAPE(-1, 3)); break;
    case 24: set_integers(file, RECIPE, "shape", 5, SHAPE(1, 1, 1, 1, 1)); break;
    case 25: set_integers(file, RECIPE, "recipe_seed", 1, SHAPE(-1)); break;
    case 26: set_integers(file, RECIPE, "recipe_seed", 2, SHAPE(1, 2)); break;
    case 27: set_text(file, RECIPE, "recipe", "dice"); break;
    case 28: set_text(file, RECIPE, "recipe", "a recipe with a name that is too long"); break;
    case 29: replace(file, RECIPE, H5T_STD_U8LE, 2, small, false);
             set_text(file, RECIPE, "recipe", "splitmix64"); set_text(file, RECIPE, "sha256",
                                                                      ""); break;
    case 30: set_integers(file, CASE, "momentum", 1, SHAPE(1)); break;
    case 31: set_text(file, CASE, "momentum", "1"); break;
    case 32: set_integers(file, CASE, "momentum", 2, SHAPE(1, 2)); break;
    case 33: delete_attribute(file, CASE, "reason"); break;
    case 34: delete_attribute(file, CASE "/out/y", "tolerance_bf16"); break;
    case 35: set_integers(file, CASE "/out/y", "tolerance_fp32", 2, SHAPE(1, 2)); break;
    case 36: set_integers(file, CASE "/out/y", "tolerance_fp32", 3, SHAPE(1, 2, -3)); break;
    case 37: H5Lmove(file, CASE, file, "/linear_fp8/Plain", H5P_DEFAULT, H5P_DEFAULT); break;
    case 38: H5Lcreate_hard(file, CASE "/in/x", file,
                            "/linear_fp8/exact-plain/in/"
                            "0123456789012345678901234567890123456789012345678901234567890123",
                            H5P_DEFAULT, H5P_DEFAULT); break;
    case 39: H5Lcreate_hard(file, "/linear_fp8", file, CASE "/in/loop", H5P_DEFAULT,
                            H5P_DEFAULT); break;
    case 40: H5Ldelete(file, "/linear_fp8", H5P_DEFAULT); break;
    case 41: H5Ldelete(file, CASE, H5P_DEFAULT);
             H5Ldelete(file, "/linear_fp8/exact-fp8", H5P_DEFAULT);
             H5Ldelete(file, "/linear_fp8/exact-fp4", H5P_DEFAULT); break;
    case 42: replace(file, "/linear_fp8/a", H5T_IEEE_F32LE, 2, small, false); break;
    default: break;
    }
}

static const char *const refusals[] = {
    "a.h5: /: attribute format: expected dsv4-vectors-1, got 'dsv4-vectors-9'",
    "a.h5: /: no attribute operator",
    "a.h5: /: attribute operator: expected an operator's name, got 'linear_fp9'",
    "a.h5: /: expected only the group linear_fp4, got 1 groups or datasets, the first linear_fp8",
    "a.h5: /: attribute numerics: expected exact, released, got 'roughly'",
    "a.h5: /linear_fp8/exact-fp4: attribute numerics: expected released, got 'exact'",
    "a.h5: /: expected only the group linear_fp8, got 2 groups or datasets, the first linear_fp8",
    "a.h5: " CASE ": expected the groups in and out, got 1 groups or datasets, the first in",
    "a.h5: " CASE "/in/x: expected [T K], got none",
    "a.h5: y: expected a group or a dataset, got a link to one",
    "a.h5: y: expected a group or a dataset, got a link to one",
    "a.h5: " CASE "/in: expected only datasets, got group y",
    "a.h5: " CASE "/in/x: no attribute format",
    "a.h5: " CASE "/in/x: attribute format: expected f64, f32, bf16, e4m3, e2m1, e8m0, i64, got "
    "'fp32'",
    "a.h5: " CASE "/in/x: expected int64, as i64 is stored, got float32",
    "a.h5: " CASE "/in/x: expected float32, as bf16 is stored, got float64",
    "a.h5: " CASE "/in/x: expected at most ",
    "a.h5: " CASE "/in/x: expected at most ",
    "a.h5: " CASE "/in/x: expected at most 4 dimensions, got 5",
    "a.h5: " CASE "/in/x: expected plain storage, got chunks, filters or another file",
    "a.h5: " RECIPE ": expected sha256 00, got ",
    "a.h5: " RECIPE ": attribute shape: expected sizes of an array",
    "a.h5: " RECIPE ": expected at most 10",
    "a.h5: " RECIPE ": attribute shape: expected sizes of an array",
    "a.h5: " RECIPE ": attribute shape: expected at most 4 numbers, got 5",
    "a.h5: " RECIPE ": attribute recipe_seed: expected numbers that fit uint64",
    "a.h5: " RECIPE ": attribute recipe_seed: expected at most 1 numbers, got 2",
    "a.h5: " RECIPE ": expected recipe splitmix64 of f32, bf16, e4m3, e2m1 or e8m0, got 'dice' of "
    "e4m3",
    "a.h5: " RECIPE ": attribute recipe: expected less than 32 bytes, got 38",
    "a.h5: " RECIPE ": expected shape [0] of a dataset with a recipe",
    "a.h5: " CASE ": parameter momentum: expected no parameters, got another",
    "a.h5: " CASE ": attribute momentum: expected numbers",
    "a.h5: " CASE ": attribute momentum: expected at most 1 numbers, got 2",
    "a.h5: " CASE ": no attribute reason",
    "a.h5: " CASE "/out/y: no attribute tolerance_bf16",
    "a.h5: " CASE "/out/y: attribute tolerance_fp32: expected 3 numbers, got 2",
    "a.h5: " CASE "/out/y: tolerance: expected numbers of at least 0, got 1, 2, -3",
    "a.h5: /linear_fp8: 'Plain': expected a case's name of a-z, 0-9, - and _",
    "a.h5: " CASE "/in: expected names of less than 64 bytes, got 0123456789",
    "a.h5: " CASE "/in: expected only datasets, got group loop",
    "a.h5: /: expected only the group linear_fp8, got 0 groups or datasets",
    "a.h5: /linear_fp8: expected at least one case, got none",
    "a.h5: /linear_fp8: expected only groups, got dataset a",
};

static void other_files_are_refused(void **state)
{
    (void)state;
    dsv4_case c[3];
    make_three(c);
    for (size_t i = 0; i < COUNT(refusals); i++) {
        write_file("a.h5", c, 3);
        hid_t file = H5Fopen("a.h5", H5F_ACC_RDWR, H5P_DEFAULT);
        change(file, (int)i);
        H5Fclose(file);
        dsv4_error err = {""};
        dsv4_case_file read;
        assert_int_equal(dsv4_case_file_read(&read, "a.h5", &err), -1);
        assert_int_equal(read.count, 0);
        assert_null(read.c);
        if (strncmp(err.text, refusals[i], strlen(refusals[i])) != 0)
            fail_msg("%d: expected \"%s\", got \"%s\"", (int)i, refusals[i], err.text);
    }
    dsv4_error err = {""};
    dsv4_case_file read;
    assert_int_equal(dsv4_case_file_read(&read, "absent.h5", &err), -1);
    assert_string_equal(err.text, "absent.h5: cannot open: No such file or directory");
    free_cases(c, 3);
}

/* Cut anywhere, a file is refused; it never crashes a reader. */
static void cut_files_are_refused(void **state)
{
    (void)state;
    dsv4_case c[3];
    make_three(c);
    write_file("a.h5", c, 3);
    size_t size;
    char *bytes = files_read("a.h5", &size);
    for (size_t length = 0; length < size; length += 97) {
        files_write(".", "cut.h5", bytes, length);
        dsv4_error err = {""};
        dsv4_case_file read;
        assert_int_equal(dsv4_case_file_read(&read, "cut.h5", &err), -1);
        assert_memory_equal(err.text, "cut.h5: ", 8);
    }
    free(bytes);
    free_cases(c, 3);
}

/* Files of h5py and others: text of variable length, big-endian numbers. */
static void foreign_spellings_are_read(void **state)
{
    (void)state;
    dsv4_case c[3];
    make_three(c);
    write_file("a.h5", c, 3);
    hid_t file = H5Fopen("a.h5", H5F_ACC_RDWR, H5P_DEFAULT);
    H5Adelete_by_name(file, CASE, "reason", H5P_DEFAULT);
    hid_t id = H5Oopen(file, CASE, H5P_DEFAULT), type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(id, "reason", type, space, H5P_DEFAULT, H5P_DEFAULT);
    const char *text = "of another kind";
    H5Awrite(attribute, type, &text);
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
    H5Oclose(id);
    const hsize_t dims[] = {3, 8};
    replace(file, CASE "/in/x", H5T_IEEE_F32BE, 2, dims, false);
    hid_t set = H5Dopen2(file, CASE "/in/x", H5P_DEFAULT);
    float values[24] = {1, -2};
    H5Dwrite(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
    H5Dclose(set);
    H5Fclose(file);
    dsv4_case_file read = read_file("./a.h5");
    assert_string_equal(read.c[2].reason, "of another kind");
    assert_true(dsv4_array_value(dsv4_case_in(&read.c[2], "x"), 1) == -2);
    dsv4_case_file_free(&read);
    free_cases(c, 3);
}

int main(void)
{
    H5dont_atexit(); /* see host/h5.c */
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays_are_added_and_found),
        cmocka_unit_test(values_are_copied),
        cmocka_unit_test(mistakes_in_building_end_the_program),
        cmocka_unit_test(shapes_and_params_make_a_config),
        cmocka_unit_test(what_a_case_lacks_is_neutral),
        cmocka_unit_test(slots_become_matrices),
        cmocka_unit_test(slots_become_a_layer),
        cmocka_unit_test(rows_get_positions),
        cmocka_unit_test(a_batch_is_padded_in_front),
        cmocka_unit_test(contradictions_are_refused),
        cmocka_unit_test(every_operator_has_good_cases),
        cmocka_unit_test(every_shape_matters),
        cmocka_unit_test(missing_arrays_are_named),
        cmocka_unit_test(texts_are_checked),
        cmocka_unit_test(params_are_checked),
        cmocka_unit_test(formats_are_checked),
        cmocka_unit_test(scales_go_with_their_weights),
        cmocka_unit_test(names_and_ranks_are_checked),
        cmocka_unit_test(indices_stay_in_range),
        cmocka_unit_test(sizes_fit_the_contract),
        cmocka_unit_test(recipes_have_fixed_values),
        cmocka_unit_test(every_operator_goes_round),
        cmocka_unit_test(recipes_are_not_stored),
        cmocka_unit_test(bytes_do_not_depend_on_the_order),
        cmocka_unit_test(unwritable_cases_are_refused),
        cmocka_unit_test(answers_are_written),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(cut_files_are_refused),
        cmocka_unit_test(foreign_spellings_are_read),
    };
    return cmocka_run_group_tests_name("cases", tests, scratch_enter, scratch_leave) != 0;
}
