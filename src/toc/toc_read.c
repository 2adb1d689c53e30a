#include "toc/toc_read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"

enum {
    BUFFER_BLOCKS = 16, /* 1 MiB a read */
    COPY_BYTES = 32,    /* keys are copied so much at a time where there is room */
    SEGMENTS_MAX = 1 << 24,
};

struct toc {
    struct disk *disk;
    int fd;
    char *file; /* path and name, for error texts */
    char *list; /* the segments as read; info.segments */
    struct toc_info info;
};

static status_t corrupt(const struct toc *t, uint64_t offset, const char *what)
{
    return status_error(STATUS_CORRUPT, "%s is damaged at offset %" PRIu64 ": %s", t->file, offset, what);
}

/* Exactly so many bytes. */
static status_t read_at(const struct toc *t, char *data, uint64_t bytes, uint64_t offset)
{
    int64_t r = t->disk->ops->read(t->disk, t->fd, data, bytes, offset);
    if (r < 0)
        return status_errno((int)-r, "cannot read %s at offset %" PRIu64, t->file, offset);
    return (uint64_t)r == bytes ? status_ok() : corrupt(t, offset + (uint64_t)r, "the file ends here");
}

/* ---- opening ---- */

static status_t read_header(struct toc *t, char *page, uint64_t number)
{
    struct toc_header h;
    TRY(read_at(t, page, TOC_PAGE_BYTES, 0));
    memcpy(&h, page, sizeof h);
    if (memcmp(h.magic, "kvasirtc", sizeof h.magic) != 0)
        return corrupt(t, 0, "there is no toc header");
    if (h.checksum != toc_page_checksum(page, 0, 0))
        return corrupt(t, 0, "the header's checksum does not match");
    if (h.version > TOC_VERSION)
        return status_error(STATUS_UNSUPPORTED,
                            "%s has format version %u, this program reads up to %d: use a newer kvasir",
                            t->file, h.version, TOC_VERSION);
    if (h.version != TOC_VERSION || h.block_bytes != TOC_BLOCK_BYTES || h.number != number ||
        h.start_lsn > h.end_lsn)
        return corrupt(t, 0, "the header is not that of this file");
    t->info.number = number;
    t->info.generation = h.generation;
    t->info.start_lsn = h.start_lsn;
    t->info.end_lsn = h.end_lsn;
    t->info.created_ms = h.created_ms;
    return status_ok();
}

static status_t read_footer(struct toc *t, char *page, struct toc_footer *f)
{
    uint64_t bytes = t->info.bytes, offset = bytes - TOC_PAGE_BYTES;
    TRY(read_at(t, page, TOC_PAGE_BYTES, offset));
    memcpy(f, page, sizeof *f);
    if (memcmp(f->magic, "kvasirtf", sizeof f->magic) != 0)
        return corrupt(t, offset, "there is no toc footer; the file was cut or never complete");
    if (f->checksum != toc_page_checksum(page, offset, t->info.generation))
        return corrupt(t, offset, "the footer's checksum does not match");
    /* The limits come first, so that no sum overflows. */
    if (f->blocks > bytes / TOC_BLOCK_BYTES || f->segments > SEGMENTS_MAX ||
        f->list_offset != toc_block_offset(f->blocks) ||
        f->list_offset + toc_list_bytes(f->segments) != offset || f->keys > f->blocks * TOC_PAYLOAD_BYTES)
        return corrupt(t, offset, "the footer's numbers do not fit the file");
    t->info.blocks = f->blocks;
    t->info.keys = f->keys;
    t->info.key_bytes = f->key_bytes;
    t->info.index_bytes = f->index_bytes;
    t->info.segment_count = (uint32_t)f->segments;
    return status_ok();
}

static status_t read_list(struct toc *t, const struct toc_footer *f)
{
    uint64_t bytes = toc_list_bytes(f->segments);
    t->list = aligned_alloc(TOC_PAGE_BYTES, bytes ? bytes : TOC_PAGE_BYTES);
    if (t->list == NULL)
        return status_error(STATUS_NO_MEMORY, "no memory for the %" PRIu64 " segments that %s lists",
                            f->segments, t->file);
    TRY(read_at(t, t->list, bytes, f->list_offset));
    if (f->list_checksum != toc_list_checksum(t->list, bytes, f->list_offset, t->info.generation))
        return corrupt(t, f->list_offset, "the checksum of the list of segments does not match");
    t->info.segments = (const struct toc_segment *)t->list;
    for (uint32_t i = 0; i < t->info.segment_count; i++)
        if (t->info.segments[i].kind > TOC_SEGMENT_DATA)
            return corrupt(t, f->list_offset + i * sizeof(struct toc_segment),
                           "a segment of an unknown kind");
    return status_ok();
}

static status_t open_checked(struct toc *t, uint64_t number)
{
    int64_t size = t->disk->ops->size(t->disk, t->fd);
    if (size < 0)
        return status_errno((int)-size, "cannot get the size of %s", t->file);
    t->info.bytes = (uint64_t)size;
    if (size < 2 * TOC_PAGE_BYTES || size % TOC_PAGE_BYTES)
        return corrupt(t, t->info.bytes, "the file ends here, which is no length of a toc");
    char *page = aligned_alloc(TOC_PAGE_BYTES, TOC_PAGE_BYTES);
    CHECK(page != NULL);
    struct toc_footer footer;
    status_t s = read_header(t, page, number);
    if (status_is_ok(&s))
        s = read_footer(t, page, &footer);
    free(page);
    return status_is_ok(&s) ? read_list(t, &footer) : s;
}

status_t toc_open(struct disk *disk, int folder, const char *path, uint64_t number, struct toc **out)
{
    char name[TOC_NAME_BYTES];
    toc_name(name, number, false);
    struct toc *t = calloc(1, sizeof *t);
    CHECK(t != NULL);
    t->disk = disk;
    CHECK(asprintf(&t->file, "%s/%s", path, name) > 0);
    t->fd = disk->ops->open(disk, folder, name, false, true);
    status_t s = t->fd < 0 ? status_errno(-t->fd, "cannot open %s", t->file) : open_checked(t, number);
    if (status_is_ok(&s))
        *out = t;
    else
        toc_close(t);
    return s;
}

void toc_close(struct toc *t)
{
    if (t == NULL)
        return;
    if (t->fd >= 0)
        t->disk->ops->close(t->disk, t->fd);
    free(t->list);
    free(t->file);
    free(t);
}

const struct toc_info *toc_info(const struct toc *t)
{
    return &t->info;
}

/* ---- blocks ---- */

/* One pass over a range. */
struct reading {
    const struct toc *toc;
    bool (*each)(void *context, const struct toc_entry *entry);
    void *context;
    bool stopped;   /* each said so */
    bool has_entry; /* there was one: key is its key */
    bool is_long;   /* entry has the first part of a long entry, the next block must have the rest */
    uint32_t key_len;
    char *buffer; /* up to BUFFER_BLOCKS blocks */
    char key[RECORD_KEY_BYTES_MAX + COPY_BYTES];
    char entry[2 * TOC_PAYLOAD_BYTES];
};

/* Takes the key at p, which shares bytes with the one before. Behind it; NULL if it cannot be. */
static inline const char *decode_key(struct reading *r, const char *p, const char *end, bool first)
{
    uint64_t shared, rest;
    if ((p = toc_get_varint(p, end, &shared)) == NULL || (p = toc_get_varint(p, end, &rest)) == NULL)
        return NULL;
    if (rest > (uint64_t)(end - p) || shared > r->key_len || shared + rest > RECORD_KEY_BYTES_MAX)
        return NULL;
    if (LIKELY(!first)) {
        /* As much as possible is shared, so the order shows in the first byte that is not. */
        if (rest == 0 || (shared < r->key_len && (unsigned char)*p <= (unsigned char)r->key[shared]))
            return NULL;
    } else if (shared != 0 ||
               (r->has_entry && slice_compare(slice_make(r->key, r->key_len), slice_make(p, rest)) >= 0)) {
        return NULL;
    }
    if (LIKELY(rest <= COPY_BYTES && end - p >= COPY_BYTES))
        memcpy(r->key + shared, p, COPY_BYTES);
    else
        memcpy(r->key + shared, p, rest);
    r->key_len = (uint32_t)(shared + rest);
    r->has_entry = true;
    return p + rest;
}

/* The entry at p; behind it, NULL if it cannot be one. */
static inline const char *decode(struct reading *r, const char *p, const char *end, bool first,
                                 struct toc_entry *e)
{
    uint64_t delta, value_len;
    p = decode_key(r, p, end, first);
    if (p == NULL || (p = toc_get_varint(p, end, &delta)) == NULL || p == end)
        return NULL;
    e->key = slice_make(r->key, r->key_len);
    e->version += (uint64_t)toc_unzigzag(delta);
    unsigned flags = (unsigned char)*p++;
    if (flags & ~(unsigned)TOC_ENTRY_FLAGS)
        return NULL;
    e->address = e->version;
    if (flags & TOC_ENTRY_MOVED) {
        if (end - p < 8)
            return NULL;
        e->address = load_u64(p);
        p += 8;
    }
    if ((p = toc_get_varint(p, end, &value_len)) == NULL || value_len > UINT32_MAX)
        return NULL;
    e->value_len = (uint32_t)value_len;
    e->expire_ms = 0;
    if (flags & TOC_ENTRY_EXPIRES) {
        if (end - p < 8)
            return NULL;
        e->expire_ms = load_u64(p);
        p += 8;
    }
    return p;
}

/* Hands out the entries at p; offset: of their block. */
static status_t read_entries(struct reading *r, const char *p, const char *end, uint32_t count,
                             uint64_t offset)
{
    struct toc_entry e = {.version = 0};
    for (uint32_t i = 0; i < count; i++) {
        p = decode(r, p, end, i == 0, &e);
        if (UNLIKELY(p == NULL))
            return status_error(STATUS_CORRUPT, "%s is damaged in the block at offset %" PRIu64 ": entry %u",
                                r->toc->file, offset, i);
        if (!r->each(r->context, &e)) {
            r->stopped = true;
            return status_ok();
        }
    }
    return p == end ? status_ok() : corrupt(r->toc, offset, "the block has more bytes than entries");
}

static status_t check_block(const struct toc *t, const char *block, uint64_t offset,
                            struct toc_block_header *h)
{
    memcpy(h, block, sizeof *h);
    if (h->checksum != toc_block_checksum(block, offset, t->info.generation))
        return corrupt(t, offset, "the block's checksum does not match");
    if (h->magic != TOC_BLOCK_MAGIC || h->kind > TOC_BLOCK_REST || h->bytes > TOC_PAYLOAD_BYTES)
        return corrupt(t, offset, "the block's header is none");
    return status_ok();
}

/* starts: the first block of the range. */
static status_t read_block(struct reading *r, const char *block, uint64_t offset, bool starts)
{
    struct toc_block_header h;
    TRY(check_block(r->toc, block, offset, &h));
    const char *bytes = block + TOC_BLOCK_HEADER_BYTES;
    if (r->is_long != (h.kind == TOC_BLOCK_REST)) {
        if (h.kind == TOC_BLOCK_REST && starts && offset > toc_block_offset(0))
            return status_ok(); /* of the range before */
        return corrupt(r->toc, offset, "the two blocks of a long entry are not together");
    }
    switch ((enum toc_block_kind)h.kind) {
    case TOC_BLOCK_ENTRIES:
        return read_entries(r, bytes, bytes + h.bytes, h.count, offset);
    case TOC_BLOCK_LONG:
        if (h.bytes != TOC_PAYLOAD_BYTES)
            return corrupt(r->toc, offset, "a long entry that is not");
        memcpy(r->entry, bytes, TOC_PAYLOAD_BYTES);
        r->is_long = true;
        return status_ok();
    case TOC_BLOCK_REST:
        memcpy(r->entry + TOC_PAYLOAD_BYTES, bytes, h.bytes);
        r->is_long = false;
        return read_entries(r, r->entry, r->entry + TOC_PAYLOAD_BYTES + h.bytes, 1, offset - TOC_BLOCK_BYTES);
    }
    return status_ok();
}

static status_t read_range(struct reading *r, uint64_t first, uint64_t end)
{
    const struct toc *t = r->toc;
    uint64_t window = first, window_end = first;
    /* A long entry at the end of the range takes one block more. */
    for (uint64_t b = first; (b < end || r->is_long) && !r->stopped; b++) {
        if (b == t->info.blocks)
            return corrupt(t, toc_block_offset(b), "the second block of a long entry is missing");
        if (b == window_end) {
            uint64_t n = b < end ? end - b : 1;
            n = n < BUFFER_BLOCKS ? n : BUFFER_BLOCKS;
            TRY(read_at(t, r->buffer, n * TOC_BLOCK_BYTES, toc_block_offset(b)));
            window = b;
            window_end = b + n;
        }
        TRY(read_block(r, r->buffer + (b - window) * TOC_BLOCK_BYTES, toc_block_offset(b), b == first));
    }
    return status_ok();
}

status_t toc_read_blocks(const struct toc *t, uint64_t first, uint64_t count,
                         bool (*each)(void *context, const struct toc_entry *entry), void *context)
{
    CHECK(first <= t->info.blocks && count <= t->info.blocks - first);
    struct reading *r = malloc(sizeof *r);
    CHECK(r != NULL);
    r->toc = t;
    r->each = each;
    r->context = context;
    r->stopped = r->has_entry = r->is_long = false;
    r->key_len = 0;
    uint64_t blocks = count < BUFFER_BLOCKS ? count + !count : BUFFER_BLOCKS;
    r->buffer = aligned_alloc(TOC_PAGE_BYTES, blocks * TOC_BLOCK_BYTES);
    CHECK(r->buffer != NULL);
    status_t s = read_range(r, first, first + count);
    free(r->buffer);
    free(r);
    return s;
}
