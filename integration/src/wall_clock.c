// The wall clock as a test sets it: the kernel's, and as many seconds more as the file says that
// WALL_CLOCK_OFFSET names. Every other clock is the kernel's. Loaded before a program by LD_PRELOAD.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, clock, at);
    const char *path = getenv("WALL_CLOCK_OFFSET");
    if (failed || clock != CLOCK_REALTIME || !path) {
        return failed;
    }
    char text[32] = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0) {
            at->tv_sec += atol(text);
        }
        close(file);
    }
    return 0;
}
