#include "logits.h"

#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "h5.h"
#include "ids.h"
#include "path.h"
#include "replay.h"
#include "trace.h"

enum { DEFAULT_CHUNK = 256, TOP = 5 };

typedef struct {
    const char *dir;
    const char *tokens, *ids_text, *ids_h5; /* one of them is given */
    const dsv4_path *path;
    dsv4_numerics numerics;
    int64_t chunk;
    bool mtp, trace;
    const char *replay; /* NULL, or the trace whose choices are taken */
    const char *output; /* NULL: print the most likely next tokens */
} logits_arguments;

/* One run of the command. */
typedef struct {
    const logits_arguments *arguments;
    dsv4_model model;
    dsv4_ids ids;
    int64_t *next_ids; /* the ids shifted by one: what MTP is given */
    dsv4_h5 *file;
    dsv4_replay *replay; /* NULL: the run chooses for itself */
    dsv4_tap tap;
    dsv4_error tap_error; /* what went wrong while replaying or writing the trace */
    dsv4_run *run;
    double *logits, *mtp_logits; /* [chunk, vocab_size] */
} session;

static const char *source_of_ids(const session *s)
{
    return s->arguments->ids_text != NULL ? s->arguments->ids_text
           : s->arguments->ids_h5 != NULL ? s->arguments->ids_h5 : "--tokens";
}

static int check_ids(const session *s, dsv4_error *err)
{
    const dsv4_config *config = &s->model.config;
    if (dsv4_ids_check_count(s->ids.count, source_of_ids(s), config->max_position_embeddings,
                             err) != 0)
        return -1;
    for (int64_t t = 0; t < s->ids.count; t++)
        if (s->ids.id[t] < 0 || s->ids.id[t] >= config->vocab_size)
            return dsv4_fail(err, "%s: the token at position %" PRId64 " has id %" PRId64
                             ": the model has vocab_size %" PRId64, source_of_ids(s), t,
                             s->ids.id[t], config->vocab_size);
    return 0;
}

static void write_point(session *s, const dsv4_point *point)
{
    char name[DSV4_TRACE_NAME];
    dsv4_trace_name(name, &s->model.config, point->layer, point->name);
    int64_t width = point->dim[0] * (point->rank == 2 ? point->dim[1] : 1);
    dsv4_h5_write(s->file, name, point->row, point->rows, width, point->values, point->indices,
                  &s->tap_error);
}

/* The trace gets what is replayed, as the run does. */
static void at_point(void *context, const dsv4_point *point)
{
    session *s = context;
    if (s->replay != NULL && s->tap_error.text[0] == '\0')
        dsv4_replay_at(s->replay, point, &s->tap_error);
    if (s->arguments->trace && s->tap_error.text[0] == '\0')
        write_point(s, point);
}

static dsv4_h5_type value_type(const session *s)
{
    return s->arguments->numerics == DSV4_EXACT ? DSV4_H5_F64 : DSV4_H5_F32;
}

static int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The trace datasets of one layer. What a row leaves unwritten keeps the fill value: scores of
 * groups that are not visible yet, places of selections that are shorter. */
static int define_trace(const session *s, int64_t layer, dsv4_error *err)
{
    const dsv4_config *c = &s->model.config;
    const dsv4_h5_type value = value_type(s), index = DSV4_H5_I32;
    const dsv4_layer_kind kind = dsv4_config_kind(c, layer);
    const bool compressed = kind != DSV4_SWA, indexed = kind == DSV4_CSA;
    const bool mtp = layer >= c->num_hidden_layers;
    const int64_t S = s->ids.count, D = c->hidden_size, n = c->hc_mult;
    const int64_t H = c->num_attention_heads, d = c->head_dim, k = c->num_experts_per_tok;
    const int64_t n_i = c->index_n_heads, d_i = c->index_head_dim;
    const int64_t G = compressed ? S / c->compress_ratios[layer] : 0;
    const int64_t chosen = indexed ? minimum(c->index_topk, G) : G;
    const struct {
        const char *name;
        bool wanted;
        dsv4_h5_type type;
        int rank;
        int64_t shape[3];
        double fill;
    } sets[] = {
        {"in", mtp, value, 3, {S, n, D}, 0},
        {"attn_in", true, value, 2, {S, D}, 0},
        {"q", true, value, 3, {S, H, d}, 0},
        {"kv", true, value, 2, {S, d}, 0},
        {"compressed", compressed, value, 2, {G, d}, 0},
        {"index_q", indexed, value, 3, {S, n_i, d_i}, 0},
        {"index_k", indexed, value, 2, {G, d_i}, 0},
        {"index_score", indexed, value, 2, {S, G}, -INFINITY},
        {"selected", compressed, index, 2, {S, chosen}, -1},
        {"attn_core", true, value, 3, {S, H, d}, 0},
        {"attn_out", true, value, 2, {S, D}, 0},
        {"mid", true, value, 3, {S, n, D}, 0},
        {"ffn_in", true, value, 2, {S, D}, 0},
        {"route_index", true, index, 2, {S, k}, 0},
        {"route_weight", true, value, 2, {S, k}, 0},
        {"ffn_out", true, value, 2, {S, D}, 0},
        {"out", true, value, 3, {S, n, D}, 0},
    };
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        char name[DSV4_TRACE_NAME];
        dsv4_trace_name(name, c, layer, sets[i].name);
        if (sets[i].wanted && dsv4_h5_define(s->file, name, sets[i].type, sets[i].rank,
                                             sets[i].shape, sets[i].fill, err) != 0)
            return -1;
    }
    return 0;
}

static int write_ids(const session *s, const char *name, const int64_t *ids, dsv4_error *err)
{
    int64_t shape[] = {s->ids.count};
    if (dsv4_h5_define(s->file, name, DSV4_H5_I32, 1, shape, 0, err) != 0)
        return -1;
    return dsv4_h5_write(s->file, name, 0, s->ids.count, 1, NULL, ids, err);
}

/* A run that is interrupted leaves no half of a file behind. One process writes one output, so one name
 * is enough. */
static char unfinished[4096];

static void remove_unfinished(int signal_number)
{
    unlink(unfinished);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void remove_when_interrupted(const char *part)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGXCPU};
    if (strlen(part) >= sizeof unfinished)
        return;
    strcpy(unfinished, part);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (signal(signals[i], remove_unfinished) == SIG_IGN)
            signal(signals[i], SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* the write then fails, and says why */
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Everything is defined before anything is computed, so that what cannot be written fails early. */
static int create_output(session *s, dsv4_error *err)
{
    const dsv4_config *config = &s->model.config;
    const int64_t shape[] = {s->ids.count, config->vocab_size};
    const bool mtp = s->arguments->mtp;
    if (s->arguments->ids_h5 != NULL && same_file(s->arguments->ids_h5, s->arguments->output))
        return dsv4_fail(err, "%s: is the file of the token ids: not overwritten",
                         s->arguments->output);
    if (s->arguments->replay != NULL && same_file(s->arguments->replay, s->arguments->output))
        return dsv4_fail(err, "%s: is the file to replay: not overwritten", s->arguments->output);
    s->file = dsv4_h5_create(s->arguments->output, err);
    if (s->file == NULL)
        return -1;
    remove_when_interrupted(dsv4_h5_part(s->file));
    if (write_ids(s, "token_ids", s->ids.id, err) != 0 ||
        dsv4_h5_define(s->file, "logits", value_type(s), 2, shape, 0, err) != 0)
        return -1;
    if (mtp && (write_ids(s, "mtp_token_ids", s->next_ids, err) != 0 ||
                dsv4_h5_define(s->file, "mtp_logits", value_type(s), 2, shape, 0, err) != 0))
        return -1;
    int64_t layers = config->num_hidden_layers + (mtp ? 1 : 0);
    for (int64_t layer = 0; layer < layers && s->arguments->trace; layer++)
        if (define_trace(s, layer, err) != 0)
            return -1;
    return 0;
}

static int read_ids(session *s, dsv4_error *err)
{
    if (s->arguments->tokens != NULL)
        return dsv4_ids_parse(&s->ids, s->arguments->tokens, "--tokens", err);
    if (s->arguments->ids_text != NULL)
        return dsv4_ids_read_text(&s->ids, s->arguments->ids_text, err);
    return dsv4_ids_read_h5(&s->ids, s->arguments->ids_h5,
                            s->model.config.max_position_embeddings, err);
}

static double *new_rows(const session *s)
{
    int64_t rows = minimum(s->arguments->chunk, s->ids.count);
    return dsv4_alloc((size_t)rows, (size_t)s->model.config.vocab_size * sizeof(double));
}

static int prepare(session *s, dsv4_error *err)
{
    const logits_arguments *arguments = s->arguments;
    if (dsv4_model_open(&s->model, arguments->dir, arguments->numerics, arguments->mtp, err) != 0 ||
        read_ids(s, err) != 0)
        return -1;
    if (arguments->mtp && s->model.config.num_nextn_predict_layers == 0)
        return dsv4_fail(err, "--mtp: %s has num_nextn_predict_layers 0", arguments->dir);
    if (check_ids(s, err) != 0)
        return -1;

    s->next_ids = dsv4_alloc((size_t)s->ids.count, sizeof *s->next_ids);
    for (int64_t t = 0; t < s->ids.count; t++)
        s->next_ids[t] = s->ids.id[(t + 1) % s->ids.count];
    if (arguments->replay != NULL) {
        s->replay = dsv4_replay_open(arguments->replay, &s->model.config, &s->ids, arguments->mtp,
                                     err);
        if (s->replay == NULL)
            return -1;
    }
    if (arguments->output != NULL && create_output(s, err) != 0)
        return -1;
    s->tap = (dsv4_tap){at_point, s};
    s->run = arguments->path->open(&s->model, arguments->numerics, s->ids.count,
                                   arguments->trace || s->replay != NULL ? &s->tap : NULL, err);
    if (s->run == NULL)
        return -1;
    s->logits = new_rows(s);
    s->mtp_logits = arguments->mtp ? new_rows(s) : NULL;
    return 0;
}

/* The most likely tokens of one row, equal ones by id. */
static void print_top(const double *logits, int64_t vocab_size)
{
    int64_t top[TOP];
    int64_t count = 0;
    for (int64_t id = 0; id < vocab_size; id++) {
        if (count == TOP && logits[id] <= logits[top[TOP - 1]])
            continue;
        int64_t place = count < TOP ? count++ : TOP - 1;
        for (; place > 0 && logits[id] > logits[top[place - 1]]; place--)
            top[place] = top[place - 1];
        top[place] = id;
    }
    double sum = 0;
    for (int64_t id = 0; id < vocab_size; id++)
        sum += exp(logits[id] - logits[top[0]]);
    printf("%8s  %12s  %15s\n", "id", "logit", "log-probability");
    for (int64_t i = 0; i < count; i++)
        printf("%8" PRId64 "  %12.6f  %15.6f\n", top[i], logits[top[i]],
               logits[top[i]] - logits[top[0]] - log(sum));
}

/* Rows [first, first + n) of the run. Of MTP the last row but one is the last that was given a real
 * next token; it predicts the same token as the last row of the model itself. */
static int deliver(const session *s, int64_t first, int64_t n, dsv4_error *err)
{
    const int64_t V = s->model.config.vocab_size, last = s->ids.count - 1;
    if (s->file != NULL) {
        if (dsv4_h5_write(s->file, "logits", first, n, V, s->logits, NULL, err) != 0)
            return -1;
        return s->arguments->mtp
                   ? dsv4_h5_write(s->file, "mtp_logits", first, n, V, s->mtp_logits, NULL, err)
                   : 0;
    }
    if (s->arguments->mtp && first < last && last <= first + n) {
        printf("after position %" PRId64 ", by MTP at position %" PRId64 ":\n", last, last - 1);
        print_top(s->mtp_logits + (last - 1 - first) * V, V);
    }
    if (first + n > last) {
        printf("after position %" PRId64 ":\n", last);
        print_top(s->logits + (last - first) * V, V);
    }
    return 0;
}

static int compute(session *s, dsv4_error *err)
{
    const dsv4_path *path = s->arguments->path;
    for (int64_t first = 0; first < s->ids.count; first += s->arguments->chunk) {
        int64_t n = minimum(s->arguments->chunk, s->ids.count - first);
        if (path->forward(s->run, s->ids.id + first, n, s->logits, err) != 0)
            return -1;
        if (s->arguments->mtp && s->tap_error.text[0] == '\0' &&
            path->mtp(s->run, s->next_ids + first, n, s->mtp_logits, err) != 0)
            return -1;
        if (s->tap_error.text[0] != '\0')
            return dsv4_fail(err, "%s", s->tap_error.text);
        if (deliver(s, first, n, err) != 0)
            return -1;
    }
    return s->replay != NULL ? dsv4_replay_check(s->replay, err) : 0;
}

static int finish(session *s, int result, dsv4_error *err)
{
    if (s->run != NULL)
        s->arguments->path->close(s->run);
    dsv4_model_close(&s->model);
    dsv4_ids_free(&s->ids);
    free(s->next_ids);
    free(s->logits);
    free(s->mtp_logits);
    if (result == 0 && s->file != NULL)
        result = dsv4_h5_close(s->file, err);
    else
        dsv4_h5_abandon(s->file);
    if (result == 0 && s->replay != NULL) {
        fprintf(stderr, "dsv4 logits: ");
        dsv4_replay_report(s->replay, stderr);
    }
    dsv4_replay_free(s->replay);
    return result;
}

enum {
    KEY_TOKENS = 256, KEY_IDS, KEY_IDS_H5, KEY_PATH, KEY_NUMERICS, KEY_CHUNK, KEY_MTP, KEY_TRACE,
    KEY_REPLAY
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Token ids, from exactly one of:", 1},
    {"tokens", KEY_TOKENS, "IDS", 0, "The ids themselves: \"5 17 99\", with spaces or commas", 1},
    {"ids", KEY_IDS, "FILE", 0, "A text file of ids", 1},
    {"ids-h5", KEY_IDS_H5, "FILE", 0, "Dataset `token_ids` of an HDF5 file, such as one that this "
     "command wrote", 1},
    {NULL, 0, NULL, 0, "What to compute:", 2},
    {"path", KEY_PATH, "NAME", 0, "Implementation: ref, the plain reference in binary64 "
     "(default)", 2},
    {"numerics", KEY_NUMERICS, "KIND", 0, "exact: the mathematics, no rounding of activations "
     "(default); released: every rounding of the released inference code", 2},
    {"chunk", KEY_CHUNK, "N", 0, "Tokens per forward call, default 256. Changes the memory in use, "
     "and no result", 2},
    {"mtp", KEY_MTP, NULL, 0, "Run the MTP layer as well, which predicts one token further", 2},
    {"replay", KEY_REPLAY, "TRACE.h5", 0, "Take the routings (route_index) and CSA selections "
     "(selected) of this trace instead of choosing; see below", 2},
    {NULL, 0, NULL, 0, "Where to put it:", 3},
    {"output", 'o', "OUT.h5", 0, "Write all logits to this HDF5 file", 3},
    {"trace", KEY_TRACE, NULL, 0, "Write the intermediate tensors of every layer to it too", 3},
    {0},
};

static const char documentation[] =
    "Runs the model in MODEL_DIR over token ids and gives the logits after each of them.\v"
    "MODEL_DIR has config.json and model.safetensors, or shards with "
    "model.safetensors.index.json.\n"
    "\n"
    "Without -o, the most likely next tokens after the last one are printed. With -o nothing is; "
    "OUT.h5 gets `token_ids` [S], `logits` [S, vocab_size], with --mtp `mtp_token_ids` (the ids "
    "shifted by one: MTP at position t is given token t + 1; the last wraps to the first) and "
    "`mtp_logits`, with --trace `trace/layers/L/NAME` and `trace/mtp/0/NAME`. Numbers are float64 "
    "in exact numerics and float32 in released ones. The file appears when it is complete. "
    "Compare two with `dsv4 diff`.\n"
    "\n"
    "--replay is for two engines that chose differently between near-equals: with one's choices "
    "the arithmetic of both can be compared alone. The trace may come from any engine, whole or "
    "in part: a layer that it lacks chooses for itself; an HCA layer, which takes all that is "
    "visible, has no choice. The weights of the experts are computed here: a `route_weight` in "
    "the trace is not used, nor is the last row of MTP. Everything is checked before the run, and "
    "a line on standard error says how often the run would have chosen otherwise.\n"
    "\n"
    "Example: dsv4 logits model/ --tokens \"0 17 99\" --trace -o out.h5";

static int64_t parse_chunk(const char *text, struct argp_state *state)
{
    char *end;
    errno = 0;
    long long chunk = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || chunk < 1)
        argp_error(state, "--chunk: expected a number of tokens, 1 or more, got '%s'", text);
    return chunk;
}

static dsv4_numerics parse_numerics(const char *text, struct argp_state *state)
{
    if (strcmp(text, "exact") != 0 && strcmp(text, "released") != 0)
        argp_error(state, "--numerics: expected exact or released, got '%s'", text);
    return strcmp(text, "exact") == 0 ? DSV4_EXACT : DSV4_RELEASED;
}

static const dsv4_path *parse_path(const char *text, struct argp_state *state)
{
    const dsv4_path *path = dsv4_path_find(text);
    if (path == NULL)
        argp_error(state, "--path: expected %s, got '%s'", dsv4_path_names(), text);
    return path;
}

static void check_arguments(const logits_arguments *arguments, struct argp_state *state)
{
    int sources = (arguments->tokens != NULL) + (arguments->ids_text != NULL) +
                  (arguments->ids_h5 != NULL);
    if (arguments->dir == NULL)
        argp_error(state, "expected MODEL_DIR, a checkpoint directory");
    if (sources != 1)
        argp_error(state, "expected one of --tokens, --ids and --ids-h5, got %s",
                   sources == 0 ? "none" : "several");
    if (arguments->trace && arguments->output == NULL)
        argp_error(state, "--trace needs -o OUT.h5");
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    logits_arguments *arguments = state->input;
    switch (key) {
    case KEY_TOKENS: arguments->tokens = text; return 0;
    case KEY_IDS: arguments->ids_text = text; return 0;
    case KEY_IDS_H5: arguments->ids_h5 = text; return 0;
    case KEY_PATH: arguments->path = parse_path(text, state); return 0;
    case KEY_NUMERICS: arguments->numerics = parse_numerics(text, state); return 0;
    case KEY_CHUNK: arguments->chunk = parse_chunk(text, state); return 0;
    case KEY_MTP: arguments->mtp = true; return 0;
    case KEY_TRACE: arguments->trace = true; return 0;
    case KEY_REPLAY: arguments->replay = text; return 0;
    case 'o': arguments->output = text; return 0;
    case ARGP_KEY_ARG:
        if (arguments->dir != NULL)
            argp_error(state, "expected one MODEL_DIR, got a second: '%s'", text);
        arguments->dir = text;
        return 0;
    case ARGP_KEY_END: check_arguments(arguments, state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int dsv4_logits_main(int argc, char **argv)
{
    const struct argp argp = {.options = options, .parser = parse_option, .args_doc = "MODEL_DIR",
                              .doc = documentation};
    logits_arguments arguments = {.path = dsv4_path_find("ref"), .numerics = DSV4_EXACT,
                                  .chunk = DEFAULT_CHUNK};
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    session s = {.arguments = &arguments};
    dsv4_error err = {""};
    int result = prepare(&s, &err);
    if (result == 0)
        result = compute(&s, &err);
    if (finish(&s, result, &err) != 0) {
        fprintf(stderr, "dsv4 logits: %s\n", err.text);
        return 2;
    }
    return 0;
}
