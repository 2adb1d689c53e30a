#include "sys/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* A new folder's name must survive a power failure too, or everything synced inside is lost with it. */
static int sync_parent(int folder)
{
    int fd = openat(folder, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return r;
}

static int real_folder_open(struct disk *disk, const char *path, bool create)
{
    (void)disk;
    bool made = create && mkdir(path, 0755) == 0;
    if (create && !made && errno != EEXIST)
        return -errno;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int e = made ? sync_parent(fd) : 0;
    if (e < 0)
        close(fd);
    return e < 0 ? e : fd;
}

static int real_folder_create(struct disk *disk, const char *path)
{
    return mkdir(path, 0755) < 0 ? -errno : real_folder_open(disk, path, false);
}

static int real_folder_rename(struct disk *disk, const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) < 0)
        return -errno;
    int fd = real_folder_open(disk, to, false);
    if (fd < 0)
        return fd;
    int e = sync_parent(fd);
    close(fd);
    return e;
}

static int real_folder_remove(struct disk *disk, const char *path)
{
    (void)disk;
    return rmdir(path) < 0 ? -errno : 0;
}

/* Opens what there is of a path: it, or the nearest folder above it. Cuts the path. */
static int open_existing(char *path)
{
    for (;;) {
        int fd = open(*path ? path : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
        size_t len = strlen(path);
        if (fd >= 0 || len == 0 || (errno != ENOENT && errno != ENOTDIR))
            return fd < 0 ? -errno : fd;
        while (len && path[len - 1] == '/')
            len--;
        while (len && path[len - 1] != '/')
            len--;
        path[len] = '\0';
    }
}

/* Does the descriptor's folder, or one above it, have that inode? Closes the descriptor. */
static int is_below(int fd, const struct stat *wanted)
{
    struct stat s, last = {0};
    for (;;) {
        int e = fstat(fd, &s) < 0 ? -errno : 0;
        bool found = e == 0 && s.st_dev == wanted->st_dev && s.st_ino == wanted->st_ino;
        bool root = s.st_dev == last.st_dev && s.st_ino == last.st_ino; /* there .. is itself */
        int above = e < 0 || found || root ? 0 : openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (above < 0)
            e = -errno;
        close(fd);
        if (e < 0 || found || root)
            return e < 0 ? e : found;
        last = s;
        fd = above;
    }
}

static int real_folder_holds(struct disk *disk, int folder, const char *path)
{
    (void)disk;
    struct stat wanted;
    if (fstat(folder, &wanted) < 0)
        return -errno;
    char *rest = strdup(path);
    int fd = rest ? open_existing(rest) : -ENOMEM;
    free(rest);
    return fd < 0 ? fd : is_below(fd, &wanted);
}

static int real_link(struct disk *disk, int folder, const char *name, int to_folder)
{
    (void)disk;
    return linkat(folder, name, to_folder, name, 0) < 0 ? -errno : 0;
}

static int real_lock(struct disk *disk, int folder, const char *name)
{
    (void)disk;
    int fd = openat(folder, name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int e = errno;
        close(fd);
        return -e;
    }
    return fd;
}

static int open_direct(int folder, const char *name, int flags, bool direct)
{
    int fd = -1;
    if (direct)
        fd = openat(folder, name, flags | O_DIRECT | O_CLOEXEC, 0644);
    if (!direct || (fd < 0 && errno == EINVAL)) {
        if (direct && flags & O_EXCL)
            (void)unlinkat(folder, name, 0); /* some file systems create first and refuse O_DIRECT then */
        fd = openat(folder, name, flags | O_CLOEXEC, 0644);
    }
    return fd < 0 ? -errno : fd;
}

/* Asked before opening, because opening a pipe waits for its other end. */
static int is_file(int folder, const char *name)
{
    struct stat s;
    if (fstatat(folder, name, &s, 0) < 0)
        return -errno;
    return S_ISREG(s.st_mode) ? 0 : S_ISDIR(s.st_mode) ? -EISDIR : -EOPNOTSUPP;
}

static int real_open(struct disk *disk, int folder, const char *name, bool write, bool direct)
{
    (void)disk;
    int e = is_file(folder, name);
    if (e < 0)
        return e;
    return open_direct(folder, name, write ? O_RDWR : O_RDONLY, direct);
}

static int real_create(struct disk *disk, int folder, const char *name, bool direct)
{
    (void)disk;
    return open_direct(folder, name, O_RDWR | O_CREAT | O_EXCL, direct);
}

static void real_close(struct disk *disk, int fd)
{
    (void)disk;
    close(fd);
}

static int64_t real_size(struct disk *disk, int fd)
{
    (void)disk;
    struct stat s;
    return fstat(fd, &s) < 0 ? -errno : s.st_size;
}

static int real_links(struct disk *disk, int fd)
{
    (void)disk;
    struct stat s;
    return fstat(fd, &s) < 0 ? -errno : s.st_nlink > INT_MAX ? INT_MAX : (int)s.st_nlink;
}

static int real_lock_shared(struct disk *disk, int fd)
{
    (void)disk;
    return flock(fd, LOCK_SH | LOCK_NB) < 0 ? -errno : 0;
}

/* Asking takes the lock for a moment. Where files cannot be locked, nobody has. */
static int real_is_locked(struct disk *disk, int fd)
{
    (void)disk;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK;
    flock(fd, LOCK_UN);
    return 0;
}

static int64_t real_read(struct disk *disk, int fd, void *buffer, size_t len, uint64_t offset)
{
    (void)disk;
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(fd, (char *)buffer + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL && done) /* O_DIRECT: stopped at an unaligned end of the file */
            break;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (int64_t)done;
}

static int64_t real_write(struct disk *disk, int fd, const void *buffer, size_t len, uint64_t offset)
{
    (void)disk;
    size_t done = 0;
    while (done < len) {
        ssize_t n = pwrite(fd, (const char *)buffer + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return (int64_t)done;
}

static int real_allocate(struct disk *disk, int fd, uint64_t len)
{
    (void)disk;
    int r;
    do
        r = fallocate(fd, 0, 0, (off_t)len);
    while (r < 0 && errno == EINTR);
    /* A file system without it: writing the zeros is what allocates. */
    return r == 0 || errno == EOPNOTSUPP ? 0 : -errno;
}

static int real_truncate(struct disk *disk, int fd, uint64_t len)
{
    (void)disk;
    return ftruncate(fd, (off_t)len) < 0 ? -errno : 0;
}

static int real_sync(struct disk *disk, int fd)
{
    (void)disk;
    return fsync(fd) < 0 ? -errno : 0;
}

static int real_folder_sync(struct disk *disk, int folder)
{
    (void)disk;
    return fsync(folder) < 0 ? -errno : 0;
}

static int real_rename(struct disk *disk, int folder, const char *from, const char *to)
{
    (void)disk;
    return renameat(folder, from, folder, to) < 0 ? -errno : 0;
}

static int real_remove(struct disk *disk, int folder, const char *name)
{
    (void)disk;
    return unlinkat(folder, name, 0) < 0 ? -errno : 0;
}

static int real_list(struct disk *disk, int folder, int (*each)(void *context, const char *name),
                     void *context)
{
    (void)disk;
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        int e = errno;
        close(fd);
        return -e;
    }
    int result = 0;
    for (;;) {
        errno =
            0; /* the only way to tell an error from the end: a listing cut short must not pass for whole */
        struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            result = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (each(context, entry->d_name))
            break;
    }
    closedir(dir);
    return result;
}

static int64_t real_free_bytes(struct disk *disk, int folder)
{
    (void)disk;
    struct statvfs s;
    return fstatvfs(folder, &s) < 0 ? -errno : (int64_t)(s.f_bavail * s.f_frsize);
}

enum { SECTOR_BYTES = 512, BLOCK_BYTES = 4096 };

static int real_direct_unit(struct disk *disk, int fd)
{
    (void)disk;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    if (!(flags & O_DIRECT)) /* buffered: anything goes, but sectors are what a disk has */
        return SECTOR_BYTES;
#ifdef STATX_DIOALIGN
    struct statx s;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &s) == 0 && s.stx_mask & STATX_DIOALIGN &&
        s.stx_dio_offset_align > 0)
        return (int)s.stx_dio_offset_align;
#endif
    char *buffer = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    if (buffer == NULL)
        return -ENOMEM;
    ssize_t n = pread(fd, buffer, SECTOR_BYTES, SECTOR_BYTES);
    free(buffer);
    return n < 0 ? BLOCK_BYTES : SECTOR_BYTES;
}

struct disk *disk_real(void)
{
    static const struct disk_ops ops = {
        .folder_open = real_folder_open,
        .folder_create = real_folder_create,
        .folder_rename = real_folder_rename,
        .folder_remove = real_folder_remove,
        .folder_holds = real_folder_holds,
        .link = real_link,
        .lock = real_lock,
        .open = real_open,
        .create = real_create,
        .close = real_close,
        .size = real_size,
        .links = real_links,
        .lock_shared = real_lock_shared,
        .is_locked = real_is_locked,
        .read = real_read,
        .write = real_write,
        .allocate = real_allocate,
        .truncate = real_truncate,
        .sync = real_sync,
        .folder_sync = real_folder_sync,
        .rename = real_rename,
        .remove = real_remove,
        .list = real_list,
        .free_bytes = real_free_bytes,
        .direct_unit = real_direct_unit,
    };
    static struct disk disk = {&ops};
    return &disk;
}
