/* JSON: text of the caller's, with messages that name the key at fault; and texts of any bytes. */
#ifndef DSV4_JSON_H
#define DSV4_JSON_H

#include <jansson.h>

#include "error.h"

/* Parses text in which no object has a key twice. NULL, with one line that begins with `where` and
 * names the key that is double, or the last outer key before the fault. */
json_t *dsv4_json_parse(const char *text, size_t length, const char *where, dsv4_error *err);

/* A string; bytes that are no UTF-8, which JSON has to be, become U+FFFD each. */
json_t *dsv4_json_text(const char *text);

#endif
