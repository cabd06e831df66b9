// Deaths of domains: `kill -9` of a member or the hub at a random moment, round after round, under
// load that verifies itself (idc-kill-actor.ts), while others are stopped and go on.
//
// What must hold after each: the survivors' books have nothing of the dead, its memory is unmapped,
// nobody hangs, and no buffer was used again while somebody had it. Its successor joins and all go
// on. Now and then everybody pauses, and then all is home: buffers, loans, descriptors.

import { join } from 'node:path';
import { check, Random, scratchFolder, sleep, type Soak, type SoakRun } from './harness.js';
import { IdcProcess, type Report } from './idc-process.js';

const ACTOR = new URL('./idc-kill-actor.js', import.meta.url);
const NAMES = ['p', 'm', 'c'] as const;
const QUIET_EVERY = 8;
const SPARES = 2;
const WAIT_MS = 20_000;
/** Loan rings, and the halves of four channels with each of the two others. */
const HALVES_TAKEN = 10;
/**
 * What memory should be back by; told of in the end, and a failure only when it is far from that.
 */
const BACK_MS = 100;
/**
 * Of a member at rest: two links, eight channels and the hub, each watched by a copy; what it has
 * of its own memory.
 */
const DESCRIPTORS_MAX = { socket: 25, 'anon_inode:[pidfd]': 4, '/memfd': 24 };
const BACK_MS_MAX = 5000;

type Name = (typeof NAMES)[number];

const clock = (): number => Number(process.hrtime.bigint() / 1000n);

class KillRun implements SoakRun {
  private readonly random: Random;
  private readonly path = join(scratchFolder(), 'hub');
  private readonly members = new Map<Name, IdcProcess>();
  private readonly generations = new Map<Name, number>();
  private readonly spares: IdcProcess[] = [];
  private hub!: IdcProcess;
  private readonly clearMs: number[] = [];
  private readonly unmappedMs: number[] = [];
  private slotMax = 0;
  private started = 0;

  private constructor(random: Random) {
    this.random = random;
  }

  static async start(random: Random): Promise<KillRun> {
    const run = new KillRun(random);
    await run.startHub();
    for (const name of NAMES) run.join(name);
    await run.meshed();
    return run;
  }

  async round(index: number): Promise<number> {
    const { random } = this;
    await sleep(random.below(40));
    const victim = random.pick([...NAMES, ...NAMES, 'hub', 'both'] as const);
    try {
      const name = victim === 'both' ? random.pick(NAMES) : victim;
      if (victim === 'both' || victim === 'hub') await this.hub.kill();
      if (name !== 'hub') await this.killMember(name);
      if (victim === 'both' || victim === 'hub') {
        await sleep(random.below(30));
        await this.startHub();
      }
      await this.meshed();
      if (index % QUIET_EVERY === QUIET_EVERY - 1) await this.rest();
    } catch (cause) {
      const texts = [...this.members.values(), this.hub].map(({ label, text, reports }) => {
        return `${label}: ${JSON.stringify(reports.get('failed') ?? '')} ${text}`;
      });
      throw new Error(`round ${index}, ${victim}\n${texts.join('\n')}`, { cause });
    }
    return 1;
  }

  async finish(): Promise<void> {
    const all = [...this.members.values(), ...this.spares, this.hub];
    try {
      for (const actor of all) actor.assertAlive();
      const summary = (name: string, list: number[]): string => {
        const sorted = list.sort((a, b) => a - b);
        const at = (part: number): string =>
          (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? 0).toFixed(1);
        const late = sorted.filter((ms) => ms > BACK_MS).length;
        return `${name} ${at(0.5)} / ${at(0.99)} / ${at(1)} ms, ${late} of ${sorted.length} late`;
      };
      console.log(
        `idc-kill: ${summary('books clear', this.clearMs)}; ` +
          `${summary('memory unmapped', this.unmappedMs)}; highest slot ${this.slotMax}`,
      );
    } finally {
      for (const actor of all) await actor.kill();
    }
  }

  private async killMember(name: Name): Promise<void> {
    const { random } = this;
    const others = NAMES.filter((other) => other !== name);
    const stopped = random.chance(0.4) ? this.members.get(random.pick(others))! : null;
    stopped?.child.kill('SIGSTOP');
    if (stopped !== null) await sleep(random.below(20));
    const generation = this.generations.get(name)!;
    const killedAt = clock();
    await this.members.get(name)!.kill();
    this.join(name);
    let from = killedAt;
    if (stopped !== null) {
      await sleep(random.below(60));
      stopped.child.kill('SIGCONT');
      // Who was stopped may have had loans, and knows of nothing before it goes on.
      from = clock();
    }
    for (const other of others) {
      const report = await this.members.get(other)!.take(`dead ${generation}`, WAIT_MS);
      this.note(this.clearMs, Number(report['clearAt']) - from, 'the book is not clear');
      this.note(this.unmappedMs, Number(report['unmappedAt']) - from, 'the memory is mapped');
    }
  }

  private note(list: number[], us: number, what: string): void {
    const ms = Math.max(0, us / 1000);
    check(ms < BACK_MS_MAX, `${what} after ${ms} ms`);
    list.push(ms);
  }

  /** Everybody has channels with everybody, as they are now. */
  private async meshed(): Promise<void> {
    for (const name of NAMES) {
      const joined = await this.members.get(name)!.peek('joined', WAIT_MS);
      this.generations.set(name, Number(joined['generation']));
      this.slotMax = Math.max(this.slotMax, Number(joined['slot']));
    }
    for (const name of NAMES) {
      for (;;) {
        const { peers } = (await this.members.get(name)!.peek('up', WAIT_MS)) as Report & {
          peers: Record<string, number>;
        };
        const isNew = NAMES.every(
          (other) => other === name || peers[other] === this.generations.get(other),
        );
        if (isNew) break;
        await this.members.get(name)!.take('up', WAIT_MS);
      }
    }
  }

  private async rest(): Promise<void> {
    for (const name of NAMES) this.members.get(name)!.tell({ kind: 'pause' });
    for (const name of NAMES) {
      const report = await this.members.get(name)!.take('quiet', WAIT_MS);
      const seen = JSON.stringify(report);
      check(report['busy'] === 0 && report['lent'] === 0, `${name} misses something: ${seen}`);
      check(report['held'] === 0, `${name} holds something: ${seen}`);
      check(report['taken'] === HALVES_TAKEN, `${name} lost buffers: ${seen}`);
      check(report['strays'] === 0, `${name} saw strays: ${seen}`);
      const descriptors = report['descriptors'] as string[];
      for (const [kind, most] of Object.entries(DESCRIPTORS_MAX)) {
        const count = descriptors.filter((one) => one.startsWith(kind)).length;
        check(count <= most, `${name} has ${count} descriptors of ${kind}: ${seen}`);
      }
    }
    for (const name of NAMES) this.members.get(name)!.tell({ kind: 'resume' });
  }

  /** A process that is started already takes the place of the dead one. */
  private join(name: Name): void {
    const actor = this.spare();
    this.members.set(name, actor);
    actor.tell({ kind: 'join', path: this.path, name, seed: this.random.u32() });
  }

  private async startHub(): Promise<void> {
    this.hub = this.spare();
    this.hub.tell({ kind: 'hub', path: this.path });
    await this.hub.take('listens', WAIT_MS);
  }

  private spare(): IdcProcess {
    while (this.spares.length <= SPARES) {
      this.spares.push(
        new IdcProcess(`actor ${++this.started}`, ACTOR, [], { PENSTOCK_POISON: '1' }),
      );
    }
    return this.spares.shift()!;
  }
}

export const idcKillSoak: Soak = {
  full: 2000,
  unit: 'rounds',
  start: (random) => KillRun.start(random),
};
