// A region of a vfio-user function by messages: REGION_READ and REGION_WRITE, one register each.
//
// Invariant: nothing here throws for what the server did. What it refuses, or cannot answer any
// more, is a register that there is none of: 0 bytes are read, and a store goes nowhere.

import { PenstockError } from '../errors.js';
import type { TrappedAccess } from './bar.js';
import type { VfioUserClient } from './vfio-user-client.js';
import { Command, RegionAccess } from './vfio-user-protocol.js';

const HEAD_BYTES = RegionAccess.words * 4;

export class RegionMessages implements TrappedAccess {
  private readonly client: VfioUserClient;
  private readonly region: number;

  constructor(client: VfioUserClient, region: number) {
    this.client = client;
    this.region = region;
  }

  read(offset: number, view: Uint8Array): number {
    if (!this.ask(Command.regionRead, offset, view.length, HEAD_BYTES + view.length)) return 0;
    view.set(this.client.replyBytes.subarray(HEAD_BYTES, HEAD_BYTES + view.length));
    return view.length;
  }

  /** False where the server did not take it. */
  write(offset: number, view: Uint8Array): boolean {
    this.client.bodyBytes.set(view, HEAD_BYTES);
    return this.ask(Command.regionWrite, offset, view.length, HEAD_BYTES);
  }

  /** A store that nobody waits for: false where it could not be sent at once. */
  post(offset: number, view: Uint8Array): boolean {
    this.client.bodyBytes.set(view, HEAD_BYTES);
    this.fill(offset, view.length);
    return this.client.post(Command.regionWrite, HEAD_BYTES + view.length);
  }

  private ask(command: Command, offset: number, count: number, wanted: number): boolean {
    const { client } = this;
    if (client.gone) return false;
    this.fill(offset, count);
    try {
      const sent = command === Command.regionWrite ? HEAD_BYTES + count : HEAD_BYTES;
      const got = client.request(command, sent);
      if (got < 0) return false;
      if (got === wanted && this.repeats(offset, count)) return true;
      const what = `${wanted} bytes about ${count} at ${offset} of region ${this.region}`;
      this.client.confuse(what, `${got}, or others`);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      return false; // the client keeps the reason, and says it where something may throw
    }
  }

  private fill(offset: number, count: number): void {
    const { body } = this.client;
    body[RegionAccess.offsetLo] = offset;
    body[RegionAccess.offsetHi] = 0; // BARs of 4 GiB and more have mappings, not registers
    body[RegionAccess.region] = this.region;
    body[RegionAccess.count] = count;
  }

  /** Whether the reply is about what was asked. */
  private repeats(offset: number, count: number): boolean {
    const { reply } = this.client;
    return (
      reply[RegionAccess.offsetLo] === offset &&
      reply[RegionAccess.offsetHi] === 0 &&
      reply[RegionAccess.region] === this.region &&
      reply[RegionAccess.count] === count
    );
  }
}
