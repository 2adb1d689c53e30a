#include "log/segment.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/check.h"
#include "sys/clock.h"

enum { FILL_BYTES = 256 << 10 };

/* The first block of a segment file. */
struct segment_header {
    char magic[8]; /* "kvasirlg", "kvasirds" */
    uint32_t version;
    uint32_t header_bytes; /* LOG_BLOCK_BYTES */
    uint64_t number;
    uint64_t generation;
    uint64_t bytes;
    uint64_t created_ms;
    uint64_t checksum; /* XXH3 of what is before it */
    /* A hint, for which the header is not refused; both 0: there is none. */
    uint64_t after;          /* number of the segment that was written to when this one was made */
    uint64_t after_checksum; /* of it, seed = generation xor number */
    uint64_t reused;         /* another: XXH3 of the number, seed = generation; 0: the file was new */
};

static const char segment_magic[2][9] = {"kvasirlg", "kvasirds"}; /* log, data */
static const char *const kind_names[2] = {"log", "data"};

void segment_file_name(char name[SEGMENT_NAME_BYTES], bool data, uint64_t number)
{
    snprintf(name, SEGMENT_NAME_BYTES, "%s-%010" PRIu64 ".kv", kind_names[data], number);
}

void segment_name(char name[SEGMENT_NAME_BYTES], uint64_t number)
{
    segment_file_name(name, false, number);
}

static bool parse_name(const char *name, bool data, const char *format, uint64_t *number)
{
    char again[SEGMENT_NAME_BYTES];
    if (sscanf(name, format, number) != 1 || *number > SEGMENT_NUMBER_MAX)
        return false;
    segment_file_name(again, data, *number);
    return strcmp(name, again) == 0;
}

bool segment_parse_name(const char *name, uint64_t *number)
{
    return parse_name(name, false, "log-%10" SCNu64 ".kv", number);
}

bool segment_parse_data_name(const char *name, uint64_t *number)
{
    return parse_name(name, true, "data-%10" SCNu64 ".kv", number);
}

static uint64_t header_checksum(const struct segment_header *h)
{
    return XXH3_64bits(h, offsetof(struct segment_header, checksum));
}

static uint64_t after_checksum(const struct segment_header *h)
{
    return h->after ? XXH3_64bits_withSeed(&h->after, sizeof h->after, h->generation ^ h->number) : 0;
}

static uint64_t reused_mark(const struct segment_header *h)
{
    return XXH3_64bits_withSeed(&h->number, sizeof h->number, h->generation);
}

void segment_header_write(char *block, bool data, const struct segment *segment)
{
    struct segment_header header = {
        .version = SEGMENT_VERSION, .header_bytes = LOG_BLOCK_BYTES, .number = segment->number};
    memcpy(header.magic, segment_magic[data], sizeof header.magic);
    header.generation = segment->generation;
    header.bytes = segment->bytes;
    header.created_ms = clock_unix_ms();
    header.checksum = header_checksum(&header);
    header.after = segment->after;
    header.after_checksum = after_checksum(&header);
    header.reused = segment->reused ? reused_mark(&header) : 0;
    memcpy(block, &header, sizeof header);
}

static int fill(struct disk *disk, int fd, char *buffer, const struct segment *segment,
                const struct segment_rest *rest)
{
    uint64_t bytes = segment->bytes;
    memset(buffer, 0, FILL_BYTES);
    for (uint64_t at = FILL_BYTES; at < bytes; at += FILL_BYTES) {
        size_t n = bytes - at < FILL_BYTES ? (size_t)(bytes - at) : FILL_BYTES;
        uint64_t start_us = clock_monotonic_us();
        int64_t r = disk->ops->write(disk, fd, buffer, n, at);
        if (r != (int64_t)n)
            return r < 0 ? (int)r : -EIO;
        if (rest)
            rest->wait(rest->context, clock_monotonic_us() - start_us);
    }
    /* The header last: a file without one was never used. */
    segment_header_write(buffer, false, segment);
    size_t n = bytes < FILL_BYTES ? (size_t)bytes : FILL_BYTES;
    int64_t r = disk->ops->write(disk, fd, buffer, n, 0);
    if (r != (int64_t)n)
        return r < 0 ? (int)r : -EIO;
    return disk->ops->sync(disk, fd);
}

status_t segment_begin(struct segment *segment, const char *path, uint64_t number, uint64_t after,
                       uint64_t bytes)
{
    if (number > SEGMENT_NUMBER_MAX)
        return status_error(STATUS_UNSUPPORTED, "the log in %s has used up its segment numbers", path);
    *segment = (struct segment){.number = number, .after = after, .bytes = round_up(bytes, LOG_BLOCK_BYTES)};
    if (getrandom(&segment->generation, sizeof segment->generation, 0) != sizeof segment->generation)
        return status_errno(errno, "cannot get random bytes");
    return status_ok();
}

status_t segment_create(struct disk *disk, int folder, const char *path, uint64_t number, uint64_t after,
                        uint64_t bytes, struct segment *out, const struct segment_rest *rest)
{
    char name[SEGMENT_NAME_BYTES];
    segment_name(name, number);
    TRY(segment_begin(out, path, number, after, bytes));
    char *buffer = aligned_alloc(LOG_BLOCK_BYTES, FILL_BYTES);
    if (buffer == NULL)
        return status_error(STATUS_NO_MEMORY, "no memory to make %s/%s", path, name);
    int r = out->fd = disk->ops->create(disk, folder, name, true);
    if (r >= 0) {
        r = disk->ops->allocate(disk, out->fd, out->bytes);
        if (r >= 0)
            r = fill(disk, out->fd, buffer, out, rest);
        if (r >= 0)
            r = disk->ops->folder_sync(disk, folder);
        if (r < 0) {
            disk->ops->close(disk, out->fd);
            (void)disk->ops->remove(disk, folder, name);
        }
    }
    free(buffer);
    if (r < 0)
        return status_errno(-r, "cannot make log segment %s/%s of %" PRIu64 " KiB", path, name,
                            out->bytes >> 10);
    return status_ok();
}

void segment_hand_over(struct segment *s, struct segments *segments)
{
    s->file = segments_add(segments, false, s->number, s->generation, s->bytes, s->fd);
}

status_t segment_read_header(struct disk *disk, int fd, const char *path, bool data, uint64_t number,
                             struct segment *out)
{
    char name[SEGMENT_NAME_BYTES];
    segment_file_name(name, data, number);
    *out = (struct segment){.number = number, .fd = fd};
    char *block = aligned_alloc(LOG_BLOCK_BYTES, LOG_BLOCK_BYTES);
    CHECK(block != NULL);
    int64_t r = disk->ops->read(disk, fd, block, LOG_BLOCK_BYTES, 0);
    struct segment_header h;
    memcpy(&h, block, sizeof h);
    free(block);
    if (r < 0)
        return status_errno((int)-r, "cannot read %s/%s", path, name);
    if (r < (int64_t)sizeof h || memcmp(h.magic, segment_magic[data], sizeof h.magic) != 0)
        return status_error(STATUS_CORRUPT, "%s/%s has no %s header at offset 0", path, name,
                            kind_names[data]);
    /* The checksum first, whose place is the same in all versions: a damaged version is no newer one. */
    bool sealed = h.checksum == header_checksum(&h);
    if (sealed && h.version > SEGMENT_VERSION)
        return status_error(STATUS_UNSUPPORTED,
                            "%s/%s has format version %u, this program reads up to %d: use a newer kvasir",
                            path, name, h.version, SEGMENT_VERSION);
    if (!sealed || h.version != SEGMENT_VERSION || h.number != number)
        return status_error(STATUS_CORRUPT, "%s/%s has a damaged header at offset 0", path, name);
    out->generation = h.generation;
    out->bytes = h.bytes;
    out->after = h.after_checksum == after_checksum(&h) ? h.after : 0;
    out->reused = h.reused == reused_mark(&h);
    return status_ok();
}

status_t segment_list(struct disk *disk, int folder, const char *path, struct segments *segments, bool data,
                      uint64_t number, struct segment_file **out)
{
    char name[SEGMENT_NAME_BYTES];
    struct segment segment;
    segment_file_name(name, data, number);
    int fd = disk->ops->open(disk, folder, name, true, true);
    if (fd < 0)
        return status_errno(-fd, "cannot open %s/%s", path, name);
    status_t s = segment_read_header(disk, fd, path, data, number, &segment);
    int64_t size = disk->ops->size(disk, fd);
    if (status_is_ok(&s) && size < 0)
        s = status_errno((int)-size, "cannot get the size of %s/%s", path, name);
    if (status_is_ok(&s) && data && (uint64_t)size < segment.bytes) /* recovery cuts log segments */
        s = status_error(STATUS_CORRUPT,
                         "%s/%s was truncated at offset %" PRId64 " (it had %" PRIu64 " bytes)", path, name,
                         size, segment.bytes);
    if (!status_is_ok(&s)) {
        disk->ops->close(disk, fd);
        return s;
    }
    struct segment_file *file = segments_add(segments, data, number, segment.generation, (uint64_t)size, fd);
    segments_seal(file);
    if (out)
        *out = file;
    return s;
}

static uint64_t batch_checksum(const struct batch_header *h, uint64_t generation)
{
    return XXH3_64bits_withSeed((const char *)h + 8, sizeof *h - 8, h->lsn ^ generation);
}

void batch_header_seal(struct batch_header *h, uint64_t generation)
{
    h->magic = BATCH_MAGIC;
    h->reserved = 0;
    h->checksum = batch_checksum(h, generation);
}

bool batch_header_read(const char *data, uint64_t lsn, uint64_t generation, struct batch_header *out)
{
    memcpy(out, data, sizeof *out);
    return out->magic == BATCH_MAGIC && out->lsn == lsn && out->length >= sizeof *out &&
           out->checksum == batch_checksum(out, generation);
}
