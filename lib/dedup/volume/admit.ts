// What a volume's queue looks at before it takes a request.

import { Access, Flag, Op, Req, Status } from '../../hpdi/index.js';
import type { CompletionRing, RequestCheck } from '../../hpdi/index.js';
import type { Engine } from '../engine.js';

// hot:begin

/** Why the request at word `at` is refused; OK: it is not. */
export function admit(
  engine: Engine,
  check: RequestCheck,
  readOnly: boolean,
  sq: Uint32Array,
  at: number,
): Status {
  const op = sq[at]! & 0xff;
  let status: Status = Status.OK;
  if ((sq[at]! & Flag.mask & ~Flag.FUA) !== 0) status = Status.BAD_REQUEST;
  else if (op === Op.READ) status = check.transfer(sq, at, Access.write);
  else if (op === Op.WRITE) status = check.transfer(sq, at, Access.read);
  else if (op === Op.DISCARD || op === Op.WRITE_ZEROES) status = check.range(sq, at);
  else if (op !== Op.FLUSH) status = Status.UNSUPPORTED;
  if (status !== Status.OK || op === Op.READ || op === Op.FLUSH) return status;
  if (readOnly) return Status.READ_ONLY;
  return engine.failed === null ? Status.OK : Status.DEVICE_ERROR;
}

// hot:end

/** Requests end with DEVICE_GONE, those that there is room for; returns how many. */
export function refuse(
  done: CompletionRing,
  depth: number,
  sq: Uint32Array,
  head: number,
  count: number,
): number {
  const mask = sq.length / Req.words - 1;
  const room = Math.min(count, depth - done.length);
  for (let i = 0; i < room; i++) {
    const at = ((head + i) & mask) * Req.words;
    done.push(sq[at + Req.tag]!, Status.DEVICE_GONE, 0, 0);
  }
  return room;
}
