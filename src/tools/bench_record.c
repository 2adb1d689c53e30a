#include "tools/bench_record.h"

enum { BYTES_MIN_DEFAULT = 1024, BYTES_MAX_DEFAULT = 4096 };

const char *bench_record_option_named(const struct bench_record_options *options)
{
    return options->min_bytes != UINT64_MAX   ? "min-size"
           : options->max_bytes != UINT64_MAX ? "max-size"
           : options->key >= 0                ? "key"
           : options->seed != UINT64_MAX      ? "seed"
                                              : NULL;
}

status_t bench_records_init(struct bench_records *records, const struct bench_record_options *options)
{
    uint64_t min = options->min_bytes, max = options->max_bytes;
    if (min == UINT64_MAX)
        min = max == UINT64_MAX ? BYTES_MIN_DEFAULT : max;
    if (max == UINT64_MAX)
        max = options->min_bytes == UINT64_MAX ? BYTES_MAX_DEFAULT : min;
    if (min > max)
        return status_error(STATUS_INVALID, "--min-size: %llu is more than --max-size %llu",
                            (unsigned long long)min, (unsigned long long)max);
    if (min < BENCH_RECORD_BYTES_MIN || max > BENCH_RECORD_BYTES_MAX) {
        bool of_min = max <= BENCH_RECORD_BYTES_MAX ? options->min_bytes != UINT64_MAX
                                                    : options->max_bytes == UINT64_MAX;
        return status_error(STATUS_INVALID, "--%s-size: sizes are %d to %d bytes", of_min ? "min" : "max",
                            BENCH_RECORD_BYTES_MIN, BENCH_RECORD_BYTES_MAX);
    }
    uint64_t seed = options->seed == UINT64_MAX ? 1 : options->seed;
    *records = (struct bench_records){.seed = seed,
                                      .base = prng_mix(seed),
                                      .key = options->key < 0 ? BENCH_KEY_UUID : (enum bench_key)options->key,
                                      .sizes = {(uint32_t)min, (uint32_t)max}};
    return status_ok();
}

static uint64_t content(const struct bench_records *records, uint64_t number, uint32_t generation)
{
    return prng_mix(prng_mix(bench_record_base(records, number) + 3) + generation);
}

static uint64_t first_word(uint64_t c, uint32_t generation)
{
    return (c & 0xffffffff00000000u) | generation;
}

void bench_record_fill(const struct bench_records *records, char *dst, size_t len, uint64_t number,
                       uint32_t generation)
{
    uint64_t c = content(records, number, generation), j = 1;
    store_u64(dst, first_word(c, generation));
    for (dst += 8, len -= 8; len >= 8; len -= 8, dst += 8)
        store_u64(dst, prng_mix(c + j++));
    if (len) {
        uint64_t last = prng_mix(c + j);
        memcpy(dst, &last, len);
    }
}

bool bench_record_matches(const struct bench_records *records, struct slice value, uint64_t number)
{
    const char *p = value.data;
    size_t len = value.len;
    if (len != bench_record_bytes(records, number))
        return false;
    uint32_t generation = load_u32(p);
    uint64_t c = content(records, number, generation), j = 1;
    uint64_t differ = load_u64(p) ^ first_word(c, generation);
    for (p += 8, len -= 8; len >= 8; len -= 8, p += 8)
        differ |= load_u64(p) ^ prng_mix(c + j++);
    uint64_t last = prng_mix(c + j);
    return differ == 0 && (len == 0 || memcmp(p, &last, len) == 0);
}
