#include "log/data_segment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/check.h"
#include "log/segment.h"

enum { WRITE_BYTES = 256 << 10 }; /* a read of somebody else waits for one of these */

struct data_segment {
    struct disk *disk;
    int folder, fd;
    const char *path;
    uint64_t number, generation;
    char name[SEGMENT_NAME_BYTES];
    char *buffer;    /* aligned; the end of the file, from `written` on */
    size_t capacity; /* a multiple of WRITE_BYTES */
    size_t buffered;
    uint64_t written; /* bytes that went to the disk; a multiple of LOG_BLOCK_BYTES */
};

static void end(struct data_segment *d, bool remove)
{
    if (remove) {
        d->disk->ops->close(d->disk, d->fd);
        /* Should it stay: no checkpoint names it, so the next start removes it. */
        (void)d->disk->ops->remove(d->disk, d->folder, d->name);
    }
    free(d->buffer);
    free(d);
}

static status_t failed(const struct data_segment *d, int e)
{
    return status_errno(-e, "cannot write the data segment %s/%s", d->path, d->name);
}

status_t data_segment_begin(struct disk *disk, int folder, const char *path, uint64_t number,
                            uint64_t bytes_expected, struct data_segment **out)
{
    if (number > SEGMENT_NUMBER_MAX)
        return status_error(STATUS_UNSUPPORTED, "the numbers of data segments in %s are used up", path);
    struct data_segment *d = calloc(1, sizeof *d);
    CHECK(d != NULL);
    *d = (struct data_segment){.disk = disk, .folder = folder, .path = path, .number = number};
    segment_file_name(d->name, true, number);
    if (getrandom(&d->generation, sizeof d->generation, 0) != sizeof d->generation) {
        free(d);
        return status_errno(errno, "cannot get random bytes");
    }
    d->capacity = WRITE_BYTES;
    d->buffer = aligned_alloc(LOG_BLOCK_BYTES, d->capacity);
    CHECK(d->buffer != NULL);
    memset(d->buffer, 0, LOG_BLOCK_BYTES); /* the header's place */
    d->buffered = LOG_BLOCK_BYTES;
    d->fd = disk->ops->create(disk, folder, d->name, true);
    if (d->fd < 0) {
        status_t s = failed(d, d->fd);
        free(d->buffer);
        free(d);
        return s;
    }
    int e = disk->ops->allocate(disk, d->fd, round_up(LOG_BLOCK_BYTES + bytes_expected, LOG_BLOCK_BYTES));
    if (e < 0) {
        status_t s = failed(d, e);
        end(d, true);
        return s;
    }
    *out = d;
    return status_ok();
}

/* Writes n bytes of the buffer, whole blocks. */
static status_t write_out(struct data_segment *d, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t part = n - at < WRITE_BYTES ? n - at : WRITE_BYTES;
        int64_t r = d->disk->ops->write(d->disk, d->fd, d->buffer + at, part, d->written);
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
    size_t capacity = round_up(d->buffered + bytes, WRITE_BYTES);
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
    const struct segment self = {.number = d->number, .generation = d->generation, .bytes = d->written};
    segment_header_write(d->buffer, true, &self);
    int64_t r = d->disk->ops->truncate(d->disk, d->fd, d->written);
    if (r >= 0) {
        r = d->disk->ops->write(d->disk, d->fd, d->buffer, LOG_BLOCK_BYTES, 0);
        r = r < 0 || r == LOG_BLOCK_BYTES ? r : -EIO;
    }
    if (r >= 0)
        r = d->disk->ops->sync(d->disk, d->fd);
    if (r >= 0)
        r = d->disk->ops->folder_sync(d->disk, d->folder);
    return r < 0 ? failed(d, (int)r) : status_ok();
}

status_t data_segment_finish(struct data_segment *d, struct segments *segments, struct segment_file **out)
{
    status_t s = complete(d);
    if (status_is_ok(&s)) {
        *out = segments_add(segments, true, d->number, d->generation, d->written, d->fd);
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
