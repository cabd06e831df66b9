// Reads of a file by io_uring, driven by liburing: what an asynchronous benchmark loop in C gets.
//
// Usage: uring-read FILE [--depth N] [--runtime SECONDS] [--bs BYTES] [--batch N] [--seed N]
//                   [--sequential] [--direct] [--fixed] [--sqpoll] [--unregistered]
//
// The queue is kept full: what completed is submitted again at once. The loop enters the kernel to
// wait only when nothing has completed, except with --direct, where a read never completes inside
// its own submission, so that submitting and waiting are one call.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"

struct options {
  const char *path;
  unsigned depth, blockBytes, batch;
  double runtimeS;
  int sequential, direct, fixed, sqpoll, registerFile;
};

struct slots {
  unsigned *freeTags, freeCount;
  uint64_t *startTicks;
  uint8_t *buffers;
};

static unsigned setUp(struct io_uring *ring, const struct options *options) {
  const unsigned single = IORING_SETUP_SINGLE_ISSUER;
  const unsigned plain[] = {single | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0};
  const unsigned polled[] = {single | IORING_SETUP_SQPOLL, IORING_SETUP_SQPOLL};
  const unsigned *choices = options->sqpoll ? polled : plain;
  size_t count = options->sqpoll ? 2 : 3;
  int result = 0;
  for (size_t i = 0; i < count; i++) {
    struct io_uring_params parameters = {.flags = choices[i], .sq_thread_idle = 100};
    // The SQ thread gives entries back after it has issued a whole run of them: completions of the
    // run are seen earlier, so twice the depth of entries may be taken.
    unsigned entries = options->sqpoll ? options->depth * 2 : options->depth;
    result = io_uring_queue_init_params(entries, ring, &parameters);
    if (result == 0) return choices[i];
  }
  fail("io_uring_setup: %s", strerror(-result));
}

static void allocate(struct slots *slots, const struct options *options) {
  size_t bytes = (size_t)options->depth * options->blockBytes;
  slots->buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  slots->freeTags = calloc(options->depth, sizeof *slots->freeTags);
  slots->startTicks = calloc(options->depth, sizeof *slots->startTicks);
  if (slots->buffers == MAP_FAILED || slots->freeTags == NULL || slots->startTicks == NULL) {
    fail("out of memory");
  }
  for (unsigned i = 0; i < options->depth; i++) slots->freeTags[i] = options->depth - 1 - i;
  slots->freeCount = options->depth;
}

static void registerAll(struct io_uring *ring, const struct options *options,
                        const struct slots *slots, int fd) {
  int result = 0;
  if (options->registerFile) result = io_uring_register_files(ring, &fd, 1);
  if (result < 0) fail("io_uring_register_files: %s", strerror(-result));
  if (options->fixed) {
    struct iovec all = {slots->buffers, (size_t)options->depth * options->blockBytes};
    result = io_uring_register_buffers(ring, &all, 1);
    if (result < 0) fail("io_uring_register_buffers: %s", strerror(-result));
  }
  // Old kernels lack it; the loop works without.
  io_uring_register_ring_fd(ring);
}

// Takes every completion there is; returns how many.
static unsigned reap(struct io_uring *ring, struct slots *slots, struct histogram *histogram,
                     const struct options *options, uint64_t now) {
  struct io_uring_cqe *cqe;
  unsigned head, done = 0;
  io_uring_for_each_cqe(ring, head, cqe) {
    if (cqe->res != (int)options->blockBytes) {
      fail("a read gave %d: %s", cqe->res, cqe->res < 0 ? strerror(-cqe->res) : "short");
    }
    unsigned tag = (unsigned)cqe->user_data;
    histogramRecord(histogram, now - slots->startTicks[tag]);
    slots->freeTags[slots->freeCount++] = tag;
    done++;
  }
  io_uring_cq_advance(ring, done);
  return done;
}

static struct options parse(int argc, char **argv) {
  if (argc < 2 || argv[1][0] == '-') fail("usage: uring-read FILE [options]");
  struct options options = {
      .path = argv[1],
      .depth = (unsigned)numberOption(argc, argv, "--depth", 32),
      .blockBytes = (unsigned)numberOption(argc, argv, "--bs", 4096),
      .runtimeS = numberOption(argc, argv, "--runtime", 1),
      .sequential = flagOption(argc, argv, "--sequential"),
      .direct = flagOption(argc, argv, "--direct"),
      .fixed = flagOption(argc, argv, "--fixed"),
      .sqpoll = flagOption(argc, argv, "--sqpoll"),
      .registerFile = !flagOption(argc, argv, "--unregistered"),
  };
  options.batch = (unsigned)numberOption(argc, argv, "--batch", options.depth);
  if (options.depth < 1 || options.depth > 4096) fail("--depth is 1 to 4096");
  if (options.batch < 1 || options.batch > options.depth) fail("--batch is 1 to the depth");
  if (options.blockBytes < 512 || options.blockBytes > 1 << 20) fail("--bs is 512 to 1048576");
  return options;
}

int main(int argc, char **argv) {
  struct options options = parse(argc, argv);
  int fd = open(options.path, O_RDONLY | O_CLOEXEC | (options.direct ? O_DIRECT : 0));
  struct stat status;
  if (fd < 0 || fstat(fd, &status) < 0) fail("%s: %s", options.path, strerror(errno));
  uint64_t blocks = (uint64_t)status.st_size / options.blockBytes;
  if (blocks == 0) fail("%s: smaller than one block", options.path);

  struct io_uring ring;
  struct slots slots;
  static struct histogram histogram;
  struct random random;
  unsigned flags = setUp(&ring, &options);
  allocate(&slots, &options);
  registerAll(&ring, &options, &slots, fd);
  randomSeed(&random, (uint32_t)numberOption(argc, argv, "--seed", 1));

  double ticksPerNs = tscTicksPerNs();
  struct cpuTime cpuStart = cpuTime();
  uint64_t start = __rdtsc(), now = start, next = 0, reads = 0, enters = 0;
  uint64_t deadline = start + (uint64_t)(options.runtimeS * 1e9 * ticksPerNs);
  unsigned inFlight = 0;
  while (now < deadline || inFlight > 0) {
    unsigned count = now < deadline ? slots.freeCount : 0;
    if (count > options.batch) count = options.batch;
    uint64_t stamp = __rdtsc();
    for (unsigned i = 0; i < count; i++) {
      unsigned tag = slots.freeTags[--slots.freeCount];
      uint64_t block = options.sequential ? next++ : randomBlock(&random, blocks);
      if (next == blocks) next = 0;
      struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
      if (sqe == NULL) fail("the submission ring is full");
      void *buffer = slots.buffers + (size_t)tag * options.blockBytes;
      uint64_t offset = block * options.blockBytes;
      int file = options.registerFile ? 0 : fd;
      if (options.fixed) {
        io_uring_prep_read_fixed(sqe, file, buffer, options.blockBytes, offset, 0);
      } else {
        io_uring_prep_read(sqe, file, buffer, options.blockBytes, offset);
      }
      if (options.registerFile) sqe->flags |= IOSQE_FIXED_FILE;
      sqe->user_data = tag;
      slots.startTicks[tag] = stamp;
    }
    inFlight += count;
    int result = options.direct && !options.sqpoll ? io_uring_submit_and_wait(&ring, 1)
                                                   : io_uring_submit(&ring);
    enters++;
    if (result < 0 && result != -EINTR) fail("io_uring_enter: %s", strerror(-result));
    if (io_uring_cq_ready(&ring) == 0 && inFlight > 0 && !options.sqpoll) {
      result = io_uring_submit_and_wait(&ring, 1);
      enters++;
      if (result < 0 && result != -EINTR) fail("io_uring_enter: %s", strerror(-result));
    }
    now = __rdtsc();
    unsigned done = reap(&ring, &slots, &histogram, &options, now);
    inFlight -= done;
    reads += done;
  }
  struct cpuTime cpuEnd = cpuTime();
  double elapsedNs = (double)(now - start) / ticksPerNs;
  double userNs = (cpuEnd.userNs - cpuStart.userNs) / (double)reads;
  double systemNs = (cpuEnd.systemNs - cpuStart.systemNs) / (double)reads;
  printf("{\"iops\":%.0f,\"ios\":%llu,\"depth\":%u,\"setup_flags\":%u,\"enters\":%llu,"
         "\"clat_ns\":{\"p50\":%.0f,\"p99\":%.0f},"
         "\"user_ns_per_io\":%.1f,\"sys_ns_per_io\":%.1f,\"cpu_ns_per_io\":%.1f}\n",
         (double)reads / elapsedNs * 1e9, (unsigned long long)reads, options.depth, flags,
         (unsigned long long)enters, (double)histogramPercentile(&histogram, 0.5) / ticksPerNs,
         (double)histogramPercentile(&histogram, 0.99) / ticksPerNs, userNs, systemNs,
         userNs + systemNs);
  io_uring_queue_exit(&ring);
  close(fd);
  return 0;
}
