/* A file of the caller's, mapped read-only. */
#ifndef DSV4_FILE_H
#define DSV4_FILE_H

#include <stddef.h>

#include "error.h"

typedef struct {
    const char *data; /* never NULL while mapped, also when the file is empty */
    size_t size;
} dsv4_file;

/* Maps a regular file. 0, or -1 with one line that names it. */
int dsv4_file_map(dsv4_file *file, const char *path, dsv4_error *err);
void dsv4_file_unmap(dsv4_file *file);

#endif
