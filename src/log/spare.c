#include "log/spare.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/logger.h"

static void spare_name(char name[SEGMENT_NAME_BYTES], uint64_t number)
{
    snprintf(name, SEGMENT_NAME_BYTES, "spare-%010" PRIu64 ".kv", number);
}

bool spare_parse_name(const char *name)
{
    char again[SEGMENT_NAME_BYTES];
    uint64_t number;
    if (sscanf(name, "spare-%10" SCNu64 ".kv", &number) != 1)
        return false;
    spare_name(again, number);
    return strcmp(name, again) == 0;
}

/* ---- leaving ---- */

struct leftover {
    char before[SEGMENT_NAME_BYTES]; /* has been tried */
    char name[SEGMENT_NAME_BYTES];   /* the first behind it; empty: none */
};

static int find_spare(void *context, const char *name)
{
    struct leftover *l = context;
    if (spare_parse_name(name) && strcmp(name, l->before) > 0 &&
        (l->name[0] == '\0' || strcmp(name, l->name) < 0))
        snprintf(l->name, sizeof l->name, "%s", name);
    return 0;
}

void spare_clear(struct disk *disk, int folder, const char *path)
{
    struct leftover l = {.name = ""};
    while (disk->ops->list(disk, folder, find_spare, &l) >= 0 && l.name[0]) {
        int e = disk->ops->remove(disk, folder, l.name);
        if (e < 0)
            LOG_WARNING("cannot remove %s/%s, which is not needed: %s", path, l.name, strerror(-e));
        memcpy(l.before, l.name, sizeof l.before);
        l.name[0] = '\0';
    }
}

status_t spare_retire(const struct segment_folder *folder, struct segment_file *file, bool keep)
{
    struct disk *disk = folder->disk;
    char name[SEGMENT_NAME_BYTES], spare[SEGMENT_NAME_BYTES];
    CHECK(atomic_load_explicit(&file->sealed, memory_order_acquire));
    CHECK(segments_live_bytes(folder->segments, file) == 0);
    segment_file_name(name, file->data, file->number);
    if (keep && disk_may_overwrite(disk, file->fd, 1)) {
        uint64_t number = segments_spare_number(folder->segments);
        spare_name(spare, number);
        if (disk->ops->rename(disk, folder->fd, name, spare) >= 0) {
            segments_unlist(folder->segments, file, number);
            return status_ok();
        }
    }
    int e = disk->ops->remove(disk, folder->fd, name);
    if (e < 0 && e != -ENOENT)
        return status_errno(-e, "cannot remove %s/%s", folder->path, name);
    segments_unlist(folder->segments, file, 0);
    return status_ok();
}

bool spare_drop(const struct segment_folder *folder, uint64_t most)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t number = segments_spare_drop(folder->segments, most);
    if (number == 0)
        return false;
    spare_name(name, number);
    (void)folder->disk->ops->remove(folder->disk, folder->fd, name); /* if it stays: the next start's */
    return true;
}

/* ---- used again ---- */

/* Gives a spare file up that is the caller's. */
static void discard(const struct segment_folder *folder, const struct segments_spare *spare, const char *name)
{
    folder->disk->ops->close(folder->disk, spare->fd);
    (void)folder->disk->ops->remove(folder->disk, folder->fd, name);
}

/* Passes over those that somebody has locked before they lost their names. */
static bool take(const struct segment_folder *folder, uint64_t least, uint64_t most, uint64_t wanted,
                 struct segments_spare *spare, char name[SEGMENT_NAME_BYTES])
{
    while (segments_spare_take(folder->segments, least, most, wanted, spare)) {
        spare_name(name, spare->number);
        if (disk_may_overwrite(folder->disk, spare->fd, 1))
            return true;
        discard(folder, spare, name);
    }
    return false;
}

static int write_header(struct disk *disk, const struct segment *segment)
{
    char *block = aligned_alloc(LOG_BLOCK_BYTES, LOG_BLOCK_BYTES);
    CHECK(block != NULL);
    memset(block, 0, LOG_BLOCK_BYTES);
    segment_header_write(block, false, segment);
    int64_t r = disk->ops->write(disk, segment->fd, block, LOG_BLOCK_BYTES, 0);
    free(block);
    if (r != LOG_BLOCK_BYTES)
        return r < 0 ? (int)r : -EIO;
    return disk->ops->sync(disk, segment->fd);
}

status_t spare_use_for_log(const struct segment_folder *folder, uint64_t number, uint64_t after,
                           uint64_t least, uint64_t wanted, struct segment *out, bool *found)
{
    struct disk *disk = folder->disk;
    struct segments_spare spare;
    char name[SEGMENT_NAME_BYTES], old_name[SEGMENT_NAME_BYTES];
    *found = take(folder, least, UINT64_MAX, wanted, &spare, old_name);
    if (!*found)
        return status_ok();
    segment_name(name, number);
    status_t s =
        segment_begin(out, folder->path, number, after, spare.bytes & ~(uint64_t)(LOG_BLOCK_BYTES - 1));
    if (!status_is_ok(&s)) {
        discard(folder, &spare, old_name);
        return s;
    }
    out->fd = spare.fd;
    out->reused = true;
    int e = disk->ops->folder_sync(disk, folder->fd); /* the old name has gone */
    if (e >= 0)
        e = write_header(disk, out);
    if (e >= 0)
        e = disk->ops->rename(disk, folder->fd, old_name, name);
    if (e < 0) {
        discard(folder, &spare, old_name);
    } else {
        e = disk->ops->folder_sync(disk, folder->fd);
        if (e < 0)
            discard(folder, &spare, name);
    }
    return e < 0 ? status_errno(-e, "cannot make log segment %s/%s of %s", folder->path, name, old_name) : s;
}

enum {
    DATA_CUT_BYTES = 4 << 20, /* freeing more at once would hold up the disk */
    DATA_SLACK_SHARE = 64,    /* of what is wanted: a little more may stay */
};

static uint64_t data_bytes_least(uint64_t bytes)
{
    return bytes - bytes / 4;
}

static uint64_t data_bytes_most(uint64_t bytes)
{
    uint64_t third = bytes / 3, cut = DATA_CUT_BYTES; /* what is too much is cut off */
    return bytes + (third < cut ? third : cut);
}

uint64_t spare_for_data(const struct segment_folder *folder, uint64_t bytes)
{
    return segments_spare_sum(folder->segments, data_bytes_least(bytes), data_bytes_most(bytes));
}

bool spare_suits_data(const struct segment_folder *folder, uint64_t bytes_expected)
{
    uint64_t bytes = round_up(LOG_BLOCK_BYTES + bytes_expected, LOG_BLOCK_BYTES);
    return spare_for_data(folder, bytes) > 0;
}

status_t spare_use_for_data(const struct segment_folder *folder, const char *name, uint64_t bytes, int *fd,
                            uint64_t *file_bytes)
{
    struct disk *disk = folder->disk;
    struct segments_spare spare;
    char old_name[SEGMENT_NAME_BYTES];
    *fd = -1;
    if (!take(folder, data_bytes_least(bytes), data_bytes_most(bytes), bytes, &spare, old_name))
        return status_ok();
    int e = disk->ops->folder_sync(disk, folder->fd); /* the old name has gone */
    if (e >= 0)
        e = disk->ops->rename(disk, folder->fd, old_name, name);
    bool named = e >= 0;
    if (named && spare.bytes < bytes) {
        e = disk->ops->allocate(disk, spare.fd, bytes);
    } else if (named && spare.bytes > bytes + bytes / DATA_SLACK_SHARE) {
        e = disk->ops->truncate(disk, spare.fd, bytes); /* now: no more room has been taken for it */
        spare.bytes = bytes;
    }
    if (named && e < 0)
        (void)disk->ops->remove(disk, folder->fd, name);
    if (e < 0) {
        discard(folder, &spare, old_name);
        return status_errno(-e, "cannot make data segment %s/%s of %s", folder->path, name, old_name);
    }
    *fd = spare.fd;
    *file_bytes = spare.bytes > bytes ? spare.bytes : bytes;
    return status_ok();
}
