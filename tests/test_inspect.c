#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "files.h"
#include "host/inspect.h"

static const char base[] =
    "{\"hidden_size\": 64, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"head_dim\": 32,"
    " \"q_lora_rank\": 32, \"qk_rope_head_dim\": 16, \"o_groups\": 2, \"o_lora_rank\": 16,"
    " \"sliding_window\": 8, \"index_n_heads\": 2, \"index_head_dim\": 16, \"index_topk\": 4,"
    " \"moe_intermediate_size\": 96, \"n_routed_experts\": 3, \"num_experts_per_tok\": 2,"
    " \"num_hash_layers\": 1, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 3,"
    " \"hc_mult\": 2, \"hc_sinkhorn_iters\": 2, \"hc_eps\": 0.25, \"rms_norm_eps\": 0.125,"
    " \"rope_theta\": 10000, \"compress_rope_theta\": 160000.0,"
    " \"max_position_embeddings\": 999, \"vocab_size\": 10, \"compress_ratios\": [0, 4, 128, 0],"
    " \"num_nextn_predict_layers\": 1}";

typedef struct {
    char *directory;
    stored_tensors list;
} checkpoint;

static checkpoint start(void fill(stored_tensors *, const dsv4_config *))
{
    checkpoint c = {.directory = files_directory()};
    files_write_text(c.directory, "config.json", base);
    dsv4_config config;
    dsv4_error err = {0};
    assert_int_equal(dsv4_config_parse(&config, base, strlen(base), "base", &err), 0);
    fill(&c.list, &config);
    dsv4_config_free(&config);
    return c;
}

static void finish(checkpoint *c)
{
    stored_free(&c->list);
    files_remove(c->directory);
}

static void store(const checkpoint *c)
{
    stored_write(&c->list, c->directory, "model.safetensors");
}

typedef struct {
    int status;
    char *out, *err;
} outcome;

/* Runs `dsv4 inspect` with up to three arguments in a process of its own. */
static outcome inspect(const char *first, const char *second, const char *third)
{
    char *directory = files_directory();
    char *out = files_path(directory, "out"), *err = files_path(directory, "err");
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (freopen(out, "w", stdout) == NULL || freopen(err, "w", stderr) == NULL)
            exit(99);
        const char *const arguments[] = {"dsv4 inspect", first, second, third, NULL};
        int count = 1;
        while (arguments[count] != NULL)
            count++;
        exit(dsv4_inspect_main(count, (char **)arguments));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    size_t size;
    outcome o = {WEXITSTATUS(status), files_read(out, &size), files_read(err, &size)};
    free(out);
    free(err);
    files_remove(directory);
    return o;
}

static void check(outcome o, int status, const char *in_out, const char *in_err)
{
    if (o.status != status || strstr(o.out, in_out) == NULL || strstr(o.err, in_err) == NULL)
        fail_msg("expected %d, '%s', '%s'; got %d\n%s%s", status, in_out, in_err, o.status, o.out,
                 o.err);
    free(o.out);
    free(o.err);
}

static json_t *check_json(outcome o, int status)
{
    json_t *root = json_loads(o.out, JSON_REJECT_DUPLICATES, NULL);
    if (o.status != status || root == NULL || o.err[0] != '\0')
        fail_msg("expected %d and JSON; got %d\n%s%s", status, o.status, o.out, o.err);
    free(o.out);
    free(o.err);
    return root;
}

static int64_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value))
        fail_msg("%s is no integer", key);
    return json_integer_value(value);
}

static int64_t number_in(const json_t *root, const char *parent, const char *name, const char *key)
{
    return number(json_object_get(json_object_get(root, parent), name), key);
}

static size_t length(const json_t *root, const char *key)
{
    assert_true(json_is_array(json_object_get(root, key)));
    return json_array_size(json_object_get(root, key));
}

static void flash_as_json(void **state)
{
    (void)state;
    json_t *root = check_json(inspect("--geometry", "flash", "--json"), 0);
    assert_int_equal(number(root, "tensors"), 69187);
    assert_int_equal(number(root, "bytes"), 159609485896);
    const struct {
        const char *name;
        int64_t tensors, bytes;
    } dtypes[] = {
        {"I8", 33792, 141733920768}, {"F8_E8M0", 34167, 8858737664}, {"F8_E4M3", 375, 6023020544},
        {"BF16", 433, 2830518528},   {"F32", 417, 144672072},        {"I64", 3, 18616320},
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        assert_int_equal(number_in(root, "by_dtype", dtypes[i].name, "tensors"), dtypes[i].tensors);
        assert_int_equal(number_in(root, "by_dtype", dtypes[i].name, "bytes"), dtypes[i].bytes);
    }
    assert_int_equal(json_object_size(json_object_get(root, "by_dtype")), 6);
    assert_int_equal(number(json_object_get(root, "mtp"), "tensors"), 1575);
    assert_int_equal(number(json_object_get(root, "mtp"), "bytes"), 3593787756);
    assert_int_equal(number(json_object_get(root, "layers"), "swa"), 2);
    assert_int_equal(number(json_object_get(root, "layers"), "csa"), 21);
    assert_int_equal(number(json_object_get(root, "layers"), "hca"), 20);
    assert_int_equal(number_in(root, "by_component", "experts", "tensors"), 66048);
    assert_int_equal(number_in(root, "by_component", "mtp.experts", "tensors"), 1536);
    assert_int_equal(number_in(root, "by_component", "mtp.input", "tensors"), 4);
    assert_null(json_object_get(json_object_get(root, "by_component"), "unexpected"));
    int64_t tensors = 0, bytes = 0;
    const char *name;
    json_t *component;
    json_object_foreach(json_object_get(root, "by_component"), name, component) {
        tensors += number(component, "tensors");
        bytes += number(component, "bytes");
    }
    assert_int_equal(tensors, 69187);
    assert_int_equal(bytes, 159609485896);
    assert_int_equal(length(root, "missing") + length(root, "unexpected") +
                     length(root, "wrong"), 0);
    assert_null(json_object_get(root, "nan"));
    json_decref(root);

    root = check_json(inspect("--geometry=pro", "--json", NULL), 0);
    assert_int_equal(number(root, "tensors"), 145116);
    assert_int_equal(number(root, "bytes"), 864704792696);
    assert_int_equal(number(json_object_get(root, "layers"), "hca"), 31);
    json_decref(root);
}

static void geometries_as_text(void **state)
{
    (void)state;
    outcome o = inspect("--geometry=flash", NULL, NULL);
    const char *const lines[] = {
        "43: 2 SWA, 21 CSA, 20 HCA; experts by token id in the first 3\n",
        " 0 x2, (4, 128) x20, 4; mtp 0\n",
        "all                        69187        159609485896   100.00 %\n",
        "mtp                         1575          3593787756     2.25 %\n",
        "F8_E8M0                    34167          8858737664     5.55 %\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        assert_non_null(strstr(o.out, lines[i]));
    assert_null(strstr(o.out, "missing"));
    check(o, 0, "mtp.shared_experts ", "");
    check(inspect("--geometry", "pro", NULL), 0, " 128 x2, (4, 128) x29, 4; mtp 0\n", "");
}

static void what_cannot_run(void **state)
{
    (void)state;
    check(inspect(NULL, NULL, NULL), 2, "", "dsv4 inspect: expected either MODEL_DIR");
    check(inspect("--geometry=flash", "/tmp", NULL), 2, "", "expected either MODEL_DIR");
    check(inspect("--geometry=lite", NULL, NULL), 2, "", "expected flash or pro, got 'lite'");
    check(inspect("--geometry=pro", "--check-values", NULL), 2, "", "a geometry has no values");
    check(inspect("/tmp", "/", NULL), 2, "", "expected one MODEL_DIR, got a second: '/'");
    check(inspect("--unknown", NULL, NULL), 2, "", "unrecognized option");
    check(inspect("--help", NULL, NULL), 0, "--check-values", "");
    check(inspect("--help", NULL, NULL), 0, "Usage: dsv4 inspect [OPTION...] MODEL_DIR", "");
    check(inspect("/nonexistent", NULL, NULL), 2, "",
          "dsv4 inspect: /nonexistent/config.json: No such file or directory\n");
    char *directory = files_directory();
    files_write_text(directory, "config.json", base);
    check(inspect(directory, NULL, NULL), 2, "", "found neither");
    files_remove(directory);
}

static void good_checkpoints(void **state)
{
    (void)state;
    void (*const fills[])(stored_tensors *, const dsv4_config *) = {stored_fill, stored_fill_plain};
    for (int i = 0; i < 2; i++) {
        checkpoint c = start(fills[i]);
        int64_t bytes = 0;
        for (size_t k = 0; k < c.list.count; k++)
            bytes += (int64_t)c.list.at[k].size;
        if (i == 0)
            store(&c);
        else
            stored_write_shards(&c.list, c.directory, 3);
        json_t *root = check_json(inspect(c.directory, "--json", "--check-values"), 0);
        assert_int_equal(number(root, "tensors"), c.list.count);
        assert_int_equal(number(root, "bytes"), bytes);
        assert_int_equal(number_in(root, "by_dtype", "I64", "tensors"), 1);
        assert_int_equal(length(root, "missing") + length(root, "unexpected") +
                         length(root, "wrong") + length(root, "nan"), 0);
        json_decref(root);
        check(inspect(c.directory, NULL, NULL), 0, "3: 1 SWA, 1 CSA, 1 HCA;", "");
        check(inspect(c.directory, NULL, NULL), 0, " 0, 4, 128; mtp 0\n", "");
        check(inspect(c.directory, NULL, NULL), 0,
              "missing          0\nunexpected       0\nwrong            0\n", "");
        check(inspect(c.directory, "--check-values", NULL), 0, "with NaN         0\n", "");
        finish(&c);
    }
}

static void faults_are_listed(void **state)
{
    (void)state;
    checkpoint c = start(stored_fill);
    stored_remove(&c.list, "layers.1.attn.wkv.scale");
    store(&c);
    check(inspect(c.directory, NULL, NULL), 1, "missing          1\n  layers.1.attn.wkv.scale\n",
          "");
    json_t *root = check_json(inspect(c.directory, "--json", NULL), 1);
    assert_string_equal(json_string_value(json_array_get(json_object_get(root, "missing"), 0)),
                        "layers.1.attn.wkv.scale");
    json_decref(root);
    stored_add(&c.list, "layers.1.attn.wkv.scale", "F8_E8M0", 2, (const int64_t[]){1, 1}, 1);

    stored_add(&c.list, "mtp.9.x", "F64", 0, NULL, 8);
    store(&c);
    check(inspect(c.directory, NULL, NULL), 1, "unexpected       1\n  mtp.9.x\n", "");
    root = check_json(inspect(c.directory, "--json", NULL), 1);
    assert_int_equal(number_in(root, "by_component", "mtp.unexpected", "bytes"), 8);
    assert_int_equal(number_in(root, "by_dtype", "F64", "tensors"), 1);
    assert_int_equal(length(root, "unexpected"), 1);
    json_decref(root);
    stored_remove(&c.list, "mtp.9.x");

    stored_change(&c.list, "norm.weight", "BF16", 1, (const int64_t[]){65}, 130);
    store(&c);
    check(inspect(c.directory, NULL, NULL), 1,
          "wrong            1\n  norm.weight: expected shape [64], got [65] (", "");
    root = check_json(inspect(c.directory, "--json", NULL), 1);
    const json_t *wrong = json_array_get(json_object_get(root, "wrong"), 0);
    assert_string_equal(json_string_value(json_object_get(wrong, "tensor")), "norm.weight");
    assert_string_equal(json_string_value(json_object_get(wrong, "problem")),
                        "expected shape [64], got [65]");
    assert_non_null(strstr(json_string_value(json_object_get(wrong, "file")), "/model."));
    json_decref(root);
    finish(&c);
}

static void long_lists_are_cut(void **state)
{
    (void)state;
    checkpoint c = start(stored_fill);
    for (int i = 0; i < 23; i++) {
        char name[32];
        snprintf(name, sizeof name, "extra.%02d", i);
        stored_add(&c.list, name, "BOOL", 1, (const int64_t[]){0}, 0);
    }
    store(&c);
    outcome o = inspect(c.directory, NULL, NULL);
    assert_non_null(strstr(o.out, "unexpected       23\n  extra.00\n"));
    assert_null(strstr(o.out, "extra.20"));
    check(o, 1, "  extra.19\n  and 3 more: --json lists all\n", "");
    json_t *root = check_json(inspect(c.directory, "--json", NULL), 1);
    assert_int_equal(length(root, "unexpected"), 23);
    json_decref(root);
    finish(&c);
}

/* An empty checkpoint: percentages of nothing. */
static void everything_may_be_missing(void **state)
{
    (void)state;
    checkpoint c = start(stored_fill);
    stored_free(&c.list);
    store(&c);
    check(inspect(c.directory, "--check-values", NULL), 1, "all                            0", "");
    finish(&c);
}

static void names_stay_on_their_line(void **state)
{
    (void)state;
    checkpoint c = start(stored_fill);
    const char *name = "bad\\nname\\u001b[31m"; /* escapes of JSON */
    memset(stored_add(&c.list, name, "BF16", 1, (const int64_t[]){1}, 2)->data, 0xff, 2);
    store(&c);
    check(inspect(c.directory, "--check-values", NULL), 1, "\n  bad?name?[31m\n", "");
    check(inspect(c.directory, "--check-values", NULL), 1, "\n  bad?name?[31m: 1 NaN in BF16", "");
    finish(&c);
}

/* Paths need not be UTF-8, JSON must be. */
static void paths_may_be_anything(void **state)
{
    (void)state;
    checkpoint c = start(stored_fill);
    stored_find(&c.list, "layers.0.attn.wkv.scale")->data[0] = 255;
    stored_change(&c.list, "norm.weight", "BF16", 1, (const int64_t[]){65}, 130);
    store(&c);
    char *odd = files_path(c.directory, "caf\xe9");
    assert_int_equal(symlink(".", odd), 0);
    json_t *root = check_json(inspect(odd, "--json", "--check-values"), 1);
    const json_t *wrong = json_array_get(json_object_get(root, "wrong"), 0);
    assert_non_null(strstr(json_string_value(json_object_get(wrong, "file")), "/caf\xef\xbf\xbd/model"));
    assert_int_equal(length(root, "nan"), 1);
    json_decref(root);
    free(odd);
    finish(&c);
}

/* Puts one code into one tensor and looks for the line about it, or for none. */
static void check_value(const char *dtype, size_t width, uint64_t code, size_t index, size_t values,
                        bool nan)
{
    checkpoint c = start(stored_fill);
    stored_tensor *tensor = stored_add(&c.list, "x", dtype, 1, (const int64_t[]){(int64_t)values},
                                       width * values);
    memcpy(tensor->data + width * index, &code, width);
    store(&c);
    json_t *root = check_json(inspect(c.directory, "--json", "--check-values"), 1);
    if (length(root, "nan") != nan)
        fail_msg("%s 0x%llx", dtype, (unsigned long long)code);
    const json_t *entry = json_array_get(json_object_get(root, "nan"), 0);
    if (nan) {
        assert_string_equal(json_string_value(json_object_get(entry, "tensor")), "x");
        assert_string_equal(json_string_value(json_object_get(entry, "dtype")), dtype);
        assert_int_equal(number(entry, "first"), index);
        assert_int_equal(number(entry, "count"), 1);
    }
    json_decref(root);
    finish(&c);
}

/* covers: checkpoint.values.1 */
static void nan_of_every_dtype(void **state)
{
    (void)state;
    const struct {
        const char *dtype;
        size_t width;
        uint64_t code;
        bool nan;
    } cases[] = {
        {"F8_E4M3", 1, 0x7f, true},      {"F8_E4M3", 1, 0xff, true},
        {"F8_E4M3", 1, 0x7e, false},     {"F8_E4M3", 1, 0xfe, false},
        {"F8_E8M0", 1, 0xff, true},      {"F8_E8M0", 1, 0xfe, false},
        {"F8_E8M0", 1, 0x7f, false},     {"BF16", 2, 0x7f81, true},
        {"BF16", 2, 0xff81, true},       {"BF16", 2, 0x7f80, false},
        {"BF16", 2, 0xff80, false},      {"F16", 2, 0x7c01, true},
        {"F16", 2, 0xfc01, true},        {"F16", 2, 0x7c00, false},
        {"F16", 2, 0x7bff, false},       {"F32", 4, 0x7f800001, true},
        {"F32", 4, 0xff800001, true},    {"F32", 4, 0x7f800000, false},
        {"F32", 4, 0xff800000, false},   {"I8", 1, 0xff, false},
        {"I32", 4, 0xffffffff, false},   {"F64", 8, 0x7ff8000000000000, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_value(cases[i].dtype, cases[i].width, cases[i].code, 1, 3, cases[i].nan);
    /* Around the ends of the blocks in which values are read. */
    const size_t places[] = {0, 1023, 1024, 2047, 2048, 4095, 4096, 4100, 8191, 8192};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        check_value("F8_E4M3", 1, 0xff, places[i], 8193, true);
        check_value("BF16", 2, 0x7fff, places[i], 8193, true);
        check_value("F32", 4, 0x7fffffff, places[i], 8193, true);
    }
}

/* covers: checkpoint.values.1 */
static void nan_are_counted(void **state)
{
    (void)state;
    checkpoint c = start(stored_fill);
    stored_tensor *embed = stored_find(&c.list, "embed.weight"); /* 640 values */
    memset(embed->data + 2 * 7, 0xff, embed->size - 2 * 7);
    stored_tensor *head = stored_find(&c.list, "head.weight");
    memset(head->data, 0xff, 2);
    memset(head->data + head->size - 2, 0xff, 2);
    stored_tensor *ape = stored_find(&c.list, "layers.1.attn.indexer.compressor.ape");
    stored_change(&c.list, ape->name, "F32", 2, (const int64_t[]){4, 1000}, 16000);
    memset(ape->data + 4 * 500, 0xff, 4);
    memset(ape->data + 4 * 3500, 0xff, 4); /* in another block */
    store(&c);
    outcome o = inspect(c.directory, "--check-values", NULL);
    assert_non_null(strstr(o.out, "  head.weight: 2 NaN in BF16, the first at index 0 ("));
    assert_non_null(strstr(o.out, "compressor.ape: 2 NaN in F32, the first at index 500 ("));
    check(o, 1, "with NaN         3\n  embed.weight: 633 NaN in BF16, the first at index 7 (", "");
    finish(&c);
}

/* The checkpoints of an independent implementation. */
static void foreign_checkpoints_are_good(void **state)
{
    (void)state;
    int seen = 0;
    const struct {
        const char *name;
        int64_t tensors;
    } cases[] = {
        {"tiny-exact", 308}, {"long-exact", 188}, {"tiny-released", 504}, {"mild-released", 367},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = files_oracle(cases[i].name);
        if (path == NULL) /* the part in the repository does not have all */
            continue;
        seen++;
        json_t *root = check_json(inspect(path, "--json", "--check-values"), 0);
        assert_int_equal(number(root, "tensors"), cases[i].tensors);
        json_decref(root);
        free(path);
    }
    assert_int_not_equal(seen, 0);
}

/* 583 bytes an entry and 68 a key: 21 CSA layers, 20 HCA layers. */
static void state_of_a_long_context(void **state)
{
    (void)state;
    const int64_t tokens = 1048576, entries = 21 * tokens / 4 * (583 + 68) + 20 * tokens / 128 * 583;
    json_t *root = check_json(inspect("--geometry=flash", "--context=1048576", "--json"), 0);
    json_t *memory = json_object_get(root, "state");
    assert_int_equal(number(memory, "tokens"), tokens);
    assert_true(number(memory, "released") > entries);
    assert_true(number(memory, "released") < entries + 30000000 && entries < 3900000000);
    assert_true(number(memory, "exact") > 3 * entries);
    json_decref(root);
    check(inspect("--geometry=flash", "--context=4096", NULL), 0,
          "\nstate of 4096 tokens (--path fast, without MTP), in bytes: released ", "");
    check(inspect("--geometry=flash", "--context=0", NULL), 2, "",
          "--context: expected a number of tokens, 1 or more, got '0'");
    check(inspect("--geometry=flash", "--context=99999999999999999", NULL), 2, "",
          "--context 99999999999999999: the caches take more bytes than can be counted\n");
    check(inspect("--geometry=flash", "--context=9x", NULL), 2, "", "1 or more, got '9x'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flash_as_json),
        cmocka_unit_test(geometries_as_text),
        cmocka_unit_test(state_of_a_long_context),
        cmocka_unit_test(what_cannot_run),
        cmocka_unit_test(good_checkpoints),
        cmocka_unit_test(faults_are_listed),
        cmocka_unit_test(long_lists_are_cut),
        cmocka_unit_test(everything_may_be_missing),
        cmocka_unit_test(names_stay_on_their_line),
        cmocka_unit_test(paths_may_be_anything),
        cmocka_unit_test(nan_of_every_dtype),
        cmocka_unit_test(nan_are_counted),
        cmocka_unit_test(foreign_checkpoints_are_good),
    };
    return cmocka_run_group_tests_name("inspect", tests, NULL, NULL) != 0;
}
