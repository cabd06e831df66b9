// Runs a command and writes what its whole process tree used: run REPORT COMMAND [ARGUMENT…]
//
// REPORT gets {"user_ns","sys_ns","wall_ns","run_delay_ns","exit_code","signal"}. CPU time is
// wait4's, so it counts every descendant that was waited for and the kernel's io_uring workers,
// which are threads of their process. Run delay (time spent runnable but not running) is sampled
// from each thread's schedstat while it lives: a thread's last 50 ms may be missing. SIGINT and
// SIGTERM go on to the command.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 1024

struct delay {
  int tid;
  unsigned long long ns;
};

static struct delay delays[MAX_THREADS];
static size_t delayCount;
static volatile sig_atomic_t child;

static void forward(int signal) {
  if (child > 0) kill(child, signal);
}

static uint64_t monotonicNs(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void keepDelay(int tid, unsigned long long ns) {
  for (size_t i = 0; i < delayCount; i++) {
    if (delays[i].tid != tid) continue;
    if (ns > delays[i].ns) delays[i].ns = ns;
    return;
  }
  if (delayCount < MAX_THREADS) delays[delayCount++] = (struct delay){tid, ns};
}

// Reads the delays of all threads of `pid` and of its descendants, which end while we look.
static void sampleTree(int pid, int level) {
  char path[96];
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR *tasks = opendir(path);
  if (tasks == NULL || level > 8) {
    if (tasks != NULL) closedir(tasks);
    return;
  }
  for (struct dirent *entry = readdir(tasks); entry != NULL; entry = readdir(tasks)) {
    int tid = atoi(entry->d_name);
    if (tid <= 0) continue;
    unsigned long long ranNs, delayNs;
    snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid, tid);
    FILE *file = fopen(path, "re");
    if (file != NULL) {
      if (fscanf(file, "%llu %llu", &ranNs, &delayNs) == 2) keepDelay(tid, delayNs);
      fclose(file);
    }
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, tid);
    file = fopen(path, "re");
    if (file == NULL) continue;
    int grandchild;
    while (fscanf(file, "%d", &grandchild) == 1) sampleTree(grandchild, level + 1);
    fclose(file);
  }
  closedir(tasks);
}

static int report(const char *path, int status, const struct rusage *usage, uint64_t wallNs) {
  unsigned long long delayNs = 0;
  for (size_t i = 0; i < delayCount; i++) delayNs += delays[i].ns;
  FILE *file = fopen(path, "we");
  if (file == NULL) return -1;
  fprintf(file,
          "{\"user_ns\":%lld,\"sys_ns\":%lld,\"wall_ns\":%llu,\"run_delay_ns\":%llu,"
          "\"exit_code\":%d,\"signal\":%d}\n",
          usage->ru_utime.tv_sec * 1000000000ll + usage->ru_utime.tv_usec * 1000ll,
          usage->ru_stime.tv_sec * 1000000000ll + usage->ru_stime.tv_usec * 1000ll,
          (unsigned long long)wallNs, delayNs, WIFEXITED(status) ? WEXITSTATUS(status) : 0,
          WIFSIGNALED(status) ? WTERMSIG(status) : 0);
  return fclose(file);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: run REPORT COMMAND [ARGUMENT...]\n");
    return 2;
  }
  uint64_t start = monotonicNs();
  int pid = fork();
  if (pid == 0) {
    // Nothing is left running when this program is killed.
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    execvp(argv[2], argv + 2);
    fprintf(stderr, "run: %s: %s\n", argv[2], strerror(errno));
    _exit(127);
  }
  if (pid < 0) {
    fprintf(stderr, "run: fork: %s\n", strerror(errno));
    return 1;
  }
  child = pid;
  struct sigaction action = {.sa_handler = forward};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);

  int status;
  struct rusage usage;
  const struct timespec interval = {0, 50000000};
  for (;;) {
    int done = wait4(pid, &status, WNOHANG, &usage);
    if (done == pid) break;
    if (done < 0 && errno != EINTR) {
      fprintf(stderr, "run: wait4: %s\n", strerror(errno));
      return 1;
    }
    sampleTree(pid, 0);
    nanosleep(&interval, NULL);
  }
  child = 0;
  if (report(argv[1], status, &usage, monotonicNs() - start) != 0) {
    fprintf(stderr, "run: %s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
