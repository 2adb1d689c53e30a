#include "tools/bench_data.h"

void bench_value_fill(char *dst, size_t len, uint64_t id)
{
    uint64_t seed = prng_mix(id), j = 0;
    for (; len >= 8; len -= 8, dst += 8)
        store_u64(dst, bench_value_word(seed, j++));
    if (len) {
        uint64_t last = bench_value_word(seed, j);
        memcpy(dst, &last, len);
    }
}

bool bench_value_matches(struct slice value, const struct bench_sizes *sizes, uint64_t id)
{
    uint64_t seed = prng_mix(id), j = 0;
    const char *p = value.data;
    size_t len = value.len;
    if (len != bench_value_bytes(sizes, id))
        return false;
    for (; len >= 8; len -= 8, p += 8)
        if (load_u64(p) != bench_value_word(seed, j++))
            return false;
    uint64_t last = bench_value_word(seed, j);
    return len == 0 || memcmp(p, &last, len) == 0;
}
