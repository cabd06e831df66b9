// What a volume's queue looks at before it takes a request.

import { Access, Flag, Op, Status, type RequestCheck } from '../../hpdi/index.js';
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
