// A machine that was suspended for as many seconds as the file says that $SUSPENDED names, as
// soon as it is there: CLOCK_BOOTTIME is ahead by them then, and no other clock is. No test can
// suspend its machine.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    const char *name = getenv("SUSPENDED");
    FILE *file = !failed && clock == CLOCK_BOOTTIME && name ? fopen(name, "r") : NULL;
    long seconds;
    if (file) {
        if (fscanf(file, "%ld", &seconds) == 1)
            now->tv_sec += seconds;
        fclose(file);
    }
    return failed;
}
