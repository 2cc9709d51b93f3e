/* `dsv4 bench`: what it reports, the work it counts, states that are filled, times of parts, limits.
 * How fast anything is, no test says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "command.h"
#include "fast/fast.h"
#include "fast/limits.h"
#include "golden.h"
#include "host/bench.h"
#include "host/bench_operators.h"
#include "host/clock.h"
#include "host/growth.h"
#include "host/limits.h"
#include "host/preload.h"
#include "host/work.h"
#include "whole.h"

#define test_in_scratch(f) cmocka_unit_test_setup_teardown(f, scratch_enter, scratch_leave)

static const dsv4_path *const fast = &dsv4_path_fast, *const ref = &dsv4_path_ref;

/* In place of the library's: as on a file system that does not let anybody past the page cache. */
static bool refuse_direct_reading;

ssize_t pread(int fd, void *to, size_t size, off_t at)
{
    if (!refuse_direct_reading)
        return syscall(SYS_pread64, fd, to, size, at);
    errno = EINVAL;
    return -1;
}

/* ---- the command ---- */

#define bench(...) command_call(dsv4_bench_main, "dsv4 bench", __VA_ARGS__)

static json_t *report(command_result r)
{
    json_error_t why;
    if (r.code != 0 || r.err[0] != '\0')
        fail_msg("exit code %d: %s%s", r.code, r.out, r.err);
    json_t *json = json_loads(r.out, JSON_REJECT_DUPLICATES, &why);
    if (json == NULL)
        fail_msg("no JSON: %s: %s", why.text, r.out);
    command_free(&r);
    return json;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    if (text == NULL)
        fail_msg("%s is no text", key);
    return text;
}

static double number_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        fail_msg("%s is no number", key);
    return json_number_value(value);
}

static const json_t *run_of(const json_t *json, const char *kind, int64_t depth)
{
    size_t i;
    const json_t *run;
    json_array_foreach(json_object_get(json, "runs"), i, run)
        if (strcmp(text_of(run, "kind"), kind) == 0 && (int64_t)number_of(run, "depth") == depth)
            return run;
    fail_msg("no run of %s at depth %lld", kind, (long long)depth);
    return NULL;
}

static double sum_of_components(const json_t *run, const char *key)
{
    double sum = 0;
    size_t i;
    const json_t *part;
    json_array_foreach(json_object_get(run, "components"), i, part) {
        assert_true(number_of(part, key) >= 0);
        sum += number_of(part, key);
    }
    return sum;
}

static const json_t *component(const json_t *run, const char *kind, const char *name)
{
    size_t i;
    const json_t *part;
    json_array_foreach(json_object_get(run, "components"), i, part)
        if (strcmp(text_of(part, "kind"), kind) == 0 && strcmp(text_of(part, "part"), name) == 0)
            return part;
    return NULL;
}

static void check_limits(const json_t *json)
{
    static const char *const rates[] = {"median", "best"};
    const json_t *limits = json_object_get(json, "limits"), *peak;
    size_t i;
    bool found = false;
    assert_true(number_of(limits, "read_buffer_bytes") > 0);
    assert_int_equal(json_array_size(json_object_get(limits, "read_bytes_per_second")), 2);
    json_array_foreach(json_object_get(limits, "peaks"), i, peak) {
        const json_t *two = json_object_get(peak, "flops_per_second");
        found |= strcmp(text_of(peak, "key"), text_of(limits, "matrix")) == 0;
        assert_int_equal(json_array_size(two), 2);
        for (int n = 0; n < 4; n++)
            assert_true(number_of(json_array_get(two, n / 2), rates[n % 2]) > 0);
    }
    assert_true(found);
    assert_true(number_of(json_object_get(limits, "read_after"), "median") > 0);
}

static void check_run(const json_t *run)
{
    double seconds = number_of(run, "seconds"), profiled = number_of(run, "profiled_seconds");
    double bytes = number_of(run, "weight_bytes") + number_of(run, "cache_bytes");
    double parts = sum_of_components(run, "seconds");
    assert_true(seconds > 0 && number_of(run, "best_seconds") <= seconds);
    assert_true(fabs(number_of(run, "tokens_per_second") * seconds /
                     number_of(run, "tokens_per_call") - 1) < 1e-4);
    assert_true(fabs(number_of(run, "bytes_per_second") * seconds / bytes - 1) < 1e-4);
    assert_true(fabs(number_of(run, "bytes_per_second") / number_of(run, "bandwidth_fraction") /
                     number_of(json_object_get(run, "read_limit"), "median") - 1) < 1e-4);
    assert_true(fabs(number_of(run, "flops_per_second") / number_of(run, "flop_fraction") /
                     number_of(json_object_get(run, "matrix_limit"), "median") - 1) < 1e-4);
    const json_t *layers = json_object_get(run, "layers");
    const json_t *head = component(run, "outside", "head");
    assert_true(number_of(layers, "seconds") < parts);
    assert_true(head == NULL || number_of(layers, "weight_bytes") + number_of(head, "weight_bytes") <=
                                    number_of(run, "weight_bytes") * 1.0001);
    assert_true(number_of(run, "limit_fraction") >= number_of(run, "bandwidth_fraction"));
    assert_true(number_of(run, "limit_fraction") >= number_of(run, "flop_fraction"));
    /* The parts leave out what is before the pass and behind it only. */
    if (parts > profiled * 1.001 || parts < profiled * 0.5)
        fail_msg("the parts take %g s, the whole %g s", parts, profiled);
    assert_true(fabs(sum_of_components(run, "flops") / number_of(run, "flops") - 1) < 1e-4);
    assert_true(fabs(sum_of_components(run, "weight_bytes") / number_of(run, "weight_bytes") - 1) <
                1e-4);
}

static void test_report(void **state)
{
    static const char *const kinds[] = {"SWA", "CSA", "HCA"};
    static const char *const parts[] = {"core attention", "attention projections", "experts",
                                        "router", "mHC"};
    (void)state;
    whole w;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    json_t *json = report(bench(w.dir, "-p", "9", "-n", "5", "-d", "0,300", "-r", "2", "--limits",
                                "0.05", "--patience", "0", "--threads", "2", "--json"));
    check_limits(json);
    assert_string_equal(text_of(json, "path"), "fast");
    assert_string_equal(text_of(json, "numerics"), "released");
    assert_true(json_is_true(json_object_get(json, "weights_in_memory")));
    assert_int_equal(json_array_size(json_object_get(json, "runs")), 4);
    assert_null(json_object_get(json, "operators"));
    for (int i = 0; i < 4; i++) {
        const json_t *run = run_of(json, i % 2 == 0 ? "prefill" : "decode", i < 2 ? 0 : 300);
        assert_string_equal(text_of(run, "state"), i < 2 ? "empty" : "synthetic");
        check_run(run);
        assert_true(number_of(component(run, "CSA", "indexer"), "seconds") > 0);
        assert_true(number_of(component(run, "HCA", "compressor"), "seconds") > 0);
        assert_null(component(run, "HCA", "indexer"));
        assert_null(component(run, "SWA", "compressor"));
        assert_non_null(component(run, "outside", "embed"));
        assert_int_equal(component(run, "outside", "head") != NULL, i % 2 == 1);
        for (int k = 0; k < 3; k++) {
            for (size_t p = 0; p < sizeof parts / sizeof *parts; p++)
                assert_true(number_of(component(run, kinds[k], parts[p]), "seconds") > 0);
            assert_true(number_of(json_object_get(run, "seconds_per_layer"), kinds[k]) > 0);
        }
    }
    assert_true(number_of(run_of(json, "decode", 300), "cache_bytes") >
                number_of(run_of(json, "decode", 0), "cache_bytes"));
    json_decref(json);
    whole_close(&w);
}

/* Up to the last position there is: decoding leaves no room behind it for the profile. */
static void test_last_positions(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    json_t *json = report(bench(w.dir, "-p", "4", "-n", "4", "-d", "100,995", "-r", "1", "--limits",
                                "0.05", "--patience", "0", "--json"));
    check_run(run_of(json, "decode", 995));
    const json_t *growth = json_object_get(json, "growth");
    const json_t *decode = json_array_get(json_object_get(growth, "decode"), 0);
    assert_int_equal(json_array_size(json_object_get(growth, "decode")), 1);
    assert_int_equal(json_array_size(json_object_get(growth, "prefill")), 1);
    assert_int_equal((int)number_of(decode, "depth"), 995);
    assert_true(fabs(number_of(decode, "seconds") - number_of(decode, "indexer_seconds") -
                     number_of(decode, "core_seconds") - number_of(decode, "unexplained_seconds")) <
                1e-4 * (fabs(number_of(decode, "seconds")) + 1e-6));
    /* Layers 1 and 3 see 998 / 4 entries after 102 / 4. */
    assert_true(fabs(number_of(decode, "seconds_per_key") * 2 * (998 / 4 - 103 / 4) -
                     number_of(decode, "indexer_seconds")) < 1e-8);
    assert_true(json_is_number(json_object_get(json_object_get(decode, "seconds_per_layer"), "SWA")));
    json_decref(json);
    whole_close(&w);
}

static void test_growth(void **state)
{
    (void)state;
    dsv4_growth_point a = {.depth = 0, .keys = 10, .entries = 4}, b = {.depth = 9};
    b.keys = 30;
    b.entries = 8;
    a.profile.seconds[DSV4_CSA][DSV4_PART_INDEXER] = 1;
    a.profile.seconds[DSV4_HCA][DSV4_PART_CORE] = 2;
    a.profile.seconds[DSV4_OUTSIDE][DSV4_PART_HEAD] = 4;
    b.profile = a.profile;
    b.profile.seconds[DSV4_CSA][DSV4_PART_INDEXER] += 5;
    b.profile.seconds[DSV4_HCA][DSV4_PART_CORE] += 2;
    b.profile.seconds[DSV4_CSA][DSV4_PART_CORE] += 0.25;
    b.profile.seconds[DSV4_OUTSIDE][DSV4_PART_HEAD] -= 0.125;
    dsv4_growth g = dsv4_growth_of(&a, &b);
    assert_true(g.seconds == 7.125 && g.indexer == 5 && g.core == 2 && g.rest == 0.125);
    assert_true(g.indexer_per_key == 0.25 && g.core_per_entry == 0.5);
    assert_true(g.layer[DSV4_SWA] == 0 && g.layer[DSV4_CSA] == 5.25 && g.layer[DSV4_HCA] == 2);
    b.keys = a.keys;
    assert_true(dsv4_growth_of(&a, &b).indexer_per_key == 0);
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    assert_true(dsv4_growth_visible(&w.model.config, DSV4_CSA, 10) == 2 * (11 / 4));
    assert_true(dsv4_growth_visible(&w.model.config, DSV4_HCA, 15) == 2);
    assert_true(dsv4_growth_visible(&w.model.config, DSV4_SWA, 15) == 0);
    assert_int_equal(dsv4_growth_steady(&w.model.config), 3 * 4); /* more than the window of 7 */
    whole_close(&w);
}

/* ---- loading ---- */

static void test_loading(void **state)
{
    (void)state;
    whole w;
    dsv4_error err = {""};
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    const dsv4_checkpoint *checkpoint = w.model.checkpoint;
    const char *path;
    assert_int_equal(dsv4_checkpoint_files(checkpoint), 1);
    dsv4_file file = dsv4_checkpoint_file(checkpoint, 0, &path);
    assert_non_null(strstr(path, "model.safetensors"));
    assert_true(dsv4_preload_fits(checkpoint));
    assert_int_equal(dsv4_preload_end(dsv4_preload_begin(checkpoint), false, &err), 0);
    dsv4_residency all = dsv4_residency_of(checkpoint);
    assert_true(all.bytes == (double)file.size && all.resident == all.bytes);
    assert_int_equal(dsv4_evict(checkpoint, &err), 0);
    assert_int_equal(file.data[8], '{'); /* it can still be read */
    assert_int_equal(dsv4_preload_end(dsv4_preload_begin(checkpoint), true, &err), 0);
    assert_int_equal(dsv4_preload_end(NULL, false, &err), 0);
    double rate = 0;
    if (dsv4_direct_rate(checkpoint, 0.25, &rate, &err) == 0)
        assert_true(rate > 0);
    else
        assert_non_null(strstr(err.text, "direct reading (O_DIRECT) is refused: "));
    remove(path);
    err = (dsv4_error){""};
    assert_int_equal(dsv4_evict(checkpoint, &err), -1);
    assert_non_null(strstr(err.text, "model.safetensors: No such file"));
    err = (dsv4_error){""};
    assert_int_equal(dsv4_direct_rate(checkpoint, 0, &rate, &err), -1);
    whole_close(&w);
}

static void test_cold(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    json_t *json = report(bench(w.dir, "-p", "0", "-n", "1", "--limits", "0.05", "--cold", "--json"));
    const json_t *load = json_object_get(json, "load"), *cold = json_object_get(load, "cold");
    assert_true(number_of(load, "bytes") > 0 && number_of(load, "seconds") > 0);
    assert_true(number_of(load, "resident_before") <= number_of(load, "bytes"));
    assert_true(number_of(load, "resident_after") == number_of(load, "bytes"));
    assert_true(json_is_null(json_object_get(cold, "direct_refused")) !=
                json_is_null(json_object_get(cold, "direct_rates")));
    double repeated = number_of(json_object_get(json, "experts"), "repeated");
    assert_true(repeated > 0 && repeated < 1);
    assert_true(number_of(json_object_get(json, "experts"), "repeated_by_even_router") == 0.4);
    json_decref(json);
    json = report(bench(w.dir, "-p", "0", "-n", "1", "--limits", "0.05", "--path", "ref", "--json"));
    assert_true(json_is_null(json_object_get(json_object_get(json, "load"), "cold")));
    assert_null(json_object_get(json, "experts"));
    assert_true(number_of(run_of(json, "decode", 0), "seconds_by_layers") > 0);
    json_decref(json);
    whole_close(&w);
}

static void test_computed_depth(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    json_t *json = report(bench(w.dir, "-p", "3", "-n", "2", "-d", "20", "-r", "1", "--limits",
                                "0.05", "--patience", "1000", "--numerics", "exact", "--json"));
    assert_string_equal(text_of(run_of(json, "prefill", 20), "state"), "computed");
    assert_string_equal(text_of(run_of(json, "decode", 20), "state"), "computed");
    json_decref(json);
    whole_close(&w);
}

/* The reference does not know its parts; it has no choice of threads. */
static void test_reference(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    json_t *json = report(bench(w.dir, "-p", "0", "-n", "2", "-d", "0,50", "--limits", "0.05",
                                "--patience", "0", "--path", "ref", "--json"));
    assert_int_equal(json_array_size(json_object_get(json, "runs")), 2);
    const json_t *run = run_of(json, "decode", 50);
    assert_string_equal(text_of(run, "state"), "synthetic");
    assert_true(json_is_null(json_object_get(run, "components")));
    assert_int_equal((int)number_of(json_object_get(json, "limits"), "compared_with_threads"), 1);
    json_decref(json);
    whole_close(&w);
}

static void test_tables(void **state)
{
    static const char *const said[] = {
        "reading, GB/s", "prefill of 4 tokens at depth 0, nothing before",
        "decode of 2 tokens at depth 100, SYNTHETIC entries before", "attention projections",
        "core attention", "reading at the end", "released; path fast", "loading: ", "experts: ",
        "the layers, no head", "growth of prefill over depth 0", "growth of decode over depth 0"};
    (void)state;
    whole w;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    command_result r = bench(w.dir, "-p", "4", "-n", "2", "-d", "0,100", "-r", "1", "--limits",
                             "0.05", "--patience", "0");
    assert_int_equal(r.code, 0);
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (strstr(r.out, said[i]) == NULL)
            fail_msg("'%s' is not in: %s", said[i], r.out);
    command_free(&r);
    r = bench(w.dir, "-p", "0", "-n", "1", "--path", "ref", "--limits", "0.05");
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "components: not known to path ref"));
    command_free(&r);
    whole_close(&w);
}

static void refused(command_result r, const char *why)
{
    if (r.code != 2 || r.out[0] != '\0' || strstr(r.err, why) == NULL)
        fail_msg("exit code %d, expected 2 with '%s': %s%s", r.code, why, r.out, r.err);
    command_free(&r);
}

static void test_refusals(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    refused(bench("--json"), "expected MODEL_DIR");
    refused(bench(w.dir, w.dir), "expected one MODEL_DIR, got a second");
    refused(bench("nowhere", "--json"), "nowhere/config.json");
    refused(bench(w.dir, "--path", "slow"), "--path: expected ref or fast");
    refused(bench(w.dir, "--path", "ref", "--isa", "avx2"), "--isa: path ref computes in one way");
    refused(bench(w.dir, "--path", "ref", "--threads", "2"), "--threads: path ref computes in one");
    refused(bench(w.dir, "--isa", "mmx", "--json"), "--isa: instruction set 'mmx'");
    refused(bench(w.dir, "--threads", "two"), "--threads: expected a number");
    refused(bench(w.dir, "--numerics", "rough"), "--numerics: expected exact or released");
    refused(bench(w.dir, "-p", "-1"), "-p: expected a number from 0");
    refused(bench(w.dir, "-n", "1x"), "-n: expected a number from 0");
    refused(bench(w.dir, "-r", "0"), "-r: expected a number from 1");
    refused(bench(w.dir, "-d", "0,,5"), "-d: expected a number from 0");
    refused(bench(w.dir, "-d", "0,-5"), "-d: expected a number from 0");
    refused(bench(w.dir, "-d", "99999999999999999999"), "-d: expected a number from 0");
    refused(bench(w.dir, "--patience", "long"), "--patience: expected seconds");
    refused(bench(w.dir, "--limits", "-1"), "--limits: expected seconds");
    refused(bench(w.dir, "--vectors", "."), "--vectors needs --operators");
    refused(bench(w.dir, "-p", "0", "-n", "0", "--numerics", "exact", "--limits", "0.02", "--json",
                  "--operators", "--vectors", "none"), "none: no such directory of vector files");
    refused(bench(w.dir, "-p", "0", "-n", "0", "--numerics", "exact", "--limits", "0.02", "--json",
                  "--operators", "--vectors", "."), ".: no vector file could be read");
    refused(bench(w.dir, "--numerics", "exact", "-p", "2", "-n", "1", "-d", "0,998"),
            "-d 998: with the 2 tokens after it that are 1000 positions, expected at most "
            "max_position_embeddings, 999");
    refused(bench(w.dir, "--numerics", "exact", "-p", "1000", "-n", "0"), "-d 0: with the 1000 tokens");
    whole_close(&w);
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, CHANGES("max_position_embeddings", "2147483647"));
    refused(bench(w.dir, "-p", "1", "-n", "0", "-d", "2147483646", "--patience", "0", "--limits",
                  "0.02", "--numerics", "exact", "--json"), "the state of 21474836");
    whole_close(&w);
}

/* ---- operators ---- */

static const json_t *operator_of(const json_t *json, const char *name)
{
    size_t i;
    const json_t *one;
    json_array_foreach(json_object_get(json, "operators"), i, one)
        if (strcmp(text_of(one, "operator"), name) == 0)
            return one;
    fail_msg("no operator %s", name);
    return NULL;
}

static json_t *bench_golden(const whole *w, const char *path)
{
    return report(bench(w->dir, "-p", "0", "-n", "0", "--limits", "0.02", "--numerics", "exact",
                        "--json", "--operators", "--vectors", "golden", "--path", path));
}

static void test_operators(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    golden_write("golden");
    json_t *json = bench_golden(&w, "fast");
    assert_int_equal(json_array_size(json_object_get(json, "operators")),
                     (size_t)dsv4_operator_count);
    const json_t *one = operator_of(json, "rmsnorm");
    assert_int_equal((int)number_of(one, "cases"), 2);
    assert_int_equal((int)number_of(one, "failed"), 0);
    assert_string_equal(text_of(one, "sizes"), "x [4, 20], weight [20]"); /* the model's width */
    assert_true(number_of(one, "seconds") > 0 && number_of(one, "ref_seconds") > 0);
    assert_true(fabs(number_of(one, "ratio") * number_of(one, "seconds") /
                     number_of(one, "ref_seconds") - 1) < 1e-4);
    assert_true(number_of(operator_of(json, "gate_score"), "seconds") > 0);
    one = operator_of(json, "expert");
    assert_true(json_is_null(json_object_get(one, "seconds")));
    assert_string_equal(text_of(one, "not_timed"), "no golden cases");
    json_decref(json);

    json = bench_golden(&w, "ref");
    one = operator_of(json, "rmsnorm");
    assert_true(number_of(one, "seconds") > 0 && json_is_null(json_object_get(one, "ratio")));
    json_decref(json);
    whole_close(&w);
}

/* An operator that gives other answers than expected has no time. */
static void test_failing_operator(void **state)
{
    (void)state;
    whole w;
    dsv4_case_file file;
    dsv4_error err = {""};
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    golden_write("golden");
    assert_int_equal(dsv4_case_file_read(&file, "golden/rmsnorm_exact.h5", &err), 0);
    ((double *)file.c[1].out[0].data)[0] += 1;
    remove("golden/rmsnorm_exact.h5");
    assert_int_equal(dsv4_case_file_write("golden/rmsnorm_exact.h5", file.c, file.count, &err), 0);
    json_t *json = bench_golden(&w, "fast");
    const json_t *one = operator_of(json, "rmsnorm");
    assert_int_equal((int)number_of(one, "failed"), 1);
    assert_true(json_is_null(json_object_get(one, "seconds")));
    assert_non_null(strstr(text_of(one, "not_timed"), file.c[1].name));
    assert_true(number_of(operator_of(json, "rope"), "seconds") > 0);
    json_decref(json);
    dsv4_case_file_free(&file);
    whole_close(&w);
}

/* The time of an operator is less than that of its answer, which is the same. */
static void test_time_inside(void **state)
{
    (void)state;
    dsv4_case_file file;
    dsv4_error err = {""};
    double inside = 0;
    golden_write("golden");
    assert_int_equal(dsv4_case_file_read(&file, "golden/rmsnorm_exact.h5", &err), 0);
    dsv4_case with = {.op = file.c[0].op}, without = {.op = file.c[0].op};
    assert_int_equal(fast->answer(NULL, &file.c[0], &without, &err), 0);
    assert_int_equal(fast->answer(&inside, &file.c[0], &with, &err), 0);
    assert_true(inside > 0 && inside < 1);
    assert_memory_equal(with.out[0].data, without.out[0].data,
                        (size_t)with.out[0].count * sizeof(float));
    dsv4_case_free(&with);
    dsv4_case_free(&without);
    dsv4_case_file_free(&file);
}

/* Every operator of the repository's vectors can be asked at a model's sizes. */
static void test_all_operators(void **state)
{
    (void)state;
    size_t i, timed = 0;
    const json_t *one;
    whole w;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    json_t *json = report(bench(w.dir, "-p", "0", "-n", "0", "--limits", "0.02", "--json",
                                "--operators"));
    json_array_foreach(json_object_get(json, "operators"), i, one) {
        const char *name = text_of(one, "operator");
        timed += json_is_number(json_object_get(one, "seconds"));
        if (json_is_null(json_object_get(one, "seconds")) && strcmp(name, "forward") != 0)
            fail_msg("%s has no time: %s", name, text_of(one, "not_timed"));
    }
    assert_int_equal(timed, dsv4_operator_count - 1 + 1); /* forward; the scan */
    assert_string_equal(text_of(operator_of(json, "muon"), "numerics"), "exact");
    size_t scans = 0;
    json_array_foreach(json_object_get(json, "operators"), i, one) {
        const json_t *scan = json_object_get(one, "scan");
        if (json_is_null(scan))
            continue;
        scans++;
        assert_string_equal(text_of(one, "operator"), "indexer_score");
        assert_int_equal((int)number_of(scan, "keys"), DSV4_SCANNED_KEYS);
        assert_true(fabs(number_of(scan, "seconds_per_key") * DSV4_SCANNED_KEYS /
                         number_of(one, "seconds") - 1) < 1e-4);
        assert_true(number_of(scan, "flop_fraction") > 0);
    }
    assert_int_equal(scans, 1);
    json_decref(json);
    whole_close(&w);
}

/* Texts with a name in them are there, whatever bytes the name has. */
static void test_names_of_any_bytes(void **state)
{
    (void)state;
    whole w;
    whole_open(&w, DSV4_EXACT, MAKE_EXACT, NULL);
    golden_write("gold\xe9");
    FILE *damaged = fopen("gold\xe9/rmsnorm_exact.h5", "w");
    assert_non_null(damaged);
    fclose(damaged);
    json_t *json = report(bench(w.dir, "-p", "0", "-n", "0", "--limits", "0.02", "--numerics", "exact",
                                "--json", "--operators", "--vectors", "gold\xe9"));
    const char *why = text_of(operator_of(json, "rmsnorm"), "not_timed");
    assert_ptr_equal(strstr(why, "gold\xef\xbf\xbd/rmsnorm_exact.h5: "), why);
    json_decref(json);
    assert_int_equal(rename(w.dir, "mod\xe9l"), 0);
    refuse_direct_reading = true;
    command_result r = bench("mod\xe9l", "-p", "0", "-n", "0", "--numerics", "exact", "--limits",
                             "0.02", "--cold", "--json");
    refuse_direct_reading = false;
    assert_int_equal(rename("mod\xe9l", w.dir), 0);
    json = report(r);
    const json_t *cold = json_object_get(json_object_get(json, "load"), "cold");
    why = text_of(cold, "direct_refused");
    assert_ptr_equal(strstr(why, "mod\xef\xbf\xbdl/model.safetensors: direct reading"), why);
    json_decref(json);
    whole_close(&w);
}

/* ---- work ---- */

static void test_work(void **state)
{
    (void)state;
    whole w;
    dsv4_work work;
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    /* Of the geometry in whole.c: CSA layers 1 and 3 see (t + 1) / 4 entries and take 3. */
    const dsv4_storage storage = dsv4_storage_of(fast, &w.model.config, DSV4_RELEASED);
    assert_true(storage.entry == 64 + 1 + 2 * 16); /* codes, a scale, bf16 */
    assert_true(storage.key == 32 / 2 + 1);
    assert_true(storage.window >= 4 * 80 && storage.window < 4 * 80 + 64);
    dsv4_work_of(&w.model, &storage, 40, 1, 1, &work);
    const double heads = 4, d = 80;
    assert_true(work.part[DSV4_SWA][DSV4_PART_CORE].flops == 4 * heads * d * 7);
    assert_true(work.part[DSV4_CSA][DSV4_PART_CORE].flops == 2 * 4 * heads * d * (7 + 3));
    assert_true(work.part[DSV4_HCA][DSV4_PART_CORE].flops == 4 * heads * d * (7 + 41 / 8));
    assert_true(work.part[DSV4_CSA][DSV4_PART_CORE].cache ==
                2 * (7 * storage.window + 3 * storage.entry));
    assert_true(work.part[DSV4_CSA][DSV4_PART_INDEXER].cache == 2 * (41 / 4) * storage.key);
    /* Two of five experts and the shared one, FP4 and FP8; three matrices of 128 x 128. */
    double fp4 = 3 * (128 * 64 + 128 * 4), fp8 = 3 * (128 * 128 + 1);
    assert_true(fabs(work.part[DSV4_HCA][DSV4_PART_EXPERTS].weights - (2 * fp4 + fp8)) < 1e-6);
    assert_true(work.part[DSV4_HCA][DSV4_PART_EXPERTS].flops == 3 * 3 * 2.0 * 128 * 128);
    assert_true(work.part[DSV4_SWA][DSV4_PART_PROJECTIONS].flops ==
                2.0 * (128 * 128 + 320 * 128 + 80 * 128 + 2 * 64 * 160 + 128 * 2 * 64));
    dsv4_amount head = work.part[DSV4_OUTSIDE][DSV4_PART_HEAD];
    assert_true(head.flops == 2.0 * 31 * 128 + 2.0 * 2 * 2 * 128);

    /* From the beginning, and without logits: tokens 0..3 see 1 + 2 + 3 + 4 rows of the window. */
    dsv4_work_of(&w.model, &storage, 0, 4, 0, &work);
    assert_true(work.part[DSV4_SWA][DSV4_PART_CORE].flops == 4 * heads * d * 10);
    assert_true(work.part[DSV4_CSA][DSV4_PART_CORE].flops == 2 * 4 * heads * d * (10 + 1));
    assert_true(work.part[DSV4_SWA][DSV4_PART_CORE].cache == 0);
    assert_true(work.part[DSV4_OUTSIDE][DSV4_PART_HEAD].flops == 0);
    double all = dsv4_work_sum(&work, -1, -1).flops, sum = 0;
    for (int kind = 0; kind < DSV4_PROFILE_KINDS; kind++)
        sum += dsv4_work_sum(&work, kind, -1).flops;
    assert_true(all == sum && all > 0);
    whole_close(&w);
}

/* ---- profiles and states ---- */

/* Logits of a prefill and of three tokens after it. */
static double *pass(const whole *w, const dsv4_path *path, dsv4_profile *profile, int64_t filled,
                    uint64_t seed)
{
    enum { N = 26 };
    int64_t V = w->model.config.vocab_size, *ids = whole_ids(w, N, 3);
    double *logits = dsv4_alloc((size_t)(N * V), sizeof *logits);
    dsv4_error err = {""};
    dsv4_run *run = path->open(&w->model, w->numerics, filled + N, NULL, &err);
    assert_non_null(run);
    if (filled > 0)
        assert_int_equal(path->fill(run, filled, seed, &err), 0);
    if (profile != NULL)
        path->profile(run, profile);
    int status = path->forward(run, ids, N - 3, logits, &err);
    for (int64_t i = N - 3; i < N && status == 0; i++)
        status = path->forward(run, ids + i, 1, logits + i * V, &err);
    if (status != 0)
        fail_msg("%s", err.text);
    path->close(run);
    free(ids);
    return logits;
}

static bool equal(const whole *w, const double *a, const double *b)
{
    return memcmp(a, b, (size_t)(26 * w->model.config.vocab_size) * sizeof *a) == 0;
}

static void test_profile_changes_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        whole w;
        dsv4_profile profile = {{{0}}};
        whole_open(&w, i == 0 ? DSV4_EXACT : DSV4_RELEASED, MAKE_MIXED, NULL);
        double *without = pass(&w, fast, NULL, 0, 0), *with = pass(&w, fast, &profile, 0, 0);
        assert_true(equal(&w, without, with));
        assert_true(profile.seconds[DSV4_CSA][DSV4_PART_INDEXER] > 0);
        assert_true(profile.seconds[DSV4_OUTSIDE][DSV4_PART_HEAD] > 0);
        assert_true(profile.seconds[DSV4_HCA][DSV4_PART_INDEXER] == 0);
        assert_true(profile.seconds[DSV4_OUTSIDE][DSV4_PART_EXPERTS] == 0);
        free(without);
        free(with);
        whole_close(&w);
    }
}

static void test_filled_states(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        const dsv4_path *path = i < 2 ? fast : ref;
        whole w;
        whole_open(&w, i % 2 == 0 ? DSV4_EXACT : DSV4_RELEASED, MAKE_MIXED, NULL);
        double *one = pass(&w, path, NULL, 101, 1), *again = pass(&w, path, NULL, 101, 1);
        double *other = pass(&w, path, NULL, 101, 2);
        assert_true(equal(&w, one, again));
        assert_false(equal(&w, one, other));
        free(one);
        free(again);
        free(other);
        dsv4_error err = {""};
        dsv4_run *run = path->open(&w.model, w.numerics, 10, NULL, &err);
        assert_int_equal(path->fill(run, 11, 1, &err), -1);
        assert_string_equal(err.text, "a state of 11 tokens in a run of at most 10");
        err = (dsv4_error){""};
        assert_int_equal(path->fill(run, -1, 1, &err), -1);
        path->close(run);
        whole_close(&w);
    }
}

/* As many entries as that many tokens leave, and such as QDQ leaves. */
static void test_filled_entries(void **state)
{
    (void)state;
    whole w;
    dsv4_error err = {""};
    whole_open(&w, DSV4_RELEASED, MAKE_RELEASED, NULL);
    dsv4_run *run = fast->open(&w.model, w.numerics, 1000, NULL, &err);
    assert_int_equal(fast->fill(run, 1000, 7, &err), 0);
    const fast_state *s = fast_run_state(run);
    assert_int_equal(s->position, 1000);
    assert_int_equal(s->layer[1].compressor.entries.count, 1000 / 4);
    assert_int_equal(s->layer[1].index.entries.count, 1000 / 4);
    assert_int_equal(s->layer[2].compressor.entries.count, 1000 / 8);
    const fast_context c = {.config = &w.model.config, .released = true,
                            .kernels = fast_configured_kernels(), .pool = fast_configured_pool(),
                            .memory = fast_memory_new(), .error = &err};
    float window[7 * 80];
    memcpy(window, s->layer[0].window, sizeof window);
    fast_qdq_kv(&c, window, 7);
    assert_memory_equal(window, s->layer[0].window, sizeof window);
    fast_memory_free(c.memory);
    fast->close(run);
    whole_close(&w);
}

/* ---- limits ---- */

static void test_median(void **state)
{
    (void)state;
    double odd[] = {3, 1, 7, 5, 2}, even[] = {4, 1, 9, 2}, one[] = {6};
    assert_true(dsv4_median(odd, 5) == 3);
    assert_true(odd[0] == 1 && odd[4] == 7);
    assert_true(dsv4_median(even, 4) == 4);
    assert_true(dsv4_median(one, 1) == 6);
    double began = dsv4_now();
    assert_true(dsv4_now() >= began);
}

static void test_limits(void **state)
{
    (void)state;
    dsv4_limits limits;
    dsv4_rate again, matrix;
    dsv4_error err = {""};
    assert_int_equal(dsv4_limits_measure(&limits, 2, 0.05, &err), 0);
    assert_int_equal(limits.threads[0], 1);
    assert_int_equal(limits.threads[1], 2);
    assert_true(limits.count > 0 && limits.matrix < limits.count);
    assert_string_equal(limits.limit[0].level, "portable");
    for (int n = 0; n < 2; n++) {
        assert_true(limits.read[n].median > 0 && limits.read[n].median <= limits.read[n].best);
        for (int i = 0; i < limits.count; i++)
            assert_true(limits.limit[i].rate[n].median > 0 &&
                        limits.limit[i].rate[n].median <= limits.limit[i].rate[n].best);
    }
    assert_null(strstr(limits.limit[limits.matrix].key, "registers"));
    assert_int_equal(dsv4_limits_again(&limits, 1, 0.02, &again, &matrix, &err), 0);
    assert_true(again.median > 0 && again.median <= again.best);
    assert_true(matrix.median > 0 && matrix.median <= matrix.best);
    dsv4_limits_free(&limits);
    dsv4_limits_free(&limits);
}

/* Nothing is left out. */
static void test_reading_kernels(void **state)
{
    enum { WORDS = 4096 };
    (void)state;
    int count;
    uint64_t words[WORDS], sum = 0;
    const fast_limits *const *level = fast_machine_limits(&count);
    for (uint64_t i = 0; i < WORDS; i++)
        sum += words[i] = (i + 1) * 0x9e3779b97f4a7c15;
    for (int i = 0; i < count; i++)
        if (level[i]->read != NULL)
            assert_true(level[i]->read(words, sizeof words) == sum);
}

int main(void)
{
    argp_err_exit_status = 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_operators), /* first, in the directory that has vectors/v1 */
        test_in_scratch(test_report),
        test_in_scratch(test_last_positions),
        cmocka_unit_test(test_growth),
        test_in_scratch(test_loading),
        test_in_scratch(test_cold),
        test_in_scratch(test_computed_depth),
        test_in_scratch(test_reference),
        test_in_scratch(test_tables),
        test_in_scratch(test_refusals),
        test_in_scratch(test_operators),
        test_in_scratch(test_names_of_any_bytes),
        test_in_scratch(test_failing_operator),
        test_in_scratch(test_time_inside),
        cmocka_unit_test(test_work),
        cmocka_unit_test(test_profile_changes_nothing),
        cmocka_unit_test(test_filled_states),
        cmocka_unit_test(test_filled_entries),
        cmocka_unit_test(test_median),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_reading_kernels),
    };
    return cmocka_run_group_tests_name("bench", tests, NULL, NULL) != 0;
}
