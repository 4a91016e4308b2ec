/* Preloaded into the harness: makes one system call on files below a folder fail, as a failing disk does.

   chaos_arm(folder, operations, number, error, repeat) is called in the process of a command. The call with this number
   among the selected operations then fails with the error; with `repeat`, all later ones fail as well. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, READ = 16, MAKE = 32, REMOVE = 64 };

static char folder[PATH_MAX];
static int operations, error_number, repeats;
static long remaining;
static long failures;

void chaos_arm(const char *path, int selected, long number, int error, int repeat) {
    strncpy(folder, path, sizeof folder - 1);
    operations = selected;
    remaining = number;
    error_number = error;
    repeats = repeat;
    failures = 0;
}

long chaos_count(void) { return failures; }

static int is_below(const char *path) {
    if (path == NULL) return 0;
    char absolute[PATH_MAX * 2];
    if (path[0] != '/') {
        char cwd[PATH_MAX];
        if (getcwd(cwd, sizeof cwd) == NULL) return 0;
        snprintf(absolute, sizeof absolute, "%s/%s", cwd, path);
        path = absolute;
    }
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int is_open_below(int descriptor) {
    char link[64], target[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0) return 0;
    target[length] = 0;
    return target[0] == '/' && is_below(target); /* not a pipe or socket */
}

static int must_fail(int operation) {
    if (!(operations & operation)) return 0;
    if (__sync_sub_and_fetch(&remaining, 1) > 0) return 0;
    if (!repeats && remaining < 0) return 0;
    __sync_add_and_fetch(&failures, 1);
    errno = error_number;
    return 1;
}

#define FAIL_PATH(operation, path) if (operations && is_below(path) && must_fail(operation)) return -1
#define FAIL_FILE(operation, descriptor) if (operations && is_open_below(descriptor) && must_fail(operation)) return -1
#define REAL(name, type, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

#define OPEN_CALL(name)                                                                     \
    int name(const char *path, int flags, ...) {                                            \
        mode_t mode = 0;                                                                    \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                \
            va_list list;                                                                   \
            va_start(list, flags);                                                          \
            mode = va_arg(list, mode_t);                                                    \
            va_end(list);                                                                   \
        }                                                                                   \
        FAIL_PATH(OPEN, path);                                                              \
        return REAL(name, int, const char *, int, ...)(path, flags, mode);                  \
    }
OPEN_CALL(open)
OPEN_CALL(open64)

ssize_t write(int descriptor, const void *data, size_t size) {
    FAIL_FILE(WRITE, descriptor);
    return REAL(write, ssize_t, int, const void *, size_t)(descriptor, data, size);
}
ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    FAIL_FILE(WRITE, descriptor);
    return REAL(pwrite64, ssize_t, int, const void *, size_t, off64_t)(descriptor, data, size, offset);
}
ssize_t read(int descriptor, void *data, size_t size) {
    FAIL_FILE(READ, descriptor);
    return REAL(read, ssize_t, int, void *, size_t)(descriptor, data, size);
}
ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
    FAIL_FILE(READ, descriptor);
    return REAL(pread64, ssize_t, int, void *, size_t, off64_t)(descriptor, data, size, offset);
}
int fsync(int descriptor) {
    FAIL_FILE(SYNC, descriptor);
    return REAL(fsync, int, int)(descriptor);
}
int rename(const char *from, const char *to) {
    FAIL_PATH(RENAME, to);
    return REAL(rename, int, const char *, const char *)(from, to);
}
int link(const char *from, const char *to) {
    FAIL_PATH(RENAME, to);
    return REAL(link, int, const char *, const char *)(from, to);
}
int mkdir(const char *path, mode_t mode) {
    FAIL_PATH(MAKE, path);
    return REAL(mkdir, int, const char *, mode_t)(path, mode);
}
int unlink(const char *path) {
    FAIL_PATH(REMOVE, path);
    return REAL(unlink, int, const char *)(path);
}
int rmdir(const char *path) {
    FAIL_PATH(REMOVE, path);
    return REAL(rmdir, int, const char *)(path);
}
