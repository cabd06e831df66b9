// LinkWire: what a link between two domains is made of, where it differs. Processes have a socket,
// each other's pidfd, and sockets that wake; virtual machines have memory alone (region-wire.ts).

import type { Segment } from '../memory/index.js';
import { native } from '../native.js';
import { misbehaved, SocketTransport, type Transport, type TransportEvents } from './transport.js';
import { SocketWake, type Wake } from './wake.js';

export interface LinkWire {
  /** Starts to carry control messages. Once. */
  open(events: TransportEvents): Transport;
  /** For a new channel: this side's wake, and the descriptors that make the other side's. */
  pair(): { wake: Wake; fds: number[] };
  /** How many descriptors a peer sends for a channel; each is the caller's. */
  readonly wakeFds: number;
  /** This side's wake of a channel that the other side asked for; takes copies. */
  adopt(fds: readonly number[]): Wake;
  /** Calls back once, when the other domain is dead; gives what stops that. */
  onDeath(dead: () => void): () => void;
  /** The other domain's memory where it is mapped already, and stays so. */
  readonly memory: Segment | null;
}

/** Between two processes. Both descriptors belong to it. */
export class ProcessWire implements LinkWire {
  readonly memory = null;
  readonly wakeFds = 1;
  private readonly socket: number;
  private readonly pidfd: number;

  constructor(socket: number, pidfd: number) {
    this.socket = socket;
    this.pidfd = pidfd;
  }

  open(events: TransportEvents): Transport {
    return new SocketTransport(this.socket, events, false);
  }

  pair(): { wake: Wake; fds: number[] } {
    const [mine, theirs] = native.unixPair();
    return { wake: new SocketWake(mine), fds: [theirs] };
  }

  adopt(fds: readonly number[]): Wake {
    const wake = new SocketWake(native.fileDuplicate(fds[0]!));
    // What is no socket may be nothing that one can wait for.
    if (wake.isSocket()) return wake;
    wake.close();
    throw misbehaved('asked to be woken by what is no socket');
  }

  onDeath(dead: () => void): () => void {
    let watch = native.watchOpen(this.pidfd, () => {
      stop();
      dead();
    });
    native.watchSet(watch, true, false);
    const stop = (): void => {
      if (watch === 0) return;
      native.watchClose(watch);
      native.fileClose(this.pidfd);
      watch = 0;
    };
    return stop;
  }
}
