/* Reserve, copy or seal, publish. Several records follow a frame that tells how many there are. A short
 * record's place and generation are known before it is encoded. A long one is encoded first, into a batch of
 * its own, so that nobody waits between its reserving and publishing; then only its checksums are completed
 * (seal_large). */
#include "store/write_log.h"

#include "base/check.h"

static enum store_result reserve_failed(enum log_reserve_result r)
{
    return r == LOG_WAIT ? STORE_BUSY : r == LOG_NO_SPACE ? STORE_NO_SPACE : STORE_DEAD;
}

/* Writes the records to dst; with hashes only their contents (sealed later). */
static void encode(const struct store_worker_private *p, const struct write_plan *plan, char *dst,
                   const struct log_slot *slot, uint64_t *hashes)
{
    size_t at = 0;
    unsigned part = 0;
    if (plan->records > 1) {
        size_t frame = record_bytes(RECORD_TXN, 0, 0);
        uint64_t h = record_encode(dst, RECORD_TXN, slice_make(NULL, plan->records),
                                   slice_make(NULL, plan->bytes - frame), 0);
        if (hashes)
            hashes[part++] = h;
        else
            record_seal(dst, h, slot->lsn, slot->generation);
        at = frame;
    }
    for (unsigned i = 0; i < p->entry_count; i++) {
        const struct store_entry *e = &p->entries[i];
        if (e->staged == STAGED_NOTHING || e->primary != i)
            continue;
        uint64_t h = record_encode(dst + at, write_record_type(e), e->key.name, write_record_value(e),
                                   e->new_expire_ms);
        if (hashes)
            hashes[part++] = h;
        else
            record_seal(dst + at, h, slot->lsn + at, slot->generation);
        at += write_record_bytes(e);
    }
    DCHECK(at == plan->bytes);
}

static void seal_large(const struct store_worker_private *p, const struct write_plan *plan,
                       const struct log_slot *slot)
{
    size_t at = 0;
    unsigned part = 0;
    if (plan->records > 1) {
        record_seal(slot->dst, p->hashes[part++], slot->lsn, slot->generation);
        at = record_bytes(RECORD_TXN, 0, 0);
    }
    for (unsigned i = 0; i < p->entry_count; i++) {
        const struct store_entry *e = &p->entries[i];
        if (e->staged == STAGED_NOTHING || e->primary != i)
            continue;
        record_seal(slot->dst + at, p->hashes[part++], slot->lsn + at, slot->generation);
        at += write_record_bytes(e);
    }
}

enum store_result write_log(struct store_worker *sw, const struct write_plan *plan, uint64_t *lsn)
{
    struct store_worker_private *p = sw->private;
    struct store *store = sw->store;
    struct log_slot slot;
    size_t frame = plan->records > 1 ? record_bytes(RECORD_TXN, 0, 0) : 0;
    if (store->log == NULL) {
        *lsn = atomic_fetch_add_explicit(&store->next_lsn, plan->bytes, memory_order_relaxed) + frame;
        return STORE_OK;
    }
    enum log_reserve_kind kind = plan->only_deletes ? LOG_HEADROOM : LOG_NORMAL;
    bool large = plan->bytes > LOG_SMALL_BYTES_MAX;
    if (UNLIKELY(large)) {
        enum log_reserve_result asked = log_large_ask(store->log, plan->bytes, kind);
        if (asked == LOG_WAIT && kind == LOG_NORMAL)
            p->log_wait_bytes = plan->bytes;
        if (asked != LOG_RESERVED)
            return reserve_failed(asked);
        p->hashes = store_grow(p->hashes, &p->hashes_capacity, plan->records + 1, sizeof *p->hashes);
        slot = (struct log_slot){0}; /* not known yet: seal_large */
        encode(p, plan, log_large_data(p->large), &slot, p->hashes);
    }
    enum log_reserve_result r =
        log_reserve(store->log, plan->bytes, plan->records, kind, large ? p->large : NULL, &slot);
    if (r != LOG_RESERVED)
        return reserve_failed(r);
    if (UNLIKELY(large)) {
        seal_large(p, plan, &slot);
        p->large = NULL;
        p->large_bytes = 0;
    } else {
        encode(p, plan, slot.dst, &slot, NULL);
    }
    log_publish(store->log, &slot);
    *lsn = slot.lsn + frame;
    return STORE_OK;
}

enum store_result write_log_tree(struct store_worker *sw, struct store_range *range)
{
    struct store *store = sw->store;
    struct slice path = slice_make(range->path, range->path_len), none = slice_make("", 0);
    size_t bytes = record_bytes(RECORD_DELTREE, path.len, 0);
    struct log_slot slot;
    if (store->log == NULL) {
        range->lsn = atomic_fetch_add_explicit(&store->next_lsn, bytes, memory_order_relaxed);
        return STORE_OK;
    }
    enum log_reserve_result r = log_reserve(store->log, bytes, 1, LOG_HEADROOM, NULL, &slot);
    if (r != LOG_RESERVED)
        return reserve_failed(r);
    record_seal(slot.dst, record_encode(slot.dst, RECORD_DELTREE, path, none, 0), slot.lsn, slot.generation);
    log_publish(store->log, &slot);
    range->lsn = slot.lsn;
    return STORE_OK;
}
