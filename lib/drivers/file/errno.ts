// errno of a file operation → Status.

import { getSystemErrorName } from 'node:util';
import { Status } from '../../hpdi/index.js';

/** Linux x86-64 errno values that say something of their own (asm-generic/errno.h). */
const STATUS_BY_ERRNO: Readonly<Record<number, Status>> = {
  1: Status.DENIED, // EPERM
  5: Status.MEDIA_ERROR, // EIO
  6: Status.DEVICE_GONE, // ENXIO
  9: Status.READ_ONLY, // EBADF: written through a read-only descriptor
  12: Status.NO_MEMORY, // ENOMEM
  13: Status.DENIED, // EACCES
  14: Status.BAD_ADDRESS, // EFAULT
  16: Status.BUSY, // EBUSY
  19: Status.DEVICE_GONE, // ENODEV
  22: Status.BAD_REQUEST, // EINVAL
  27: Status.NO_SPACE, // EFBIG
  28: Status.NO_SPACE, // ENOSPC
  30: Status.READ_ONLY, // EROFS
  61: Status.MEDIA_ERROR, // ENODATA: a medium error, from the block layer
  84: Status.MEDIA_ERROR, // EILSEQ: protection information
  95: Status.UNSUPPORTED, // EOPNOTSUPP
  108: Status.DEVICE_GONE, // ESHUTDOWN
  110: Status.TIMED_OUT, // ETIMEDOUT
  121: Status.MEDIA_ERROR, // EREMOTEIO
  122: Status.NO_SPACE, // EDQUOT
  125: Status.ABORTED, // ECANCELED
};

export const EINTR = 4;
export const EAGAIN = 11;
export const EOPNOTSUPP = 95;

/** A status word: code, and the errno as detail. */
export function statusOfErrno(errno: number): number {
  return (STATUS_BY_ERRNO[errno] ?? Status.DEVICE_ERROR) | (errno << 8);
}

/** The errno of a status word's detail, by name. */
export function errnoText(errno: number): string {
  return getSystemErrorName(-errno);
}
