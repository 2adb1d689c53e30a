#include "sim_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"

enum { FOLDER_FD = 1000, LOCK_FD = 1001 };

static struct sim_disk *sim_of(struct disk *disk)
{
    return (struct sim_disk *)disk;
}

/* -errno when this operation is to fail. */
static int fault(struct sim_disk *sim, enum sim_op op)
{
    if (sim->dead)
        return -EIO;
    if (sim->fail_after == 0 || (sim->fail_op != SIM_ANY && sim->fail_op != op))
        return 0;
    if (op == SIM_READ && sim->fail_op == SIM_ANY)
        return 0;
    if (--sim->fail_after > 0)
        return 0;
    sim->dead = sim->fail_dies;
    return -sim->fail_errno;
}

static bool coin(struct sim_disk *sim)
{
    return prng_next(&sim->prng) >> 63;
}

void sim_disk_resize(struct sim_file *f, uint64_t size)
{
    CHECK(size <= SIM_FILE_BYTES_MAX);
    uint64_t capacity = round_up(size, SIM_SECTOR_BYTES);
    if (capacity > f->capacity) {
        f->data = realloc(f->data, capacity);
        f->stable = realloc(f->stable, capacity);
        f->dirty = realloc(f->dirty, capacity / SIM_SECTOR_BYTES);
        CHECK(f->data && f->stable && f->dirty);
        memset(f->data + f->capacity, 0, capacity - f->capacity);
        memset(f->stable + f->capacity, 0, capacity - f->capacity);
        memset(f->dirty + f->capacity / SIM_SECTOR_BYTES, 0, (capacity - f->capacity) / SIM_SECTOR_BYTES);
        f->capacity = capacity;
    }
    if (size < f->size)
        memset(f->data + size, 0, f->size - size);
    f->size = size;
}

struct sim_file *sim_disk_file(struct sim_disk *sim, const char *name)
{
    for (int i = 0; i < SIM_FILES_MAX; i++)
        if (sim->files[i].named && strcmp(sim->files[i].name, name) == 0)
            return &sim->files[i];
    return NULL;
}

static void file_free(struct sim_file *f)
{
    free(f->data);
    free(f->stable);
    free(f->dirty);
    *f = (struct sim_file){0};
}

/* Frees a file that no crash can bring back and nobody can reach. */
static void file_drop(struct sim_file *f)
{
    if (!f->named && !f->synced_named && f->opens == 0)
        file_free(f);
}

static struct sim_file *open_file(struct disk *disk, int fd)
{
    struct sim_file *f = &sim_of(disk)->files[fd];
    CHECK(fd >= 0 && fd < SIM_FILES_MAX && f->opens > 0); /* closed, and used again? */
    return f;
}

unsigned sim_disk_opens(const struct sim_disk *sim)
{
    unsigned n = 0;
    for (int i = 0; i < SIM_FILES_MAX; i++)
        n += sim->files[i].opens;
    return n;
}

static uint64_t used_bytes(struct sim_disk *sim)
{
    uint64_t n = 0;
    for (int i = 0; i < SIM_FILES_MAX; i++)
        n += sim->files[i].named || sim->files[i].opens ? sim->files[i].size : 0;
    return n;
}

static int sim_folder_open(struct disk *disk, const char *path, bool create)
{
    return sim_of(disk)->dead ? -EIO : FOLDER_FD;
}

static int sim_lock(struct disk *disk, int folder, const char *name)
{
    if (sim_of(disk)->locked)
        return -EWOULDBLOCK;
    sim_of(disk)->locked = true;
    return LOCK_FD;
}

static int sim_open(struct disk *disk, int folder, const char *name, bool write, bool direct)
{
    struct sim_file *f = sim_disk_file(sim_of(disk), name);
    if (sim_of(disk)->dead)
        return -EIO;
    if (f)
        f->opens++;
    return f ? (int)(f - sim_of(disk)->files) : -ENOENT;
}

static int sim_create(struct disk *disk, int folder, const char *name, bool direct)
{
    struct sim_disk *sim = sim_of(disk);
    int r = fault(sim, SIM_CREATE);
    if (r < 0)
        return r;
    if (sim_disk_file(sim, name))
        return -EEXIST;
    for (int i = 0; i < SIM_FILES_MAX; i++) {
        if (sim->files[i].name[0])
            continue;
        CHECK(strlen(name) < sizeof sim->files[i].name);
        memcpy(sim->files[i].name, name, strlen(name) + 1);
        sim->files[i].named = true;
        sim->files[i].opens = 1;
        return i;
    }
    return -ENOSPC;
}

static void sim_close(struct disk *disk, int fd)
{
    if (fd == LOCK_FD)
        sim_of(disk)->locked = false;
    if (fd >= SIM_FILES_MAX)
        return;
    struct sim_file *f = open_file(disk, fd);
    if (--f->opens == 0)
        file_drop(f);
}

static int64_t sim_size(struct disk *disk, int fd)
{
    return (int64_t)open_file(disk, fd)->size;
}

static int64_t sim_read(struct disk *disk, int fd, void *buffer, size_t len, uint64_t offset)
{
    struct sim_disk *sim = sim_of(disk);
    struct sim_file *f = open_file(disk, fd);
    int r = fault(sim, SIM_READ);
    if (r < 0)
        return r;
    if (offset >= f->size)
        return 0;
    size_t n = f->size - offset < len ? (size_t)(f->size - offset) : len;
    memcpy(buffer, f->data + offset, n);
    return (int64_t)n;
}

static int64_t sim_write(struct disk *disk, int fd, const void *buffer, size_t len, uint64_t offset)
{
    struct sim_disk *sim = sim_of(disk);
    struct sim_file *f = open_file(disk, fd);
    int r = fault(sim, SIM_WRITE);
    if (r < 0)
        return r;
    if (offset + len > f->size) {
        if (sim->capacity && used_bytes(sim) + (offset + len - f->size) > sim->capacity)
            return -ENOSPC;
        sim_disk_resize(f, offset + len);
    }
    memcpy(f->data + offset, buffer, len);
    for (uint64_t s = offset / SIM_SECTOR_BYTES; s <= (offset + len - 1) / SIM_SECTOR_BYTES; s++)
        f->dirty[s] = 1;
    return (int64_t)len;
}

static int sim_allocate(struct disk *disk, int fd, uint64_t len)
{
    struct sim_disk *sim = sim_of(disk);
    int r = fault(sim, SIM_ALLOCATE);
    if (r < 0)
        return r;
    struct sim_file *f = open_file(disk, fd);
    if (sim->capacity && len > f->size && used_bytes(sim) + (len - f->size) > sim->capacity)
        return -ENOSPC;
    sim_disk_resize(f, len);
    return 0;
}

static int sim_truncate(struct disk *disk, int fd, uint64_t len)
{
    int r = fault(sim_of(disk), SIM_TRUNCATE);
    if (r < 0)
        return r;
    sim_disk_resize(open_file(disk, fd), len);
    return 0;
}

void sim_disk_sync_range(struct sim_disk *sim, int fd, uint64_t offset, uint64_t len)
{
    struct sim_file *f = &sim->files[fd];
    memcpy(f->stable + offset, f->data + offset, len);
    memset(f->dirty + offset / SIM_SECTOR_BYTES, 0, len / SIM_SECTOR_BYTES);
}

static int sim_sync(struct disk *disk, int fd)
{
    struct sim_disk *sim = sim_of(disk);
    struct sim_file *f = open_file(disk, fd);
    int r = fault(sim, SIM_SYNC);
    if (r < 0)
        return r;
    if (f->capacity)
        sim_disk_sync_range(sim, fd, 0, f->capacity);
    f->stable_size = f->size;
    return 0;
}

static int sim_folder_sync(struct disk *disk, int folder)
{
    struct sim_disk *sim = sim_of(disk);
    int r = fault(sim, SIM_SYNC);
    if (r < 0)
        return r;
    for (int i = 0; i < SIM_FILES_MAX; i++) {
        sim->files[i].synced_named = sim->files[i].named;
        sim->files[i].old_name[0] = '\0';
        file_drop(&sim->files[i]);
    }
    return 0;
}

static int sim_links(struct disk *disk, int fd)
{
    return open_file(disk, fd)->named;
}

/* Never over another file: nothing here does that. */
static int sim_rename(struct disk *disk, int folder, const char *from, const char *to)
{
    struct sim_disk *sim = sim_of(disk);
    int r = fault(sim, SIM_RENAME);
    if (r < 0)
        return r;
    struct sim_file *f = sim_disk_file(sim, from);
    if (f == NULL)
        return -ENOENT;
    if (sim_disk_file(sim, to))
        return -EEXIST;
    if (f->old_name[0] == '\0')
        memcpy(f->old_name, f->name, sizeof f->name);
    CHECK(strlen(to) < sizeof f->name);
    memcpy(f->name, to, strlen(to) + 1);
    return 0;
}

static int sim_remove(struct disk *disk, int folder, const char *name)
{
    int r = fault(sim_of(disk), SIM_REMOVE);
    struct sim_file *f = sim_disk_file(sim_of(disk), name);
    if (r < 0 || f == NULL)
        return r < 0 ? r : -ENOENT;
    f->named = false;
    file_drop(f);
    return 0;
}

static int sim_list(struct disk *disk, int folder, int (*each)(void *, const char *), void *context)
{
    struct sim_disk *sim = sim_of(disk);
    for (int i = SIM_FILES_MAX - 1; i >= 0; i--)
        if (sim->files[i].named && each(context, sim->files[i].name))
            break;
    return sim->dead ? -EIO : 0;
}

static int64_t sim_free_bytes(struct disk *disk, int folder)
{
    struct sim_disk *sim = sim_of(disk);
    return sim->capacity ? (int64_t)(sim->capacity - used_bytes(sim)) : INT64_MAX;
}

static int sim_direct_unit(struct disk *disk, int fd)
{
    int unit = sim_of(disk)->direct_unit;
    return unit ? unit : SIM_SECTOR_BYTES;
}

static const struct disk_ops sim_ops = {
    .folder_open = sim_folder_open,
    .lock = sim_lock,
    .open = sim_open,
    .create = sim_create,
    .close = sim_close,
    .size = sim_size,
    .read = sim_read,
    .write = sim_write,
    .allocate = sim_allocate,
    .truncate = sim_truncate,
    .sync = sim_sync,
    .folder_sync = sim_folder_sync,
    .links = sim_links,
    .rename = sim_rename,
    .remove = sim_remove,
    .list = sim_list,
    .free_bytes = sim_free_bytes,
    .direct_unit = sim_direct_unit,
};

struct sim_disk *sim_disk_create(uint64_t seed)
{
    struct sim_disk *sim = calloc(1, sizeof *sim);
    CHECK(sim != NULL);
    sim->disk.ops = &sim_ops;
    prng_seed(&sim->prng, seed);
    return sim;
}

void sim_disk_destroy(struct sim_disk *sim)
{
    for (int i = 0; i < SIM_FILES_MAX; i++)
        file_free(&sim->files[i]);
    free(sim);
}

static void file_crash(struct sim_disk *sim, struct sim_file *f)
{
    if (f->named != f->synced_named && coin(sim))
        f->named = f->synced_named;
    if (!f->named) {
        file_free(f);
        return;
    }
    uint64_t size = f->size != f->stable_size && coin(sim) ? f->stable_size : f->size;
    unsigned style = (unsigned)prng_below(&sim->prng, 4); /* all of it, nothing, or sector by sector */
    for (uint64_t s = 0; s < f->capacity / SIM_SECTOR_BYTES; s++) {
        if (f->dirty[s] && (style == 1 || (style > 1 && coin(sim))))
            memcpy(f->data + s * SIM_SECTOR_BYTES, f->stable + s * SIM_SECTOR_BYTES, SIM_SECTOR_BYTES);
        f->dirty[s] = 0;
    }
    f->size = f->size < size ? f->size : size;
    sim_disk_resize(f, size);
    if (f->capacity > size)
        memset(f->data + size, 0, f->capacity - size);
    if (f->capacity)
        memcpy(f->stable, f->data, f->capacity);
    f->stable_size = size;
    f->synced_named = true;
    if (f->old_name[0] && sim_disk_file(sim, f->old_name) == NULL && coin(sim))
        memcpy(f->name, f->old_name, sizeof f->name);
    f->old_name[0] = '\0';
}

void sim_disk_crash(struct sim_disk *sim)
{
    for (int i = 0; i < SIM_FILES_MAX; i++)
        if (sim->files[i].name[0])
            file_crash(sim, &sim->files[i]);
    sim_disk_restart(sim);
}

void sim_disk_restart(struct sim_disk *sim)
{
    sim->locked = sim->dead = false;
    sim->fail_after = 0;
    for (int i = 0; i < SIM_FILES_MAX; i++) {
        sim->files[i].opens = 0;
        file_drop(&sim->files[i]);
    }
}

void sim_disk_copy(struct sim_disk *to, const struct sim_disk *from)
{
    for (int i = 0; i < SIM_FILES_MAX; i++) {
        const struct sim_file *f = &from->files[i];
        file_free(&to->files[i]);
        if (!f->name[0])
            continue;
        memcpy(to->files[i].name, f->name, sizeof f->name);
        to->files[i].named = f->named;
        to->files[i].synced_named = f->synced_named;
        sim_disk_resize(&to->files[i], f->size);
        memcpy(to->files[i].data, f->data, f->size);
        to->files[i].stable_size = f->size;
        memcpy(to->files[i].stable, f->data, f->size);
    }
    sim_disk_restart(to);
}
