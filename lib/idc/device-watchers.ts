// Those who want to know when a served device changes: a channel each, which every client keeps
// open for as long as it has the device. Its end tells the client that the device is served no
// more.

import { errnoCode } from '../errors.js';
import { native } from '../native.js';
import { IdcOp, Rec } from './layout.js';
import type { Link } from './link.js';
import type { RecordChannel } from './record-channel.js';

interface Watched {
  readonly link: Link;
  readonly watch: number;
}

export class Watchers {
  private readonly channels = new Map<RecordChannel, Watched>();

  add(link: Link, channel: RecordChannel): void {
    let watch: number;
    try {
      watch = native.watchOpen(channel.wakeFd, () => {
        channel.disarm();
        this.sleep(channel, watch);
      });
    } catch (error) {
      if (errnoCode(error) === '') throw error;
      channel.close(); // no descriptor is left to hear of its end
      return;
    }
    this.channels.set(channel, { link, watch });
    this.sleep(channel, watch);
  }

  /** Channels of one domain that have not ended. */
  countOf(link: Link): number {
    let count = 0;
    for (const [channel, watched] of this.channels) {
      if (watched.link !== link) continue;
      if (channel.over) this.end(channel, watched.watch);
      else count++;
    }
    return count;
  }

  /** The device is another than it was: who is interested asks. */
  tell(): void {
    for (const channel of this.channels.keys()) {
      const at = (channel.tail & channel.mask) << Rec.shift;
      // A full ring tells it already.
      if (channel.reserve(1) === 0) continue;
      channel.sq[at] = IdcOp.CHANGED;
      channel.submit();
    }
  }

  close(): void {
    for (const [channel, { watch }] of this.channels) this.end(channel, watch);
  }

  private sleep(channel: RecordChannel, watch: number): void {
    // Nothing is expected to come: a record is as good as an end.
    if (channel.arm()) native.watchSet(watch, true, false);
    else this.end(channel, watch);
  }

  private end(channel: RecordChannel, watch: number): void {
    this.channels.delete(channel);
    native.watchClose(watch);
    channel.close();
  }
}
