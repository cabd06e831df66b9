// A process of the soak of a served device: hub, server, or the client that verifies.

import { PenstockError } from '../../lib/errors.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { DeviceServer, Hub, joinDomain } from '../../lib/idc/index.js';
import { open } from '../../lib/open.js';
import { sleep } from './harness.js';

type Order =
  | { role: 'hub'; path: string }
  | { role: 'server'; path: string; uri: string }
  | { role: 'client'; path: string; life: number; known: { marks?: number[] } }
  | { order: 'more'; rounds: number }
  | { order: 'pause' | 'go' | 'rest' };

const LANES = 16;
const UNIT_BYTES = 4096;
const UNIT_BLOCKS = UNIT_BYTES / 512;
const TELL_MS = 10;
/** Life and round in one number. */
const LIFE = 2 ** 20;

function report(kind: string, more: object = {}): void {
  process.send!({ kind, ...more }, () => {});
}

function fail(error: unknown): void {
  report('failed', { text: error instanceof Error ? (error.stack ?? error.message) : error });
}

class Client {
  private readonly device: BlockDevice;
  /** By lane: the newest mark that was acknowledged, and the newest that was sent. */
  private readonly done: number[];
  private readonly life: number;
  private paused = false;
  private busy = 0;
  private rounds = 0;

  constructor(device: BlockDevice, life: number, known: readonly number[]) {
    this.device = device;
    this.life = life;
    this.done = Array.from({ length: LANES }, (_, lane) => known[lane] ?? 0);
  }

  start(): void {
    for (let lane = 0; lane < LANES; lane++) this.run(lane).catch(fail);
    setInterval(() => report('done', { marks: this.done }), TELL_MS);
  }

  pause(on: boolean): void {
    this.paused = on;
  }

  get isQuiet(): boolean {
    return this.busy === 0;
  }

  async more(rounds: number): Promise<void> {
    const until = this.rounds + rounds;
    while (this.rounds < until) await sleep(1);
    report('more');
  }

  private async run(lane: number): Promise<void> {
    const { device } = this;
    const buffer = device.memory.alloc(UNIT_BYTES);
    const lba = lane * UNIT_BLOCKS;
    await device.read(lba, buffer);
    const first = this.markOf(buffer.u32, lane);
    if (first < this.done[lane]!) fail(`lane ${lane} has ${first}, not ${this.done[lane]!}`);
    for (let round = 1; ; round++) {
      while (this.paused) await sleep(1);
      this.busy++;
      const mark = this.life * LIFE + round;
      buffer.u32.fill(patternOf(lane, mark));
      buffer.u32[0] = mark;
      await device.write(lba, buffer);
      this.done[lane] = mark;
      if (round % 4 === 0) await device.flush();
      buffer.u32.fill(0);
      await device.read(lba, buffer);
      const found = this.markOf(buffer.u32, lane);
      if (found !== mark) fail(`lane ${lane} reads ${found} after ${mark}`);
      const loan = await device.readLoan(lba, UNIT_BLOCKS);
      const copy = loan.u8.slice();
      loan.release();
      const lent = this.markOf(new Uint32Array(copy.buffer), lane);
      if (lent !== mark) fail(`lane ${lane} lends ${lent} after ${mark}`);
      this.rounds++;
      this.busy--;
    }
  }

  /** Which write a unit is of: all of it, or that is a failure. 0: none. */
  private markOf(words: Uint32Array, lane: number): number {
    const mark = words[0]!;
    const pattern = mark === 0 ? 0 : patternOf(lane, mark);
    for (let i = 1; i < words.length; i++) {
      if (words[i] === pattern) continue;
      fail(`lane ${lane}: word ${i} is ${words[i]} in a unit of ${mark}`);
      break;
    }
    return mark;
  }
}

function patternOf(lane: number, mark: number): number {
  return (Math.imul(mark, 0x9e3779b1) ^ Math.imul(lane + 1, 0x85ebca6b)) >>> 0;
}

let client: Client | undefined;
let server: DeviceServer | undefined;

/** Waits for the place of one who died: the hub may be away, or not know of the death yet. */
async function persist<T>(what: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await what();
    } catch (error) {
      const codes = ['NO_HUB', 'NAME_TAKEN', 'TIMED_OUT', 'PEER_GONE'];
      if (!(error instanceof PenstockError) || !codes.includes(error.code)) throw error;
      await sleep(2);
    }
  }
}

async function rest(): Promise<void> {
  const end = performance.now() + 5000;
  for (;;) {
    const { inFlight, clients } = server!.stats();
    const lent = clients.reduce((sum, one) => sum + one.lent, 0);
    const isAtRest = inFlight === 0 && lent === 0 && clients.length === 1;
    if (isAtRest || performance.now() > end) {
      report('rest', { inFlight, lent, clients: clients.length });
      return;
    }
    await sleep(2);
  }
}

async function obey(order: Order): Promise<void> {
  if ('order' in order) {
    if (order.order === 'more') await client!.more(order.rounds);
    else if (order.order === 'rest') await rest();
    else {
      client!.pause(order.order === 'pause');
      if (order.order === 'go') return;
      while (!client!.isQuiet) await sleep(1);
      report('paused');
    }
    return;
  }
  if (order.role === 'hub') Hub.listen(order.path);
  if (order.role === 'server') {
    const domain = await persist(() => joinDomain(order.path, { name: 'disk0', keepAlive: true }));
    server = new DeviceServer(domain, await open(order.uri));
  }
  if (order.role === 'client') {
    const { path, life, known } = order;
    await persist(() => joinDomain(path, { name: 'client', keepAlive: true }));
    const device = await persist(() => open(`idc:${path}/disk0?reconnect=60s`));
    client = new Client(device, life, known.marks ?? []);
    client.start();
  }
  report('ready');
}

process.on('unhandledRejection', fail);
process.on('uncaughtException', fail);
process.on('message', (order: Order) => void obey(order).catch(fail));
process.on('disconnect', () => process.exit());
