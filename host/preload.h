/* The files of a checkpoint on their way between the disk and memory. */
#ifndef DSV4_PRELOAD_H
#define DSV4_PRELOAD_H

#include <stdbool.h>

#include "checkpoint.h"

typedef struct {
    double bytes;    /* of all files */
    double resident; /* of them, those in memory: the page cache */
} dsv4_residency;

/* The system tells it to those who own a file or may write to it; others hear that all of it is. */
dsv4_residency dsv4_residency_of(const dsv4_checkpoint *checkpoint);

/* Whether memory has room for all of it, with a quarter to spare. */
bool dsv4_preload_fits(const dsv4_checkpoint *checkpoint);

/* Brings all of it into memory and into this process's tables, in the order of the files and in
 * several streams, since one does not keep a disk busy. Not for what does not fit. Others may read
 * the checkpoint meanwhile. The end waits until all is loaded, or, with `stop`, for no more than
 * what has been begun; before the checkpoint is closed there has to be one. 0, or -1 with one line
 * where a file cannot be read. */
typedef struct dsv4_preloading dsv4_preloading;
dsv4_preloading *dsv4_preload_begin(const dsv4_checkpoint *checkpoint);
int dsv4_preload_end(dsv4_preloading *preloading, bool stop, dsv4_error *err); /* NULL is fine */

/* Drops its files from memory, as far as no other process has them mapped. */
int dsv4_evict(const dsv4_checkpoint *checkpoint, dsv4_error *err);

/* Bytes per second that the disk gives of the largest file, past the page cache, in blocks of 16
 * MiB one after the other; at most 256 MiB and a sixteenth of the file, from the fraction `place`
 * of it on, 0 to 0.9. -1 with one line where the file system refuses that. */
int dsv4_direct_rate(const dsv4_checkpoint *checkpoint, double place, double *rate,
                     dsv4_error *err);

#endif
