/* Answers that other programs wrote: an HDF5 file with /OPERATOR/CASE/out/SLOT, or a command that
 * makes one of each vector file. */
#ifndef DSV4_CANDIDATE_H
#define DSV4_CANDIDATE_H

#include "engine.h"

/* -1 with one line where it is no readable HDF5 file. */
int dsv4_candidate_engine(dsv4_engine *engine, const char *path, dsv4_error *err);

/* `command` goes to /bin/sh with {in} and {out} replaced by quoted paths, once for each vector
 * file. The time allowed is `timeout` seconds times the file's cases. -1 where {in} or {out} is
 * missing. */
int dsv4_exec_engine(dsv4_engine *engine, const char *command, double timeout, dsv4_error *err);

#endif
