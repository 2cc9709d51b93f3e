#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int dsv4_fail(dsv4_error *err, const char *format, ...)
{
    if (err == NULL || err->text[0] != '\0')
        return -1;
    va_list arguments;
    va_start(arguments, format);
    char *whole = NULL;
    int length = vasprintf(&whole, format, arguments);
    va_end(arguments);
    const size_t room = sizeof err->text - 1, half = room / 2 - 2;
    if (length < 0)
        snprintf(err->text, sizeof err->text, "%s", format);
    else if ((size_t)length <= room)
        strcpy(err->text, whole);
    else /* what was expected stands at the end: the middle goes */
        snprintf(err->text, sizeof err->text, "%.*s...%s", (int)half, whole,
                 whole + (size_t)length - half);
    free(whole);
    for (char *c = err->text; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    return -1;
}

void *dsv4_alloc(size_t count, size_t size)
{
    void *memory = calloc(count != 0 ? count : 1, size != 0 ? size : 1);
    if (memory == NULL) {
        fprintf(stderr, "dsv4: out of memory for %zu items of %zu bytes\n", count, size);
        exit(2);
    }
    return memory;
}
