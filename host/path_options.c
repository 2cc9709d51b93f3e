#include "path_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_THREADS = 512, KEY_ISA, KEY_DETERMINISTIC, MOST_THREADS = 1024 };

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "How --path fast computes:", 9},
    {"threads", KEY_THREADS, "N", 0, "Threads at work (default: one for each processor)", 9},
    {"isa", KEY_ISA, "LEVEL", 0, "Instructions of this level at most: portable, avx2, avx512, avx512bf16 or amx. "
     "Without it the environment variable DSV4_ISA counts, and then the best that the machine has", 9},
    {"deterministic", KEY_DETERMINISTIC, NULL, 0, "The same bits for any number of threads, any "
     "chunks and batches, on one level of instructions. Without it that is so up to avx2; levels above "
     "then sum a row in another order where few rows are computed with it than where many are", 9},
    {0},
};

static int parse_threads(const char *text, struct argp_state *state)
{
    char *end;
    long threads = strtol(text, &end, 10);
    if (end == text || *end != '\0' || threads < 1 || threads > MOST_THREADS)
        argp_error(state, "--threads: expected a number from 1 to %d, got '%s'", MOST_THREADS, text);
    return (int)threads;
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    dsv4_path_choice *choice = state->input;
    const char *name;
    switch (key) {
    case KEY_THREADS:
        choice->options.threads = parse_threads(text, state);
        name = "--threads";
        break;
    case KEY_ISA:
        if (text[0] == '\0')
            argp_error(state, "--isa: expected a level of instructions, got ''");
        choice->options.isa = text;
        name = "--isa";
        break;
    case KEY_DETERMINISTIC:
        choice->options.deterministic = true;
        name = "--deterministic";
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    if (choice->asked == NULL)
        choice->asked = name;
    return 0;
}

const struct argp dsv4_path_argp = {.options = options, .parser = parse_option};

int dsv4_path_choose(const dsv4_path *path, const dsv4_path_choice *choice, const char *command,
                     dsv4_error *err)
{
    const char *isa = choice->options.isa;
    if (path->configure == NULL)
        return choice->asked == NULL
                   ? 0
                   : dsv4_fail(err, "%s: path %s computes in one way only", choice->asked,
                               path->name);
    if (path->configure(&choice->options, err) != 0)
        return -1;
    if (isa != NULL && strncmp(path->level(), isa, strlen(isa)) != 0)
        fprintf(stderr, "%s: --isa %s: this runs with %s\n", command, isa, path->level());
    return 0;
}
