/* bytes: views of memory and unaligned little- and big-endian access.
 *
 * A slice never owns what it points to; the declaration that hands one out says how long it lives. */
#ifndef KVASIR_BASE_BYTES_H
#define KVASIR_BASE_BYTES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct slice {
    const char *data;
    size_t len; /* bytes */
};

static inline struct slice slice_make(const char *data, size_t len)
{
    return (struct slice){data, len};
}

#define SLICE_LITERAL(text) ((struct slice){(text), sizeof(text) - 1})

static inline bool slice_equal(struct slice a, struct slice b)
{
    return a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
}

/* Order of unsigned bytes; a proper prefix comes first. */
static inline int slice_compare(struct slice a, struct slice b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n ? memcmp(a.data, b.data, n) : 0;
    if (c)
        return c;
    return (a.len > b.len) - (a.len < b.len);
}

static inline bool slice_starts_with(struct slice s, struct slice prefix)
{
    return s.len >= prefix.len && memcmp(s.data, prefix.data, prefix.len) == 0;
}

static inline uint64_t load_u64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store_u64(void *p, uint64_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline void store_u32(void *p, uint32_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline void store_u16(void *p, uint16_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the disk format is little-endian, as the host must be");

#endif
