#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <jansson.h>

#include "files.h"
#include "host/config.h"

/* A small configuration with layers of all kinds and every optional key; its MTP layer is CSA. */
static const char base[] =
    "{\"hidden_size\": 40, \"num_hidden_layers\": 4, \"num_attention_heads\": 6, \"head_dim\": 24,"
    " \"q_lora_rank\": 12, \"qk_rope_head_dim\": 8, \"o_groups\": 3, \"o_lora_rank\": 5,"
    " \"sliding_window\": 9, \"index_n_heads\": 2, \"index_head_dim\": 16, \"index_topk\": 7,"
    " \"moe_intermediate_size\": 11, \"n_routed_experts\": 10, \"num_experts_per_tok\": 4,"
    " \"num_hash_layers\": 1, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 3,"
    " \"hc_mult\": 3, \"hc_sinkhorn_iters\": 13, \"hc_eps\": 0.25, \"rms_norm_eps\": 0.125,"
    " \"rope_theta\": 10000, \"compress_rope_theta\": 160000.0,"
    " \"max_position_embeddings\": 999, \"vocab_size\": 77, \"compress_ratios\": [0, 4, 128, 6, 4],"
    " \"num_nextn_predict_layers\": 1, \"bos_token_id\": 2, \"eos_token_id\": 76,"
    " \"norm_topk_prob\": false, \"num_key_value_heads\": 1, \"n_shared_experts\": 1,"
    " \"scoring_func\": \"sqrtsoftplus\", \"topk_method\": \"noaux_tc\", \"hidden_act\": \"silu\","
    " \"tie_word_embeddings\": false, \"unknown_key\": [{}],"
    " \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 31, \"beta_slow\": 2,"
    "   \"original_max_position_embeddings\": 64.0, \"mscale\": 1},"
    " \"expert_dtype\": \"fp4\", \"quantization_config\": {\"quant_method\": \"fp8\","
    "   \"fmt\": \"e4m3\", \"scale_fmt\": \"ue8m0\", \"weight_block_size\": [128, 128]}}";

static int parse(dsv4_config *config, const char *text, dsv4_error *err)
{
    *err = (dsv4_error){0};
    return dsv4_config_parse(config, text, strlen(text), "here.json", err);
}

static int parse_changed(dsv4_config *config, dsv4_error *err, const char *const changes[])
{
    char *text = files_json(base, changes);
    int status = parse(config, text, err);
    free(text);
    return status;
}

static void accept(const char *const changes[])
{
    dsv4_config config;
    dsv4_error err;
    if (parse_changed(&config, &err, changes) != 0)
        fail_msg("%s = %s: %s", changes[0], changes[1], err.text);
    dsv4_config_free(&config);
}

/* Refused by one line that has `expected` in it and names the file; and nothing is left behind. */
static void refuse(const char *const changes[], const char *expected)
{
    dsv4_config config;
    dsv4_error err;
    if (parse_changed(&config, &err, changes) == 0)
        fail_msg("%s = %s was accepted", changes[0], changes[1]);
    if (strstr(err.text, expected) == NULL || strncmp(err.text, "here.json: ", 11) != 0 ||
        strchr(err.text, '\n') != NULL)
        fail_msg("expected '%s', got '%s'", expected, err.text);
    static const dsv4_config empty;
    assert_memory_equal(&config, &empty, sizeof config);
}

/* covers: config.file.1 */
static void every_field_is_read(void **state)
{
    (void)state;
    dsv4_config c;
    dsv4_error err;
    assert_int_equal(parse(&c, base, &err), 0);
    const int64_t integers[] = {
        c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.head_dim, c.q_lora_rank,
        c.qk_rope_head_dim, c.o_groups, c.o_lora_rank, c.sliding_window, c.index_n_heads,
        c.index_head_dim, c.index_topk, c.moe_intermediate_size, c.n_routed_experts,
        c.num_experts_per_tok, c.num_hash_layers, c.hc_mult, c.hc_sinkhorn_iters,
        c.max_position_embeddings, c.num_nextn_predict_layers, c.vocab_size, c.bos_token_id,
        c.eos_token_id,
    };
    const int64_t expected[] = {40, 4, 6, 24, 12, 8, 3,  5,   9, 2,  16, 7,
                                11, 10, 4, 1, 3, 13, 999, 1, 77, 2, 76};
    assert_memory_equal(integers, expected, sizeof expected);
    const double reals[] = {
        c.routed_scaling_factor, c.swiglu_limit, c.hc_eps, c.rms_norm_eps, c.rope_theta,
        c.compress_rope_theta, c.rope_scaling.factor,
        c.rope_scaling.original_max_position_embeddings, c.rope_scaling.beta_fast,
        c.rope_scaling.beta_slow,
    };
    const double expected_reals[] = {1.5, 3, 0.25, 0.125, 10000, 160000, 16, 64, 31, 2};
    assert_memory_equal(reals, expected_reals, sizeof expected_reals);
    assert_false(c.norm_topk_prob);
    assert_true(c.rope_scaling.present);
    const int64_t ratios[] = {0, 4, 128, 6, 4};
    assert_memory_equal(c.compress_ratios, ratios, sizeof ratios);
    dsv4_config_free(&c);
    static const dsv4_config empty;
    assert_memory_equal(&c, &empty, sizeof c);
}

/* covers: config.file.1 */
static void what_is_no_object_is_refused(void **state)
{
    (void)state;
    const struct {
        const char *text, *expected;
    } cases[] = {
        {"", "here.json: line 1: "},
        {"[1, 2]", "here.json: expected a JSON object"},
        {"{\"hidden_size\": 1,\n \"hidden_size\": 1}", "here.json: line 2: duplicate object key \"hidden_size\""},
        {"{\"rope_scaling\": {\"factor\": 1, \"factor\": 2}}", "duplicate object key \"factor\""},
        {"{} {}", "here.json: line 1: end of file expected"},
        {"{\"hidden_size\": 99999999999999999999}", "too big integer"},
        {"{\"hc_eps\": 1e999}", "real number overflow"},
        {"{\"hc_eps\": NaN}", "invalid token"},
        {"{\"a\": \"\xff\"}", "unable to decode"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv4_config config;
        dsv4_error err;
        assert_int_equal(parse(&config, cases[i].text, &err), -1);
        assert_non_null(strstr(err.text, cases[i].expected));
        assert_null(strchr(err.text, '\n'));
    }
    char *deep = dsv4_alloc(20001, 1);
    memset(deep, '[', 20000);
    dsv4_config config;
    dsv4_error err;
    assert_int_equal(parse(&config, deep, &err), -1);
    free(deep);
}

typedef struct {
    const char *key;
    int64_t least, most;
} limits;

static void refuse_integer(const char *key, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    refuse(CHANGES(key, text), key);
}

/* covers: config.file.2 config.file.3 */
static void integers_have_types_and_limits(void **state)
{
    (void)state;
    const limits keys[] = {
        {"hidden_size", 1, 1 << 20},
        {"num_hidden_layers", 1, 4096},
        {"num_attention_heads", 1, 1 << 20},
        {"head_dim", 1, 1 << 20},
        {"q_lora_rank", 1, 1 << 20},
        {"qk_rope_head_dim", 2, 1 << 20},
        {"o_groups", 1, 1 << 20},
        {"o_lora_rank", 1, 1 << 20},
        {"sliding_window", 1, INT32_MAX},
        {"index_n_heads", 1, 1 << 20},
        {"index_head_dim", 1, 1 << 20},
        {"index_topk", 1, INT32_MAX},
        {"moe_intermediate_size", 1, 1 << 20},
        {"n_routed_experts", 1, 65536},
        {"num_experts_per_tok", 1, 65536},
        {"num_hash_layers", 0, 4096},
        {"hc_mult", 1, 256},
        {"hc_sinkhorn_iters", 1, 65536},
        {"max_position_embeddings", 1, INT32_MAX},
        {"vocab_size", 1, INT32_MAX},
    };
    const char *const others[] = {"true", "\"1\"", "1.5", "2.0", "[1]", "{}", "null", NULL};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        refuse_integer(keys[i].key, keys[i].least - 1);
        refuse_integer(keys[i].key, keys[i].most + 1);
        refuse_integer(keys[i].key, INT64_MAX);
        char expected[128];
        for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
            bool absent = others[k] == NULL || strcmp(others[k], "null") == 0;
            snprintf(expected, sizeof expected, "%s: expected an integer from %lld to %lld, got %s",
                     keys[i].key, (long long)keys[i].least, (long long)keys[i].most,
                     absent ? "nothing" : others[k]);
            refuse(CHANGES(keys[i].key, others[k]), expected);
        }
    }
    /* What can stand at its upper limit without another rule in the way. */
    accept(CHANGES("hidden_size", "1048576"));
    accept(CHANGES("q_lora_rank", "1048576"));
    accept(CHANGES("moe_intermediate_size", "1048576"));
    accept(CHANGES("sliding_window", "2147483647"));
    accept(CHANGES("index_topk", "2147483647"));
    accept(CHANGES("max_position_embeddings", "2147483647"));
    accept(CHANGES("vocab_size", "2147483647"));
    accept(CHANGES("hc_mult", "256"));
    accept(CHANGES("hc_sinkhorn_iters", "65536"));
    accept(CHANGES("sliding_window", "1"));
    accept(CHANGES("hc_mult", "1"));
    accept(CHANGES("index_topk", "1"));
}

/* covers: config.file.2 config.file.3 */
static void reals_have_types_and_limits(void **state)
{
    (void)state;
    const struct {
        const char *key;
        bool zero;
    } keys[] = {
        {"routed_scaling_factor", true},
        {"swiglu_limit", true},
        {"hc_eps", true},
        {"rms_norm_eps", true},
        {"rope_theta", false},
        {"compress_rope_theta", false},
        {"rope_scaling.factor", false},
        {"rope_scaling.beta_fast", false},
        {"rope_scaling.beta_slow", false},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        accept(CHANGES(keys[i].key, "3"));
        accept(CHANGES(keys[i].key, "0.5"));
        accept(CHANGES(keys[i].key, "1e30"));
        refuse(CHANGES(keys[i].key, "1e31"), keys[i].key);
        refuse(CHANGES(keys[i].key, "-1e-9"), keys[i].key);
        refuse(CHANGES(keys[i].key, "\"1\""), ": expected a number from ");
        refuse(CHANGES(keys[i].key, "false"), keys[i].key);
        if (keys[i].zero)
            accept(CHANGES(keys[i].key, "0"));
        else
            refuse(CHANGES(keys[i].key, "0"), keys[i].key);
    }
    refuse(CHANGES("hc_eps", NULL), "hc_eps: expected a number from 0 to 1e+30, got nothing");
    refuse(CHANGES("rope_theta", "null"), "rope_theta: expected a number from 1e-30 to 1e+30");
}

/* covers: config.file.3 */
static void optional_keys_have_defaults(void **state)
{
    (void)state;
    dsv4_config c;
    dsv4_error err;
    assert_int_equal(parse_changed(&c, &err, CHANGES("bos_token_id", "null", "eos_token_id", "null",
                                                     "norm_topk_prob", "null",
                                                     "num_nextn_predict_layers", "null",
                                                     "rope_scaling.beta_fast", "null",
                                                     "rope_scaling.beta_slow", "null")), 0);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(c.eos_token_id, -1);
    assert_true(c.norm_topk_prob);
    assert_int_equal(c.num_nextn_predict_layers, 0);
    assert_true(c.rope_scaling.beta_fast == 32 && c.rope_scaling.beta_slow == 1);
    dsv4_config_free(&c);
    refuse(CHANGES("norm_topk_prob", "1"), "norm_topk_prob: expected true or false, got 1");
    accept(CHANGES("bos_token_id", "76"));
    refuse(CHANGES("bos_token_id", "77"), "bos_token_id: expected an integer from 0 to 76, got 77");
    refuse(CHANGES("eos_token_id", "-1"), "eos_token_id");
    refuse(CHANGES("eos_token_id", "[1, 2]"),
           "eos_token_id: expected an integer from 0 to 76, got [1,2]");
    refuse(CHANGES("num_nextn_predict_layers", "-1"), "num_nextn_predict_layers");
    refuse(CHANGES("num_nextn_predict_layers", "4093"), "from 0 to 4092, got 4093");
}

/* covers: config.layers.1 config.layers.3 */
static void ratios_belong_to_layers(void **state)
{
    (void)state;
    dsv4_config c;
    dsv4_error err;
    assert_int_equal(parse(&c, base, &err), 0);
    const dsv4_layer_kind kinds[] = {DSV4_SWA, DSV4_CSA, DSV4_HCA, DSV4_HCA, DSV4_CSA};
    for (int i = 0; i < 5; i++)
        assert_int_equal(dsv4_config_kind(&c, i), kinds[i]);
    dsv4_config_free(&c);

    assert_int_equal(parse_changed(&c, &err, CHANGES("compress_ratios", "[4, 0, 5, 16777216]")), 0);
    const dsv4_layer_kind other[] = {DSV4_CSA, DSV4_SWA, DSV4_HCA, DSV4_HCA, DSV4_SWA};
    for (int i = 0; i < 5; i++)
        assert_int_equal(dsv4_config_kind(&c, i), other[i]);
    assert_int_equal(c.compress_ratios[4], 0);
    dsv4_config_free(&c);

    accept(CHANGES("compress_ratios", "[0, 0, 0, 0, 0, 4, 128, 128]"));
    refuse(CHANGES("compress_ratios", "[0, 4, 128]"),
           "compress_ratios: expected at least 4 entries, got 3");
    refuse(CHANGES("compress_ratios", NULL), "compress_ratios: expected a list of integers");
    refuse(CHANGES("compress_ratios", "4"), "compress_ratios: expected a list of integers, got 4");
    refuse(CHANGES("compress_ratios", "[0, 0, 0, 4.0]"), "compress_ratios[3]: expected an integer");
    refuse(CHANGES("compress_ratios", "[0, 0, 0, null]"),
           "compress_ratios[3]: expected an integer");
    refuse(CHANGES("compress_ratios", "[0, 0, 0, 16777217]"), "compress_ratios[3]");
}

/* covers: config.layers.2 */
static void small_ratios_are_refused(void **state)
{
    (void)state;
    refuse(CHANGES("compress_ratios", "[0, 1, 0, 0]"),
           "compress_ratios[1]: expected 0, 4 or a larger ratio, got 1");
    refuse(CHANGES("compress_ratios", "[0, 2, 0, 0]"), "compress_ratios[1]");
    refuse(CHANGES("compress_ratios", "[0, 3, 0, 0]"), "compress_ratios[1]");
    refuse(CHANGES("compress_ratios", "[-4, 0, 0, 0]"), "compress_ratios[0]");
    refuse(CHANGES("compress_ratios", "[0, 0, 0, 0, 0, 0, 3]"), "compress_ratios[6]");
}

/* covers: config.layers.4 */
static void keys_of_absent_kinds_are_not_needed(void **state)
{
    (void)state;
    const char *const index_keys[] = {"index_n_heads", "index_head_dim", "index_topk"};
    for (int i = 0; i < 3; i++) {
        refuse(CHANGES("compress_ratios", "[0, 0, 0, 0, 4]", index_keys[i], "0"), index_keys[i]);
        accept(CHANGES("compress_ratios", "[0, 6, 128, 0, 0]", index_keys[i], "\"?\""));
    }
    refuse(CHANGES("compress_ratios", "[0, 6, 0, 0]", "compress_rope_theta", "0"),
           "compress_rope_theta");
    refuse(CHANGES("compress_ratios", "[0, 0, 0, 0, 128]", "compress_rope_theta", "null"),
           "compress_rope_theta");
    accept(CHANGES("compress_ratios", "[0, 0, 0, 0, 0, 128]", "compress_rope_theta", "null"));

    dsv4_config c;
    dsv4_error err;
    assert_int_equal(parse_changed(&c, &err, CHANGES("compress_ratios", "[0, 128, 0, 0]")), 0);
    assert_int_equal(c.index_n_heads | c.index_head_dim | c.index_topk, 0);
    assert_true(c.compress_rope_theta == 160000);
    dsv4_config_free(&c);
    assert_int_equal(parse_changed(&c, &err, CHANGES("compress_ratios", "[0, 0, 0, 0]")), 0);
    assert_true(c.compress_rope_theta == 0);
    dsv4_config_free(&c);
}

/* covers: config.shape.1 */
static void rope_part_fits_the_head(void **state)
{
    (void)state;
    refuse(CHANGES("qk_rope_head_dim", "7"), "qk_rope_head_dim: expected an even number, got 7");
    refuse(CHANGES("qk_rope_head_dim", "16", "head_dim", "14"),
           "qk_rope_head_dim: expected at most head_dim = 14, got 16");
    accept(CHANGES("qk_rope_head_dim", "2"));
    accept(CHANGES("qk_rope_head_dim", "16", "head_dim", "16"));
}

/* covers: config.shape.2 */
static void groups_divide_the_heads(void **state)
{
    (void)state;
    refuse(CHANGES("o_groups", "4"),
           "o_groups: expected a divisor of num_attention_heads = 6, got 4");
    refuse(CHANGES("o_groups", "12"), "o_groups");
    accept(CHANGES("o_groups", "6"));
    accept(CHANGES("o_groups", "1"));
}

/* covers: config.shape.3 */
static void counts_fit_each_other(void **state)
{
    (void)state;
    refuse(CHANGES("num_experts_per_tok", "11"),
           "num_experts_per_tok: expected at most n_routed_experts = 10, got 11");
    accept(CHANGES("num_experts_per_tok", "10"));
    refuse(CHANGES("num_hash_layers", "5"),
           "num_hash_layers: expected at most num_hidden_layers = 4, got 5");
    accept(CHANGES("num_hash_layers", "4"));
    accept(CHANGES("num_hash_layers", "0"));
}

/* covers: config.shape.4 */
static void hadamard_needs_a_power_of_two(void **state)
{
    (void)state;
    refuse(CHANGES("index_head_dim", "24"), "index_head_dim: expected a power of two, got 24");
    refuse(CHANGES("index_head_dim", "4"),
           "qk_rope_head_dim: expected at most index_head_dim = 4, got 8");
    accept(CHANGES("index_head_dim", "8"));
    accept(CHANGES("index_head_dim", "24", "compress_ratios", "[0, 0, 0, 0]"));
}

/* covers: config.shape.5 */
static void products_are_bounded(void **state)
{
    (void)state;
    accept(CHANGES("num_attention_heads", "6144", "head_dim", "2730"));
    refuse(CHANGES("num_attention_heads", "6144", "head_dim", "2731"),
           "num_attention_heads x head_dim: expected at most 16777216, got 6144 x 2731");
    accept(CHANGES("index_n_heads", "1048576"));
    refuse(CHANGES("index_n_heads", "1048576", "index_head_dim", "32"),
           "index_n_heads x index_head_dim: expected at most 16777216");
    accept(CHANGES("o_lora_rank", "1048576"));
    refuse(CHANGES("o_lora_rank", "1048576", "num_attention_heads", "17", "o_groups", "17"),
           "o_groups x o_lora_rank: expected at most 16777216");
    accept(CHANGES("n_routed_experts", "52428"));
    refuse(CHANGES("n_routed_experts", "52429"),
           "layers x n_routed_experts: expected at most 262144, got 5 x 52429");
}

/* covers: config.rope.1 config.rope.2 config.rope.3 config.rope.4 */
static void rope_scaling_is_yarn_or_nothing(void **state)
{
    (void)state;
    dsv4_config c;
    dsv4_error err;
    const char *const none[][2] = {
        {"rope_scaling", NULL},
        {"rope_scaling", "null"},
        {"rope_scaling.original_max_position_embeddings", "0"},
    };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(parse_changed(&c, &err, CHANGES(none[i][0], none[i][1])),
                         0);
        assert_false(c.rope_scaling.present);
        dsv4_config_free(&c);
    }
    refuse(CHANGES("rope_scaling", "null", "rope_parameters", "{}"),
           "rope_parameters: expected rope_scaling instead, got {}");
    accept(CHANGES("rope_parameters", "{}"));
    refuse(CHANGES("rope_scaling", "[]"), "rope_scaling: expected an object or null, got []");

    refuse(CHANGES("rope_scaling.type", "\"linear\""),
           "rope_scaling.type: expected \"yarn\", got \"linear\"");
    refuse(CHANGES("rope_scaling.type", "null"),
           "rope_scaling.type: expected \"yarn\", got nothing");
    refuse(CHANGES("rope_scaling.type", "7"), "rope_scaling.type");
    accept(CHANGES("rope_scaling.type", "null", "rope_scaling.rope_type", "\"yarn\""));
    accept(CHANGES("rope_scaling.rope_type", "\"yarn\""));
    refuse(CHANGES("rope_scaling.rope_type", "\"default\""), "rope_scaling.rope_type");
    refuse(CHANGES("rope_scaling.factor", "null"), "rope_scaling.factor");

    const char *original = "rope_scaling.original_max_position_embeddings";
    refuse(CHANGES(original, "null"), original);
    refuse(CHANGES(original, "64.5"),
           "rope_scaling.original_max_position_embeddings: expected a whole number below 2^31, got "
           "64.5");
    refuse(CHANGES(original, "2147483648"), original);
    refuse(CHANGES(original, "1e25"), original);
    accept(CHANGES(original, "2147483647"));

    refuse(CHANGES("compress_rope_theta", "1"),
           "compress_rope_theta: expected another number than 1");
    accept(CHANGES("compress_rope_theta", "1", "rope_scaling", "null"));
    accept(CHANGES("compress_rope_theta", "1", original, "0"));
    accept(CHANGES("rope_theta", "1"));
}

/* covers: config.fixed.1 config.fixed.2 */
static void unsupported_values_are_refused(void **state)
{
    (void)state;
    const struct {
        const char *key, *bad, *expected;
    } cases[] = {
        {"num_key_value_heads", "2", "num_key_value_heads: expected 1, got 2"},
        {"num_key_value_heads", "true", "num_key_value_heads: expected 1, got true"},
        {"n_shared_experts", "0", "n_shared_experts: expected 1, got 0"},
        {"scoring_func", "\"softmax\"", "scoring_func: expected \"sqrtsoftplus\", got \"softmax\""},
        {"topk_method", "\"greedy\"", "topk_method: expected \"noaux_tc\", got \"greedy\""},
        {"hidden_act", "\"gelu\"", "hidden_act: expected \"silu\", got \"gelu\""},
        {"tie_word_embeddings", "true", "tie_word_embeddings: expected false, got true"},
        {"expert_dtype", "4", "expert_dtype: expected a string, got 4"},
        {"quantization_config", "3", "quantization_config: expected an object or null, got 3"},
        {"quantization_config.fmt", "\"e5m2\"", "quantization_config.fmt: expected \"e4m3\""},
        {"quantization_config.scale_fmt", "\"float\"", "scale_fmt: expected \"ue8m0\""},
        {"quantization_config.weight_block_size", "[128, 64]",
         "weight_block_size: expected [128,128], got [128,64]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        refuse(CHANGES(cases[i].key, cases[i].bad), cases[i].expected);
        accept(CHANGES(cases[i].key, NULL));
    }
    accept(CHANGES("expert_dtype", "\"bf16\""));
    accept(CHANGES("quantization_config", "{}"));
}

static void long_values_are_cut_in_messages(void **state)
{
    (void)state;
    char value[2000];
    memset(value, 'x', sizeof value);
    value[0] = value[sizeof value - 2] = '"';
    value[sizeof value - 1] = '\0';
    dsv4_config config;
    dsv4_error err;
    assert_int_equal(parse_changed(&config, &err, CHANGES("hc_mult", value)), -1);
    assert_true(strlen(err.text) < 200);
}

static void files_are_read(void **state)
{
    (void)state;
    char *directory = files_directory();
    char *path = files_path(directory, "config.json");
    dsv4_config config;
    dsv4_error err = {0};

    assert_int_equal(dsv4_config_read(&config, path, &err), -1);
    assert_non_null(strstr(err.text, "config.json: No such file"));
    files_write_text(directory, "config.json", base);
    assert_int_equal(dsv4_config_read(&config, path, &err), 0);
    assert_int_equal(config.hidden_size, 40);
    dsv4_config_free(&config);

    files_write_text(directory, "config.json", "");
    err = (dsv4_error){0};
    assert_int_equal(dsv4_config_read(&config, path, &err), -1);
    assert_non_null(strstr(err.text, path));

    err = (dsv4_error){0};
    assert_int_equal(dsv4_config_read(&config, directory, &err), -1);
    assert_non_null(strstr(err.text, "not a regular file"));

    char *pipe_path = files_path(directory, "pipe");
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    err = (dsv4_error){0};
    assert_int_equal(dsv4_config_read(&config, pipe_path, &err), -1);
    assert_non_null(strstr(err.text, "not a regular file"));
    free(pipe_path);
    free(path);
    files_remove(directory);
}

static void released_geometries(void **state)
{
    (void)state;
    dsv4_config c;
    dsv4_error err;
    assert_int_equal(parse(&c, dsv4_geometry("flash"), &err), 0);
    const int64_t flash[] = {
        c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.head_dim, c.q_lora_rank,
        c.o_groups, c.o_lora_rank, c.qk_rope_head_dim, c.sliding_window, c.index_n_heads,
        c.index_head_dim, c.index_topk, c.moe_intermediate_size, c.n_routed_experts,
        c.num_experts_per_tok, c.num_hash_layers, c.hc_mult, c.hc_sinkhorn_iters,
        c.max_position_embeddings, c.num_nextn_predict_layers, c.vocab_size, c.bos_token_id,
        c.eos_token_id,
    };
    const int64_t expected[] = {4096, 43, 64, 512, 1024, 8, 1024, 64, 128,     64, 128,    512,
                                2048, 256, 6, 3,   4,    20, 1048576, 1, 129280, 0, 1};
    assert_memory_equal(flash, expected, sizeof expected);
    int64_t kinds[3] = {0};
    for (int64_t i = 0; i < 43; i++)
        kinds[dsv4_config_kind(&c, i)]++;
    assert_true(kinds[DSV4_SWA] == 2 && kinds[DSV4_CSA] == 21 && kinds[DSV4_HCA] == 20);
    assert_true(c.compress_ratios[0] == 0 && c.compress_ratios[2] == 4);
    assert_true(c.compress_ratios[3] == 128 && c.compress_ratios[43] == 0);
    assert_true(c.routed_scaling_factor == 1.5 && c.swiglu_limit == 10 && c.norm_topk_prob);
    assert_true(c.hc_eps == 1e-6 && c.rms_norm_eps == 1e-6);
    assert_true(c.rope_theta == 10000 && c.compress_rope_theta == 160000);
    assert_true(c.rope_scaling.present && c.rope_scaling.factor == 16);
    assert_true(c.rope_scaling.original_max_position_embeddings == 65536);
    assert_true(c.rope_scaling.beta_fast == 32 && c.rope_scaling.beta_slow == 1);
    dsv4_config_free(&c);

    assert_int_equal(parse(&c, dsv4_geometry("pro"), &err), 0);
    const int64_t pro[] = {
        c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.q_lora_rank, c.o_groups,
        c.index_topk, c.moe_intermediate_size, c.n_routed_experts,
    };
    const int64_t expected_pro[] = {7168, 61, 128, 1536, 16, 1024, 3072, 384};
    assert_memory_equal(pro, expected_pro, sizeof expected_pro);
    int64_t pro_kinds[3] = {0};
    for (int64_t i = 0; i < 61; i++)
        pro_kinds[dsv4_config_kind(&c, i)]++;
    assert_true(pro_kinds[DSV4_SWA] == 0 && pro_kinds[DSV4_CSA] == 30 && pro_kinds[DSV4_HCA] == 31);
    assert_true(c.routed_scaling_factor == 2.5 && c.compress_ratios[61] == 0);
    dsv4_config_free(&c);

    const struct {
        const char *name;
        size_t entries;
    } lists[] = {{"flash", 44}, {"pro", 62}};
    for (int i = 0; i < 2; i++) {
        json_t *root = json_loads(dsv4_geometry(lists[i].name), JSON_REJECT_DUPLICATES, NULL);
        assert_int_equal(json_array_size(json_object_get(root, "compress_ratios")),
                         lists[i].entries);
        json_decref(root);
    }
    assert_null(dsv4_geometry("tiny"));
}

/* Truncations and single-byte changes are parsed or refused: never worse. */
static void damaged_text_does_no_harm(void **state)
{
    (void)state;
    char text[sizeof base];
    for (size_t i = 0; i < sizeof base - 1; i++) {
        dsv4_config config;
        dsv4_error err = {0};
        assert_int_equal(dsv4_config_parse(&config, base, i, "cut", &err), -1);
        static const char bytes[] = {'0', '9', '-', '"', ',', '}', '\0', '\xff'};
        for (size_t k = 0; k < sizeof bytes; k++) {
            memcpy(text, base, sizeof base);
            text[i] = bytes[k];
            err = (dsv4_error){0};
            if (dsv4_config_parse(&config, text, sizeof base - 1, "changed", &err) != 0)
                assert_true(err.text[0] != '\0');
            dsv4_config_free(&config);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_is_read),
        cmocka_unit_test(what_is_no_object_is_refused),
        cmocka_unit_test(integers_have_types_and_limits),
        cmocka_unit_test(reals_have_types_and_limits),
        cmocka_unit_test(optional_keys_have_defaults),
        cmocka_unit_test(ratios_belong_to_layers),
        cmocka_unit_test(small_ratios_are_refused),
        cmocka_unit_test(keys_of_absent_kinds_are_not_needed),
        cmocka_unit_test(rope_part_fits_the_head),
        cmocka_unit_test(groups_divide_the_heads),
        cmocka_unit_test(counts_fit_each_other),
        cmocka_unit_test(hadamard_needs_a_power_of_two),
        cmocka_unit_test(products_are_bounded),
        cmocka_unit_test(rope_scaling_is_yarn_or_nothing),
        cmocka_unit_test(unsupported_values_are_refused),
        cmocka_unit_test(long_values_are_cut_in_messages),
        cmocka_unit_test(files_are_read),
        cmocka_unit_test(released_geometries),
        cmocka_unit_test(damaged_text_does_no_harm),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL) != 0;
}
