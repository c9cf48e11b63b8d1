// A machine that was suspended for an hour, as soon as the file that $SUSPENDED names is there:
// CLOCK_BOOTTIME is ahead by it then, and no other clock is. No test can suspend its machine.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    const char *file = getenv("SUSPENDED");
    if (!failed && clock == CLOCK_BOOTTIME && file && !access(file, F_OK))
        now->tv_sec += 3600;
    return failed;
}
