/* record: the format of one write in the log. docs/disk-format.md describes the bytes.
 *
 *   offset  size  field
 *        0     8  checksum: of everything behind it, mixed with the record's address and its segment's
 *                  generation, so that a stale record in a reused place never parses as valid
 *        8     4  value_len, bytes
 *       12     4  key_len (low 24 bits, bytes) and type (high 8 bits)
 *       16     8  expire_ms, only in types RECORD_SET_EXPIRE and RECORD_EXPIRE: absolute Unix time in ms
 *       16    16  only in RECORD_MOVED: version (LSN), expire_ms (0: none)
 *        .        key, value, zero padding to a multiple of 8
 *
 * The address is the record's LSN, or in a data segment what log/segments.h calls so.
 *
 * RECORD_TXN frames a transaction: its value_len is the number of bytes of the records that follow and belong
 * to it (each complete, with a checksum of its own), key_len their count. A transaction lies in one batch and
 * is valid or not as a whole.
 *
 * Source of the checksum: XXH3, 64 bits (xxHash), finalised with the LSN and generation.
 * Thread safety: pure functions on the caller's memory. */
#ifndef KVASIR_LOG_RECORD_H
#define KVASIR_LOG_RECORD_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

enum record_type {
    RECORD_NONE = 0, /* padding: no more records in this batch */
    RECORD_SET = 1,
    RECORD_SET_EXPIRE = 2,
    RECORD_DELETE = 3,
    RECORD_EXPIRE = 4,  /* the value stays, expire_ms is new; 0 takes the expiry away */
    RECORD_DELTREE = 5, /* key is a path: the node and all below; an empty path is everything */
    RECORD_TXN = 6,
    RECORD_MOVED = 7, /* a value in a data segment, never in the log */
};

enum {
    RECORD_HEADER_BYTES = 16,
    RECORD_KEY_BYTES_MAX = 65536,
};

struct record {
    enum record_type type;
    uint64_t lsn;       /* filled by readers: the address */
    uint64_t version;   /* RECORD_MOVED: LSN of the key's newest write when the value was moved */
    uint64_t expire_ms; /* 0: none */
    struct slice key;   /* views into the buffer that was decoded */
    struct slice value;
    uint32_t txn_count; /* RECORD_TXN: records that follow */
    uint32_t txn_bytes; /* RECORD_TXN: their bytes */
};

/* Bytes of a record in the log, a multiple of 8. */
static inline size_t record_bytes(enum record_type type, size_t key_len, size_t value_len)
{
    size_t extra = type == RECORD_SET_EXPIRE || type == RECORD_EXPIRE ? 8 : type == RECORD_MOVED ? 16 : 0;
    return (RECORD_HEADER_BYTES + extra + key_len + value_len + 7) & ~(size_t)7;
}

/* Writes all of a record but its checksum to dst (record_bytes long) and returns the content's hash for
 * record_seal. For RECORD_TXN give txn_count as key.len and txn_bytes as value.len with NULL data. */
uint64_t record_encode(char *dst, enum record_type type, struct slice key, struct slice value,
                       uint64_t expire_ms);

/* The same for RECORD_MOVED. */
uint64_t record_encode_moved(char *dst, struct slice key, struct slice value, uint64_t version,
                             uint64_t expire_ms);

/* Writes the checksum. */
void record_seal(char *dst, uint64_t content_hash, uint64_t lsn, uint64_t generation);

/* How long the record is whose header (RECORD_HEADER_BYTES) is at data, if it is one: nothing is checked but
 * type and key length. As record_decode: 0 for padding, -1 for what is no header. */
int64_t record_peek(const char *data);

/* Reads the record at data, of which available bytes may be looked at. Returns its length in bytes; 0 for
 * padding (RECORD_NONE), -1 when there is no valid record here (bad checksum, lengths, type). Never reads
 * past available. */
int64_t record_decode(const char *data, size_t available, uint64_t lsn, uint64_t generation,
                      struct record *out);

#endif
