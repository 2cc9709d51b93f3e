/* HDF5 tensor files: logits and traces. Plain numeric datasets, no filters, no
 * timestamps: two runs write the same bytes. */
#ifndef DSV4_H5_H
#define DSV4_H5_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

enum { DSV4_H5_MAX_RANK = 8 };

typedef enum { DSV4_H5_F64, DSV4_H5_F32, DSV4_H5_I32, DSV4_H5_I64 } dsv4_h5_type;

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

/* The paths of all datasets, sorted, without the leading "/". Release with dsv4_h5_names_free(). */
char **dsv4_h5_names(dsv4_h5 *file, int64_t *count, dsv4_error *err);
void dsv4_h5_names_free(char **names, int64_t count);

#endif
