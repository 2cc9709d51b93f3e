#include "h5.h"

#define H5_USE_110_API /* a later HDF5 then keeps the call signatures used here */
#include <errno.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

enum { MAX_CAUSE = 256 };

struct dsv4_h5 {
    hid_t id;
    char *path;
    char *part; /* the name until closing; NULL for a file opened for reading */
};

/* The innermost message of HDF5's error stack, of which a system error is only a part:
 * "file write failed: time = ..., error message = 'No space left on device', buf = 0x..." */
static herr_t innermost(unsigned depth, const H5E_error2_t *entry, void *message)
{
    static const char quote[] = "error message = '";
    if (depth != 0 || entry->desc == NULL)
        return 0;
    const char *system = strstr(entry->desc, quote);
    const char *text = system != NULL ? system + strlen(quote) : entry->desc;
    snprintf(message, MAX_CAUSE, "%.*s", (int)strcspn(text, system != NULL ? "'" : ""), text);
    return 0;
}

/* To be called before any other call of HDF5, which would clear the error stack. */
static int fail_hdf5(const char *path, const char *name, const char *what, dsv4_error *err)
{
    char cause[MAX_CAUSE] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, cause);
    return dsv4_fail(err, "%s: %s%s%s%s%s", path, name != NULL ? name : "",
                     name != NULL ? ": " : "", what, cause[0] != '\0' ? ": " : "", cause);
}

static char *concatenate(const char *a, const char *b)
{
    char *text = dsv4_alloc(strlen(a) + strlen(b) + 1, 1);
    return strcat(strcpy(text, a), b);
}

static dsv4_h5 *new_file(const char *path, const char *suffix)
{
    H5dont_atexit(); /* after a failed close HDF5 would touch freed memory there */
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* messages go through dsv4_error */
    dsv4_h5 *file = dsv4_alloc(1, sizeof *file);
    file->id = H5I_INVALID_HID;
    file->path = concatenate(path, "");
    file->part = suffix != NULL ? concatenate(path, suffix) : NULL;
    return file;
}

static void free_file(dsv4_h5 *file)
{
    free(file->path);
    free(file->part);
    free(file);
}

/* Of any object: no time of day, and all attributes in the object header. The heap that HDF5 makes
 * of more than 8 lies wherever its cache happened to flush it. */
static void set_plain_object(hid_t creation)
{
    H5Pset_obj_track_times(creation, 0);
    H5Pset_attr_phase_change(creation, 65535, 0);
}

/* Of a group, or of the file for its root group: the same for links. */
static void set_plain_group(hid_t creation)
{
    set_plain_object(creation);
    H5Pset_link_phase_change(creation, 65535, 0);
}

dsv4_h5 *dsv4_h5_create(const char *path, dsv4_error *err)
{
    /* The rename at the end would replace a device file and fail on a directory: say so now. */
    struct stat status;
    bool status_known = stat(path, &status) == 0;
    if (path[0] == '\0' || (status_known && !S_ISREG(status.st_mode))) {
        dsv4_fail(err, "'%s': cannot write: not the name of a regular file", path);
        return NULL;
    }
    dsv4_h5 *file = new_file(path, ".part");
    if (status_known && status.st_size > 0 && H5Fis_hdf5(path) == 0) {
        dsv4_fail(err, "%s: exists and is not an HDF5 file: not overwritten", path);
        free_file(file);
        return NULL;
    }
    if (access(file->part, F_OK) == 0) {
        dsv4_fail(err, "%s: exists: another run is writing it, or one was killed and it can go",
                  file->part);
        free_file(file);
        return NULL;
    }
    hid_t creation = H5Pcreate(H5P_FILE_CREATE);
    set_plain_group(creation);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V18);
    file->id = H5Fcreate(file->part, H5F_ACC_EXCL, creation, access);
    if (file->id < 0)
        fail_hdf5(file->part, NULL, "cannot create", err);
    H5Pclose(access);
    H5Pclose(creation);
    if (file->id < 0) {
        free_file(file);
        return NULL;
    }
    return file;
}

dsv4_h5 *dsv4_h5_open(const char *path, dsv4_error *err)
{
    dsv4_h5 *file = new_file(path, NULL);
    struct stat status;
    if (stat(path, &status) != 0)
        dsv4_fail(err, "%s: cannot open: %s", path, strerror(errno));
    else if (!S_ISREG(status.st_mode)) /* HDF5 would wait for the other end of a pipe */
        dsv4_fail(err, "%s: cannot open: %s", path,
                  S_ISDIR(status.st_mode) ? strerror(EISDIR) : "not a regular file");
    else if (H5Fis_hdf5(path) == 0)
        dsv4_fail(err, "%s: not an HDF5 file", path);
    else if ((file->id = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT)) < 0)
        fail_hdf5(path, NULL, "cannot open", err);
    if (file->id < 0) {
        free_file(file);
        return NULL;
    }
    return file;
}

int dsv4_h5_close(dsv4_h5 *file, dsv4_error *err)
{
    int result = 0;
    if (H5Fclose(file->id) < 0)
        result = fail_hdf5(file->path, NULL, "cannot finish writing", err);
    else if (file->part != NULL && rename(file->part, file->path) != 0)
        result = dsv4_fail(err, "%s: cannot rename to %s: %s", file->part, file->path,
                           strerror(errno));
    if (result != 0 && file->part != NULL)
        unlink(file->part);
    free_file(file);
    return result;
}

void dsv4_h5_abandon(dsv4_h5 *file)
{
    if (file == NULL)
        return;
    H5Fclose(file->id);
    if (file->part != NULL)
        unlink(file->part);
    free_file(file);
}

/* The groups above dataset `name`. Made one by one, because those that HDF5 makes on the way are
 * not plain. */
static int make_groups(dsv4_h5 *file, const char *name, dsv4_error *err)
{
    int result = 0;
    char *path = concatenate(name, "");
    hid_t creation = H5Pcreate(H5P_GROUP_CREATE);
    set_plain_group(creation);
    for (char *slash = strchr(path, '/'); slash != NULL && result == 0;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (H5Lexists(file->id, path, H5P_DEFAULT) <= 0) {
            hid_t group = H5Gcreate2(file->id, path, H5P_DEFAULT, creation, H5P_DEFAULT);
            if (group < 0 || H5Gclose(group) < 0)
                result = fail_hdf5(file->path, path, "cannot create the group", err);
        }
        *slash = '/';
    }
    H5Pclose(creation);
    free(path);
    return result;
}

/* The product of dims[0..rank), or -1 where it does not fit. */
static int64_t product(int rank, const hsize_t *dims)
{
    uint64_t count = 1;
    for (int i = 0; i < rank; i++)
        if (__builtin_mul_overflow(count, (uint64_t)dims[i], &count))
            return -1;
    return count <= INT64_MAX / sizeof(double) ? (int64_t)count : -1;
}

static const struct { const char *name; size_t size; } types[] = {
    [DSV4_H5_F64] = {"float64", 8}, [DSV4_H5_F32] = {"float32", 4}, [DSV4_H5_I32] = {"int32", 4},
    [DSV4_H5_I64] = {"int64", 8},   [DSV4_H5_U8] = {"uint8", 1},    [DSV4_H5_U64] = {"uint64", 8},
    [DSV4_H5_OTHER] = {"another type", 0},
};

const char *dsv4_h5_type_name(dsv4_h5_type type)
{
    return types[type].name;
}

static hid_t stored_type(dsv4_h5_type type)
{
    const hid_t stored[] = {H5T_IEEE_F64LE, H5T_IEEE_F32LE, H5T_STD_I32LE,
                            H5T_STD_I64LE,  H5T_STD_U8LE,   H5T_STD_U64LE};
    return stored[type];
}

static hid_t memory_type(dsv4_h5_type type)
{
    const hid_t native[] = {H5T_NATIVE_DOUBLE, H5T_NATIVE_FLOAT, H5T_NATIVE_INT32,
                            H5T_NATIVE_INT64,  H5T_NATIVE_UINT8, H5T_NATIVE_UINT64};
    return native[type];
}

/* Makes a dataset and leaves it open; below 0 with one line. `fill` may be NULL: all of it is going
 * to be written. */
static hid_t create_dataset(dsv4_h5 *file, const char *name, dsv4_h5_type type, int rank,
                            const int64_t *shape, const double *fill, dsv4_error *err)
{
    if (rank < 0 || rank > DSV4_H5_MAX_RANK)
        return dsv4_fail(err, "%s: %s: rank %d is not in 0..%d", file->path, name, rank,
                         DSV4_H5_MAX_RANK);
    hsize_t dims[DSV4_H5_MAX_RANK];
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return dsv4_fail(err, "%s: %s: negative dimension", file->path, name);
        dims[i] = (hsize_t)shape[i];
    }
    if (product(rank, dims) < 0)
        return dsv4_fail(err, "%s: %s: too large", file->path, name);
    if (make_groups(file, name, err) != 0)
        return -1;

    hid_t space = H5Screate_simple(rank, dims, NULL);
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    set_plain_object(creation);
    H5Pset_layout(creation, H5D_CONTIGUOUS);
    if (fill != NULL)
        H5Pset_fill_value(creation, H5T_NATIVE_DOUBLE, fill);
    else
        H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
    /* All space now: the layout of the file then depends on no order of writing, and a full disk is
     * noticed before the work is done. */
    H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
    hid_t set = H5Dcreate2(file->id, name, stored_type(type), space, H5P_DEFAULT, creation,
                           H5P_DEFAULT);
    if (set < 0)
        fail_hdf5(file->path, name, "cannot create the dataset", err);
    H5Pclose(creation);
    H5Sclose(space);
    return set;
}

int dsv4_h5_define(dsv4_h5 *file, const char *name, dsv4_h5_type type, int rank,
                   const int64_t *shape, double fill, dsv4_error *err)
{
    hid_t set = create_dataset(file, name, type, rank, shape, &fill, err);
    if (set < 0)
        return -1;
    if (H5Dclose(set) < 0)
        return fail_hdf5(file->path, name, "cannot create the dataset", err);
    return 0;
}

static hid_t open_dataset(dsv4_h5 *file, const char *name, dsv4_error *err)
{
    hid_t set = H5Dopen2(file->id, name, H5P_DEFAULT);
    if (set < 0)
        dsv4_fail(err, "%s: no dataset %s", file->path, name);
    return set;
}

/* Rank and shape of a dataset that fits dsv4_h5_data; below 0 for those that do not. */
static int get_shape(dsv4_h5 *file, const char *name, hid_t space, hsize_t *dims, dsv4_error *err)
{
    if (H5Sget_simple_extent_type(space) == H5S_NULL)
        return dsv4_fail(err, "%s: %s: has no values (a null dataspace)", file->path, name);
    int rank = H5Sget_simple_extent_ndims(space);
    if (rank > DSV4_H5_MAX_RANK)
        return dsv4_fail(err, "%s: %s: rank %d, at most %d is supported", file->path, name, rank,
                         DSV4_H5_MAX_RANK);
    return H5Sget_simple_extent_dims(space, dims, NULL);
}

/* Of what is neither integer nor float. */
static const char *class_name(H5T_class_t class)
{
    switch (class) {
    case H5T_STRING: return "string";
    case H5T_ENUM: return "enumeration";
    case H5T_COMPOUND: return "compound";
    default: return "other";
    }
}

/* HDF5 would clamp an integer that does not fit the stored type. */
static int check_range(dsv4_h5 *file, const char *name, hid_t set, int64_t count,
                       const int64_t *indices, dsv4_error *err)
{
    hid_t type = H5Dget_type(set);
    size_t size = H5Tget_size(type);
    H5Tclose(type);
    for (int64_t i = 0; i < count && size == sizeof(int32_t); i++)
        if (indices[i] < INT32_MIN || indices[i] > INT32_MAX)
            return dsv4_fail(err, "%s: %s: %lld does not fit 32 bits", file->path, name,
                             (long long)indices[i]);
    return 0;
}

/* `outer` dimensions, 0 or 1, come before that of the rows; the rows are in entry `entry` of it. */
static int write_rows(dsv4_h5 *file, const char *name, hid_t set, hid_t space, int outer,
                      int64_t entry, int64_t row, int64_t rows, int64_t width,
                      const double *values, const int64_t *indices, dsv4_error *err)
{
    hsize_t dims[DSV4_H5_MAX_RANK];
    int rank = get_shape(file, name, space, dims, err);
    if (rank < 0)
        return -1;
    if (outer > 0 && (rank == 0 || entry < 0 || entry >= (int64_t)dims[0]))
        return dsv4_fail(err, "%s: %s: has no entry %lld", file->path, name, (long long)entry);
    int64_t row_size = rank > outer ? product(rank - outer - 1, dims + outer + 1) : 0;
    if (rank <= outer || row < 0 || rows < 0 || row > (int64_t)dims[outer] - rows || width < 0 ||
        width > row_size)
        return dsv4_fail(err, "%s: %s: %lld rows of %lld values from row %lld are outside the "
                         "dataset", file->path, name, (long long)rows, (long long)width,
                         (long long)row);
    if (rank > outer + 2 && width != row_size)
        return dsv4_fail(err, "%s: %s: %lld of %lld values: only whole rows at rank %d",
                         file->path, name, (long long)width, (long long)row_size, rank);
    if (rows * width == 0)
        return 0;
    if (indices != NULL && check_range(file, name, set, rows * width, indices, err) != 0)
        return -1;

    hsize_t start[DSV4_H5_MAX_RANK] = {(hsize_t)entry};
    start[outer] = (hsize_t)row;
    if (outer > 0)
        dims[0] = 1;
    dims[outer] = (hsize_t)rows;
    if (rank == outer + 2)
        dims[outer + 1] = (hsize_t)width;
    H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, dims, NULL);
    hid_t memory = H5Screate_simple(rank, dims, NULL);
    int result = 0;
    if (H5Dwrite(set, values != NULL ? H5T_NATIVE_DOUBLE : H5T_NATIVE_INT64, memory, space,
                 H5P_DEFAULT, values != NULL ? (const void *)values : (const void *)indices) < 0)
        result = fail_hdf5(file->path, name, "cannot write", err);
    H5Sclose(memory);
    return result;
}

static int write_set(dsv4_h5 *file, const char *name, int outer, int64_t entry, int64_t row,
                     int64_t rows, int64_t width, const double *values, const int64_t *indices,
                     dsv4_error *err)
{
    hid_t set = open_dataset(file, name, err);
    if (set < 0)
        return -1;
    hid_t space = H5Dget_space(set);
    int result = write_rows(file, name, set, space, outer, entry, row, rows, width, values,
                            indices, err);
    H5Sclose(space);
    if (H5Dclose(set) < 0)
        result = fail_hdf5(file->path, name, "cannot write", err);
    return result;
}

int dsv4_h5_write(dsv4_h5 *file, const char *name, int64_t row, int64_t rows, int64_t width,
                  const double *values, const int64_t *indices, dsv4_error *err)
{
    return write_set(file, name, 0, 0, row, rows, width, values, indices, err);
}

int dsv4_h5_write_in(dsv4_h5 *file, const char *name, int64_t entry, int64_t row, int64_t rows,
                     int64_t width, const double *values, const int64_t *indices, dsv4_error *err)
{
    return write_set(file, name, 1, entry, row, rows, width, values, indices, err);
}

/* A few bytes can claim to be a dataset of any size (values never written): refuse what this
 * machine could not hold. */
static int check_size(dsv4_h5 *file, const char *name, int64_t count, dsv4_error *err)
{
    enum { SMALL = 1 << 20 }; /* not worth asking */
    if (count >= 0 && count <= SMALL)
        return 0;
    double room = dsv4_memory_total() / 4; /* a comparison holds two */
    if (count < 0 || (room > 0 && (double)count * sizeof(double) > room))
        return dsv4_fail(err, "%s: %s: too large for the memory of this machine", file->path, name);
    return 0;
}

static int read_integers(dsv4_h5 *file, const char *name, hid_t set, hid_t type,
                         dsv4_h5_data *data, dsv4_error *err)
{
    if (H5Tget_size(type) > sizeof(int64_t))
        return dsv4_fail(err, "%s: %s: integers of %zu bytes, at most 8 are supported", file->path,
                         name, H5Tget_size(type));
    data->integer = true;
    data->indices = dsv4_alloc((size_t)data->count, sizeof *data->indices);
    /* Unsigned numbers come as unsigned ones, so that the top bit shows what does not fit: HDF5
     * would clamp it. */
    bool is_signed = H5Tget_sign(type) != H5T_SGN_NONE;
    if (H5Dread(set, is_signed ? H5T_NATIVE_INT64 : H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL,
                H5P_DEFAULT, data->indices) < 0)
        return fail_hdf5(file->path, name, "cannot read", err);
    for (int64_t i = 0; i < data->count && !is_signed; i++)
        if (data->indices[i] < 0)
            return dsv4_fail(err, "%s: %s: %llu does not fit a signed 64-bit number", file->path,
                             name, (unsigned long long)data->indices[i]);
    return 0;
}

static int read_floats(dsv4_h5 *file, const char *name, hid_t set, dsv4_h5_data *data,
                       dsv4_error *err)
{
    data->values = dsv4_alloc((size_t)data->count, sizeof *data->values);
    if (H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, data->values) < 0)
        return fail_hdf5(file->path, name, "cannot read", err);
    return 0;
}

static int read_dataset(dsv4_h5 *file, const char *name, hid_t set, hid_t space, hid_t type,
                        dsv4_h5_data *data, dsv4_error *err)
{
    hsize_t dims[DSV4_H5_MAX_RANK];
    data->rank = get_shape(file, name, space, dims, err);
    if (data->rank < 0)
        return -1;
    data->count = product(data->rank, dims);
    if (check_size(file, name, data->count, err) != 0)
        return -1;
    for (int i = 0; i < data->rank; i++)
        data->shape[i] = (int64_t)dims[i];
    H5T_class_t class = H5Tget_class(type);
    if (class == H5T_INTEGER)
        return read_integers(file, name, set, type, data, err);
    if (class == H5T_FLOAT)
        return read_floats(file, name, set, data, err);
    return dsv4_fail(err, "%s: %s: expected integers or floats, got type class %s", file->path,
                     name, class_name(class));
}

int dsv4_h5_read(dsv4_h5 *file, const char *name, dsv4_h5_data *data, dsv4_error *err)
{
    memset(data, 0, sizeof *data);
    hid_t set = open_dataset(file, name, err);
    if (set < 0)
        return -1;
    hid_t space = H5Dget_space(set);
    hid_t type = H5Dget_type(set);
    int result = read_dataset(file, name, set, space, type, data, err);
    H5Tclose(type);
    H5Sclose(space);
    H5Dclose(set);
    if (result != 0)
        dsv4_h5_data_free(data);
    return result;
}

void dsv4_h5_data_free(dsv4_h5_data *data)
{
    free(data->values);
    free(data->indices);
    memset(data, 0, sizeof *data);
}

int64_t dsv4_h5_count(dsv4_h5 *file, const char *name, dsv4_error *err)
{
    hid_t set = open_dataset(file, name, err);
    if (set < 0)
        return -1;
    hid_t space = H5Dget_space(set);
    hssize_t count = H5Sget_simple_extent_npoints(space);
    H5Sclose(space);
    H5Dclose(set);
    return count < 0 ? dsv4_fail(err, "%s: %s: no size", file->path, name) : (int64_t)count;
}

const char *dsv4_h5_part(const dsv4_h5 *file)
{
    return file->part;
}

bool dsv4_h5_has(dsv4_h5 *file, const char *name)
{
    hid_t set = H5Dopen2(file->id, name, H5P_DEFAULT);
    if (set < 0)
        return false;
    H5Dclose(set);
    return true;
}

/* ---- whole datasets ---- */

int dsv4_h5_put(dsv4_h5 *file, const char *name, dsv4_h5_type type, int rank, const int64_t *shape,
                const void *data, dsv4_error *err)
{
    hid_t set = create_dataset(file, name, type, rank, shape, NULL, err);
    if (set < 0)
        return -1;
    bool empty = false;
    for (int i = 0; i < rank; i++)
        empty = empty || shape[i] == 0;
    int result = 0;
    if (!empty && H5Dwrite(set, memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
        result = fail_hdf5(file->path, name, "cannot write", err);
    if (H5Dclose(set) < 0)
        result = fail_hdf5(file->path, name, "cannot write", err);
    return result;
}

static dsv4_h5_type find_type(hid_t stored)
{
    const hid_t big[] = {H5T_IEEE_F64BE, H5T_IEEE_F32BE, H5T_STD_I32BE,
                         H5T_STD_I64BE,  H5T_STD_U8BE,   H5T_STD_U64BE};
    dsv4_h5_type type = DSV4_H5_F64;
    while (type < DSV4_H5_OTHER && H5Tequal(stored, stored_type(type)) <= 0 &&
           H5Tequal(stored, big[type]) <= 0)
        type++;
    return type;
}

static bool is_plain(hid_t set)
{
    hid_t creation = H5Dget_create_plist(set);
    if (creation < 0)
        return false;
    H5D_layout_t layout = H5Pget_layout(creation);
    bool plain = (layout == H5D_CONTIGUOUS || layout == H5D_COMPACT) &&
                 H5Pget_nfilters(creation) == 0 && H5Pget_external_count(creation) == 0;
    H5Pclose(creation);
    return plain;
}

static int describe(dsv4_h5 *file, const char *name, hid_t set, dsv4_h5_info *info, dsv4_error *err)
{
    hsize_t dims[DSV4_H5_MAX_RANK];
    hid_t space = H5Dget_space(set), type = H5Dget_type(set);
    info->rank = get_shape(file, name, space, dims, err);
    if (info->rank >= 0) {
        info->type = find_type(type);
        info->plain = is_plain(set);
        info->count = product(info->rank, dims);
    }
    for (int i = 0; i < info->rank; i++)
        info->shape[i] = dims[i] <= INT64_MAX ? (int64_t)dims[i] : -1;
    H5Tclose(type);
    H5Sclose(space);
    if (info->rank < 0)
        return -1;
    for (int i = 0; i < info->rank; i++)
        if (info->shape[i] < 0)
            info->count = -1;
    return info->count >= 0 ? 0 : dsv4_fail(err, "%s: %s: too large", file->path, name);
}

int dsv4_h5_describe(dsv4_h5 *file, const char *name, dsv4_h5_info *info, dsv4_error *err)
{
    memset(info, 0, sizeof *info);
    hid_t set = open_dataset(file, name, err);
    if (set < 0)
        return -1;
    int result = describe(file, name, set, info, err);
    H5Dclose(set);
    return result;
}

static int read_exactly(dsv4_h5 *file, const char *name, hid_t set, dsv4_h5_type type,
                        int64_t count, void *data, dsv4_error *err)
{
    dsv4_h5_info info = {0};
    if (describe(file, name, set, &info, err) != 0)
        return -1;
    if (info.type != type)
        return dsv4_fail(err, "%s: %s: expected %s, got %s", file->path, name,
                         dsv4_h5_type_name(type), dsv4_h5_type_name(info.type));
    if (info.count != count)
        return dsv4_fail(err, "%s: %s: expected %lld values, got %lld", file->path, name,
                         (long long)count, (long long)info.count);
    if (count > 0 && H5Dread(set, memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
        return fail_hdf5(file->path, name, "cannot read", err);
    return 0;
}

int dsv4_h5_get(dsv4_h5 *file, const char *name, dsv4_h5_type type, int64_t count, void *data,
                dsv4_error *err)
{
    hid_t set = open_dataset(file, name, err);
    if (set < 0)
        return -1;
    int result = read_exactly(file, name, set, type, count, data, err);
    H5Dclose(set);
    return result;
}

/* ---- attributes ---- */

static const char *object_path(const char *object)
{
    return object[0] == '\0' ? "/" : object;
}

static hid_t open_object(dsv4_h5 *file, const char *object, dsv4_error *err)
{
    hid_t id = H5Oopen(file->id, object_path(object), H5P_DEFAULT);
    if (id < 0)
        dsv4_fail(err, "%s: no group or dataset %s", file->path, object_path(object));
    return id;
}

/* Failures of attributes name both: "FILE: OBJECT: attribute NAME: what". */
static int fail_attribute(dsv4_h5 *file, const char *object, const char *name, const char *what,
                          dsv4_error *err)
{
    char *place = dsv4_alloc(strlen(object) + strlen(name) + sizeof "/: attribute ", 1);
    sprintf(place, "%s: attribute %s", object_path(object), name);
    fail_hdf5(file->path, place, what, err);
    free(place);
    return -1;
}

static int put_attribute(dsv4_h5 *file, const char *object, const char *name, hid_t stored,
                         hid_t memory, hid_t space, const void *data, dsv4_error *err)
{
    hid_t id = open_object(file, object, err);
    if (id < 0)
        return -1;
    hid_t attribute = H5Acreate2(id, name, stored, space, H5P_DEFAULT, H5P_DEFAULT);
    int result = 0;
    if (attribute < 0)
        result = fail_attribute(file, object, name, "cannot create", err);
    else if (H5Sget_simple_extent_npoints(space) > 0 && H5Awrite(attribute, memory, data) < 0)
        result = fail_attribute(file, object, name, "cannot write", err);
    if (attribute >= 0 && H5Aclose(attribute) < 0)
        result = fail_attribute(file, object, name, "cannot write", err);
    H5Oclose(id);
    return result;
}

int dsv4_h5_put_text(dsv4_h5 *file, const char *object, const char *name, const char *text,
                     dsv4_error *err)
{
    size_t length = strlen(text);
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, length > 0 ? length : 1);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    H5Tset_cset(type, H5T_CSET_UTF8);
    hid_t space = H5Screate(H5S_SCALAR);
    int result = put_attribute(file, object, name, type, type, space, text, err);
    H5Sclose(space);
    H5Tclose(type);
    return result;
}

int dsv4_h5_put_numbers(dsv4_h5 *file, const char *object, const char *name, dsv4_h5_type type,
                        int64_t count, const void *data, dsv4_error *err)
{
    hsize_t dims[1] = {count >= 0 ? (hsize_t)count : 0};
    hid_t space = count == DSV4_H5_SCALAR ? H5Screate(H5S_SCALAR)
                                          : H5Screate_simple(1, dims, NULL);
    int result = put_attribute(file, object, name, stored_type(type), memory_type(type), space,
                               data, err);
    H5Sclose(space);
    return result;
}

/* An attribute that is open for reading. */
typedef struct {
    hid_t id, type, space;
    int64_t count; /* of a null dataspace: 0 */
} open_attribute;

static int get_attribute(dsv4_h5 *file, const char *object, const char *name,
                         open_attribute *attribute, dsv4_error *err)
{
    hid_t id = open_object(file, object, err);
    if (id < 0)
        return -1;
    attribute->id = H5Aexists(id, name) > 0 ? H5Aopen(id, name, H5P_DEFAULT) : -1;
    H5Oclose(id);
    if (attribute->id < 0)
        return dsv4_fail(err, "%s: %s: no attribute %s", file->path, object_path(object), name);
    attribute->type = H5Aget_type(attribute->id);
    attribute->space = H5Aget_space(attribute->id);
    attribute->count = H5Sget_simple_extent_npoints(attribute->space);
    return 0;
}

static void close_attribute(open_attribute *attribute)
{
    H5Sclose(attribute->space);
    H5Tclose(attribute->type);
    H5Aclose(attribute->id);
}

/* -1 where it cannot be read; else 0, with all of the text where it fits, and its length. */
static int read_variable_text(const open_attribute *attribute, char *text, size_t size,
                              size_t *length)
{
    char *value = NULL;
    if (H5Aread(attribute->id, attribute->type, &value) < 0)
        return -1;
    *length = value != NULL ? strlen(value) : 0;
    if (*length < size && value != NULL)
        strcpy(text, value);
    H5free_memory(value);
    return 0;
}

static int read_fixed_text(const open_attribute *attribute, char *text, size_t size,
                           size_t *length)
{
    *length = H5Tget_size(attribute->type);
    if (*length >= size) /* no text of ours is padded */
        return 0;
    if (H5Aread(attribute->id, attribute->type, text) < 0)
        return -1;
    text[*length] = '\0';
    return 0;
}

static int read_text(dsv4_h5 *file, const char *object, const char *name,
                     const open_attribute *attribute, char *text, size_t size, dsv4_error *err)
{
    if (H5Tget_class(attribute->type) != H5T_STRING || attribute->count != 1)
        return dsv4_fail(err, "%s: %s: attribute %s: expected one text", file->path,
                         object_path(object), name);
    size_t length = 0;
    bool variable = H5Tis_variable_str(attribute->type) > 0;
    int status = variable ? read_variable_text(attribute, text, size, &length)
                          : read_fixed_text(attribute, text, size, &length);
    if (status != 0)
        return fail_attribute(file, object, name, "cannot read", err);
    if (length >= size)
        return dsv4_fail(err, "%s: %s: attribute %s: expected less than %zu bytes, got %zu",
                         file->path, object_path(object), name, size, length);
    return 0;
}

int dsv4_h5_get_text(dsv4_h5 *file, const char *object, const char *name, char *text, size_t size,
                     dsv4_error *err)
{
    open_attribute attribute;
    memset(text, 0, size);
    if (get_attribute(file, object, name, &attribute, err) != 0)
        return -1;
    int result = read_text(file, object, name, &attribute, text, size, err);
    close_attribute(&attribute);
    return result;
}

/* HDF5 would clamp an integer to the range of the type that is asked for. */
static bool fits(const open_attribute *attribute, dsv4_h5_type type)
{
    H5T_class_t class = H5Tget_class(attribute->type);
    if (H5Tget_size(attribute->type) > 8 || (class != H5T_INTEGER && class != H5T_FLOAT))
        return false;
    return class == H5T_INTEGER || type == DSV4_H5_F64;
}

static bool changes_sign(const open_attribute *attribute, dsv4_h5_type type)
{
    bool is_unsigned = H5Tget_sign(attribute->type) == H5T_SGN_NONE;
    return H5Tget_class(attribute->type) == H5T_INTEGER && type != DSV4_H5_F64 &&
           is_unsigned != (type == DSV4_H5_U64);
}

static int64_t read_numbers(dsv4_h5 *file, const char *object, const char *name,
                            const open_attribute *attribute, dsv4_h5_type type, int64_t most,
                            void *data, dsv4_error *err)
{
    if (!fits(attribute, type))
        return dsv4_fail(err, "%s: %s: attribute %s: expected %s", file->path, object_path(object),
                         name, type == DSV4_H5_F64 ? "numbers" : "integers");
    if (attribute->count < 0 || attribute->count > most)
        return dsv4_fail(err, "%s: %s: attribute %s: expected at most %lld numbers, got %lld",
                         file->path, object_path(object), name, (long long)most,
                         (long long)attribute->count);
    /* Read with the sign that it has, what does not fit has the top bit set. */
    bool other = changes_sign(attribute, type);
    hid_t memory = !other ? memory_type(type)
                          : memory_type(type == DSV4_H5_U64 ? DSV4_H5_I64 : DSV4_H5_U64);
    if (attribute->count > 0 && H5Aread(attribute->id, memory, data) < 0)
        return fail_attribute(file, object, name, "cannot read", err);
    for (int64_t i = 0; other && i < attribute->count; i++)
        if (((const int64_t *)data)[i] < 0)
            return dsv4_fail(err, "%s: %s: attribute %s: expected numbers that fit %s", file->path,
                             object_path(object), name, dsv4_h5_type_name(type));
    return attribute->count;
}

int64_t dsv4_h5_get_numbers(dsv4_h5 *file, const char *object, const char *name,
                            dsv4_h5_type type, int64_t most, void *data, dsv4_error *err)
{
    open_attribute attribute;
    if (get_attribute(file, object, name, &attribute, err) != 0)
        return -1;
    int64_t count = read_numbers(file, object, name, &attribute, type, most, data, err);
    close_attribute(&attribute);
    return count;
}

bool dsv4_h5_has_attribute(dsv4_h5 *file, const char *object, const char *name)
{
    return H5Aexists_by_name(file->id, object_path(object), name, H5P_DEFAULT) > 0;
}

/* ---- listing ---- */

typedef struct {
    dsv4_h5 *file;
    char **names;
    int64_t count;
    dsv4_error *err;
} name_list;

static void append_name(name_list *list, const char *name)
{
    if ((list->count & (list->count - 1)) == 0) { /* doubled at every power of two */
        char **grown = dsv4_alloc(2 * (size_t)list->count + 1, sizeof *grown);
        if (list->count > 0)
            memcpy(grown, list->names, (size_t)list->count * sizeof *grown);
        free(list->names);
        list->names = grown;
    }
    list->names[list->count++] = concatenate(name, "");
}

/* Soft and external links are not followed: what they lead to has another name, or is elsewhere. */
static herr_t add_name(hid_t group, const char *name, const H5L_info_t *link, void *context)
{
    name_list *list = context;
    if (link->type != H5L_TYPE_HARD)
        return 0;
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    if (object < 0) { /* damaged: not to be passed over in silence */
        fail_hdf5(list->file->path, name, "cannot open", list->err);
        return -1;
    }
    H5I_type_t type = H5Iget_type(object);
    H5Oclose(object);
    if (type != H5I_DATASET)
        return 0;
    append_name(list, name);
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The list that was made, sorted, or, where `status` is negative, nothing. */
static char **finish_names(name_list *list, herr_t status, const char *what, int64_t *count)
{
    *count = 0;
    if (status < 0) {
        fail_hdf5(list->file->path, NULL, what, list->err);
        dsv4_h5_names_free(list->names, list->count);
        return NULL;
    }
    if (list->names == NULL)
        list->names = dsv4_alloc(1, sizeof *list->names);
    qsort(list->names, (size_t)list->count, sizeof *list->names, compare_names);
    *count = list->count;
    return list->names;
}

char **dsv4_h5_names(dsv4_h5 *file, int64_t *count, dsv4_error *err)
{
    name_list list = {.file = file, .err = err};
    herr_t status = H5Lvisit(file->id, H5_INDEX_NAME, H5_ITER_INC, add_name, &list);
    return finish_names(&list, status, "cannot list the datasets", count);
}

static herr_t add_odd_end(hid_t group, const char *name, const H5L_info_t *link, void *context)
{
    H5G_info_t info;
    bool odd = link->type != H5L_TYPE_HARD;
    if (!odd) {
        hid_t object = H5Oopen(group, name, H5P_DEFAULT);
        odd = object >= 0 && H5Iget_type(object) == H5I_GROUP && strchr(name, '/') != NULL &&
              H5Gget_info(object, &info) >= 0 && info.nlinks == 0;
        if (object >= 0)
            H5Oclose(object);
    }
    if (odd)
        append_name(context, name);
    return 0;
}

char **dsv4_h5_odd_ends(dsv4_h5 *file, int64_t *count, dsv4_error *err)
{
    name_list list = {.file = file, .err = err};
    herr_t status = H5Lvisit(file->id, H5_INDEX_NAME, H5_ITER_INC, add_odd_end, &list);
    return finish_names(&list, status, "cannot list the links", count);
}

static herr_t add_attribute(hid_t object, const char *name, const H5A_info_t *info, void *context)
{
    (void)object, (void)info;
    append_name(context, name);
    return 0;
}

char **dsv4_h5_attributes(dsv4_h5 *file, const char *object, int64_t *count, dsv4_error *err)
{
    name_list list = {.file = file, .err = err};
    *count = 0;
    hid_t id = open_object(file, object, err);
    if (id < 0)
        return NULL;
    herr_t status = H5Aiterate2(id, H5_INDEX_NAME, H5_ITER_INC, NULL, add_attribute, &list);
    char **names = finish_names(&list, status, "cannot list the attributes", count);
    H5Oclose(id);
    return names;
}

void dsv4_h5_names_free(char **names, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* ---- groups ---- */

int dsv4_h5_make_group(dsv4_h5 *file, const char *name, dsv4_error *err)
{
    char *below = concatenate(name, "/");
    int result = make_groups(file, below, err);
    free(below);
    return result;
}

static herr_t add_child(hid_t group, const char *name, const H5L_info_t *link, void *context)
{
    (void)group;
    name_list *list = context;
    if (link->type != H5L_TYPE_HARD) {
        dsv4_fail(list->err, "%s: %s: expected a group or a dataset, got a link to one",
                  list->file->path, name);
        return -1;
    }
    append_name(list, name);
    return 0;
}

static int tell_child(dsv4_h5 *file, hid_t group, dsv4_h5_child *child, dsv4_error *err)
{
    hid_t object = H5Oopen(group, child->name, H5P_DEFAULT);
    if (object < 0)
        return fail_hdf5(file->path, child->name, "cannot open", err);
    H5I_type_t type = H5Iget_type(object);
    H5Oclose(object);
    child->group = type == H5I_GROUP;
    if (type != H5I_GROUP && type != H5I_DATASET)
        return dsv4_fail(err, "%s: %s: expected a group or a dataset, got another object",
                         file->path, child->name);
    return 0;
}

int dsv4_h5_children(dsv4_h5 *file, const char *name, dsv4_h5_child **children, int64_t *count,
                     dsv4_error *err)
{
    name_list list = {.file = file, .err = err};
    *children = NULL;
    *count = 0;
    hid_t group = H5Gopen2(file->id, object_path(name), H5P_DEFAULT);
    if (group < 0)
        return dsv4_fail(err, "%s: no group %s", file->path, object_path(name));
    herr_t status = H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, NULL, add_child, &list);
    int64_t found;
    char **names = finish_names(&list, status, "cannot list the groups", &found);
    dsv4_h5_child *all = dsv4_alloc((size_t)found, sizeof *all);
    int result = names != NULL ? 0 : -1;
    for (int64_t i = 0; i < found; i++) {
        all[i].name = names[i];
        if (result == 0)
            result = tell_child(file, group, &all[i], err);
    }
    free(names);
    H5Gclose(group);
    if (result != 0) {
        dsv4_h5_children_free(all, found);
        return -1;
    }
    *children = all;
    *count = found;
    return 0;
}

void dsv4_h5_children_free(dsv4_h5_child *children, int64_t count)
{
    for (int64_t i = 0; children != NULL && i < count; i++)
        free(children[i].name);
    free(children);
}
