/* fast/pool.c: how many threads there are where nobody says it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fast/pool.h"

/* ---- another machine ---- */

static struct {
    int processors; /* of the machine; 0: this one */
    int every;      /* processors 0, every, 2 every, .. are for this process */
    int error;      /* or nobody is told */
} machine;

/* In place of the library's. As the kernel does it: a set that is smaller than its own is refused. */
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
    if (machine.error != 0 || 8 * size < (size_t)machine.processors) {
        errno = machine.error != 0 ? machine.error : EINVAL;
        return -1;
    }
    memset(set, 0, size);
    if (machine.processors == 0)
        return syscall(SYS_sched_getaffinity, pid, size, set) < 0 ? -1 : 0;
    for (int i = 0; i < machine.processors; i += machine.every)
        CPU_SET_S((size_t)i, size, set);
    return 0;
}

static int leave_machine(void **state)
{
    (void)state;
    memset(&machine, 0, sizeof machine);
    return 0;
}

/* ---- tests ---- */

static void this_machine(void **state)
{
    (void)state;
    dsv4_error err = {""};
    fast_pool *pool = fast_pool_new(0, &err);
    assert_non_null(pool);
    assert_int_equal(fast_pool_threads(pool), fast_pool_processors());
    fast_pool_free(pool);
}

static void many_processors(void **state)
{
    (void)state;
    dsv4_error err = {""};
    machine.processors = 5000;
    machine.every = 2500;
    assert_int_equal(fast_pool_processors(), 2);
    fast_pool *pool = fast_pool_new(0, &err);
    assert_non_null(pool);
    assert_int_equal(fast_pool_threads(pool), 2);
    fast_pool_free(pool);
    machine.processors = 1025;
    machine.every = 41;
    assert_int_equal(fast_pool_processors(), 25);
    machine.every = 1; /* no pool has more threads */
    assert_int_equal(fast_pool_processors(), 1024);
}

static void nobody_tells(void **state)
{
    (void)state;
    machine.error = ENOSYS;
    assert_int_equal(fast_pool_processors(), sysconf(_SC_NPROCESSORS_ONLN));
    machine.error = EINVAL; /* of whatever size */
    assert_int_equal(fast_pool_processors(), sysconf(_SC_NPROCESSORS_ONLN));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(this_machine),
        cmocka_unit_test_teardown(many_processors, leave_machine),
        cmocka_unit_test_teardown(nobody_tells, leave_machine),
    };
    return cmocka_run_group_tests_name("fast_pool", tests, NULL, NULL) != 0;
}
