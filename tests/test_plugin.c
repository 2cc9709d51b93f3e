#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "command.h"
#include "files.h"
#include "golden.h"
#include "host/verify.h"

/* An engine that answers rmsnorm, and misbehaves in its first case as it was compiled to. */
static const char source[] =
    "#include \"dsv4_plugin.h\"\n"
    "#include <math.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
    "#ifndef VERSION\n#define VERSION DSV4_PLUGIN_VERSION\n#endif\n"
    "#ifndef NAMELESS\nconst char *dsv4_plugin_name(void) { return \"test engine\"; }\n#endif\n"
    "const char *dsv4_plugin_error(void) { return \"out of luck\"; }\n"
    "int dsv4_plugin_version(void) { return VERSION; }\n"
    "static int misbehave(struct dsv4_plugin_call *call, double *y)\n"
    "{ (void)call, (void)y; MISDEED; }\n"
    "int dsv4_plugin_run(struct dsv4_plugin_call *call)\n"
    "{\n"
    "    struct dsv4_plugin_array *out = dsv4_plugin_out(call, \"y\");\n"
    "    if (strcmp(call->op, \"rmsnorm\") != 0 || call->size != sizeof *call ||\n"
    "        call->checkpoint != NULL || dsv4_plugin_in(call, \"nothing\") != NULL)\n"
    "        return DSV4_PLUGIN_NOT_OFFERED;\n"
    "    puts(\"noise\");\n"
    "    if (strcmp(call->case_name, \"exact-a\") == 0)\n"
    "        return misbehave(call, (double *)out->data);\n"
    "    const struct dsv4_plugin_array *in = dsv4_plugin_in(call, \"x\");\n"
    "    const float *x = dsv4_plugin_floats(call, \"x\");\n"
    "    const float *w = dsv4_plugin_floats(call, \"weight\");\n"
    "    float *y = dsv4_plugin_float_out(call, \"y\");\n"
    "    for (int64_t t = 0; t < in->shape[0]; t++) {\n"
    "        double squares = 0;\n"
    "        for (int64_t i = 0; i < in->shape[1]; i++)\n"
    "            squares += (double)x[i] * x[i];\n"
    "        for (int64_t i = 0; i < in->shape[1]; i++)\n"
    "            *y++ = (float)(x[i] / sqrt(squares / (double)in->shape[1] +\n"
    "                           dsv4_plugin_value(call, \"rms_norm_eps\", 0)) * w[i]);\n"
    "        x += in->shape[1];\n"
    "    }\n"
    "    return 0;\n"
    "}\n";

static char root[4096]; /* of the repository */

/* Compiles mine.so with these definitions. */
static void compile(const char *definitions)
{
    const char *compiler = getenv("CC");
    char command[8192 + 512];
    snprintf(command, sizeof command, "%s -shared -fPIC -I'%s/vectors' %s mine.c -o mine.so -lm",
             compiler != NULL ? compiler : "cc", root, definitions);
    remove("mine.so");
    assert_int_equal(system(command), 0);
}

static void expect(command_result result, int code, const char *out, const char *err)
{
    if (result.code != code || (out != NULL && strstr(result.out, out) == NULL) ||
        (err != NULL && strstr(result.err, err) == NULL))
        fail_msg("expected exit code %d, out '%s', err '%s'; got %d\n%s\n%s", code,
                 out != NULL ? out : "", err != NULL ? err : "", result.code, result.out,
                 result.err);
    command_free(&result);
}

#define VERIFY(...) \
    command_call(dsv4_verify_main, "dsv4 verify", "--vectors", "golden", "--no-diagnosis", \
                 "--numerics", "exact", "--plugin", __VA_ARGS__)

static void answers_test(void **state)
{
    (void)state;
    compile("-DMISDEED='return DSV4_PLUGIN_NOT_OFFERED'");
    expect(VERIFY("mine.so"), 0, "plugin mine.so: test engine\n", "noise");
    expect(VERIFY("mine.so"), 0, "4 cases: 1 passed, 0 failed, 3 skipped", NULL);
    expect(VERIFY("./mine.so", "--op", "rope"), 2, "1 skipped", "nothing matched");
    compile("-DNAMELESS -DMISDEED='return DSV4_PLUGIN_NOT_OFFERED'");
    expect(VERIFY("mine.so"), 0, "plugin mine.so\n", NULL);
}

/* What goes wrong in one case fails that case, and says how; the next is answered, in a new process
 * where the first is gone. */
static void misdeeds_test(void **state)
{
    (void)state;
    static const struct { const char *misdeed, *expected; } rows[] = {
        {"raise(11); return 0", "FAIL rmsnorm/exact-a: crashed: signal 11 (Segmentation fault)"},
        {"abort(); return 0", "crashed: signal 6 (Aborted)"},
        {"exit(3)", "exited with status 3"},
        {"exit(0)", "ended without an answer"},
        {"sleep(100); return 0", "gave no answer within 0.5 s"},
        {"return 7", "dsv4_plugin_run returned 7: out of luck"},
        {"return 0", "out/y was not written"},
        {"y[0] = 1; return 0", "24 of 24 wrong"},
        {"y[-1] = 1; return 0", "wrote outside the memory of out/y"},
        {"y[call->out[0].count] = 1; return 0", "wrote outside the memory of out/y"},
        {"call->out[0].format = 99; return 0", "out/y: format 99, expected F64 or F32"},
        {"call->out[0].format = DSV4_PLUGIN_I64; return 0", "out/y: format 6, expected F64 or F32"},
        {"call->out[0].absent = 1; return 0", "missing out/y"},
        {"for (int i = 3; i < 64; i++) close(i); return 0", "FAIL rmsnorm/exact-a: "},
        {"for (int i = 3; i < 64; i++) if (write(i, y, 4096)) {} return 0", "garbage"},
        {"for (int i = 0; i < call->out[0].count; i++) y[i] = 1; return 0",
         "FAIL rmsnorm/exact-a y[0,0]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char definitions[512];
        snprintf(definitions, sizeof definitions, "-include signal.h -DMISDEED='%s'",
                 rows[i].misdeed);
        compile(definitions);
        command_result result = VERIFY("mine.so", "--timeout", "0.5", "--op", "rmsnorm");
        assert_non_null(strstr(result.out, "2 cases: 1 passed, 1 failed, 0 skipped"));
        expect(result, 1, rows[i].expected, NULL);
    }
}

static void no_plugin_test(void **state)
{
    (void)state;
    expect(VERIFY("nowhere.so"), 2, NULL, "nowhere.so");
    files_write_text(".", "text.so", "no library");
    expect(VERIFY("text.so"), 2, NULL, "text.so");
    compile("-DVERSION=17 -DMISDEED='return 0'");
    expect(VERIFY("mine.so"), 2, NULL,
           "written for version 17 of the plugin interface, expected 1");
    compile("-include signal.h -DVERSION='raise(9)' -DMISDEED='return 0'");
    expect(VERIFY("mine.so"), 2, NULL, "mine.so: crashed: signal 9");
    compile("-Ddsv4_plugin_run=other -DMISDEED='return 0'");
    expect(VERIFY("mine.so"), 2, NULL, "it has no function dsv4_plugin_run");
}

/* docs/examples/plugin.c, as its head says. */
static void example_test(void **state)
{
    (void)state;
    char command[3 * 4096];
    snprintf(command, sizeof command,
             "cc -std=c99 -Wall -Wextra -Wpedantic -Werror -O2 -shared -fPIC "
             "-I '%s/vectors' '%s/docs/examples/plugin.c' -o example.so -lm",
             root, root);
    assert_int_equal(system(command), 0);
    expect(command_call(dsv4_verify_main, "dsv4 verify", "--vectors", "golden", "--plugin",
                        "example.so"), 0, "5 cases: 4 passed, 0 failed, 1 skipped", NULL);
}

static int enter(void **state)
{
    int result = scratch_enter(state);
    golden_write("golden");
    files_write_text(".", "mine.c", source);
    return result;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_test),   cmocka_unit_test(misdeeds_test),
        cmocka_unit_test(no_plugin_test), cmocka_unit_test(example_test),
    };
    if (getcwd(root, sizeof root) == NULL || access("vectors/dsv4_plugin.h", R_OK) != 0) {
        fprintf(stderr, "plugin: to be run in the directory of the repository\n");
        return 1;
    }
    return cmocka_run_group_tests_name("plugin", tests, enter, scratch_leave) != 0;
}
