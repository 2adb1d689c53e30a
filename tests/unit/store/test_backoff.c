/* When what has failed is tried again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "store/backoff.h"

enum { FIRST = 1000, LAST = 60000 };

/* It doubles up to the last; what is needed is tried every second, which changes nothing of that. */
static void test_delays(void **state)
{
    (void)state;
    struct backoff b = {0};
    uint64_t now = 5000;
    assert_true(backoff_is_over(&b, 0, false));
    for (uint64_t delay = FIRST;; delay = delay * 2 < LAST ? delay * 2 : LAST) {
        assert_true(backoff_fail(&b, now - 10, now, false, FIRST, LAST));
        assert_int_equal(b.delay_ms, delay);
        assert_false(backoff_is_over(&b, now + delay - 1, false));
        assert_false(backoff_is_over(&b, now + BACKOFF_NEEDED_MS - 1, true));
        uint64_t until = now + delay;
        for (now += BACKOFF_NEEDED_MS; now < until; now += BACKOFF_NEEDED_MS) {
            assert_true(backoff_is_over(&b, now, true));
            assert_false(backoff_is_over(&b, now, false));
            assert_false(backoff_fail(&b, now, now, true, FIRST, LAST));
            assert_int_equal(b.until_ms, until);
        }
        now = until;
        assert_true(backoff_is_over(&b, now, false));
        if (delay == LAST)
            break;
    }
}

/* A try that takes long is not made again at once. */
static void test_long_tries(void **state)
{
    (void)state;
    struct backoff b = {0};
    assert_true(backoff_fail(&b, 1000, 8000, false, 20000, LAST));
    assert_false(backoff_is_over(&b, 14999, true));
    assert_true(backoff_is_over(&b, 15000, true));
    assert_false(backoff_is_over(&b, 27999, false));
    assert_true(backoff_fail(&b, 20000, 20000, false, 20000, LAST)); /* somebody asked for it */
    assert_int_equal(b.until_ms, 60000);
    b = (struct backoff){0};
    assert_true(backoff_is_over(&b, 8000, false));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_delays),
        cmocka_unit_test(test_long_tries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
