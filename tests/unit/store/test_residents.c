/* The queue of values in memory, and a pass over it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "store/residents.h"

static void put(struct resident_queue *q, uint32_t first, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct resident item = {.hash_high = ~(first + i), .ref = first + i};
        residents_put(q, &item, 1);
    }
}

/* Takes n, which must be those from `first` on. */
static void take(struct resident_queue *q, uint32_t first, unsigned n)
{
    struct resident items[16];
    for (unsigned done = 0; done < n;) {
        unsigned most = n - done < 16 ? n - done : 16, got = residents_take(q, items, most, false);
        assert_int_equal(got, most);
        for (unsigned i = 0; i < got; i++, done++) {
            assert_int_equal(items[i].ref, first + done);
            assert_int_equal(items[i].hash_high, ~(first + done));
        }
    }
}

/* In the order in which they came, over the borders of chunks, empty between, and with more put while taken.
 */
static void test_order(void **state)
{
    (void)state;
    struct resident_queue q = {0};
    struct resident none;
    uint32_t in = 1, out = 1;
    static const unsigned puts[] = {1, RESIDENTS_CHUNK - 1, 1, RESIDENTS_CHUNK, 3 * RESIDENTS_CHUNK + 5};
    for (unsigned i = 0; i < sizeof puts / sizeof *puts; i++) {
        put(&q, in, puts[i]);
        in += puts[i];
        assert_int_equal(q.count, in - out);
        unsigned n = i % 2 ? (in - out) / 2 : in - out;
        take(&q, out, n);
        out += n;
        assert_int_equal(q.count, in - out);
    }
    take(&q, out, in - out);
    assert_int_equal(residents_take(&q, &none, 1, false), 0);
    put(&q, 7, 2);
    residents_deinit(&q); /* with some in it */
}

/* What comes after a pass began is not its concern, whoever else takes from the front meanwhile. */
static void test_pass(void **state)
{
    (void)state;
    struct resident_queue q = {0};
    struct resident items[16];
    put(&q, 1, 20);
    assert_true(residents_pass_begin(&q, 100));
    put(&q, 50, 20);
    assert_int_equal(residents_take(&q, items, 16, true), 16);
    residents_put(&q, items, 16); /* all are kept */
    take(&q, 17, 3);
    assert_int_equal(residents_take(&q, items, 16, true), 1);
    assert_int_equal(items[0].ref, 20);
    assert_int_equal(residents_take(&q, items, 16, true), 0);
    residents_pass_end(&q);
    take(&q, 50, 20);
    take(&q, 1, 16);
    residents_deinit(&q);
}

/* Places that the arena did not have when the pass began were not seen. */
static void test_seen(void **state)
{
    (void)state;
    struct resident_queue q = {0};
    assert_true(residents_pass_begin(&q, 130));
    for (uint32_t ref = 0; ref < 140; ref++) {
        assert_false(residents_was_seen(q.seen, ref));
        assert_int_equal(residents_was_seen(q.seen, ref), ref < 130);
    }
    residents_deinit(&q); /* in a pass */
    assert_null(q.seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_pass),
        cmocka_unit_test(test_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
