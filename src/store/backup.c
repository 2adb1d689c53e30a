/* A backup: a folder that holds all that was durable at one moment, made beside the traffic: a new
 * checkpoint, then hard links to its toc and to all segments that get no more writes, and a copy of the one
 * that does.
 *
 * The last segments are copied, not linked: whoever starts from the backup may cut the end of its log, and a
 * cut would go through a link to the original. Where links are impossible (another file system) everything is
 * copied. The folder has its name only when all is in it and synced; until then it is PATH.tmp. A file
 * `unfinished-backup` in it says whose it is: who makes the backup has it locked. What a crash has left with
 * that file in it, and without the lock, is removed by the next backup to the same path; without the file it
 * may be anybody's data.
 *
 * Nothing that the backup needs goes meanwhile: files are removed by the keeper, which is busy here. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/logger.h"
#include "log/segment.h"
#include "store/internal.h"
#include "toc/toc_read.h"

enum { PIECE_BYTES = 1 << 20, BYTES_PER_SECOND = 256 << 20 };

static const char marker[] = "unfinished-backup";

struct backup {
    struct store *store;
    const char *path;      /* what it will be called */
    char *temporary;       /* and is called until then */
    int folder, lock;      /* -1: not there */
    char *buffer;          /* PIECE_BYTES, aligned */
    uint64_t end_lsn;      /* of what is durable */
    uint64_t first_copied; /* log segments below get no more writes, and no start will cut them */
    bool links;            /* still possible */
    uint64_t files, linked_bytes, copied_bytes;
};

static status_t disk_error(const struct backup *b, int e, const char *what, const char *name)
{
    return status_errno(-e, "cannot %s %s/%s", what, b->temporary, name);
}

/* Copies len bytes (of a file that may grow meanwhile). */
static status_t copy_bytes(struct backup *b, int from, int to, uint64_t len, const char *name)
{
    struct disk *disk = b->store->config.disk;
    for (uint64_t done = 0; done < len;) {
        size_t n = len - done < PIECE_BYTES ? (size_t)(len - done) : PIECE_BYTES;
        size_t whole = round_up(n, LOG_BLOCK_BYTES); /* O_DIRECT; files are whole blocks */
        int64_t got = disk->ops->read(disk, from, b->buffer, whole, done);
        if (got < (int64_t)n)
            return disk_error(b, got < 0 ? (int)got : -EIO, "read what is to be copied to", name);
        got = disk->ops->write(disk, to, b->buffer, whole, done);
        if (got < 0)
            return disk_error(b, (int)got, "write", name);
        done += n;
        b->copied_bytes += n;
        if (keeper_pause(b->store, PIECE_BYTES * 1000000ull / BYTES_PER_SECOND))
            return status_error(STATUS_BUSY, "the server is stopping");
    }
    return status_ok();
}

static status_t copy_file(struct backup *b, int from, uint64_t len, const char *name)
{
    struct disk *disk = b->store->config.disk;
    int to = disk->ops->create(disk, b->folder, name, true);
    if (to < 0)
        return disk_error(b, to, "create", name);
    status_t s = copy_bytes(b, from, to, len, name);
    int e = status_is_ok(&s) ? disk->ops->truncate(disk, to, len) : 0;
    if (status_is_ok(&s) && e >= 0)
        e = disk->ops->sync(disk, to);
    disk->ops->close(disk, to);
    if (status_is_ok(&s) && e < 0)
        return disk_error(b, e, "sync", name);
    b->files++;
    return s;
}

static status_t link_file(struct backup *b, int from, uint64_t bytes, const char *name)
{
    struct disk *disk = b->store->config.disk;
    int e = b->links ? disk->ops->link(disk, b->store->keeper.folder, name, b->folder) : -EXDEV;
    if (e == -EXDEV || e == -EPERM || e == -EMLINK || e == -EOPNOTSUPP) {
        b->links = false;
        return copy_file(b, from, bytes, name);
    }
    if (e < 0)
        return disk_error(b, e, "link", name);
    b->files++;
    b->linked_bytes += bytes;
    return status_ok();
}

static status_t add_toc(struct backup *b, uint64_t number)
{
    struct disk *disk = b->store->config.disk;
    char name[TOC_NAME_BYTES];
    toc_name(name, number, false);
    int fd = disk->ops->open(disk, b->store->keeper.folder, name, false, true);
    if (fd < 0)
        return status_errno(-fd, "cannot open %s/%s", b->store->config.path, name);
    int64_t bytes = disk->ops->size(disk, fd);
    status_t s = bytes < 0 ? status_errno((int)-bytes, "cannot get the size of %s", name)
                           : link_file(b, fd, (uint64_t)bytes, name);
    disk->ops->close(disk, fd);
    return s;
}

/* The log segment in which the log ends; its predecessor while it is empty, as behind a start, and then is no
 * part of the backup: a file of its header alone would be taken for a truncated one. */
static uint64_t last_number(const struct backup *b)
{
    uint64_t number = b->end_lsn >> LOG_SEGMENT_SHIFT;
    return lsn_offset(b->end_lsn) <= LOG_BLOCK_BYTES && number ? number - 1 : number;
}

static status_t add_segment(struct backup *b, const struct segment_file *file)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t last = last_number(b);
    uint64_t bytes = atomic_load_explicit(&file->bytes, memory_order_relaxed);
    segment_file_name(name, file->data, file->number);
    if (file->data) /* written once */
        return link_file(b, file->fd, bytes, name);
    if (file->number > last)
        return status_ok();
    if (file->number < b->first_copied)
        return link_file(b, file->fd, bytes, name);
    bool ends = file->number == b->end_lsn >> LOG_SEGMENT_SHIFT;
    return copy_file(b, file->fd, ends ? lsn_offset(b->end_lsn) : bytes, name);
}

struct files {
    struct segment_file **items;
    size_t count, capacity;
};

static bool note_file(void *context, struct segment_file *file)
{
    struct files *f = context;
    f->items = store_grow(f->items, &f->capacity, f->count + 1, sizeof(struct segment_file *));
    f->items[f->count++] = file;
    return true;
}

static status_t fill(struct backup *b)
{
    struct files files = {0};
    const struct keeper *k = &b->store->keeper;
    if (k->toc_count == 0)
        return status_error(STATUS_IO, "there is no checkpoint");
    b->end_lsn = log_commit_lsn(b->store->log);
    /* Only the keeper takes files off the list, and it is here; but for what the log gives up that it has
     * made ahead, behind end_lsn. */
    segments_each(b->store->segments, note_file, &files);
    for (size_t i = 0; i < files.count; i++) {
        const struct segment_file *file = files.items[i];
        if (!file->data && file->number <= last_number(b) && file->number > b->first_copied)
            b->first_copied = file->number; /* numbers may be missing */
    }
    status_t s = add_toc(b, k->tocs[0].number);
    for (size_t i = 0; i < files.count && status_is_ok(&s); i++)
        s = add_segment(b, files.items[i]);
    free(files.items);
    return s;
}

/* ---- beginning and end ---- */

struct leftover {
    char name[256]; /* empty: there is none but the marker */
    bool foreign;   /* it is no file of ours */
};

static int note_name(void *context, const char *name)
{
    struct leftover *l = context;
    uint64_t number;
    bool temporary;
    if (strcmp(name, marker) == 0)
        return 0;
    snprintf(l->name, sizeof l->name, "%s", name);
    l->foreign = !segment_parse_name(name, &number) && !segment_parse_data_name(name, &number) &&
                 !toc_parse_name(name, &number, &temporary);
    return l->foreign;
}

/* An unfinished backup goes, its marker last. */
static status_t clear_away(struct backup *b)
{
    struct disk *disk = b->store->config.disk;
    for (;;) {
        struct leftover l = {{0}, false};
        int e = disk->ops->list(disk, b->folder, note_name, &l);
        if (e < 0)
            return disk_error(b, e, "list", "");
        if (l.foreign)
            return status_error(STATUS_INVALID, "%s/%s is no file of a backup: remove it", b->temporary,
                                l.name);
        if (l.name[0] == '\0')
            break;
        e = disk->ops->remove(disk, b->folder, l.name);
        if (e < 0)
            return disk_error(b, e, "remove", l.name);
    }
    (void)disk->ops->remove(disk, b->folder, marker);
    int e = disk->ops->folder_remove(disk, b->temporary);
    return e < 0 ? status_errno(-e, "cannot remove the folder %s", b->temporary) : status_ok();
}

static void close_both(struct backup *b)
{
    struct disk *disk = b->store->config.disk;
    if (b->lock >= 0)
        disk->ops->close(disk, b->lock);
    if (b->folder >= 0)
        disk->ops->close(disk, b->folder);
    b->lock = b->folder = -1;
}

static status_t lock(struct backup *b)
{
    struct disk *disk = b->store->config.disk;
    b->lock = disk->ops->lock(disk, b->folder, marker);
    if (b->lock == -EWOULDBLOCK)
        return status_error(STATUS_BUSY, "another server makes a backup in %s", b->temporary);
    return b->lock < 0 ? disk_error(b, b->lock, "lock", marker) : status_ok();
}

/* Is the folder an unfinished backup? A crash right behind its making leaves it empty. */
static bool is_leftover(struct backup *b)
{
    struct disk *disk = b->store->config.disk;
    struct leftover l = {{0}, false};
    if (b->folder < 0)
        return false;
    int fd = disk->ops->open(disk, b->folder, marker, false, false);
    if (fd >= 0)
        disk->ops->close(disk, fd);
    return fd >= 0 || (disk->ops->list(disk, b->folder, note_name, &l) >= 0 && l.name[0] == '\0');
}

/* Something has the name already. */
static status_t remove_leftover(struct backup *b)
{
    b->folder = b->store->config.disk->ops->folder_open(b->store->config.disk, b->temporary, false);
    status_t s = is_leftover(b)
                     ? lock(b)
                     : status_error(STATUS_INVALID,
                                    "%s exists already and is no unfinished backup: remove it", b->temporary);
    if (status_is_ok(&s))
        s = clear_away(b);
    close_both(b);
    if (status_is_ok(&s))
        LOG_INFO("the unfinished backup %s is removed", b->temporary);
    return s;
}

static status_t begin(struct backup *b)
{
    struct disk *disk = b->store->config.disk;
    b->folder = disk->ops->folder_create(disk, b->temporary);
    if (b->folder == -EEXIST) {
        TRY(remove_leftover(b));
        b->folder = disk->ops->folder_create(disk, b->temporary);
    }
    if (b->folder < 0)
        return status_errno(-b->folder, "cannot create the folder %s", b->temporary);
    status_t s = lock(b);
    int e = status_is_ok(&s) ? disk->ops->folder_sync(disk, b->folder) : 0; /* the marker before all else */
    if (e < 0)
        s = disk_error(b, e, "sync", "");
    if (!status_is_ok(&s) && s.code != STATUS_BUSY) /* then it is another server's */
        (void)clear_away(b);
    return s;
}

static status_t complete(struct backup *b)
{
    struct disk *disk = b->store->config.disk;
    int e = disk->ops->remove(disk, b->folder, marker);
    if (e >= 0)
        e = disk->ops->folder_sync(disk, b->folder);
    if (e >= 0)
        e = disk->ops->folder_rename(disk, b->temporary, b->path);
    return e < 0 ? status_errno(-e, "cannot complete the backup %s", b->path) : status_ok();
}

static status_t make(struct backup *b)
{
    TRY(begin(b));
    status_t s = fill(b);
    if (status_is_ok(&s))
        s = complete(b);
    if (!status_is_ok(&s)) {
        status_t cleared = clear_away(b);
        if (!status_is_ok(&cleared))
            LOG_WARNING("what there is of the backup %s stays: %s", b->path, cleared.text);
    }
    return s;
}

status_t backup_make(struct store *store, const char *path, char text[STORE_BACKUP_TEXT_BYTES])
{
    struct disk *disk = store->config.disk;
    size_t len = strlen(path);
    struct backup b = {.store = store, .path = path, .folder = -1, .lock = -1, .links = true};
    int exists = disk->ops->folder_open(disk, path, false);
    if (exists >= 0)
        disk->ops->close(disk, exists);
    if (exists != -ENOENT)
        return status_error(STATUS_INVALID, "%s exists already: name a folder that does not", path);
    int inside = disk->ops->folder_holds ? disk->ops->folder_holds(disk, store->keeper.folder, path) : 0;
    if (inside < 0)
        return status_errno(-inside, "cannot tell whether %s lies in the data folder", path);
    if (inside)
        return status_error(STATUS_INVALID, "%s lies in the data folder %s: name one outside of it", path,
                            store->config.path);
    b.temporary = malloc(len + 5);
    b.buffer = aligned_alloc(LOG_BLOCK_BYTES, PIECE_BYTES);
    CHECK(b.temporary && b.buffer);
    snprintf(b.temporary, len + 5, "%s.tmp", path);
    status_t s = make(&b);
    close_both(&b);
    if (status_is_ok(&s)) {
        snprintf(text, STORE_BACKUP_TEXT_BYTES,
                 "%" PRIu64 " files, %" PRIu64 " bytes linked, %" PRIu64 " bytes copied", b.files,
                 b.linked_bytes, b.copied_bytes);
        LOG_INFO("backup %s: %s", path, text);
    } else {
        LOG_WARNING("the backup %s was given up: %s", path, s.text);
    }
    free(b.temporary);
    free(b.buffer);
    return s;
}
