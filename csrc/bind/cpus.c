/* cpus.c - how many threads this process should start when nobody says.
 *
 * The smaller of the affinity mask and the CPU quota of the control groups above the process (v2:
 * cpu.max of its group and of every parent; v1: the root of the cpu controller, which is what a
 * container sees). Rounded up: a quota of 1.5 CPUs means two threads. Knows nothing about devices.
 */
#include "bind.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__linux__)
#include <sched.h>

/* CPUs of one quota file's "quota period"; 0 where there is no quota. */
static size_t
quota_cpus(double quota, double period)
{
    if (quota <= 0.0 || period <= 0.0) {
        return 0;
    }
    size_t cpus = (size_t)(quota / period);
    return (double)cpus * period < quota ? cpus + 1 : cpus;
}

/* The first two numbers of a file; returns how many were there ("max" is none). */
static int
read_numbers(const char *path, double *first, double *second)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return 0;
    }
    int found = fscanf(file, "%lf %lf", first, second);
    fclose(file);
    return found;
}

static size_t
cgroup_limit(size_t cpus)
{
    static const char root[] = "/sys/fs/cgroup";
    char group[1024] = "", path[1200];
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && fgets(group, sizeof group, file)) {
        if (strncmp(group, "0::", 3) == 0) {
            memmove(group, group + 3, strlen(group + 3) + 1);
            group[strcspn(group, "\n")] = '\0';
            break;
        }
        group[0] = '\0';
    }
    if (file) {
        fclose(file);
    }
    double quota = 0, period = 0;
    for (;;) { /* the group, its parents, the root */
        snprintf(path, sizeof path, "%s%s/cpu.max", root, group);
        if (read_numbers(path, &quota, &period) == 2) {
            size_t limit = quota_cpus(quota, period);
            cpus = limit && limit < cpus ? limit : cpus;
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL) {
            break;
        }
        *slash = '\0';
    }
    snprintf(path, sizeof path, "%s/cpu/cpu.cfs_quota_us", root);
    if (read_numbers(path, &quota, &period) == 1) {
        double unused = 0;
        snprintf(path, sizeof path, "%s/cpu/cpu.cfs_period_us", root);
        if (read_numbers(path, &period, &unused) == 1) {
            size_t limit = quota_cpus(quota, period);
            cpus = limit && limit < cpus ? limit : cpus;
        }
    }
    return cpus;
}

static size_t
affinity_count(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (size_t)CPU_COUNT(&set) : 0;
}
#else
static size_t
cgroup_limit(size_t cpus)
{
    return cpus;
}

static size_t
affinity_count(void)
{
    return 0;
}
#endif

size_t
cpu_count(void)
{
    size_t cpus = affinity_count();
    if (cpus == 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        cpus = online > 0 ? (size_t)online : 1;
    }
    cpus = cgroup_limit(cpus);
    return cpus ? cpus : 1;
}
