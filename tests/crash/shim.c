/* Watches the system calls by which a process changes files below one folder: counts them, kills the process at one of
 * them, lets one or all further ones fail, or records them. Loaded by LD_PRELOAD; does nothing until `shim_arm`.
 *
 * Record, native byte order: kind (1), errno (4), offset (8), length of path, of other path, of data (8 each), then these.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FAIL_ONCE, FAIL_ON, RECORD };

static char root[PATH_MAX];
static size_t root_length;
static int mode = OFF, failure, with_reads, log_file = -1;
static long point, calls;
static char wanted[64];
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Start: kinds are the letters of the calls that count (C create, W write, T truncate, F fsync, M mkdir, R rename,
 * U unlink, D rmdir, L link, r read); all but reads if empty. */
void shim_arm(const char *folder, int what, long at, int number, const char *kinds, int file) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    snprintf(wanted, sizeof wanted, "%s", kinds);
    with_reads = strchr(kinds, 'r') != NULL;
    point = at; failure = number; log_file = file; calls = 0; mode = what;
}

long shim_calls(void) { return calls; }

static int below(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int of_file(int file, char *path) {
    char link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static int at(int folder, const char *name, char *path) {
    if (!name || mode == OFF) return 0;
    if (name[0] == '/') snprintf(path, PATH_MAX, "%s", name);
    else {
        char base[PATH_MAX] = "";
        int saved = errno;
        if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
        else of_file(folder, base);
        errno = saved;
        snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
    }
    return below(path);
}

static int hidden(const char *path) { return strstr(path, "/.locks") != NULL; }

static void put(char kind, const char *path, const char *other, int64_t offset, const void *data, size_t size) {
    if (mode != RECORD) return;
    int saved = errno;
    int64_t lengths[4] = {offset, (int64_t)strlen(path), other ? (int64_t)strlen(other) : 0, (int64_t)size};
    struct iovec parts[] = {{&kind, 1}, {lengths, sizeof lengths}, {(void *)path, (size_t)lengths[1]},
                            {(void *)other, (size_t)lengths[2]}, {(void *)data, size}};
    REAL(writev);
    if (real(log_file, parts, 5) < 0) abort();
    errno = saved;
}

/* A call that counts: 1 if it has to fail. Kills here. */
static int due(char kind, const char *path) {
    if (hidden(path) || (wanted[0] && !strchr(wanted, kind)) || (kind == 'r' && !with_reads)) return 0;
    long number = calls++;
    if (mode == KILL && number == point) {
        if (kind == 'W') return 2; /* half of the data is written first */
        kill(getpid(), SIGKILL);
    }
    if ((mode == FAIL_ONCE && number == point) || (mode == FAIL_ON && number >= point)) { errno = failure; return 1; }
    return 0;
}

#define BEGIN pthread_mutex_lock(&lock)
#define END pthread_mutex_unlock(&lock)

#define WRITE(call, half, offset_now, data, size)                        \
    char path[PATH_MAX];                                                \
    if (mode == OFF || !of_file(file, path)) return call; \
    BEGIN;                                                              \
    int what = due('W', path);                                          \
    if (what == 1) { END; return -1; }                                  \
    if (what == 2) { ssize_t ignored = half; (void)ignored; kill(getpid(), SIGKILL); } \
    int64_t place = offset_now;                                         \
    ssize_t done = call;                                                \
    if (done > 0) put('W', path, NULL, place, data, (size_t)done);      \
    END;                                                                \
    return done;

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    WRITE(real(file, data, size), real(file, data, size / 2), lseek(file, 0, SEEK_CUR), data, size)
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
    REAL(pwrite);
    WRITE(real(file, data, size, offset), real(file, data, size / 2, offset), offset, data, size)
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    WRITE(real(file, data, size, offset), real(file, data, size / 2, offset), offset, data, size)
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    char path[PATH_MAX];
    if (mode == OFF || !of_file(file, path)) return real(file, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(file, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return total ? total : -1;
        total += done;
    }
    return total;
}

static ssize_t reading(int file) {
    char path[PATH_MAX];
    if (mode == OFF || !with_reads || !of_file(file, path)) return 0;
    BEGIN;
    int what = due('r', path);
    END;
    return what ? -1 : 0;
}

ssize_t read(int file, void *data, size_t size) {
    REAL(read);
    return reading(file) ? -1 : real(file, data, size);
}
ssize_t pread(int file, void *data, size_t size, off_t offset) {
    REAL(pread);
    return reading(file) ? -1 : real(file, data, size, offset);
}
ssize_t pread64(int file, void *data, size_t size, off64_t offset) {
    REAL(pread64);
    return reading(file) ? -1 : real(file, data, size, offset);
}

#define SIMPLE(kind, test, call, other, offset)     \
    char path[PATH_MAX];                            \
    if (mode == OFF || !(test)) return call;        \
    BEGIN;                                          \
    if (due(kind, path)) { END; return -1; }        \
    int done = call;                                \
    if (done == 0) put(kind, path, other, offset, NULL, 0); \
    END;                                            \
    return done;

int fsync(int file) { REAL(fsync); SIMPLE('F', of_file(file, path), real(file), NULL, 0) }
int fdatasync(int file) { REAL(fdatasync); SIMPLE('F', of_file(file, path), real(file), NULL, 0) }
int ftruncate(int file, off_t size) { REAL(ftruncate); SIMPLE('T', of_file(file, path), real(file, size), NULL, size) }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); SIMPLE('T', of_file(file, path), real(file, size), NULL, size) }
int mkdir(const char *name, mode_t bits) { REAL(mkdir); SIMPLE('M', at(AT_FDCWD, name, path), real(name, bits), NULL, 0) }
int mkdirat(int folder, const char *name, mode_t bits) {
    REAL(mkdirat); SIMPLE('M', at(folder, name, path), real(folder, name, bits), NULL, 0)
}
int unlink(const char *name) { REAL(unlink); SIMPLE('U', at(AT_FDCWD, name, path), real(name), NULL, 0) }
int rmdir(const char *name) { REAL(rmdir); SIMPLE('D', at(AT_FDCWD, name, path), real(name), NULL, 0) }
int unlinkat(int folder, const char *name, int flags) {
    REAL(unlinkat);
    SIMPLE((flags & AT_REMOVEDIR) ? 'D' : 'U', at(folder, name, path), real(folder, name, flags), NULL, 0)
}
int remove(const char *name) { REAL(remove); SIMPLE('U', at(AT_FDCWD, name, path), real(name), NULL, 0) }
int link(const char *from, const char *to) {
    REAL(link); SIMPLE('L', at(AT_FDCWD, to, path), real(from, to), from, 0)
}

#define RENAME(call, from_folder, from, to_folder, to)                  \
    char path[PATH_MAX], other[PATH_MAX];                               \
    if (mode == OFF) return call;                                       \
    int one = at(from_folder, from, path), two = at(to_folder, to, other); \
    if (!one && !two) return call;                                      \
    BEGIN;                                                              \
    if (due('R', path)) { END; return -1; }                             \
    int done = call;                                                    \
    if (done == 0) put('R', path, other, 0, NULL, 0);                   \
    END;                                                                \
    return done;

int rename(const char *from, const char *to) { REAL(rename); RENAME(real(from, to), AT_FDCWD, from, AT_FDCWD, to) }
int renameat(int one_folder, const char *from, int two_folder, const char *to) {
    REAL(renameat); RENAME(real(one_folder, from, two_folder, to), one_folder, from, two_folder, to)
}
int renameat2(int one_folder, const char *from, int two_folder, const char *to, unsigned flags) {
    REAL(renameat2); RENAME(real(one_folder, from, two_folder, to, flags), one_folder, from, two_folder, to)
}

#define OPEN(call, folder)                                              \
    char path[PATH_MAX];                                                \
    if (mode == OFF || !at(folder, name, path)) return call;            \
    struct stat found;                                                  \
    int saved = errno, there = stat(path, &found) == 0;                 \
    errno = saved;                                                      \
    char kind = !there && (flags & O_CREAT) ? 'C' : there && (flags & O_TRUNC) ? 'T'                 \
                : (flags & O_ACCMODE) == O_RDONLY && there && !S_ISDIR(found.st_mode) ? 'r' : 0;     \
    if (!kind) return call;                                             \
    BEGIN;                                                              \
    if (due(kind, path)) { END; return -1; }                            \
    int done = call;                                                    \
    if (done >= 0 && kind != 'r') put(kind, path, NULL, 0, NULL, 0);    \
    END;                                                                \
    return done;

#define BITS mode_t bits = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); bits = va_arg(more, mode_t); va_end(more); }

int open(const char *name, int flags, ...) { BITS REAL(open); OPEN(real(name, flags, bits), AT_FDCWD) }
int open64(const char *name, int flags, ...) { BITS REAL(open64); OPEN(real(name, flags, bits), AT_FDCWD) }
int openat(int folder, const char *name, int flags, ...) { BITS REAL(openat); OPEN(real(folder, name, flags, bits), folder) }
int openat64(int folder, const char *name, int flags, ...) { BITS REAL(openat64); OPEN(real(folder, name, flags, bits), folder) }
int creat(const char *name, mode_t bits) { return open(name, O_CREAT | O_WRONLY | O_TRUNC, bits); }

static int flags_of(const char *mode_text) {
    int flags = strchr(mode_text, '+') ? O_RDWR : mode_text[0] == 'r' ? O_RDONLY : O_WRONLY;
    return mode_text[0] == 'w' ? flags | O_CREAT | O_TRUNC : mode_text[0] == 'a' ? flags | O_CREAT | O_APPEND : flags;
}
static FILE *opened(const char *name, const char *how) {
    int file = open(name, flags_of(how) | O_CLOEXEC, 0666);
    return file < 0 ? NULL : fdopen(file, how);
}
FILE *fopen(const char *name, const char *how) {
    REAL(fopen);
    char path[PATH_MAX];
    return mode == OFF || !at(AT_FDCWD, name, path) ? real(name, how) : opened(name, how);
}
FILE *fopen64(const char *name, const char *how) {
    REAL(fopen64);
    char path[PATH_MAX];
    return mode == OFF || !at(AT_FDCWD, name, path) ? real(name, how) : opened(name, how);
}
