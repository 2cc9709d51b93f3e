#include "inspect.h"

#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "model.h"
#include "path.h"

typedef struct {
    const char *dir, *geometry; /* one of them is given */
    bool json, check_values;
    int64_t context; /* tokens whose state is wanted; 0: not asked */
} inspect_arguments;

typedef struct {
    int64_t tensors, bytes;
} tally;

enum { MAX_DTYPES = 32 }; /* more than safetensors has */

typedef struct {
    dsv4_config config;
    dsv4_checkpoint *checkpoint; /* NULL: a geometry without a checkpoint */
    bool check_values;
    int64_t context;
    tally all, mtp;
    tally component[2][DSV4_COMPONENTS]; /* [1]: those of MTP layers */
    struct {
        const char *name;
        tally tally;
    } dtype[MAX_DTYPES]; /* ends at the first without a name */
    json_t *missing, *unexpected; /* names */
    json_t *wrong; /* {tensor, file, problem} */
    json_t *nan;   /* {tensor, file, dtype, first, count} */
} inspection;

static void add(tally *sum, int64_t bytes)
{
    sum->tensors++;
    sum->bytes += bytes;
}

static void count(inspection *in, const char *dtype, dsv4_component component, bool mtp,
                  int64_t bytes)
{
    int i = 0;
    while (in->dtype[i].name != NULL && strcmp(in->dtype[i].name, dtype) != 0)
        i++;
    in->dtype[i].name = dtype;
    add(&in->dtype[i].tally, bytes);
    add(&in->all, bytes);
    add(&in->component[mtp][component], bytes);
    if (mtp)
        add(&in->mtp, bytes);
}

static int count_expected(void *context, const dsv4_expected *expected)
{
    count(context, dsv4_dtype_name(expected->dtype), expected->component, expected->mtp,
          expected->bytes);
    return 0;
}

static void count_match(void *context, const dsv4_match *match)
{
    inspection *in = context;
    const dsv4_tensor *tensor = match->tensor;
    if (tensor == NULL) {
        json_array_append_new(in->missing, json_string(match->name));
        return;
    }
    count(in, tensor->dtype_name, match->component, match->mtp, tensor->bytes);
    if (match->component == DSV4_UNEXPECTED)
        json_array_append_new(in->unexpected, json_string(match->name));
    if (match->wrong != NULL)
        json_array_append_new(in->wrong,
                              json_pack("{s:s, s:o, s:o}", "tensor", match->name, "file",
                                        dsv4_json_text(tensor->file), "problem",
                                        dsv4_json_text(match->wrong)));
}

/* checkpoint.values.1: A value is a NaN if it is 0x7F or 0xFF in F8_E4M3, 255 in F8_E8M0, and in
 * F32, BF16 or F16 if all bits of its exponent and some bit of its fraction are set. I8, I32 and
 * I64 have no NaN. */
static bool nan_test(dsv4_dtype dtype, uint32_t *mask, uint32_t *limit)
{
    static const struct {
        uint32_t mask, limit; /* a NaN: code & mask > limit */
    } tests[DSV4_DTYPES] = {
        [DSV4_F32] = {0x7fffffff, 0x7f800000}, [DSV4_BF16] = {0x7fff, 0x7f80},
        [DSV4_F16] = {0x7fff, 0x7c00},         [DSV4_F8_E4M3] = {0x7f, 0x7e},
        [DSV4_F8_E8M0] = {0xff, 0xfe},
    };
    if (dtype == DSV4_OTHER || tests[dtype].mask == 0)
        return false;
    *mask = tests[dtype].mask;
    *limit = tests[dtype].limit;
    return true;
}

enum { BLOCK = 4096 };

/* The counting loops have constant bounds and one width each, so that compilers vectorise them. */
static int64_t count_nans(const unsigned char block[BLOCK], int64_t width, uint32_t mask,
                          uint32_t limit)
{
    uint32_t n = 0;
    if (width == 1) {
        for (int i = 0; i < BLOCK; i++)
            n += (block[i] & mask) > limit;
    } else if (width == 2) {
        uint16_t code[BLOCK / 2];
        memcpy(code, block, BLOCK);
        for (int i = 0; i < BLOCK / 2; i++)
            n += (code[i] & mask) > limit;
    } else {
        uint32_t code[BLOCK / 4];
        memcpy(code, block, BLOCK);
        for (int i = 0; i < BLOCK / 4; i++)
            n += (code[i] & mask) > limit;
    }
    return n;
}

static int64_t first_nan(const unsigned char block[BLOCK], int64_t width, uint32_t mask,
                         uint32_t limit)
{
    for (int64_t i = 0;; i++) {
        uint32_t code = 0;
        memcpy(&code, block + i * width, (size_t)width);
        if ((code & mask) > limit)
            return i;
    }
}

static void scan_values(inspection *in, const dsv4_tensor *tensor)
{
    uint32_t mask, limit;
    if (!nan_test(tensor->dtype, &mask, &limit))
        return;
    int64_t width = dsv4_dtype_size(tensor->dtype), total = 0, first = 0;
    for (int64_t at = 0; at < tensor->bytes; at += BLOCK) {
        /* A last, shorter block is filled up with zeros, which are NaN in no dtype. */
        unsigned char block[BLOCK] = {0};
        int64_t length = tensor->bytes - at < BLOCK ? tensor->bytes - at : BLOCK;
        memcpy(block, (const unsigned char *)tensor->data + at, (size_t)length);
        int64_t n = count_nans(block, width, mask, limit);
        if (n > 0 && total == 0)
            first = at / width + first_nan(block, width, mask, limit);
        total += n;
    }
    if (total > 0)
        json_array_append_new(in->nan,
                              json_pack("{s:s, s:o, s:s, s:I, s:I}", "tensor", tensor->name, "file",
                                        dsv4_json_text(tensor->file), "dtype", tensor->dtype_name,
                                        "first", (json_int_t)first, "count", (json_int_t)total));
}

static void count_kinds(const dsv4_config *config, int64_t kinds[3])
{
    for (int64_t layer = 0; layer < config->num_hidden_layers; layer++)
        kinds[dsv4_config_kind(config, layer)]++;
}

static json_t *tally_json(const tally *t)
{
    return json_pack("{s:I, s:I}", "tensors", (json_int_t)t->tensors, "bytes",
                     (json_int_t)t->bytes);
}

static void component_label(char label[32], int mtp, int component)
{
    snprintf(label, 32, "%s%s", mtp ? "mtp." : "", dsv4_component_name((dsv4_component)component));
}

/* What the caches of a sequence take; -1: more than can be counted. */
static int64_t state_bytes(const inspection *in, dsv4_numerics numerics)
{
    return dsv4_path_find("fast")->state_bytes(&in->config, numerics, in->context);
}

static void print_json(const inspection *in)
{
    json_t *by_dtype = json_object(), *by_component = json_object();
    for (int i = 0; in->dtype[i].name != NULL; i++)
        json_object_set_new(by_dtype, in->dtype[i].name, tally_json(&in->dtype[i].tally));
    for (int mtp = 0; mtp < 2; mtp++)
        for (int c = 0; c < DSV4_COMPONENTS; c++)
            if (in->component[mtp][c].tensors > 0) {
                char label[32];
                component_label(label, mtp, c);
                json_object_set_new(by_component, label, tally_json(&in->component[mtp][c]));
            }
    int64_t kinds[3] = {0};
    count_kinds(&in->config, kinds);
    json_t *root = json_pack("{s:I, s:I, s:o, s:o, s:{s:I, s:I, s:I}, s:o, s:O, s:O, s:O}",
                             "tensors", (json_int_t)in->all.tensors,
                             "bytes", (json_int_t)in->all.bytes,
                             "by_dtype", by_dtype,
                             "by_component", by_component,
                             "layers", "swa", (json_int_t)kinds[DSV4_SWA],
                             "csa", (json_int_t)kinds[DSV4_CSA], "hca", (json_int_t)kinds[DSV4_HCA],
                             "mtp", tally_json(&in->mtp),
                             "missing", in->missing, "unexpected", in->unexpected,
                             "wrong", in->wrong);
    if (in->check_values)
        json_object_set(root, "nan", in->nan);
    if (in->context > 0)
        json_object_set_new(root, "state",
                            json_pack("{s:I, s:I, s:I}", "tokens", (json_int_t)in->context,
                                      "released", (json_int_t)state_bytes(in, DSV4_RELEASED),
                                      "exact", (json_int_t)state_bytes(in, DSV4_EXACT)));
    json_dumpf(root, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(root);
}

/* "0 x2, (4, 128) x20, 4": runs of one ratio, and of two that alternate. */
static void print_ratios(const int64_t *ratio, int64_t n)
{
    for (int64_t i = 0; i < n;) {
        int64_t same = 1, pairs = 1;
        while (i + same < n && ratio[i + same] == ratio[i])
            same++;
        while (i + 2 * pairs + 1 < n && ratio[i + 2 * pairs] == ratio[i] &&
               ratio[i + 2 * pairs + 1] == ratio[i + 1])
            pairs++;
        printf("%s", i > 0 ? ", " : "");
        if (same > 1) {
            printf("%" PRId64 " x%" PRId64, ratio[i], same);
            i += same;
        } else if (pairs > 1) {
            printf("(%" PRId64 ", %" PRId64 ") x%" PRId64, ratio[i], ratio[i + 1], pairs);
            i += 2 * pairs;
        } else
            printf("%" PRId64, ratio[i++]);
    }
}

static void print_layers(const dsv4_config *config)
{
    int64_t kinds[3] = {0};
    count_kinds(config, kinds);
    printf("layers           %" PRId64 ": %" PRId64 " SWA, %" PRId64 " CSA, %" PRId64
           " HCA; experts by token id in the first %" PRId64 "\n",
           config->num_hidden_layers, kinds[DSV4_SWA], kinds[DSV4_CSA], kinds[DSV4_HCA],
           config->num_hash_layers);
    printf("compress_ratios  ");
    print_ratios(config->compress_ratios, config->num_hidden_layers);
    if (config->num_nextn_predict_layers > 0) {
        printf("; mtp ");
        print_ratios(config->compress_ratios + config->num_hidden_layers,
                     config->num_nextn_predict_layers);
    }
    printf("\n");
}

static void print_tally(const char *label, const tally *t, const tally *all)
{
    double share = all->bytes > 0 ? 100.0 * (double)t->bytes / (double)all->bytes : 0;
    printf("%-22s%10" PRId64 "%20" PRId64 "%9.2f %%\n", label, t->tensors, t->bytes, share);
}

enum { SHOWN = 20 };

/* A name may hold anything; what is printed stays on its line. */
static void print_clean(const char *text)
{
    for (; *text != '\0'; text++)
        putchar((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
}

static void print_more(const json_t *list)
{
    if (json_array_size(list) > SHOWN)
        printf("  and %zu more: --json lists all\n", json_array_size(list) - SHOWN);
}

static void print_names(const char *title, const json_t *list)
{
    printf("%-17s%zu\n", title, json_array_size(list));
    for (size_t i = 0; i < json_array_size(list) && i < SHOWN; i++) {
        printf("  ");
        print_clean(json_string_value(json_array_get(list, i)));
        printf("\n");
    }
    print_more(list);
}

static const char *text_of(const json_t *entry, const char *key)
{
    return json_string_value(json_object_get(entry, key));
}

static int64_t number_of(const json_t *entry, const char *key)
{
    return json_integer_value(json_object_get(entry, key));
}

static void print_problems(const inspection *in)
{
    print_names("missing", in->missing);
    print_names("unexpected", in->unexpected);
    printf("%-17s%zu\n", "wrong", json_array_size(in->wrong));
    for (size_t i = 0; i < json_array_size(in->wrong) && i < SHOWN; i++) {
        const json_t *entry = json_array_get(in->wrong, i);
        printf("  ");
        print_clean(text_of(entry, "tensor"));
        printf(": %s (", text_of(entry, "problem"));
        print_clean(text_of(entry, "file"));
        printf(")\n");
    }
    print_more(in->wrong);
    if (!in->check_values)
        return;
    printf("%-17s%zu\n", "with NaN", json_array_size(in->nan));
    for (size_t i = 0; i < json_array_size(in->nan) && i < SHOWN; i++) {
        const json_t *entry = json_array_get(in->nan, i);
        printf("  ");
        print_clean(text_of(entry, "tensor"));
        printf(": %" PRId64 " NaN in %s, the first at index %" PRId64 " (",
               number_of(entry, "count"), text_of(entry, "dtype"), number_of(entry, "first"));
        print_clean(text_of(entry, "file"));
        printf(")\n");
    }
    print_more(in->nan);
}

static void print_text(const inspection *in)
{
    print_layers(&in->config);
    printf("%-22s%10s%20s\n", "", "tensors", "bytes");
    print_tally("all", &in->all, &in->all);
    print_tally("mtp", &in->mtp, &in->all);
    printf("\n");
    for (int i = 0; in->dtype[i].name != NULL; i++)
        print_tally(in->dtype[i].name, &in->dtype[i].tally, &in->all);
    printf("\n");
    for (int mtp = 0; mtp < 2; mtp++)
        for (int c = 0; c < DSV4_COMPONENTS; c++)
            if (in->component[mtp][c].tensors > 0) {
                char label[32];
                component_label(label, mtp, c);
                print_tally(label, &in->component[mtp][c], &in->all);
            }
    if (in->context > 0)
        printf("\nstate of %" PRId64 " tokens (--path fast, without MTP), in bytes: released %" PRId64
               ", exact %" PRId64 "\n", in->context, state_bytes(in, DSV4_RELEASED),
               state_bytes(in, DSV4_EXACT));
    if (in->checkpoint != NULL) {
        printf("\n");
        print_problems(in);
    }
}

static int inspect_geometry(inspection *in, const char *name, dsv4_error *err)
{
    const char *text = dsv4_geometry(name);
    if (dsv4_config_parse(&in->config, text, strlen(text), name, err) != 0)
        return -1;
    return dsv4_model_each(&in->config, count_expected, in);
}

static int inspect_directory(inspection *in, const char *dir, dsv4_error *err)
{
    char *path = dsv4_alloc(strlen(dir) + sizeof "/config.json", 1);
    strcat(strcpy(path, dir), "/config.json");
    int status = dsv4_config_read(&in->config, path, err);
    free(path);
    if (status != 0)
        return -1;
    in->checkpoint = dsv4_checkpoint_open(dir, err);
    if (in->checkpoint == NULL)
        return -1;
    dsv4_model_check(&in->config, in->checkpoint, count_match, in);
    for (int64_t i = 0; in->check_values && i < dsv4_checkpoint_count(in->checkpoint); i++)
        scan_values(in, dsv4_checkpoint_at(in->checkpoint, i));
    return 0;
}

static int run(const inspect_arguments *arguments, dsv4_error *err)
{
    inspection in = {
        .check_values = arguments->check_values,
        .context = arguments->context,
        .missing = json_array(),
        .unexpected = json_array(),
        .wrong = json_array(),
        .nan = json_array(),
    };
    int status = arguments->geometry != NULL ? inspect_geometry(&in, arguments->geometry, err)
                                             : inspect_directory(&in, arguments->dir, err);
    if (status != 0)
        status = 2;
    else if (in.context > 0 && state_bytes(&in, DSV4_EXACT) < 0) {
        dsv4_fail(err, "--context %" PRId64 ": the caches take more bytes than can be counted",
                  in.context);
        status = 2;
    } else {
        if (arguments->json)
            print_json(&in);
        else
            print_text(&in);
        status = json_array_size(in.missing) + json_array_size(in.unexpected) +
                     json_array_size(in.wrong) + json_array_size(in.nan) > 0;
    }
    json_decref(in.missing);
    json_decref(in.unexpected);
    json_decref(in.wrong);
    json_decref(in.nan);
    dsv4_checkpoint_close(in.checkpoint);
    dsv4_config_free(&in.config);
    return status;
}

static const char documentation[] =
    "Says what a checkpoint holds and whether it is what its config.json calls for; with "
    "--geometry, what a released model calls for.\v"
    "Exit codes: 0 good, 1 a tensor is missing, unexpected or wrong or a value is NaN, 2 cannot "
    "run.";

enum { KEY_GEOMETRY = 256, KEY_JSON, KEY_CHECK_VALUES, KEY_CONTEXT };

static const struct argp_option options[] = {
    {"geometry", KEY_GEOMETRY, "NAME", 0, "a released model, flash or pro, and no checkpoint", 0},
    {"json", KEY_JSON, NULL, 0, "write JSON", 0},
    {"check-values", KEY_CHECK_VALUES, NULL, 0, "read all values and look for NaN", 0},
    {"context", KEY_CONTEXT, "N", 0, "also the memory that the caches of a sequence of N tokens "
     "take", 0},
    {0},
};

static void check_arguments(const inspect_arguments *arguments, struct argp_state *state)
{
    if ((arguments->dir == NULL) == (arguments->geometry == NULL))
        argp_error(state, "expected either MODEL_DIR, a checkpoint directory, or --geometry");
    if (arguments->check_values && arguments->geometry != NULL)
        argp_error(state, "--check-values: a geometry has no values");
}

static int64_t parse_context(const char *text, struct argp_state *state)
{
    char *end;
    errno = 0;
    long long tokens = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || tokens < 1)
        argp_error(state, "--context: expected a number of tokens, 1 or more, got '%s'", text);
    return tokens;
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    inspect_arguments *arguments = state->input;
    switch (key) {
    case KEY_GEOMETRY:
        if (dsv4_geometry(text) == NULL)
            argp_error(state, "--geometry: expected flash or pro, got '%s'", text);
        arguments->geometry = text;
        return 0;
    case KEY_JSON: arguments->json = true; return 0;
    case KEY_CHECK_VALUES: arguments->check_values = true; return 0;
    case KEY_CONTEXT: arguments->context = parse_context(text, state); return 0;
    case ARGP_KEY_ARG:
        if (arguments->dir != NULL)
            argp_error(state, "expected one MODEL_DIR, got a second: '%s'", text);
        arguments->dir = text;
        return 0;
    case ARGP_KEY_END: check_arguments(arguments, state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int dsv4_inspect_main(int argc, char **argv)
{
    const struct argp argp = {.options = options, .parser = parse_option,
                              .args_doc = "MODEL_DIR\n--geometry=NAME", .doc = documentation};
    argp_err_exit_status = 2;
    inspect_arguments arguments = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    dsv4_error err = {0};
    int status = run(&arguments, &err);
    if (status == 2)
        fprintf(stderr, "dsv4 inspect: %s\n", err.text);
    return status;
}
