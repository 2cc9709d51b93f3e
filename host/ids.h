/* Token ids from the command line, a text file or an HDF5 file. */
#ifndef DSV4_IDS_H
#define DSV4_IDS_H

#include <stdbool.h>
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

/* ---- several sequences ---- */

enum { DSV4_MAX_SEQUENCES = 4096 };

typedef struct {
    dsv4_ids *sequence; /* [count], owned */
    int64_t count;      /* at least 1 */
    int64_t width;      /* S: no sequence is longer */
    bool batch;         /* from `token_ids` [count, S]; otherwise it is one sequence of S ids */
} dsv4_sequences;

/* The one sequence that `ids`, which are taken over, are. */
dsv4_sequences dsv4_sequences_of(dsv4_ids *ids);

/* Dataset `token_ids` (integers) of an HDF5 file: rank 1, as dsv4_ids_read_h5(), or rank 2 [B, S],
 * with the number of tokens of every sequence, 1..S, in `lengths` [B]; without `lengths` all have
 * S. What is behind them is not looked at. S is `limit` at most, in either case. */
int dsv4_sequences_read_h5(dsv4_sequences *sequences, const char *path, int64_t limit,
                           dsv4_error *err);

void dsv4_sequences_free(dsv4_sequences *sequences);

#endif
