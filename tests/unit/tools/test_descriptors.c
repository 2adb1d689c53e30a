#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tools/descriptors.h"

static void assert_plan(uint64_t limit, struct descriptors_need need, uint64_t clients, uint64_t files)
{
    struct descriptors_plan plan = descriptors_divide(limit, &need);
    assert_int_equal(plan.clients, clients);
    assert_int_equal(plan.files, files);
}

static void test_enough_for_all(void **state)
{
    (void)state;
    struct descriptors_need need = {.clients = 10000, .files_now = 100, .files_max = 1500};
    assert_int_equal(descriptors_wanted(&need), 11756);
    assert_plan(11756, need, 10000, 1500);
    assert_plan(1000000, need, 10000, 1000000 - 256 - 10000);
}

static void test_growth_goes_before_clients(void **state)
{
    (void)state;
    struct descriptors_need need = {.clients = 10000, .files_now = 100, .files_max = 1500};
    assert_plan(11755, need, 9999, 1500);
    assert_plan(4096, need, 4096 - 256 - 1500, 1500);
    /* but to a half of what is left */
    assert_plan(2356, need, 1000, 1100);
    assert_plan(1024, need, 334, 434);
}

static void test_few_clients_leave_the_rest_to_files(void **state)
{
    (void)state;
    assert_plan(1024, (struct descriptors_need){.clients = 10, .files_now = 100, .files_max = 15000}, 10,
                758);
}

static void test_small_limits(void **state)
{
    (void)state;
    struct descriptors_need need = {.clients = 50, .files_now = 30, .files_max = 30};
    assert_plan(100, need, 20, 30);
    assert_plan(62, need, 1, 30);
    assert_plan(60, need, 0, 30); /* what is there cannot be opened */
    assert_plan(0, need, 0, 30);
    assert_plan(300, (struct descriptors_need){.clients = 50, .files_now = 1000, .files_max = 1000}, 0, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_enough_for_all),
        cmocka_unit_test(test_growth_goes_before_clients),
        cmocka_unit_test(test_few_clients_leave_the_rest_to_files),
        cmocka_unit_test(test_small_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
