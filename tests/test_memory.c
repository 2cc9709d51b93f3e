/* host/memory.c: the memory of systems that files in a directory describe, with limits of groups and
 * without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "command.h"
#include "host/memory.h"

#define test_in_scratch(f) cmocka_unit_test_setup_teardown(f, scratch_enter, scratch_leave)

/* A file of system "s", with its directories. */
static void put(const char *path, const char *text)
{
    char whole[256];
    snprintf(whole, sizeof whole, "s/%s", path);
    for (char *at = whole; (at = strchr(at, '/')) != NULL; *at++ = '/') {
        *at = '\0';
        mkdir(whole, 0777);
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

/* Of a machine that has 64 MiB, 48 of them free. */
static void put_machine(const char *mounts, const char *groups)
{
    put("proc/meminfo", "MemTotal:          65536 kB\nMemFree:            1024 kB\n"
                        "MemAvailable:      49152 kB\n");
    put("proc/self/mountinfo", mounts);
    put("proc/self/cgroup", groups);
}

static void expect(double total, double available)
{
    dsv4_memory memory = dsv4_memory_under("s");
    if (memory.total != total || memory.available != available)
        fail_msg("total %.0f, available %.0f; expected %.0f and %.0f", memory.total,
                 memory.available, total, available);
}

#define MOUNTS_2 "24 1 0:5 / /proc rw - proc proc rw\n" \
                 "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define MOUNTS_1(root) "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" \
                       "35 31 0:32 " root " /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
#define ROOT_2 "sys/fs/cgroup/"
#define ROOT_1 "sys/fs/cgroup/memory/"

static const double machine = 64 << 20, its_rest = 48 << 20;

static void test_no_groups(void **state)
{
    (void)state;
    expect(0, 0);
    put("proc/meminfo", "MemTotal:          65536 kB\nMemAvailable:      49152 kB\n");
    expect(machine, its_rest);
    put_machine(MOUNTS_2, "0::/\n"); /* at the root nothing is limited, and no file says so */
    expect(machine, its_rest);
    put_machine("nothing\n", "nothing\n");
    expect(machine, its_rest);
}

static void test_cgroup2(void **state)
{
    (void)state;
    put_machine(MOUNTS_2, "1:name=systemd:/else\n0::/service/job\n");
    put(ROOT_2 "service/job/memory.max", "max\n");
    put(ROOT_2 "service/job/memory.current", "3000000\n");
    expect(machine, its_rest);
    put(ROOT_2 "else/memory.max", "5\n"); /* not above this process */
    put(ROOT_2 "service/memory.max", "8000000\n");
    put(ROOT_2 "service/memory.current", "5000000\n");
    expect(8000000, 3000000);
    put(ROOT_2 "service/memory.stat", "anon 1000000\nfile 9\ninactive_file 400000\nactive_file 30000\n");
    expect(8000000, 3430000);
    put(ROOT_2 "service/job/memory.max", "6000000\n");
    expect(6000000, 3000000);
    put(ROOT_2 "memory.max", "4000000\n"); /* as in a container, where it is not the machine's root */
    put(ROOT_2 "memory.current", "1500000\n");
    expect(4000000, 2500000);
    put(ROOT_2 "memory.current", "4500000\n"); /* none left, which is not the same as not known */
    expect(4000000, 1);
}

/* A limit above what the machine has is none. */
static void test_wide_limits(void **state)
{
    (void)state;
    put_machine(MOUNTS_2 MOUNTS_1("/"), "4:memory:/a\n0::/a\n");
    put(ROOT_1 "a/memory.limit_in_bytes", "9223372036854771712\n");
    put(ROOT_1 "a/memory.usage_in_bytes", "1000\n");
    put(ROOT_2 "a/memory.max", "9000000000000\n");
    expect(machine, its_rest);
}

static void test_cgroup1(void **state)
{
    (void)state;
    put_machine(MOUNTS_1("/"), "5:cpu:/c\n4:hugetlb,memory:/a/b\n3:memory2:/c\n");
    put(ROOT_1 "a/b/memory.limit_in_bytes", "7000000\n");
    put(ROOT_1 "a/b/memory.usage_in_bytes", "2000000\n");
    put(ROOT_1 "a/b/memory.stat", "inactive_file 77\ntotal_inactive_file 100000\n"
                                  "total_active_file 50000\n");
    put(ROOT_1 "a/memory.limit_in_bytes", "9000000\n");
    expect(7000000, 5150000);
    put(ROOT_1 "memory.limit_in_bytes", "6500000\n");
    expect(6500000, 5150000);
}

/* A container without a name space of groups sees its own as the root, but not by that name. */
static void test_mounted_group(void **state)
{
    (void)state;
    put_machine(MOUNTS_1("/docker/abc"), "4:memory:/docker/abc/job\n");
    put(ROOT_1 "memory.limit_in_bytes", "7000000\n");
    expect(7000000, 7000000);
    put(ROOT_1 "job/memory.limit_in_bytes", "6000000\n");
    expect(6000000, 6000000);
    put_machine(MOUNTS_1("/docker/abc"), "4:memory:/docker/abcdef/job\n"); /* of another name */
    expect(7000000, 7000000);
    put_machine(MOUNTS_1("/docker/abc"), "4:memory:/docker/abc\n");
    expect(7000000, 7000000);
}

static void test_this_system(void **state)
{
    (void)state;
    double total = dsv4_memory_total(), available = dsv4_memory_available();
    assert_true(total > 1 << 20);
    assert_true(available > 0 && available <= total);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_scratch(test_no_groups),     test_in_scratch(test_cgroup2),
        test_in_scratch(test_wide_limits),   test_in_scratch(test_cgroup1),
        test_in_scratch(test_mounted_group), cmocka_unit_test(test_this_system),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL) != 0;
}
