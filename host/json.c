#include "json.h"

#include <stdbool.h>

typedef struct {
    const char *text; /* without the quotes; NULL while there is none */
    int length;
} string;

/* Of the text before the fault: the last string, and the last one that is a key of the outermost
 * object. */
static void last_strings(const char *text, size_t end, string *last, string *outer_key)
{
    int depth = 0;
    for (size_t i = 0; i < end; i++) {
        if (text[i] == '{' || text[i] == '[')
            depth++;
        else if (text[i] == '}' || text[i] == ']')
            depth--;
        else if (text[i] == ':' && depth == 1)
            *outer_key = *last;
        else if (text[i] == '"') {
            size_t begin = ++i;
            while (i < end && text[i] != '"')
                i += text[i] == '\\' ? 2 : 1;
            *last = (string){text + begin, (int)((i < end ? i : end) - begin)};
        }
    }
}

json_t *dsv4_json_parse(const char *text, size_t length, const char *where, dsv4_error *err)
{
    json_error_t problem;
    json_t *root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &problem);
    if (root != NULL)
        return root;
    string last = {0}, outer_key = {0};
    size_t end = problem.position > 0 ? (size_t)problem.position : 0;
    last_strings(text, end < length ? end : length, &last, &outer_key);
    if (json_error_code(&problem) == json_error_duplicate_key)
        dsv4_fail(err, "%s: line %d: duplicate object key \"%.*s\"", where, problem.line,
                  last.length, last.text);
    else if (outer_key.text != NULL)
        dsv4_fail(err, "%s: line %d: %s, after the key \"%.*s\"", where, problem.line,
                  problem.text, outer_key.length, outer_key.text);
    else
        dsv4_fail(err, "%s: line %d: %s", where, problem.line, problem.text);
    return NULL;
}
