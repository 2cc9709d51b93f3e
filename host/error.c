#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int dsv4_fail(dsv4_error *err, const char *format, ...)
{
    if (err == NULL || err->text[0] != '\0')
        return -1;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->text, sizeof err->text, format, arguments);
    va_end(arguments);
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
