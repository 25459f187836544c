/* Preloaded into a node: has the syncs of files in one directory fail or hang.

   NEMESIS_DISK     the directory; what is in it, and it itself, is concerned
   NEMESIS_TRIGGER  a file; what it holds decides:
                    eio      fsync and fdatasync fail with EIO, and nothing is synced
                    hang     they return, having synced, when the file is gone or says something else
   Anything else, or no such file: as always. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum wish { NOTHING, FAIL, HANG };

static int concerned(int descriptor) {
    const char *directory = getenv("NEMESIS_DISK");
    if (directory == NULL) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = '\0';
    size_t prefix = strlen(directory);
    return strncmp(path, directory, prefix) == 0 && (path[prefix] == '/' || path[prefix] == '\0');
}

static enum wish wish(void) {
    const char *trigger = getenv("NEMESIS_TRIGGER");
    if (trigger == NULL) return NOTHING;
    int descriptor = open(trigger, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return NOTHING;
    char text[8] = "";
    ssize_t length = read(descriptor, text, sizeof text - 1);
    close(descriptor);
    if (length >= 3 && strncmp(text, "eio", 3) == 0) return FAIL;
    if (length >= 4 && strncmp(text, "hang", 4) == 0) return HANG;
    return NOTHING;
}

static int synced(const char *name, int descriptor) {
    int saved = errno;
    if (concerned(descriptor)) {
        enum wish found;
        while ((found = wish()) == HANG) {
            struct timespec pause = {0, 10000000};
            nanosleep(&pause, NULL);
        }
        if (found == FAIL) {
            errno = EIO;
            return -1;
        }
    }
    errno = saved;
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(descriptor);
}

int fsync(int descriptor) { return synced("fsync", descriptor); }
int fdatasync(int descriptor) { return synced("fdatasync", descriptor); }
