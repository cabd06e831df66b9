// A PCI function that another process serves over a unix socket: vfio-user. Registers that can be
// mapped are the server's own memory; all else is a message and its reply.
//
// Invariants
// 1. The environment that opened the function configures it. What it shares is the socket, under
//    the lock, with the words of vfio-user-lock.ts, the mapped regions and the DMA domain.
// 2. A server keeps no memory of ours for longer than the connection: closing ends that first, and
//    waits, a bounded time and without blocking, until the server has done the same.
// 3. Everything opened is closed in reverse order, also when opening fails half-way.

import { PenstockError } from '../errors.js';
import { Liveness } from '../memory/index.js';
import { native } from '../native.js';
import type { BarShare } from './bar.js';
import { Command as CommandBit, ConfigOffset, PciConfig, readIdentity } from './config-space.js';
import { DomainSpace } from './dma-space.js';
import type { PciFunction } from './function.js';
import { RegionMessages } from './vfio-user-access.js';
import { VfioUserClient } from './vfio-user-client.js';
import { connectServer } from './vfio-user-connect.js';
import { ServerMemory } from './vfio-user-dma.js';
import {
  Closers,
  VfioUserFunction,
  type FunctionParts,
  type VfioUserShare,
} from './vfio-user-function.js';
import { ServerInterrupts } from './vfio-user-interrupts.js';
import { Shared, sharedWords, State } from './vfio-user-lock.js';
import { Command, RegionIndex } from './vfio-user-protocol.js';
import {
  negotiate,
  readBar,
  readConfigBytes,
  readDevice,
  readInterrupts,
} from './vfio-user-setup.js';

const TIMEOUT_MS = 2000;
/** Bytes that a closing connection reads at a time, to get to its end. */
const DRAIN_BYTES = 4096;

export interface VfioUserOptions {
  /** Of each request; a server that takes longer is given up. */
  timeoutMs?: number;
}

interface HomeParts extends FunctionParts {
  readonly socket: number;
  readonly configBytes: number;
  readonly mapped: number[];
  readonly interrupts: ServerInterrupts;
  readonly hasReset: boolean;
  readonly liveness: Liveness;
  readonly closers: Closers;
}

class ServedFunction extends VfioUserFunction implements PciFunction {
  private readonly parts: HomeParts;
  private readonly watch: number;
  private onServerEnd: (() => void) | null = null;
  private closing: Promise<void> | undefined;
  private released = false;

  constructor(parts: HomeParts) {
    super(parts);
    this.parts = parts;
    this.watch = native.watchOpen(parts.socket, () => this.onReadable());
    parts.closers.add(() => native.watchClose(this.watch));
    native.watchSet(this.watch, true, false);
  }

  get gone(): boolean {
    if (!this.client.gone) return false;
    this.releaseRegisters();
    return true;
  }

  enableInterrupts(count: number): readonly number[] {
    const fds = this.parts.interrupts.enable(count);
    this.unmask(count);
    return fds;
  }

  disableInterrupts(): void {
    this.parts.interrupts.disable();
  }

  enable(): void {
    this.setCommand(CommandBit.memory | CommandBit.busMaster, 0);
  }

  quiesce(): void {
    this.setCommand(0, CommandBit.busMaster);
  }

  async reset(): Promise<void> {
    const got = this.parts.hasReset ? this.client.request(Command.reset, 0) : 0;
    if (this.parts.hasReset && got === 0) return;
    const why = this.parts.hasReset ? `it refused with errno ${-got}` : 'its server has no reset';
    throw new PenstockError('RESET_FAILED', `${this.address} could not be reset: ${why}`, {
      hint: "reset the device by its own registers; the server's log may say more",
    });
  }

  share(): VfioUserShare {
    this.client.assertOpen();
    const { parts } = this;
    return {
      transport: 'vfio-user',
      address: this.address,
      identity: this.identity,
      socket: parts.socket,
      words: this.client.words,
      timeoutMs: this.client.timeoutMs,
      configBytes: parts.configBytes,
      bars: parts.bars,
      domain: this.dma.domain,
      vectors: this.vectors,
      eventfds: [...parts.interrupts.eventfds],
      interrupts: Atomics.load(this.client.words, Shared.interrupts),
      home: { index: parts.liveness.index, serial: parts.liveness.serial },
    };
  }

  close(): Promise<void> {
    this.closing ??= this.shutDown();
    return this.closing;
  }

  private async shutDown(): Promise<void> {
    const { closers, interrupts } = this.parts;
    try {
      if (!this.client.gone) await this.endConnection();
    } finally {
      interrupts.closeFds();
      closers.run();
    }
  }

  /** Bus master off, then the end; resolves when the server has closed its side, or in time. */
  private async endConnection(): Promise<void> {
    const registers = new RegionMessages(this.client, RegionIndex.config);
    registers.post(ConfigOffset.command, new Uint8Array(2));
    this.client.end(State.closed);
    Atomics.add(this.client.words, Shared.interrupts, 1);
    native.watchSet(this.watch, true); // the process lives for this
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, this.client.timeoutMs);
      this.onServerEnd = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    native.watchSet(this.watch, false);
  }

  private onReadable(): void {
    if (this.onServerEnd !== null) {
      if (atEnd(this.parts.socket)) this.onServerEnd();
      return;
    }
    this.client.listen();
    if (this.client.gone) this.releaseRegisters();
  }

  protected override suspect(): void {
    super.suspect();
    if (this.client.gone) this.releaseRegisters();
  }

  /** Mapped registers read all ones from now on, in all environments. */
  private releaseRegisters(): void {
    if (this.released || this.closing !== undefined) return;
    this.released = true;
    native.watchSet(this.watch, false); // the end of a stream is readable for ever
    for (const region of this.parts.mapped.splice(0)) native.regionClose(region);
  }

  /** Vectors come masked out of a reset. */
  private unmask(count: number): void {
    const table = this.msixTable();
    if (table === null) return;
    const registers = new RegionMessages(this.client, table.bar);
    for (let vector = 0; vector < Math.min(count, table.vectors); vector++) {
      const control = this.vectorControl(vector);
      if (control !== null) control.words[control.index] = 0;
      // A server that has no table refuses the first, and would refuse all the others too.
      else if (!registers.write(table.offset + vector * 16 + 12, new Uint8Array(4))) return;
    }
  }

  private setCommand(set: number, clear: number): void {
    const old = this.config.read16(ConfigOffset.command);
    if (this.client.gone) return;
    this.config.write16(ConfigOffset.command, (old | set) & ~clear);
  }
}

/** Reads what is there; true at the end of the stream. */
function atEnd(socket: number): boolean {
  const fds = new Int32Array(1); // descriptors that still come are closed
  const scratch = new Uint8Array(DRAIN_BYTES);
  try {
    return native.streamReceive(socket, scratch, fds, 0) < DRAIN_BYTES;
  } catch (error) {
    return (error as { code?: unknown }).code !== 'ETIMEDOUT';
  }
}

/**
 * Opens the function that a server offers at `path`: its socket, or a folder with a socket named
 * `cntrl`. Errors: NO_SUCH_SOCKET, CONNECTION_REFUSED, PERMISSION_DENIED, BUSY,
 * VERSION_UNSUPPORTED, PROTOCOL_ERROR, TIMED_OUT, DEVICE_GONE.
 */
export async function openVfioUser(
  path: string,
  options: VfioUserOptions = {},
): Promise<PciFunction> {
  const timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
  if (!(timeoutMs > 0 && timeoutMs <= 3_600_000)) {
    throw new RangeError(`timeoutMs is more than 0 and at most an hour, not ${timeoutMs}`);
  }
  const closers = new Closers();
  try {
    const liveness = new Liveness();
    closers.add(() => liveness.close());
    const socket = connectServer(path);
    closers.add(() => native.fileClose(socket));
    const client = new VfioUserClient(socket, path, sharedWords(), liveness, timeoutMs);
    closers.add(() => client.end(State.closed));
    return new ServedFunction(setUp(client, socket, liveness, closers));
  } catch (error) {
    closers.run();
    throw error;
  }
}

function setUp(
  client: VfioUserClient,
  socket: number,
  liveness: Liveness,
  closers: Closers,
): HomeParts {
  const { fdsMax } = negotiate(client);
  const { hasReset, irqKinds } = readDevice(client);
  const configBytes = readConfigBytes(client);
  const config = new PciConfig(new RegionMessages(client, RegionIndex.config), configBytes);
  // A server may have kept the device as a client before us left it: doing DMA.
  const command = config.read16(ConfigOffset.command);
  if ((command & CommandBit.busMaster) !== 0) {
    config.write16(ConfigOffset.command, command & ~CommandBit.busMaster);
  }
  const mapped: number[] = [];
  closers.add(() => {
    for (const region of mapped.splice(0)) native.regionClose(region);
  });
  const bars: BarShare[] = [];
  for (let index = 0; index < RegionIndex.bars; index++) {
    const bar = readBar(client, index, mapped);
    if (bar !== null) bars.push(bar);
  }
  const found = readInterrupts(client, irqKinds);
  const identity = readIdentity(config);
  client.assertOpen();
  const dma = new DomainSpace(new ServerMemory(client), []);
  closers.add(() => dma.close());
  const interrupts = new ServerInterrupts(client, config, found, fdsMax);
  const { vectors } = interrupts;
  const common = { client, identity, config, dma, vectors, bars };
  return { ...common, socket, configBytes, mapped, interrupts, hasReset, liveness, closers };
}
