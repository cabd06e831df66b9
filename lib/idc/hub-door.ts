// The hub's door: takes connections, and keeps those whose callers have not said who they are.
//
// Whoever comes has some seconds and one of STRANGERS_MAX places; the oldest makes room. What a
// connection holds (its socket, the pidfd of its process) is closed with it, or the member's.

import { errnoCode, type PenstockError } from '../errors.js';
import { native } from '../native.js';
import type { Credentials, Member } from './hub-members.js';
import { closeAll, SocketTransport } from './transport.js';

const GREETING_MS = 5000;
const STRANGERS_MAX = 128;

/** A connection, and the member that it turned out to be. */
export interface Caller {
  readonly peer: Credentials;
  readonly transport: SocketTransport;
  /** Once it is set, `peer.pidfd` and the transport are the member's. */
  member: Member | null;
  /** Ends its time to say who it is. */
  greeted(): void;
}

export interface DoorEvents {
  onMessage(caller: Caller, message: Record<string, unknown>): void;
  /** The connection of a member ended. */
  onEnd(caller: Caller, error: PenstockError | null): void;
  log(line: string): void;
}

export class Door {
  private readonly listener: number;
  private readonly events: DoorEvents;
  private readonly watch: number;
  /** Ends of strangers' connections, oldest first. */
  private readonly strangers = new Set<() => void>();

  /** `listener` belongs to the door. */
  constructor(listener: number, events: DoorEvents) {
    this.listener = listener;
    this.events = events;
    this.watch = native.watchOpen(listener, () => this.accept());
    native.watchSet(this.watch, true);
  }

  close(): void {
    native.watchClose(this.watch);
    native.fileClose(this.listener);
    for (const end of this.strangers) end();
  }

  private accept(): void {
    for (;;) {
      let fd: number;
      try {
        fd = native.unixAccept(this.listener);
      } catch (error) {
        if (errnoCode(error) === '') throw error;
        // Out of descriptors: a stranger's are the least loss, and else it would be asked for ever.
        this.events.log(`a connection could not be taken: ${errnoCode(error)}`);
        if (!this.endOldest()) return;
        continue;
      }
      if (fd < 0) return;
      try {
        this.greet(fd, native.unixPeer(fd));
      } catch (error) {
        if (errnoCode(error) === '') throw error; // dead already
        native.fileClose(fd);
      }
    }
  }

  private endOldest(): boolean {
    const [oldest] = this.strangers;
    oldest?.();
    return oldest !== undefined;
  }

  private greet(fd: number, peer: Credentials): void {
    if (this.strangers.size >= STRANGERS_MAX) this.endOldest();
    const end = (): void => {
      transport.close();
      native.fileClose(peer.pidfd);
      caller.greeted();
    };
    const timer = setTimeout(end, GREETING_MS).unref();
    const transport: SocketTransport = new SocketTransport(
      fd,
      {
        onMessage: (message, fds) => {
          closeAll(fds);
          this.events.onMessage(caller, message);
        },
        onEnd: (error) => {
          if (caller.member === null) end();
          else this.events.onEnd(caller, error);
        },
      },
      false,
    );
    const caller: Caller = {
      peer,
      transport,
      member: null,
      greeted: () => {
        clearTimeout(timer);
        this.strangers.delete(end);
      },
    };
    this.strangers.add(end);
  }
}
