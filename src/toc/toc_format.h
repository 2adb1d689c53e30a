/* toc_format: the bytes of a toc file (table of contents): which keys there are, in order, with their
 * versions and where their values lie, as the index knew them at one moment. docs/disk-format.md describes
 * the bytes.
 *
 *   header, 4096 bytes | blocks of 64 KiB | list of segments, padded to 4096 | footer, 4096 bytes
 *
 * Every block has a checksum of its own and begins with a whole key, so several threads can each read a range
 * of blocks without an index. A block is always 64 KiB. An entry that does not fit one block (a key of nearly
 * 64 KiB) has two to itself: TOC_BLOCK_LONG, TOC_BLOCK_REST; it belongs to the range in which the first lies.
 *
 * Thread safety: pure functions on the caller's memory. Little-endian, as it is on disk. */
#ifndef KVASIR_TOC_TOC_FORMAT_H
#define KVASIR_TOC_TOC_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "log/record.h"

enum {
    TOC_VERSION = 1,
    TOC_NAME_BYTES = 32,
    TOC_PAGE_BYTES = 4096, /* header, footer; the list is a multiple of it */
    TOC_BLOCK_BYTES = 65536,
    TOC_BLOCK_HEADER_BYTES = 24,
    TOC_PAYLOAD_BYTES = TOC_BLOCK_BYTES - TOC_BLOCK_HEADER_BYTES,
    /* All of an entry but its key: shared 3, rest 3, version 10, flags 1, address 8, value length 5,
       expiry 8. */
    TOC_ENTRY_OVERHEAD_MAX = 3 + 3 + 10 + 1 + 8 + 5 + 8,
    TOC_ENTRY_BYTES_MAX = RECORD_KEY_BYTES_MAX + TOC_ENTRY_OVERHEAD_MAX,
};

_Static_assert(TOC_ENTRY_BYTES_MAX <= 2 * TOC_PAYLOAD_BYTES, "the longest entry fits two blocks");

/* One key. */
struct toc_entry {
    struct slice key;
    uint64_t version;   /* LSN of the newest write */
    uint64_t address;   /* of the value's record; == version unless the key was relocated or its expiry set */
    uint64_t expire_ms; /* absolute Unix time; 0: none */
    uint32_t value_len; /* bytes */
};

enum toc_segment_kind { TOC_SEGMENT_LOG = 0, TOC_SEGMENT_DATA = 1 };

/* One file that the entries' addresses may lead to. As it is on disk. */
struct toc_segment {
    uint32_t kind;
    uint32_t reserved; /* 0 */
    uint64_t number, generation;
    uint64_t bytes;      /* of the file */
    uint64_t live_bytes; /* of it, addressed by the index */
};

_Static_assert(sizeof(struct toc_segment) == 40, "a listed segment is 40 bytes on disk");

/* The beginning of the first 4096 bytes; the rest of them is 0. Magic, checksum and version stay where they
 * are in every later format. */
struct toc_header {
    char magic[8];     /* "kvasirtc" */
    uint64_t checksum; /* XXH3-64 of bytes 16 to 4095 */
    uint32_t version;
    uint32_t block_bytes;
    uint64_t number;     /* as in the name */
    uint64_t start_lsn;  /* every write below it is in here */
    uint64_t end_lsn;    /* no write at or above it is in here */
    uint64_t generation; /* random; mixed into every other checksum of the file */
    uint64_t created_ms; /* Unix time */
};

_Static_assert(sizeof(struct toc_header) == 64, "a toc's header is 64 bytes on disk");

/* The beginning of the last 4096 bytes; the rest of them is 0. */
struct toc_footer {
    char magic[8];     /* "kvasirtf" */
    uint64_t checksum; /* XXH3-64 of bytes 16 to 4095, seed = offset of the footer ^ generation */
    uint64_t blocks;
    uint64_t keys;
    uint64_t key_bytes;     /* of all keys, uncompressed */
    uint64_t index_bytes;   /* of memory that the index took when this was written */
    uint64_t list_offset;   /* of the list of segments */
    uint64_t segments;      /* in the list */
    uint64_t list_checksum; /* XXH3-64 of the list with its padding, seed = its offset ^ generation */
};

_Static_assert(sizeof(struct toc_footer) == 72, "a toc's footer is 72 bytes on disk");

enum { TOC_BLOCK_MAGIC = 0x6274766b /* "kvtb" */ };

enum toc_block_kind {
    TOC_BLOCK_ENTRIES = 0, /* whole entries */
    TOC_BLOCK_LONG = 1,    /* the first TOC_PAYLOAD_BYTES of one long entry */
    TOC_BLOCK_REST = 2,    /* the rest of the entry in the block before */
};

/* The beginning of a block, then `bytes` of entries, then zeros.
 *
 * An entry: varint shared (bytes of key that the previous entry of the block has too, as many as possible; 0
 * in the first), varint rest, rest bytes of key, varint zigzag(version - version of the previous entry; of 0
 * in the first), flags, 8 bytes of address if TOC_ENTRY_MOVED (else it is the version), varint value length,
 * 8 bytes of expiry if TOC_ENTRY_EXPIRES. Varints are LEB128: 7 bits a byte, low ones first, the top bit says
 * that more follow. */
struct toc_block_header {
    uint64_t checksum; /* XXH3-64 of bytes 8 to 65535, seed = offset of the block in the file ^ generation */
    uint32_t magic;
    uint32_t kind;
    uint32_t count; /* entries that begin here */
    uint32_t bytes; /* of entries */
};

_Static_assert(sizeof(struct toc_block_header) == TOC_BLOCK_HEADER_BYTES,
               "a block's header is 24 bytes on disk");

enum { TOC_ENTRY_MOVED = 1, TOC_ENTRY_EXPIRES = 2, TOC_ENTRY_FLAGS = 3 };

static inline uint64_t toc_block_offset(uint64_t block)
{
    return TOC_PAGE_BYTES + block * TOC_BLOCK_BYTES;
}

/* Bytes of a list of so many segments, with padding. */
static inline uint64_t toc_list_bytes(uint64_t segments)
{
    return round_up(segments * sizeof(struct toc_segment), TOC_PAGE_BYTES);
}

#define TOC_NUMBER_MAX UINT64_C(9999999999) /* what a name has room for */

/* "toc-0000000001.kv", or .tmp while it is being written. */
void toc_name(char name[TOC_NAME_BYTES], uint64_t number, bool temporary);
/* True, the number and which of the two, if name is one of them. */
bool toc_parse_name(const char *name, uint64_t *number, bool *temporary);

/* The checksums of header or footer (4096 bytes), of the list and of a block (64 KiB). The header's has
 * generation and offset 0. */
uint64_t toc_page_checksum(const char *page, uint64_t offset, uint64_t generation);
uint64_t toc_list_checksum(const char *list, uint64_t bytes, uint64_t offset, uint64_t generation);
uint64_t toc_block_checksum(const char *block, uint64_t offset, uint64_t generation);

static inline uint64_t toc_zigzag(int64_t v)
{
    return (uint64_t)v << 1 ^ (uint64_t)(v >> 63);
}

static inline int64_t toc_unzigzag(uint64_t v)
{
    return (int64_t)(v >> 1 ^ -(v & 1));
}

static inline char *toc_put_varint(char *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (char)(v | 0x80);
    *p++ = (char)v;
    return p;
}

/* Behind the varint at p, NULL if it does not end before `end` or has more than 64 bits. */
static inline const char *toc_get_varint(const char *p, const char *end, uint64_t *out)
{
    uint64_t v = 0;
    for (unsigned shift = 0; p < end && shift < 64; shift += 7) {
        uint64_t byte = (unsigned char)*p++;
        if (shift == 63 && byte > 1)
            return NULL;
        v |= (byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = v;
            return p;
        }
    }
    return NULL;
}

#endif
