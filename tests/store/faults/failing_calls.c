/* Makes the nth call on files below one folder fail, whoever makes it: Python, numpy or the HDF5 library.
   Loaded with LD_PRELOAD; armed and read through ctypes. A call fails with an errno of its kind, or does half its work. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, READ, WRITE, FLUSH, NAME, REMOVE, CUT, N_KINDS };
#define HALF (-1) /* a short read or write */
static const int errors[N_KINDS][5] = {
    {EMFILE, EIO, EACCES, ENFILE, 0}, {EIO, HALF, EIO, HALF, 0}, {ENOSPC, EIO, HALF, EDQUOT, 0}, {EIO, ENOSPC, EIO, EDQUOT, 0},
    {EIO, ENOSPC, EACCES, EDQUOT, 0}, {EIO, EACCES, EIO, EROFS, 0}, {EIO, ENOSPC, EFBIG, EIO, 0},
};

static char folder[4096];
static size_t folder_length;
static unsigned kinds;
static long count, nth, hits;
static int choice, from_then_on;

/* Calls of these kinds (a bit each) below `path` are counted; the nth fails, with `for_good` all later ones of writing too. */
void fault_arm(const char *path, unsigned which, long when, int error, int for_good) {
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    kinds = which, nth = when, choice = error, from_then_on = for_good;
    count = hits = 0;
}
void fault_disarm(void) { kinds = 0; }
long fault_count(void) { return count; }
long fault_hits(void) { return hits; }

static int inside(const char *path) { return strncmp(path, folder, folder_length) == 0; }

static int inside_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

static int inside_at(int fd, const char *path) { return path[0] == '/' || fd == AT_FDCWD ? inside(path) : inside_fd(fd); }

/* 0: go on; HALF: do half; else the errno. */
static int fate(enum kind kind, int is_inside) {
    if (!is_inside) return 0;
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (now != nth && !(from_then_on && now > nth && nth > 0)) return 0;
    __atomic_add_fetch(&hits, 1, __ATOMIC_SEQ_CST);
    return from_then_on ? ENOSPC : errors[kind][choice & 3];
}
#define WATCHED(kind, where) ((kinds >> (kind)) & 1 ? fate(kind, where) : 0)
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(kind, where, name, ...)                                  \
    do {                                                              \
        int found = WATCHED(kind, where);                             \
        if (found) return errno = found == HALF ? EIO : found, -1;    \
        return REAL(name)(__VA_ARGS__);                               \
    } while (0)
#define MOVE(kind, name, fd, buffer, length, ...)                                    \
    do {                                                                             \
        int found = WATCHED(kind, inside_fd(fd));                                    \
        if (found == HALF && length > 1) length /= 2;                                \
        else if (found && found != HALF) return errno = found, -1;                   \
        return REAL(name)(fd, buffer, length, ##__VA_ARGS__);                        \
    } while (0)
#define MODE(flags) ({ va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); mode; })
/* Without the right to create, a full disk does not hinder opening. */
#define OPENED(flags, where) ((flags) & O_CREAT || !from_then_on ? (where) : 0)

int open(const char *path, int flags, ...) { CALL(OPEN, OPENED(flags, inside(path)), open, path, flags, MODE(flags)); }
int open64(const char *path, int flags, ...) { CALL(OPEN, OPENED(flags, inside(path)), open64, path, flags, MODE(flags)); }
int openat(int fd, const char *path, int flags, ...) { CALL(OPEN, OPENED(flags, inside_at(fd, path)), openat, fd, path, flags, MODE(flags)); }
int openat64(int fd, const char *path, int flags, ...) { CALL(OPEN, OPENED(flags, inside_at(fd, path)), openat64, fd, path, flags, MODE(flags)); }
ssize_t read(int fd, void *buffer, size_t length) { MOVE(READ, read, fd, buffer, length); }
ssize_t pread(int fd, void *buffer, size_t length, off_t at) { MOVE(READ, pread, fd, buffer, length, at); }
ssize_t pread64(int fd, void *buffer, size_t length, off64_t at) { MOVE(READ, pread64, fd, buffer, length, at); }
ssize_t write(int fd, const void *buffer, size_t length) { MOVE(WRITE, write, fd, buffer, length); }
ssize_t pwrite(int fd, const void *buffer, size_t length, off_t at) { MOVE(WRITE, pwrite, fd, buffer, length, at); }
ssize_t pwrite64(int fd, const void *buffer, size_t length, off64_t at) { MOVE(WRITE, pwrite64, fd, buffer, length, at); }
/* Flushing takes most of the time of a small store and shows nothing here: it only fails, or seems to succeed. */
static int flushed(int fd) {
    int found = WATCHED(FLUSH, inside_fd(fd));
    return found ? (errno = found, -1) : 0;
}
/* Of several buffers a short write takes the first half. */
ssize_t writev(int fd, const struct iovec *parts, int n) {
    int found = WATCHED(WRITE, inside_fd(fd));
    if (found == HALF) return n > 1 ? REAL(writev)(fd, parts, n / 2) : REAL(write)(fd, parts[0].iov_base, (parts[0].iov_len + 1) / 2);
    return found ? (errno = found, -1) : REAL(writev)(fd, parts, n);
}
int fsync(int fd) { return flushed(fd); }
int fdatasync(int fd) { return flushed(fd); }
int rename(const char *from, const char *to) { CALL(NAME, inside(to), rename, from, to); }
int link(const char *from, const char *to) { CALL(NAME, inside(to), link, from, to); }
int linkat(int f, const char *from, int t, const char *to, int flags) { CALL(NAME, inside_at(t, to), linkat, f, from, t, to, flags); }
int mkdir(const char *path, mode_t mode) { CALL(NAME, inside(path), mkdir, path, mode); }
int unlink(const char *path) { CALL(REMOVE, inside(path) && !from_then_on, unlink, path); }
int unlinkat(int fd, const char *path, int flags) { CALL(REMOVE, inside_at(fd, path) && !from_then_on, unlinkat, fd, path, flags); }
int rmdir(const char *path) { CALL(REMOVE, inside(path) && !from_then_on, rmdir, path); }
int ftruncate(int fd, off_t length) { CALL(CUT, inside_fd(fd), ftruncate, fd, length); }
int ftruncate64(int fd, off64_t length) { CALL(CUT, inside_fd(fd), ftruncate64, fd, length); }
