/* What the log's tests on the simulated disk share: records 0, 1, 2..., their key is their number. Include it
 * behind cmocka.h. */
#ifndef KVASIR_TESTS_LOG_FIXTURE_H
#define KVASIR_TESTS_LOG_FIXTURE_H

#include "base/bytes.h"
#include "log/log.h"
#include "sim/sim_disk.h"

static inline enum log_reserve_result append(struct log *log, uint64_t id, size_t value_len,
                                             enum log_reserve_kind kind)
{
    static const char value[100 << 10];
    char key[8];
    struct log_slot slot;
    store_u64(key, id);
    enum log_reserve_result r =
        log_reserve(log, record_bytes(RECORD_SET, 8, value_len), 1, kind, NULL, &slot);
    if (r == LOG_RESERVED) {
        uint64_t hash =
            record_encode(slot.dst, RECORD_SET, slice_make(key, 8), slice_make(value, value_len), 0);
        record_seal(slot.dst, hash, slot.lsn, slot.generation);
        log_publish(log, &slot);
    }
    return r;
}

static inline void write_flush(struct sim_disk *sim, const struct log_flush *f)
{
    assert_int_equal(sim->disk.ops->write(&sim->disk, f->fd, f->buffer, f->len, f->offset), f->len);
    sim_disk_sync_range(sim, f->fd, f->offset, f->len);
}

static inline void flush(struct sim_disk *sim, struct log *log)
{
    struct log_flush f;
    while (log_flush_take(log, 1, true, &f, NULL)) {
        write_flush(sim, &f);
        log_flush_done(log, &f, (int64_t)f.len, 2);
    }
}

/* Records 0..count-1, a batch each. */
static inline void fill(struct sim_disk *sim, struct log *log, unsigned first, unsigned count,
                        size_t value_len)
{
    for (unsigned i = first; i < first + count; i++) {
        assert_int_equal(append(log, i, value_len, LOG_NORMAL), LOG_RESERVED);
        flush(sim, log);
        (void)log_prepare(log);
    }
}

#endif
