/* The program as one runs it: commands, help, version, exit codes, and where messages go.
 * DSV4_PROGRAM names it; build/dsv4 where that is not set. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

typedef struct { int status; char out[16384], err[16384]; } outcome;

static void read_text(const char *dir, const char *name, char *text, size_t room)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    text[fread(text, 1, room - 1, file)] = '\0';
    fclose(file);
}

/* Runs the program with these words of a shell command line; `sink`, where given, takes its output. */
static outcome run_into(const char *sink, const char *words)
{
    const char *program = getenv("DSV4_PROGRAM");
    char dir[] = "/tmp/dsv4-XXXXXX", line[2048];
    assert_non_null(mkdtemp(dir));
    snprintf(line, sizeof line, ": >%s/out; %s %s >%s%s 2>%s/err", dir,
             program != NULL ? program : "build/dsv4", words, sink != NULL ? "" : dir,
             sink != NULL ? sink : "/out", dir);
    int status = system(line);
    outcome o = {.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1};
    read_text(dir, "out", o.out, sizeof o.out);
    read_text(dir, "err", o.err, sizeof o.err);
    snprintf(line, sizeof line, "rm -r %s", dir);
    assert_int_equal(system(line), 0);
    return o;
}

static outcome run(const char *words)
{
    return run_into(NULL, words);
}

static int lines(const char *text)
{
    int count = 0;
    for (; *text != '\0'; text++)
        count += *text == '\n';
    return count;
}

static void help_and_version(void **state)
{
    (void)state;
    outcome o = run("--help");
    assert_int_equal(o.status, 0);
    assert_string_equal(o.err, "");
    assert_non_null(strstr(o.out, "inspect"));
    assert_non_null(strstr(o.out, "logits"));
    assert_non_null(strstr(o.out, "diff"));
    o = run("--version");
    assert_int_equal(o.status, 0);
    assert_string_equal(o.out, "dsv4 " DSV4_VERSION "\n");
    static const char *const commands[] = {"inspect", "logits", "diff"};
    for (int i = 0; i < 3; i++) {
        char words[64];
        snprintf(words, sizeof words, "%s --help", commands[i]);
        o = run(words);
        assert_int_equal(o.status, 0);
        assert_string_equal(o.err, "");
        snprintf(words, sizeof words, "dsv4 %s", commands[i]);
        assert_non_null(strstr(o.out, words));
        snprintf(words, sizeof words, "%s --version", commands[i]);
        o = run(words);
        assert_int_equal(o.status, 0);
        assert_string_equal(o.out, "dsv4 " DSV4_VERSION "\n");
    }
}

static void bad_usage(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "", "frobnicate", "--frobnicate", "inspect", "inspect --geometry giant", "logits",
        "logits nowhere", "logits nowhere --tokens 1", "diff one.h5", "diff no-a.h5 no-b.h5"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        outcome o = run(cases[i]);
        if (o.status != 2 || o.out[0] != '\0' || o.err[0] == '\0')
            fail_msg("dsv4 %s: exit %d, out '%s', err '%s'", cases[i], o.status, o.out, o.err);
    }
    assert_int_equal(lines(run("logits nowhere --tokens 1").err), 1);
    assert_int_equal(lines(run("diff no-a.h5 no-b.h5").err), 1);
}

static void full_output(void **state)
{
    (void)state;
    outcome o = run_into("/dev/full", "inspect --geometry flash");
    assert_int_equal(o.status, 2);
    assert_int_equal(lines(o.err), 1);
}

static void flash(void **state)
{
    (void)state;
    outcome o = run("inspect --geometry flash");
    assert_int_equal(o.status, 0);
    assert_non_null(strstr(o.out, "69187"));
    assert_non_null(strstr(o.out, "159609485896"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_and_version),
        cmocka_unit_test(bad_usage),
        cmocka_unit_test(full_output),
        cmocka_unit_test(flash),
    };
    return cmocka_run_group_tests_name("dsv4", tests, NULL, NULL) != 0;
}
