// The null twin's loop: takes entries and posts their completions, nothing else. Written for speed,
// since a benchmark takes its time off the whole to see the driver's.

import { Cqe, IoOp, Sqe } from '../../../lib/drivers/nvme/commands.js';
import type { SubmissionQueue } from './queues.js';

// hot:begin

/**
 * Completes reads and writes from the queue's head on, up to `max`; stops at any other command.
 * Returns how many.
 */
export function consumeTransfers(sq: SubmissionQueue, max: number): number {
  const { cq, ring, size, tail } = sq;
  const entries = cq.ring;
  const sqid = sq.id << 16;
  const cqSize = cq.size;
  let head = sq.head;
  let cqTail = cq.tail;
  let phase = cq.phase << 16;
  let left = cq.room;
  if (max < left) left = max;
  const limit = left;
  while (head !== tail && left > 0) {
    const word = ring[head * Sqe.words]!;
    const opcode = word & 0xff;
    if (opcode !== IoOp.READ && opcode !== IoOp.WRITE) break;
    head = head + 1 === size ? 0 : head + 1;
    const at = cqTail * Cqe.words;
    entries[at] = 0;
    entries[at + Cqe.dw1] = 0;
    entries[at + Cqe.sqHead] = sqid | head;
    // The word with the phase goes last: the driver may be looking from another thread.
    entries[at + Cqe.status] = phase | (word >>> 16);
    cqTail++;
    if (cqTail === cqSize) {
      cqTail = 0;
      phase ^= 0x10000;
    }
    left--;
  }
  const done = limit - left;
  if (done > 0) {
    sq.head = head;
    sq.reported = head;
    cq.tail = cqTail;
    cq.phase = phase >>> 16;
    cq.hasNews = true;
  }
  return done;
}

// hot:end
