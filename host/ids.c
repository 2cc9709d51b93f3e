#include "ids.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5.h"

enum { MAX_WORD = 40 }; /* no number is longer, and a file that is no text ends here early */

typedef struct {
    FILE *stream;
    const char *name;
    dsv4_ids *ids;
    bool opened, closed; /* the brackets */
} parser;

static bool is_separator(int c)
{
    return c == ',' || c == ' ' || (c >= '\t' && c <= '\r');
}

static void append(dsv4_ids *ids, int64_t id)
{
    if ((ids->count & (ids->count - 1)) == 0) { /* doubled at every power of two */
        int64_t *grown = dsv4_alloc(2 * (size_t)ids->count + 1, sizeof *grown);
        if (ids->count > 0)
            memcpy(grown, ids->id, (size_t)ids->count * sizeof *grown);
        free(ids->id);
        ids->id = grown;
    }
    ids->id[ids->count++] = id;
}

static int add_word(parser *p, const char *word, dsv4_error *err)
{
    const char *digits = word + (word[0] == '-' || word[0] == '+');
    bool number = *digits != '\0' && strspn(digits, "0123456789") == strlen(digits);
    if (!number || p->closed)
        return dsv4_fail(err, "%s: item %lld: '%s' is %s", p->name, (long long)p->ids->count + 1,
                         word, number ? "after the closing bracket" : "not a decimal number");
    errno = 0;
    long long id = strtoll(word, NULL, 10);
    if (errno != 0)
        return dsv4_fail(err, "%s: item %lld: %s does not fit a 64-bit number", p->name,
                         (long long)p->ids->count + 1, word);
    append(p->ids, id);
    return 0;
}

static int bracket(parser *p, int c, dsv4_error *err)
{
    bool good = c == '[' ? !p->opened && p->ids->count == 0 : p->opened && !p->closed;
    if (!good)
        return dsv4_fail(err, "%s: item %lld: misplaced '%c'", p->name,
                         (long long)p->ids->count + 1, c);
    p->opened = true;
    p->closed = c == ']';
    return 0;
}

/* Words end at a separator, at a bracket and at the end. */
static int parse_stream(parser *p, dsv4_error *err)
{
    char word[MAX_WORD + 1];
    int length = 0;
    int c;
    do {
        c = getc(p->stream);
        if (c == EOF || c == '[' || c == ']' || is_separator(c)) {
            word[length] = '\0';
            if (length > 0 && add_word(p, word, err) != 0)
                return -1;
            length = 0;
            if ((c == '[' || c == ']') && bracket(p, c, err) != 0)
                return -1;
        } else if (length < MAX_WORD) {
            word[length++] = c != '\0' ? (char)c : '?';
        } else {
            word[length] = '\0';
            return dsv4_fail(err, "%s: item %lld: '%s...' is not a token id", p->name,
                             (long long)p->ids->count + 1, word);
        }
    } while (c != EOF);
    if (ferror(p->stream))
        return dsv4_fail(err, "%s: cannot read: %s", p->name, strerror(errno));
    if (p->opened && !p->closed)
        return dsv4_fail(err, "%s: no closing bracket", p->name);
    if (p->ids->count == 0)
        return dsv4_fail(err, "%s: no token ids", p->name);
    return 0;
}

static int parse(dsv4_ids *ids, FILE *stream, const char *name, dsv4_error *err)
{
    *ids = (dsv4_ids){0};
    if (stream == NULL)
        return dsv4_fail(err, "%s: cannot open: %s", name, strerror(errno));
    parser p = {.stream = stream, .name = name, .ids = ids};
    int result = parse_stream(&p, err);
    fclose(stream);
    if (result != 0)
        dsv4_ids_free(ids);
    return result;
}

int dsv4_ids_parse(dsv4_ids *ids, const char *text, const char *name, dsv4_error *err)
{
    return parse(ids, fmemopen((void *)text, strlen(text), "r"), name, err); /* only read */
}

int dsv4_ids_read_text(dsv4_ids *ids, const char *path, dsv4_error *err)
{
    return parse(ids, fopen(path, "rb"), path, err);
}

int dsv4_ids_check_count(int64_t count, const char *name, int64_t limit, dsv4_error *err)
{
    return count <= limit ? 0 : dsv4_fail(err, "%s: %lld token ids: the model has "
                                          "max_position_embeddings %lld", name, (long long)count,
                                          (long long)limit);
}

int dsv4_ids_read_h5(dsv4_ids *ids, const char *path, int64_t limit, dsv4_error *err)
{
    *ids = (dsv4_ids){0};
    dsv4_h5 *file = dsv4_h5_open(path, err);
    if (file == NULL)
        return -1;
    dsv4_h5_data data = {0};
    int64_t count = dsv4_h5_count(file, "token_ids", err);
    int result = count < 0 ? -1 : dsv4_ids_check_count(count, path, limit, err);
    if (result == 0)
        result = dsv4_h5_read(file, "token_ids", &data, err);
    if (result == 0 && (data.rank != 1 || !data.integer))
        result = dsv4_fail(err, "%s: token_ids: expected integers of rank 1, got %s of rank %d",
                           path, data.integer ? "integers" : "floats", data.rank);
    else if (result == 0 && data.count == 0)
        result = dsv4_fail(err, "%s: token_ids: no token ids", path);
    if (result == 0) {
        *ids = (dsv4_ids){.id = data.indices, .count = data.count};
        data.indices = NULL; /* theirs now */
    }
    dsv4_h5_data_free(&data);
    dsv4_h5_close(file, NULL);
    return result;
}

void dsv4_ids_free(dsv4_ids *ids)
{
    free(ids->id);
    *ids = (dsv4_ids){0};
}

dsv4_sequences dsv4_sequences_of(dsv4_ids *ids)
{
    dsv4_sequences one = {.sequence = dsv4_alloc(1, sizeof *ids), .count = 1, .width = ids->count};
    *one.sequence = *ids;
    *ids = (dsv4_ids){0};
    return one;
}

static int check_shape(const dsv4_h5_info *info, const char *path, int64_t limit, dsv4_error *err)
{
    long long B = info->shape[0], S = info->shape[1];
    if (info->rank != 2)
        return dsv4_fail(err, "%s: token_ids: rank %d, expected 1, or 2 where there are several "
                         "sequences", path, info->rank);
    if (B == 0 || S == 0)
        return dsv4_fail(err, "%s: token_ids: shape [%lld,%lld]: no token ids", path, B, S);
    if (B > DSV4_MAX_SEQUENCES)
        return dsv4_fail(err, "%s: token_ids: %lld sequences, expected at most %d", path, B,
                         DSV4_MAX_SEQUENCES);
    if (S > limit)
        return dsv4_fail(err, "%s: sequences of %lld token ids: the model has "
                         "max_position_embeddings %lld", path, S, (long long)limit);
    return 0;
}

static int read_lengths(dsv4_h5 *file, const char *path, const dsv4_sequences *sequences,
                        dsv4_h5_data *lengths, dsv4_error *err)
{
    dsv4_h5_info info;
    if (dsv4_h5_describe(file, "lengths", &info, err) != 0)
        return -1;
    if (info.rank != 1 || info.shape[0] != sequences->count)
        return dsv4_fail(err, "%s: lengths: %lld values of rank %d, expected one for each of the "
                         "%lld sequences", path, (long long)info.count, info.rank,
                         (long long)sequences->count);
    if (dsv4_h5_read(file, "lengths", lengths, err) != 0)
        return -1;
    if (!lengths->integer)
        return dsv4_fail(err, "%s: lengths: expected integers, got floats", path);
    for (int64_t b = 0; b < lengths->count; b++)
        if (lengths->indices[b] < 1 || lengths->indices[b] > sequences->width)
            return dsv4_fail(err, "%s: lengths: sequence %lld has %lld tokens, expected 1..%lld",
                             path, (long long)b, (long long)lengths->indices[b],
                             (long long)sequences->width);
    return 0;
}

/* `lengths` NULL: all are of full length. */
static void split(dsv4_sequences *sequences, const int64_t *ids, const int64_t *lengths)
{
    sequences->sequence = dsv4_alloc((size_t)sequences->count, sizeof *sequences->sequence);
    for (int64_t b = 0; b < sequences->count; b++) {
        dsv4_ids *one = &sequences->sequence[b];
        one->count = lengths != NULL ? lengths[b] : sequences->width;
        one->id = dsv4_alloc((size_t)one->count, sizeof *one->id);
        memcpy(one->id, ids + b * sequences->width, (size_t)one->count * sizeof *one->id);
    }
}

static int read_batch(dsv4_sequences *sequences, dsv4_h5 *file, const char *path,
                      const dsv4_h5_info *info, int64_t limit, dsv4_error *err)
{
    if (check_shape(info, path, limit, err) != 0)
        return -1;
    dsv4_sequences shape = {.count = info->shape[0], .width = info->shape[1], .batch = true};
    dsv4_h5_data ids = {0}, lengths = {0};
    int result = dsv4_h5_read(file, "token_ids", &ids, err);
    if (result == 0 && !ids.integer)
        result = dsv4_fail(err, "%s: token_ids: expected integers, got floats", path);
    if (result == 0 && dsv4_h5_has(file, "lengths"))
        result = read_lengths(file, path, &shape, &lengths, err);
    if (result == 0) {
        *sequences = shape;
        split(sequences, ids.indices, lengths.indices);
    }
    dsv4_h5_data_free(&ids);
    dsv4_h5_data_free(&lengths);
    return result;
}

int dsv4_sequences_read_h5(dsv4_sequences *sequences, const char *path, int64_t limit,
                           dsv4_error *err)
{
    *sequences = (dsv4_sequences){0};
    dsv4_h5 *file = dsv4_h5_open(path, err);
    if (file == NULL)
        return -1;
    dsv4_h5_info info;
    int result = dsv4_h5_describe(file, "token_ids", &info, err);
    if (result == 0 && info.rank != 1)
        result = read_batch(sequences, file, path, &info, limit, err);
    dsv4_h5_close(file, NULL);
    if (result != 0 || info.rank != 1)
        return result;
    dsv4_ids ids;
    if (dsv4_ids_read_h5(&ids, path, limit, err) != 0)
        return -1;
    *sequences = dsv4_sequences_of(&ids);
    return 0;
}

void dsv4_sequences_free(dsv4_sequences *sequences)
{
    for (int64_t b = 0; b < sequences->count; b++)
        dsv4_ids_free(&sequences->sequence[b]);
    free(sequences->sequence);
    *sequences = (dsv4_sequences){0};
}
