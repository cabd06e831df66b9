// io_uring no-ops at batch N: what one core gives when the kernel does nothing but take an entry
// and complete it. Usage: uring-nop [--batch N] [--runtime SECONDS]

#include <liburing.h>

#include "common.h"

static unsigned setUp(struct io_uring *ring, unsigned entries) {
  static const unsigned choices[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
      IORING_SETUP_COOP_TASKRUN,
      0,
  };
  int result = 0;
  for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++) {
    result = io_uring_queue_init(entries, ring, choices[i]);
    if (result == 0) return choices[i];
  }
  fail("io_uring_setup: %s", strerror(-result));
}

int main(int argc, char **argv) {
  unsigned batch = (unsigned)numberOption(argc, argv, "--batch", 32);
  double runtimeS = numberOption(argc, argv, "--runtime", 1);
  if (batch < 1 || batch > 4096) fail("--batch is 1 to 4096");
  struct io_uring ring;
  unsigned flags = setUp(&ring, batch);
  int registered = io_uring_register_ring_fd(&ring) == 1;

  double ticksPerNs = tscTicksPerNs();
  uint64_t operations = 0, sum = 0;
  uint64_t start = __rdtsc(), now = start;
  uint64_t deadline = start + (uint64_t)(runtimeS * 1e9 * ticksPerNs);
  while (now < deadline) {
    // The clock is read once in 64 batches: at batch 1 it would cost as much as the no-op.
    for (int round = 0; round < 64; round++) {
      for (unsigned i = 0; i < batch; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
        io_uring_prep_nop(sqe);
        sqe->user_data = operations + i;
      }
      int submitted = io_uring_submit(&ring);
      if (submitted != (int)batch) fail("io_uring_enter: %d of %u", submitted, batch);
      struct io_uring_cqe *cqe;
      unsigned head, done = 0;
      io_uring_for_each_cqe(&ring, head, cqe) {
        sum += cqe->user_data;
        done++;
      }
      io_uring_cq_advance(&ring, done);
      if (done != batch) fail("%u of %u no-ops completed", done, batch);
      operations += batch;
    }
    now = __rdtsc();
  }
  double elapsedNs = (double)(now - start) / ticksPerNs;
  // Every completion was read and was ours: the sum of 0 … operations - 1.
  if (sum != operations * (operations - 1) / 2) fail("a completion carried a wrong user_data");
  io_uring_queue_exit(&ring);
  printf("{\"ops_per_s\":%.0f,\"ns_per_op\":%.3f,\"batch\":%u,\"setup_flags\":%u,"
         "\"registered_ring\":%s}\n",
         (double)operations / elapsedNs * 1e9, elapsedNs / (double)operations, batch, flags,
         registered ? "true" : "false");
  return 0;
}
