// Hostile peers: a domain that writes every word of its own memory at random (rings, headers, loan
// records, pools, what it has lent), and sends control messages that nobody would, life after life.
//
// The other side is a process of its own, which must never crash nor hang; what it is handed lies
// in memory that was shared with it; every channel that breaks does so by a typed error; and after
// each life all of its own buffers are home, once, and its friend has noticed nothing
// (idc-fuzz-actor.ts).

import { join } from 'node:path';
import { check, scratchFolder, type Random, type Soak, type SoakRun } from './harness.js';
import { IdcProcess, type Report } from './idc-process.js';

const ACTOR = new URL('./idc-fuzz-actor.js', import.meta.url);
const SPARES = 2;
const WAIT_MS = 20_000;
/** Writes of one life: most break the link long before. */
const LIFE_WRITES = 20_000;
const DESCRIPTORS_MORE = 6;

export const MODES = [
  'rings',
  'headers',
  'loans',
  'messages',
  'control',
  'anywhere',
  'everything',
] as const;

class FuzzRun implements SoakRun {
  private readonly random: Random;
  private readonly path = join(scratchFolder(), 'hub');
  private readonly spares: IdcProcess[] = [];
  private hub!: IdcProcess;
  private honest!: IdcProcess;
  private friend!: IdcProcess;
  private atRest: Report | null = null;
  private lives = 0;

  private constructor(random: Random) {
    this.random = random;
  }

  static async start(random: Random): Promise<FuzzRun> {
    const run = new FuzzRun(random);
    run.hub = run.spare();
    run.hub.tell({ role: 'hub', path: run.path });
    await run.hub.take('ready');
    run.honest = run.spare();
    run.honest.tell({ role: 'honest', path: run.path });
    await run.honest.take('ready');
    run.friend = run.spare();
    run.friend.tell({ role: 'friend', path: run.path });
    await run.friend.take('ready');
    await run.goesOn();
    run.atRest = await run.rest();
    return run;
  }

  async round(index: number): Promise<number> {
    const { random } = this;
    const mode = MODES[index % MODES.length]!;
    const seed = random.u32();
    try {
      const hostile = this.spare();
      hostile.tell({ role: 'hostile', path: this.path, mode, seed, writes: LIFE_WRITES });
      let writes = 0;
      // It may end by itself: what it writes is its own library's memory, too.
      while (hostile.alive && writes < LIFE_WRITES) {
        const report = await this.nextOf(hostile);
        writes = Number(report?.['writes'] ?? writes);
        check(!hostile.reports.has('failed'), JSON.stringify(hostile.reports.get('failed')));
      }
      await hostile.kill();
      this.lives++;
      await this.goesOn();
      this.compare(await this.rest());
      return Math.max(1, writes);
    } catch (cause) {
      const texts = [this.honest, this.friend, this.hub].map(({ label, text, reports }) => {
        return `${label}: ${JSON.stringify(reports.get('failed') ?? '')} ${text}`;
      });
      throw new Error(`life ${index}, ${mode}, seed ${seed}\n${texts.join('\n')}`, { cause });
    }
  }

  async finish(): Promise<void> {
    const all = [this.honest, this.friend, this.hub];
    try {
      for (const actor of all) actor.assertAlive();
      const { ends = {} } = (await this.rest()) as Report & { ends?: Record<string, number> };
      const text = Object.entries(ends).map(([code, count]) => `${count} ${code}`);
      console.log(`idc-fuzz: ${this.lives} lives; the honest side saw ${text.join(', ')}`);
      check(this.lives < MODES.length || (ends['PEER_MISBEHAVED'] ?? 0) > 0, 'nothing was hostile');
    } finally {
      for (const actor of [...all, ...this.spares]) await actor.kill();
    }
  }

  private async nextOf(actor: IdcProcess): Promise<Report | null> {
    try {
      return await actor.take('writes', WAIT_MS);
    } catch (error) {
      if (!actor.alive) return null;
      throw error;
    }
  }

  /** The honest two still talk with each other, and the one is still of sound mind. */
  private async goesOn(): Promise<void> {
    for (const actor of [this.honest, this.friend, this.hub]) actor.assertAlive();
    this.friend.tell({ order: 'more' });
    await this.friend.take('more', WAIT_MS);
    const failed = this.honest.reports.get('failed') ?? this.friend.reports.get('failed');
    check(failed === undefined, String(failed?.['text']));
  }

  private async rest(): Promise<Report> {
    const { taken = 1e9, mapped = 1e9 } = this.atRest ?? ({} as Report);
    this.honest.tell({ order: 'rest', taken, mapped });
    const report = await this.honest.take('rest', WAIT_MS);
    this.honest.tell({ order: 'go' });
    return report;
  }

  private compare(now: Report): void {
    const before = this.atRest!;
    const seen = `${JSON.stringify(now)}\nat first ${JSON.stringify(before)}`;
    check(now['lent'] === 0 && now['held'] === 0, `something is out: ${seen}`);
    check(now['taken'] === before['taken'], `buffers are not home: ${seen}`);
    check(now['mapped'] === before['mapped'], `a dead one's memory is mapped: ${seen}`);
    for (const kind of new Set(now['descriptors'] as string[])) {
      const more = countOf(now, kind) - countOf(before, kind);
      check(more <= DESCRIPTORS_MORE, `${more} more descriptors of ${kind}: ${seen}`);
    }
  }

  private spare(): IdcProcess {
    while (this.spares.length <= SPARES) {
      const name = `actor ${this.lives}.${this.spares.length}`;
      this.spares.push(new IdcProcess(name, ACTOR, [], { PENSTOCK_POISON: '1' }));
    }
    return this.spares.shift()!;
  }
}

function countOf(report: Report, kind: string): number {
  return (report['descriptors'] as string[]).filter((one) => one === kind).length;
}

export const idcFuzzSoak: Soak = {
  full: 10_000_000,
  unit: 'writes',
  start: (random) => FuzzRun.start(random),
};
