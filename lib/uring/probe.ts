// What this kernel's io_uring has, and why it may be forbidden.

import { readFileSync } from 'node:fs';
import { errnoCode, PenstockError } from '../errors.js';
import { native, type UringParameters, type UringRecord } from '../native.js';
import { Register } from './layout.js';

export interface UringProbe {
  available: boolean;
  /** Why not, and what to do; empty when available. */
  reason: string;
  hint: string;
  /** Operation codes the kernel has. */
  opcodes: number[];
  features: number;
}

/** io_uring_setup with errors that say what forbids it. */
export function setupRing(parameters: UringParameters): UringRecord {
  try {
    return native.uringSetup(parameters);
  } catch (cause) {
    const code = errnoCode(cause);
    if (code === 'EPERM' || code === 'EACCES') {
      throw new PenstockError('IO_URING_FORBIDDEN', 'io_uring is forbidden here', {
        hint: forbiddenHint(),
        exitCode: 3,
        cause,
      });
    }
    if (code === 'ENOSYS') {
      throw new PenstockError(
        'IO_URING_MISSING',
        'this kernel, or its seccomp filter, has no io_uring',
        {
          hint: 'Linux 5.10 or later is needed; in a container allow the io_uring system calls',
          exitCode: 3,
          cause,
        },
      );
    }
    if (code === 'ENOMEM') {
      throw new PenstockError('OUT_OF_MEMORY', 'io_uring could not allocate its rings', {
        hint: 'before Linux 5.12 rings are locked memory: raise `ulimit -l`, or lower the depth',
        exitCode: 3,
        cause,
      });
    }
    if (code === 'EMFILE' || code === 'ENFILE') {
      throw new PenstockError('TOO_MANY_FILES', 'no descriptor is left for io_uring', {
        hint: 'raise `ulimit -n`, or close queues',
        exitCode: 3,
        cause,
      });
    }
    throw cause;
  }
}

function forbiddenHint(): string {
  let disabled = '';
  try {
    disabled = readFileSync('/proc/sys/kernel/io_uring_disabled', 'utf8').trim();
  } catch {
    disabled = ''; // kernels before 6.6 have no such switch
  }
  if (disabled === '2') return 'as root: sysctl kernel.io_uring_disabled=0';
  if (disabled === '1') {
    return 'as root: sysctl kernel.io_uring_disabled=0, or join the group in kernel.io_uring_group';
  }
  return 'a seccomp filter (container) refuses it: allow io_uring_setup, _enter and _register';
}

/** Tries a small ring; never throws. */
export function probeUring(): UringProbe {
  try {
    const ring = setupRing({ entries: 2, flags: 0 });
    try {
      const table = new Uint8Array(16 + 256 * 8);
      const result = native.uringRegister(ring.id, Register.PROBE, table, 256);
      const opcodes: number[] = [];
      const length = result < 0 ? 0 : table[1]!;
      for (let i = 0; i < length; i++) if ((table[16 + i * 8 + 2]! & 1) !== 0) opcodes.push(i);
      return { available: true, reason: '', hint: '', opcodes, features: ring.features };
    } finally {
      native.uringClose(ring.id);
    }
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const hint = error instanceof PenstockError ? error.hint : '';
    return { available: false, reason, hint, opcodes: [], features: 0 };
  }
}
