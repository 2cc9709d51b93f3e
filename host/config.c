#include "config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"

/* One JSON object on its way into a dsv4_config. */
typedef struct {
    const char *file;
    const char *path; /* of the object inside the file: "" or "rope_scaling." */
    const json_t *object;
    dsv4_error *err;
} reader;

typedef struct {
    const char *key;
    size_t offset; /* of an int64_t in dsv4_config */
    int64_t least, most;
} integer_key;

typedef struct {
    const char *key;
    size_t offset; /* of a double in dsv4_config */
    double least;
} real_key;

#define AT(field) offsetof(dsv4_config, field)

static const int64_t max_width = INT64_C(1) << 20;
static const int64_t max_product = INT64_C(1) << 24;
static const int64_t max_layers = 4096;
static const int64_t max_layer_experts = INT64_C(1) << 18;
static const int64_t max_ratio = INT64_C(1) << 24;
static const double max_real = 1e30;

static json_t *load_object(const char *text, size_t length, const char *name, dsv4_error *err)
{
    /* config.file.1: config.json is one JSON object, and no object in it has a key twice. Keys that
     * this chapter does not name are ignored. */
    json_t *root = dsv4_json_parse(text, length, name, err);
    if (root != NULL && !json_is_object(root)) {
        dsv4_fail(err, "%s: expected a JSON object, got a list", name);
        json_decref(root);
        root = NULL;
    }
    return root;
}

/* What stands behind a key: null counts as absent. */
static const json_t *value_of(const reader *r, const char *key)
{
    const json_t *value = json_object_get(r->object, key);
    return json_is_null(value) ? NULL : value;
}

/* The value as it stands in the file, shortened; or "nothing". */
static int fail_value(const reader *r, const char *key, const char *expected, const json_t *got)
{
    char *text = got != NULL ? json_dumps(got, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII |
                                                   JSON_REAL_PRECISION(12))
                             : NULL;
    dsv4_fail(r->err, "%s: %s%s: expected %s, got %.80s", r->file, r->path, key, expected,
              text != NULL ? text : "nothing");
    free(text);
    return -1;
}

/* config.file.2: An integer key takes a JSON integer and a real key any JSON number; booleans and
 * strings are refused, and null counts as absent. */
static int integer_value(const reader *r, const char *key, const json_t *value, int64_t least,
                         int64_t most, int64_t *out)
{
    if (json_is_integer(value) && json_integer_value(value) >= least &&
        json_integer_value(value) <= most) {
        *out = json_integer_value(value);
        return 0;
    }
    char expected[96];
    snprintf(expected, sizeof expected, "an integer from %" PRId64 " to %" PRId64, least, most);
    return fail_value(r, key, expected, value);
}

static int real_value(const reader *r, const char *key, const json_t *value, double least,
                      double *out)
{
    if (json_is_number(value) && json_number_value(value) >= least &&
        json_number_value(value) <= max_real) {
        *out = json_number_value(value);
        return 0;
    }
    char expected[64];
    snprintf(expected, sizeof expected, "a number from %g to %g", least, max_real);
    return fail_value(r, key, expected, value);
}

static int read_integers(const reader *r, const integer_key *keys, size_t n, dsv4_config *config)
{
    for (size_t i = 0; i < n; i++) {
        int64_t *field = (int64_t *)((char *)config + keys[i].offset);
        if (integer_value(r, keys[i].key, value_of(r, keys[i].key), keys[i].least, keys[i].most,
                          field) != 0)
            return -1;
    }
    return 0;
}

static int read_reals(const reader *r, const real_key *keys, size_t n, dsv4_config *config)
{
    for (size_t i = 0; i < n; i++) {
        double *field = (double *)((char *)config + keys[i].offset);
        if (real_value(r, keys[i].key, value_of(r, keys[i].key), keys[i].least, field) != 0)
            return -1;
    }
    return 0;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* config.file.3: Every key of the tables below that is not marked optional is needed, and every
 * number lies within its limits; no number is negative. */
static int read_scalars(const reader *r, dsv4_config *config)
{
    const integer_key integers[] = {
        {"hidden_size", AT(hidden_size), 1, max_width},
        {"num_attention_heads", AT(num_attention_heads), 1, max_width},
        {"head_dim", AT(head_dim), 1, max_width},
        {"q_lora_rank", AT(q_lora_rank), 1, max_width},
        {"qk_rope_head_dim", AT(qk_rope_head_dim), 2, max_width},
        {"o_groups", AT(o_groups), 1, max_width},
        {"o_lora_rank", AT(o_lora_rank), 1, max_width},
        {"sliding_window", AT(sliding_window), 1, INT32_MAX},
        {"moe_intermediate_size", AT(moe_intermediate_size), 1, max_width},
        {"n_routed_experts", AT(n_routed_experts), 1, 65536},
        {"num_experts_per_tok", AT(num_experts_per_tok), 1, 65536},
        {"num_hash_layers", AT(num_hash_layers), 0, max_layers},
        {"hc_mult", AT(hc_mult), 1, 256},
        {"hc_sinkhorn_iters", AT(hc_sinkhorn_iters), 1, 65536},
        {"max_position_embeddings", AT(max_position_embeddings), 1, INT32_MAX},
        {"vocab_size", AT(vocab_size), 1, INT32_MAX},
    };
    const real_key reals[] = {
        {"routed_scaling_factor", AT(routed_scaling_factor), 0},
        {"swiglu_limit", AT(swiglu_limit), 0},
        {"hc_eps", AT(hc_eps), 0},
        {"rms_norm_eps", AT(rms_norm_eps), 0},
        {"rope_theta", AT(rope_theta), 1e-30},
    };
    if (read_integers(r, integers, COUNT(integers), config) != 0 ||
        read_reals(r, reals, COUNT(reals), config) != 0)
        return -1;

    config->bos_token_id = config->eos_token_id = -1;
    config->norm_topk_prob = true;
    const integer_key tokens[] = {
        {"bos_token_id", AT(bos_token_id), 0, config->vocab_size - 1},
        {"eos_token_id", AT(eos_token_id), 0, config->vocab_size - 1},
    };
    for (size_t i = 0; i < COUNT(tokens); i++)
        if (value_of(r, tokens[i].key) != NULL && read_integers(r, &tokens[i], 1, config) != 0)
            return -1;
    const json_t *norm = value_of(r, "norm_topk_prob");
    if (norm != NULL && !json_is_boolean(norm))
        return fail_value(r, "norm_topk_prob", "true or false", norm);
    if (norm != NULL)
        config->norm_topk_prob = json_is_true(norm);
    return 0;
}

/* config.layers.1: Entry l of compress_ratios belongs to layer l, and entry num_hidden_layers + i
 * to MTP layer i. A missing entry of an MTP layer is 0; entries beyond the last MTP layer are
 * unused. */
static int read_ratios(const reader *r, dsv4_config *config)
{
    const integer_key layers = {"num_hidden_layers", AT(num_hidden_layers), 1, max_layers};
    if (read_integers(r, &layers, 1, config) != 0)
        return -1;
    const integer_key mtp = {"num_nextn_predict_layers", AT(num_nextn_predict_layers), 0,
                             max_layers - config->num_hidden_layers};
    if (value_of(r, mtp.key) != NULL && read_integers(r, &mtp, 1, config) != 0)
        return -1;

    const json_t *list = value_of(r, "compress_ratios");
    if (!json_is_array(list))
        return fail_value(r, "compress_ratios", "a list of integers", list);
    size_t listed = json_array_size(list), needed = (size_t)config->num_hidden_layers;
    if (listed < needed)
        return dsv4_fail(r->err, "%s: compress_ratios: expected at least %zu entries, got %zu",
                         r->file, needed, listed);
    needed += (size_t)config->num_nextn_predict_layers;
    config->compress_ratios = dsv4_alloc(needed, sizeof *config->compress_ratios);
    for (size_t i = 0; i < listed; i++) {
        char key[64];
        snprintf(key, sizeof key, "compress_ratios[%zu]", i);
        const json_t *entry = json_array_get(list, i);
        int64_t ratio;
        if (integer_value(r, key, entry, 0, max_ratio, &ratio) != 0)
            return -1;
        /* config.layers.2: A ratio of 1, 2 or 3 is refused. */
        if (ratio > 0 && ratio < 4)
            return fail_value(r, key, "0, 4 or a larger ratio", entry);
        if (i < needed)
            config->compress_ratios[i] = ratio;
    }
    return 0;
}

/* config.layers.3: Ratio 0 makes a sliding-window layer (SWA), ratio 4 a compressed sparse layer
 * (CSA), and every larger ratio a heavily compressed layer (HCA). */
dsv4_layer_kind dsv4_config_kind(const dsv4_config *config, int64_t layer)
{
    int64_t ratio = config->compress_ratios[layer];
    return ratio == 0 ? DSV4_SWA : ratio == 4 ? DSV4_CSA : DSV4_HCA;
}

static bool has_ratio(const dsv4_config *config, bool csa_only)
{
    for (int64_t i = 0; i < config->num_hidden_layers + config->num_nextn_predict_layers; i++)
        if (csa_only ? config->compress_ratios[i] == 4 : config->compress_ratios[i] != 0)
            return true;
    return false;
}

/* config.layers.4: The index keys are needed only where some layer is CSA, and compress_rope_theta
 * only where some layer is CSA or HCA; elsewhere they are ignored. MTP layers count. */
static int read_layer_keys(const reader *r, dsv4_config *config)
{
    const integer_key index[] = {
        {"index_n_heads", AT(index_n_heads), 1, max_width},
        {"index_head_dim", AT(index_head_dim), 1, max_width},
        {"index_topk", AT(index_topk), 1, INT32_MAX},
    };
    const real_key theta = {"compress_rope_theta", AT(compress_rope_theta), 1e-30};
    if (has_ratio(config, true) && read_integers(r, index, COUNT(index), config) != 0)
        return -1;
    if (has_ratio(config, false) && read_reals(r, &theta, 1, config) != 0)
        return -1;
    return 0;
}

static int check_product(const reader *r, const char *what, int64_t a, int64_t b, int64_t most)
{
    if (a * b <= most)
        return 0;
    return dsv4_fail(r->err, "%s: %s: expected at most %" PRId64 ", got %" PRId64 " x %" PRId64,
                     r->file, what, most, a, b);
}

static int check_at_most(const reader *r, const char *key, int64_t got, const char *bound,
                         int64_t most)
{
    if (got <= most)
        return 0;
    return dsv4_fail(r->err, "%s: %s: expected at most %s = %" PRId64 ", got %" PRId64, r->file,
                     key, bound, most, got);
}

static int check_shape(const reader *r, const dsv4_config *c)
{
    /* config.shape.1: qk_rope_head_dim is even, at least 2 and at most head_dim. */
    if (c->qk_rope_head_dim % 2 != 0)
        return dsv4_fail(r->err, "%s: qk_rope_head_dim: expected an even number, got %" PRId64,
                         r->file, c->qk_rope_head_dim);
    if (check_at_most(r, "qk_rope_head_dim", c->qk_rope_head_dim, "head_dim", c->head_dim) != 0)
        return -1;
    /* config.shape.2: o_groups divides num_attention_heads. */
    if (c->num_attention_heads % c->o_groups != 0)
        return dsv4_fail(r->err, "%s: o_groups: expected a divisor of num_attention_heads = "
                         "%" PRId64 ", got %" PRId64, r->file, c->num_attention_heads, c->o_groups);
    /* config.shape.3: num_experts_per_tok is at most n_routed_experts, and num_hash_layers at most
     * num_hidden_layers. */
    if (check_at_most(r, "num_experts_per_tok", c->num_experts_per_tok, "n_routed_experts",
                      c->n_routed_experts) != 0 ||
        check_at_most(r, "num_hash_layers", c->num_hash_layers, "num_hidden_layers",
                      c->num_hidden_layers) != 0)
        return -1;
    /* config.shape.4: Where some layer is CSA, index_head_dim is a power of two and at least
     * qk_rope_head_dim. */
    if (c->index_head_dim != 0) {
        if ((c->index_head_dim & (c->index_head_dim - 1)) != 0)
            return dsv4_fail(r->err, "%s: index_head_dim: expected a power of two, got %" PRId64,
                             r->file, c->index_head_dim);
        if (check_at_most(r, "qk_rope_head_dim", c->qk_rope_head_dim, "index_head_dim",
                          c->index_head_dim) != 0)
            return -1;
    }
    /* config.shape.5: num_attention_heads x head_dim, index_n_heads x index_head_dim and o_groups x
     * o_lora_rank are at most 2^24 each, and the number of layers, MTP layers included, times
     * n_routed_experts is at most 2^18. */
    int64_t layers = c->num_hidden_layers + c->num_nextn_predict_layers;
    if (check_product(r, "num_attention_heads x head_dim", c->num_attention_heads, c->head_dim,
                      max_product) != 0 ||
        check_product(r, "index_n_heads x index_head_dim", c->index_n_heads, c->index_head_dim,
                      max_product) != 0 ||
        check_product(r, "o_groups x o_lora_rank", c->o_groups, c->o_lora_rank, max_product) != 0 ||
        check_product(r, "layers x n_routed_experts", layers, c->n_routed_experts,
                      max_layer_experts) != 0)
        return -1;
    return 0;
}

static int check_yarn(const reader *r, const char *key, bool needed)
{
    const json_t *type = value_of(r, key);
    if (type == NULL ? !needed
                     : json_is_string(type) && strcmp(json_string_value(type), "yarn") == 0)
        return 0;
    return fail_value(r, key, "\"yarn\"", type);
}

static int read_rope_scaling(const reader *parent, dsv4_config *config)
{
    const json_t *object = value_of(parent, "rope_scaling");
    if (object == NULL) {
        /* config.rope.1: A configuration with rope_parameters in place of rope_scaling is refused:
         * it is another layout, and leaving out its scaling would go unnoticed. */
        const json_t *other = value_of(parent, "rope_parameters");
        if (other != NULL)
            return fail_value(parent, "rope_parameters", "rope_scaling instead", other);
        return 0;
    }
    if (!json_is_object(object))
        return fail_value(parent, "rope_scaling", "an object or null", object);

    /* config.rope.2: rope_scaling names its kind by type or by rope_type, which must be yarn.
     * factor and original_max_position_embeddings are needed; beta_fast is 32 and beta_slow 1 where
     * absent. */
    const reader r = {parent->file, "rope_scaling.", object, parent->err};
    if (check_yarn(&r, "type", value_of(&r, "rope_type") == NULL) != 0 ||
        check_yarn(&r, "rope_type", false) != 0)
        return -1;
    config->rope_scaling.beta_fast = 32;
    config->rope_scaling.beta_slow = 1;
    const real_key needed[] = {
        {"factor", AT(rope_scaling.factor), 1e-30},
        {"original_max_position_embeddings", AT(rope_scaling.original_max_position_embeddings), 0},
    };
    const real_key optional[] = {
        {"beta_fast", AT(rope_scaling.beta_fast), 1e-30},
        {"beta_slow", AT(rope_scaling.beta_slow), 1e-30},
    };
    if (read_reals(&r, needed, COUNT(needed), config) != 0)
        return -1;
    for (size_t i = 0; i < COUNT(optional); i++)
        if (value_of(&r, optional[i].key) != NULL && read_reals(&r, &optional[i], 1, config) != 0)
            return -1;

    /* config.rope.3: original_max_position_embeddings is a whole number, and 0 means that there is
     * no scaling. */
    double original = config->rope_scaling.original_max_position_embeddings;
    if (original > INT32_MAX || original != (double)(int64_t)original)
        return fail_value(&r, needed[1].key, "a whole number below 2^31",
                          value_of(&r, needed[1].key));
    config->rope_scaling.present = original > 0;
    /* config.rope.4: With scaling, compress_rope_theta is not 1: YaRN divides by its logarithm. */
    if (config->rope_scaling.present && config->compress_rope_theta == 1)
        return dsv4_fail(r.err, "%s: compress_rope_theta: expected another number than 1 with "
                         "rope_scaling, got 1", r.file);
    return 0;
}

/* A key that, where present, must have this value: JSON text. */
typedef struct {
    const char *key, *value;
} fixed_key;

static int check_fixed(const reader *r, const fixed_key *keys, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const json_t *got = value_of(r, keys[i].key);
        json_t *expected = json_loads(keys[i].value, JSON_DECODE_ANY, NULL);
        bool good = got == NULL || json_equal(got, expected);
        json_decref(expected);
        if (!good)
            return fail_value(r, keys[i].key, keys[i].value, got);
    }
    return 0;
}

static int check_supported(const reader *r)
{
    /* config.fixed.1: These keys may be absent; where present they have the one value of the table:
     * the arithmetic of any other value is not defined here. */
    const fixed_key keys[] = {
        {"num_key_value_heads", "1"},       {"n_shared_experts", "1"},
        {"scoring_func", "\"sqrtsoftplus\""}, {"topk_method", "\"noaux_tc\""},
        {"hidden_act", "\"silu\""},         {"tie_word_embeddings", "false"},
    };
    if (check_fixed(r, keys, COUNT(keys)) != 0)
        return -1;

    /* config.fixed.2: expert_dtype and quantization_config only describe the checkpoint, whose
     * tensors tell their own dtypes. Where present, expert_dtype is a string, and in
     * quantization_config fmt is e4m3, scale_fmt ue8m0 and weight_block_size [128,128]. */
    const json_t *experts = value_of(r, "expert_dtype");
    if (experts != NULL && !json_is_string(experts))
        return fail_value(r, "expert_dtype", "a string", experts);
    const json_t *object = value_of(r, "quantization_config");
    if (object == NULL)
        return 0;
    if (!json_is_object(object))
        return fail_value(r, "quantization_config", "an object or null", object);
    const fixed_key quantisation[] = {
        {"fmt", "\"e4m3\""},
        {"scale_fmt", "\"ue8m0\""},
        {"weight_block_size", "[128,128]"},
    };
    const reader inner = {r->file, "quantization_config.", object, r->err};
    return check_fixed(&inner, quantisation, COUNT(quantisation));
}

int dsv4_config_parse(dsv4_config *config, const char *text, size_t length, const char *name,
                      dsv4_error *err)
{
    *config = (dsv4_config){0};
    json_t *root = load_object(text, length, name, err);
    if (root == NULL)
        return -1;
    const reader r = {name, "", root, err};
    bool good = read_ratios(&r, config) == 0 && read_scalars(&r, config) == 0 &&
                read_layer_keys(&r, config) == 0 && check_shape(&r, config) == 0 &&
                read_rope_scaling(&r, config) == 0 && check_supported(&r) == 0;
    json_decref(root);
    if (good)
        return 0;
    dsv4_config_free(config);
    return -1;
}

int dsv4_config_read(dsv4_config *config, const char *path, dsv4_error *err)
{
    *config = (dsv4_config){0};
    dsv4_file file;
    if (dsv4_file_map(&file, path, err) != 0)
        return -1;
    int status = dsv4_config_parse(config, file.data, file.size, path, err);
    dsv4_file_unmap(&file);
    return status;
}

void dsv4_config_free(dsv4_config *config)
{
    free(config->compress_ratios);
    *config = (dsv4_config){0};
}
