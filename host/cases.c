#include "cases.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Only code of this project builds cases from parts: what these refuse is a mistake in it, not
 * input. */
static void require(bool good, const char *what, const char *name)
{
    if (good)
        return;
    fprintf(stderr, "dsv4: cases: %s: %s\n", name, what);
    exit(2);
}

/* "OPERATOR/CASE/GROUP/SLOT: expected .., got ..": a place in a vector file. */
static int fail_at(const dsv4_case *c, const char *group, const char *name, dsv4_error *err,
                   const char *format, ...) __attribute__((format(printf, 5, 6)));

static int fail_at(const dsv4_case *c, const char *group, const char *name, dsv4_error *err,
                   const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return dsv4_fail(err, "%s/%s%s%s%s%s: %s", c->op->name, c->name, group[0] != '\0' ? "/" : "",
                     group, name[0] != '\0' ? "/" : "", name, text);
}

/* ---- arrays ---- */

static void set_name(char to[DSV4_NAME], const char *name)
{
    require(strlen(name) < DSV4_NAME, "the name is too long", name);
    strcpy(to, name);
}

/* The product of a shape, or -1 where it is negative or its bytes do not fit. */
static int64_t count_of(int rank, const int64_t *shape)
{
    int64_t count = 1;
    bool empty = false;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return -1;
        empty = empty || shape[i] == 0;
    }
    for (int i = 0; i < rank && !empty; i++)
        if (__builtin_mul_overflow(count, shape[i], &count))
            return -1;
    return empty ? 0 : count <= INT64_MAX / 8 ? count : -1;
}

static void make_array(dsv4_array *array, const char *name, dsv4_format format, int rank,
                       const int64_t *shape)
{
    memset(array, 0, sizeof *array);
    set_name(array->name, name);
    require(rank >= 0 && rank <= DSV4_ARRAY_RANK, "rank out of range", name);
    array->format = format;
    array->rank = rank;
    for (int i = 0; i < rank; i++)
        array->shape[i] = shape[i];
    array->count = count_of(rank, shape);
    require(array->count >= 0, "impossible shape", name);
    array->data = dsv4_alloc((size_t)array->count, (size_t)dsv4_format_size(format));
}

double dsv4_array_value(const dsv4_array *array, int64_t i)
{
    switch (array->format) {
    case DSV4_FORMAT_F64: return ((const double *)array->data)[i];
    case DSV4_FORMAT_F32:
    case DSV4_FORMAT_BF16: return (double)((const float *)array->data)[i];
    case DSV4_FORMAT_I64: return (double)((const int64_t *)array->data)[i];
    default: return NAN; /* codes are not values */
    }
}

/* Doubled at every power of two. */
static void *grow(void *items, int count, size_t size)
{
    if (count & (count - 1))
        return items;
    void *grown = dsv4_alloc(2 * (size_t)count + 1, size);
    if (count > 0)
        memcpy(grown, items, (size_t)count * size);
    free(items);
    return grown;
}

dsv4_array *dsv4_case_add_in(dsv4_case *c, const char *name, dsv4_format format, int rank,
                             const int64_t *shape)
{
    require(dsv4_case_in(c, name) == NULL, "the case has this input already", name);
    c->in = grow(c->in, c->ins, sizeof *c->in);
    make_array(&c->in[c->ins], name, format, rank, shape);
    return &c->in[c->ins++];
}

dsv4_array *dsv4_case_add_out(dsv4_case *c, const char *name, dsv4_format format, int rank,
                              const int64_t *shape)
{
    require(dsv4_case_out(c, name) == NULL, "the case has this output already", name);
    c->out = grow(c->out, c->outs, sizeof *c->out);
    if (c->tolerance != NULL)
        c->tolerance = grow(c->tolerance, c->outs, sizeof *c->tolerance);
    make_array(&c->out[c->outs], name, format, rank, shape);
    return &c->out[c->outs++];
}

void dsv4_case_free(dsv4_case *c)
{
    for (int i = 0; i < c->ins; i++)
        free(c->in[i].data);
    for (int i = 0; i < c->outs; i++)
        free(c->out[i].data);
    free(c->in);
    free(c->out);
    free(c->tolerance);
    memset(c, 0, sizeof *c);
}

static const dsv4_array *find_array(const dsv4_array *arrays, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(arrays[i].name, name) == 0)
            return &arrays[i];
    return NULL;
}

const dsv4_array *dsv4_case_in(const dsv4_case *c, const char *name)
{
    return find_array(c->in, c->ins, name);
}

const dsv4_array *dsv4_case_out(const dsv4_case *c, const char *name)
{
    return find_array(c->out, c->outs, name);
}

double *dsv4_case_values(const dsv4_case *c, const char *name)
{
    const dsv4_array *array = dsv4_case_in(c, name);
    require(array != NULL, "the case lacks this input", name);
    double *values = dsv4_alloc((size_t)array->count, sizeof *values);
    for (int64_t i = 0; i < array->count; i++)
        values[i] = dsv4_array_value(array, i);
    return values;
}

int64_t *dsv4_case_indices(const dsv4_case *c, const char *name)
{
    const dsv4_array *array = dsv4_case_in(c, name);
    require(array != NULL && array->format == DSV4_FORMAT_I64, "the case lacks these indices",
            name);
    int64_t *indices = dsv4_alloc((size_t)array->count, sizeof *indices);
    memcpy(indices, array->data, (size_t)array->count * sizeof *indices);
    return indices;
}

/* ---- parameters ---- */

static const dsv4_param *find_param(const dsv4_case *c, const char *name)
{
    for (int i = 0; i < c->params; i++)
        if (strcmp(c->param[i].name, name) == 0)
            return &c->param[i];
    return NULL;
}

void dsv4_case_set(dsv4_case *c, const char *param, double value)
{
    const dsv4_param *old = find_param(c, param);
    int64_t i = old != NULL ? old - c->param : c->params++;
    require(i < DSV4_MAX_PARAMS, "too many parameters", param);
    set_name(c->param[i].name, param);
    c->param[i].value = value;
}

double dsv4_case_param(const dsv4_case *c, const char *name, double otherwise)
{
    const dsv4_param *param = find_param(c, name);
    return param != NULL ? param->value : otherwise;
}

/* A count among the parameters. Out of range, which dsv4_case_check() refuses: 0. */
static int64_t whole_param(const dsv4_case *c, const char *name, int64_t otherwise)
{
    double value = dsv4_case_param(c, name, (double)otherwise);
    return value >= -1 && value <= 1e15 ? (int64_t)value : 0;
}

/* ---- symbols of the table's dims ---- */

static const int64_t MAX_DIM = (int64_t)1 << 40;

enum { MAX_SYMBOLS = 32, SYMBOL_SIZE = 8, UNKNOWN = -1 };

typedef struct {
    struct { char name[SYMBOL_SIZE]; int64_t value; } item[MAX_SYMBOLS];
    int count;
} symbols;

static int64_t *symbol(symbols *s, const char *name, size_t length)
{
    for (int i = 0; i < s->count; i++)
        if (strlen(s->item[i].name) == length && memcmp(s->item[i].name, name, length) == 0)
            return &s->item[i].value;
    require(s->count < MAX_SYMBOLS && length < SYMBOL_SIZE, "bad symbol in the table", name);
    memcpy(s->item[s->count].name, name, length);
    s->item[s->count].name[length] = '\0';
    s->item[s->count].value = UNKNOWN;
    return &s->item[s->count++].value;
}

static int64_t known(symbols *s, const char *name)
{
    return *symbol(s, name, strlen(name));
}

static void learn(symbols *s, const char *name, int64_t value)
{
    *symbol(s, name, strlen(name)) = value;
}

/* An expression of the table under evaluation: products and quotients of numbers, symbols, and sums
 * in parentheses: "H*d/g", "(2+n)*n". */
typedef struct {
    const char *at;
    symbols *s;
    const int64_t *trial; /* what an unknown symbol is tried as; NULL: unknown ones are counted */
    const char *unknown;  /* the last unknown one */
    size_t unknown_length;
    int unknowns;         /* different ones */
    bool exact;           /* all quotients are whole */
} evaluation;

static int64_t multiply(int64_t a, int64_t b)
{
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static bool in_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static int64_t eval_atom(evaluation *e)
{
    if (*e->at == '(') { /* the only sum there is: a number and a symbol */
        e->at++;
        int64_t sum = eval_atom(e);
        e->at++;
        int64_t other = eval_atom(e);
        e->at++;
        return sum > INT64_MAX - other ? INT64_MAX : sum + other;
    }
    if (*e->at >= '0' && *e->at <= '9') {
        char *end;
        int64_t number = strtoll(e->at, &end, 10);
        e->at = end;
        return number;
    }
    const char *name = e->at;
    size_t length = 0;
    while (in_name(name[length]))
        length++;
    require(length > 0, "bad expression in the table", name);
    e->at += length;
    int64_t value = *symbol(e->s, name, length);
    if (value != UNKNOWN)
        return value;
    if (e->unknown == NULL || e->unknown_length != length ||
        memcmp(e->unknown, name, length) != 0)
        e->unknowns++;
    e->unknown = name;
    e->unknown_length = length;
    return e->trial != NULL ? *e->trial : 1;
}

static int64_t eval(evaluation *e, const char *expression)
{
    e->at = expression;
    e->exact = true;
    int64_t value = eval_atom(e);
    while (*e->at == '*' || *e->at == '/') {
        bool times = *e->at++ == '*';
        int64_t factor = eval_atom(e);
        if (times) {
            value = multiply(value, factor);
        } else {
            e->exact = e->exact && factor > 0 && value % factor == 0;
            value = factor > 0 ? value / factor : 0;
        }
    }
    return value;
}

/* The value of an expression, or UNKNOWN where a symbol is, or a quotient is not whole. */
static int64_t evaluate(symbols *s, const char *expression)
{
    evaluation e = {.s = s};
    int64_t value = eval(&e, expression);
    return e.unknowns == 0 && e.exact ? value : UNKNOWN;
}

static int64_t eval_with(symbols *s, const char *expression, int64_t trial, bool *exact)
{
    evaluation e = {.s = s, .trial = &trial};
    int64_t value = eval(&e, expression);
    *exact = e.exact;
    return value;
}

/* Learns the one unknown symbol of an expression whose value is `dim`; true if there was one, and a
 * solution. All expressions of the table grow with their symbols (divisors are parameters). */
static bool solve(symbols *s, const char *expression, int64_t dim)
{
    evaluation e = {.s = s};
    eval(&e, expression);
    if (e.unknowns != 1 || dim < 0)
        return false;
    bool exact;
    int64_t low = 0, high = dim;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (eval_with(s, expression, middle, &exact) >= dim)
            high = middle;
        else
            low = middle + 1;
    }
    if (eval_with(s, expression, low, &exact) != dim || !exact ||
        eval_with(s, expression, low + 1, &exact) == dim) /* another factor is 0: nothing follows */
        return false;
    *symbol(s, e.unknown, e.unknown_length) = low;
    return true;
}

/* The expressions of `dims`, one at a time: "T n D". NULL behind the last. */
static const char *next_dim(const char *dims, char expression[DSV4_NAME])
{
    dims += strspn(dims, " ");
    size_t length = strcspn(dims, " ");
    if (length == 0)
        return NULL;
    require(length < DSV4_NAME, "bad dims in the table", dims);
    memcpy(expression, dims, length);
    expression[length] = '\0';
    return dims + length;
}

/* Whether array `name` is one of `slot`, of which it may be one part: `part` becomes "weight" or
 * "scale". A "*" in the slot's name stands for a number without leading zeros, `*number`. */
static bool matches(const dsv4_slot *slot, const char *name, const char **part, int64_t *number)
{
    const char *pattern = slot->name;
    *part = NULL;
    *number = -1;
    for (; *pattern != '\0'; pattern++) {
        if (*pattern != '*') {
            if (*name++ != *pattern)
                return false;
            continue;
        }
        size_t digits = strspn(name, "0123456789");
        if (digits == 0 || digits > 9 || (digits > 1 && *name == '0'))
            return false;
        *number = strtoll(name, NULL, 10);
        name += digits;
    }
    if (slot->kind != DSV4_SLOT_MATRIX)
        return *name == '\0';
    if (strcmp(name, ".weight") != 0 && strcmp(name, ".scale") != 0)
        return false;
    *part = name + 1;
    return true;
}

static const dsv4_slot *find_slot(const dsv4_slot *slots, const char *name, const char **part,
                                  int64_t *number)
{
    for (; slots->name != NULL; slots++)
        if (matches(slots, name, part, number))
            return slots;
    return NULL;
}

/* The shape of the values that an array of `slot` holds: E2M1 packs two in each byte. */
static int64_t value_dim(const dsv4_slot *slot, const dsv4_array *array, int i)
{
    bool packed = slot->kind == DSV4_SLOT_MATRIX && array->format == DSV4_FORMAT_E2M1;
    return packed && i == array->rank - 1 ? multiply(2, array->shape[i]) : array->shape[i];
}

/* The parameters that are sizes in the table's dims. */
static const struct { const char *param, *symbol; } sizes[] = {
    {"num_attention_heads", "H"}, {"o_groups", "g"}, {"hc_mult", "n"}, {"index_n_heads", "n_i"},
    {"num_experts_per_tok", "k"}, {"qk_rope_head_dim", "R"}, {"index_head_dim", "d_i"},
};

static void learn_params(const dsv4_case *c, symbols *s)
{
    for (size_t i = 0; i < COUNT(sizes); i++)
        if (find_param(c, sizes[i].param) != NULL)
            learn(s, sizes[i].symbol, whole_param(c, sizes[i].param, 0));
    int64_t ratio = whole_param(c, "ratio", 0);
    if (ratio > 0) {
        learn(s, "r", ratio);
        learn(s, "c", ratio == 4 ? 2 : 1);
    }
}

/* One round over the arrays; true if a symbol was learnt. */
static bool learn_arrays(const dsv4_slot *slots, const dsv4_array *arrays, int count, symbols *s)
{
    bool learnt = false;
    for (int i = 0; i < count; i++) {
        const char *part;
        int64_t number;
        const dsv4_slot *slot = find_slot(slots, arrays[i].name, &part, &number);
        if (slot == NULL || (part != NULL && strcmp(part, "scale") == 0))
            continue;
        char expression[DSV4_NAME];
        const char *dims = slot->dims;
        for (int j = 0; j < arrays[i].rank && (dims = next_dim(dims, expression)) != NULL; j++)
            learnt = solve(s, expression, value_dim(slot, &arrays[i], j)) || learnt;
    }
    return learnt;
}

static void learn_inputs(const dsv4_case *c, symbols *s)
{
    learn_params(c, s);
    while (learn_arrays(c->op->in, c->in, c->ins, s))
        ;
}

/* ---- configuration ---- */

#define WHOLE(field) {#field, offsetof(dsv4_config, field)}

static const struct { const char *name; size_t offset; } whole_fields[] = {
    WHOLE(num_attention_heads), WHOLE(qk_rope_head_dim), WHOLE(o_groups), WHOLE(sliding_window),
    WHOLE(index_n_heads), WHOLE(index_head_dim), WHOLE(index_topk), WHOLE(num_experts_per_tok),
    WHOLE(hc_mult), WHOLE(hc_sinkhorn_iters),
};

static const struct { const char *name; size_t offset; } real_fields[] = {
    WHOLE(routed_scaling_factor), WHOLE(swiglu_limit), WHOLE(hc_eps), WHOLE(rms_norm_eps),
    WHOLE(rope_theta), WHOLE(compress_rope_theta),
    {"factor", offsetof(dsv4_config, rope_scaling.factor)},
    {"original_max_position_embeddings",
     offsetof(dsv4_config, rope_scaling.original_max_position_embeddings)},
    {"beta_fast", offsetof(dsv4_config, rope_scaling.beta_fast)},
    {"beta_slow", offsetof(dsv4_config, rope_scaling.beta_slow)},
};

static const struct { const char *symbol; size_t offset; } size_fields[] = {
    {"D", offsetof(dsv4_config, hidden_size)},
    {"H", offsetof(dsv4_config, num_attention_heads)},
    {"d", offsetof(dsv4_config, head_dim)},
    {"Q", offsetof(dsv4_config, q_lora_rank)},
    {"g", offsetof(dsv4_config, o_groups)},
    {"o", offsetof(dsv4_config, o_lora_rank)},
    {"n_i", offsetof(dsv4_config, index_n_heads)},
    {"d_i", offsetof(dsv4_config, index_head_dim)},
    {"I", offsetof(dsv4_config, moe_intermediate_size)},
    {"E", offsetof(dsv4_config, n_routed_experts)},
    {"k", offsetof(dsv4_config, num_experts_per_tok)},
    {"n", offsetof(dsv4_config, hc_mult)},
    {"V", offsetof(dsv4_config, vocab_size)},
};

static const dsv4_config neutral = {
    .num_hidden_layers = 1,
    .o_groups = 1,
    .sliding_window = 128,
    .hc_mult = 4,
    .hc_sinkhorn_iters = 20,
    .max_position_embeddings = 1048576,
    .bos_token_id = -1,
    .eos_token_id = -1,
    .routed_scaling_factor = 1,
    .hc_eps = 1e-6,
    .rms_norm_eps = 1e-6,
    .rope_theta = 10000,
    .compress_rope_theta = 160000,
    .norm_topk_prob = true,
    .rope_scaling = {.beta_fast = 32, .beta_slow = 1},
};

void dsv4_case_config(const dsv4_case *c, dsv4_config *config)
{
    *config = neutral;
    for (size_t i = 0; i < COUNT(whole_fields); i++) {
        int64_t *field = (int64_t *)((char *)config + whole_fields[i].offset);
        *field = whole_param(c, whole_fields[i].name, *field);
    }
    for (size_t i = 0; i < COUNT(real_fields); i++) {
        double *field = (double *)((char *)config + real_fields[i].offset);
        *field = dsv4_case_param(c, real_fields[i].name, *field);
    }
    config->norm_topk_prob = dsv4_case_param(c, "norm_topk_prob", 1) != 0;
    config->num_hash_layers = dsv4_case_param(c, "hash", 0) != 0;
    config->rope_scaling.present = config->rope_scaling.factor > 0 &&
                                   config->rope_scaling.original_max_position_embeddings > 0;

    symbols s = {.count = 0};
    learn_inputs(c, &s);
    for (size_t i = 0; i < COUNT(size_fields); i++) {
        int64_t size = known(&s, size_fields[i].symbol);
        if (size != UNKNOWN)
            *(int64_t *)((char *)config + size_fields[i].offset) = size;
    }
    if (dsv4_case_param(c, "index", 0) != 0) /* a compressor of the indexer: its d is d_i */
        config->index_head_dim = config->head_dim;

    /* Of the only layer, and of an MTP layer behind it. */
    config->compress_ratios = dsv4_alloc(2, sizeof *config->compress_ratios);
    config->compress_ratios[0] = config->compress_ratios[1] = whole_param(c, "ratio", 0);
}

/* ---- weights ---- */

static const dsv4_dtype dtypes[DSV4_FORMATS] = {
    [DSV4_FORMAT_F64] = DSV4_OTHER,     [DSV4_FORMAT_F32] = DSV4_F32,
    [DSV4_FORMAT_BF16] = DSV4_F32,      [DSV4_FORMAT_E4M3] = DSV4_F8_E4M3,
    [DSV4_FORMAT_E2M1] = DSV4_I8,       [DSV4_FORMAT_E8M0] = DSV4_F8_E8M0,
    [DSV4_FORMAT_I64] = DSV4_I64,
};

/* Array NAME + end, or NULL. */
static const dsv4_array *find_part(const dsv4_case *c, const char *name, const char *end)
{
    char whole[DSV4_NAME];
    int length = snprintf(whole, sizeof whole, "%s%s", name, end);
    return length < DSV4_NAME ? dsv4_case_in(c, whole) : NULL;
}

dsv4_matrix dsv4_case_matrix(const dsv4_case *c, const char *name)
{
    const dsv4_array *weight = find_part(c, name, ".weight");
    const dsv4_array *scale = weight != NULL ? find_part(c, name, ".scale") : NULL;
    if (weight == NULL)
        weight = dsv4_case_in(c, name);
    if (weight == NULL || weight->rank == 0)
        return (dsv4_matrix){0};
    int64_t cols = weight->shape[weight->rank - 1], rows = 1;
    for (int i = 0; i < weight->rank - 1; i++)
        rows = multiply(rows, weight->shape[i]);
    return (dsv4_matrix){
        .name = weight->name,
        .file = c->name,
        .dtype = dtypes[weight->format],
        .rows = rows,
        .cols = weight->format == DSV4_FORMAT_E2M1 ? 2 * cols : cols,
        .data = weight->data,
        .scale = scale != NULL ? scale->data : NULL,
    };
}

#define IN_LAYER(field) {#field, offsetof(dsv4_layer, field)}

/* Fields are called as the checkpoint calls them, but for mHC, whose names have "_" for the last
 * ".". */
static const struct { const char *name; size_t offset; } layer_fields[] = {
    IN_LAYER(attn.attn_sink), IN_LAYER(attn.wq_a), IN_LAYER(attn.q_norm), IN_LAYER(attn.wq_b),
    IN_LAYER(attn.wkv), IN_LAYER(attn.kv_norm), IN_LAYER(attn.wo_a), IN_LAYER(attn.wo_b),
    IN_LAYER(attn.compressor.ape), IN_LAYER(attn.compressor.norm), IN_LAYER(attn.compressor.wkv),
    IN_LAYER(attn.compressor.wgate),
    IN_LAYER(attn.indexer.wq_b), IN_LAYER(attn.indexer.weights_proj),
    IN_LAYER(attn.indexer.compressor.ape), IN_LAYER(attn.indexer.compressor.norm),
    IN_LAYER(attn.indexer.compressor.wkv), IN_LAYER(attn.indexer.compressor.wgate),
    IN_LAYER(attn_norm), IN_LAYER(ffn_norm),
    IN_LAYER(ffn.gate.weight), IN_LAYER(ffn.gate.bias), IN_LAYER(ffn.gate.tid2eid),
    IN_LAYER(ffn.shared_experts.w1), IN_LAYER(ffn.shared_experts.w2),
    IN_LAYER(ffn.shared_experts.w3),
    {"hc_attn_fn", offsetof(dsv4_layer, hc_attn.fn)},
    {"hc_attn_base", offsetof(dsv4_layer, hc_attn.base)},
    {"hc_attn_scale", offsetof(dsv4_layer, hc_attn.scale)},
    {"hc_ffn_fn", offsetof(dsv4_layer, hc_ffn.fn)},
    {"hc_ffn_base", offsetof(dsv4_layer, hc_ffn.base)},
    {"hc_ffn_scale", offsetof(dsv4_layer, hc_ffn.scale)},
    IN_LAYER(e_proj), IN_LAYER(h_proj), IN_LAYER(enorm), IN_LAYER(hnorm), IN_LAYER(norm),
    {"hc_head_fn", offsetof(dsv4_layer, hc_head.fn)},
    {"hc_head_base", offsetof(dsv4_layer, hc_head.base)},
    {"hc_head_scale", offsetof(dsv4_layer, hc_head.scale)},
};

static dsv4_matrix expert_matrix(const dsv4_case *c, int64_t expert, const char *name)
{
    char whole[DSV4_NAME];
    snprintf(whole, sizeof whole, "ffn.experts.%" PRId64 ".%s", expert, name);
    return dsv4_case_matrix(c, whole);
}

void dsv4_case_layer(const dsv4_case *c, const dsv4_config *config, dsv4_layer *layer)
{
    memset(layer, 0, sizeof *layer);
    layer->ratio = config->compress_ratios[0];
    layer->kind = dsv4_config_kind(config, 0);
    layer->hash = dsv4_case_param(c, "hash", 0) != 0;
    for (size_t i = 0; i < COUNT(layer_fields); i++)
        *(dsv4_matrix *)((char *)layer + layer_fields[i].offset) =
            dsv4_case_matrix(c, layer_fields[i].name);
    layer->ffn.experts = dsv4_alloc((size_t)config->n_routed_experts, sizeof *layer->ffn.experts);
    for (int64_t i = 0; i < config->n_routed_experts; i++)
        layer->ffn.experts[i] = (dsv4_expert){expert_matrix(c, i, "w1"), expert_matrix(c, i, "w2"),
                                              expert_matrix(c, i, "w3")};
}

void dsv4_case_layer_free(dsv4_layer *layer)
{
    free(layer->ffn.experts);
    memset(layer, 0, sizeof *layer);
}

/* ---- schedule ---- */

/* calls [C]: positive, and together the rows. */
static int number_calls(const dsv4_case *c, const dsv4_array *calls, dsv4_schedule *schedule,
                        dsv4_error *err)
{
    const int64_t *rows = calls->data;
    int64_t row = 0;
    for (int64_t i = 0; i < calls->count; i++) {
        if (rows[i] < 1)
            return fail_at(c, "in", "calls", err, "expected at least 1 row in each call, got "
                           "%" PRId64 " in call %" PRId64, rows[i], i);
        if (rows[i] > schedule->rows - row)
            return fail_at(c, "in", "calls", err, "expected %" PRId64 " rows in all, as many as "
                           "sequence has, got more", schedule->rows);
        for (int64_t end = row + rows[i]; row < end; row++)
            schedule->call[row] = i;
    }
    if (row != schedule->rows)
        return fail_at(c, "in", "calls", err, "expected %" PRId64 " rows in all, as many as "
                       "sequence has, got %" PRId64, schedule->rows, row);
    schedule->calls = calls->count;
    return 0;
}

/* Numbers without gaps; how many rows each has. */
static int count_sequences(const dsv4_case *c, dsv4_schedule *schedule, dsv4_error *err)
{
    for (int64_t i = 0; i < schedule->rows; i++) {
        int64_t s = schedule->sequence[i];
        if (s < -1 || s >= schedule->rows)
            return fail_at(c, "in", "sequence", err, "expected -1 or the number of a sequence, "
                           "below %" PRId64 ", got %" PRId64 " in row %" PRId64, schedule->rows, s,
                           i);
        if (s >= schedule->sequences)
            schedule->sequences = s + 1;
        if (s >= 0)
            schedule->length[s]++;
    }
    for (int64_t s = 0; s < schedule->sequences; s++)
        if (schedule->length[s] == 0)
            return fail_at(c, "in", "sequence", err, "expected rows of all sequences 0 to %" PRId64
                           ", got none of %" PRId64, schedule->sequences - 1, s);
    return 0;
}

/* Positions count a sequence's rows. Within a call they stand together: no engine takes them
 * otherwise. `last` [sequences]: the row before of each, at first -1. */
static int number_rows(const dsv4_case *c, dsv4_schedule *schedule, int64_t *last, dsv4_error *err)
{
    for (int64_t i = 0; i < schedule->sequences; i++)
        last[i] = -1;
    for (int64_t i = 0; i < schedule->rows; i++) {
        int64_t s = schedule->sequence[i];
        schedule->position[i] = schedule->start[i] = -1;
        if (s < 0)
            continue;
        int64_t before = last[s];
        bool same_call = before >= 0 && schedule->call[before] == schedule->call[i];
        if (same_call && before != i - 1)
            return fail_at(c, "in", "sequence", err, "expected the rows of a sequence together "
                           "within a call, got row %" PRId64 " of sequence %" PRId64 " apart from "
                           "row %" PRId64, i, s, before);
        schedule->position[i] = before >= 0 ? schedule->position[before] + 1 : 0;
        schedule->start[i] = same_call ? schedule->start[before] : schedule->position[i];
        last[s] = i;
    }
    return 0;
}

/* Param `batch`: every call is a rectangle of so many sequences, each padded in front. */
static int check_batch(const dsv4_case *c, const dsv4_array *calls, const dsv4_schedule *schedule,
                       dsv4_error *err)
{
    int64_t batch = whole_param(c, "batch", 0), first = 0;
    for (int64_t call = 0; batch > 0 && call < calls->count; call++) {
        int64_t rows = ((const int64_t *)calls->data)[call], width = rows / batch;
        if (rows % batch != 0)
            return fail_at(c, "in", "calls", err, "expected a multiple of batch = %" PRId64 ", got "
                           "%" PRId64 " in call %" PRId64, batch, rows, call);
        for (int64_t i = first; i < first + rows; i++) {
            const int64_t *s = &schedule->sequence[i];
            bool row_begins = (i - first) % width == 0;
            if (row_begins ? i > first && s[0] >= 0 && s[0] == s[-1] : s[-1] >= 0 && s[0] != s[-1])
                return fail_at(c, "in", "sequence", err, "expected one sequence in each of the "
                               "batch's rows, padded in front, got %" PRId64 " in row %" PRId64,
                               s[0], i);
        }
        first += rows;
    }
    return 0;
}

int dsv4_case_schedule(const dsv4_case *c, dsv4_schedule *schedule, dsv4_error *err)
{
    memset(schedule, 0, sizeof *schedule);
    const dsv4_array *sequence = dsv4_case_in(c, "sequence"), *calls = dsv4_case_in(c, "calls");
    if (sequence == NULL || sequence->format != DSV4_FORMAT_I64 || sequence->rank != 1 ||
        calls == NULL || calls->format != DSV4_FORMAT_I64 || calls->rank != 1)
        return fail_at(c, "in", "", err, "expected sequence [N] and calls [C] of format i64");
    size_t rows = (size_t)sequence->count;
    schedule->rows = sequence->count;
    schedule->sequence = dsv4_case_indices(c, "sequence");
    schedule->position = dsv4_alloc(rows, sizeof *schedule->position);
    schedule->call = dsv4_alloc(rows, sizeof *schedule->call);
    schedule->start = dsv4_alloc(rows, sizeof *schedule->start);
    schedule->length = dsv4_alloc(rows, sizeof *schedule->length);
    int64_t *last = dsv4_alloc(rows, sizeof *last);
    int status = number_calls(c, calls, schedule, err);
    if (status == 0)
        status = count_sequences(c, schedule, err);
    if (status == 0)
        status = number_rows(c, schedule, last, err);
    free(last);
    if (status == 0)
        status = check_batch(c, calls, schedule, err);
    if (status != 0)
        dsv4_schedule_free(schedule);
    return status;
}

void dsv4_schedule_free(dsv4_schedule *schedule)
{
    free(schedule->sequence);
    free(schedule->position);
    free(schedule->call);
    free(schedule->length);
    free(schedule->start);
    memset(schedule, 0, sizeof *schedule);
}

/* ---- recipes ---- */

static uint64_t splitmix64(uint64_t seed, uint64_t counter)
{
    uint64_t x = seed + (counter + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

void dsv4_recipe_fill(dsv4_array *array)
{
    uint64_t word = 0;
    for (int64_t i = 0; i < array->count; i++) {
        if (i % 8 == 0)
            word = splitmix64(array->recipe_seed, (uint64_t)i / 8);
        uint8_t byte = (uint8_t)(word >> 8 * (i % 8));
        switch (array->format) {
        case DSV4_FORMAT_E4M3: /* below 2: neither NaN nor a few large weights that rule a sum */
            ((uint8_t *)array->data)[i] = byte & 0xbf;
            break;
        case DSV4_FORMAT_E2M1:
            ((uint8_t *)array->data)[i] = byte;
            break;
        case DSV4_FORMAT_E8M0: /* 2^-9 to 2^-6 */
            ((uint8_t *)array->data)[i] = (uint8_t)(118 + byte % 4);
            break;
        case DSV4_FORMAT_F32:
        case DSV4_FORMAT_BF16:
            ((float *)array->data)[i] = (float)(int8_t)byte / 128;
            break;
        default:
            require(false, "this format has no recipe", array->name);
        }
    }
}

/* ---- checks ---- */

static bool has_word(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = words; (at = strstr(at, word)) != NULL; at += length)
        if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    return false;
}

static const dsv4_slot *slot_of(const dsv4_operator *op, const char *name)
{
    for (const dsv4_slot *slot = op->in; slot->name != NULL; slot++)
        if (strcmp(slot->name, name) == 0)
            return slot;
    return NULL;
}

static bool has_slot(const dsv4_operator *op, const char *name)
{
    return slot_of(op, name) != NULL;
}

static int check_text(const dsv4_case *c, const char *what, const char *text, const char *allowed,
                      dsv4_error *err)
{
    size_t good = strspn(text, allowed);
    if (text[good] != '\0')
        return fail_at(c, "", "", err, "%s: expected only the characters %s, got byte 0x%02x", what,
                       allowed, (unsigned char)text[good]);
    return 0;
}

#define LOWER "abcdefghijklmnopqrstuvwxyz0123456789"

static int check_texts(const dsv4_case *c, dsv4_error *err)
{
    if (c->name[0] == '\0' || strspn(c->name, LOWER "-_") != strlen(c->name))
        return dsv4_fail(err, "%s: '%s': expected a case's name of a-z, 0-9, - and _", c->op->name,
                         c->name);
    if (check_text(c, "flags", c->flags, LOWER "-_ ", err) != 0 ||
        check_text(c, "checkpoint", c->checkpoint, LOWER "-_./", err) != 0)
        return -1;
    for (const char *at = c->reason; *at != '\0'; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            return fail_at(c, "", "", err, "reason: expected one line of text, got byte 0x%02x",
                           (unsigned char)*at);
    if (c->checkpoint[0] == '/' || strstr(c->checkpoint, "..") != NULL)
        return fail_at(c, "", "", err, "checkpoint: expected a directory beside the vector files, "
                       "got %s", c->checkpoint);
    bool whole_model = strcmp(c->op->chapter, "forward") == 0; /* its weights are no inputs */
    if (whole_model != (c->checkpoint[0] != '\0'))
        return fail_at(c, "", "", err, "checkpoint: expected %s", whole_model ? "one" : "none");
    return 0;
}

static const struct { const char *name; bool whole; double least, most; } param_ranges[] = {
    {"sliding_window", true, 1, 16777216},
    {"num_attention_heads", true, 1, 16777216},
    {"o_groups", true, 1, 16777216},
    {"ratio", true, 0, 16777216},
    {"qk_rope_head_dim", true, 2, 16777216},
    {"compressed", true, 0, 1},
    {"factor", false, 0, 1e9},
    {"original_max_position_embeddings", true, 0, 1e9},
    {"beta_fast", false, 1e-9, 1e9},
    {"beta_slow", false, 1e-9, 1e9},
    {"rope_theta", false, 1, 1e15},
    {"compress_rope_theta", false, 1, 1e15},
    {"rms_norm_eps", false, 0, 1},
    {"hc_eps", false, 0, 1},
    {"hc_mult", true, 1, 1024},
    {"hc_sinkhorn_iters", true, 1, 1000},
    {"num_experts_per_tok", true, 1, 16777216},
    {"norm_topk_prob", true, 0, 1},
    {"hash", true, 0, 1},
    {"swiglu_limit", false, 0, 1e9},
    {"index_n_heads", true, 0, 16777216},
    {"index_head_dim", true, 1, 16777216},
    {"index_topk", true, 0, 16777216},
    {"index", true, 0, 1},
    {"batch", true, 0, 16777216},
    {"block", true, 1, 16777216},
};

static int check_param(const dsv4_case *c, const dsv4_param *param, dsv4_error *err)
{
    double value = param->value;
    if (!has_word(c->op->params, param->name))
        return fail_at(c, "", "", err, "parameter %s: expected %s%s, got another", param->name,
                       c->op->params[0] != '\0' ? "only " : "no parameters", c->op->params);
    if (!isfinite(value))
        return fail_at(c, "", "", err, "parameter %s: expected a finite number, got %g",
                       param->name, value);
    for (size_t i = 0; i < COUNT(param_ranges); i++) {
        if (strcmp(param_ranges[i].name, param->name) != 0)
            continue;
        bool whole = param_ranges[i].whole;
        if (value < param_ranges[i].least || value > param_ranges[i].most ||
            (whole && value != floor(value)))
            return fail_at(c, "", "", err, "parameter %s: expected %s from %.12g to %.12g, got "
                           "%.17g", param->name, whole ? "an integer" : "a number",
                           param_ranges[i].least, param_ranges[i].most, value);
    }
    return 0;
}

/* A layer is of the operator's kind, if that has only one; a compressor of its own always has a
 * ratio. */
static int check_ratio(const dsv4_case *c, dsv4_error *err)
{
    int64_t ratio = whole_param(c, "ratio", 0);
    const dsv4_slot *compressor = slot_of(c->op, "attn.compressor.ape");
    const dsv4_slot *indexer = slot_of(c->op, "attn.indexer.wq_b");
    const char *expected = NULL;
    if (slot_of(c->op, "attn.attn_sink") == NULL)
        expected = ratio == 0 ? "at least 1" : NULL;
    else if (compressor == NULL)
        expected = ratio != 0 ? "0, of an SWA layer" : NULL;
    else if (indexer == NULL)
        expected = ratio == 0 || ratio == 4 ? "that of an HCA layer" : NULL;
    else if (!indexer->optional)
        expected = ratio != 4 ? "4, of a CSA layer" : NULL;
    if (expected == NULL)
        return 0;
    return fail_at(c, "", "", err, "parameter ratio: expected %s, got %" PRId64, expected, ratio);
}

static int check_params(const dsv4_case *c, dsv4_error *err)
{
    for (int i = 0; i < c->params; i++)
        if (check_param(c, &c->param[i], err) != 0)
            return -1;
    char name[DSV4_NAME];
    for (const char *at = c->op->params; (at = next_dim(at, name)) != NULL;)
        if (find_param(c, name) == NULL && strcmp(name, "batch") != 0)
            return fail_at(c, "", "", err, "parameter %s: expected a number, got none", name);
    int64_t R = whole_param(c, "qk_rope_head_dim", 2);
    if (R % 2 != 0)
        return fail_at(c, "", "", err, "parameter qk_rope_head_dim: expected an even number, got "
                       "%" PRId64, R);
    return has_word(c->op->params, "ratio") ? check_ratio(c, err) : 0;
}

static const char *expected_formats(const dsv4_slot *slot, bool output, const char *part)
{
    if (slot->kind == DSV4_SLOT_INDICES)
        return "i64";
    if (slot->kind == DSV4_SLOT_CODES) /* which of them, the operator's name tells */
        return "e4m3 e2m1 e8m0";
    if (part != NULL)
        return strcmp(part, "scale") == 0 ? "e8m0" : "bf16 f32 e4m3 e2m1";
    return output ? "f64 f32" : "bf16 f32";
}

/* The format that a decoder's name tells: "quant_e4m3_decode". */
static bool is_told_format(const dsv4_case *c, const dsv4_slot *slot, const dsv4_array *array)
{
    return slot->kind != DSV4_SLOT_CODES ||
           strstr(c->op->name, dsv4_format_name(array->format)) != NULL;
}

static int count_dims(const char *dims)
{
    char expression[DSV4_NAME];
    int count = 0;
    while ((dims = next_dim(dims, expression)) != NULL)
        count++;
    return count;
}

/* Each array belongs to a slot, which allows its format and its rank. */
static int check_array(const dsv4_case *c, const dsv4_slot *slots, const char *group,
                       const dsv4_array *array, dsv4_error *err)
{
    const char *part;
    int64_t number;
    const dsv4_slot *slot = find_slot(slots, array->name, &part, &number);
    if (slot == NULL)
        return fail_at(c, group, array->name, err, "expected a slot of the operator, got another "
                       "name");
    const char *formats = expected_formats(slot, slots == c->op->out, part);
    if (!has_word(formats, dsv4_format_name(array->format)) || !is_told_format(c, slot, array))
        return fail_at(c, group, array->name, err, "expected format %s, got %s",
                       slot->kind == DSV4_SLOT_CODES ? "as the operator's name says" : formats,
                       dsv4_format_name(array->format));
    int rank = count_dims(slot->dims);
    if (array->rank != rank)
        return fail_at(c, group, array->name, err, "expected %d dimensions [%s], got %d", rank,
                       slot->dims, array->rank);
    for (int i = 0; i < array->rank; i++)
        if (array->shape[i] < 0 || array->shape[i] > MAX_DIM)
            return fail_at(c, group, array->name, err, "expected dimensions from 0 to 2^40, got "
                           "%" PRId64, array->shape[i]);
    if (count_of(array->rank, array->shape) != array->count ||
        (array->count > 0 && array->data == NULL))
        return fail_at(c, group, array->name, err, "expected as many values as the shape says");
    return 0;
}

/* Whether a layer of this case has the slot. Some are of CSA and HCA layers, of CSA layers, of
 * score layers, or of hash layers only: checkpoint.table.6. */
typedef enum { MUST, MAY, MUST_NOT } presence;

static presence expected_presence(const dsv4_case *c, const dsv4_slot *slot)
{
    int64_t ratio = whole_param(c, "ratio", 0);
    bool hash = whole_param(c, "hash", 0) != 0;
    if (strncmp(slot->name, "attn.compressor.", strlen("attn.compressor.")) == 0)
        return ratio != 0 ? MUST : MUST_NOT;
    if (strncmp(slot->name, "attn.indexer.", strlen("attn.indexer.")) == 0)
        return ratio == 4 ? MUST : MUST_NOT;
    if (strcmp(slot->name, "ffn.gate.bias") == 0)
        return hash ? MUST_NOT : MUST;
    if (strcmp(slot->name, "ffn.gate.tid2eid") == 0)
        return hash ? MUST : MUST_NOT;
    return slot->optional ? MAY : MUST;
}

/* One array, or a matrix: its weight, and the scale that goes with the weight's format. */
static int check_item(const dsv4_case *c, const dsv4_slot *slot, const char *group,
                      const dsv4_array *arrays, int count, const char *name, presence expected,
                      dsv4_error *err)
{
    char whole[DSV4_NAME + 8], scale_name[DSV4_NAME + 8];
    bool matrix = slot->kind == DSV4_SLOT_MATRIX;
    snprintf(whole, sizeof whole, "%s%s", name, matrix ? ".weight" : "");
    const dsv4_array *array = find_array(arrays, count, whole);
    if (array == NULL && expected == MUST)
        return fail_at(c, group, whole, err, "expected [%s], got none", slot->dims);
    if (array != NULL && expected == MUST_NOT)
        return fail_at(c, group, whole, err, "expected none in a layer of this kind (ratio, hash), "
                       "got one");
    if (!matrix)
        return 0;
    snprintf(scale_name, sizeof scale_name, "%s.scale", name);
    const dsv4_array *scale = find_array(arrays, count, scale_name);
    bool quantised = array != NULL && (array->format == DSV4_FORMAT_E4M3 ||
                                       array->format == DSV4_FORMAT_E2M1);
    if (quantised && scale == NULL)
        return fail_at(c, group, scale_name, err, "expected the scale of an %s weight, got none",
                       dsv4_format_name(array->format));
    if (!quantised && scale != NULL)
        return fail_at(c, group, scale_name, err, "expected none beside a plain weight, got one");
    return 0;
}

static int check_present(const dsv4_case *c, const dsv4_slot *slots, const char *group,
                         const dsv4_array *arrays, int count, symbols *s, dsv4_error *err)
{
    for (const dsv4_slot *slot = slots; slot->name != NULL; slot++) {
        presence expected = expected_presence(c, slot);
        const char *star = strchr(slot->name, '*');
        if (star == NULL) {
            if (check_item(c, slot, group, arrays, count, slot->name, expected, err) != 0)
                return -1;
            continue;
        }
        int64_t experts = known(s, "E");
        for (int64_t i = 0; i < experts; i++) {
            char name[DSV4_NAME];
            snprintf(name, sizeof name, "%.*s%" PRId64 "%s", (int)(star - slot->name), slot->name,
                     i, star + 1);
            if (check_item(c, slot, group, arrays, count, name, expected, err) != 0)
                return -1;
        }
    }
    for (int i = 0; i < count; i++) {
        const char *part;
        int64_t number;
        if (find_slot(slots, arrays[i].name, &part, &number) != NULL && number >= 0 &&
            number >= known(s, "E"))
            return fail_at(c, group, arrays[i].name, err, "expected only experts below %" PRId64,
                           known(s, "E"));
    }
    return 0;
}

/* "[Q, D] = [64, 32]"; a number not known is "?". */
static void describe(const int64_t *dims, int rank, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < rank && used < size; i++)
        used += (size_t)(dims[i] == UNKNOWN
                         ? snprintf(text + used, size - used, "%s?", i > 0 ? ", " : "")
                         : snprintf(text + used, size - used, "%s%" PRId64, i > 0 ? ", " : "",
                                    dims[i]));
    if (used < size)
        snprintf(text + used, size - used, "]");
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

/* The stored shape of a part of a matrix of known dims [O, K]. */
static void stored_shape(const dsv4_array *array, const dsv4_array *weight, const char *part,
                         int64_t shape[2])
{
    bool fp4 = weight->format == DSV4_FORMAT_E2M1;
    if (strcmp(part, "weight") == 0) {
        if (array->format == DSV4_FORMAT_E2M1)
            shape[1] = shape[1] % 32 == 0 ? shape[1] / 2 : UNKNOWN;
        return;
    }
    shape[0] = fp4 ? shape[0] : ceil_div(shape[0], 128);
    shape[1] = fp4 ? shape[1] / 32 : ceil_div(shape[1], 128);
}

static int check_shape(const dsv4_case *c, const dsv4_slot *slots, const char *group,
                       const dsv4_array *arrays, int count, const dsv4_array *array, symbols *s,
                       dsv4_error *err)
{
    const char *part, *dims;
    int64_t number, shape[DSV4_ARRAY_RANK];
    const dsv4_slot *slot = find_slot(slots, array->name, &part, &number);
    char expression[DSV4_NAME], expected[128], got[128];
    bool fits = true, all_known = true;
    dims = slot->dims;
    for (int i = 0; i < array->rank && (dims = next_dim(dims, expression)) != NULL; i++) {
        shape[i] = evaluate(s, expression);
        all_known = all_known && shape[i] != UNKNOWN;
    }
    if (part != NULL && all_known) {
        char name[DSV4_NAME];
        snprintf(name, sizeof name, "%.*s.weight", (int)(part - 1 - array->name), array->name);
        stored_shape(array, find_array(arrays, count, name), part, shape);
    }
    for (int i = 0; i < array->rank; i++)
        fits = fits && shape[i] == array->shape[i];
    if (fits)
        return 0;
    bool packed = array->format == DSV4_FORMAT_E2M1 && part != NULL;
    describe(shape, array->rank, expected, sizeof expected);
    describe(array->shape, array->rank, got, sizeof got);
    return fail_at(c, group, array->name, err, "expected shape %s [%s]%s, got %s", expected,
                   slot->dims, packed ? " of two codes in a byte, in blocks of 32 codes" : "", got);
}

static const struct { const char *name; int64_t least; const char *below; } index_ranges[] = {
    {"sequence", -1, NULL}, {"calls", 1, NULL}, /* dsv4_case_schedule() */
    {"token_ids", 0, "V"},  {"next_ids", 0, "V"},
    {"positions", 0, NULL}, {"group", 0, NULL},
    {"list", -1, "M"},      {"selected", -1, "G"},
    {"tid2eid", 0, "E"},    {"ffn.gate.tid2eid", 0, "E"},
    {"route_index", 0, "E"},
};

static int check_indices(const dsv4_case *c, const char *group, const dsv4_array *array, symbols *s,
                         dsv4_error *err)
{
    int64_t least = INT64_MIN, below = (int64_t)1 << 31;
    for (size_t i = 0; i < COUNT(index_ranges); i++) {
        if (strcmp(index_ranges[i].name, array->name) != 0)
            continue;
        least = index_ranges[i].least;
        if (index_ranges[i].below != NULL && known(s, index_ranges[i].below) != UNKNOWN)
            below = known(s, index_ranges[i].below);
    }
    const int64_t *index = array->data;
    for (int64_t i = 0; i < array->count; i++)
        if (index[i] < least || index[i] >= below)
            return fail_at(c, group, array->name, err, "expected %" PRId64 " to %" PRId64 ", got "
                           "%" PRId64 " at %" PRId64, least, below - 1, index[i], i);
    return 0;
}

static bool is_nan_code(dsv4_format format, uint8_t code)
{
    return format == DSV4_FORMAT_E4M3 ? (code & 0x7f) == 0x7f
                                      : format == DSV4_FORMAT_E8M0 && code == 0xff;
}

static bool is_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0xffff) == 0;
}

/* Inputs are numbers; outputs may be NaN, which leaves the element free. */
static int check_content(const dsv4_case *c, const char *group, const dsv4_array *array, symbols *s,
                         dsv4_error *err)
{
    if (array->format == DSV4_FORMAT_I64)
        return check_indices(c, group, array, s, err);
    for (int64_t i = 0; i < array->count; i++) {
        if (dsv4_format_size(array->format) == 1) {
            uint8_t code = ((const uint8_t *)array->data)[i];
            if (is_nan_code(array->format, code))
                return fail_at(c, group, array->name, err, "expected no NaN code, got 0x%02x at "
                               "%" PRId64, code, i);
            continue;
        }
        double value = dsv4_array_value(array, i);
        if (group[0] == 'o' ? isinf(value) : !isfinite(value)) /* out/, in/ */
            return fail_at(c, group, array->name, err, "expected a finite number, got %g at "
                           "%" PRId64, value, i);
        if (array->format == DSV4_FORMAT_BF16 && !is_bf16(((const float *)array->data)[i]))
            return fail_at(c, group, array->name, err, "expected bf16 numbers, got %.9g at "
                           "%" PRId64, value, i);
    }
    return 0;
}

static int check_recipe(const dsv4_case *c, const char *group, const dsv4_array *array,
                        dsv4_error *err)
{
    if (array->recipe[0] == '\0')
        return 0;
    if (strcmp(array->recipe, "splitmix64") != 0)
        return fail_at(c, group, array->name, err, "expected recipe splitmix64, got %s",
                       array->recipe);
    if (array->format == DSV4_FORMAT_F64 || array->format == DSV4_FORMAT_I64)
        return fail_at(c, group, array->name, err, "expected no recipe for format %s, got %s",
                       dsv4_format_name(array->format), array->recipe);
    return 0;
}

static int check_arrays(const dsv4_case *c, const dsv4_slot *slots, const char *group,
                        const dsv4_array *arrays, int count, symbols *s, dsv4_error *err)
{
    for (int i = 0; i < count; i++)
        if (check_array(c, slots, group, &arrays[i], err) != 0)
            return -1;
    while (learn_arrays(slots, arrays, count, s))
        ;
    if (check_present(c, slots, group, arrays, count, s, err) != 0)
        return -1;
    for (int i = 0; i < count; i++)
        if (check_shape(c, slots, group, arrays, count, &arrays[i], s, err) != 0)
            return -1;
    return 0;
}

static int check_contents(const dsv4_case *c, const char *group, const dsv4_array *arrays,
                          int count, symbols *s, dsv4_error *err)
{
    for (int i = 0; i < count; i++)
        if (check_recipe(c, group, &arrays[i], err) != 0 ||
            check_content(c, group, &arrays[i], s, err) != 0)
            return -1;
    return 0;
}

static int expect_multiple(const dsv4_case *c, const char *what, int64_t got, int64_t of,
                           dsv4_error *err)
{
    if (got % of == 0)
        return 0;
    return fail_at(c, "", "", err, "%s: expected a multiple of %" PRId64 ", got %" PRId64, what, of,
                   got);
}

/* What the rules of the chapters demand of sizes: config.shape, checkpoint.released. */
static int check_sizes(const dsv4_case *c, symbols *s, dsv4_error *err)
{
    bool index = whole_param(c, "index", 0) != 0;
    int64_t d = known(s, "d"), d_i = index ? d : known(s, "d_i"), R = known(s, "R");
    int64_t H = known(s, "H"), g = known(s, "g"), k = known(s, "k"), E = known(s, "E");
    for (int i = 0; i < s->count; i++)
        if (s->item[i].value == 0 && !has_word("G M L k_i n_i R", s->item[i].name))
            return fail_at(c, "", "", err, "expected no dimension 0, got %s = 0", s->item[i].name);
    if (R > 0 && ((d > 0 && R > d) || (d_i > 0 && R > d_i)))
        return fail_at(c, "", "", err, "parameter qk_rope_head_dim: expected at most %" PRId64 ", "
                       "the width, got %" PRId64, d > 0 && R > d ? d : d_i, R);
    if (H > 0 && g > 0 && expect_multiple(c, "number of heads", H, g, err) != 0)
        return -1;
    if (k > 0 && E > 0 && k > E)
        return fail_at(c, "", "", err, "parameter num_experts_per_tok: expected at most %" PRId64
                       " experts, got %" PRId64, E, k);
    if (find_param(c, "block") != NULL &&
        expect_multiple(c, "width", known(s, "K"), whole_param(c, "block", 1), err) != 0)
        return -1;
    bool transforms = index || strcmp(c->op->chapter, "hadamard") == 0 ||
                      has_slot(c->op, "wq_b") ||
                      dsv4_case_in(c, "attn.indexer.wq_b.weight") != NULL;
    if (transforms && d_i > 0 && (d_i & (d_i - 1)) != 0)
        return fail_at(c, "", "", err, "expected an index head of a power of two, got %" PRId64,
                       d_i);
    if (c->numerics != DSV4_RELEASED)
        return 0;
    bool quant = strcmp(c->op->chapter, "quant") == 0;
    bool entries = has_slot(c->op, "attn.kv_norm.weight") || has_word(c->op->params, "index");
    if ((quant || entries) && !index && R > 0 && d > 0 &&
        expect_multiple(c, "head - qk_rope_head_dim in released numerics", d - R, 64, err) != 0)
        return -1;
    if ((quant || (transforms && strcmp(c->op->chapter, "hadamard") != 0)) && d_i > 0 &&
        expect_multiple(c, "index head in released numerics", d_i, 32, err) != 0)
        return -1;
    return 0;
}

/* checkpoint.released.1, but for the grouped product, whose input is not quantised. */
static int check_quantised_widths(const dsv4_case *c, dsv4_error *err)
{
    for (int i = 0; i < c->ins && c->numerics == DSV4_RELEASED; i++) {
        const dsv4_array *array = &c->in[i];
        const char *part;
        int64_t number;
        const dsv4_slot *slot = find_slot(c->op->in, array->name, &part, &number);
        if (part == NULL || strcmp(part, "scale") == 0 || dsv4_format_size(array->format) != 1 ||
            strncmp(slot->dims, "g*o ", strlen("g*o ")) == 0)
            continue;
        int64_t cols = value_dim(slot, array, array->rank - 1);
        if (cols % 128 != 0)
            return fail_at(c, "in", array->name, err, "expected a multiple of 128 columns in "
                           "released numerics, got %" PRId64, cols);
    }
    return 0;
}

/* Sizes of outputs that follow from more than the shapes of the inputs. */
static int learn_outputs(const dsv4_case *c, symbols *s, dsv4_error *err)
{
    int64_t G = known(s, "G"), k = whole_param(c, "index_topk", 0);
    if (find_param(c, "index_topk") != NULL && G != UNKNOWN)
        learn(s, "k_i", k < G ? k : G);
    if (!has_slot(c->op, "sequence"))
        return 0;
    dsv4_schedule schedule;
    if (dsv4_case_schedule(c, &schedule, err) != 0)
        return -1;
    int64_t ratio = whole_param(c, "ratio", 0), groups = 0;
    for (int64_t i = 0; i < schedule.sequences && ratio > 0; i++)
        groups += schedule.length[i] / ratio;
    learn(s, "G", groups); /* the entries of a compressor */
    dsv4_schedule_free(&schedule);
    return 0;
}

static int check_tolerances(const dsv4_case *c, dsv4_error *err)
{
    for (int i = 0; c->tolerance != NULL && i < c->outs; i++)
        for (int tier = 0; tier < DSV4_TIERS; tier++) {
            const dsv4_tolerance *t = &c->tolerance[i][tier];
            if (!(t->row >= 0 && t->element >= 0 && t->rms >= 0) ||
                isinf(t->row + t->element + t->rms))
                return fail_at(c, "out", c->out[i].name, err, "tolerance: expected numbers of at "
                               "least 0, got %g, %g, %g", t->row, t->element, t->rms);
        }
    return 0;
}

static int check_inputs(const dsv4_case *c, symbols *s, dsv4_error *err)
{
    if (check_texts(c, err) != 0 || check_params(c, err) != 0)
        return -1;
    learn_params(c, s);
    if (check_arrays(c, c->op->in, "in", c->in, c->ins, s, err) != 0 ||
        check_sizes(c, s, err) != 0 || check_quantised_widths(c, err) != 0)
        return -1;
    return check_contents(c, "in", c->in, c->ins, s, err);
}

int dsv4_case_check_inputs(const dsv4_case *c, dsv4_error *err)
{
    symbols s = {.count = 0};
    return check_inputs(c, &s, err);
}

int dsv4_case_check(const dsv4_case *c, dsv4_error *err)
{
    symbols s = {.count = 0};
    if (check_inputs(c, &s, err) != 0 || learn_outputs(c, &s, err) != 0 ||
        check_arrays(c, c->op->out, "out", c->out, c->outs, &s, err) != 0 ||
        check_contents(c, "out", c->out, c->outs, &s, err) != 0)
        return -1;
    return check_tolerances(c, err);
}
