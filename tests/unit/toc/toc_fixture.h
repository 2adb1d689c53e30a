/* toc_fixture: sets of keys that are hard on a toc, tocs of them on a simulated disk, and reading them back.
 */
#ifndef KVASIR_TESTS_TOC_FIXTURE_H
#define KVASIR_TESTS_TOC_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/check.h"
#include "sim/sim_disk.h"
#include "toc/toc_read.h"
#include "toc/toc_write.h"

enum { FIXTURE_START_LSN = 0x1000001000, FIXTURE_INDEX_BYTES = 123456 };
#define FIXTURE_END_LSN 0x7000002000ull

struct toc_set {
    struct toc_entry *entries; /* ascending; own their keys */
    size_t count, capacity;
    uint64_t key_bytes;
};

static inline void set_add(struct toc_set *set, struct toc_entry e)
{
    char *key = malloc(e.key.len + 1); /* exactly: AddressSanitizer watches */
    if (set->count == set->capacity)
        set->entries = realloc(set->entries, (set->capacity = set->capacity * 2 + 16) * sizeof *set->entries);
    CHECK(key != NULL && set->entries != NULL);
    if (e.key.len)
        memcpy(key, e.key.data, e.key.len);
    e.key.data = key;
    set->entries[set->count++] = e;
}

static inline int set_compare(const void *a, const void *b)
{
    return slice_compare(((const struct toc_entry *)a)->key, ((const struct toc_entry *)b)->key);
}

/* Sorts, and takes out what is there twice. */
static inline void set_sort(struct toc_set *set)
{
    size_t kept = 0;
    qsort(set->entries, set->count, sizeof *set->entries, set_compare);
    set->key_bytes = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (kept && slice_equal(set->entries[kept - 1].key, set->entries[i].key)) {
            free((void *)(uintptr_t)set->entries[i].key.data);
            continue;
        }
        set->key_bytes += set->entries[i].key.len;
        set->entries[kept++] = set->entries[i];
    }
    set->count = kept;
}

static inline void set_free(struct toc_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        free((void *)(uintptr_t)set->entries[i].key.data);
    free(set->entries);
    *set = (struct toc_set){0};
}

/* Every shape of an entry's other fields, extremes among them. */
static inline struct toc_entry fixture_entry(struct slice key, struct prng *p)
{
    struct toc_entry e = {.key = key, .version = prng_next(p) >> prng_below(p, 64)};
    e.address = prng_below(p, 3) ? e.version : prng_next(p);
    e.expire_ms = prng_below(p, 3) ? 0 : prng_next(p) >> prng_below(p, 64);
    e.value_len = prng_below(p, 8) ? (uint32_t)(prng_next(p) >> prng_below(p, 33) >> 31) : UINT32_MAX;
    return e;
}

/* Writes toc `number` of the set, segments with numbers 0 .. segment_count - 1, up to finish. */
static inline status_t fixture_write(struct sim_disk *sim, const struct toc_set *set, uint64_t number,
                                     unsigned segment_count, struct toc_writer **w)
{
    struct toc_segment *segments = calloc(segment_count + 1, sizeof *segments);
    CHECK(segments != NULL);
    for (unsigned i = 0; i < segment_count; i++)
        segments[i] =
            (struct toc_segment){.kind = i % 2, .number = i, .generation = i * 77, .bytes = 1 << 20};
    *w = NULL;
    status_t s = toc_write_begin(&sim->disk, 1000, "folder", number, FIXTURE_START_LSN, w);
    for (size_t i = 0; i < set->count && status_is_ok(&s); i++)
        s = toc_write_add(*w, &set->entries[i]);
    if (status_is_ok(&s))
        s = toc_write_finish(*w, FIXTURE_END_LSN, FIXTURE_INDEX_BYTES, segments, segment_count);
    free(segments);
    return s;
}

static inline status_t fixture_publish(struct sim_disk *sim, const struct toc_set *set, uint64_t number,
                                       unsigned segment_count)
{
    struct toc_writer *w;
    status_t s = fixture_write(sim, set, number, segment_count, &w);
    if (status_is_ok(&s))
        return toc_write_publish(w);
    toc_write_abandon(w);
    return s;
}

struct fixture_reading {
    const struct toc_set *set; /* NULL: anything ascending is right */
    size_t at, stop_at;
    bool wrong;
    char *last; /* set NULL: the key before */
    size_t last_len;
};

static inline bool fixture_each(void *context, const struct toc_entry *e)
{
    struct fixture_reading *r = context;
    if (r->set) {
        const struct toc_entry *want = &r->set->entries[r->at];
        r->wrong = r->wrong || r->at >= r->set->count || !slice_equal(want->key, e->key) ||
                   want->version != e->version || want->address != e->address ||
                   want->expire_ms != e->expire_ms || want->value_len != e->value_len;
    } else {
        r->wrong = r->wrong || e->key.len > RECORD_KEY_BYTES_MAX ||
                   (r->at && slice_compare(slice_make(r->last, r->last_len), e->key) >= 0);
        r->last = realloc(r->last, e->key.len + 1);
        CHECK(r->last != NULL);
        memcpy(r->last, e->key.data, e->key.len);
        r->last_len = e->key.len;
    }
    r->at++;
    return !r->wrong && r->at != r->stop_at;
}

/* Reads all of it: equal to the set (or, without one, ascending), or the error. */
static inline status_t fixture_read(struct sim_disk *sim, const struct toc_set *set, uint64_t number)
{
    struct toc *toc;
    TRY(toc_open(&sim->disk, 1000, "folder", number, &toc));
    struct fixture_reading r = {.set = set};
    status_t s = toc_read_blocks(toc, 0, toc_info(toc)->blocks, fixture_each, &r);
    assert_false(r.wrong);
    if (status_is_ok(&s) && set)
        assert_int_equal(r.at, set->count);
    free(r.last);
    toc_close(toc);
    return s;
}

#define assert_ok(status)                                                                                    \
    do {                                                                                                     \
        status_t assert_status_ = (status);                                                                  \
        if (!status_is_ok(&assert_status_))                                                                  \
            print_error("%s\n", assert_status_.text);                                                        \
        assert_true(status_is_ok(&assert_status_));                                                          \
    } while (0)

#endif
