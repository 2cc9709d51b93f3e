#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "command.h"
#include "files.h"
#include "golden.h"
#include "host/h5.h"
#include "host/verify.h"

static void expect(command_result result, int code, const char *out, const char *err)
{
    if (result.code != code || (out != NULL && strstr(result.out, out) == NULL) ||
        (err != NULL && strstr(result.err, err) == NULL))
        fail_msg("expected exit code %d, out '%s', err '%s'; got %d\n%s\n%s", code,
                 out != NULL ? out : "", err != NULL ? err : "", result.code, result.out,
                 result.err);
    command_free(&result);
}

#define VERIFY(...) command_call(dsv4_verify_main, "dsv4 verify", __VA_ARGS__)
#define REF(...) VERIFY("--path", "ref", "--vectors", "golden", __VA_ARGS__)
#define FAST(...) VERIFY("--path", "fast", "--vectors", "golden", __VA_ARGS__)

/* ---- engines with mistakes ---- */

static int scaled_rmsnorm(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)context;
    museum_engine engine = {.arithmetic = MUSEUM_BINARY64};
    if (museum_answer(&engine, c, answer, err) != 0)
        return -1;
    if (strcmp(c->op->name, "rmsnorm") == 0)
        for (int64_t i = 0; i < answer->out[0].count; i++)
            ((double *)answer->out[0].data)[i] *= 1.0 + 0.01 * (double)(i % 3);
    return 0;
}

/* Verifies an engine with the mistakes named, in float; "unknown" is one that the museum has not.
 * The report goes to report.json. */
static int verify_mistaken(const char *vectors, int argc, char **argv)
{
    museum_engine mistakes = {.arithmetic = MUSEUM_BINARY32, .seed = 5};
    dsv4_engine engine = {.name = "mistaken", .context = &mistakes, .answer = museum_answer};
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "unknown") == 0)
            engine.answer = scaled_rmsnorm;
        else if (museum_find(argv[i]) != BUG_NONE)
            museum_add_bug(&mistakes, museum_find(argv[i]));
        else
            return 3;
    const dsv4_verify_options options = {.vectors = vectors, .numerics = {true, true}};
    dsv4_report report = {.engine = "mistaken", .tolerances = "fp32", .numerics = "both"};
    snprintf(report.vectors, sizeof report.vectors, "%s", vectors);
    dsv4_error err = {""};
    int result = dsv4_verify(&options, &engine, &report, &err) != 0 ||
                 dsv4_report_json(&report, "report.json", &err) != 0 ? 2 : 0;
    if (result == 0)
        result = dsv4_report_count(&report, NULL, DSV4_FAILED) > 0;
    dsv4_report_free(&report);
    return result;
}

static int mistaken_main(int argc, char **argv)
{
    return verify_mistaken("golden", argc, argv);
}

static int mistaken_head_main(int argc, char **argv)
{
    return verify_mistaken("golden-head", argc, argv);
}

/* Every failure of `op` has this diagnosis; returns how many there are. */
static size_t diagnosed(const char *op, const char *diagnosis)
{
    json_t *root = json_load_file("report.json", 0, NULL), *failure;
    assert_non_null(root);
    size_t i, count = 0;
    json_array_foreach(json_object_get(root, "failures"), i, failure) {
        if (strcmp(json_string_value(json_object_get(failure, "operator")), op) != 0)
            continue;
        assert_string_equal(json_string_value(json_object_get(failure, "diagnosis")), diagnosis);
        count++;
    }
    json_decref(root);
    return count;
}

static void diagnosis_test(void **state)
{
    (void)state;
    expect(command_call(mistaken_main, "mistaken"), 0, "5 cases: 5 passed", NULL);
    expect(command_call(mistaken_main, "mistaken", "rope-half-split"), 1,
           "equals rope-half-split: ", NULL);
    assert_int_equal(diagnosed("rope", "rope-half-split"), 1);
    assert_int_equal(diagnosed("rmsnorm", ""), 0);
    expect(command_call(mistaken_main, "mistaken", "rmsnorm-eps-outside-root"), 1,
           "rmsnorm-eps-outside-root explains 3 failures, first in rmsnorm", NULL);
    assert_int_equal(diagnosed("rmsnorm", "rmsnorm-eps-outside-root"), 3);
    expect(command_call(mistaken_main, "mistaken", "gate-bias-in-weight"), 1,
           "FAIL gate_score/exact-small route_weight[", NULL);
    assert_int_equal(diagnosed("gate_score", "gate-bias-in-weight"), 1);
}

/* Two mistakes in two operators, and two in one. */
static void two_mistakes_test(void **state)
{
    (void)state;
    expect(command_call(mistaken_main, "mistaken", "rope-half-split", "rmsnorm-weight-plus-one"), 1,
           "Look at rmsnorm first: spec/rmsnorm.md", NULL);
    assert_int_equal(diagnosed("rope", "rope-half-split"), 1);
    assert_int_equal(diagnosed("rmsnorm", "rmsnorm-weight-plus-one"), 3);
    expect(command_call(mistaken_main, "mistaken", "rmsnorm-eps-outside-root",
                        "rmsnorm-weight-plus-one"), 1,
           "equals rmsnorm-eps-outside-root + rmsnorm-weight-plus-one\n", NULL);
    assert_int_equal(diagnosed("rmsnorm", "rmsnorm-eps-outside-root + rmsnorm-weight-plus-one"), 3);
}

static dsv4_case head_case(void)
{
    enum { T = 3, N = 2, D = 8, V = 5 };
    static const struct { const char *name; int rank; int64_t shape[3]; } ins[] = {
        {"h", 3, {T, N, D}}, {"hc_head_fn", 2, {N, N * D}}, {"hc_head_base", 1, {N}},
        {"hc_head_scale", 1, {1}}, {"norm.weight", 1, {D}}, {"head.weight", 2, {V, D}},
    };
    dsv4_case c = golden_case("head", "small", DSV4_EXACT);
    dsv4_case_set(&c, "rms_norm_eps", 1e-2);
    dsv4_case_set(&c, "hc_mult", N);
    dsv4_case_set(&c, "hc_eps", 1e-3);
    for (unsigned i = 0; i < sizeof ins / sizeof *ins; i++)
        golden_fill(dsv4_case_add_in(&c, ins[i].name, DSV4_FORMAT_BF16, ins[i].rank, ins[i].shape),
                    20 + i);
    golden_answer(&c);
    return c;
}

/* An operator whose parts are wrong and which is wrong itself: what was found in the parts, and one
 * more. */
static void mistakes_of_parts_test(void **state)
{
    (void)state;
    dsv4_error err = {""};
    dsv4_case head = head_case();
    golden_write("golden-head");
    assert_int_equal(dsv4_case_file_write("golden-head/head_exact.h5", &head, 1, &err), 0);
    dsv4_case_free(&head);
    expect(command_call(mistaken_head_main, "mistaken", "rmsnorm-eps-outside-root",
                        "rmsnorm-weight-plus-one"), 1, NULL, NULL);
    assert_int_equal(diagnosed("head", "rmsnorm-eps-outside-root + rmsnorm-weight-plus-one"), 1);
    expect(command_call(mistaken_head_main, "mistaken", "rmsnorm-eps-outside-root",
                        "rmsnorm-weight-plus-one", "head-mean-of-streams"), 1,
           "head-mean-of-streams explains 1 failure, first in head", NULL);
    assert_int_equal(diagnosed("head", "rmsnorm-eps-outside-root + rmsnorm-weight-plus-one + "
                                       "head-mean-of-streams"), 1);
    json_t *root = json_load_file("report.json", 0, NULL);
    json_t *last = json_array_get(json_object_get(root, "mistakes"), 2);
    assert_string_equal(json_string_value(json_object_get(last, "id")), "head-mean-of-streams");
    assert_int_equal(json_integer_value(json_object_get(last, "failures")), 1);
    json_decref(root);
}

static void unknown_mistake_test(void **state)
{
    (void)state;
    expect(command_call(mistaken_main, "mistaken", "unknown"), 1, "    no known bug\n", NULL);
    assert_int_equal(diagnosed("rmsnorm", ""), 3);
    expect(command_call(mistaken_main, "mistaken", "unknown"), 1,
           "rmsnorm: 3 failures without a known cause", NULL);
}

/* ---- the command ---- */

static void reference_test(void **state)
{
    (void)state;
    expect(REF("--verbose"), 0, "\n5 cases: 5 passed, 0 failed, 0 skipped\n", NULL);
    expect(REF("--verbose"), 0, "  passed  rmsnorm/exact-b  0  (a case of the tests)", NULL);
    expect(REF("--numerics", "exact"), 0, "4 cases: 4 passed", NULL);
    expect(REF("--numerics", "released"), 0, "1 cases: 1 passed", NULL);
    expect(REF("--op", "rmsnorm"), 0, "3 cases: 3 passed", NULL);
    expect(REF("--op", "r*"), 0, "4 cases: 4 passed", NULL);
    expect(REF("--op", "*-a"), 0, "2 cases: 2 passed", NULL);
    expect(REF("--op", "rmsnorm/exact-*"), 0, "2 cases: 2 passed", NULL);
    expect(REF("--op", "rope", "--op", "gate_score/exact-small"), 0, "2 cases: 2 passed", NULL);
    expect(REF("--op", "rop"), 2, NULL, "no case matches --op");
    expect(REF("--op", "rope/nothing"), 2, NULL, "no case matches --op");
    expect(VERIFY("--list", "--vectors", "golden"), 0, "  rmsnorm/exact-b  a case of the tests\n",
           NULL);
    expect(VERIFY("--list", "--vectors", "golden", "--op", "zzz"), 2, NULL, "no cases to list");
}

static void arguments_test(void **state)
{
    (void)state;
    expect(VERIFY("--vectors", "golden"), 2, NULL, "got none");
    expect(REF("--exec", "true"), 2, NULL, "got several");
    expect(REF("--path", "ref"), 2, NULL, "only one can be verified");
    expect(VERIFY("--path", "fast-as-light", "--vectors", "golden"), 2, NULL,
           "no path 'fast-as-light'; there is: ref or fast");
    expect(REF("--precision", "fp8"), 2, NULL, "expected fp32 or bf16, got 'fp8'");
    expect(REF("--numerics", "fp8"), 2, NULL, "expected exact, released or both, got 'fp8'");
    expect(REF("--timeout", "0"), 2, NULL, "--timeout");
    expect(REF("--timeout", "nan"), 2, NULL, "--timeout");
    expect(REF("word"), 2, NULL, "unexpected argument 'word'");
    expect(VERIFY("--path", "ref", "--vectors", "nowhere"), 2, NULL, "nowhere: no such directory");
    mkdir("empty", 0777);
    expect(VERIFY("--path", "ref", "--vectors", "empty"), 2, NULL, "no vector file could be read");
}

/* How a path computes, which the report says. Tolerances of the tier count. */
static void how_test(void **state)
{
    (void)state;
    expect(FAST("--threads", "2"), 0, "5 cases: 5 passed, 0 failed, 0 skipped", NULL);
    expect(FAST("--deterministic"), 0, "5 cases: 5 passed", NULL);
    expect(FAST("--isa", "portable", "--threads", "2"), 0, "path fast (portable, 2 threads)\n",
           NULL);
    expect(FAST("--isa", "portable", "--threads", "1"), 0, "path fast (portable, 1 thread)\n",
           NULL);
    expect(FAST("--isa", "amx"), 0, ", tolerances of fp32\n", NULL);
    expect(FAST("--precision", "bf16"), 0, ", tolerances of bf16\n", NULL);
    expect(REF("--op", "rope"), 0, "path ref\n", NULL);
    expect(REF("--op", "rope"), 0, ", tolerances of identical results", NULL);
}

static void environment_test(void **state)
{
    (void)state;
    setenv("DSV4_ISA", "portable", 1);
    expect(FAST("--threads", "3"), 0, "path fast (portable, 3 threads)\n", NULL);
    setenv("DSV4_ISA", "fast-as-light", 1);
    expect(FAST("--threads", "3"), 2, NULL,
           "dsv4 verify: DSV4_ISA: instruction set 'fast-as-light'");
    expect(FAST("--isa", "portable"), 0, "path fast (portable, ", NULL);
    expect(REF("--op", "rope"), 0, "path ref\n", NULL);
    unsetenv("DSV4_ISA");
}

static void bad_how_test(void **state)
{
    (void)state;
    expect(FAST("--isa", "avx3"), 2, NULL,
           "dsv4 verify: --isa: instruction set 'avx3': expected portable, avx2, avx512, "
           "avx512bf16 or amx\n");
    expect(FAST("--isa", ""), 2, NULL, "--isa: expected a level of instructions, got ''");
    expect(FAST("--threads", "0"), 2, NULL, "--threads: expected a number from 1 to 1024, got '0'");
    expect(FAST("--threads", "-1"), 2, NULL, "got '-1'");
    expect(FAST("--threads", "1025"), 2, NULL, "got '1025'");
    expect(FAST("--threads", "2.5"), 2, NULL, "got '2.5'");
    expect(FAST("--threads", "99999999999999999999"), 2, NULL, "got '99999999999999999999'");
    expect(FAST("--threads", ""), 2, NULL, "got ''");
    expect(REF("--isa", "portable"), 2, NULL,
           "dsv4 verify: --isa: path ref computes in one way only\n");
    expect(REF("--threads", "2", "--isa", "avx2"), 2, NULL, "--threads: path ref");
    expect(REF("--deterministic"), 2, NULL, "--deterministic: path ref");
    expect(VERIFY("--candidate", "golden/rope_exact.h5", "--deterministic"), 2, NULL,
           "--deterministic is for --path only");
    expect(VERIFY("--exec", "true", "--threads", "2"), 2, NULL, "--threads is for --path only");
    expect(VERIFY("--plugin", "a.so", "--isa", "avx2"), 2, NULL, "--isa is for --path only");
    expect(VERIFY("--list", "--isa", "avx2"), 2, NULL, "--isa is for --path only");
}

static void find_vectors_test(void **state)
{
    (void)state;
    setenv("DSV4_VECTORS", "golden", 1);
    expect(VERIFY("--path", "ref"), 0, "vectors golden,", NULL);
    expect(VERIFY("--path", "ref", "--vectors", "nowhere"), 2, NULL, "nowhere");
    unsetenv("DSV4_VECTORS");
    mkdir("vectors", 0777);
    assert_int_equal(rename("golden", "vectors/v1"), 0);
    expect(VERIFY("--path", "ref"), 0, "vectors vectors/v1,", NULL);
    assert_int_equal(rename("vectors/v1", "golden"), 0);
}

static void report_files_test(void **state)
{
    (void)state;
    expect(VERIFY("--vectors", "golden", "--candidate", "golden/rope_exact.h5", "--json", "r.json",
                  "--junit", "r.xml"), 0, NULL, NULL);
    json_t *root = json_load_file("r.json", 0, NULL);
    assert_non_null(root);
    assert_int_equal(json_integer_value(json_object_get(root, "cases")), 5);
    assert_int_equal(json_integer_value(json_object_get(root, "passed")), 1);
    assert_int_equal(json_integer_value(json_object_get(root, "failed")), 0);
    assert_int_equal(json_integer_value(json_object_get(root, "skipped")), 4);
    assert_int_equal(json_array_size(json_object_get(root, "operators")), 3);
    assert_int_equal(json_array_size(json_object_get(root, "failures")), 0);
    json_t *row = json_array_get(json_object_get(root, "operators"), 1);
    assert_string_equal(json_string_value(json_object_get(row, "operator")), "rope");
    assert_int_equal(json_integer_value(json_object_get(row, "passed")), 1);
    json_decref(root);
    size_t size;
    char *xml = files_read("r.xml", &size);
    assert_non_null(
        strstr(xml, "<testsuites name=\"dsv4 verify\" tests=\"5\" failures=\"0\" errors=\"0\" "
                    "skipped=\"4\">"));
    assert_non_null(strstr(xml, "<testcase classname=\"dsv4.gate_score\" name=\"exact-small\""));
    free(xml);
    expect(REF("--json", "nowhere/r.json"), 2, NULL, "nowhere/r.json: cannot write");
    expect(REF("--junit", "nowhere/r.xml"), 2, NULL, "nowhere/r.xml: cannot write");

    expect(VERIFY("--vectors", "golden", "--exec", "echo '<&\">' {in} {out}; exit 5", "--json",
                  "r.json", "--junit", "r.xml"),
           1, NULL, NULL);
    root = json_load_file("r.json", 0, NULL);
    json_t *failure = json_array_get(json_object_get(root, "failures"), 0);
    assert_string_equal(json_string_value(json_object_get(failure, "operator")), "rmsnorm");
    assert_string_equal(json_string_value(json_object_get(failure, "case")), "exact-a");
    assert_string_equal(json_string_value(json_object_get(failure, "diagnosis")), "");
    assert_string_equal(json_string_value(json_object_get(failure, "message")),
                        "the command exited with status 5");
    assert_true(json_is_null(json_object_get(failure, "index")));
    json_decref(root);
    xml = files_read("r.xml", &size);
    assert_non_null(strstr(xml, "failures=\"5\""));
    assert_non_null(strstr(xml, "<failure message=\"the command exited with status 5\">"));
    free(xml);

    mkdir("<&>", 0777); /* where the output is expected: it is part of the message */
    setenv("TMPDIR", "<&>", 1);
    expect(VERIFY("--vectors", "golden", "--exec", "cp {in} {out}; echo > {out}", "--junit", "r.xml"),
           1, "<&>/dsv4-verify-", NULL);
    unsetenv("TMPDIR");
    xml = files_read("r.xml", &size);
    assert_non_null(strstr(xml, "message=\"&lt;&amp;&gt;/dsv4-verify-"));
    free(xml);
}

/* ---- the vector files ---- */

static void make_manifest(const char *command)
{
    assert_int_equal(system("cd golden && sha256sum *.h5 > MANIFEST"), 0);
    if (command != NULL)
        assert_int_equal(system(command), 0);
}

static void manifest_test(void **state)
{
    (void)state;
    make_manifest(NULL);
    expect(REF("--op", "rope"), 0, "1 cases: 1 passed", NULL);
    make_manifest("sed -i 's/^[0-9a-f]\\{4\\}/0000/' golden/MANIFEST");
    expect(REF("--op", "rope"), 1, "FAIL manifest: rope_exact.h5: sha256 is ", NULL);
    expect(REF("--op", "rope"), 1, "1 cases: 1 passed, 0 failed, 0 skipped; 4 of the vector files",
           NULL);
    make_manifest("echo \"$(printf %064d 0)  gone.h5\" >> golden/MANIFEST");
    expect(REF("--op", "rope", "--json", "r.json", "--junit", "r.xml"), 1,
           "FAIL manifest: gone.h5: listed in MANIFEST, but missing", NULL);
    size_t size;
    char *xml = files_read("r.xml", &size), *json = files_read("r.json", &size);
    assert_non_null(strstr(xml, "<testsuite name=\"manifest\" tests=\"1\" failures=\"1\""));
    assert_non_null(strstr(json, "\"file\": \"gone.h5\""));
    free(xml);
    free(json);
    make_manifest("grep -v rope golden/MANIFEST > m; mv m golden/MANIFEST");
    expect(REF("--op", "rope"), 0, "note: rope_exact.h5 is not listed in MANIFEST", NULL);
    make_manifest("echo nonsense >> golden/MANIFEST");
    expect(REF("--op", "rope"), 1, "FAIL manifest: MANIFEST: a line is not", NULL);
    make_manifest("echo \"$(printf %064d 0)  ../rope.h5\" >> golden/MANIFEST");
    expect(REF("--op", "rope"), 1, "FAIL manifest: MANIFEST: a line is not", NULL);
    make_manifest(": > golden/MANIFEST");
    expect(REF("--op", "rope"), 1, "FAIL manifest: MANIFEST: lists no file", NULL);
    remove("golden/MANIFEST");
}

static void damaged_vectors_test(void **state)
{
    (void)state;
    mkdir("bad", 0777);
    files_copy("golden", "bad");
    files_write_text("bad", "rope_exact.h5", "not HDF5");
    expect(VERIFY("--path", "ref", "--vectors", "bad"), 1, "FAIL manifest: rope_exact.h5: ", NULL);
    expect(VERIFY("--path", "ref", "--vectors", "bad"), 1, "4 cases: 4 passed", NULL);
    expect(VERIFY("--path", "ref", "--vectors", "bad", "--op", "rope"), 2,
           "FAIL manifest: rope_exact.h5", "no case matches");
    size_t size;
    char *bytes = files_read("golden/rmsnorm_exact.h5", &size);
    files_write("bad", "rope_exact.h5", bytes, size);
    free(bytes);
    expect(VERIFY("--path", "ref", "--vectors", "bad"), 1, "another operator or contract", NULL);
}

static int enter(void **state)
{
    int result = scratch_enter(state);
    unsetenv("DSV4_VECTORS");
    unsetenv("DSV4_ISA");
    golden_write("golden");
    return result;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(diagnosis_test),       cmocka_unit_test(two_mistakes_test),
       cmocka_unit_test(mistakes_of_parts_test),
        cmocka_unit_test(unknown_mistake_test), cmocka_unit_test(reference_test),
        cmocka_unit_test(arguments_test),       cmocka_unit_test(find_vectors_test),
        cmocka_unit_test(how_test),             cmocka_unit_test(environment_test),
        cmocka_unit_test(bad_how_test),
        cmocka_unit_test(report_files_test),    cmocka_unit_test(manifest_test),
        cmocka_unit_test(damaged_vectors_test),
    };
    return cmocka_run_group_tests_name("verify", tests, enter, scratch_leave) != 0;
}
