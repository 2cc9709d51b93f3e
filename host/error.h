/* One clear line about what went wrong: the file, the tensor, what was expected, what was found. */
#ifndef DSV4_ERROR_H
#define DSV4_ERROR_H

#include <stddef.h>

typedef struct {
    char text[1024]; /* empty while all is well; never ends in a newline */
} dsv4_error;

/* Writes the message (printf format), keeping an earlier one, and returns -1, so that callers can
 * `return dsv4_fail(err, ...)`. Control characters are replaced: a message is always one line. */
int dsv4_fail(dsv4_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Zeroed memory for `count` items of `size` bytes. Prints one line and ends the program with exit
 * code 2 when there is none: no caller has anything better to do. Release with free(). */
void *dsv4_alloc(size_t count, size_t size);

#endif
