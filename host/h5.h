/* HDF5 tensor files: logits, traces and golden vectors. Plain numeric datasets, no filters, no
 * timestamps: two runs write the same bytes. */
#ifndef DSV4_H5_H
#define DSV4_H5_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

enum { DSV4_H5_MAX_RANK = 8 };

typedef enum {
    DSV4_H5_F64, DSV4_H5_F32, DSV4_H5_I32, DSV4_H5_I64, DSV4_H5_U8, DSV4_H5_U64,
    DSV4_H5_OTHER /* what a foreign file may hold besides */
} dsv4_h5_type;

const char *dsv4_h5_type_name(dsv4_h5_type type); /* "float64", "uint8" ... */

typedef struct dsv4_h5 dsv4_h5;

/* Creates `path`. The file appears under its name only when dsv4_h5_close() has succeeded: until
 * then it is "PATH.part", which dsv4_h5_abandon() removes. NULL with one line in `err`. */
dsv4_h5 *dsv4_h5_create(const char *path, dsv4_error *err);
dsv4_h5 *dsv4_h5_open(const char *path, dsv4_error *err);
int dsv4_h5_close(dsv4_h5 *file, dsv4_error *err);
void dsv4_h5_abandon(dsv4_h5 *file);

/* Makes dataset `name` ("trace/layers/0/q": groups are made as needed) of the whole shape, every
 * value `fill` until written. */
int dsv4_h5_define(dsv4_h5 *file, const char *name, dsv4_h5_type type, int rank,
                   const int64_t *shape, double fill, dsv4_error *err);

/* Writes rows [row, row + rows) of a defined dataset, of each row the first `width` values (the
 * rows of a dataset of rank 3 count as flat, and are written whole). Conversion to the dataset's
 * type is HDF5's: float rounding to nearest. One of `values` and `indices` is NULL. */
int dsv4_h5_write(dsv4_h5 *file, const char *name, int64_t row, int64_t rows, int64_t width,
                  const double *values, const int64_t *indices, dsv4_error *err);

/* The same for rows of one entry of the first dimension: of [B, S, ...], of [S, ...]. */
int dsv4_h5_write_in(dsv4_h5 *file, const char *name, int64_t entry, int64_t row, int64_t rows,
                     int64_t width, const double *values, const int64_t *indices,
                     dsv4_error *err);

typedef struct {
    int rank;
    int64_t shape[DSV4_H5_MAX_RANK];
    int64_t count;   /* product of shape */
    bool integer;
    double *values;  /* all values as binary64, or, where `integer`: */
    int64_t *indices;
} dsv4_h5_data;

/* Reads a whole numeric dataset. Release with dsv4_h5_data_free(). */
int dsv4_h5_read(dsv4_h5 *file, const char *name, dsv4_h5_data *data, dsv4_error *err);
void dsv4_h5_data_free(dsv4_h5_data *data);

/* How many values a dataset has, without reading them; -1 where it cannot be opened. */
int64_t dsv4_h5_count(dsv4_h5 *file, const char *name, dsv4_error *err);

/* The name of a file that is being written, until it is closed. */
const char *dsv4_h5_part(const dsv4_h5 *file);

bool dsv4_h5_has(dsv4_h5 *file, const char *name);

/* ---- whole datasets, without a conversion ---- */

/* Makes and writes a dataset in one step. `data` is of the C type of `type`. */
int dsv4_h5_put(dsv4_h5 *file, const char *name, dsv4_h5_type type, int rank, const int64_t *shape,
                const void *data, dsv4_error *err);

/* What a dataset is, without reading it. */
typedef struct {
    dsv4_h5_type type; /* of either byte order */
    int rank;
    int64_t shape[DSV4_H5_MAX_RANK];
    int64_t count;
    bool plain;        /* in one piece in this file: no chunks, filters or external files */
} dsv4_h5_info;

int dsv4_h5_describe(dsv4_h5 *file, const char *name, dsv4_h5_info *info, dsv4_error *err);

/* Reads a whole dataset of that very type and count. */
int dsv4_h5_get(dsv4_h5 *file, const char *name, dsv4_h5_type type, int64_t count, void *data,
                dsv4_error *err);

/* ---- groups ---- */

int dsv4_h5_make_group(dsv4_h5 *file, const char *name, dsv4_error *err);

typedef struct { char *name; bool group; } dsv4_h5_child;

/* The groups and datasets in group `name` ("" is the root), sorted by name. Links that lead
 * elsewhere are refused. Release with dsv4_h5_children_free(). */
int dsv4_h5_children(dsv4_h5 *file, const char *name, dsv4_h5_child **children, int64_t *count,
                     dsv4_error *err);
void dsv4_h5_children_free(dsv4_h5_child *children, int64_t count);

/* ---- attributes, of the dataset or group `object`; "" is the root ---- */

/* Text of a fixed length, UTF-8, padded with zeros. */
int dsv4_h5_put_text(dsv4_h5 *file, const char *object, const char *name, const char *text,
                     dsv4_error *err);

/* `count` numbers, or, where it is DSV4_H5_SCALAR, one. */
enum { DSV4_H5_SCALAR = -1 };
int dsv4_h5_put_numbers(dsv4_h5 *file, const char *object, const char *name, dsv4_h5_type type,
                        int64_t count, const void *data, dsv4_error *err);

/* Text of either kind, fixed or variable length, of less than `size` bytes. */
int dsv4_h5_get_text(dsv4_h5 *file, const char *object, const char *name, char *text, size_t size,
                     dsv4_error *err);

/* At most `most` numbers; the number of them (1 of a scalar), or -1. F64 takes any float or
 * integer, I64 and U64 take any integer that fits. */
int64_t dsv4_h5_get_numbers(dsv4_h5 *file, const char *object, const char *name,
                            dsv4_h5_type type, int64_t most, void *data, dsv4_error *err);

bool dsv4_h5_has_attribute(dsv4_h5 *file, const char *object, const char *name);

/* The names of all attributes, sorted. Release with dsv4_h5_names_free(). */
char **dsv4_h5_attributes(dsv4_h5 *file, const char *object, int64_t *count, dsv4_error *err);

/* ---- listing ---- */

/* The paths of what stands in a dataset's place and is none: links to other places or files
 * (whether they lead anywhere or not), and groups, but those of the top level, that are empty. */
char **dsv4_h5_odd_ends(dsv4_h5 *file, int64_t *count, dsv4_error *err);

/* The paths of all datasets, sorted, without the leading "/". Release with dsv4_h5_names_free(). */
char **dsv4_h5_names(dsv4_h5 *file, int64_t *count, dsv4_error *err);
void dsv4_h5_names_free(char **names, int64_t count);

#endif
