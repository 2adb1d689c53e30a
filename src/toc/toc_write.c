#include "toc/toc_write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/check.h"
#include "sys/clock.h"

enum {
    BUFFER_BLOCKS = 2, /* 128 KiB a write: a read of somebody else waits for it */
    BUFFER_BYTES = BUFFER_BLOCKS * TOC_BLOCK_BYTES,
};

struct toc_writer {
    struct disk *disk;
    int folder, fd; /* fd: -1 once finished */
    char *file;     /* path and name, for error texts */
    uint64_t number, start_lsn, generation;
    bool has_failed, is_finished, is_reused;
    char *buffer;      /* BUFFER_BLOCKS blocks, aligned to 4096 */
    unsigned buffered; /* complete blocks in it; the next one is being filled */
    uint32_t used;     /* bytes of entries in the block being filled */
    uint32_t count;    /* entries there */
    struct toc_totals totals;
    uint64_t version; /* of the last entry in the block; 0 in a fresh one */
    uint32_t key_len; /* of the last key of all */
    char key[RECORD_KEY_BYTES_MAX];
};

static status_t file_error(struct toc_writer *w, int64_t r, const char *what)
{
    w->has_failed = true;
    return status_errno(r < 0 ? (int)-r : EIO, "cannot %s %s", what, w->file);
}

static void writer_free(struct toc_writer *w)
{
    free(w->buffer);
    free(w->file);
    free(w);
}

static char *file_text(const char *path, uint64_t number)
{
    char name[TOC_NAME_BYTES], *file;
    toc_name(name, number, true);
    CHECK(asprintf(&file, "%s/%s", path, name) > 0);
    return file;
}

/* The file may be there: an older toc that is not needed any more and is to be written over, or what is left
 * of an attempt. Blocks that it has need not be freed and found again. */
static int open_file(struct toc_writer *w, const char *name)
{
    struct disk *disk = w->disk;
    int fd = disk->ops->create(disk, w->folder, name, true);
    if (fd != -EEXIST)
        return fd;
    fd = disk->ops->open(disk, w->folder, name, true, true);
    /* A backup or a check may have it too. The sync: its old name must have gone before it gets other bytes.
     */
    if (fd >= 0 && disk_may_overwrite(disk, fd, 1) && disk->ops->folder_sync(disk, w->folder) >= 0) {
        w->is_reused = true;
        return fd;
    }
    if (fd >= 0)
        disk->ops->close(disk, fd);
    int r = disk->ops->remove(disk, w->folder, name);
    return r < 0 ? r : disk->ops->create(disk, w->folder, name, true);
}

status_t toc_write_begin(struct disk *disk, int folder, const char *path, uint64_t number, uint64_t start_lsn,
                         struct toc_writer **out)
{
    char name[TOC_NAME_BYTES];
    if (number > TOC_NUMBER_MAX)
        return status_error(STATUS_UNSUPPORTED, "the numbers of checkpoints in %s are used up", path);
    toc_name(name, number, true);
    struct toc_writer *w = calloc(1, sizeof *w);
    CHECK(w != NULL);
    w->disk = disk;
    w->folder = folder;
    w->number = number;
    w->start_lsn = start_lsn;
    w->file = file_text(path, number);
    w->buffer = aligned_alloc(TOC_PAGE_BYTES, BUFFER_BYTES);
    CHECK(w->buffer != NULL);
    status_t s = status_ok();
    if (getrandom(&w->generation, sizeof w->generation, 0) != sizeof w->generation) {
        s = status_errno(errno, "cannot get random bytes");
        goto done;
    }
    w->fd = open_file(w, name);
    if (w->fd < 0)
        s = file_error(w, w->fd, "make");
done:
    if (!status_is_ok(&s)) {
        writer_free(w);
        return s;
    }
    *out = w;
    return s;
}

/* ---- blocks ---- */

static status_t write_at(struct toc_writer *w, const char *data, uint64_t bytes, uint64_t offset)
{
    int64_t r = w->disk->ops->write(w->disk, w->fd, data, bytes, offset);
    if (r == (int64_t)bytes)
        return status_ok();
    w->has_failed = true;
    return status_errno(r < 0 ? (int)-r : EIO, "cannot write %s at offset %" PRIu64, w->file, offset);
}

static status_t flush_buffer(struct toc_writer *w)
{
    if (w->buffered == 0)
        return status_ok();
    uint64_t bytes = (uint64_t)w->buffered * TOC_BLOCK_BYTES;
    TRY(write_at(w, w->buffer, bytes, toc_block_offset(w->totals.blocks - w->buffered)));
    w->totals.bytes += bytes;
    w->buffered = 0;
    return status_ok();
}

static inline char *block_at(const struct toc_writer *w)
{
    return w->buffer + (size_t)w->buffered * TOC_BLOCK_BYTES;
}

/* Ends the block that has w->used bytes of entries. */
static status_t block_close(struct toc_writer *w, enum toc_block_kind kind)
{
    char *block = block_at(w);
    struct toc_block_header h = {.magic = TOC_BLOCK_MAGIC, .kind = kind, .count = w->count, .bytes = w->used};
    memset(block + sizeof h + w->used, 0, TOC_PAYLOAD_BYTES - w->used);
    memcpy(block, &h, sizeof h);
    store_u64(block, toc_block_checksum(block, toc_block_offset(w->totals.blocks), w->generation));
    w->totals.blocks++;
    w->buffered++;
    w->used = w->count = 0;
    w->version = 0;
    return w->buffered == BUFFER_BLOCKS ? flush_buffer(w) : status_ok();
}

/* ---- entries ---- */

static uint32_t common_prefix(const char *a, const char *b, uint32_t n)
{
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t difference = load_u64(a + i) ^ load_u64(b + i);
        if (difference)
            return i + (uint32_t)__builtin_ctzll(difference) / 8;
    }
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* Writes the entry, whose key shares so much with the one before, to p; behind it. */
static char *encode(char *p, const struct toc_entry *e, uint32_t shared, uint64_t previous_version)
{
    uint32_t rest = (uint32_t)e->key.len - shared;
    bool moved = e->address != e->version;
    p = toc_put_varint(p, shared);
    p = toc_put_varint(p, rest);
    if (rest)
        memcpy(p, e->key.data + shared, rest);
    p = toc_put_varint(p + rest, toc_zigzag((int64_t)(e->version - previous_version)));
    *p++ = (char)((moved ? TOC_ENTRY_MOVED : 0) | (e->expire_ms ? TOC_ENTRY_EXPIRES : 0));
    if (moved) {
        store_u64(p, e->address);
        p += 8;
    }
    p = toc_put_varint(p, e->value_len);
    if (e->expire_ms) {
        store_u64(p, e->expire_ms);
        p += 8;
    }
    return p;
}

/* An entry that may be too long for one block: two of its own. */
static status_t add_long(struct toc_writer *w, const struct toc_entry *e)
{
    char *bytes = malloc(TOC_ENTRY_BYTES_MAX);
    CHECK(bytes != NULL);
    uint32_t len = (uint32_t)(encode(bytes, e, 0, 0) - bytes);
    uint32_t first = len < TOC_PAYLOAD_BYTES ? len : TOC_PAYLOAD_BYTES;
    memcpy(block_at(w) + TOC_BLOCK_HEADER_BYTES, bytes, first);
    w->used = first;
    w->count = 1;
    status_t s = block_close(w, len > first ? TOC_BLOCK_LONG : TOC_BLOCK_ENTRIES);
    if (status_is_ok(&s) && len > first) {
        memcpy(block_at(w) + TOC_BLOCK_HEADER_BYTES, bytes + first, len - first);
        w->used = len - first;
        s = block_close(w, TOC_BLOCK_REST);
    }
    free(bytes);
    return s;
}

status_t toc_write_add(struct toc_writer *w, const struct toc_entry *e)
{
    struct slice key = e->key;
    uint32_t len = (uint32_t)key.len;
    CHECK(!w->has_failed && !w->is_finished && key.len <= RECORD_KEY_BYTES_MAX);
    uint32_t shared = common_prefix(w->key, key.data, len < w->key_len ? len : w->key_len);
    /* Ascending: where the common part ends the old key ends, or has the smaller byte. */
    CHECK(w->totals.keys == 0 ||
          (shared < len &&
           (shared == w->key_len || (unsigned char)w->key[shared] < (unsigned char)key.data[shared])));
    if (len > shared)
        memcpy(w->key + shared, key.data + shared, len - shared);
    w->key_len = len;
    w->totals.keys++;
    w->totals.key_bytes += len;
    if (w->count == 0)
        shared = 0;
    if (w->used + TOC_ENTRY_OVERHEAD_MAX + (len - shared) > TOC_PAYLOAD_BYTES) {
        if (w->count)
            TRY(block_close(w, TOC_BLOCK_ENTRIES));
        if (TOC_ENTRY_OVERHEAD_MAX + len > TOC_PAYLOAD_BYTES)
            return add_long(w, e);
        shared = 0;
    }
    char *start = block_at(w) + TOC_BLOCK_HEADER_BYTES;
    w->used = (uint32_t)(encode(start + w->used, e, shared, w->version) - start);
    w->version = e->version;
    w->count++;
    return status_ok();
}

const struct toc_totals *toc_write_totals(const struct toc_writer *w)
{
    return &w->totals;
}

/* ---- the end ---- */

static status_t write_list(struct toc_writer *w, const struct toc_segment *segments,
                           struct toc_footer *footer)
{
    uint64_t bytes = toc_list_bytes(footer->segments);
    if (bytes == 0) {
        footer->list_checksum = toc_list_checksum("", 0, footer->list_offset, w->generation);
        return status_ok();
    }
    char *list = aligned_alloc(TOC_PAGE_BYTES, bytes);
    CHECK(list != NULL);
    memset(list, 0, bytes);
    memcpy(list, segments, footer->segments * sizeof *segments);
    footer->list_checksum = toc_list_checksum(list, bytes, footer->list_offset, w->generation);
    status_t s = write_at(w, list, bytes, footer->list_offset);
    free(list);
    return s;
}

/* Writes header or footer, a struct of so many bytes with the checksum behind 8 bytes of magic. */
static status_t write_page(struct toc_writer *w, const void *content, size_t bytes, uint64_t offset,
                           uint64_t generation)
{
    memset(w->buffer, 0, TOC_PAGE_BYTES);
    memcpy(w->buffer, content, bytes);
    store_u64(w->buffer + 8, toc_page_checksum(w->buffer, offset, generation));
    return write_at(w, w->buffer, TOC_PAGE_BYTES, offset);
}

status_t toc_write_finish(struct toc_writer *w, uint64_t end_lsn, uint64_t index_bytes,
                          const struct toc_segment *segments, unsigned segment_count)
{
    CHECK(!w->has_failed && !w->is_finished);
    if (w->count)
        TRY(block_close(w, TOC_BLOCK_ENTRIES));
    TRY(flush_buffer(w));
    struct toc_footer footer = {
        .magic = {'k', 'v', 'a', 's', 'i', 'r', 't', 'f'},
        .blocks = w->totals.blocks,
        .keys = w->totals.keys,
        .key_bytes = w->totals.key_bytes,
        .index_bytes = index_bytes,
        .list_offset = toc_block_offset(w->totals.blocks),
        .segments = segment_count,
    };
    struct toc_header header = {
        .magic = {'k', 'v', 'a', 's', 'i', 'r', 't', 'c'},
        .version = TOC_VERSION,
        .block_bytes = TOC_BLOCK_BYTES,
        .number = w->number,
        .start_lsn = w->start_lsn,
        .end_lsn = end_lsn,
        .generation = w->generation,
        .created_ms = clock_unix_ms(),
    };
    uint64_t footer_offset = footer.list_offset + toc_list_bytes(segment_count);
    TRY(write_list(w, segments, &footer));
    TRY(write_page(w, &footer, sizeof footer, footer_offset, w->generation));
    TRY(write_page(w, &header, sizeof header, 0, 0));
    int r = w->is_reused ? w->disk->ops->truncate(w->disk, w->fd, footer_offset + TOC_PAGE_BYTES) : 0;
    if (r >= 0)
        r = w->disk->ops->sync(w->disk, w->fd);
    if (r < 0)
        return file_error(w, r, "sync");
    w->disk->ops->close(w->disk, w->fd);
    w->fd = -1;
    w->totals.bytes = footer_offset + TOC_PAGE_BYTES;
    w->is_finished = true;
    return status_ok();
}

status_t toc_write_publish(struct toc_writer *w)
{
    CHECK(w->is_finished);
    char from[TOC_NAME_BYTES], to[TOC_NAME_BYTES];
    toc_name(from, w->number, true);
    toc_name(to, w->number, false);
    status_t s = status_ok();
    int r = w->disk->ops->rename(w->disk, w->folder, from, to);
    bool renamed = r >= 0;
    if (renamed)
        r = w->disk->ops->folder_sync(w->disk, w->folder);
    if (r < 0) {
        s = status_errno(-r, "cannot %s %s as %s", renamed ? "sync the folder of" : "publish", w->file, to);
        /* The caller will not know of it: gone with it. If a crash brings it back, it is a good toc all the
         * same. */
        (void)w->disk->ops->remove(w->disk, w->folder, renamed ? to : from);
    }
    writer_free(w);
    return s;
}

void toc_write_abandon(struct toc_writer *w)
{
    if (w == NULL)
        return;
    char name[TOC_NAME_BYTES];
    toc_name(name, w->number, true);
    if (w->fd >= 0)
        w->disk->ops->close(w->disk, w->fd);
    (void)w->disk->ops->remove(w->disk, w->folder, name);
    writer_free(w);
}
