// Stands before nvme-cli (LD_PRELOAD) and makes /dev/nvme0 and /dev/nvme0n1 devices whose admin
// commands are answered from files of the folder NVME_PEER: identify-CNS-NSID, log-LID,
// device/resource0 (registers). So nvme-cli decodes what a test wants it to decode, on a machine
// that has no such device.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nvme_ioctl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

enum { GET_LOG_PAGE = 0x02, IDENTIFY = 0x06, INVALID_FIELD = 0x4002 };

static int character_fd = -1;
static int block_fd = -1;

static int answer_from(const char *name, void *data, unsigned bytes, long offset) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", getenv("NVME_PEER"), name);
  FILE *file = fopen(path, "rb");
  if (file == NULL) return INVALID_FIELD;
  memset(data, 0, bytes);
  fseek(file, offset, SEEK_SET);
  if (fread(data, 1, bytes, file) == 0) fputs("nvme-peer: nothing at the offset\n", stderr);
  fclose(file);
  return 0;
}

static int admin(const struct nvme_passthru_cmd *command) {
  char name[64];
  long offset = 0;
  if (command->opcode == IDENTIFY) {
    snprintf(name, sizeof name, "identify-%u-%u", command->cdw10 & 0xff, command->nsid);
  } else if (command->opcode == GET_LOG_PAGE) {
    snprintf(name, sizeof name, "log-%u", command->cdw10 & 0xff);
    offset = (long)command->cdw12 | (long)command->cdw13 << 32;
  } else {
    return INVALID_FIELD;
  }
  return answer_from(name, (void *)(unsigned long)command->addr, command->data_len, offset);
}

int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void *argument = va_arg(list, void *);
  va_end(list);
  if (fd < 0 || (fd != character_fd && fd != block_fd)) {
    int (*next)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    return next(fd, request, argument);
  }
  // Both forms of the command begin alike.
  if (request == NVME_IOCTL_ADMIN_CMD || request == NVME_IOCTL_ADMIN64_CMD) return admin(argument);
  if (request == (unsigned long)NVME_IOCTL_ID) return 1;
  errno = ENOTTY;
  return -1;
}

int open64(const char *path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
  va_end(list);
  int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
  if (strcmp(path, "/dev/nvme0") == 0) return character_fd = next("/dev/null", flags);
  if (strcmp(path, "/dev/nvme0n1") == 0) return block_fd = next("/dev/null", flags);
  return next(path, flags, mode);
}

/** What open becomes where the program was built with checks. */
int __open64_2(const char *path, int flags) { return open64(path, flags); }

int fstat64(int fd, struct stat64 *out) {
  int (*next)(int, struct stat64 *) = dlsym(RTLD_NEXT, "fstat64");
  int result = next(fd, out);
  if (fd == character_fd) out->st_mode = S_IFCHR | 0600;
  if (fd == block_fd) out->st_mode = S_IFBLK | 0600;
  return result;
}

/** libnvme's, in place of sysfs: where the file with the registers is found. */
void *nvme_scan_ctrl(void *root, const char *name) { return root == NULL ? (void *)name : root; }
const char *nvme_ctrl_get_sysfs_dir(void *controller) {
  return controller == NULL ? "" : getenv("NVME_PEER");
}
void nvme_free_ctrl(void *controller) { (void)controller; }
