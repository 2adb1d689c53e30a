#include "log/data_segment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/spare.h"

enum { SLACK_SHARE = 64 }; /* of what was written: so much more a file may keep */

struct data_segment {
    struct segment_folder folder;
    int fd;
    uint64_t number, generation;
    uint64_t file_bytes; /* its size, of which so much is reserved */
    bool reused;         /* it was a spare file: there are old bytes in it */
    char name[SEGMENT_NAME_BYTES];
    char *buffer; /* aligned; the end of the file, from `written` on */
    size_t piece_bytes;
    size_t capacity; /* a multiple of piece_bytes */
    size_t buffered;
    uint64_t written; /* bytes that went to the disk; a multiple of LOG_BLOCK_BYTES */
};

static void end(struct data_segment *d, bool remove)
{
    if (remove) {
        struct disk *disk = d->folder.disk;
        disk->ops->close(disk, d->fd);
        /* Should it stay: no checkpoint names it, so the next start removes it. */
        (void)disk->ops->remove(disk, d->folder.fd, d->name);
    }
    free(d->buffer);
    free(d);
}

static status_t failed(const struct data_segment *d, int e)
{
    return status_errno(-e, "cannot write the data segment %s/%s", d->folder.path, d->name);
}

/* A spare file, or a new one with room for so many bytes. */
static status_t open_file(struct data_segment *d, uint64_t bytes)
{
    struct disk *disk = d->folder.disk;
    status_t s = spare_use_for_data(&d->folder, d->name, bytes, &d->fd, &d->file_bytes);
    d->reused = status_is_ok(&s) && d->fd >= 0;
    if (d->reused)
        return s;
    if (!status_is_ok(&s))
        LOG_WARNING("%s; a new file is made instead", s.text);
    d->file_bytes = bytes;
    d->fd = disk->ops->create(disk, d->folder.fd, d->name, true);
    if (d->fd < 0)
        return failed(d, d->fd);
    int e = disk->ops->allocate(disk, d->fd, bytes);
    if (e >= 0)
        return status_ok();
    disk->ops->close(disk, d->fd);
    (void)disk->ops->remove(disk, d->folder.fd, d->name);
    return failed(d, e);
}

status_t data_segment_begin(const struct segment_folder *folder, uint64_t number, uint64_t bytes_expected,
                            size_t piece_bytes, struct data_segment **out)
{
    if (number > SEGMENT_NUMBER_MAX)
        return status_error(STATUS_UNSUPPORTED, "the numbers of data segments in %s are used up",
                            folder->path);
    struct data_segment *d = calloc(1, sizeof *d);
    CHECK(d != NULL);
    *d = (struct data_segment){.folder = *folder, .number = number, .piece_bytes = piece_bytes};
    segment_file_name(d->name, true, number);
    if (getrandom(&d->generation, sizeof d->generation, 0) != sizeof d->generation) {
        free(d);
        return status_errno(errno, "cannot get random bytes");
    }
    d->capacity = piece_bytes;
    d->buffer = aligned_alloc(LOG_BLOCK_BYTES, d->capacity);
    CHECK(d->buffer != NULL);
    memset(d->buffer, 0, LOG_BLOCK_BYTES); /* the header's place */
    d->buffered = LOG_BLOCK_BYTES;
    status_t s = open_file(d, round_up(LOG_BLOCK_BYTES + bytes_expected, LOG_BLOCK_BYTES));
    if (status_is_ok(&s))
        *out = d;
    else
        end(d, false);
    return s;
}

/* Writes n bytes of the buffer, whole blocks. */
static status_t write_out(struct data_segment *d, size_t n)
{
    struct disk *disk = d->folder.disk;
    for (size_t at = 0; at < n;) {
        size_t part = n - at < d->piece_bytes ? n - at : d->piece_bytes;
        int64_t r = disk->ops->write(disk, d->fd, d->buffer + at, part, d->written);
        if (r != (int64_t)part)
            return failed(d, r < 0 ? (int)r : -EIO);
        at += part;
        d->written += part;
    }
    d->buffered -= n;
    memmove(d->buffer, d->buffer + n, d->buffered);
    return status_ok();
}

/* Makes room for so many more bytes. */
static status_t make_room(struct data_segment *d, size_t bytes)
{
    if (d->buffered + bytes <= d->capacity)
        return status_ok();
    TRY(write_out(d, d->buffered & ~(size_t)(LOG_BLOCK_BYTES - 1)));
    if (d->buffered + bytes <= d->capacity)
        return status_ok();
    size_t capacity = round_up(d->buffered + bytes, d->piece_bytes);
    char *wider = aligned_alloc(LOG_BLOCK_BYTES, capacity);
    if (wider == NULL)
        return status_error(STATUS_NO_MEMORY, "no memory for a record of %zu bytes", bytes);
    memcpy(wider, d->buffer, d->buffered);
    free(d->buffer);
    d->buffer = wider;
    d->capacity = capacity;
    return status_ok();
}

status_t data_segment_add(struct data_segment *d, struct slice key, struct slice value, uint64_t version,
                          uint64_t expire_ms, uint64_t *address)
{
    size_t bytes = record_bytes(RECORD_MOVED, key.len, value.len);
    TRY(make_room(d, bytes));
    char *dst = d->buffer + d->buffered;
    *address = SEGMENT_DATA_ADDRESS | segment_lsn(d->number, d->written + d->buffered);
    record_seal(dst, record_encode_moved(dst, key, value, version, expire_ms), *address, d->generation);
    d->buffered += bytes;
    return status_ok();
}

uint64_t data_segment_bytes(const struct data_segment *d)
{
    return d->written + d->buffered;
}

static int write_block(struct data_segment *d, uint64_t offset)
{
    struct disk *disk = d->folder.disk;
    int64_t r = disk->ops->write(disk, d->fd, d->buffer, LOG_BLOCK_BYTES, offset);
    return r == LOG_BLOCK_BYTES ? 0 : r < 0 ? (int)r : -EIO;
}

/* The records end here. A little more may stay: zeros where the file is new, a block of zeros where it is
 * used again. More than a little would look like dead bytes, and cleaning such files into others of their
 * kind would never end. */
static int end_file(struct data_segment *d)
{
    struct disk *disk = d->folder.disk;
    if (d->file_bytes > d->written) {
        if (d->file_bytes - d->written <= d->written / SLACK_SHARE)
            return d->reused ? write_block(d, d->written) : 0;
        int e = disk->ops->truncate(disk, d->fd, d->written);
        if (e < 0)
            return e;
    } /* else it ends where the records do: cutting nothing off would still cost a transaction */
    d->file_bytes = d->written;
    return 0;
}

/* What is left, the size, the header; then all of it is made stable. */
static status_t complete(struct data_segment *d)
{
    size_t padded = round_up(d->buffered, LOG_BLOCK_BYTES);
    TRY(make_room(d, padded - d->buffered));
    padded = round_up(d->buffered, LOG_BLOCK_BYTES);
    memset(d->buffer + d->buffered, 0, padded - d->buffered);
    d->buffered = padded;
    TRY(write_out(d, padded));
    memset(d->buffer, 0, LOG_BLOCK_BYTES);
    struct disk *disk = d->folder.disk;
    int e = end_file(d);
    const struct segment self = {.number = d->number, .generation = d->generation, .bytes = d->written};
    segment_header_write(d->buffer, true, &self);
    if (e >= 0)
        e = write_block(d, 0);
    if (e >= 0)
        e = disk->ops->sync(disk, d->fd);
    if (e >= 0)
        e = disk->ops->folder_sync(disk, d->folder.fd);
    return e < 0 ? failed(d, e) : status_ok();
}

status_t data_segment_finish(struct data_segment *d, struct segment_file **out)
{
    status_t s = complete(d);
    if (status_is_ok(&s)) {
        *out = segments_add(d->folder.segments, true, d->number, d->generation, d->file_bytes, d->fd);
        segments_seal(*out);
    }
    end(d, !status_is_ok(&s));
    return s;
}

void data_segment_abandon(struct data_segment *d)
{
    if (d)
        end(d, true);
}
