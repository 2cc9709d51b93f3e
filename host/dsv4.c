/* The dsv4 command. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "diff.h"
#include "inspect.h"
#include "logits.h"
#include "synth.h"
#include "verify.h"

static const struct {
    const char *name, *shown; /* shown: the program's name in the command's own help */
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"logits", "dsv4 logits", dsv4_logits_main, "run a model over token ids: logits and traces"},
    {"diff", "dsv4 diff", dsv4_diff_main, "compare two tensor files"},
    {"inspect", "dsv4 inspect", dsv4_inspect_main, "check a checkpoint against its configuration"},
    {"synth", "dsv4 synth", dsv4_synth_main, "write a checkpoint of random weights"},
    {"verify", "dsv4 verify", dsv4_verify_main, "judge an engine's operators with golden vectors"},
    {"bench", "dsv4 bench", dsv4_bench_main, "measure speed, and how near it is to the machine's limits"},
};

static const size_t command_count = sizeof commands / sizeof *commands;

static void print_usage(FILE *stream)
{
    fprintf(stream, "Usage: dsv4 COMMAND [ARGUMENT...]\n"
                    "DeepSeek-V4-Flash: reference and conformance suite.\n\n");
    for (size_t i = 0; i < command_count; i++)
        fprintf(stream, "  %-10s%s\n", commands[i].name, commands[i].summary);
    fprintf(stream, "\n`dsv4 COMMAND --help` explains one; `dsv4 --version` prints the version.\n"
                    "Exit codes: 0 good, 1 differs or failed a check, 2 cannot run.\n");
}

/* Output that never arrived (a full disk, a closed stdout) is no success. */
static void check_stdout(void)
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "dsv4: cannot write to standard output: %s\n", strerror(errno));
        _exit(2);
    }
}

int main(int argc, char **argv)
{
    atexit(check_stdout);
    argp_err_exit_status = 2;
    argp_program_version = "dsv4 " DSV4_VERSION;
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        puts(argp_program_version);
        return 0;
    }
    for (size_t i = 0; i < command_count; i++)
        if (strcmp(argv[1], commands[i].name) == 0) {
            argv[1] = (char *)commands[i].shown; /* argp only reads it */
            return commands[i].run(argc - 1, argv + 1);
        }
    fprintf(stderr, "dsv4: unknown command '%s'; `dsv4 --help` lists them\n", argv[1]);
    return 2;
}
