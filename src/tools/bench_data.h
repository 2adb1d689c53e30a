/* bench_data: the keys and values of the load generator, functions of the key's id alone, so that any run can
 * check any other's.
 *
 * Key i is "key:%012d", 16 bytes. Its value's length is the smallest one asked for, or, of a range A-B, A +
 * mix(i) mod (B-A+1). Its content is eight bytes at a time, word j (little-endian) being (mix(mix(i) + j) &
 * 0x3f3f3f3f3f3f3f3f) + 0x3030303030303030: printable ASCII '0'..'o'; a shorter value is a prefix of a longer
 * one. mix is prng_mix.
 *
 * Thread safety: pure functions on the caller's memory. */
#ifndef KVASIR_TOOLS_BENCH_DATA_H
#define KVASIR_TOOLS_BENCH_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/prng.h"

enum { BENCH_KEY_BYTES = 16, BENCH_KEY_DIGITS = 12 };

/* Eight decimal digits of v < 10^8 as text, first digit in the lowest byte. Source: Khuong, "How to print
 * integers really fast". */
static inline uint64_t bench_digits8(uint32_t v)
{
    uint64_t x = (uint64_t)(v / 10000) | (uint64_t)(v % 10000) << 32;
    uint64_t q = ((x * 10486) >> 20) & 0x0000007f0000007fu;
    x = q | (x - q * 100) << 16;
    q = ((x * 103) >> 10) & 0x000f000f000f000fu;
    x = q | (x - q * 10) << 8;
    return x | 0x3030303030303030u;
}

/* Writes the 12 digits of id < 10^12. */
static inline void bench_put_digits(char *dst, uint64_t id)
{
    uint64_t high = id / 100000000;
    store_u64(dst + 4, bench_digits8((uint32_t)(id - high * 100000000)));
    store_u32(dst, (uint32_t)(bench_digits8((uint32_t)high) >> 32));
}

struct bench_sizes {
    uint32_t min, max; /* bytes of a value */
};

static inline uint32_t bench_value_bytes(const struct bench_sizes *sizes, uint64_t id)
{
    if (sizes->min == sizes->max)
        return sizes->min;
    return sizes->min + (uint32_t)(prng_mix(id) % (sizes->max - sizes->min + 1));
}

static inline uint64_t bench_value_word(uint64_t seed, uint64_t j)
{
    return (prng_mix(seed + j) & 0x3f3f3f3f3f3f3f3fu) + 0x3030303030303030u;
}

/* Writes the first len bytes of id's content. */
void bench_value_fill(char *dst, size_t len, uint64_t id);

/* True when value is what bench_value_fill wrote, at id's length. */
bool bench_value_matches(struct slice value, const struct bench_sizes *sizes, uint64_t id);

#endif
