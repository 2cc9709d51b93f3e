#include "logits.h"

#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
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
#include "path_options.h"
#include "preload.h"
#include "replay.h"
#include "trace.h"

enum { DEFAULT_CHUNK = 256, TOP = 5 };

typedef struct {
    const char *dir;
    const char *tokens, *ids_text, *ids_h5; /* one of them is given */
    const dsv4_path *path;
    dsv4_path_choice how;
    dsv4_numerics numerics;
    int64_t chunk;
    bool mtp, trace, verbose;
    const char *replay; /* NULL, or the trace whose choices are taken */
    const char *output; /* NULL: print the most likely next tokens */
} logits_arguments;

typedef struct session session;

/* One of the sequences. */
typedef struct {
    session *session;
    int64_t number;
    const dsv4_ids *ids;
    int64_t *next_ids; /* the ids shifted by one: what MTP is given */
    int64_t done;      /* tokens that were computed */
    dsv4_tap tap;
    dsv4_run *run;
    double *logits, *mtp_logits; /* [room, vocab_size]: of one call, or, without -o, of all that are
                                    printed */
} sequence;

/* What is given to one call of the path: the next tokens of every sequence that has more. */
typedef struct {
    int64_t count;
    sequence **who;
    dsv4_run **run;
    const int64_t **ids, **next_ids;
    int64_t *n;
    double **logits, **mtp_logits; /* NULL where they are not wanted */
} step;

/* Rows of a trace that came one by one, and are to be written together. */
typedef struct {
    char name[DSV4_TRACE_NAME]; /* of the dataset */
    int64_t number;             /* of the sequence */
    int64_t first, rows, width; /* rows [first, first + rows), each as wide as in the dataset */
    int64_t size;               /* values that there is room for */
    double *values;             /* one of these two */
    int64_t *indices;
} gathered;

enum { GATHERED = 1 << 14 }; /* values that are written together */

/* One run of the command. */
struct session {
    const logits_arguments *arguments;
    dsv4_model model;
    dsv4_preloading *preloading; /* NULL: weights come from the disk as they are needed */
    dsv4_sequences ids;
    sequence *sequences;
    step step;
    dsv4_h5 *file;
    gathered scores, choices;
    dsv4_replay *replay;  /* NULL: the run chooses for itself */
    dsv4_error tap_error; /* what went wrong while replaying or writing the trace */
};

static const char *source_of_ids(const session *s)
{
    return s->arguments->ids_text != NULL ? s->arguments->ids_text
           : s->arguments->ids_h5 != NULL ? s->arguments->ids_h5 : "--tokens";
}

static int check_id(const session *s, int64_t number, int64_t position, dsv4_error *err)
{
    const int64_t id = s->ids.sequence[number].id[position], V = s->model.config.vocab_size;
    char sequence_name[40] = "";
    if (id >= 0 && id < V)
        return 0;
    if (s->ids.batch)
        snprintf(sequence_name, sizeof sequence_name, " of sequence %" PRId64, number);
    return dsv4_fail(err, "%s: the token at position %" PRId64 "%s has id %" PRId64
                     ": the model has vocab_size %" PRId64, source_of_ids(s), position,
                     sequence_name, id, V);
}

static int check_ids(const session *s, dsv4_error *err)
{
    if (dsv4_ids_check_count(s->ids.width, source_of_ids(s),
                             s->model.config.max_position_embeddings, err) != 0)
        return -1;
    for (int64_t b = 0; b < s->ids.count; b++)
        for (int64_t t = 0; t < s->ids.sequence[b].count; t++)
            if (check_id(s, b, t, err) != 0)
                return -1;
    return 0;
}

/* Rows of one sequence, to their place in a dataset of the output. */
static int write_rows(const session *s, const char *name, int64_t number, int64_t row,
                      int64_t rows, int64_t width, const double *values, const int64_t *indices,
                      dsv4_error *err)
{
    if (s->ids.batch)
        return dsv4_h5_write_in(s->file, name, number, row, rows, width, values, indices, err);
    return dsv4_h5_write(s->file, name, row, rows, width, values, indices, err);
}

static void flush(session *s, gathered *g)
{
    if (g->rows > 0 && s->tap_error.text[0] == '\0')
        write_rows(s, g->name, g->number, g->first, g->rows, g->width, g->values, g->indices,
                   &s->tap_error);
    g->rows = 0;
}

/* The next row to be gathered is row `row` of another dataset. */
static int begin(session *s, gathered *g, const char *name, int64_t number, bool values)
{
    dsv4_h5_info info;
    if (dsv4_h5_describe(s->file, name, &info, &s->tap_error) != 0)
        return -1;
    strcpy(g->name, name);
    g->number = number;
    g->width = info.shape[info.rank - 1];
    if (g->size > 0 && g->width <= g->size)
        return 0;
    g->size = g->width > GATHERED ? g->width : GATHERED;
    free(g->values);
    free(g->indices);
    g->values = values ? dsv4_alloc((size_t)g->size, sizeof *g->values) : NULL;
    g->indices = values ? NULL : dsv4_alloc((size_t)g->size, sizeof *g->indices);
    return 0;
}

/* Places behind the end of a row get what the dataset was filled with. */
static void gather_row(gathered *g, const dsv4_point *point, int64_t row)
{
    const int64_t width = point->dim[0];
    const size_t place = (size_t)(g->rows * g->width);
    if (g->values != NULL) {
        memcpy(g->values + place, point->values + row * width, (size_t)width * sizeof(double));
        for (int64_t i = width; i < g->width; i++)
            g->values[place + (size_t)i] = -INFINITY;
    } else {
        memcpy(g->indices + place, point->indices + row * width, (size_t)width * sizeof(int64_t));
        for (int64_t i = width; i < g->width; i++)
            g->indices[place + (size_t)i] = -1;
    }
    g->rows++;
}

static void gather(session *s, gathered *g, const char *name, int64_t number,
                   const dsv4_point *point)
{
    for (int64_t r = 0; r < point->rows && s->tap_error.text[0] == '\0'; r++) {
        const int64_t row = point->row + r, rows = g->rows;
        if (rows == 0 || number != g->number || strcmp(name, g->name) != 0 ||
            row != g->first + rows || (rows + 1) * g->width > g->size) {
            flush(s, g);
            if (begin(s, g, name, number, point->values != NULL) != 0)
                return;
            g->first = row;
        }
        if (point->dim[0] <= g->width)
            gather_row(g, point, r);
        else /* which is refused */
            write_rows(s, name, number, row, 1, point->dim[0], point->values, point->indices,
                       &s->tap_error);
    }
}

/* Scores and selections come token by token, and each of them is a write to the file. */
static void write_point(session *s, int64_t number, const dsv4_point *point)
{
    char name[DSV4_TRACE_NAME];
    dsv4_trace_name(name, &s->model.config, point->layer, point->name);
    if (strcmp(point->name, "index_score") == 0 && point->values != NULL)
        gather(s, &s->scores, name, number, point);
    else if (strcmp(point->name, "selected") == 0 && point->indices != NULL)
        gather(s, &s->choices, name, number, point);
    else
        write_rows(s, name, number, point->row, point->rows,
                   point->dim[0] * (point->rank == 2 ? point->dim[1] : 1), point->values,
                   point->indices, &s->tap_error);
}

/* The trace gets what is replayed, as the run does. */
static void at_point(void *context, const dsv4_point *point)
{
    const sequence *q = context;
    session *s = q->session;
    if (s->replay != NULL && s->tap_error.text[0] == '\0')
        dsv4_replay_at(s->replay, point, &s->tap_error);
    if (s->arguments->trace && s->tap_error.text[0] == '\0')
        write_point(s, q->number, point);
}

static dsv4_h5_type value_type(const session *s)
{
    return s->arguments->numerics == DSV4_EXACT ? DSV4_H5_F64 : DSV4_H5_F32;
}

static int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t maximum(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Rows that a sequence does not have: NaN, or -1. */
static int write_padding(const session *s, const char *name, int64_t number, bool index,
                         int64_t row, int64_t rows, int64_t width, dsv4_error *err)
{
    if (width == 0 || row == rows)
        return 0;
    const int64_t most = minimum(maximum(GATHERED / width, 1), rows - row), count = most * width;
    double *values = index ? NULL : dsv4_alloc((size_t)count, sizeof *values);
    int64_t *indices = index ? dsv4_alloc((size_t)count, sizeof *indices) : NULL;
    for (int64_t i = 0; i < count; i++) {
        if (index)
            indices[i] = -1;
        else
            values[i] = NAN;
    }
    int result = 0;
    for (; row < rows && result == 0; row += most)
        result = write_rows(s, name, number, row, minimum(most, rows - row), width, values,
                            indices, err);
    free(values);
    free(indices);
    return result;
}

/* A dataset of `shape` for one sequence, of which a row is `tokens` tokens, and one dimension more
 * where there are several. */
static int define_set(const session *s, const char *name, dsv4_h5_type type, int rank,
                      const int64_t *shape, int64_t tokens, double fill, dsv4_error *err)
{
    if (!s->ids.batch)
        return dsv4_h5_define(s->file, name, type, rank, shape, fill, err);
    int64_t all[DSV4_H5_MAX_RANK] = {s->ids.count}, width = 1;
    for (int i = 0; i < rank; i++) {
        all[i + 1] = shape[i];
        width *= i > 0 ? shape[i] : 1;
    }
    if (dsv4_h5_define(s->file, name, type, rank + 1, all, fill, err) != 0)
        return -1;
    for (int64_t b = 0; b < s->ids.count; b++)
        if (write_padding(s, name, b, type == DSV4_H5_I32, s->ids.sequence[b].count / tokens,
                          shape[0], width, err) != 0)
            return -1;
    return 0;
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
    const int64_t S = s->ids.width, D = c->hidden_size, n = c->hc_mult;
    const int64_t H = c->num_attention_heads, d = c->head_dim, k = c->num_experts_per_tok;
    const int64_t n_i = c->index_n_heads, d_i = c->index_head_dim;
    const int64_t r = compressed ? c->compress_ratios[layer] : 1, G = compressed ? S / r : 0;
    const int64_t chosen = indexed ? minimum(c->index_topk, G) : G;
    const struct {
        const char *name;
        bool wanted;
        dsv4_h5_type type;
        int rank;
        int64_t shape[3], tokens; /* of a row */
        double fill;
    } sets[] = {
        {"in", mtp, value, 3, {S, n, D}, 1, 0},
        {"attn_in", true, value, 2, {S, D}, 1, 0},
        {"q", true, value, 3, {S, H, d}, 1, 0},
        {"kv", true, value, 2, {S, d}, 1, 0},
        {"compressed", compressed, value, 2, {G, d}, r, 0},
        {"index_q", indexed, value, 3, {S, n_i, d_i}, 1, 0},
        {"index_k", indexed, value, 2, {G, d_i}, r, 0},
        {"index_score", indexed, value, 2, {S, G}, 1, -INFINITY},
        {"selected", compressed, index, 2, {S, chosen}, 1, -1},
        {"attn_core", true, value, 3, {S, H, d}, 1, 0},
        {"attn_out", true, value, 2, {S, D}, 1, 0},
        {"mid", true, value, 3, {S, n, D}, 1, 0},
        {"ffn_in", true, value, 2, {S, D}, 1, 0},
        {"route_index", true, index, 2, {S, k}, 1, 0},
        {"route_weight", true, value, 2, {S, k}, 1, 0},
        {"ffn_out", true, value, 2, {S, D}, 1, 0},
        {"out", true, value, 3, {S, n, D}, 1, 0},
    };
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        char name[DSV4_TRACE_NAME];
        dsv4_trace_name(name, c, layer, sets[i].name);
        if (sets[i].wanted && define_set(s, name, sets[i].type, sets[i].rank, sets[i].shape,
                                         sets[i].tokens, sets[i].fill, err) != 0)
            return -1;
    }
    return 0;
}

/* The ids that the model is given, or those that MTP is given. */
static int write_ids(const session *s, const char *name, bool next, dsv4_error *err)
{
    if (define_set(s, name, DSV4_H5_I32, 1, &s->ids.width, 1, 0, err) != 0)
        return -1;
    for (int64_t b = 0; b < s->ids.count; b++) {
        const sequence *q = &s->sequences[b];
        if (write_rows(s, name, b, 0, q->ids->count, 1, NULL, next ? q->next_ids : q->ids->id,
                       err) != 0)
            return -1;
    }
    return 0;
}

static int write_lengths(const session *s, dsv4_error *err)
{
    int result = dsv4_h5_define(s->file, "lengths", DSV4_H5_I32, 1, &s->ids.count, 0, err);
    for (int64_t b = 0; b < s->ids.count && result == 0; b++)
        result = dsv4_h5_write(s->file, "lengths", b, 1, 1, NULL, &s->ids.sequence[b].count, err);
    return result;
}

/* A run that is interrupted leaves no half of a file behind. One process writes one output, so one
 * name is enough. */
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
    const int64_t shape[] = {s->ids.width, config->vocab_size};
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
    if (write_ids(s, "token_ids", false, err) != 0 ||
        (s->ids.batch && write_lengths(s, err) != 0) ||
        define_set(s, "logits", value_type(s), 2, shape, 1, 0, err) != 0)
        return -1;
    if (mtp && (write_ids(s, "mtp_token_ids", true, err) != 0 ||
                define_set(s, "mtp_logits", value_type(s), 2, shape, 1, 0, err) != 0))
        return -1;
    int64_t layers = config->num_hidden_layers + (mtp ? 1 : 0);
    for (int64_t layer = 0; layer < layers && s->arguments->trace; layer++)
        if (define_trace(s, layer, err) != 0)
            return -1;
    return 0;
}

static int read_ids(session *s, dsv4_error *err)
{
    const logits_arguments *arguments = s->arguments;
    if (arguments->ids_h5 != NULL)
        return dsv4_sequences_read_h5(&s->ids, arguments->ids_h5,
                                      s->model.config.max_position_embeddings, err);
    dsv4_ids ids;
    if ((arguments->tokens != NULL ? dsv4_ids_parse(&ids, arguments->tokens, "--tokens", err)
                                   : dsv4_ids_read_text(&ids, arguments->ids_text, err)) != 0)
        return -1;
    s->ids = dsv4_sequences_of(&ids);
    return 0;
}

static void start_sequences(session *s)
{
    s->sequences = dsv4_alloc((size_t)s->ids.count, sizeof *s->sequences);
    for (int64_t b = 0; b < s->ids.count; b++) {
        sequence *q = &s->sequences[b];
        const dsv4_ids *ids = &s->ids.sequence[b];
        *q = (sequence){.session = s, .number = b, .ids = ids, .tap = {at_point, q}};
        q->next_ids = dsv4_alloc((size_t)ids->count, sizeof *q->next_ids);
        for (int64_t t = 0; t < ids->count; t++)
            q->next_ids[t] = ids->id[(t + 1) % ids->count];
    }
}

static void make_step(step *next, int64_t most)
{
    const size_t count = (size_t)most;
    next->who = dsv4_alloc(count, sizeof *next->who);
    next->run = dsv4_alloc(count, sizeof *next->run);
    next->ids = dsv4_alloc(count, sizeof *next->ids);
    next->next_ids = dsv4_alloc(count, sizeof *next->next_ids);
    next->n = dsv4_alloc(count, sizeof *next->n);
    next->logits = dsv4_alloc(count, sizeof *next->logits);
    next->mtp_logits = dsv4_alloc(count, sizeof *next->mtp_logits);
}

static void free_step(step *next)
{
    free(next->who);
    free(next->run);
    free(next->ids);
    free(next->next_ids);
    free(next->n);
    free(next->logits);
    free(next->mtp_logits);
}

/* The first row of which logits are wanted: without -o only what is printed. Of MTP the last row
 * but one is the last that was given a real next token; it predicts the same token as the last row
 * of the model itself. */
static int64_t first_wanted(const sequence *q)
{
    const logits_arguments *arguments = q->session->arguments;
    if (arguments->output != NULL)
        return 0;
    return maximum(q->ids->count - (arguments->mtp ? 2 : 1), 0);
}

static int open_run(session *s, sequence *q, dsv4_error *err)
{
    const logits_arguments *arguments = s->arguments;
    const bool tapped = arguments->trace || s->replay != NULL;
    const int64_t wanted = q->ids->count - first_wanted(q);
    const size_t rows = (size_t)(arguments->output != NULL ? minimum(arguments->chunk, wanted)
                                                           : wanted);
    const size_t row = (size_t)s->model.config.vocab_size * sizeof(double);
    q->run = arguments->path->open(&s->model, arguments->numerics, q->ids->count,
                                   tapped ? &q->tap : NULL, err);
    if (q->run == NULL)
        return -1;
    q->logits = dsv4_alloc(rows, row);
    q->mtp_logits = arguments->mtp ? dsv4_alloc(rows, row) : NULL;
    return 0;
}

static int configure_path(const logits_arguments *arguments, dsv4_error *err)
{
    const dsv4_path *path = arguments->path;
    if (dsv4_path_choose(path, &arguments->how, "dsv4 logits", err) != 0)
        return -1;
    if (arguments->verbose)
        fprintf(stderr, "dsv4 logits: path %s%s%s\n", path->name, path->level != NULL ? ": " : "",
                path->level != NULL ? path->level() : "");
    return 0;
}

static int open_replay(session *s, dsv4_error *err)
{
    const logits_arguments *arguments = s->arguments;
    if (arguments->replay == NULL)
        return 0;
    if (s->ids.batch)
        return dsv4_fail(err, "--replay takes one sequence: token_ids of %s has shape [%" PRId64
                         ",%" PRId64 "], expected rank 1", arguments->ids_h5, s->ids.count,
                         s->ids.width);
    s->replay = dsv4_replay_open(arguments->replay, &s->model.config, &s->ids.sequence[0],
                                 arguments->mtp, err);
    return s->replay != NULL ? 0 : -1;
}

/* Page faults wait for the disk in turn; loading all of it keeps the disk busy. That pays where
 * most experts will be met: of even ones, E / k tokens meet 63 %. */
static void start_loading(session *s)
{
    const dsv4_config *config = &s->model.config;
    if (s->arguments->path == dsv4_path_find("fast") &&
        s->ids.width >= config->n_routed_experts / config->num_experts_per_tok &&
        dsv4_preload_fits(s->model.checkpoint))
        s->preloading = dsv4_preload_begin(s->model.checkpoint);
}

static int prepare(session *s, dsv4_error *err)
{
    const logits_arguments *arguments = s->arguments;
    if (configure_path(arguments, err) != 0 ||
        dsv4_model_open(&s->model, arguments->dir, arguments->numerics, arguments->mtp, err) != 0 ||
        read_ids(s, err) != 0)
        return -1;
    if (arguments->mtp && s->model.config.num_nextn_predict_layers == 0)
        return dsv4_fail(err, "--mtp: %s has num_nextn_predict_layers 0", arguments->dir);
    if (check_ids(s, err) != 0)
        return -1;
    start_loading(s);
    start_sequences(s);
    make_step(&s->step, s->ids.count);
    if (open_replay(s, err) != 0 || (arguments->output != NULL && create_output(s, err) != 0))
        return -1;
    for (int64_t b = 0; b < s->ids.count; b++)
        if (open_run(s, &s->sequences[b], err) != 0)
            return -1;
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

static void print_sequence(const session *s, const sequence *q)
{
    const int64_t V = s->model.config.vocab_size, last = q->ids->count - 1;
    if (s->ids.batch)
        printf("%ssequence %" PRId64 "\n", q->number > 0 ? "\n" : "", q->number);
    if (s->arguments->mtp && last > 0) {
        printf("after position %" PRId64 ", by MTP at position %" PRId64 ":\n", last, last - 1);
        print_top(q->mtp_logits, V);
    }
    printf("after position %" PRId64 ":\n", last);
    print_top(q->logits + (last - first_wanted(q)) * V, V);
}

/* The next tokens of every sequence: `chunk` of them, but those of which logits are wanted come in
 * calls of their own. */
static void plan(session *s)
{
    step *next = &s->step;
    next->count = 0;
    for (int64_t b = 0; b < s->ids.count; b++) {
        sequence *q = &s->sequences[b];
        const int64_t first = first_wanted(q), end = q->done < first ? first : q->ids->count;
        if (q->done == q->ids->count)
            continue;
        const bool wanted = q->done >= first;
        const int64_t room = s->file != NULL ? 0 : (q->done - first) * s->model.config.vocab_size;
        const int64_t i = next->count++;
        next->who[i] = q;
        next->run[i] = q->run;
        next->ids[i] = q->ids->id + q->done;
        next->next_ids[i] = q->next_ids + q->done;
        next->n[i] = minimum(s->arguments->chunk, end - q->done);
        next->logits[i] = wanted ? q->logits + room : NULL;
        next->mtp_logits[i] = wanted && s->arguments->mtp ? q->mtp_logits + room : NULL;
    }
}

typedef int forward_function(dsv4_run *, const int64_t *, int64_t, double *, dsv4_error *);
typedef int batch_function(dsv4_run *const *, int64_t, const int64_t *const *, const int64_t *,
                           double *const *, dsv4_error *);

/* All at once where the path can, or one after the other. */
static int advance(const session *s, batch_function *all, forward_function *one,
                   const int64_t **ids, double **logits, dsv4_error *err)
{
    const step *next = &s->step;
    if (s->ids.batch && all != NULL)
        return all(next->run, next->count, ids, next->n, logits, err);
    for (int64_t i = 0; i < next->count; i++) {
        dsv4_error reason = {""};
        if (one(next->run[i], ids[i], next->n[i], logits[i], &reason) == 0)
            continue;
        if (!s->ids.batch)
            return dsv4_fail(err, "%s", reason.text);
        return dsv4_fail(err, "sequence %" PRId64 ": %s", next->who[i]->number, reason.text);
    }
    return 0;
}

/* What the call gave is written, or stays where it is until it is printed. */
static int deliver(session *s, dsv4_error *err)
{
    const step *next = &s->step;
    const int64_t V = s->model.config.vocab_size;
    for (int64_t i = 0; i < next->count; i++) {
        sequence *q = next->who[i];
        if (s->file != NULL && write_rows(s, "logits", q->number, q->done, next->n[i], V,
                                          next->logits[i], NULL, err) != 0)
            return -1;
        if (s->file != NULL && s->arguments->mtp &&
            write_rows(s, "mtp_logits", q->number, q->done, next->n[i], V, next->mtp_logits[i],
                       NULL, err) != 0)
            return -1;
        q->done += next->n[i];
    }
    return 0;
}

static int compute(session *s, dsv4_error *err)
{
    const dsv4_path *path = s->arguments->path;
    step *next = &s->step;
    for (plan(s); next->count > 0; plan(s)) {
        if (advance(s, path->forward_batch, path->forward, next->ids, next->logits, err) != 0)
            return -1;
        if (s->arguments->mtp && s->tap_error.text[0] == '\0' &&
            advance(s, path->mtp_batch, path->mtp, next->next_ids, next->mtp_logits, err) != 0)
            return -1;
        flush(s, &s->scores);
        flush(s, &s->choices);
        if (s->tap_error.text[0] != '\0')
            return dsv4_fail(err, "%s", s->tap_error.text);
        if (deliver(s, err) != 0)
            return -1;
    }
    if (s->replay != NULL && dsv4_replay_check(s->replay, err) != 0)
        return -1;
    for (int64_t b = 0; b < s->ids.count && s->file == NULL; b++)
        print_sequence(s, &s->sequences[b]);
    return 0;
}

static void free_sequences(session *s)
{
    for (int64_t b = 0; s->sequences != NULL && b < s->ids.count; b++) {
        sequence *q = &s->sequences[b];
        if (q->run != NULL)
            s->arguments->path->close(q->run);
        free(q->next_ids);
        free(q->logits);
        free(q->mtp_logits);
    }
    free(s->sequences);
    dsv4_sequences_free(&s->ids);
}

static void free_gathered(gathered *g)
{
    free(g->values);
    free(g->indices);
}

static int finish(session *s, int result, dsv4_error *err)
{
    dsv4_error unread = {""}; /* the pass itself would have met it */
    dsv4_preload_end(s->preloading, true, &unread);
    free_sequences(s);
    free_step(&s->step);
    free_gathered(&s->scores);
    free_gathered(&s->choices);
    dsv4_model_close(&s->model);
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
     "command wrote; of rank 2 it holds several sequences, see below", 1},
    {NULL, 0, NULL, 0, "What to compute:", 2},
    {"path", KEY_PATH, "NAME", 0, "Implementation: ref, the plain reference in binary64 "
     "(default); fast, the optimised one in binary32", 2},
    {"numerics", KEY_NUMERICS, "KIND", 0, "exact: the mathematics, no rounding of activations "
     "(default); released: every rounding of the released inference code", 2},
    {"chunk", KEY_CHUNK, "N", 0, "Tokens of a sequence per forward call, default 256. Changes the "
     "memory in use (with -o, N x vocab_size x 8 bytes of logits for each sequence), and no "
     "result", 2},
    {"mtp", KEY_MTP, NULL, 0, "Run the MTP layer as well, which predicts one token further", 2},
    {"replay", KEY_REPLAY, "TRACE.h5", 0, "Take the routings (route_index) and CSA selections "
     "(selected) of this trace instead of choosing; see below", 2},
    {NULL, 0, NULL, 0, "Where to put it:", 4},
    {"verbose", 'v', NULL, 0, "Say on standard error what runs", 4},
    {"output", 'o', "OUT.h5", 0, "Write all logits to this HDF5 file", 4},
    {"trace", KEY_TRACE, NULL, 0, "Write the intermediate tensors of every layer to it too", 4},
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
    "Several sequences: `token_ids` [B, S] of --ids-h5, with `lengths` [B] where some have fewer "
    "than S tokens. Every one of them gets what it would get alone. All shapes of OUT.h5 then have "
    "B in front, and rows behind the end of a sequence are NaN, or -1 where they are ids or "
    "indices; `lengths` is written too.\n"
    "\n"
    "--replay is for two engines that chose differently between near-equals: with one's choices "
    "the arithmetic of both can be compared alone. The trace may come from any engine, whole or "
    "in part: a layer that it lacks chooses for itself; an HCA layer, which takes all that is "
    "visible, has no choice. The weights of the experts are computed here: a `route_weight` in "
    "the trace is not used, nor is the last row of MTP. Everything is checked before the run, and "
    "a line on standard error says how often the run would have chosen otherwise. One sequence only.\n"
    "\n"
    "Example: dsv4 logits model/ --tokens \"0 17 99\" --trace -o out.h5";

/* The number that `text` is, or -1. */
static int64_t parse_number(const char *text)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    return end == text || *end != '\0' || errno != 0 || number < 0 ? -1 : number;
}

static int64_t parse_chunk(const char *text, struct argp_state *state)
{
    int64_t chunk = parse_number(text);
    if (chunk < 1)
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
    case ARGP_KEY_INIT: state->child_inputs[0] = &arguments->how; return 0;
    case 'v': arguments->verbose = true; return 0;
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
    const struct argp_child children[] = {{&dsv4_path_argp, 0, NULL, 0}, {0}};
    const struct argp argp = {.options = options, .parser = parse_option, .args_doc = "MODEL_DIR",
                              .doc = documentation, .children = children};
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
