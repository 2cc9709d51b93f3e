/* Token ids from the command line, a text file or an HDF5 file. */
#ifndef DSV4_IDS_H
#define DSV4_IDS_H

#include <stdint.h>

#include "error.h"

typedef struct {
    int64_t *id;   /* owned */
    int64_t count; /* at least 1 after any of the readers below */
} dsv4_ids;

/* "5 17 99": decimal numbers between white space and commas; one pair of brackets around all is
 * allowed. `name` stands for the text in messages. Whether an id is in the vocabulary is for the
 * caller to check. 0, or -1 with one line in `err`. */
int dsv4_ids_parse(dsv4_ids *ids, const char *text, const char *name, dsv4_error *err);

/* The same from a text file. */
int dsv4_ids_read_text(dsv4_ids *ids, const char *path, dsv4_error *err);

/* Dataset `token_ids` (integers, rank 1) of an HDF5 file, of at most `limit` ids. */
int dsv4_ids_read_h5(dsv4_ids *ids, const char *path, int64_t limit, dsv4_error *err);

/* Refuses more than `limit` ids from `name`. */
int dsv4_ids_check_count(int64_t count, const char *name, int64_t limit, dsv4_error *err);

void dsv4_ids_free(dsv4_ids *ids);

#endif
