#include "log/record.h"

#include <xxhash.h>

#include "base/check.h"

static uint64_t mix(uint64_t content_hash, uint64_t lsn, uint64_t generation)
{
    uint64_t h = content_hash ^ (lsn * XXH_PRIME64_1) ^ (generation * XXH_PRIME64_2);
    h ^= h >> 37; /* XXH3's avalanche */
    h *= 0x165667919E3779F9ull;
    h ^= h >> 32;
    return h;
}

static size_t expire_bytes(enum record_type type)
{
    return type == RECORD_SET_EXPIRE || type == RECORD_EXPIRE ? 8 : 0;
}

/* Key, value and padding behind the words before `p`; the hash of everything. */
static uint64_t encode_rest(char *dst, char *p, size_t total, struct slice key, struct slice value)
{
    /* The padding; what of it is not padding is written below. Never behind the record: the next one may be
     * there already. */
    if (dst + total > p)
        store_u64(dst + total - 8, 0);
    if (key.len)
        memcpy(p, key.data, key.len);
    if (value.len)
        memcpy(p + key.len, value.data, value.len);
    return XXH3_64bits(dst + 8, total - 8);
}

static void encode_header(char *dst, enum record_type type, struct slice key, struct slice value)
{
    store_u32(dst + 8, (uint32_t)value.len);
    store_u32(dst + 12, (uint32_t)key.len | (uint32_t)type << 24);
}

uint64_t record_encode(char *dst, enum record_type type, struct slice key, struct slice value,
                       uint64_t expire_ms)
{
    encode_header(dst, type, key, value);
    if (type == RECORD_TXN)
        return XXH3_64bits(dst + 8, RECORD_HEADER_BYTES - 8);
    char *p = dst + RECORD_HEADER_BYTES;
    if (expire_bytes(type)) {
        store_u64(p, expire_ms);
        p += 8;
    }
    return encode_rest(dst, p, record_bytes(type, key.len, value.len), key, value);
}

uint64_t record_encode_moved(char *dst, struct slice key, struct slice value, uint64_t version,
                             uint64_t expire_ms)
{
    encode_header(dst, RECORD_MOVED, key, value);
    store_u64(dst + RECORD_HEADER_BYTES, version);
    store_u64(dst + RECORD_HEADER_BYTES + 8, expire_ms);
    return encode_rest(dst, dst + RECORD_HEADER_BYTES + 16, record_bytes(RECORD_MOVED, key.len, value.len),
                       key, value);
}

void record_seal(char *dst, uint64_t content_hash, uint64_t lsn, uint64_t generation)
{
    store_u64(dst, mix(content_hash, lsn, generation));
}

int64_t record_peek(const char *data)
{
    uint32_t value_len = load_u32(data + 8), word = load_u32(data + 12), key_len = word & 0xffffff;
    enum record_type type = (enum record_type)(word >> 24);
    if (type == RECORD_NONE)
        return load_u64(data) == 0 && value_len == 0 && word == 0 ? 0 : -1;
    if (type > RECORD_MOVED || (type != RECORD_TXN && key_len > RECORD_KEY_BYTES_MAX))
        return -1;
    return (int64_t)(type == RECORD_TXN ? RECORD_HEADER_BYTES : record_bytes(type, key_len, value_len));
}

int64_t record_decode(const char *data, size_t available, uint64_t lsn, uint64_t generation,
                      struct record *out)
{
    if (available < RECORD_HEADER_BYTES)
        return available ? -1 : 0;
    int64_t total = record_peek(data);
    uint32_t value_len = load_u32(data + 8), word = load_u32(data + 12), key_len = word & 0xffffff;
    enum record_type type = (enum record_type)(word >> 24);
    *out = (struct record){.type = type, .lsn = lsn};
    if (total <= 0)
        return total;
    if ((uint64_t)total > available ||
        mix(XXH3_64bits(data + 8, (size_t)total - 8), lsn, generation) != load_u64(data))
        return -1;
    if (type == RECORD_TXN) {
        out->txn_count = key_len;
        out->txn_bytes = value_len;
        return total;
    }
    const char *p = data + RECORD_HEADER_BYTES;
    if (type == RECORD_MOVED) {
        out->version = load_u64(p);
        out->expire_ms = load_u64(p + 8);
        p += 16;
    }
    if (expire_bytes(type)) {
        out->expire_ms = load_u64(p);
        p += 8;
    }
    out->key = slice_make(p, key_len);
    out->value = slice_make(p + key_len, value_len);
    return total;
}
