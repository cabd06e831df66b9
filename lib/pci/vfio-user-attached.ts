// A vfio-user function as another environment of the process uses it: registers, memory, vectors.
//
// Invariants
// 1. The socket and the eventfds are duplicates. A number that was shared may be another file's by
//    now: what was duplicated counts only when the home still had it open afterwards.
// 2. Requests go over the home's connection, under its lock. When the home closes the function, or
//    ends, it is gone here too.

import { errnoCode, PenstockError } from '../errors.js';
import { isAlive, Liveness } from '../memory/index.js';
import { native } from '../native.js';
import { PciConfig } from './config-space.js';
import { DomainSpace } from './dma-space.js';
import type { PciFunction } from './function.js';
import { RegionMessages } from './vfio-user-access.js';
import { VfioUserClient } from './vfio-user-client.js';
import { ServerMemory } from './vfio-user-dma.js';
import {
  Closers,
  VfioUserFunction,
  type FunctionParts,
  type VfioUserShare,
} from './vfio-user-function.js';
import { Shared, State } from './vfio-user-lock.js';
import { RegionIndex } from './vfio-user-protocol.js';

class AttachedFunction extends VfioUserFunction implements PciFunction {
  private readonly shared: VfioUserShare;
  private readonly closers: Closers;
  private fds: readonly number[] | undefined;

  constructor(shared: VfioUserShare, parts: FunctionParts, closers: Closers) {
    super(parts);
    this.shared = shared;
    this.closers = closers;
  }

  get gone(): boolean {
    const { index, serial } = this.shared.home;
    // Our duplicate would keep the connection of a home that ended.
    if (!isAlive(index, serial)) this.client.end(State.closed);
    return this.client.gone;
  }

  /** Duplicates of what the home had enabled when it shared the function. */
  enableInterrupts(count: number): readonly number[] {
    const { eventfds, interrupts } = this.shared;
    if (count > eventfds.length) {
      throw new RangeError(`the home had enabled ${eventfds.length} vectors, not ${count}`);
    }
    if (this.fds === undefined) {
      const fds = eventfds.map((fd) => duplicate(this.address, fd, this.closers));
      if (this.gone || Atomics.load(this.client.words, Shared.interrupts) !== interrupts) {
        throw this.client.goneError();
      }
      this.fds = fds;
    }
    return this.fds.slice(0, count);
  }

  disableInterrupts(): void {
    homeOnly('disables interrupts');
  }

  enable(): void {
    homeOnly('enables it');
  }

  quiesce(): void {
    homeOnly('quiesces it');
  }

  reset(): Promise<void> {
    return homeOnly('resets it');
  }

  share(): unknown {
    return homeOnly('shares it');
  }

  async close(): Promise<void> {
    this.closers.run();
  }
}

function homeOnly(does: string): never {
  throw new TypeError(`only the environment that opened a function ${does}`);
}

function duplicate(address: string, fd: number, closers: Closers): number {
  try {
    const own = native.fileDuplicate(fd);
    closers.add(() => native.fileClose(own));
    return own;
  } catch (cause) {
    throw errnoCode(cause) === 'EBADF' ? gone(address, cause) : cause;
  }
}

/** Uses a function that another environment of this process opened, by what its `share()` gave. */
export function attachVfioUser(shared: unknown): PciFunction {
  const from = shared as VfioUserShare;
  const { index, serial } = from.home;
  const closers = new Closers();
  try {
    const liveness = new Liveness();
    closers.add(() => liveness.close());
    const { words, timeoutMs, address, identity, vectors, bars } = from;
    const socket = duplicate(address, from.socket, closers);
    const client = new VfioUserClient(socket, address, words, liveness, timeoutMs);
    if (client.gone || !isAlive(index, serial)) throw client.goneError();
    const messages = new RegionMessages(client, RegionIndex.config);
    const config = new PciConfig(messages, from.configBytes);
    const dma = new DomainSpace(new ServerMemory(client), [], from.domain);
    const parts = { client, identity, config, dma, vectors, bars };
    return new AttachedFunction(from, parts, closers);
  } catch (error) {
    closers.run();
    // What the home was closing at this moment failed in one way or another.
    const home = isAlive(index, serial) && from.words[Shared.state] === State.open;
    throw home ? error : gone(from.address, error);
  }
}

function gone(address: string, cause: unknown): PenstockError {
  return new PenstockError('DEVICE_GONE', `${address} was closed by the thread that opened it`, {
    hint: 'keep it open until all who attach to it are done',
    cause,
  });
}
