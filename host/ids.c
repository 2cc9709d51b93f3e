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
