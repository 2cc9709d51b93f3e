#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <hdf5.h>

#include <cmocka.h>

#include "command.h"
#include "files.h"
#include "golden.h"
#include "host/h5.h"
#include "host/verify.h"

#define VERIFY(...)                                                                                \
    command_call(dsv4_verify_main, "dsv4 verify", "--vectors", "golden", "--no-diagnosis",         \
                 __VA_ARGS__)

static void expect(command_result result, int code, const char *out, const char *err)
{
    if (result.code != code || (out != NULL && strstr(result.out, out) == NULL) ||
        (err != NULL && strstr(result.err, err) == NULL))
        fail_msg("expected exit code %d, out '%s', err '%s'; got %d\n%s\n%s", code,
                 out != NULL ? out : "", err != NULL ? err : "", result.code, result.out,
                 result.err);
    command_free(&result);
}

static void good(int status, const dsv4_error *err)
{
    if (status != 0)
        fail_msg("%s", err->text);
}

/* The expected y of rmsnorm/exact-a is [3, 8]. */
static void expected_y(double *y)
{
    dsv4_error err = {""};
    dsv4_case_file file;
    good(dsv4_case_file_read(&file, "golden/rmsnorm_exact.h5", &err), &err);
    assert_string_equal(file.c[0].name, "exact-a");
    memcpy(y, dsv4_case_out(&file.c[0], "y")->data, 24 * sizeof *y);
    dsv4_case_file_free(&file);
}

/* A candidate with one dataset. */
static void write_one(const char *name, dsv4_h5_type type, int rank, const int64_t *shape,
                      const double *values)
{
    dsv4_error err = {""};
    remove("out.h5");
    dsv4_h5 *file = dsv4_h5_create("out.h5", &err);
    assert_non_null(file);
    good(dsv4_h5_define(file, name, type, rank, shape, 0, &err), &err);
    int64_t width = rank > 1 ? shape[1] : 1, integers[64];
    for (int64_t i = 0; i < shape[0] * width; i++)
        integers[i] = (int64_t)values[i];
    bool floats = type == DSV4_H5_F64 || type == DSV4_H5_F32;
    good(dsv4_h5_write(file, name, 0, shape[0], width, floats ? values : NULL,
                       floats ? NULL : integers, &err), &err);
    good(dsv4_h5_close(file, &err), &err);
}

static const int64_t shape_y[] = {3, 8};

static void good_file_test(void **state)
{
    (void)state;
    double y[24];
    expected_y(y);
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_F64, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 0, "5 cases: 1 passed, 0 failed, 4 skipped", NULL);
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_F32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 0, "5 cases: 1 passed, 0 failed, 4 skipped", NULL);
    /* A vector file is a candidate too. */
    expect(VERIFY("--candidate", "golden/gate_score_exact.h5"), 0,
           "5 cases: 1 passed, 0 failed, 4 skipped", NULL);
}

static void wrong_value_test(void **state)
{
    (void)state;
    double y[24];
    expected_y(y);
    y[13] += 0.5;
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_F32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 1, "FAIL rmsnorm/exact-a y[1,5]: expected ", NULL);
    expect(VERIFY("--candidate", "out.h5"), 1, "1 of 24 wrong", NULL);
    expect(VERIFY("--candidate", "out.h5"), 1, "rule rmsnorm.weight.2, spec/rmsnorm.md", NULL);
    y[13] = NAN;
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_F32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 1, "got nan", NULL);
    y[13] = INFINITY;
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_F64, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 1, "got inf", NULL);
}

static void form_test(void **state)
{
    (void)state;
    double y[24];
    expected_y(y);
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_F32, 2, (int64_t[]){8, 3}, y);
    expect(VERIFY("--candidate", "out.h5"), 1,
           "FAIL rmsnorm/exact-a: out/y: shape [8,3], expected [3,8]", NULL);
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_F32, 1, (int64_t[]){24}, y);
    expect(VERIFY("--candidate", "out.h5"), 1, "shape [24], expected [3,8]", NULL);
    write_one("rmsnorm/exact-a/out/y", DSV4_H5_I32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 1, "out/y: integers, expected floats", NULL);
    write_one("gate_score/exact-small/out/route_index", DSV4_H5_F32, 2, (int64_t[]){3, 2}, y);
    expect(VERIFY("--candidate", "out.h5"), 1, "out/route_index: floats, expected integers", NULL);
    write_one("gate_score/exact-small/out/biased", DSV4_H5_F32, 2, (int64_t[]){3, 6}, y);
    expect(VERIFY("--candidate", "out.h5"), 1,
           "FAIL gate_score/exact-small: missing out/route_index", NULL);
}

static void unknown_names_test(void **state)
{
    (void)state;
    double y[24];
    expected_y(y);
    write_one("rmsnorm/exact-zzz/out/y", DSV4_H5_F32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 2, "rmsnorm/exact-zzz/out/y: no case of this name",
           "nothing matched");
    write_one("norm/exact-a/out/y", DSV4_H5_F32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 2, "norm/exact-a/out/y: no operator",
           "nothing matched");
    write_one("y", DSV4_H5_F32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 2, "y: no operator of this name", "nothing matched");
    write_one("rmsnorm/exact-a/out/z", DSV4_H5_F32, 2, shape_y, y);
    expect(VERIFY("--candidate", "out.h5"), 1, "rmsnorm/exact-a/out/z: no output of this name",
           NULL);
    expect(VERIFY("--candidate", "out.h5"), 1, "missing out/y", NULL);
}

/* What stands in the place of a dataset, a case or an operator, and is none. */
static void misplaced_test(void **state)
{
    (void)state;
    double y[24];
    expected_y(y);
    for (int kind = 0; kind < 5; kind++) {
        write_one("rmsnorm/exact-a/out/y", DSV4_H5_F64, 2, shape_y, y);
        hid_t file = H5Fopen("out.h5", H5F_ACC_RDWR, H5P_DEFAULT);
        hid_t create = H5Pcreate(H5P_LINK_CREATE), space = H5Screate(H5S_SCALAR), id;
        H5Pset_create_intermediate_group(create, 1);
        if (kind == 0)
            H5Lcreate_soft("/nowhere", file, "rmsnorm/exact-b/out/y", create, H5P_DEFAULT);
        if (kind == 1)
            H5Lcreate_external("other.h5", "/y", file, "rmsnorm/exact-b/out/y", create,
                               H5P_DEFAULT);
        if (kind == 2)
            H5Gclose(H5Gcreate2(file, "rmsnorm/exact-b/out/y", create, H5P_DEFAULT, H5P_DEFAULT));
        if (kind >= 3) {
            id = H5Dcreate2(file, kind == 3 ? "rmsnorm/exact-b" : "rope", H5T_NATIVE_DOUBLE, space,
                            create, H5P_DEFAULT, H5P_DEFAULT);
            H5Dclose(id);
        }
        H5Sclose(space);
        H5Pclose(create);
        H5Fclose(file);
        expect(VERIFY("--candidate", "out.h5"), 1, kind < 4 ? "rmsnorm/exact-b" : "FAIL rope/",
               NULL);
    }
}

static void unreadable_test(void **state)
{
    (void)state;
    files_write_text(".", "text.h5", "not a candidate");
    expect(VERIFY("--candidate", "text.h5"), 2, NULL, "text.h5: not an HDF5 file");
    expect(VERIFY("--candidate", "nowhere.h5"), 2, NULL, "nowhere.h5: cannot open");
    expect(VERIFY("--candidate", "."), 2, NULL, ".: cannot open: Is a directory");
}

/* Whatever is in the file: a verdict, and no crash. */
static void damaged_test(void **state)
{
    (void)state;
    size_t size;
    char *bytes = files_read("golden/rmsnorm_exact.h5", &size);
    const struct {
        size_t at, keep;
    } cuts[] = {{0, 8}, {0, 96}, {0, 512}, {0, 2048}, {0, size - 8}};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        files_write(".", "cut.h5", bytes, cuts[i].keep);
        command_result result = VERIFY("--candidate", "cut.h5");
        assert_true(result.code == 1 || result.code == 2);
        command_free(&result);
    }
    for (size_t at = 8; at < size; at += size / 60) {
        bytes[at] ^= 0x55;
        files_write(".", "cut.h5", bytes, size);
        bytes[at] ^= 0x55;
        command_result result = VERIFY("--candidate", "cut.h5", "--op", "rmsnorm");
        assert_true(result.code == 0 || result.code == 1 || result.code == 2);
        command_free(&result);
    }
    free(bytes);
}

static void exec_test(void **state)
{
    (void)state;
    expect(VERIFY("--exec", "cp {in} {out}"), 0, "5 cases: 5 passed, 0 failed, 0 skipped", NULL);
    expect(VERIFY("--exec", "true {in} {out}"), 2, "5 skipped", "nothing matched");
    expect(VERIFY("--exec", "cp {in} {out}; exit 3"), 1, "the command exited with status 3", NULL);
    expect(VERIFY("--exec", "kill -9 $$ {in} {out}"), 1, "crashed: signal 9", NULL);
    expect(VERIFY("--exec", "echo nonsense > {out} < {in}"), 1, "not an HDF5 file", NULL);
    expect(VERIFY("--exec", "sleep 100 {in} {out} | sleep 100", "--op", "rope", "--timeout", "0.2"),
           1, "FAIL rope/exact-swa: the command gave no answer within 0.2 s", NULL);
    expect(VERIFY("--exec", "cp {in} out"), 2, NULL, "expected a command with {in} and {out}");
    /* One operator fails, the others go on; what the program prints is not part of the report. */
    expect(VERIFY("--exec", "echo hello; case {in} in *rope*) exit 1;; esac; cp {in} {out}"), 1,
           "5 cases: 4 passed, 1 failed, 0 skipped", "hello");
}

/* What a command leaves running ends with it. */
static void leftover_test(void **state)
{
    (void)state;
    expect(VERIFY("--exec", "(sleep 0.4; touch late) & cp {in} {out}", "--op", "rope"), 0, NULL, NULL);
    usleep(700000);
    assert_int_not_equal(access("late", F_OK), 0);
}

/* Paths reach the shell as one word each. */
static void quoting_test(void **state)
{
    (void)state;
    mkdir("it's $HOME here", 0777);
    files_copy("golden", "it's $HOME here");
    expect(command_call(dsv4_verify_main, "dsv4 verify", "--vectors", "it's $HOME here", "--exec",
                        "cp {in} {out}"), 0, "5 passed", NULL);
}

static int enter(void **state)
{
    int result = scratch_enter(state);
    golden_write("golden");
    return result;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_file_test),     cmocka_unit_test(wrong_value_test),
        cmocka_unit_test(form_test),          cmocka_unit_test(unknown_names_test),
        cmocka_unit_test(misplaced_test),     cmocka_unit_test(unreadable_test),
        cmocka_unit_test(damaged_test),
        cmocka_unit_test(exec_test),          cmocka_unit_test(leftover_test),
        cmocka_unit_test(quoting_test),
    };
    return cmocka_run_group_tests_name("candidate", tests, enter, scratch_leave) != 0;
}
