/* Shows a program another time of day, which may change while it runs; loaded before its libraries.
 *
 * CHAOS_CLOCK names a file of eight bytes: nanoseconds that are added to the wall clock, by whoever writes
 * them. Other clocks are untouched. What waits until a time of day is woken by the real one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const volatile int64_t nowhere = 0;
static const volatile int64_t *ahead = &nowhere;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *shared = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (shared != MAP_FAILED)
        ahead = shared;
    close(file);
}

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static struct timespec moved(const struct timespec *at, int64_t by)
{
    int64_t all = at->tv_sec * SECOND + at->tv_nsec + by;
    return (struct timespec){.tv_sec = all / SECOND, .tv_nsec = all % SECOND};
}

/* A time of day; what is waited for by the monotonic clock is far smaller. */
static int is_of_day(const struct timespec *at)
{
    return at && at->tv_sec > 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static __typeof__(&clock_gettime) next;
    if (!next)
        next = REAL(clock_gettime);
    int failed = next(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        *now = moved(now, *ahead);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec told;
    clock_gettime(CLOCK_REALTIME, &told);
    *now = (struct timeval){.tv_sec = told.tv_sec, .tv_usec = told.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *into)
{
    struct timespec told;
    clock_gettime(CLOCK_REALTIME, &told);
    if (into)
        *into = told.tv_sec;
    return told.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    static __typeof__(&pthread_cond_timedwait) next;
    if (!next)
        next = REAL(pthread_cond_timedwait);
    struct timespec real_end = is_of_day(until) ? moved(until, -*ahead) : *until;
    return next(condition, mutex, &real_end);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    static __typeof__(&sem_timedwait) next;
    if (!next)
        next = REAL(sem_timedwait);
    struct timespec real_end = is_of_day(until) ? moved(until, -*ahead) : *until;
    return next(semaphore, &real_end);
}

long syscall(long number, ...)
{
    static __typeof__(&syscall) next;
    if (!next)
        next = REAL(syscall);
    va_list told;
    long argument[6];
    va_start(told, number);
    for (int each = 0; each < 6; each++)
        argument[each] = va_arg(told, long);
    va_end(told);
    struct timespec real_end;
    const struct timespec *until = (const struct timespec *)argument[3];
    if (number == SYS_futex && (argument[1] & FUTEX_CLOCK_REALTIME) && is_of_day(until)) {
        real_end = moved(until, -*ahead);
        argument[3] = (long)&real_end;
    }
    return next(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}
