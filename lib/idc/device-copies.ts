// ReadCopies: what the READs of one poll brought, on its way from the server's memory to the
// callers' buffers: one native call, the only copy there is.

import { Cpl, Status } from '../hpdi/index.js';
import { native } from '../native.js';

/** An entry of native.copyList; `place` is ours: the completion's index in cq. */
const enum Copy {
  toLo = 0,
  toHi = 1,
  fromLo = 2,
  fromHi = 3,
  bytes = 4,
  place = 6,
  words = 8,
}

export class ReadCopies {
  /** Copies that wait for `run`. */
  waiting = 0;
  /** Copies made, and bytes of them. */
  copies = 0;
  bytes = 0;
  private readonly list: Uint32Array;

  /** `capacity`: completions of one poll. */
  constructor(capacity: number) {
    this.list = new Uint32Array(capacity * Copy.words);
  }

  // hot:begin

  /** `slots` from word `at` on is the request, whose buffer is to be filled. */
  add(toLo: number, toHi: number, lo: number, hi: number, bytes: number, place: number): void {
    const { list } = this;
    const entry = this.waiting++ * Copy.words;
    list[entry] = toLo;
    list[entry + Copy.toHi] = toHi;
    list[entry + Copy.fromLo] = lo;
    list[entry + Copy.fromHi] = hi;
    list[entry + Copy.bytes] = bytes;
    list[entry + Copy.place] = place;
    this.bytes += bytes;
  }

  /** Makes all copies; completions whose buffer went away meanwhile get BAD_ADDRESS. */
  run(cq: Uint32Array): void {
    const count = this.waiting;
    this.waiting = 0;
    this.copies += count;
    const done = native.copyList(this.list, count);
    if (done < count) this.resume(cq, done, count);
  }

  // hot:end

  /** A copy that cannot be made fails alone; the rest goes on. */
  private resume(cq: Uint32Array, failed: number, count: number): void {
    const { list } = this;
    let at = failed;
    while (at < count) {
      cq[list[at * Copy.words + Copy.place]! * Cpl.words + Cpl.status] = Status.BAD_ADDRESS;
      at++;
      if (at < count) at += native.copyList(list.subarray(at * Copy.words), count - at);
    }
  }
}
