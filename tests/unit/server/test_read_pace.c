/* How many reads may be in flight: the rule by itself, and what it is worth with models of two disks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/read_pace.h"

static void test_there_is_no_limit_at_first(void **state)
{
    (void)state;
    struct read_pace pace;
    read_pace_init(&pace);
    assert_int_equal(pace.most, UINT32_MAX);
    read_pace_look(&pace, READ_PACE_LEAST - 1, READ_PACE_LEAST - 1, 100); /* all at once, but few */
    assert_int_equal(pace.most, UINT32_MAX);
    read_pace_look(&pace, 32, 64, 100); /* many, but half of them are still to come */
    assert_int_equal(pace.most, UINT32_MAX);
}

static void test_a_burst_halves_what_is_in_flight(void **state)
{
    (void)state;
    struct read_pace pace;
    read_pace_init(&pace);
    read_pace_look(&pace, 64, 64, 0);
    assert_int_equal(pace.most, 32);
    read_pace_look(&pace, 32, 32, 32); /* the other half waits: the same clients */
    assert_int_equal(pace.most, 32);
    read_pace_look(&pace, 31, 33, 31); /* two were too late for the burst */
    assert_int_equal(pace.most, 31);
    read_pace_look(&pace, 32, 32, 96); /* more clients */
    assert_int_equal(pace.most, 64);
    read_pace_look(&pace, 8, 8, 0);
    assert_int_equal(pace.most, READ_PACE_LEAST);
}

static void test_reads_that_come_one_by_one_lift_the_limit(void **state)
{
    (void)state;
    struct read_pace pace;
    read_pace_init(&pace);
    read_pace_look(&pace, 64, 64, 0);
    for (unsigned i = 1; i < READ_PACE_TURNS; i++) {
        read_pace_look(&pace, 1, 32, 32);
        assert_int_equal(pace.most, 32);
    }
    read_pace_look(&pace, 32, 32, 32); /* a burst begins the count anew */
    for (unsigned i = 0; i < READ_PACE_TURNS; i++)
        read_pace_look(&pace, 1, 32, 32);
    assert_int_equal(pace.most, UINT32_MAX);
}

/* ---- models ---- */

enum { CLIENTS = 64, REPLY_US = 12, BURST_READ_US = 13, READ_US = 100, RUN_US = 1000000 };

struct disk {
    bool in_bursts;
    uint64_t end_us[CLIENTS]; /* of each read in flight; in bursts: of the disk's work up to it */
    unsigned in_flight;
};

static void start_read(struct disk *disk, uint64_t now_us)
{
    uint64_t begin_us = now_us;
    if (disk->in_bursts && disk->in_flight && disk->end_us[disk->in_flight - 1] > now_us)
        begin_us = disk->end_us[disk->in_flight - 1];
    disk->end_us[disk->in_flight++] = begin_us + (disk->in_bursts ? BURST_READ_US : READ_US);
}

/* How many are reported at this time; *next_us: if none, when some will be. */
static unsigned land(struct disk *disk, uint64_t now_us, uint64_t *next_us)
{
    unsigned landed = 0;
    if (disk->in_bursts) {
        *next_us = disk->end_us[disk->in_flight - 1];
        landed = *next_us <= now_us ? disk->in_flight : 0;
    } else {
        *next_us = disk->end_us[0];
        while (landed < disk->in_flight && disk->end_us[landed] <= now_us)
            landed++;
    }
    return landed;
}

/* Replies in RUN_US: each client asks again when it has its reply. */
static unsigned run(bool in_bursts, bool paced)
{
    struct disk disk = {.in_bursts = in_bursts};
    struct read_pace pace;
    unsigned wanted = CLIENTS, replies = 0;
    uint64_t now_us = 0, next_us;
    read_pace_init(&pace);
    while (now_us < RUN_US) {
        while (wanted && disk.in_flight < pace.most) {
            start_read(&disk, now_us);
            wanted--;
        }
        unsigned landed = land(&disk, now_us, &next_us);
        if (landed == 0) {
            now_us = next_us;
            continue;
        }
        if (paced)
            read_pace_look(&pace, landed, disk.in_flight, wanted);
        disk.in_flight -= landed;
        for (unsigned i = 0; i < disk.in_flight; i++)
            disk.end_us[i] = disk.end_us[i + landed];
        while (wanted && disk.in_flight < pace.most) {
            start_read(&disk, now_us);
            wanted--;
        }
        now_us += (uint64_t)landed * REPLY_US;
        replies += landed;
        wanted += landed;
    }
    return replies;
}

static void test_a_disk_that_reports_in_bursts_and_the_worker_work_at_once(void **state)
{
    (void)state;
    assert_true(run(true, true) > run(true, false) * 3 / 2);
}

static void test_a_disk_that_reports_each_read_loses_nothing(void **state)
{
    (void)state;
    assert_true(run(false, true) > run(false, false) * 98 / 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_is_no_limit_at_first),
        cmocka_unit_test(test_a_burst_halves_what_is_in_flight),
        cmocka_unit_test(test_reads_that_come_one_by_one_lift_the_limit),
        cmocka_unit_test(test_a_disk_that_reports_in_bursts_and_the_worker_work_at_once),
        cmocka_unit_test(test_a_disk_that_reports_each_read_loses_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
