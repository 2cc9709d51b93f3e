/* Writes a small random checkpoint: tool_make_checkpoint CONFIG.json DIR, see --help. */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/file.h"
#include "make_checkpoint.h"

typedef struct {
    const char *config, *dir;
    make_options options;
} tool_arguments;

enum { KEY_STYLE = 256, KEY_SEED, KEY_SHARDS, KEY_I32, KEY_PREFIX, KEY_SCALE_INV };

static const struct argp_option options[] = {
    {"style", KEY_STYLE, "STYLE", 0, "exact: all F32 (default); released: the dtypes of the "
     "released layout; mixed: all dtypes in turn; bf16: all bf16 numbers", 0},
    {"seed", KEY_SEED, "N", 0, "Other values (default 0)", 0},
    {"shards", KEY_SHARDS, "N", 0, "Number of files (default 1)", 0},
    {"tid2eid-i32", KEY_I32, NULL, 0, "Store tid2eid as I32 instead of I64", 0},
    {"model-prefix", KEY_PREFIX, NULL, 0, "Names begin with \"model.\"", 0},
    {"scale-inv", KEY_SCALE_INV, NULL, 0, "Scales are called .weight_scale_inv", 0},
    {0},
};

static make_style parse_style(const char *text, struct argp_state *state)
{
    static const char *const names[] = {"exact", "released", "mixed", "bf16"};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0)
            return (make_style)i;
    argp_error(state, "--style: expected exact, released, mixed or bf16, got '%s'", text);
    return MAKE_EXACT;
}

static unsigned long parse_number(const char *text, unsigned long largest,
                                  struct argp_state *state)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || number > largest)
        argp_error(state, "expected a number of at most %lu, got '%s'", largest, text);
    return number;
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    tool_arguments *arguments = state->input;
    switch (key) {
    case KEY_STYLE: arguments->options.style = parse_style(text, state); return 0;
    case KEY_SEED: arguments->options.seed = parse_number(text, UINT32_MAX, state); return 0;
    case KEY_SHARDS: arguments->options.shards = (int)parse_number(text, 99999, state); return 0;
    case KEY_I32: arguments->options.tid2eid_i32 = true; return 0;
    case KEY_PREFIX: arguments->options.model_prefix = true; return 0;
    case KEY_SCALE_INV: arguments->options.scale_inv = true; return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num >= 2)
            argp_usage(state);
        *(state->arg_num == 0 ? &arguments->config : &arguments->dir) = text;
        return 0;
    case ARGP_KEY_END:
        if (state->arg_num < 2)
            argp_usage(state);
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int main(int argc, char **argv)
{
    const struct argp argp = {
        .options = options, .parser = parse_option, .args_doc = "CONFIG.json DIR",
        .doc = "Writes a checkpoint of random weights for the geometry of CONFIG.json into DIR. "
               "The same arguments give the same bytes on every machine."};
    tool_arguments arguments = {0};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);

    dsv4_error err = {""};
    dsv4_file file;
    int result = dsv4_file_map(&file, arguments.config, &err);
    if (result == 0) {
        char *text = dsv4_alloc(file.size + 1, 1);
        memcpy(text, file.data, file.size);
        result = make_checkpoint(arguments.dir, text, &arguments.options, &err);
        free(text);
        dsv4_file_unmap(&file);
    }
    if (result != 0)
        fprintf(stderr, "tool_make_checkpoint: %s\n", err.text);
    return result != 0 ? 2 : 0;
}
