// Deaths round a served device: `kill -9` of the driver process, of its client, or of the hub,
// round after round, while the client writes and reads every block that it has and knows what must
// be there (idc-device-actor.ts). It opened the device with ?reconnect.
//
// What must hold: whatever the client was told is written is there, through all servers and
// clients; no read is wrong; everybody goes on; and a server keeps nothing of a dead client.

import { join } from 'node:path';
import { check, scratchFolder, sleep, type Random, type Soak, type SoakRun } from './harness.js';
import { IdcProcess, type Report } from './idc-process.js';

const ACTOR = new URL('./idc-device-actor.js', import.meta.url);
const SPARES = 2;
const WAIT_MS = 20_000;
const ALIVE_MS = 60;
/** What a client must do after each death. */
const MORE = 40;
const REST_EVERY = 10;

class DeviceRun implements SoakRun {
  private readonly random: Random;
  private readonly folder = scratchFolder();
  private readonly hubPath = join(this.folder, 'hub');
  private readonly file = join(this.folder, 'disk');
  private readonly spares: IdcProcess[] = [];
  private hub!: IdcProcess;
  private server!: IdcProcess;
  private client!: IdcProcess;
  private life = 0;
  private readonly times: number[] = [];

  private constructor(random: Random) {
    this.random = random;
  }

  static async start(random: Random): Promise<DeviceRun> {
    const run = new DeviceRun(random);
    await run.startHub();
    await run.startServer();
    await run.startClient({});
    return run;
  }

  async round(index: number): Promise<number> {
    const { random } = this;
    const victim = random.pick(['server', 'server', 'client', 'hub'] as const);
    try {
      await sleep(random.below(ALIVE_MS));
      const killedAt = performance.now();
      if (victim === 'server') {
        await this.server.kill();
        await this.startServer();
      } else if (victim === 'client') {
        // What it was told before it died must be there for the next.
        const known = this.client.reports.get('done') ?? {};
        await this.client.kill();
        await this.startClient(known);
      } else {
        await this.hub.kill();
        await this.startHub();
      }
      await this.goesOn();
      this.times.push(performance.now() - killedAt);
      if (index % REST_EVERY === REST_EVERY - 1) await this.rest();
    } catch (cause) {
      const texts = [this.client, this.server, this.hub].map(({ label, text, reports }) => {
        return `${label}: ${JSON.stringify(reports.get('failed') ?? '')} ${text}`;
      });
      throw new Error(`round ${index}: ${victim} killed\n${texts.join('\n')}`, { cause });
    }
    return 1;
  }

  async finish(): Promise<void> {
    const sorted = this.times.sort((a, b) => a - b);
    const at = (part: number): string =>
      (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? 0).toFixed(0);
    console.log(`idc-device: from a kill to ${MORE} more rounds ${at(0.5)} ms, p99 ${at(0.99)}`);
    for (const actor of [this.client, this.server, this.hub, ...this.spares]) await actor.kill();
  }

  private async startHub(): Promise<void> {
    this.hub = this.spare();
    this.hub.tell({ role: 'hub', path: this.hubPath });
    await this.hub.take('ready', WAIT_MS);
  }

  private async startServer(): Promise<void> {
    this.server = this.spare();
    const uri = `file:${this.file}?create=1MiB`;
    this.server.tell({ role: 'server', path: this.hubPath, uri });
    await this.server.take('ready', WAIT_MS);
  }

  private async startClient(known: object): Promise<void> {
    this.client = this.spare();
    this.client.tell({ role: 'client', path: this.hubPath, life: ++this.life, known });
    await this.client.take('ready', WAIT_MS);
  }

  private async goesOn(): Promise<void> {
    for (const actor of [this.client, this.server, this.hub]) actor.assertAlive();
    this.client.tell({ order: 'more', rounds: MORE });
    await this.client.take('more', WAIT_MS);
    const failed = this.client.reports.get('failed');
    check(failed === undefined, String(failed?.['text']));
  }

  /** The client pauses: then the server has nothing of it, nor of those before it. */
  private async rest(): Promise<void> {
    this.client.tell({ order: 'pause' });
    await this.client.take('paused', WAIT_MS);
    this.server.tell({ order: 'rest' });
    const report: Report = await this.server.take('rest', WAIT_MS);
    const seen = JSON.stringify(report);
    check(report['inFlight'] === 0 && report['lent'] === 0, `the server has something: ${seen}`);
    check(report['clients'] === 1, `the server has other clients: ${seen}`);
    this.client.tell({ order: 'go' });
  }

  private spare(): IdcProcess {
    while (this.spares.length <= SPARES) {
      const name = `actor ${this.times.length}.${this.spares.length}`;
      this.spares.push(new IdcProcess(name, ACTOR, [], { PENSTOCK_POISON: '1' }));
    }
    return this.spares.shift()!;
  }
}

export const idcDeviceSoak: Soak = {
  full: 1000,
  unit: 'rounds',
  start: (random) => DeviceRun.start(random),
};
