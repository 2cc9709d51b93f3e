#include "replay.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "h5.h"
#include "trace.h"

enum { ROUTING, SELECTION, KINDS };

/* What one layer chooses: a dataset of the run, which the file may have. */
typedef struct {
    char name[DSV4_TRACE_NAME];
    int kind;
    int64_t width;  /* of a row */
    int64_t rows;   /* that are replayed */
    int64_t limit;  /* experts, or the layer's compression ratio */
    bool repeats;   /* a row may name one twice */
    dsv4_h5_data data; /* no indices: the layer chooses for itself */
    int64_t shown, different, first; /* rows so far; the first that is different */
} choice;

struct dsv4_replay {
    char *path;
    int64_t hidden_layers; /* MTP comes behind them */
    int64_t count;
    choice (*layers)[KINDS];
    int64_t *mine, *theirs; /* one row of each, sorted */
};

static int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* How many entries row `row` chooses, and from how many. */
static int64_t due(const choice *set, int64_t row, int64_t *candidates)
{
    *candidates = set->kind == ROUTING ? set->limit : (row + 1) / set->limit;
    return set->kind == ROUTING ? set->width : minimum(set->width, *candidates);
}

static int check_value(const dsv4_replay *replay, const choice *set, int64_t row, int64_t i,
                       dsv4_error *err)
{
    int64_t candidates, count = due(set, row, &candidates);
    int64_t value = set->data.indices[row * set->width + i];
    char expected[96];
    if (i < count ? value >= 0 && value < candidates : value == -1)
        return 0;
    if (set->kind == ROUTING)
        snprintf(expected, sizeof expected, "an expert 0..%" PRId64, candidates - 1);
    else if (i < count)
        snprintf(expected, sizeof expected, "an entry that token %" PRId64 " may see, 0..%" PRId64,
                 row, candidates - 1);
    else
        snprintf(expected, sizeof expected, "-1: token %" PRId64 " may see %" PRId64
                 " entries", row, candidates);
    return dsv4_fail(err, "%s: %s: value [%" PRId64 ",%" PRId64 "] is %" PRId64 ", expected %s",
                     replay->path, set->name, row, i, value, expected);
}

/* `last` [candidates]: the row, plus one, that named each of them last. */
static int check_row(const dsv4_replay *replay, const choice *set, int64_t row, int64_t *last,
                     dsv4_error *err)
{
    int64_t candidates, count = due(set, row, &candidates);
    for (int64_t i = 0; i < set->width; i++) {
        if (check_value(replay, set, row, i, err) != 0)
            return -1;
        int64_t value = set->data.indices[row * set->width + i];
        if (i >= count)
            continue;
        if (last[value] == row + 1 && !set->repeats)
            return dsv4_fail(err, "%s: %s: row %" PRId64 " has %" PRId64 " twice, expected %"
                             PRId64 " different %s", replay->path, set->name, row, value, count,
                             set->kind == ROUTING ? "experts" : "entries");
        last[value] = row + 1;
    }
    return 0;
}

static int check_shape(const dsv4_replay *replay, const choice *set, int64_t tokens,
                       dsv4_error *err)
{
    const dsv4_h5_data *data = &set->data;
    if (!data->integer)
        return dsv4_fail(err, "%s: %s: expected integers, got floats", replay->path, set->name);
    if (data->rank == 2 && data->shape[0] == tokens && data->shape[1] == set->width)
        return 0;
    char shape[DSV4_H5_MAX_RANK * 24] = "";
    for (int i = 0; i < data->rank; i++)
        sprintf(shape + strlen(shape), "%s%" PRId64, i > 0 ? "," : "", data->shape[i]);
    return dsv4_fail(err, "%s: %s: shape [%s], expected [%" PRId64 ",%" PRId64
                     "] for this run and model", replay->path, set->name, shape, tokens,
                     set->width);
}

/* Reads one dataset, where the file has it. */
static int read_choice(dsv4_replay *replay, dsv4_h5 *file, choice *set, int64_t tokens,
                       dsv4_error *err)
{
    if (!dsv4_h5_has(file, set->name))
        return 0;
    if (dsv4_h5_read(file, set->name, &set->data, err) != 0 ||
        check_shape(replay, set, tokens, err) != 0)
        return -1;
    int64_t candidates, result = 0;
    due(set, tokens - 1, &candidates);
    int64_t *last = dsv4_alloc((size_t)candidates, sizeof *last);
    for (int64_t row = 0; row < set->rows && result == 0; row++)
        result = check_row(replay, set, row, last, err);
    free(last);
    return result != 0 ? -1 : 0;
}

/* The choices that a run of `tokens` tokens makes in one layer. */
static void list_choices(const dsv4_config *config, int64_t layer, int64_t tokens,
                         choice set[KINDS])
{
    const bool mtp = layer >= config->num_hidden_layers;
    /* The last row of MTP is given a token that is not known. */
    const int64_t rows = mtp ? tokens - 1 : tokens;
    set[ROUTING] = (choice){.kind = ROUTING, .rows = rows, .width = config->num_experts_per_tok,
                            .limit = config->n_routed_experts,
                            .repeats = layer < config->num_hash_layers, .first = -1};
    dsv4_trace_name(set[ROUTING].name, config, layer, "route_index");
    if (dsv4_config_kind(config, layer) != DSV4_CSA)
        return;
    const int64_t ratio = config->compress_ratios[layer];
    set[SELECTION] = (choice){.kind = SELECTION, .rows = rows, .limit = ratio, .first = -1,
                              .width = minimum(config->index_topk, tokens / ratio)};
    dsv4_trace_name(set[SELECTION].name, config, layer, "selected");
}

static int check_ids(const dsv4_replay *replay, dsv4_h5 *file, const dsv4_ids *ids,
                     dsv4_error *err)
{
    dsv4_ids theirs = {0};
    if (!dsv4_h5_has(file, "token_ids"))
        return 0;
    int64_t count = dsv4_h5_count(file, "token_ids", err);
    if (count >= 0 && count != ids->count)
        dsv4_fail(err, "%s: token_ids: a trace of %" PRId64 " tokens, expected the %" PRId64
                  " of this run", replay->path, count, ids->count);
    if (count != ids->count || dsv4_ids_read_h5(&theirs, replay->path, count, err) != 0)
        return -1;
    int result = 0;
    for (int64_t t = 0; t < ids->count && result == 0; t++)
        if (theirs.id[t] != ids->id[t])
            result = dsv4_fail(err, "%s: token_ids: token %" PRId64 " is %" PRId64
                               ", expected %" PRId64 " as in this run", replay->path, t,
                               theirs.id[t], ids->id[t]);
    dsv4_ids_free(&theirs);
    return result;
}

static int read_file(dsv4_replay *replay, dsv4_h5 *file, const dsv4_ids *ids, dsv4_error *err)
{
    int64_t found = 0;
    if (check_ids(replay, file, ids, err) != 0)
        return -1;
    for (int64_t layer = 0; layer < replay->count; layer++)
        for (int kind = 0; kind < KINDS; kind++) {
            choice *set = &replay->layers[layer][kind];
            if (set->name[0] != '\0' && read_choice(replay, file, set, ids->count, err) != 0)
                return -1;
            found += set->data.indices != NULL;
        }
    if (found == 0)
        return dsv4_fail(err, "%s: nothing to replay: expected one or more of trace/layers/L/"
                         "route_index and, of CSA layers, trace/layers/L/selected", replay->path);
    return 0;
}

dsv4_replay *dsv4_replay_open(const char *path, const dsv4_config *config, const dsv4_ids *ids,
                              bool mtp, dsv4_error *err)
{
    dsv4_h5 *file = dsv4_h5_open(path, err);
    if (file == NULL)
        return NULL;
    dsv4_replay *replay = dsv4_alloc(1, sizeof *replay);
    replay->path = dsv4_alloc(strlen(path) + 1, 1);
    strcpy(replay->path, path);
    replay->hidden_layers = config->num_hidden_layers;
    replay->count = config->num_hidden_layers + (mtp ? 1 : 0);
    replay->layers = dsv4_alloc((size_t)replay->count, sizeof *replay->layers);
    int64_t widest = 0;
    for (int64_t layer = 0; layer < replay->count; layer++) {
        list_choices(config, layer, ids->count, replay->layers[layer]);
        for (int kind = 0; kind < KINDS; kind++)
            if (replay->layers[layer][kind].width > widest)
                widest = replay->layers[layer][kind].width;
    }
    replay->mine = dsv4_alloc((size_t)widest, sizeof *replay->mine);
    replay->theirs = dsv4_alloc((size_t)widest, sizeof *replay->theirs);
    int result = read_file(replay, file, ids, err);
    dsv4_h5_abandon(file);
    if (result == 0)
        return replay;
    dsv4_replay_free(replay);
    return NULL;
}

void dsv4_replay_free(dsv4_replay *replay)
{
    if (replay == NULL)
        return;
    for (int64_t layer = 0; layer < replay->count; layer++)
        for (int kind = 0; kind < KINDS; kind++)
            dsv4_h5_data_free(&replay->layers[layer][kind].data);
    free(replay->layers);
    free(replay->mine);
    free(replay->theirs);
    free(replay->path);
    free(replay);
}

static int compare_indices(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static bool same_set(dsv4_replay *replay, const int64_t *mine, const int64_t *theirs,
                     int64_t count)
{
    const size_t bytes = (size_t)count * sizeof *mine;
    memcpy(replay->mine, mine, bytes);
    memcpy(replay->theirs, theirs, bytes);
    qsort(replay->mine, (size_t)count, sizeof *mine, compare_indices);
    qsort(replay->theirs, (size_t)count, sizeof *theirs, compare_indices);
    return memcmp(replay->mine, replay->theirs, bytes) == 0;
}

/* One row, of which the path shows the first `width` places. */
static int replay_row(dsv4_replay *replay, choice *set, int64_t row, int64_t width, int64_t *own,
                      dsv4_error *err)
{
    int64_t candidates;
    if (row < 0 || row >= set->data.shape[0] || width > set->width ||
        width < due(set, row, &candidates))
        return dsv4_fail(err, "%s: %s: the path shows %" PRId64 " places of row %" PRId64
                         ", which does not fit", replay->path, set->name, width, row);
    set->shown++;
    if (row >= set->rows)
        return 0;
    const int64_t *theirs = set->data.indices + row * set->width;
    if (!same_set(replay, own, theirs, width)) {
        set->different++;
        set->first = set->first < 0 ? row : set->first;
    }
    memcpy(own, theirs, (size_t)width * sizeof *own);
    return 0;
}

void dsv4_replay_at(dsv4_replay *replay, const dsv4_point *point, dsv4_error *err)
{
    int kind = strcmp(point->name, "route_index") == 0 ? ROUTING
               : strcmp(point->name, "selected") == 0  ? SELECTION : KINDS;
    if (kind == KINDS || point->layer >= replay->count)
        return;
    choice *set = &replay->layers[point->layer][kind];
    if (set->data.indices == NULL)
        return;
    const int64_t width = point->dim[0];
    for (int64_t r = 0; r < point->rows; r++)
        if (replay_row(replay, set, point->row + r, width, point->indices + r * width, err) != 0)
            return;
}

int dsv4_replay_check(const dsv4_replay *replay, dsv4_error *err)
{
    for (int64_t layer = 0; layer < replay->count; layer++)
        for (int kind = 0; kind < KINDS; kind++) {
            const choice *set = &replay->layers[layer][kind];
            if (set->data.indices != NULL && set->shown != set->data.shape[0])
                return dsv4_fail(err, "%s: %s: the path asked for %" PRId64 " of %" PRId64
                                 " rows: it does not replay", replay->path, set->name, set->shown,
                                 set->data.shape[0]);
        }
    return 0;
}

void dsv4_replay_report(const dsv4_replay *replay, FILE *out)
{
    int64_t known = 0, found = 0, rows[KINDS] = {0}, different[KINDS] = {0};
    const choice *first = NULL;
    for (int64_t layer = 0; layer < replay->count; layer++)
        for (int kind = KINDS - 1; kind >= 0; kind--) { /* a layer selects before it routes */
            const choice *set = &replay->layers[layer][kind];
            known += set->name[0] != '\0';
            if (set->data.indices == NULL)
                continue;
            found++;
            rows[kind] += set->rows;
            different[kind] += set->different;
            first = first == NULL && set->different > 0 ? set : first;
        }
    fprintf(out, "replayed %" PRId64 " of the %" PRId64 " datasets of choices; %" PRId64 " of %"
            PRId64 " routings and %" PRId64 " of %" PRId64 " selections differ from the run's own "
            "choice", found, known, different[ROUTING], rows[ROUTING], different[SELECTION],
            rows[SELECTION]);
    if (first != NULL)
        fprintf(out, ", first %s of token %" PRId64, first->name, first->first);
    fputc('\n', out);
}
