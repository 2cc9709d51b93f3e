/* dsv4 logits --replay: routings and selections of a trace file, taken instead of a run's own, so
 * that the arithmetic can be compared alone. spec/trace.md. */
#ifndef DSV4_REPLAY_H
#define DSV4_REPLAY_H

#include <stdbool.h>
#include <stdio.h>

#include "config.h"
#include "ids.h"
#include "path.h"

typedef struct dsv4_replay dsv4_replay;

/* Reads and checks every choice that the trace file `path` has for a run of `ids`: `route_index` of
 * all layers, `selected` of CSA layers (an HCA layer has no choice), and with `mtp` those of MTP,
 * without the last row, which is free. A layer that the file lacks chooses for itself. NULL with
 * one line in `err` where the file has no choice at all, other tokens, or what cannot be chosen. */
dsv4_replay *dsv4_replay_open(const char *path, const dsv4_config *config, const dsv4_ids *ids,
                              bool mtp, dsv4_error *err);
void dsv4_replay_free(dsv4_replay *replay);

/* For the tap: puts the file's choice in the place of the run's, where the file has one. */
void dsv4_replay_at(dsv4_replay *replay, const dsv4_point *point, dsv4_error *err);

/* After the run: -1 where a choice of the file was never asked for. */
int dsv4_replay_check(const dsv4_replay *replay, dsv4_error *err);

/* One line: what was replayed, and how much of it the run would have chosen otherwise. */
void dsv4_replay_report(const dsv4_replay *replay, FILE *out);

#endif
