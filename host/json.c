#include "json.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

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

/* Bytes of the character at the beginning, 1 to 4; 0 where there is none. */
static size_t length_of_character(const unsigned char *text)
{
    size_t length = text[0] < 0x80 ? 1 : text[0] < 0xc2 ? 0 : text[0] < 0xe0 ? 2
                    : text[0] < 0xf0 ? 3 : text[0] < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    /* Longer than need be, a surrogate, beyond U+10FFFF: seen in the second byte. */
    bool wrong = (text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] >= 0xa0) ||
                 (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] >= 0x90);
    return wrong ? 0 : length;
}

json_t *dsv4_json_text(const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd";
    char *whole = dsv4_alloc(3 * strlen(text) + 1, 1), *to = whole;
    while (*text != '\0') {
        size_t length = length_of_character((const unsigned char *)text);
        memcpy(to, length > 0 ? text : replacement, length > 0 ? length : 3);
        to += length > 0 ? length : 3;
        text += length > 0 ? length : 1;
    }
    json_t *json = json_string(whole);
    free(whole);
    return json;
}
