// Everything a process could try to write to memory that it was given a descriptor of, without
// ptrace: each way is tried through each descriptor that it can get hold of. One JSON object on
// stdout: the way to its errno's name, "OK" where the kernel allowed it.
//
//   root-peer FD BYTES OWNER
//
// FD is inherited; OWNER is the process that made the memory, whose own descriptors are taken too.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static size_t bytes;
static const char *separator = "{";

// `result` is what a system call gave: negative for errno.
static void report(const char *through, const char *way, long result) {
  const char *name = result < 0 ? strerrorname_np(errno) : "OK";
  printf("%s\"%s%s%s\":\"%s\"", separator, through, *through ? " " : "", way, name);
  separator = ",";
}

static void *map(int fd, int protection, int flags) {
  void *at = mmap(NULL, bytes, protection, flags, fd, 0);
  return at == MAP_FAILED ? NULL : at;
}

// A file of this process that is full of 0xee, to copy from.
static int source(void) {
  const int fd = memfd_create("source", 0);
  char page[4096];
  memset(page, 0xee, sizeof page);
  if (fd < 0 || write(fd, page, sizeof page) != sizeof page) exit(1);
  lseek(fd, 0, SEEK_SET);
  return fd;
}

static void try_mappings(const char *through, int fd) {
  void *at = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
  report(through, "mmap", at == NULL ? -1 : 0);
  if (at != NULL) *(volatile uint32_t *)at = 0xeeeeeeee;
  at = map(fd, PROT_READ, MAP_SHARED);
  report(through, "mprotect", at == NULL ? -1 : mprotect(at, bytes, PROT_READ | PROT_WRITE));
  at = map(fd, PROT_READ, MAP_SHARED);
  void *again = at == NULL ? MAP_FAILED : mremap(at, 0, bytes, MREMAP_MAYMOVE);
  if (again != MAP_FAILED) report(through, "mremap", mprotect(again, 4096, PROT_WRITE));
  at = map(fd, PROT_READ, MAP_SHARED);
  report(through, "MADV_REMOVE", at == NULL ? -1 : madvise(at, bytes, MADV_REMOVE));
}

static void try_writes(const char *through, int fd) {
  char page[4096];
  memset(page, 0xee, sizeof page);
  const struct iovec part = {page, sizeof page};
  report(through, "pwrite", pwrite(fd, page, sizeof page, 0));
  report(through, "pwritev2", pwritev2(fd, &part, 1, 4096, 0));
  lseek(fd, 8192, SEEK_SET);
  report(through, "write", write(fd, page, sizeof page));
  const int from = source();
  report(through, "sendfile", sendfile(fd, from, NULL, 4096));
  loff_t zero = 0, to = 16384;
  report(through, "copy_file_range", copy_file_range(from, &zero, fd, &to, 4096, 0));
  int ends[2];
  if (pipe(ends) != 0 || write(ends[1], page, sizeof page) < 0) exit(1);
  report(through, "splice", splice(ends[0], NULL, fd, &to, 4096, 0));
  close(from);
  close(ends[0]);
  close(ends[1]);
}

static void try_shapes(const char *through, int fd) {
  const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  report(through, "PUNCH_HOLE", fallocate(fd, punch, 0, bytes));
  report(through, "ZERO_RANGE", fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, bytes));
  report(through, "COLLAPSE_RANGE", fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, bytes / 2));
  report(through, "extend", fallocate(fd, 0, bytes, bytes));
  report(through, "grow", ftruncate(fd, 2 * bytes));
  report(through, "shrink", ftruncate(fd, 0));
  // Where that could be done, the ways that follow find their memory again.
  if (ftruncate(fd, bytes) == 0) errno = 0;
}

// A descriptor, or the negative errno of a system call that gave none.
static int or_error(long fd) { return fd < 0 ? -errno : (int)fd; }

// Through a descriptor that this process could get, or the negative errno where it could not.
static void try_all(const char *through, int fd) {
  if (fd < 0) errno = -fd;
  report(through, "open", fd);
  if (fd < 0) return;
  try_mappings(through, fd);
  try_writes(through, fd);
  try_shapes(through, fd);
}

// Has the kernel store into a mapping, in every way that takes an address.
static void try_kernel(int fd) {
  char *at = map(fd, PROT_READ, MAP_SHARED);
  if (at == NULL) exit(1);
  const int from = source();
  report("mapping", "read", pread(from, at, 4096, 0));
  char page[4096];
  memset(page, 0xee, sizeof page);
  struct iovec local = {page, sizeof page}, remote = {at, sizeof page};
  report("mapping", "process_vm_writev", process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
  const int mem = open("/proc/self/mem", O_RDWR);
  report("mapping", "/proc/self/mem", mem < 0 ? -1 : pwrite(mem, page, 4096, (off_t)(uintptr_t)at));
  // Pinned for writing, as for DMA.
  struct io_uring_params parameters = {0};
  const int ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
  report("mapping", "io_uring buffer",
         ring < 0 ? -1 : syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &remote, 1));
  const int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register range = {{(uintptr_t)at, bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
  long registered = faults < 0 ? -1 : ioctl(faults, UFFDIO_API, &api);
  if (registered == 0) registered = ioctl(faults, UFFDIO_REGISTER, &range);
  report("mapping", "userfaultfd", registered);
}

// The file behind the mapping, opened anew by the mapping's name in /proc.
static int open_mapping(int fd) {
  const uintptr_t at = (uintptr_t)map(fd, PROT_READ, MAP_SHARED);
  char path[80];
  snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", at, at + bytes);
  return or_error(open(path, O_RDWR));
}

// The owner's own descriptor, the one that it mapped the memory by: its number, or a
// negative errno.
static int owners_number(int fd, int owner) {
  struct stat wanted, facts;
  char path[320];
  snprintf(path, sizeof path, "/proc/%d/fd", owner);
  DIR *folder = opendir(path);
  if (folder == NULL || fstat(fd, &wanted) != 0) return -errno;
  int found = -ENOENT;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    snprintf(path, sizeof path, "/proc/%d/fd/%s", owner, entry->d_name);
    struct stat link;
    if (stat(path, &facts) != 0 || lstat(path, &link) != 0) continue;
    if (facts.st_ino != wanted.st_ino || facts.st_dev != wanted.st_dev) continue;
    if ((link.st_mode & S_IWUSR) != 0) found = atoi(entry->d_name);  // open for writing
  }
  closedir(folder);
  return found;
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  const int fd = atoi(arguments[1]);
  bytes = strtoul(arguments[2], NULL, 10);
  const int owner = atoi(arguments[3]);
  // The proof that there is something to write to.
  report("", "read", map(fd, PROT_READ, MAP_SHARED) == NULL ? -1 : 0);
  // A private copy may be written: nobody else sees it.
  char *copy = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  if (copy != NULL) memset(copy, 0xee, bytes);
  report("", "private copy", copy == NULL ? -1 : 0);
  try_kernel(fd);
  char path[80];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const int reopened = or_error(open(path, O_RDWR));
  const int mapped = open_mapping(fd);
  const int number = owners_number(fd, owner);
  const int pidfd = or_error(syscall(SYS_pidfd_open, owner, 0));
  const int stolen = number < 0 ? number : or_error(syscall(SYS_pidfd_getfd, pidfd, number, 0));
  snprintf(path, sizeof path, "/proc/%d/fd/%d", owner, number);
  const int owners_file = number < 0 ? number : or_error(open(path, O_RDWR));
  try_all("given", fd);
  try_all("reopened", reopened);
  try_all("map_files", mapped);
  try_all("stolen", stolen);
  try_all("owner's file", owners_file);
  // Last: what could be sealed is not as it was.
  report("given", "F_SEAL_GROW", fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
  report("reopened", "F_SEAL_GROW", fcntl(reopened, F_ADD_SEALS, F_SEAL_GROW));
  puts("}");
  return 0;
}
