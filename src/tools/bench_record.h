/* bench_record: the records of `load --generate`, functions of the seed and the record's number alone, so
 * that nothing is stored in a client and any run can check what another one wrote.
 *
 * With mix = prng_mix and r = mix(mix(seed) + number), all modulo 2^64 and little-endian:
 *   key      uuid: the 16 raw bytes of mix(r), mix(r + 1); counter: "key:%012d" of the number
 *   length   min + floor(mix(r + 2) * (max - min + 1) / 2^64)
 *   content  c = mix(mix(r + 3) + generation); the first 8 bytes are the generation (low half) and the high
 *            half of c; the word at offset 8j is mix(c + j), the last one cut off
 * The generation is 0 when loaded and anything else when overwritten: a value names it, so that it can be
 * checked without knowing who wrote it last. mix being a bijection, no two keys of a seed are equal.
 *
 * Thread safety: pure functions on the caller's memory. */
#ifndef KVASIR_TOOLS_BENCH_RECORD_H
#define KVASIR_TOOLS_BENCH_RECORD_H

#include "base/prng.h"
#include "base/status.h"
#include "tools/bench_data.h"

enum bench_key { BENCH_KEY_UUID, BENCH_KEY_COUNTER };

enum {
    BENCH_RECORD_BYTES_MIN = 8, /* the generation must fit */
    BENCH_RECORD_BYTES_MAX = 1 << 26,
};

struct bench_records {
    uint64_t seed;
    uint64_t base; /* mix(seed) */
    enum bench_key key;
    struct bench_sizes sizes;
};

/* What the command line says; the values of BENCH_RECORD_UNSET stand for "not named". */
struct bench_record_options {
    uint64_t seed, min_bytes, max_bytes;
    int key;
};

#define BENCH_RECORD_UNSET ((struct bench_record_options){UINT64_MAX, UINT64_MAX, UINT64_MAX, -1})

/* The name of the first option that is there, NULL when none is. */
const char *bench_record_option_named(const struct bench_record_options *options);

/* Fills in the defaults: seed 1, uuid, 1024 to 4096 bytes; one size alone is the size of all. */
STATUS_MUST_USE status_t bench_records_init(struct bench_records *records,
                                            const struct bench_record_options *options);

static inline uint64_t bench_record_base(const struct bench_records *records, uint64_t number)
{
    return prng_mix(records->base + number);
}

/* Writes the BENCH_KEY_BYTES of the key. */
static inline void bench_record_key(const struct bench_records *records, uint64_t number, char *dst)
{
    if (records->key == BENCH_KEY_COUNTER) {
        memcpy(dst, "key:", BENCH_KEY_BYTES - BENCH_KEY_DIGITS);
        bench_put_digits(dst + BENCH_KEY_BYTES - BENCH_KEY_DIGITS, number);
        return;
    }
    uint64_t r = bench_record_base(records, number);
    store_u64(dst, prng_mix(r));
    store_u64(dst + 8, prng_mix(r + 1));
}

/* Length of the record's value. */
static inline uint32_t bench_record_bytes(const struct bench_records *records, uint64_t number)
{
    uint64_t span = records->sizes.max - records->sizes.min + 1;
    if (span == 1)
        return records->sizes.min;
    uint64_t v = prng_mix(bench_record_base(records, number) + 2);
    return records->sizes.min + (uint32_t)((unsigned __int128)v * span >> 64);
}

/* Writes the record's content, len = bench_record_bytes. */
void bench_record_fill(const struct bench_records *records, char *dst, size_t len, uint64_t number,
                       uint32_t generation);

/* True when value has the record's length and the content of any generation. */
bool bench_record_matches(const struct bench_records *records, struct slice value, uint64_t number);

#endif
